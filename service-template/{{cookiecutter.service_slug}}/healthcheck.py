"""Health check of the container: exit code 0 while the last health timestamp is recent enough.

Standard library only, because Docker starts it every minute in every container.
"""

import json
import os
import sys
import time
from pathlib import Path

# The /tmp of the container is in memory. A file in a volume would outlive its process.
HEALTH_PATH = Path(os.environ.get("HEALTH_PATH") or "/tmp/healthcheck")  # noqa: S108
MAX_AGE_SECONDS = float(os.environ.get("HEALTH_MAX_AGE_SECONDS") or 300)


def main() -> int:
    try:
        content = json.loads(HEALTH_PATH.read_bytes())
        # The monotonic clock is the same for all processes and is never set.
        age = time.monotonic() - content["monotonic"]
        # Signal 0 only checks that the process which wrote the file still runs.
        os.kill(content["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        sys.stderr.write("the process has not been healthy since its start\n")
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"{HEALTH_PATH}: not a valid health file: {error}\n")
        return 1
    sys.stdout.write(f"last health timestamp {age:.0f} s ago\n")
    return 0 if age <= MAX_AGE_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
