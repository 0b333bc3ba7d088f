"""Publishes numbered messages at a fixed rate, and records each one and its acknowledgement."""

import asyncio
import os
import time
from pathlib import Path

from shared.config import Settings
from shared.mqtt import MQTTError
from shared.service import BaseService, run_service

JOURNAL = Path("/journal")
MESSAGES_PER_SECOND = 200


class Producer(BaseService[Settings]):
    name = "producer"

    async def run(self) -> None:
        self._file = os.open(JOURNAL / "sent", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.mqtt.connect_background()
        await self.mqtt.wait_connected()
        # Numbers go on after a restart.
        number = time.time_ns()
        due = time.monotonic()
        pending: set[asyncio.Task[None]] = set()
        while not (JOURNAL / "stop").exists():
            number += 1
            task = self.create_task(self._send(number), name="send")
            pending.add(task)
            task.add_done_callback(pending.discard)
            due += 1 / MESSAGES_PER_SECOND
            await asyncio.sleep(max(due - time.monotonic(), 0))
        await asyncio.gather(*pending)
        (JOURNAL / "done").touch()
        await self.wait_for_shutdown()

    async def _send(self, number: int) -> None:
        os.write(self._file, f"sent {number}\n".encode())
        try:
            await self.publish("number", {"number": number})
        except MQTTError:
            return
        os.write(self._file, f"acknowledged {number}\n".encode())


if __name__ == "__main__":
    raise SystemExit(run_service(Producer))
