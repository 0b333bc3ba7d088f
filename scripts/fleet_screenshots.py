"""Write docs/fleet-light.png and docs/fleet-dark.png, with a service that fails.

    uv run --frozen python scripts/fleet_screenshots.py

Needs Mosquitto and Chromium.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cli import make_parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fleet_stack import (  # noqa: E402
    PREFIX,
    FleetStack,
    chromium,
    log_in,
    new_repository,
    running_stack,
)

SECONDS = 15
OTHERS: dict[str, dict[str, Any]] = {
    "heat-pump": {"status": "degraded", "reasons": ["no answer from the inverter for 10 min"]},
    "pv-forecast": {"status": "online"},
}


def take(stack: FleetStack) -> None:
    """Show three real services and two that only send heartbeats."""
    with stack.client() as client, chromium() as browser:
        context = browser.new_context(viewport={"width": 960, "height": 480})
        page = context.new_page()
        log_in(page, stack)
        for second in range(SECONDS):
            for name, status in OTHERS.items():
                beat = {"uptime_seconds": 7200 + second, "memory_mb": 41 + second * 7 % 5}
                client.publish(f"{PREFIX}/{name}/heartbeat", json.dumps({**beat, **status}))
            page.wait_for_timeout(1000)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
            page.screenshot(path=ROOT / f"docs/fleet-{scheme}.png")


def main() -> None:
    """Run the services of a new repository."""
    make_parser(__doc__).parse_args()
    with new_repository() as project, running_stack(project) as stack:
        stack.break_listener()
        take(stack)


if __name__ == "__main__":
    main()
