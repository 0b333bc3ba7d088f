"""Shows the state of all services on one page, keeps dead letters and replays them."""

import asyncio
import errno
import sqlite3
from typing import Any

from access import Access
from alerts import Alerts
from api import create_app
from catalog import Catalog
from config import ServiceSettings
from fleet import Fleet
from letters import Letters, rejection, replayed_payload
from schemas import KeptLetter, Outcome
from server import EmbeddedServer

from shared.mqtt import encode
from shared.schemas import DeadLetter
from shared.service import BaseService, run_service
from shared.state import StateFile

CLEANING_SECONDS = 3600.0
# A broker drops messages for a subscriber that is slower than this many replays at once.
MAX_REPLAYS = 500


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self.fleet = Fleet(settings.topic_prefix, settings.heartbeat_interval_seconds)
        self.catalog = Catalog()
        self.letters = self.add_client(
            Letters(
                settings.data_dir / "letters.sqlite3",
                max_count=settings.max_dead_letters,
                max_days=settings.max_dead_letter_days,
            )
        )
        self.access = Access(settings.password, self.letters.key())
        self.alerts: Alerts | None = None
        if url := settings.alert_url.get_secret_value():
            state = StateFile(settings.data_dir / "alerts.json", self.logger)
            after = settings.alert_after_seconds
            self.alerts = Alerts(url, after_seconds=after, state=state, logger=self.logger)
        self.server = EmbeddedServer(create_app(self), settings.http_host, settings.http_port)
        self._storage_problem = ""
        self._replaying = asyncio.Lock()

    async def run(self) -> None:
        prefix = self.settings.topic_prefix
        self.mqtt.subscribe(f"{prefix}/#", self.fleet.on_message, qos=0, payload_format="bytes")
        self.mqtt.subscribe(f"{prefix}/errors/+", self._on_dead_letter, model=DeadLetter)
        self.mqtt.connect_background()
        self.logger.info("http_listening", host=self.settings.http_host, port=self.server.port)
        serving = self.create_task(self.server.serve(), name="http")
        self.create_task(self.every(1, self._tick), name="tick")
        self.create_task(self.every(CLEANING_SECONDS, self._clean), name="cleaning")
        await self.wait_for_shutdown()
        # Streams are endless: the server would wait for them until its time limit.
        self.fleet.close()
        self.server.should_exit = True
        await serving

    def health_check(self) -> dict[str, Any]:
        problems = [self._storage_problem, self.alerts.problem if self.alerts else ""]
        if not any(problems):
            return {}
        return {"status": "degraded", "reasons": [*self.health.reasons, *filter(None, problems)]}

    def with_rejection(self, letter: KeptLetter) -> KeptLetter:
        """Return the letter with the reason why it cannot be replayed, if there is one."""
        prefix, max_age_seconds = self.settings.topic_prefix, self.settings.command_max_age_seconds
        letter.rejection = rejection(letter, prefix, max_age_seconds)
        return letter

    async def replay(self, letter: KeptLetter) -> int:
        """Publish the message of a letter again, and delete the letter once the broker has it.

        Return the number of replayed letters, 0 if the letter is gone. Raises MQTTError.
        """
        # Two requests at the same time would publish a letter twice otherwise.
        async with self._replaying:
            if self.letters.get(letter.id) is None:
                return 0
            payload = replayed_payload(letter, self.settings.topic_prefix)
            await self.mqtt.publish(letter.original_topic, payload)
            self.letters.discard(letter.id)
        self.logger.info("letter_replayed", topic=letter.original_topic, letter=letter.id)
        self.fleet.touch()
        return 1

    async def replay_kind(self, kind: str) -> Outcome:
        """Replay letters of a kind, oldest first and as many as subscribers can take at once.

        Raises MQTTError. Letters that were not acknowledged are kept.
        """
        done, rejected = 0, set[str]()
        for letter in self.letters.oldest_first(kind):
            if done == MAX_REPLAYS:
                break
            if reason := self.with_rejection(letter).rejection:
                rejected.add(reason)
            else:
                done += await self.replay(letter)
        return self.outcome(done, kind, rejected)

    def outcome(self, done: int, kind: str, rejected: set[str] | None = None) -> Outcome:
        self.fleet.touch()
        remaining = self.letters.count_kind(kind)
        return Outcome(done=done, rejected=sorted(rejected or []), remaining=remaining)

    def _on_dead_letter(self, topic: str, letter: DeadLetter) -> None:
        try:
            kept = self.letters.add(letter)
        except sqlite3.Error as error:
            self._storage_problem = f"dead letters cannot be kept: {error}"
            # The subscription pauses after this error, and the letter is not lost. Any other error
            # would acknowledge it, because a dead letter makes no dead letter.
            raise OSError(errno.EIO, self._storage_problem) from error
        self._storage_problem = ""
        if kept is None:
            return
        if self.alerts and self.letters.count_kind(kept.kind) == 1:
            self.alerts.on_first_letter(kept.kind, letter.error)
        self.fleet.remember(topic, encode(letter))
        self.fleet.touch()

    async def _tick(self) -> None:
        self.fleet.tick(connected=self.mqtt.connected)
        if self.alerts:
            self.alerts.update(self.fleet.rows(), connected=self.mqtt.connected)
            await self.alerts.send()

    async def _clean(self) -> None:
        if self.letters.delete_old():
            self.fleet.touch()


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
