"""Find payload changes that break consumers, in two AsyncAPI documents of scripts/topics.py.

Payloads that a service sends must stay valid for readers of the old document: they may gain fields
and become narrower. Payloads that it receives may gain optional fields and become wider.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Schema = Any
"""A JSON schema: an object, or true (any value) or false (no value)."""
Schemas = dict[str, Schema]

LOWER_BOUNDS = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
UPPER_BOUNDS = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
STRUCTURE = {"type", "const", "properties", "required", "items", "additionalProperties"}
ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "unit"}
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line for each change of a payload that breaks a reader or a sender."""
    lines = []
    for key, channel in old["channels"].items():
        topic, payload = channel["address"].removeprefix("{prefix}/"), payload_of(channel)
        schemas, new_schemas = old["components"]["schemas"], new["components"]["schemas"]
        current = new["channels"].get(key)
        if current is None or current["address"] != channel["address"]:
            lines.append(f"{topic}: the topic is gone")
        elif old["operations"][key]["action"] == "send":
            comparison = Comparison(new_schemas, schemas, is_sent=True)
            problems = comparison.problems("", payload_of(current), payload)
            lines += [f"{topic}: {problem}" for problem in dict.fromkeys(problems)]
        else:
            comparison = Comparison(schemas, new_schemas, is_sent=False)
            problems = comparison.problems("", payload, payload_of(current))
            lines += [f"{topic} (received): {problem}" for problem in dict.fromkeys(problems)]
    return lines


def payload_of(channel: dict[str, Any]) -> Schema:
    """Return the schema of the only message of a channel."""
    [message] = channel["messages"].values()
    return message["payload"]


def resolve(schema: Schema, schemas: Schemas) -> dict[str, Any]:
    """Return the schema as an object, with the definition in place of a reference."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    resolved: dict[str, Any] = schema
    while "$ref" in resolved:
        name = resolved["$ref"].rpartition("/")[2]
        rest = {key: value for key, value in resolved.items() if key != "$ref"}
        resolved = {**schemas[name], **rest}
    return resolved


def variants(schema: Schema, schemas: Schemas) -> list[dict[str, Any]]:
    """Split a schema into its alternatives, each with one type and at most one constant."""
    schema = resolve(schema, schemas)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return [one for part in schema[keyword] for one in variants(part, schemas)]
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return [{"type": JSON_TYPES.get(type(value)), "const": value} for value in values]
    return [schema]


def types(alternatives: list[dict[str, Any]], schemas: Schemas) -> str:
    """Return the types of a value in words, such as `array of number or null`."""
    words = []
    for one in alternatives:
        if "const" in one:
            words.append(json.dumps(one["const"], ensure_ascii=False))
        elif "items" in one:
            words.append(f"array of {types(variants(one['items'], schemas), schemas)}")
        else:
            suffix = f" ({one['format']})" if "format" in one else ""
            words.append(one.get("type", "any") + suffix)
    return " or ".join(dict.fromkeys(words)) or "nothing"


def unit_of(schema: Schema, schemas: Schemas) -> str | None:
    """Return the unit of a value, which may stand at one of its alternatives."""
    alternatives = [resolve(schema, schemas), *variants(schema, schemas)]
    return next((one["unit"] for one in alternatives if "unit" in one), None)


@dataclass
class Comparison:
    """Compare the payload that one side writes with the payload that the other side reads.

    The new document writes what a service sends. The new document reads what a service receives.
    """

    written: Schemas
    read: Schemas
    is_sent: bool
    active: set[str] = field(default_factory=set)

    def problems(self, path: str, written: Schema, read: Schema) -> Iterator[str]:
        """Yield why a value that is written may not be valid for its reader."""
        pair = f"{written} {read}"
        if pair in self.active:
            # A definition that refers to itself holds nothing new further down.
            return
        self.active.add(pair)
        name = f'field "{path}"' if path else "the payload"
        units = unit_of(written, self.written), unit_of(read, self.read)
        if units[0] != units[1] and units[1 if self.is_sent else 0]:
            yield f"{name} changes its unit{self.from_to(*units)}"
        writers, readers = variants(written, self.written), variants(read, self.read)
        for value in writers:
            same_kind = [reader for reader in readers if is_same_kind(value, reader)]
            if not same_kind:
                kinds = types(writers, self.written), types(readers, self.read)
                yield f"{name} changes{self.from_to(*kinds)}"
                break
            found = [list(self.differences(path, value, reader)) for reader in same_kind]
            yield from min(found, key=len)
        self.active.remove(pair)

    def differences(
        self, path: str, written: dict[str, Any], read: dict[str, Any]
    ) -> Iterator[str]:
        for keyword in sorted(read.keys() - STRUCTURE - ANNOTATIONS):
            if not is_within(keyword, written, read):
                change = self.from_to(written.get(keyword), read[keyword])
                yield f'{keyword} of field "{path}" changes{change}'
        if "items" in read:
            yield from self.problems(f"{path}[]", written.get("items", True), read["items"])
        if read.get("type") == "object":
            yield from self.field_problems(path, written, read)

    def field_problems(
        self, path: str, written: dict[str, Any], read: dict[str, Any]
    ) -> Iterator[str]:
        writes, reads = written.get("properties", {}), read.get("properties", {})
        # A sent model has its own fields alone. A received one may come with any others.
        others = written.get("additionalProperties", not self.is_sent)
        allowed = read.get("additionalProperties", True) or self.is_sent
        for key in {**writes, **reads}:
            inner = f"{path}.{key}".removeprefix(".")
            if self.is_sent and key not in writes:
                yield f'field "{inner}" is gone'
            elif key in read.get("required", []) and key not in written.get("required", []):
                yield f'field "{inner}" is {"optional" if self.is_sent else "required"} now'
            if key in writes:
                yield from self.problems(inner, writes[key], reads.get(key, allowed))
            elif "properties" not in written:
                # A mapping may hold a value under any key.
                yield from self.problems(inner, others, reads[key])
        yield from self.problems(f"{path}.*".removeprefix("."), others, allowed)

    def from_to(self, written: object, read: object) -> str:
        """Return both values in the order of time."""
        old, new = (read, written) if self.is_sent else (written, read)
        return f" from {'none' if old is None else old} to {'none' if new is None else new}"


def is_same_kind(written: dict[str, Any], read: dict[str, Any]) -> bool:
    """Return whether a value of one type, or a constant, can be read as the other."""
    if "const" in read and ("const" not in written or written["const"] != read["const"]):
        return False
    kinds = written.get("type"), read.get("type")
    return kinds[1] in {kinds[0], None} or kinds == ("integer", "number")


def is_within(keyword: str, written: dict[str, Any], read: dict[str, Any]) -> bool:
    """Return whether a constraint of the reader holds for all that is written."""
    if keyword in written and keyword in LOWER_BOUNDS:
        return bool(written[keyword] >= read[keyword])
    if keyword in written and keyword in UPPER_BOUNDS:
        return bool(written[keyword] <= read[keyword])
    return bool(written.get(keyword) == read[keyword])
