"""Move the services of a repository from version 0.2 or older into services/NAME/compose.yml.

template-update.sh of such a repository fetches this program and runs it there, after the newer
template was applied. It reads the committed docker-compose.yml, and writes nothing unless
everything can be moved. Delete it, and `move_services` in template-update.sh, once nobody updates
from version 0.2 any more.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).resolve().parent.parent
COMPOSE = "docker-compose.yml"
EXAMPLE = "docker-compose.override.example.yml"
OVERRIDES = ("docker-compose.override.yml", "docker-compose.override.yaml")
LAUNCH = ".vscode/launch.json"
BASE = "base/compose.yml"
SHARED_MOUNT = "./shared:/app/shared:ro"
MARKER = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)
BY_HAND = """
Nothing was changed. To continue, do one of these:
  - Write services/NAME/compose.yml of a listed service yourself, and settle a listed file. What is
    already there stays as it is. Then run make template-update again.
  - Undo the update (git reset --hard), change the listed lines, commit, and run make template-update
    twice.
"""


class CannotMoveError(Exception):
    """The message names a part of a file that must be moved by hand."""


# Text of Compose files


class _Loader(yaml.SafeLoader):
    """Accepts the tags of Compose, such as !reset."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _plain)


def load(text: str) -> dict[str, Any]:
    """Return the content of a Compose file."""
    return yaml.load(text, Loader=_Loader) or {}


def pairs(text: str, *path: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Return keys and values of the mapping at `path`, none when there is none."""
    node = yaml.compose(text, Loader=_Loader)
    for name in path:
        values = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in values if key.value == name), None)
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def blocks(text: str, *path: str) -> dict[str, tuple[int, int]]:
    """Return the lines of each entry of the mapping at `path`, with the comments above the entry."""
    lines = text.splitlines()
    found = pairs(text, *path)
    end = len(lines)
    for depth in range(len(path)):
        siblings = pairs(text, *path[:depth])
        at = next((at for at, (key, _) in enumerate(siblings) if key.value == path[depth]), None)
        if at is not None and at + 1 < len(siblings):
            end = min(end, siblings[at + 1][0].start_mark.line)
    result = {}
    for key, value in reversed(found):
        if key.start_mark.line == value.end_mark.line and len(found) > 1 and path:
            siblings_on_line = [k for k, _ in found if k.start_mark.line == key.start_mark.line]
            if len(siblings_on_line) > 1:
                message = f"{'.'.join(path)} is written on one line"
                raise CannotMoveError(message)
        start = key.start_mark.line
        last = end
        indent = " " * key.start_mark.column
        # Blank lines and comments further left belong to what follows.
        while last > start + 1 and (
            not lines[last - 1].strip()
            or (lines[last - 1].lstrip().startswith("#") and not lines[last - 1].startswith(indent))
        ):
            last -= 1
        while start and lines[start - 1].startswith(f"{indent}#"):
            start -= 1
        result[str(key.value)] = (start, last)
        end = start
    return dict(reversed(result.items()))


def cut(text: str, ranges: list[tuple[int, int]]) -> str:
    """Return the text without these lines, and without the blank line before each range."""
    lines = text.splitlines(keepends=True)
    for start, end in sorted(ranges, reverse=True):
        first = start - 1 if start and not lines[start - 1].strip() else start
        del lines[first:end]
    return "".join(lines)


def cut_entries(text: str, section: str, names: set[str]) -> str:
    """Return the text without entries of a section, and without the section when it gets empty."""
    found = blocks(text, section)
    if found and found.keys() <= names:
        return cut(text, [blocks(text)[section]])
    return cut(text, [lines for name, lines in found.items() if name in names])


def dedent(lines: list[str]) -> str:
    """Return lines moved to the left margin."""
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    return "".join(f"{line[min(indents, default=0) :].rstrip()}\n" for line in lines)


def indent(text: str, columns: int) -> str:
    """Return lines moved to the right."""
    return "".join(
        f"{' ' * columns}{line}" if line.strip() else line for line in text.splitlines(keepends=True)
    )


def merge(ours: str, base: str, theirs: str) -> str | None:
    """Return the three-way merge of git, None when both sides have changed the same lines."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for path, text in zip(paths, (ours, base, theirs), strict=True):
            path.write_text(text, encoding="utf-8")
        done = subprocess.run(
            ["git", "merge-file", "-p", *map(str, paths)], capture_output=True, text=True, check=False
        )
    return done.stdout if done.returncode == 0 else None


# A service's block


def path_nodes(service: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Yield the scalars of a service that are paths relative to the Compose file."""

    def of(node: yaml.Node | None, *names: str) -> Iterator[yaml.Node]:
        """Yield the values below these keys; a list stands for its items."""
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from of(item, *names)
        elif not names:
            if node is not None:
                yield node
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if names[0] in ("*", key.value):
                    yield from of(value, *names[1:])

    for names, is_path in (
        (("build",), True),
        (("build", "context"), True),
        (("env_file",), True),
        (("env_file", "path"), True),
        (("label_file",), True),
        (("extends", "file"), True),
        (("develop", "watch", "path"), True),
        (("build", "additional_contexts", "*"), False),
        (("volumes",), False),
        (("volumes", "source"), False),
    ):
        for node in of(service, *names):
            # A volume or an image has a name; a path begins with a dot there.
            if isinstance(node, yaml.ScalarNode) and (is_path or node.value.startswith(".")):
                yield node


def relocate(text: str, prefix: str) -> str:
    """Return a service's body with its relative paths as seen from another directory."""
    edits = []
    for node in path_nodes(yaml.compose(text, Loader=_Loader)):
        if node.value.startswith(("/", "~", "$")) or "://" in node.value:
            continue
        at = node.start_mark.index + (node.style in ("'", '"'))
        if node.value.startswith("./"):
            edits.append((at, at + 2, prefix))
        elif re.match(r"\.(:|$)", node.value):
            edits.append((at, at + 1, prefix.rstrip("/")))
        else:
            edits.append((at, at, prefix))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def keyed(value: Any) -> Any:
    """Return a value as Compose merges it: lists by their items, mappings by their keys."""
    if isinstance(value, list):
        return {json.dumps(item, sort_keys=True): None for item in value}
    if isinstance(value, dict):
        return {key: keyed(item) for key, item in value.items()}
    return value


def merges_to_itself(value: Any, base: Any) -> bool:
    """Return whether `value` stays the same when Compose merges it onto `base`."""
    if not isinstance(base, dict):
        return True
    return isinstance(value, dict) and all(
        key in value and merges_to_itself(value[key], item) for key, item in base.items()
    )


def convert(name: str, body: str, shared: dict[str, Any], prefix: str) -> str:
    """Return a service's body that extends base/compose.yml instead of the anchors.

    A merge key of YAML replaces values, `extends` merges them. So a value that would get more
    entries from the base than it had is tagged with !override.
    """
    extends = f"extends:\n  file: {BASE}\n  service: service\n"
    body, has_service = re.subn(
        r"^<<: *(?:\*service|\[ *\*service *\])[ \t]*\n", extends, body, flags=re.MULTILINE
    )
    if not has_service:
        return relocate(body, prefix)
    body = re.sub(r"^ +<<: *\*build[ \t]*\n", "", body, flags=re.MULTILINE)
    body = re.sub(r"<<: *\*build *(, *)?", "", body)
    body = re.sub(r"^logging: *\*logging[ \t]*\n", "", body, flags=re.MULTILINE)
    mount = rf"[\"']?{re.escape(SHARED_MOUNT)}[\"']?"
    mounts = bool(re.search(mount, body))
    body = re.sub(rf"^ *- *{mount}[ \t]*\n", "", body, flags=re.MULTILINE)
    body = re.sub(rf"{mount} *(, *)?", "", body)
    body = re.sub(r"^(build|volumes):[ \t]*(\{ *\}|\[ *\])?\n(?![ -])", "", body, flags=re.MULTILINE)
    try:
        body = relocate(body, prefix)
        values = load(body)
        keys = {key.value: key.end_mark.index + 1 for key, _ in pairs(body)}
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        message = f"{COMPOSE}: {name} cannot stand in a file of its own: {problem}"
        raise CannotMoveError(message) from error
    here = load(relocate(yaml.safe_dump(shared), prefix))
    tagged = [
        key for key in keys
        if key not in {"build", "volumes", "extends"}
        and not merges_to_itself(keyed(values[key]), keyed(here.get(key)))
    ]  # fmt: skip
    targets = re.findall(r":/app/shared\b|target: */app/shared\b", body)
    if "volumes" in keys and not mounts and not targets:
        tagged.append("volumes")
    for key in sorted(tagged, key=keys.__getitem__, reverse=True):
        body = f"{body[: keys[key]]} !override{body[keys[key] :]}"
    return body


def volumes_of(service: dict[str, Any]) -> set[str]:
    """Return the named volumes of a service."""
    sources = [
        str(item.get("source", "")) if isinstance(item, dict) else str(item).partition(":")[0]
        for item in service.get("volumes") or []
    ]
    return {source for source in sources if source and source[0] not in "./~$"}


def anchor(text: str, name: str) -> str:
    """Return the body of a top-level entry, moved to the left margin."""
    start, end = blocks(text).get(name, (0, 0))
    lines = text.splitlines()[start:end]
    head = next((at for at, line in enumerate(lines) if line[:1] != "#"), 0)
    return dedent(lines[head + 1 :])


def shared_settings(text: str) -> str:
    """Return what all services of version 0.2 shared, as one body without anchors."""
    logging = f"logging:\n{indent(anchor(text, 'x-logging'), 2)}"
    service = anchor(text, "x-service").replace("logging: *logging\n", logging)
    return f"build:\n{indent(anchor(text, 'x-build'), 2)}{service}"


# The files


class Migration:
    """Computes every file as it will be, and collects what cannot be moved."""

    def __init__(self, old: Path, new: Path) -> None:
        """Take the two versions of the template, rendered with the answers of this repository."""
        self.files: dict[str, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._old, self._new = old, new
        self._text = committed(COMPOSE)
        self._model = load(self._text)
        services = self._model.get("services") or {}
        self.moved = [name for name in services if Path("services", name, "main.py").is_file()]
        self._shared = load(shared_settings(self._text))

    def run(self) -> None:
        """Compute all files."""
        for step in (self._base, self._services, self._root, self._example, self._launch):
            try:
                step()
            except CannotMoveError as error:
                self.problems.append(str(error))
        for name in OVERRIDES:
            if Path(name).is_file():
                text = Path(name).read_text(encoding="utf-8")
                self.files[name] = self._override(text, only_own=True)

    def _base(self) -> None:
        """Take changes of what all services share over into base/compose.yml."""

        ours, base = (
            indent(relocate(shared_settings(text), "../"), 4)
            for text in (self._text, read(self._old / COMPOSE))
        )
        theirs = read(self._new / BASE)
        if ours == base or Path(BASE).read_text(encoding="utf-8") != theirs:
            return
        merged = merge(ours, base, theirs)
        if merged is None:
            message = f"{COMPOSE}: your changes of x-service and x-build. Make them in {BASE}"
            raise CannotMoveError(message)
        self.files[BASE] = merged

    def _services(self) -> None:
        found = blocks(self._text, "services")
        volumes = blocks(self._text, "volumes")
        lines = self._text.splitlines()
        for name in self.moved:
            self.files.update(self._rendered(name))
            target = Path("services", name, "compose.yml")
            if target.exists():
                self.files[str(target)] = target.read_text(encoding="utf-8")
                continue
            start, end = found[name]
            head = next(at for at in range(start, end) if not lines[at].lstrip().startswith("#"))
            try:
                body = convert(name, dedent(lines[head + 1 : end]), self._shared, "../../")
            except CannotMoveError as error:
                self.problems.append(str(error))
                continue
            text = f"services:\n{indent(dedent(lines[start : head + 1]), 2)}{indent(body, 4)}"
            own = [volume for volume in volumes if volume in self._own_volumes(name)]
            if own:
                text += "\nvolumes:\n"
            for volume in own:
                text += indent(dedent(lines[slice(*volumes[volume])]), 2)
            self.files[str(target)] = text
            for value in re.findall(r"^ *- [\"']?(\$[^:}]+[:}][^:]*?):/", body, re.MULTILINE):
                self.notes.append(f"{target}: if {value} is a relative path, it starts there now")
        for directory in Path("services").iterdir():
            # A service that was taken out of Compose with --keep-code.
            if (directory / "main.py").is_file() and directory.name not in self.moved:
                self.files.update(self._rendered(directory.name))

    def _own_volumes(self, name: str) -> set[str]:
        """Return the volumes that this service alone uses."""
        others = [volumes_of(other) for key, other in self._model["services"].items() if key != name]
        return volumes_of(self._model["services"][name]).difference(*others)

    def _rendered(self, name: str) -> dict[str, str]:
        """Return the Compose files that the service template makes, unless there are some."""
        kind = "http-api" if Path("services", name, "server.py").is_file() else "poller"
        answers = {"service_name": name, "service_slug": name, "service_type": kind}
        with tempfile.TemporaryDirectory() as folder:
            made = render(self._new / "templates/service", answers, Path(folder))
            texts = {file: (made / file).read_text("utf-8") for file in ("compose.yml", "compose.dev.yml")}
        port = re.search(rf"127\.0\.0\.1:(\d+):8000", self._block(committed(EXAMPLE), name))
        if port:
            texts["compose.dev.yml"] = re.sub(
                r"(?m)^ *# Docker takes .*\n( +ports:\n +- )\".*\"",
                rf'\1"{port[0]}"',
                texts["compose.dev.yml"],
            )
        return {
            f"services/{name}/{file}": text
            for file, text in texts.items()
            if not Path("services", name, file).exists()
        }

    @staticmethod
    def _block(text: str, name: str) -> str:
        found = blocks(text, "services").get(name, (0, 0))
        return "\n".join(text.splitlines()[slice(*found)])

    def _root(self) -> None:
        """Merge what is left of docker-compose.yml with the template's change."""
        moved = set(self.moved)
        volumes = set().union(*map(self._own_volumes, moved))
        ours = self._text
        lines = ours.splitlines()
        for name, (start, end) in reversed(blocks(ours, "services").items()):
            if name not in moved and "<<:" in "".join(lines[start:end]):
                # A service of the user that has no directory in services/.
                head = next(at for at in range(start, end) if not lines[at].lstrip().startswith("#"))
                body = convert(name, dedent(lines[head + 1 : end]), self._shared, "")
                lines[head + 1 : end] = indent(body, 4).splitlines()
        ours = "\n".join([*lines, ""])
        ours = cut_entries(ours, "services", moved)
        ours = cut_entries(ours, "volumes", volumes)
        ours, base = without_anchors(ours), without_anchors(read(self._old / COMPOSE))
        theirs = self._with_list(read(self._new / COMPOSE), "compose.yml", self.moved)
        merged = merge(ours, base, theirs)
        if merged is None:
            here = Path(COMPOSE).read_text(encoding="utf-8")
            if MARKER.search(here) or moved & set(load(here).get("services") or {}):
                message = f"{COMPOSE}: lines that both you and the template have changed"
                raise CannotMoveError(message)
            merged = here
        self.files[COMPOSE] = merged

    @staticmethod
    def _with_list(text: str, file: str, names: list[str]) -> str:
        """Return a text of the template with these services in its `include` list."""
        entries = "".join(f"  - services/{name}/{file}\n" for name in names)
        head = f"include:\n{entries}" if entries else "include: []\n"
        return re.sub(r"^include:.*\n( +- .*\n)*", lambda _: head, text, flags=re.MULTILINE)

    def _example(self) -> None:
        self.files[EXAMPLE] = self._override(committed(EXAMPLE), only_own=False)

    def _override(self, text: str, *, only_own: bool) -> str:
        """Return an override that takes the development settings from compose.dev.yml.

        What differs from the block that version 0.2 made stays in the override. Compose rejects a
        service that a file both includes and changes, so that one extends compose.dev.yml.
        """
        names = [name for name in self.moved if not only_own or name in blocks(text, "services")]
        published = set(re.findall(r"127\.0\.0\.1:\d+:8000", committed(EXAMPLE)))
        for name in names:
            text = without_standard(text, name, published)
        kept = blocks(text, "services").keys()
        for name in kept & set(names):
            extends = f"    extends:\n      file: services/{name}/compose.dev.yml\n      service: {name}\n"
            text = re.sub(rf"(?m)^  {name}:.*\n", lambda head, e=extends: head[0] + e, text, count=1)
        included = [name for name in names if name not in kept]
        theirs = self._with_list(read(self._new / EXAMPLE), "compose.dev.yml", included)
        merged = merge(text, read(self._old / EXAMPLE), theirs)
        if merged is None and included:
            entries = "".join(f"  - services/{name}/compose.dev.yml\n" for name in included)
            return f"include:\n{entries}\n{text}"
        return text if merged is None else merged

    def _launch(self) -> None:
        """Take the template's launch.json, unless the user has an entry of their own."""
        text = committed(LAUNCH)
        for name in self.moved:
            entry = rf' *\{{\n *"name": "Attach to {re.escape(name)}",.*?\n    \}}(,\n|\n)?'
            text = re.sub(entry, "", text, count=1, flags=re.DOTALL)
        text = re.sub(r'"configurations": \[\s*\]', '"configurations": []', text)
        if text == read(self._old / LAUNCH):
            self.files[LAUNCH] = read(self._new / LAUNCH)


def without_anchors(text: str) -> str:
    """Return docker-compose.yml without what moved to base/compose.yml."""
    found = blocks(text)
    return cut(text, [found[name] for name in ("x-build", "x-service") if name in found])


def is_standard(name: str, path: tuple[str, ...], value: Any, published: set[str]) -> bool:
    """Return whether version 0.1 or 0.2 wrote this value into the development block of a service."""
    match path:
        case ("working_dir",):
            return bool(value == "/live")
        case ("environment", key):
            return (key, value) in {("LOG_LEVEL", "DEBUG"), ("DEBUG_SERVICE", "${DEBUG_SERVICE:-}")}
        case ("ports", _):
            return value in published or bool(re.fullmatch(r"127\.0\.0\.1:\d+:5678", str(value)))
        case ("volumes", _):
            mounts = {f"./services/{name}": "/live", "./shared": "/app/shared"}
            if isinstance(value, str):
                return value in {f"{source}:{target}:ro" for source, target in mounts.items()}
            return value in [
                {"type": "bind", "source": source, "target": target, "read_only": True}
                for source, target in mounts.items()
            ]
        case ("develop",):
            return value.keys() == {"watch"} and all(
                item.get("path") in {f"services/{name}", "shared"}
                and item.keys() <= {"path", "action", "ignore"}
                for item in value["watch"]
            )
    return False


def without_standard(text: str, name: str, published: set[str]) -> str:
    """Return an override without the parts of a service that compose.dev.yml has."""
    lines = text.splitlines(keepends=True)
    doomed: list[tuple[int, int]] = []
    for key, value in pairs(text, "services", name):
        start, end = blocks(text, "services", name)[key.value]
        content = load(text)["services"][name][key.value]
        parts: list[tuple[int, int]] = []
        if isinstance(value, yaml.SequenceNode) and not value.flow_style:
            starts = [item.start_mark.line for item in value.value]
            ranges = list(zip(starts, [*starts[1:], end], strict=True))
            parts = [
                lines_ for lines_, item in zip(ranges, content, strict=True)
                if is_standard(name, (key.value, "-"), item, published)
            ]  # fmt: skip
            is_all = len(parts) == len(ranges)
        elif isinstance(value, yaml.MappingNode) and key.value == "environment":
            ranges_ = blocks(text, "services", name, key.value)
            parts = [
                ranges_[part] for part, item in content.items()
                if is_standard(name, (key.value, part), item, published)
            ]  # fmt: skip
            is_all = len(parts) == len(ranges_)
        else:
            is_all = is_standard(name, (key.value,), content, published)
        # A comment is the user's, so what it explains stays.
        doomed += [
            part for part in ([(start, end)] if is_all else parts)
            if not any("#" in line for line in lines[slice(*part)])
        ]  # fmt: skip
    for start, end in sorted(doomed, reverse=True):
        del lines[start:end]
    text = "".join(lines)
    if not pairs(text, "services", name):
        text = cut_entries(text, "services", {name})
    return text


# Running it


def read(path: Path) -> str:
    """Return a file of a rendered template."""
    return path.read_text(encoding="utf-8")


def committed(name: str) -> str:
    """Return a file as it was before the update, which began with nothing uncommitted."""
    revision = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    done = subprocess.run(["git", "show", f"{revision}:./{name}"], capture_output=True, check=True)
    return done.stdout.decode().replace("\r\n", "\n")


def render(template: Path, answers: dict[str, Any], output: Path) -> Path:
    """Render a template without its hooks and without the user's defaults."""
    config = output / "config.yaml"
    config.write_text(
        yaml.safe_dump({"replay_dir": str(output), "cookiecutters_dir": str(output)}), "utf-8"
    )
    return Path(
        cookiecutter(
            str(template),
            no_input=True,
            extra_context=answers,
            output_dir=str(output),
            config_file=str(config),
            accept_hooks=False,
        )
    )


def render_version(record: str, folder: Path) -> Path:
    """Render the version of the template that a .cruft.json names."""
    state = json.loads(record)
    answers = {
        name: value for name, value in state["context"]["cookiecutter"].items() if name[0] != "_"
    }
    checkout = folder / "template"
    folder.mkdir()
    subprocess.run(
        ["git", "-C", str(TEMPLATE), "worktree", "add", "--quiet", "--detach", str(checkout), state["commit"]],
        check=True,
    )
    (folder / "rendered").mkdir()
    return render(checkout, answers, folder / "rendered")


def write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.new")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main() -> int:
    """Move all services; 1 when something must be moved by hand, and then nothing was changed."""
    with tempfile.TemporaryDirectory() as folder:
        old = render_version(committed(".cruft.json"), Path(folder, "old"))
        new = render_version(Path(".cruft.json").read_text(encoding="utf-8"), Path(folder, "new"))
        migration = Migration(old, new)
        migration.run()
    if migration.problems:
        print("The services cannot be moved out of docker-compose.yml by themselves:\n", file=sys.stderr)
        print(*(f"  {problem}" for problem in migration.problems), sep="\n", file=sys.stderr)
        print(BY_HAND, end="", file=sys.stderr)
        return 1
    for name, text in migration.files.items():
        write(Path(name), text)
    shared = [name for name in migration.files if name not in OVERRIDES]
    subprocess.run(["git", "add", "--", *shared], check=True)
    for name in shared:
        Path(f"{name}.rej").unlink(missing_ok=True)
    print("Moved to services/NAME/compose.yml:", ", ".join(migration.moved) or "no service")
    print(*migration.notes, sep="\n", end="\n" if migration.notes else "")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
