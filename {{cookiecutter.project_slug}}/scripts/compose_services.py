"""Adds a service to the text of a Compose file, or removes it, and keeps every other byte.

The text is loaded before and after: unless the new model is exactly the old one plus (or minus)
the service and its volume, the edit is refused. For scripts/wire_service.py.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

_INDENT = 2


class CannotEditError(Exception):
    """The file is such that an edit cannot be proved right; it was left as it is."""


try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without libyaml: the same, slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class _Loader(_SafeLoader):
    """Loads Compose's own tags (`!reset`, `!override`) as plain data."""


def _any_tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return (suffix, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return (suffix, loader.construct_sequence(node, deep=True))
    return (suffix, loader.construct_scalar(node))  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _any_tag)


def load(text: str) -> dict[str, Any]:
    """The model of a Compose file; raises CannotEditError."""
    return _File(text).model


def add(text: str, name: str, block: str, volume: str | None = None) -> str:
    """The text with the service at the end of `services` and its volume at the end of `volumes`.

    A service that is there already stays as it is, and gets its volume if it mounts one.
    """
    file = _File(text)
    expected = dict(file.model)
    services, volumes = entries(file.model, "services"), entries(file.model, "volumes")
    if name not in services:
        if volume in volumes:
            message = f"a volume {volume} is there already"
            raise CannotEditError(message)
        expected["services"] = {**services, name: file.meaning(name, block)}
        file.append_block("services", block)
    is_mounted = name not in services or _mentions(services[name], str(volume))
    if volume is not None and volume not in volumes and is_mounted:
        expected["volumes"] = {**volumes, volume: file.append_key("volumes", volume)}
    return file.edited(expected)


def remove(text: str, name: str, volume: str | None = None) -> str:
    """The text without the service, and without its volume unless another service uses it."""
    file = _File(text)
    expected = dict(file.model)
    services, volumes = entries(file.model, "services"), entries(file.model, "volumes")
    others = {key: value for key, value in services.items() if key != name}
    if name in services:
        for other, definition in others.items():
            if _depends(definition, name):
                message = f"the service {other} needs {name}: change {other} first"
                raise CannotEditError(message)
        expected["services"] = others
        if not file.delete("services", name):
            del expected["services"]
    if volume in volumes and not _mentions(list(others.values()), str(volume)):
        expected["volumes"] = {key: value for key, value in volumes.items() if key != volume}
        if not file.delete("volumes", str(volume)):
            del expected["volumes"]
    return file.edited(expected)


def entries(model: dict[str, Any], section: str) -> dict[str, Any]:
    """What a section of a model holds."""
    return model.get(section) or {}


def _depends(definition: object, name: str) -> bool:
    """Whether Compose would miss the service `name` in this definition of another one."""
    if not isinstance(definition, dict):
        return False
    listed = [definition.get(key) or [] for key in ("depends_on", "links", "volumes_from")]
    modes = [definition.get(key) for key in ("network_mode", "ipc", "pid")]
    build = definition.get("build")
    contexts = (build.get("additional_contexts") if isinstance(build, dict) else None) or {}
    # As a list of NAME=CONTEXT or as a mapping.
    contexts = contexts.values() if isinstance(contexts, dict) else contexts
    modes += [str(context).split("=")[-1] for context in contexts]
    base = definition.get("extends")
    extended = {"service": base} if isinstance(base, str) else base or {}
    return (
        any(str(item).split(":")[0] == name for items in listed for item in items)
        or f"service:{name}" in modes
        or (extended.get("service") == name and "file" not in extended)
    )


def _mentions(value: object, volume: str) -> bool:
    if isinstance(value, dict):
        return any(_mentions(item, volume) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_mentions(item, volume) for item in value)
    return isinstance(value, str) and (value == volume or value.startswith(f"{volume}:"))


class _File:
    """The lines of a Compose file, its model, and the edits that are to be made."""

    def __init__(self, text: str) -> None:
        self._newline = "\r\n" if "\r\n" in text else "\n"
        plain = text.replace("\r\n", "\n")
        if self._newline == "\r\n" and text.count("\n") != text.count("\r\n"):
            message = "it mixes two kinds of line ends"
            raise CannotEditError(message)
        if re.search("[\r\x85\u2028\u2029]", plain):
            message = "it holds a line end that is neither \\n nor \\r\\n"
            raise CannotEditError(message)
        # The last item is what follows the last line end: mostly nothing.
        self._lines = plain.split("\n")
        self._edits: list[tuple[int, int, list[str]]] = []
        self._sections: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        self.model: dict[str, Any] = self._parse(plain)

    def _parse(self, text: str) -> dict[str, Any]:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return {}
            if not isinstance(root, yaml.MappingNode) or root.flow_style:
                message = "its outermost level is no mapping in block style"
                raise CannotEditError(message)
            # Before the construction, which puts the merged keys into the nodes.
            for key, value in root.value:
                if not isinstance(key, yaml.ScalarNode):
                    message = "a key of its outermost level is no text"
                    raise CannotEditError(message)
                if key.value in self._sections:
                    message = f"it has two sections {key.value}"
                    raise CannotEditError(message)
                self._sections[key.value] = (key, _copy(value))
            model: dict[str, Any] = loader.construct_document(root)
            for section in ("services", "volumes"):
                if not isinstance(entries(model, section), dict):
                    message = f"its section {section} is no mapping"
                    raise CannotEditError(message)
        except yaml.YAMLError as error:
            message = f"it is no valid YAML: {error}"
            raise CannotEditError(message) from error
        finally:
            loader.dispose()
        return model

    def meaning(self, name: str, block: str) -> object:
        """What the block means with the anchors of this file's `x-` sections."""
        starts = sorted(key.start_mark.line for key, _ in self._sections.values())
        lines = []
        for section, (key, _) in self._sections.items():
            if section.startswith("x-"):
                start = key.start_mark.line
                end = next((line for line in starts if line > start), len(self._lines))
                lines += self._lines[start:end]
        try:
            model = yaml.load("\n".join([*lines, "services:", block]), Loader=_Loader)  # noqa: S506
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or error
            message = f"the block of {name} does not fit its `x-` sections: {problem}"
            raise CannotEditError(message) from error
        if set(model["services"]) != {name}:
            message = f"the block does not hold {name} alone"
            raise CannotEditError(message)
        return model["services"][name]

    def append_block(self, section: str, block: str) -> None:
        """Put a block at the end of a section, which is made when it is missing."""
        lines = _reindent(block.rstrip("\n").split("\n"), self._indent(section))
        found = self._find(section)
        if found is None:
            self._insert(self._end, ["", f"{section}:", *lines])
            return
        key, value = found
        if _is_empty(value):
            self._clear(key)
            self._insert(key.start_mark.line + 1, lines)
        elif isinstance(value, yaml.MappingNode) and not value.flow_style:
            blank = [""] if self._has_blank_lines(value) else []
            self._insert(self._end_of(value, deeper_than=0), [*blank, *lines])
        else:
            message = f"its section {section} is not in block style"
            raise CannotEditError(message)

    def append_key(self, section: str, name: str) -> dict[str, Any] | None:
        """Put a key without a value at the end of a section; returns the value it has there."""
        found = self._find(section)
        if found is not None and isinstance(found[1], yaml.MappingNode) and found[1].flow_style:
            _, value = found
            line, column = self._flow_end(section, value)
            comma = ""
            if value.value:
                column, comma = value.value[-1][1].end_mark.column, ", "
            text = self._lines[line]
            self._replace(line, f"{text[:column]}{comma}{name}: {{}}{text[column:]}")
            return {}
        lines = [f"{' ' * self._indent(section)}{name}:"]
        if found is None:
            self._insert(self._end, ["", f"{section}:", *lines])
        elif _is_empty(found[1]):
            self._clear(found[0])
            self._insert(found[0].start_mark.line + 1, lines)
        else:
            self._insert(self._end_of(found[1], deeper_than=0), lines)
        return None

    def delete(self, section: str, name: str) -> bool:
        """Take an entry out; False when the whole section, now empty, went with it."""
        found = self._find(section)
        pairs = found[1].value if found is not None else []
        entry = next(((k, v) for k, v in pairs if k.value == name), None)
        if found is None or entry is None:
            message = f"{name} is not written in its section {section}"
            raise CannotEditError(message)
        section_key, mapping = found
        if mapping.flow_style:
            self._delete_flow(section, mapping, pairs.index(entry))
            return True
        key, value = entry
        start = key.start_mark.line
        end = self._end_of(value, deeper_than=key.start_mark.column, at_least=start + 1)
        if len(pairs) > 1:
            if not self._lines[start - 1].strip() and section == "services":
                start -= 1
            self._edits.append((start, end - start, []))
            return True
        header = section_key.start_mark.line
        # At the end and after a blank line, as it is made when it is missing.
        if end == self._end and header > 0 and not self._lines[header - 1].strip():
            self._edits.append((header - 1, end - header + 1, []))
            return False
        self._replace(header, re.sub(rf"^{section}:", f"{section}: {{}}", self._lines[header]))
        self._edits.append((start, end - start, []))
        return True

    def edited(self, expected: dict[str, Any]) -> str:
        """The text after all edits; raises CannotEditError unless it means what is expected."""
        lines = list(self._lines)
        # From the end, so that the numbers of the lines above hold.
        self._edits.sort(key=lambda edit: edit[0])
        for line, count, new in reversed(self._edits):
            lines[line : line + count] = new
        text = "\n".join(lines).replace("\n", self._newline)
        try:
            if load(text) == expected:
                return text
            problem = "would not mean what it should"
        except CannotEditError as error:
            problem = f"cannot be read: {error}"
        message = f"the edit does not fit, the file {problem}"
        raise CannotEditError(message)

    @property
    def _end(self) -> int:
        """Where a line goes that is to be the last."""
        return len(self._lines) - (self._lines[-1] == "")

    def _indent(self, section: str) -> int:
        """How far the entries of a section are indented, or of another one if it has none."""
        values = [self._sections[section][1]] if section in self._sections else []
        for value in [*values, *(value for _, value in self._sections.values())]:
            if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
                column: int = value.value[0][0].start_mark.column
                return column
        return _INDENT

    def _insert(self, line: int, lines: list[str]) -> None:
        self._edits.append((line, 0, lines))

    def _replace(self, line: int, text: str) -> None:
        self._edits.append((line, 1, [text]))

    def _find(self, section: str) -> tuple[yaml.Node, Any] | None:
        found = self._sections.get(section)
        if found is None:
            return None
        key, value = found
        if value.start_mark.index < key.start_mark.index:
            message = f"its section {section} is an alias"
            raise CannotEditError(message)
        return found

    def _clear(self, key: yaml.Node) -> None:
        """Take the `{}` of an empty section away."""
        line = self._lines[key.start_mark.line]
        bare = re.fullmatch(rf"({re.escape(str(key.value))}:)(?:\s*\{{\s*\}})?(\s+#.*|\s*)", line)
        if bare is None:
            message = f"its section {key.value} is empty in an unusual way"
            raise CannotEditError(message)
        if bare.expand(r"\1\2") != line:
            self._replace(key.start_mark.line, bare.expand(r"\1\2"))

    def _flow_end(self, section: str, value: yaml.Node) -> tuple[int, int]:
        """Line and column of the closing brace; its mapping has to stand on one line."""
        if value.start_mark.line != value.end_mark.line:
            message = f"its section {section} is in flow style, over several lines"
            raise CannotEditError(message)
        return value.end_mark.line, value.end_mark.column - 1

    def _delete_flow(self, section: str, mapping: Any, index: int) -> None:  # noqa: ANN401
        line, _ = self._flow_end(section, mapping)
        text = self._lines[line]
        pairs = mapping.value
        key, value = pairs[index]
        start, end = key.start_mark.column, value.end_mark.column
        if index:
            start = pairs[index - 1][1].end_mark.column
        elif len(pairs) > 1:
            end = pairs[index + 1][0].start_mark.column
        self._replace(line, text[:start] + text[end:])

    def _has_blank_lines(self, mapping: Any) -> bool:  # noqa: ANN401 - a yaml.MappingNode
        """Whether a blank line sets the last entry of a section apart, as far as one can see."""
        first_line = mapping.value[-1][0].start_mark.line
        above = first_line - 1
        while self._lines[above].lstrip().startswith("#"):
            above -= 1
        return len(mapping.value) == 1 or not self._lines[above].strip()

    def _end_of(self, node: yaml.Node, *, deeper_than: int, at_least: int = 0) -> int:
        """The line after a node, with the comments after it that are indented deeper."""
        end = max(_last_line(node) + 1, at_least)
        while end > at_least and not self._lines[end - 1].strip():
            end -= 1
        while end < len(self._lines):
            line = self._lines[end]
            is_comment = line.lstrip().startswith("#")
            if not is_comment or len(line) - len(line.lstrip()) <= deeper_than:
                break
            end += 1
        return end


def _copy(node: Any) -> Any:  # noqa: ANN401 - a yaml.Node of any kind
    """A section with a list of its own, which the construction does not change."""
    if not isinstance(node, yaml.MappingNode):
        return node
    return yaml.MappingNode(
        node.tag, list(node.value), node.start_mark, node.end_mark, node.flow_style
    )


def _is_empty(node: yaml.Node) -> bool:
    if isinstance(node, yaml.MappingNode):
        return not node.value
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _last_line(node: yaml.Node) -> int:
    """The last line of a node's content; a collection's own end mark lies behind it."""
    if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) and not node.flow_style:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for item in node.value for part in (item if pairs else [item])]
        # An alias stands for a node that is written elsewhere, before this one.
        own = [part for part in parts if part.start_mark.index >= node.start_mark.index]
        return max((_last_line(part) for part in own), default=int(node.start_mark.line))
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return int(node.end_mark.line) - (node.end_mark.column == 0)
    return int(node.end_mark.line)


def _reindent(lines: list[str], indent: int) -> list[str]:
    """Lines of a block with the indentation of the file; what a list's item holds moves with it."""
    result = []
    item: int | None = None
    moved = 0
    for line in lines:
        stripped = line.lstrip(" ")
        column = len(line) - len(stripped)
        if item is None or column <= item:
            item = column if stripped.startswith("- ") else None
            moved = column // _INDENT * (indent - _INDENT)
        result.append(" " * (column + moved) + stripped)
    return result


def temporary_of(path: Path) -> Path:
    """What stands beside a file while it is written, and stays when that is killed."""
    path = path.resolve()
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, with the mode it had; a symbolic link stays one."""
    path = path.resolve()
    temporary = temporary_of(path)
    try:
        temporary.touch(0o600)
        temporary.write_bytes(content)
        temporary.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
