#!/usr/bin/env python3
"""Adds a service to a Compose file, or removes it, and leaves every other byte as it is.

    scripts/compose_services.py add FILE NAME [--volume VOLUME] < BLOCK
    scripts/compose_services.py remove FILE NAME [--volume VOLUME]

BLOCK is the service as it stands below `services:`, indented by two spaces. The text is edited,
and the file is then loaded before and after: unless the new model is exactly the old one plus (or
minus) the service and its volume, nothing is written, and what to do by hand is printed.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

_INDENT = 2


class CannotEditError(Exception):
    """The file is such that an edit cannot be proved right; it was left as it is."""


class _Loader(yaml.SafeLoader):
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
    try:
        model = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with two more tags
    except yaml.YAMLError as error:
        message = f"it is no valid YAML: {error}"
        raise CannotEditError(message) from error
    if not isinstance(model, dict):
        message = "it holds no mapping"
        raise CannotEditError(message)
    return model


def names(text: str, section: str) -> set[str]:
    """The keys of a top-level section."""
    return {str(key) for key in load(text).get(section) or {}}


def add(text: str, name: str, block: str, volume: str | None = None) -> str:
    """The text with the service at the end of `services` and its volume at the end of `volumes`."""
    before = load(text)
    if name in (before.get("services") or {}):
        message = f"a service {name} is there already"
        raise CannotEditError(message)
    if volume is not None and volume in (before.get("volumes") or {}):
        message = f"a volume {volume} is there already"
        raise CannotEditError(message)
    file = _File(text)
    file.append("services", block, blank_line=True)
    if volume is not None:
        file.append("volumes", f"{' ' * _INDENT}{volume}:\n", blank_line=False)
    result = file.text()
    expected = copy.deepcopy(before)
    expected["services"] = {**(before.get("services") or {}), name: _meaning(text, name, block)}
    if volume is not None:
        expected["volumes"] = {**(before.get("volumes") or {}), volume: None}
    _prove(result, expected)
    return result


def remove(text: str, name: str, volume: str | None = None) -> str:
    """The text without the service, and without its volume unless another service uses it."""
    before = load(text)
    expected = copy.deepcopy(before)
    file = _File(text)
    services = before.get("services") or {}
    if name in services:
        file.delete("services", name, blank_line=True)
        del expected["services"][name]
        expected["services"] = expected["services"] or None
    others = [value for key, value in services.items() if key != name]
    if volume in (before.get("volumes") or {}) and not _mentions(others, str(volume)):
        is_section_ours = file.delete("volumes", str(volume), blank_line=False)
        del expected["volumes"][volume]
        if is_section_ours:
            del expected["volumes"]
        else:
            expected["volumes"] = expected["volumes"] or None
    result = file.text()
    _prove(result, expected)
    return result


def _mentions(value: object, volume: str) -> bool:
    if isinstance(value, dict):
        return any(_mentions(item, volume) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_mentions(item, volume) for item in value)
    return isinstance(value, str) and (value == volume or value.startswith(f"{volume}:"))


def _meaning(text: str, name: str, block: str) -> object:
    """What the block means with the anchors of the file."""
    own = "".join(f"  {line}" if line.strip() else line for line in block.splitlines(keepends=True))
    probe = f"{text.rstrip()}\n\nx-probe:\n  services:\n{own}"
    services = load(probe.replace("\r\n", "\n"))["x-probe"]["services"]
    if set(services) != {name}:
        message = f"the block holds {', '.join(map(str, services))} and not just {name}"
        raise CannotEditError(message)
    return services[name]


def _prove(result: str, expected: dict[str, Any]) -> None:
    after = load(result)
    if after != expected:
        message = "the edited file would not mean what it should"
        raise CannotEditError(message)


class _File:
    """The lines of a Compose file, and where its sections are."""

    def __init__(self, text: str) -> None:
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._ends_with_newline = not text or text.endswith("\n")
        self._lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        if self._newline == "\r\n" and text.count("\r\n") != text.count("\n"):
            message = "it mixes two kinds of line ends"
            raise CannotEditError(message)

    def text(self) -> str:
        end = "\n" if self._ends_with_newline else ""
        return ("\n".join(self._lines) + end).replace("\n", self._newline)

    def append(self, section: str, block: str, *, blank_line: bool) -> None:
        """Put a block at the end of a section, which is made when it is missing."""
        found = self._find(section)
        if found is None:
            self._lines += ["", f"{section}:", *block.splitlines()]
            return
        key, value = found
        if _is_empty(value):
            at, indent = key.start_mark.line + 1, _INDENT
            self._require_bare(key)
            blank_line = False
        else:
            indent = value.start_mark.column
            at = self._end_of(value, deeper_than=0)
        lines = [_reindent(line, indent) for line in block.splitlines()]
        self._lines[at:at] = ["", *lines] if blank_line else lines

    def delete(self, section: str, name: str, *, blank_line: bool) -> bool:
        """Take an entry out; True when the section, the last of the file, went with it."""
        found = self._find(section)
        if found is None:
            message = f"there is no section {section}"
            raise CannotEditError(message)
        section_key, mapping = found
        (key, value) = next((k, v) for k, v in mapping.value if k.value == name)
        start = key.start_mark.line
        end = self._end_of(value, deeper_than=key.start_mark.column, at_least=start + 1)
        alone = len(mapping.value) == 1
        if blank_line and not alone and self._lines[start - 1].strip() == "":
            start -= 1
        del self._lines[start:end]
        header = section_key.start_mark.line
        is_last = header == len(self._lines) - 1 and self._lines[header - 1 : header] == [""]
        if alone and section == "volumes" and is_last:
            del self._lines[header - 1 :]
            return True
        return False

    def _find(self, section: str) -> tuple[yaml.Node, Any] | None:
        root = yaml.compose("\n".join(self._lines), Loader=_Loader)
        if not isinstance(root, yaml.MappingNode) or root.flow_style:
            message = "its outermost mapping is not in block style"
            raise CannotEditError(message)
        for key, value in root.value:
            if key.value == section:
                if not _is_empty(value) and (
                    not isinstance(value, yaml.MappingNode) or value.flow_style
                ):
                    message = f"its section {section} is not in block style"
                    raise CannotEditError(message)
                if key.start_mark.line == value.start_mark.line and not _is_empty(value):
                    message = f"its section {section} begins on the line of its key"
                    raise CannotEditError(message)
                return key, value
        return None

    def _require_bare(self, key: yaml.Node) -> None:
        line = self._lines[key.start_mark.line]
        if not re.fullmatch(rf"{re.escape(str(key.value))}:\s*(#.*)?", line):
            message = f"its section {key.value} is empty in another way than `{key.value}:`"
            raise CannotEditError(message)

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


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _last_line(node: yaml.Node) -> int:
    """The last line of a node's content; a collection's own end mark lies behind it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        parts = [part for pair in node.value for part in pair if _is_at(part, node)]
        return max(_last_line(part) for part in parts)
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        parts = [part for part in node.value if _is_at(part, node)]
        return max((_last_line(part) for part in parts), default=int(node.start_mark.line))
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return int(node.end_mark.line) - 1
    return int(node.end_mark.line)


def _is_at(part: yaml.Node, parent: yaml.Node) -> bool:
    """An alias stands for a node that is written elsewhere, before its parent."""
    return bool(part.start_mark.index >= parent.start_mark.index)


def _reindent(line: str, indent: int) -> str:
    stripped = line.lstrip(" ")
    depth, rest = divmod(len(line) - len(stripped), _INDENT)
    return " " * (depth * indent + rest) + stripped if stripped else ""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, with the mode it had."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when the file cannot be edited."""
    parser = argparse.ArgumentParser(description="Add or remove a service of a Compose file.")
    parser.add_argument("action", choices=["add", "remove"])
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--volume")
    options = parser.parse_args(arguments)
    block = sys.stdin.read() if options.action == "add" else ""
    try:
        text = options.file.read_bytes().decode()
        if options.action == "add":
            result = add(text, options.name, block, options.volume)
        else:
            result = remove(text, options.name, options.volume)
    except (CannotEditError, OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{options.file} was left as it is: {error}\n")
        if block:
            sys.stderr.write(f"Put this below `services:` by hand:\n\n{block}")
            if options.volume:
                sys.stderr.write(f"\nand this below `volumes:`:\n\n  {options.volume}:\n")
        return 1
    replace_file(options.file, result.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
