"""The form of the help of all programs in this directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def make_parser(
    docstring: str | None, exit_codes: str = "0 done, 1 failed, 2 wrong usage"
) -> argparse.ArgumentParser:
    """Return a parser that describes a program by the first sentence of its docstring."""
    return argparse.ArgumentParser(
        prog=f"scripts/{Path(sys.argv[0]).name}",
        description=(docstring or "").partition("\n")[0],
        epilog=f"exit codes: {exit_codes}",
    )
