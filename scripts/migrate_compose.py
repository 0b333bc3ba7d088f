"""Move the services of a repository from version 0.2 or older into services/NAME/compose.yml.

update.sh runs this program in such a repository, after the newer template was applied. The program
reads the committed docker-compose.yml, and writes nothing unless everything can be moved. Delete it
together with `move_services` in update.sh, when updates from version 0.2 are no longer supported.

    python migrate_compose.py REVISION    the last commit before the update
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cli import make_parser
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).resolve().parent.parent
COMPOSE = "docker-compose.yml"
EXAMPLE = "docker-compose.override.example.yml"
OVERRIDES = ("docker-compose.override.yml", "docker-compose.override.yaml")
LAUNCH = ".vscode/launch.json"
# A failed message raised in the tests that version 0.2 generated. It is a dead letter now.
OLD_ASSERTION = re.compile(
    r"    with pytest\.raises\(pydantic\.ValidationError\):\n"
    r"        (await send\(.*\))\n    assert service\.mqtt\.published == \[\]\n"
)
NEW_ASSERTION = r"""    \1
    (letter,) = service.mqtt.dead_letters
    assert letter["error_type"] == "ValidationError"
"""
# The health file was in the volume, where it outlived its process.
OLD_HEALTH_FILE = 'Path(os.environ.get("DATA_DIR") or "/app/data") / "healthcheck"'
NEW_HEALTH_FILE = 'Path(os.environ.get("HEALTH_PATH") or "/tmp/healthcheck")  # noqa: S108'
BASE = "base/compose.yml"
SHARED_MOUNT = "./shared:/app/shared:ro"
BOTH_NETWORKS = "networks: [internal, egress]\n"
BY_HAND = """
Nothing was changed. To continue, do one of these:
  - Move the listed parts yourself: write services/NAME/compose.yml of a listed service, and settle
    a listed file. They stay as you leave them. Then run make template-update again.
  - Undo the update (git reset --hard), change the listed parts, commit, and run
    make template-update twice.
"""


class CannotMoveError(Exception):
    """The message names a part of a file that must be moved by hand."""


# --- the text of Compose files -------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Accepts the tags of Compose, such as !reset."""


def _without_tag(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


Loader.add_multi_constructor("!", _without_tag)


def load(text: str) -> dict[str, Any]:
    """Return the content of a Compose file."""
    return yaml.load(text, Loader=Loader) or {}


def mapping(text: str, *path: str) -> yaml.MappingNode | None:
    """Return the node of the mapping at `path`, None when there is no mapping."""
    node = yaml.compose(text, Loader=Loader)
    for name in path:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in entries if key.value == name), None)
    return node if isinstance(node, yaml.MappingNode) else None


def entries(text: str, *path: str) -> dict[str, tuple[int, int]]:
    """Return the lines of each entry of the mapping at `path`, from the comments above it on."""
    node = mapping(text, *path)
    if node is None:
        return {}
    if node.flow_style and node.value:
        message = f"{'.'.join(path)} is written in braces. Write one entry on a line"
        raise CannotMoveError(message)
    lines = text.splitlines()
    end = node.end_mark.line
    found = {}
    for key, _ in reversed(node.value):
        margin = " " * key.start_mark.column
        start = key.start_mark.line
        # Blank lines, and comments further to the left, belong to what follows.
        while end > start + 1 and (
            not lines[end - 1].strip()
            or (lines[end - 1].lstrip().startswith("#") and not lines[end - 1].startswith(margin))
        ):
            end -= 1
        while start and lines[start - 1].startswith(f"{margin}#"):
            start -= 1
        found[str(key.value)] = (start, end)
        end = start
    return dict(reversed(found.items()))


def cut(text: str, ranges: list[tuple[int, int]]) -> str:
    """Return the text without these lines, and without a blank line before each range."""
    lines = text.splitlines(keepends=True)
    for start, end in sorted(ranges, reverse=True):
        has_blank_before = start > 0 and not lines[start - 1].strip()
        del lines[start - has_blank_before : end]
    return "".join(lines)


def cut_entries(text: str, section: str, names: set[str]) -> str:
    """Return the text without these entries, and without the section when nothing else is in it."""
    found = entries(text, section)
    if found and found.keys() <= names:
        return cut(text, [entries(text)[section]])
    return cut(text, [lines for name, lines in found.items() if name in names])


def dedent(lines: list[str]) -> str:
    """Return lines moved to the left margin."""
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "".join(f"{line[margin:].rstrip()}\n" for line in lines)


def indent(text: str, columns: int) -> str:
    """Return a text moved to the right."""
    lines = text.splitlines(keepends=True)
    return "".join(" " * columns + line if line.strip() else line for line in lines)


def split(text: str, lines: tuple[int, int]) -> tuple[str, str]:
    """Return the key of an entry with the comments above it, and the body, both without margin."""
    block = text.splitlines()[slice(*lines)]
    head = next((at for at, line in enumerate(block, 1) if line.lstrip()[:1] != "#"), 0)
    return dedent(block[:head]), dedent(block[head:])


def block(text: str, lines: tuple[int, int]) -> str:
    """Return the text of an entry without margin."""
    return dedent(text.splitlines()[slice(*lines)])


def put(text: str, path: tuple[str, ...], name: str, new: str) -> str:
    """Return the text with an entry replaced, or added at the end of the mapping at `path`."""
    found = entries(text, *path)
    lines = text.splitlines(keepends=True)
    new = indent(new, 2 * len(path))
    if name in found:
        start, end = found[name]
    elif not path and name.startswith("x-"):
        # An anchor stands before what uses it.
        start = end = found["services"][0]
        new += "\n"
    else:
        start = end = max(end for _, end in found.values())
        new = f"\n{new}" if path in ((), ("services",)) else new
    lines[start:end] = [new]
    return "".join(lines)


def merge(ours: str, base: str, theirs: str, *path: str) -> str:
    """Return `theirs` with the entries that differ between `base` and `ours`.

    Raises CannotMoveError for an entry that differs between `base` and `theirs` as well.
    """

    def value(text: str, name: str) -> Any:
        content: Any = load(text)
        for key in (*path, name):
            content = content.get(key) if isinstance(content, dict) else None
        return content

    mine, before, now = (entries(text, *path) for text in (ours, base, theirs))
    for name, lines in mine.items():
        new = block(ours, lines)
        if name in before and new == block(base, before[name]):
            continue
        is_mapping = all(mapping(text, *path, name) for text in (ours, base, theirs))
        if value(theirs, name) == value(base, name):
            theirs = put(theirs, path, name, new)
            if name == "mem_limit" and "memswap_limit" in now.keys() - mine.keys():
                theirs = put(theirs, path, "memswap_limit", new.replace("mem_", "memswap_"))
        elif is_mapping:
            theirs = merge(ours, base, theirs, *path, name)
        elif value(theirs, name) != value(ours, name):
            message = f"you and the template have changed {'.'.join((*path, name))}"
            raise CannotMoveError(message)
    for name in before.keys() - mine.keys():
        if value(theirs, name) != value(base, name):
            message = f"the template has changed {'.'.join((*path, name))}, which you have removed"
            raise CannotMoveError(message)
        theirs = cut(theirs, [entries(theirs, *path)[name]])
    return theirs


# --- a service -----------------------------------------------------------------------------------


def below(node: yaml.Node, *names: str) -> Iterator[yaml.Node]:
    """Yield the values below these keys, where a list stands for its items."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from below(item, *names)
    elif not names:
        yield node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if names[0] in ("*", key.value):
                yield from below(value, *names[1:])


def relative_paths(service: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Yield the scalars of a service that are paths relative to the Compose file."""
    for key in (
        *("build", "build.context", "develop.watch.path", "env_file", "env_file.path"),
        *("extends.file", "label_file"),
    ):
        for node in below(service, *key.split(".")):
            if isinstance(node, yaml.ScalarNode) and not re.match(r"[/~$]|\w+://", node.value):
                yield node
    for key in ("build.additional_contexts.*", "volumes", "volumes.source"):
        for node in below(service, *key.split(".")):
            # Names of volumes and of images have no dot in front, paths must have one here.
            if isinstance(node, yaml.ScalarNode) and node.value.startswith("."):
                yield node


def relocate(body: str, prefix: str) -> str:
    """Return a service's body with its relative paths as seen from another directory."""
    root = yaml.compose(body, Loader=Loader)
    nodes = list(relative_paths(root)) if root else []
    for node in sorted(nodes, key=lambda node: node.start_mark.index, reverse=True):
        at = node.start_mark.index + (node.style in ("'", '"'))
        if re.match(r"\.(:|$)", node.value):
            body = body[:at] + prefix.rstrip("/") + body[at + 1 :]
        else:
            body = body[:at] + prefix + body[at:].removeprefix("./")
    return body


def keyed(value: Any) -> Any:
    """Return a value as Compose merges it, in which a list is a set of items."""
    if isinstance(value, list):
        return {json.dumps(item, sort_keys=True): None for item in value}
    if isinstance(value, dict):
        return {key: keyed(item) for key, item in value.items()}
    return value


def stays_itself(value: Any, base: Any) -> bool:
    """Return whether Compose makes nothing else of `value` when it merges the value onto `base`."""
    if not isinstance(base, dict):
        return True
    return isinstance(value, dict) and all(
        key in value and stays_itself(value[key], item) for key, item in base.items()
    )


def extend_base(body: str, shared: str, template: dict[str, Any], prefix: str) -> str:
    """Return a service's body that extends base/compose.yml, where it used the anchors.

    A merge key of YAML replaces whole values, and `extends` merges them. A value that would gain
    entries of the base is tagged with !override. `shared` is what the anchor held, and `template`
    the service in base/compose.yml.
    """

    def without(pattern: str, text: str) -> str:
        return re.sub(pattern, "", text, flags=re.MULTILINE)

    extends = f"extends:\n  file: {BASE}\n  service: service\n"
    body, count = re.subn(r"^<<: *\*service *\n", extends, body, flags=re.MULTILINE)
    if not count:
        return relocate(body, prefix)
    mount = rf"[\"']?{re.escape(SHARED_MOUNT)}[\"']?"
    uses_build = "*build" in body
    mounts_shared = re.search(rf"{mount}|:/app/shared\b|target: */app/shared\b", body)
    for pattern in (
        # Entries of the base: on a line of its own, or among others between brackets.
        *(r"^ +<<: *\*build *\n", r"<<: *\*build *(, *)?"),
        *(rf"^ *- *{mount} *\n", rf"{mount} *(, *)?"),
        r"^logging: *\*logging *\n",
        r"^(build|volumes): *(\{ *\}|\[ *\])?\n(?![ -])",
    ):
        body = without(pattern, body)
    body = relocate(body, prefix)
    values, base = load(body), load(relocate(shared, prefix))
    # The template limits the size of /tmp. The same path would be mounted twice without the tag.
    base["tmpfs"] = template.get("tmpfs")
    # The shared mount is in the base, and was in each service.
    base["volumes"] = values.get("volumes") if mounts_shared else [SHARED_MOUNT]
    if uses_build and "build" in values:
        # The anchor was merged into this mapping, so it counts entry by entry.
        ends = overrides(mapping(body, "build"), values.pop("build"), base["build"])
    else:
        ends = set()
    ends |= overrides(mapping(body), values, base)
    for end in sorted(ends, reverse=True):
        body = f"{body[:end]} !override{body[end:]}"
    if "memswap_limit" in template.keys() - values.keys():
        # It cannot be below the limit that this service has of its own.
        limits = r"\g<0>memswap_limit: \1\n"
        body = re.sub(r"^mem_limit: *([^\s#]+).*\n", limits, body, flags=re.MULTILINE)
    return body


def overrides(
    node: yaml.MappingNode | None, values: dict[str, Any], base: dict[str, Any]
) -> set[int]:
    """Return where the keys end whose values would gain something of the base."""
    return {
        key.end_mark.index + 1
        for key, _ in (node.value if node else [])
        if key.value in values
        and not stays_itself(keyed(values[key.value]), keyed(base.get(key.value)))
    }


def shared_settings(text: str) -> str:
    """Return what all services of version 0.2 shared, as one body without anchors."""
    found = entries(text)
    build, logging, service = (
        split(text, found.get(name, (0, 0)))[1] for name in ("x-build", "x-logging", "x-service")
    )
    service = service.replace("logging: *logging\n", f"logging:\n{indent(logging, 2)}")
    return f"build:\n{indent(build, 2)}{service}"


def named_volumes(service: dict[str, Any]) -> set[str]:
    """Return the named volumes that a service mounts."""
    sources = [
        str(item.get("source", "")) if isinstance(item, dict) else str(item).partition(":")[0]
        for item in service.get("volumes") or []
    ]
    return {source for source in sources if re.match(r"\w", source)}


# --- development settings ------------------------------------------------------------------------


def is_standard(name: str, key: str, value: Any, published: set[str]) -> bool:
    """Return whether a release wrote this value into the development block of a service."""
    mounts = {f"./services/{name}": "/live", "./shared": "/app/shared"}
    standard: dict[str, list[Any]] = {
        "working_dir": ["/live"],
        "environment": ["LOG_LEVEL=DEBUG", "DEBUG_SERVICE=${DEBUG_SERVICE:-}"],
        "ports": list(published),
        "volumes": [
            *(f"{source}:{target}:ro" for source, target in mounts.items()),
            *(
                {"type": "bind", "source": source, "target": target, "read_only": True}
                for source, target in mounts.items()
            ),
        ],
        "develop": [
            {"watch": [{"path": f"services/{name}", **options}, {"path": "shared", **options}]}
            for options in (
                {"action": "rebuild"},
                {"action": "rebuild", "ignore": ["**/__pycache__"]},
            )
        ],
    }
    is_debugger = key == "ports" and re.fullmatch(r"127\.0\.0\.1:\d+:5678", str(value))
    return bool(is_debugger) or value in standard.get(key, [])


def without_standard(text: str, name: str, published: set[str]) -> str:
    """Return an override without the settings of a service that its compose.dev.yml has."""
    node = mapping(text, "services", name)
    if node is None:
        return text
    lines = text.splitlines(keepends=True)
    content = load(text)["services"][name]
    doomed: list[tuple[int, int]] = []
    for key, value in node.value:
        start, end = entries(text, "services", name)[key.value]
        items = content[key.value]
        parts = []
        if isinstance(value, yaml.SequenceNode) and not value.flow_style:
            starts = [item.start_mark.line for item in value.value]
            parts = list(zip(items, zip(starts, [*starts[1:], end], strict=True), strict=True))
        elif key.value == "environment" and isinstance(value, yaml.MappingNode):
            ranges = entries(text, "services", name, "environment")
            parts = [(f"{variable}={items[variable]}", ranges[variable]) for variable in items]
        parts = parts or [(items, (start, end))]
        # A comment is the user's, and so is what it explains.
        standard = [
            part
            for item, part in parts
            if is_standard(name, key.value, item, published)
            and not any("#" in line for line in lines[slice(*part)])
        ]
        doomed += [(start, end)] if len(standard) == len(parts) else standard
    for start, end in sorted(doomed, reverse=True):
        del lines[start:end]
    text = "".join(lines)
    return text if mapping(text, "services", name) else cut_entries(text, "services", {name})


# --- the files -----------------------------------------------------------------------------------


class Migration:
    """Computes every file as it will be, and collects what cannot be moved."""

    def __init__(self, old: Path, new: Path) -> None:
        """Take the two versions of the template, rendered with the answers of this repository."""
        self.files: dict[str, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._old, self._new = old, new
        self._text = committed(COMPOSE)
        self._example = committed(EXAMPLE)
        self._services: dict[str, Any] = load(self._text).get("services") or {}
        self._shared = shared_settings(self._text)
        self.moved = [name for name in self._services if Path("services", name).is_dir()]

    def run(self) -> None:
        """Compute all files."""
        self._try("x-service and x-build", self._base)
        for name in self.moved:
            self._try(name, self._service, name)
        for path in Path("services").iterdir():
            # Code that was kept when its service was removed.
            if (path / "Dockerfile").is_file() and path.name not in self.moved:
                self.files |= self._rendered(path.name)
        self._try("the rest of the file", self._root)
        self.files[EXAMPLE] = self._override(self._example, self.moved)
        for override in OVERRIDES:
            if Path(override).is_file():
                self._try(override, self._own_override, override)
        self._launch()
        self._health_checks()
        self._tests()

    def _try(self, part: str, step: Any, *arguments: str) -> None:
        try:
            step(*arguments)
        except CannotMoveError as error:
            self.problems.append(f"{part}: {error}")
        except yaml.composer.ComposerError as error:
            reason = f"an anchor of {COMPOSE} cannot be used in another file"
            self.problems.append(f"{part}: {reason} ({error.problem})")
        except yaml.YAMLError as error:
            self.problems.append(f"{part}: {getattr(error, 'problem', error)}")

    def _base(self) -> None:
        """Make the user's changes of what all services share in base/compose.yml."""
        ours, base = (
            f"services:\n  service:\n{indent(relocate(shared, '../'), 4)}"
            for shared in (self._shared, shared_settings(read(self._old / COMPOSE)))
        )
        if ours != base and read(Path(BASE)) == read(self._new / BASE):
            self.files[BASE] = merge(ours, base, read(self._new / BASE))

    def _template(self) -> dict[str, Any]:
        """Return the service that all others extend."""
        text = self.files.get(BASE) or read(Path(BASE))
        services: dict[str, dict[str, Any]] = load(text)["services"]
        return services["service"]

    def _service(self, name: str) -> None:
        """Write services/NAME/compose.yml, unless the user has done so."""
        target = f"services/{name}/compose.yml"
        rendered = self._rendered(name)
        self.files |= rendered
        if target not in rendered:
            return
        head, body = split(self._text, entries(self._text, "services")[name])
        body = extend_base(body, self._shared, self._template(), "../../")
        text = f"services:\n{indent(head, 2)}{indent(body, 4)}"
        volumes = {
            volume: lines
            for volume, lines in entries(self._text, "volumes").items()
            if volume in self._own_volumes(name)
        }
        if volumes:
            text += "\nvolumes:\n"
        for lines in volumes.values():
            text += indent("".join(split(self._text, lines)), 2)
        self.files[target] = text
        if variable := re.search(r"- [\"']?(\$\{?\w+)[^:]*}?:/", body):
            self.notes.append(f"{target}: a relative path in {variable[1]}}} starts there now")

    def _own_volumes(self, name: str) -> set[str]:
        """Return the volumes that this service alone mounts."""
        others = (service for other, service in self._services.items() if other != name)
        return named_volumes(self._services[name]).difference(*map(named_volumes, others))

    def _rendered(self, name: str) -> dict[str, str]:
        """Return the Compose files that a service lacks, as new-service.sh makes them."""
        kind = "http-api" if Path("services", name, "server.py").is_file() else "poller"
        answers = {"service_name": name, "service_slug": name, "service_type": kind}
        with tempfile.TemporaryDirectory() as folder:
            made = render(self._new / "templates/service", answers, Path(folder))
            production, development = read(made / "compose.yml"), read(made / "compose.dev.yml")
        block = entries(self._example, "services").get(name, (0, 0))
        if port := re.search(r"127\.0\.0\.1:\d+:8000", split(self._example, block)[1]):
            # The port that this service had so far, in place of the first free one.
            development = re.sub(r" *# Docker takes the first.*\n", "", development)
            development = re.sub(r"127\.0\.0\.1:[\d-]+:8000", port[0], development)
        texts = {"compose.yml": production, "compose.dev.yml": development}
        return {
            f"services/{name}/{file}": text
            for file, text in texts.items()
            if not Path("services", name, file).exists()
        }

    def _root(self) -> None:
        """Merge what stays in docker-compose.yml with the template's changes."""
        ours = self._text
        for name, (start, end) in reversed(entries(ours, "services").items()):
            if name not in self.moved:
                # A service of the user's own may use the anchors as well.
                head, body = split(ours, (start, end))
                if "*service" in body:
                    body = extend_base(body, self._shared, self._template(), "")
                lines = ours.splitlines(keepends=True)
                lines[start:end] = [indent(head, 2), indent(body, 4)]
                ours = "".join(lines)
        ours = cut_entries(ours, "services", set(self.moved))
        ours = cut_entries(ours, "volumes", set().union(*map(self._own_volumes, self.moved)))
        try:
            self.files[COMPOSE] = merge(
                without_anchors(ours),
                without_anchors(read(self._old / COMPOSE)),
                with_list(read(self._new / COMPOSE), "compose.yml", self.moved),
            )
            self._keep_reachable()
        except CannotMoveError:
            if not (settled := self._settled_root()):
                raise
            self.files[COMPOSE] = settled

    def _keep_reachable(self) -> None:
        """Give the second network to services of docker-compose.yml that need more than the first.

        The network `internal` has no way to other networks any more, and publishes no port.
        """
        text = self.files[COMPOSE]
        of_template = load(read(self._new / COMPOSE))["services"]
        for name, service in load(text)["services"].items():
            needs_more = name not in of_template or "ports" in service
            if service.get("networks") == ["internal"] and needs_more:
                text = put(text, ("services", name), "networks", BOTH_NETWORKS)
        self.files[COMPOSE] = text

    def _settled_root(self) -> str:
        """Return docker-compose.yml as the user has settled it, with all services listed, or ""."""
        text = read(Path(COMPOSE))
        has_conflicts = re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE)
        model = {} if has_conflicts else load(text)
        if "include" not in model or set(self.moved) & set(model["services"]):
            return ""
        is_plain = all(str(entry).startswith("services/") for entry in model["include"])
        return with_list(text, "compose.yml", self.moved) if is_plain else text

    def _own_override(self, override: str) -> None:
        text = read(Path(override))
        services = load(text).get("services") or {}
        names = [name for name in self.moved if name in services]
        self.files[override] = self._override(text, names)

    def _override(self, text: str, names: list[str]) -> str:
        """Return an override that takes the development settings from compose.dev.yml.

        Differences from the block that the release made stay in the override. Compose rejects a
        file that both includes and changes a service, so that service extends compose.dev.yml.
        """
        published = set(re.findall(r"127\.0\.0\.1:\d+:8000", self._example))
        for name in names:
            text = without_standard(text, name, published)
        changed = entries(text, "services")
        lines = text.splitlines(keepends=True)
        for name, (start, end) in reversed(changed.items()):
            head, body = split(text, (start, end))
            if name in names and "extends:" not in body:
                dev = f"extends:\n  file: services/{name}/compose.dev.yml\n  service: {name}\n"
                lines[start:end] = [indent(head, 2), indent(dev + body, 4)]
        text = "".join(lines)
        included = [name for name in names if name not in changed]
        theirs = with_list(read(self._new / EXAMPLE), "compose.dev.yml", included)
        old = read(self._old / EXAMPLE)
        if text.startswith(old[: old.index("services:")]):
            text = merge(text, old, theirs)
        elif included:
            text = with_list(f"include:\n\n{text}", "compose.dev.yml", included)
        for name, service in (load(text).get("services") or {}).items():
            is_internal = name in {"mqtt", "influxdb"} and "networks" not in service
            if is_internal and "ports" in service:
                text = put(text, ("services", name), "networks", BOTH_NETWORKS)
        return text

    def _launch(self) -> None:
        """Take the template's launch.json, unless it has entries of the user's own."""
        text = committed(LAUNCH)
        for name in self.moved:
            entry = rf' *\{{\n *"name": "Attach to {re.escape(name)}",.*?\n    \}},?\n'
            text = re.sub(entry, "", text, count=1, flags=re.DOTALL)
        text = re.sub(r'"configurations": \[\s*\]', '"configurations": []', text)
        if text == read(self._old / LAUNCH):
            self.files[LAUNCH] = read(self._new / LAUNCH)

    def _health_checks(self) -> None:
        for path in sorted(Path("services").glob("*/healthcheck.py")):
            text = read(path)
            if OLD_HEALTH_FILE in text:
                self.files[path.as_posix()] = text.replace(OLD_HEALTH_FILE, NEW_HEALTH_FILE)

    def _tests(self) -> None:
        for path in sorted(Path("tests").glob("test_*.py")):
            text = OLD_ASSERTION.sub(NEW_ASSERTION, read(path))
            if text != read(path):
                unused = "" if "pydantic." in text else "import pydantic\n"
                self.files[path.as_posix()] = text.replace(unused, "", 1)


def with_list(text: str, file: str, names: list[str]) -> str:
    """Return a Compose file that includes these services, and no others."""
    lines = "".join(f"  - services/{name}/{file}\n" for name in names)
    head = f"include:\n{lines}" if names else "include: []\n"
    return re.sub(r"^include:.*\n( +- .*\n)*", head, text, count=1, flags=re.MULTILINE)


def without_anchors(text: str) -> str:
    """Return docker-compose.yml without what is in base/compose.yml now."""
    found = entries(text)
    return cut(text, [found[name] for name in ("x-build", "x-service") if name in found])


# --- the repository and its template -------------------------------------------------------------


def read(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, or write a new one."""
    target = path.resolve()
    part = target.with_name(f".{target.name}.new")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def committed(name: str) -> str:
    """Return a file as it was before the update."""
    command = ["git", "show", f"{sys.argv[1]}:./{name}"]
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout.decode().replace("\r\n", "\n")


def render(template: Path, answers: dict[str, str], output: Path) -> Path:
    """Render a template without its hooks and without the user's defaults."""
    config = output / "config.yaml"
    places = {"replay_dir": str(output), "cookiecutters_dir": str(output)}
    config.write_text(yaml.safe_dump(places), encoding="utf-8")
    rendered = cookiecutter(
        str(template),
        no_input=True,
        extra_context=answers,
        output_dir=str(output),
        config_file=str(config),
        accept_hooks=False,
    )
    return Path(rendered)


def render_version(record: str, folder: Path) -> Path:
    """Render the version of the template that the text of a .cruft.json names."""
    state = json.loads(record)
    answers = {
        name: value
        for name, value in state["context"]["cookiecutter"].items()
        if not name.startswith("_")
    }
    checkout = folder / "template"
    add = ["worktree", "add", "--quiet", "--detach", str(checkout), state["commit"]]
    subprocess.run(["git", "-C", str(TEMPLATE), *add], check=True)
    return render(checkout, answers, folder)


def main() -> int:
    """Move all services. Return 1 and change nothing when something must be moved by hand."""
    parser = make_parser(__doc__, "0 done, 1 something must be moved by hand, 2 wrong usage")
    parser.add_argument("revision", metavar="REVISION", help="the last commit before the update")
    parser.parse_args()
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        migration = Migration(
            render_version(committed(".cruft.json"), Path(old)),
            render_version(read(Path(".cruft.json")), Path(new)),
        )
        migration.run()
    if migration.problems:
        problems = [f"  - {problem}.\n" for problem in migration.problems]
        title = f"Not everything in {COMPOSE} can be moved:\n\n"
        sys.stderr.writelines([title, *problems, BY_HAND])
        return 1
    # These files are what the next run looks for, so they come last.
    for name in sorted(migration.files, key=lambda name: name.startswith("services/")):
        write(Path(name), migration.files[name])
    shared = [name for name in migration.files if name not in OVERRIDES]
    subprocess.run(["git", "add", "--", *shared], check=True)
    for name in shared:
        Path(f"{name}.rej").unlink(missing_ok=True)
    print(f"Moved to services/NAME/compose.yml: {', '.join(migration.moved) or 'no service'}")
    for note in migration.notes:
        print(f"Check {note}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
