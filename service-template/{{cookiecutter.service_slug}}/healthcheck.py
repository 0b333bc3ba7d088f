"""Docker's health check: exit code 0 while the last sign of health is young enough.

Standard library only, since it starts every minute in every container.
"""

import json
import os
import sys
import time
from pathlib import Path

HEALTHCHECK_FILE = Path(os.environ.get("DATA_DIR") or "/app/data") / "healthcheck"
MAX_AGE_SECONDS = float(os.environ.get("HEALTH_MAX_AGE_SECONDS") or 300)


def main() -> int:
    try:
        # The monotonic clock is the same for all processes, and nobody sets it.
        age = time.monotonic() - json.loads(HEALTHCHECK_FILE.read_bytes())["monotonic"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"no sign of health: {error}\n")
        return 1
    sys.stdout.write(f"last sign of health {age:.0f} s ago\n")
    # A time to come is from before a restart of the machine.
    return 0 if 0 <= age <= MAX_AGE_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
