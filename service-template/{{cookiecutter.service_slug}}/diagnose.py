"""Checks settings and connections step by step: `python diagnose.py --help`."""

from config import ServiceSettings

from shared.diagnose import main

if __name__ == "__main__":
    raise SystemExit(main(ServiceSettings))
