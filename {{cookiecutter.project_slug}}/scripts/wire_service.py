#!/usr/bin/env python3
"""Wires a service into the repository, or out of it: all files or none.

    scripts/wire_service.py add NAME
    scripts/wire_service.py remove NAME [--dry-run]

`add` takes what the service template has put into services/NAME/wiring/ and enters it in the
Compose file and its overrides, in .env.example, in VS Code's launch.json, in docs/topics.md and in
tests/. `remove` takes exactly that out again, and leaves the code alone. Both may be repeated.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import compose_services
from compose_services import CannotEditError, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = "docker-compose.yml"
OVERRIDES = ["docker-compose.override.example.yml", "docker-compose.override.yml"]
ENV_EXAMPLE = ".env.example"
TOPICS = "docs/topics.md"
LAUNCH = ".vscode/launch.json"
_FIRST_PORTS = {"@DEBUG_PORT@": 5678, "@HTTP_PORT@": 8000}

# What becomes of each file; None removes it.
Edits = dict[Path, "bytes | None"]


def volume_of(name: str) -> str:
    return f"{name.replace('-', '_')}_data"


def test_of(name: str) -> str:
    return f"tests/test_{name.replace('-', '_')}.py"


def what_is_taken(root: Path, name: str) -> str | None:
    """What in the repository has the name already, or None."""
    try:
        compose = (root / COMPOSE).read_bytes().decode()
        if name in compose_services.names(compose, "services"):
            return f"{COMPOSE} has a service {name}"
        if volume_of(name) in compose_services.names(compose, "volumes"):
            return f"{COMPOSE} has a volume {volume_of(name)}"
    except (OSError, UnicodeDecodeError, CannotEditError) as error:
        return f"{COMPOSE} cannot be read: {error}"
    if (root / test_of(name)).exists():
        return f"{test_of(name)} exists"
    return None


def plan_addition(root: Path, name: str) -> Edits:
    """The files as they will be; raises CannotEditError and OSError."""
    wiring = root / "services" / name / "wiring"
    if not wiring.is_dir():
        return {}
    ports = _free_ports(root)

    def fragment(file: str) -> str:
        text = (wiring / file).read_text(encoding="utf-8")
        for mark, port in ports.items():
            text = text.replace(mark, str(port))
        return text

    edits: Edits = {}

    def edit(file: str, change: Callable[[str], str], *, by_hand: str) -> None:
        path = root / file
        if path.is_file():
            edits[path] = _changed(path, file, change, by_hand=by_hand)

    block = fragment("compose.yml")
    edit(
        COMPOSE,
        lambda text: compose_services.add(text, name, block, volume_of(name)),
        by_hand=f"below `services:`\n\n{block}\nand below `volumes:`\n\n  {volume_of(name)}:\n",
    )
    override = fragment("override.yml")
    for file in OVERRIDES:
        edit(
            file,
            lambda text: compose_services.add(text, name, override),
            by_hand=f"below `services:`\n\n{override}",
        )
    env = fragment("env.example")
    edit(ENV_EXAMPLE, lambda text: _append(text, env), by_hand=f"at the end\n\n{env}")
    launch = fragment("launch.json")
    edit(
        LAUNCH,
        lambda text: add_configuration(text, launch),
        by_hand=f"as a configuration\n\n{launch}",
    )
    if (wiring / "topics.md").is_file():
        topics = fragment("topics.md")
        edit(TOPICS, lambda text: add_section(text, name, topics), by_hand=f"in order\n\n{topics}")
    edits[root / test_of(name)] = (wiring / "test_service.py").read_bytes()
    return edits


def plan_removal(root: Path, name: str) -> Edits:
    """The files as they will be without the service; raises CannotEditError and OSError."""
    changes: dict[str, Callable[[str], str]] = {
        COMPOSE: lambda text: compose_services.remove(text, name, volume_of(name)),
        **{file: lambda text: compose_services.remove(text, name) for file in OVERRIDES},
        ENV_EXAMPLE: lambda text: _without_env_block(text, name),
        LAUNCH: lambda text: remove_configuration(text, f"Attach to {name}"),
        TOPICS: lambda text: remove_section(text, name),
    }
    edits: Edits = {}
    for file, change in changes.items():
        path = root / file
        if path.is_file():
            edits[path] = _changed(path, file, change, by_hand=f"take out what belongs to {name}")
    if (root / test_of(name)).is_file():
        edits[root / test_of(name)] = None
    return {path: new for path, new in edits.items() if new != path.read_bytes()}


def apply(edits: Edits) -> None:
    """Write all files; on any failure and on an interrupt put all back as they were."""
    before = {path: path.read_bytes() if path.is_file() else None for path in edits}
    try:
        for path, content in edits.items():
            _set(path, content)
    except BaseException:
        for path, content in before.items():
            _set(path, content)
        raise


def _set(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def _changed(path: Path, file: str, change: Callable[[str], str], *, by_hand: str) -> bytes:
    """A file's new content, with the line ends that it has."""
    text = path.read_bytes().decode()
    try:
        return change(text).encode()
    except CannotEditError as error:
        message = f"{file}: {error}.\nNothing was changed. By hand, in {file}: {by_hand}"
        raise CannotEditError(message) from error


def _free_ports(root: Path) -> dict[str, int]:
    """For each kind of port on this machine the one after the highest in use."""
    texts = [(root / file).read_text("utf-8") for file in OVERRIDES if (root / file).is_file()]
    inner = {"@DEBUG_PORT@": 5678, "@HTTP_PORT@": 8000}
    used = {
        mark: [int(port) for text in texts for port in re.findall(rf":(\d+):{port_inside}\b", text)]
        for mark, port_inside in inner.items()
    }
    return {mark: max([first - 1, *used[mark]]) + 1 for mark, first in _FIRST_PORTS.items()}


def _append(text: str, block: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    block = block.replace("\n", newline)
    if text and not text.endswith("\n"):
        return text + newline + block.removesuffix(newline)
    return text + block


def _without_env_block(text: str, name: str) -> str:
    heading = rf"# --- {re.escape(name)} ---"
    pattern = rf"^{heading}\r?\n(?:(?!# --- ).*(?:\r?\n|\Z))*"
    result = re.sub(pattern, "", text, count=1, flags=re.MULTILINE)
    if result != text and not text.endswith("\n"):
        return re.sub(r"\r?\n\Z", "", result)
    return result


def add_section(text: str, name: str, section: str) -> str:
    """Put a `## NAME` section of docs/topics.md where the order of names wants it."""
    sections = _sections(text)
    # The first is the introduction, the second is the library's.
    head, own = sections[:2], sections[2:]
    own = [item for item in own if not item.startswith(f"## {name}\n")]
    entries = sorted([*(item.rstrip("\n") for item in own), section.rstrip("\n")])
    return "\n\n".join([*(item.rstrip("\n") for item in head), *entries]) + "\n"


def remove_section(text: str, name: str) -> str:
    """Take a `## NAME` section out."""
    kept = [item for item in _sections(text) if not item.startswith(f"## {name}\n")]
    return "\n\n".join(item.rstrip("\n") for item in kept) + "\n"


def _sections(text: str) -> list[str]:
    return re.split(r"(?m)^(?=## )", text)


def add_configuration(text: str, entry: str) -> str:
    """Put an entry at the end of `configurations` in a launch.json, which may hold comments."""
    start, end = _configurations(text)
    newline = "\r\n" if "\r\n" in text else "\n"
    entry = entry.rstrip("\n").replace("\n", newline)
    inside = _blanked(text)[start:end]
    content = inside.rstrip()
    if not content:
        return f"{text[:start]}{newline}{entry}{newline}  {text[end:]}"
    at = start + len(content)
    comma = "" if content.endswith(",") else ","
    return f"{text[:at]}{comma}{newline}{entry}{text[at:]}"


def remove_configuration(text: str, name: str) -> str:
    """Take the entry with this name out of a launch.json."""
    start, end = _configurations(text)
    blanked = _blanked(text)
    depth, opened = 0, start
    for position in range(start, end):
        if blanked[position] == "{":
            depth += 1
            if depth == 1:
                opened = position
        elif blanked[position] == "}":
            depth -= 1
            if depth == 0 and f'"name": "{name}"' in text[opened : position + 1]:
                # One comma goes with the entry: the one before it, or else the one after it.
                before, closed = blanked[start:opened].rstrip(), position + 1
                if before.endswith(","):
                    return text[: start + len(before) - 1] + text[closed:]
                if blanked[closed:end].lstrip().startswith(","):
                    return text[: start + len(before)] + text[blanked.index(",", closed) + 1 :]
                return text[:start] + text[end:]
    return text


def _configurations(text: str) -> tuple[int, int]:
    """Where the content of `"configurations": [...]` begins and ends."""
    blanked = _blanked(text)
    found = re.search(r'"configurations"\s*:\s*\[', text)
    if found is None:
        message = "it has no list `configurations`"
        raise CannotEditError(message)
    depth = 1
    for position in range(found.end(), len(blanked)):
        depth += {"[": 1, "]": -1}.get(blanked[position], 0)
        if depth == 0:
            return found.end(), position
    message = "its list `configurations` has no end"
    raise CannotEditError(message)


def _blanked(text: str) -> str:
    """The text with strings and comments as spaces (a string as `""`), at the same positions."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if found.startswith('"'):
            return f'"{"_" * (len(found) - 2)}"'
        return re.sub(r"[^\r\n]", " ", found)

    return re.sub(r'"(?:\\.|[^"\\])*"|//[^\r\n]*|/\*.*?\*/', blank, text, flags=re.DOTALL)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when the files cannot be edited, and then none was."""
    parser = argparse.ArgumentParser(description="Wire a service into the repository or out of it.")
    parser.add_argument("action", choices=["add", "remove"])
    parser.add_argument("name")
    parser.add_argument("--dry-run", action="store_true", help="name the files, change nothing")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        plan = plan_addition if options.action == "add" else plan_removal
        edits = plan(ROOT, options.name)
        if not options.dry_run:
            apply(edits)
            shutil.rmtree(ROOT / "services" / options.name / "wiring", ignore_errors=True)
    except (CannotEditError, OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path, content in sorted(edits.items()):
        what = "removed" if content is None else "written"
        sys.stdout.write(f"  {path.relative_to(ROOT)} {what}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
