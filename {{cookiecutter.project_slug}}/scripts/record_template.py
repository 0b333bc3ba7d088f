#!/usr/bin/env python3
"""Writes .cruft.json, by which this repository knows the template that it came from.

    scripts/record_template.py < ANSWERS

ANSWERS is cookiecutter's context as JSON. Exit code 3: there is nothing to record, for the reason
given. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / ".cruft.json"
SKIPPED = 3
# cookiecutter's own entries: about this run, not about this repository.
_NOT_ANSWERS = {"_output_dir", "_repo_dir", "_checkout"}


class NothingToRecordError(Exception):
    """The template has no address that others can reach."""


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command; empty when it fails."""
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() if result.returncode == 0 else ""


def make_record(context: dict[str, Any]) -> dict[str, Any]:
    """What cruft would have written; raises NothingToRecordError and OSError."""
    # Relative to the folder in which cookiecutter was called, not to this one.
    template = Path(os.environ.get("PWD", "/"), context.get("_repo_dir") or "")
    if not (template / "cookiecutter.json").is_file() or not git(template, "rev-parse", "HEAD"):
        message = "the template is no git repository"
        raise NothingToRecordError(message)
    address = without_credentials(git(template, "remote", "get-url", "origin"))
    if not address:
        message = "the template's git repository has no remote `origin`"
        raise NothingToRecordError(message)
    commit = git(template, "rev-parse", "HEAD")
    if git(template, "status", "--porcelain"):
        message = "the template has changes that are not committed"
        raise NothingToRecordError(message)
    answers = {key: escape(value) for key, value in context.items() if key not in _NOT_ANSWERS}
    answers["_template"] = address
    return {
        "template": address,
        "commit": commit,
        "checkout": None,
        "context": {"cookiecutter": answers},
        "directory": None,
    }


def without_credentials(address: str) -> str:
    """The record is committed, and may be published."""
    return re.sub(r"^(https?://)[^/@]*@", r"\1", address)


def escape(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """An update renders answers once more: braces in them must come out as they are."""
    if not isinstance(value, str) or not any("{" + mark in value for mark in "{%#"):
        return value
    return "{{ " + json.dumps(value, ensure_ascii=False) + " }}"


def main() -> int:
    """Command line; 2 when the answers are no JSON."""
    what = "Write .cruft.json from cookiecutter's context, which is read as JSON from stdin."
    argparse.ArgumentParser(description=what).parse_args()
    if RECORD.exists():
        sys.stdout.write(".cruft.json was there already\n")
        return 0
    try:
        record = make_record(json.load(sys.stdin))
    except ValueError as error:
        sys.stderr.write(f"stdin is no JSON: {error}\n")
        return 2
    except NothingToRecordError as error:
        sys.stderr.write(f"{error}\n")
        return SKIPPED
    except OSError as error:
        sys.stderr.write(f"git is missing: {error}\n")
        return SKIPPED
    RECORD.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{record['template']} at {record['commit'][:8]}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
