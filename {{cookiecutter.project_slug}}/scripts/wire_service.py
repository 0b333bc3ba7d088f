"""Wires a service into the repository, or takes it out: all files or none.

    python scripts/wire_service.py add NAME [--code FOLDER] [--dry-run]
    python scripts/wire_service.py remove NAME [--keep-code] [--dry-run]

`add` takes what the service template has put into services/NAME/wiring/ and enters it in the
Compose file and its overrides, in .env.example, in VS Code's launch.json, in docs/topics.md and in
tests/. What is there already stays as it is, so it may be repeated. With --code all that is in
FOLDER, and the code is copied from there. `remove` takes exactly that out again, and deletes the
code. With --keep-code the code stays with its test, settings and topics.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import compose_services
from compose_services import CannotEditError, entries, replace_file, temporary_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = "docker-compose.yml"
OVERRIDES = ["docker-compose.override.example.yml", "docker-compose.override.yml"]
ENV_EXAMPLE = ".env.example"
TOPICS = "docs/topics.md"
LAUNCH = ".vscode/launch.json"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# What stands for a port of this machine in the wiring, and the port inside the container.
PORTS = {"@DEBUG_PORT@": 5678, "@HTTP_PORT@": 8000}


class Plan(NamedTuple):
    """What becomes of each file (None removes it), and of the folder of the service."""

    files: dict[Path, bytes | None]
    service: Path
    # What is copied to it, and what of it goes.
    code: Path | None
    folder: Path
    notes: list[str]


def volume_of(name: str) -> str:
    return f"{name.replace('-', '_')}_data"


def test_of(name: str) -> str:
    return f"tests/test_{name.replace('-', '_')}.py"


def title_of(name: str) -> str:
    return f"Attach to {name}"


def what_is_taken(root: Path, name: str) -> str | None:
    """What in the repository has the name already, or None.

    What builds or mounts services/NAME has not taken it: somebody has entered it by hand.
    """
    try:
        return next(_taken(root, name), None)
    except CannotEditError as error:
        return str(error)


def _taken(root: Path, name: str) -> Iterator[str]:
    models = {file: _load(root, file) for file in (COMPOSE, *OVERRIDES)}
    for file, model in models.items():
        services = entries(model, "services")
        if name in services and not _is_ours(services[name], name):
            yield f"{file} has a service {name}"
    cure = ""
    if name in entries(models[COMPOSE], "services"):
        cure = f"; if its addition was interrupted, run scripts/remove-service.sh {name}"
    else:
        if volume_of(name) in entries(models[COMPOSE], "volumes"):
            yield f"{COMPOSE} has a volume {volume_of(name)}"
        for file, heading in ((ENV_EXAMPLE, f"# --- {name} ---"), (TOPICS, f"## {name}")):
            if heading in _load(root, file):
                yield f"{file} has a heading {name}"
        for entry in _load(root, LAUNCH).get("configurations", []):
            is_ours = f'/services/{name}"' in json.dumps(entry)
            if entry.get("name") == title_of(name) and not is_ours:
                yield f"{LAUNCH} has an entry {title_of(name)}"
    if (root / test_of(name)).exists():
        yield f"{test_of(name)} exists{cure}"


def _load(root: Path, file: str) -> Any:  # noqa: ANN401 - a model or lines
    """What a file holds; nothing if it does not exist, which the Compose file has to."""
    load: Callable[[str], Any] = compose_services.load
    if file in {ENV_EXAMPLE, TOPICS}:
        load = str.splitlines
    elif file == LAUNCH:
        load = _load_jsonc
    if file != COMPOSE and not (root / file).is_file():
        return {}
    try:
        return load(_read(root / file))
    except (OSError, UnicodeDecodeError, RecursionError, CannotEditError) as error:
        message = f"{file} cannot be read: {error}"
        raise CannotEditError(message) from error


def _is_ours(service: object, name: str) -> bool:
    """Whether a service builds or mounts the code in services/NAME."""
    if not isinstance(service, dict):
        return False
    build = service.get("build")
    dockerfile = build.get("dockerfile") if isinstance(build, dict) else None
    sources = [
        mount.get("source") if isinstance(mount, dict) else str(mount).split(":")[0]
        for mount in _items(service, "volumes")
    ]
    ours = f"services/{name}"
    return str(dockerfile).removeprefix("./") == f"{ours}/Dockerfile" or f"./{ours}" in sources


def _items(service: dict[str, Any], key: str) -> list[Any]:
    """A list in a service, with or without one of Compose's tags."""
    value = service.get(key)
    value = value[1] if isinstance(value, tuple) else value
    return value if isinstance(value, list) else []


def plan_addition(root: Path, name: str, code: Path) -> Plan:
    """The files as they will be; raises CannotEditError, which tells what to do by hand."""
    service, wiring = root / "services" / name, code / "wiring"
    editor = _Editor(root)
    copied = code if code != service else None
    if copied and service.exists():
        message = f"services/{name} exists already"
        raise CannotEditError(message)
    if not wiring.is_dir():
        return editor.plan(service, wiring)
    ports = _ports(root, name)

    def fragment(file: str) -> str:
        text = (wiring / file).read_text(encoding="utf-8")
        for mark, port in ports.items():
            text = text.replace(mark, str(port))
        return text

    compose, override = fragment("compose.yml"), fragment("override.yml")
    volume = volume_of(name)
    editor.edit(
        COMPOSE,
        lambda text: compose_services.add(text, name, compose, volume),
        by_hand=f"below `services:` put\n\n{compose}\nand below `volumes:` put\n\n  {volume}:\n",
    )
    for file in OVERRIDES:
        editor.edit(
            file,
            lambda text: compose_services.add(text, name, override),
            by_hand=f"below `services:` put\n\n{override}",
        )
    env = fragment("env.example")
    editor.edit(ENV_EXAMPLE, lambda text: add_settings(text, env), by_hand=f"add\n\n{env}")
    launch = fragment("launch.json")
    editor.edit(
        LAUNCH,
        lambda text: add_configuration(text, launch),
        by_hand=f"in the list `configurations` put\n\n{launch}",
    )
    if (wiring / "topics.md").is_file():
        topics = fragment("topics.md")
        editor.edit(TOPICS, lambda text: add_section(text, name, topics), by_hand="run make docs\n")
    if not (root / test_of(name)).exists():
        editor.files[root / test_of(name)] = (wiring / "test_service.py").read_bytes()
    return editor.plan(service, service / "wiring", copied)


def plan_removal(root: Path, name: str, *, keep_code: bool = False) -> Plan:
    """The files as they will be without the service; raises CannotEditError."""
    service = root / "services" / name
    editor = _Editor(root)

    def take_out(file: str, text: str) -> str:
        services = entries(compose_services.load(text), "services")
        if name in services and not _is_ours(services[name], name):
            message = f"its service {name} is none of services/"
            if file == COMPOSE:
                raise CannotEditError(message)
            editor.notes.append(f"{file}: {message}, and stays")
            return text
        volume = volume_of(name) if file == COMPOSE else None
        return compose_services.remove(text, name, volume)

    changes: dict[str, Callable[[str], str]] = {
        **{file: functools.partial(take_out, file) for file in (COMPOSE, *OVERRIDES)},
        LAUNCH: lambda text: remove_configuration(text, title_of(name)),
    }
    if not keep_code:
        changes[ENV_EXAMPLE] = lambda text: remove_settings(text, name)
        changes[TOPICS] = lambda text: remove_section(text, name)
    for file, change in changes.items():
        editor.edit(file, change, by_hand=f"take out what belongs to {name}\n")
    if not keep_code and (root / test_of(name)).is_file():
        editor.files[root / test_of(name)] = None
    return editor.plan(service, service / "wiring" if keep_code else service)


class _Editor:
    """Computes the new content of files, and collects what stands against it."""

    def __init__(self, root: Path) -> None:
        self.files: dict[Path, bytes | None] = {}
        self.notes: list[str] = []
        self._root = root
        self._problems: list[str] = []

    def edit(self, file: str, change: Callable[[str], str], *, by_hand: str) -> None:
        path = self._root / file
        if not path.is_file() and file != COMPOSE:
            return
        try:
            text = _read(path)
            changed = change(text)
        except (CannotEditError, FileNotFoundError, RecursionError, UnicodeDecodeError) as error:
            self._problems.append(f"{file}: {error}. Do it by hand, then try again: {by_hand}")
        else:
            if changed != text:
                self.files[path] = changed.encode()

    def plan(self, service: Path, folder: Path, code: Path | None = None) -> Plan:
        if self._problems:
            raise CannotEditError("Nothing was changed.\n" + "\n".join(self._problems))
        return Plan(self.files, service, code, folder, self.notes)


def carry_out(plan: Plan) -> None:
    """Write all files and remove the folder; on a failure or an interrupt all is as before."""
    before = {path: path.read_bytes() if path.is_file() else None for path in plan.files}
    root, name = plan.service.parent.parent, plan.service.name
    aside = plan.service.with_name(f".{name}.removed")
    # What stays when this is killed.
    shutil.rmtree(aside, ignore_errors=True)
    for file in (COMPOSE, *OVERRIDES, ENV_EXAMPLE, TOPICS, LAUNCH, test_of(name)):
        temporary_of(root / file).unlink(missing_ok=True)
    _on_signals(_interrupt)
    try:
        # First, since it is what tells of an addition that was killed.
        if plan.code:
            ignored = shutil.ignore_patterns("wiring")
            shutil.copytree(plan.code, plan.service, symlinks=True, ignore=ignored)
        for path, content in plan.files.items():
            _set(path, content)
        if plan.folder.is_dir():
            plan.folder.rename(aside)
        _on_signals(signal.SIG_IGN)
    except BaseException:
        _on_signals(signal.SIG_IGN)
        if aside.is_dir() and not plan.folder.exists():
            aside.rename(plan.folder)
        for path, content in before.items():
            _set(path, content)
        if plan.code:
            shutil.rmtree(plan.service, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _set(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def _on_signals(handler: Any) -> None:  # noqa: ANN401 - what signal.signal takes
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # A second one must not disturb the way back.
    _on_signals(signal.SIG_IGN)
    raise SystemExit(128 + number)


def _read(path: Path) -> str:
    return path.read_bytes().decode()


def _ports(root: Path, name: str) -> dict[str, int]:
    """A port of this machine for each mark: the one that the service has, or else a free one."""
    used, own = set(), {}
    for file in (COMPOSE, *OVERRIDES):
        for key, service in entries(_load(root, file), "services").items():
            for inside, published in _published(service):
                used.add(published)
                if key == name:
                    own[inside] = published
    return {
        mark: own.get(inside) or next(p for p in itertools.count(inside) if p not in used)
        for mark, inside in PORTS.items()
    }


def _published(service: object) -> Iterator[tuple[int, int]]:
    """The ports of a service, each as that of the container and that of this machine."""
    for port in _items(service, "ports") if isinstance(service, dict) else []:
        short = port
        if isinstance(port, dict):
            short = f"{port.get('published')}:{port.get('target')}"
        if found := re.search(r"(\d+)\}?:(\d+)(/\w+)?$", str(short)):
            yield int(found[2]), int(found[1])


# Files of lines


def _edit_lines(text: str, change: Callable[[list[str]], None]) -> str:
    """Let `change` work on the lines of a text; the last item follows the last line end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    if text.count("\n") != text.count(newline):
        message = "it mixes two kinds of line ends"
        raise CannotEditError(message)
    lines = text.replace("\r\n", "\n").split("\n")
    change(lines)
    return newline.join(lines)


def _end(lines: list[str]) -> int:
    return len(lines) - (lines[-1] == "")


def add_settings(text: str, block: str) -> str:
    """Put a block of settings at the end of .env.example."""

    def change(lines: list[str]) -> None:
        new = block.splitlines()
        if new[0] not in lines:
            lines[_end(lines) : _end(lines)] = new

    return _edit_lines(text, change)


def remove_settings(text: str, name: str) -> str:
    """Take a service's block out: its heading, and below that the variables of its name."""
    prefix = f"{name.replace('-', '_').upper()}_"

    def change(lines: list[str]) -> None:
        heading = f"# --- {name} ---"
        if heading not in lines:
            return
        start = lines.index(heading)
        later = (at for at in range(start + 1, len(lines)) if lines[at].startswith("# --- "))
        end = next(later, _end(lines))
        kept: list[str] = []
        comments: list[str] = []
        for line in lines[start + 1 : end]:
            comments.append(line)
            if not line.startswith("#"):
                if not line.startswith(prefix):
                    kept += comments
                comments = []
        lines[start:end] = kept + comments

    return _edit_lines(text, change)


def add_section(text: str, name: str, section: str) -> str:
    """Put a `## NAME` section of docs/topics.md where the order of names wants it."""

    def change(lines: list[str]) -> None:
        new = section.strip("\n").split("\n")
        if new[0] in lines:
            return
        # The first section is the library's.
        headings = [at for at, line in enumerate(lines) if line.startswith("## ")][1:]
        after = next((at for at in headings if lines[at] > f"## {name}"), None)
        if after is None:
            lines[_end(lines) : _end(lines)] = ["", *new]
        else:
            lines[after:after] = [*new, ""]

    return _edit_lines(text, change)


def remove_section(text: str, name: str) -> str:
    """Take a `## NAME` section out."""

    def change(lines: list[str]) -> None:
        if f"## {name}" not in lines:
            return
        start = lines.index(f"## {name}")
        later = (at for at in range(start + 1, len(lines)) if lines[at].startswith("## "))
        end = next(later, None)
        if end is None:
            start, end = start - (lines[start - 1] == ""), _end(lines)
        del lines[start:end]

    return _edit_lines(text, change)


# launch.json, which may hold comments and trailing commas


def add_configuration(text: str, entry: str) -> str:
    """Put an entry at the end of `configurations`."""
    before, new = _load_jsonc(text), json.loads(entry)
    if any(item.get("name") == new["name"] for item in before["configurations"]):
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    if re.search(r"^\t", text, re.MULTILINE):
        entry = re.sub(r"^ +", lambda found: "\t" * (len(found[0]) // 2), entry, flags=re.MULTILINE)
    entry = newline + entry.rstrip("\n").replace("\n", newline)
    start, end, spans = _configurations(text)
    result = text[:start] + entry + text[start:]
    if spans:
        at, code = spans[-1][1], _code(text)
        comma = re.match(r"\s*,", code[at:end])
        at += comma.end() if comma else 0
        # A comment on the line of the entry before belongs to that one.
        line = text.find(newline, at, end)
        goes = line if line != -1 and not code[at:line].strip() else at
        before_it, after_it = ("", ",") if comma else (",", "")
        result = text[:at] + before_it + text[at:goes] + entry + after_it + text[goes:]
    return _proved(result, {**before, "configurations": [*before["configurations"], new]})


def remove_configuration(text: str, name: str) -> str:
    """Take the entry of that name out of `configurations`."""
    before = _load_jsonc(text)
    names = [item.get("name") for item in before["configurations"]]
    if name not in names:
        return text
    index = names.index(name)
    _, end, spans = _configurations(text)
    first, last = spans[index]
    code = _code(text)
    kept = re.sub(r"(\r?\n)?[ \t]*\Z", "", text[:first])
    if follows := re.match(r"\s*,", code[last:end]):
        last += follows.end()
    elif index > 0:
        comma = code.index(",", spans[index - 1][1])
        kept = kept[:comma] + kept[comma + 1 :]
    left = [item for item in before["configurations"] if item.get("name") != name]
    return _proved(kept + text[last:], {**before, "configurations": left})


def _proved(text: str, expected: dict[str, Any]) -> str:
    if _load_jsonc(text) != expected:
        message = "the edited file would not mean what it should"
        raise CannotEditError(message)
    return text


def _load_jsonc(text: str) -> dict[str, Any]:
    bare = re.sub(r'("(?:\\.|[^"\\])*")|,(?=\s*[\]}])', r"\1", _without_comments(text))
    try:
        model = json.loads(bare.removeprefix("\ufeff"))
    except ValueError as error:
        message = f"it is no valid JSON: {error}"
        raise CannotEditError(message) from error
    items = model.get("configurations") if isinstance(model, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        message = "it has no list `configurations`"
        raise CannotEditError(message)
    result: dict[str, Any] = model
    return result


def _configurations(text: str) -> tuple[int, int, list[tuple[int, int]]]:
    """Where the inside of the list `configurations` begins and ends, and each of its entries."""
    code, depth, opened = _code(text), 0, 0
    spans: list[tuple[int, int]] = []
    keys = [found.start() for found in re.finditer('"configurations"', text)]
    at = next((key for key in keys if code[key] == '"' and _depth(code[:key]) == 1), None)
    if at is None:
        message = "its list `configurations` is written in an unusual way"
        raise CannotEditError(message)
    start = code.index("[", at) + 1
    for position in range(start, len(code)):
        if code[position] in "[{":
            opened = position if depth == 0 else opened
            depth += 1
        elif code[position] in "]}":
            depth -= 1
            if depth < 0:
                return start, position, spans
            if depth == 0:
                spans.append((opened, position + 1))
    raise AssertionError


def _depth(code: str) -> int:
    return sum(code.count(bracket) for bracket in "[{") - sum(map(code.count, "]}"))


def _without_comments(text: str) -> str:
    """The text with comments as spaces, at the same positions."""
    pattern = r'("(?:\\.|[^"\\])*")|//[^\r\n]*|/\*.*?\*/'
    return re.sub(
        pattern,
        lambda found: found[1] or re.sub(r"[^\r\n]", " ", found[0]),
        text,
        flags=re.DOTALL,
    )


def _code(text: str) -> str:
    """The text without comments and with the content of strings blanked, at the same positions."""
    return re.sub(
        r'"((?:\\.|[^"\\])*)"',
        lambda found: f'"{"_" * len(found[1])}"',
        _without_comments(text),
        flags=re.DOTALL,
    )


# Command line


def _show(plan: Plan) -> None:
    files = dict(plan.files)
    if code := plan.code:
        for path in filter(Path.is_file, code.rglob("*")):
            if "wiring" not in path.relative_to(code).parts:
                files[plan.service / path.relative_to(code)] = path.read_bytes()
    for path, content in sorted(files.items()):
        file = path.relative_to(ROOT).as_posix()
        old = _read(path).splitlines(keepends=True) if path.is_file() else []
        new = (content or b"").decode(errors="replace").splitlines(keepends=True)
        names = (file if old else "/dev/null", file if content is not None else "/dev/null")
        sys.stdout.writelines(
            line if line.endswith("\n") else f"{line}\n"
            for line in difflib.unified_diff(old, new, *names)
        )
    if plan.folder.is_dir():
        sys.stdout.write(f"{plan.folder.relative_to(ROOT).as_posix()}/ would be removed\n")


def main(arguments: list[str] | None = None) -> int:
    """Add or remove; 1 when the files cannot be edited, and then none was."""
    parser = argparse.ArgumentParser(description="Wire a service into the repository or out of it.")
    parser.add_argument("action", choices=["add", "remove"])
    parser.add_argument("name")
    parser.add_argument("--code", type=Path, help="where the new service is, if elsewhere")
    parser.add_argument("--keep-code", action="store_true", help="leave the code where it is")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, make none")
    options = parser.parse_args(arguments)
    if not NAME.fullmatch(options.name):
        parser.error(f"{options.name!r} is no name of a service")
    try:
        if options.action == "add":
            code = options.code or ROOT / "services" / options.name
            plan = plan_addition(ROOT, options.name, code.resolve())
        else:
            plan = plan_removal(ROOT, options.name, keep_code=options.keep_code)
        if options.dry_run:
            _show(plan)
        else:
            carry_out(plan)
    except (CannotEditError, OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"{note}\n" for note in plan.notes)
    if options.dry_run:
        return 0
    for path, content in sorted(plan.files.items()):
        what = "removed" if content is None else "written"
        sys.stdout.write(f"  {path.relative_to(ROOT).as_posix()} {what}\n")
    if options.action == "remove" and not options.keep_code:
        sys.stdout.write(f"  services/{options.name}/ removed\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
