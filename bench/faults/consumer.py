"""Records every message that it has handled, after a write to a small disk."""

import os
import time
from pathlib import Path
from typing import Any

from shared.config import Settings
from shared.service import BaseService, run_service

# In memory, with the limit of base/compose.yml.
SMALL_DISK = Path("/tmp")


class Consumer(BaseService[Settings]):
    name = "consumer"

    async def run(self) -> None:
        self._file = os.open("/journal/handled", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        topic = f"{self.settings.topic_prefix}/producer/number"
        group = "$share/consumers/" if os.environ.get("REPLICAS") else ""
        self.mqtt.subscribe(f"{group}{topic}", self.handle)
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    def handle(self, _topic: str, payload: Any) -> None:
        temporary = SMALL_DISK / "last.tmp"
        temporary.write_text(str(payload["number"]))
        temporary.replace(SMALL_DISK / "last")
        os.write(self._file, f"{payload['number']} {time.monotonic()}\n".encode())


if __name__ == "__main__":
    raise SystemExit(run_service(Consumer))
