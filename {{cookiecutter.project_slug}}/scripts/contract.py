"""Find payload changes that break consumers, in two AsyncAPI documents of scripts/topics.py.

A payload that a service sends may gain fields and become narrower. A payload that it receives may
gain optional fields and become wider. A change that is not understood counts as breaking.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

Schema = Any
"""A JSON schema: an object, or true (any value) or false (no value)."""
Schemas = dict[str, Schema]
Type = tuple[str, str]
"""The name of a type, and a constant or `(limits)` that narrow it."""

# Keywords that say nothing about the values, and those that Payload follows.
ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "unit"}
FOLLOWED = {"type", "const", "properties", "required", "items"}


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line for each change of a payload that breaks a reader or a sender."""
    lines = []
    for key, channel in old["channels"].items():
        topic, current = channel["address"].removeprefix("{prefix}/"), new["channels"].get(key)
        if current is None or current["address"] != channel["address"]:
            lines.append(f"{topic}: the topic is gone")
            continue
        before = Payload(payload_of(channel), old["components"]["schemas"])
        after = Payload(payload_of(current), new["components"]["schemas"])
        is_sent = old["operations"][key]["action"] == "send"
        topic += "" if is_sent else " (received)"
        lines += [f"{topic}: {problem}" for problem in compare(before, after, is_sent=is_sent)]
    return lines


def payload_of(channel: dict[str, Any]) -> Schema:
    """Return the schema of the only message of a channel."""
    [message] = channel["messages"].values()
    return message["payload"]


def resolve(schema: Schema, schemas: Schemas) -> dict[str, Any]:
    """Return the schema as an object, with the definition in place of a reference."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    resolved = dict(schema)
    if "$ref" in resolved:
        name = resolved.pop("$ref").rpartition("/")[2]
        return resolve(schemas[name], schemas) | resolved
    return resolved


def variants(schema: Schema, schemas: Schemas) -> list[dict[str, Any]]:
    """Split a schema into its alternatives, each with at most one constant."""
    schema = resolve(schema, schemas)
    if parts := schema.get("anyOf", schema.get("oneOf")):
        return [one for part in parts for one in variants(part, schemas)]
    if "enum" in schema:
        return [{"type": schema.get("type"), "const": value} for value in schema["enum"]]
    return [schema]


def unit_of(schema: Schema, schemas: Schemas) -> str | None:
    """Return the unit of a value, which may stand at one of its alternatives."""
    alternatives = [resolve(schema, schemas), *variants(schema, schemas)]
    return next((one["unit"] for one in alternatives if "unit" in one), None)


class Payload:
    """The types, the units and the required fields of a payload, by path: `zones[].level`."""

    def __init__(self, schema: Schema, schemas: Schemas) -> None:
        # A dictionary keeps its order.
        self.types: dict[str, dict[Type, None]] = {}
        self.units: dict[str, str | None] = {}
        self.required: set[str] = set()
        self._add("", schema, schemas, [])

    def _add(self, path: str, schema: Schema, schemas: Schemas, parents: list[Schema]) -> None:
        self.units[path] = unit_of(schema, schemas)
        alternatives = variants(schema, schemas)
        is_mixed = sum("properties" in one for one in alternatives) > 1
        for one in alternatives:
            self.types.setdefault(path, {})[type_of(one, is_mixed=is_mixed)] = None
            if one in parents:
                # A definition that refers to itself holds nothing new further down.
                continue
            inner = {f".{name}": field for name, field in one.get("properties", {}).items()}
            inner |= {"[]": one["items"]} if "items" in one else {}
            if one.get("additionalProperties", False) is not False:
                inner[".*"] = one["additionalProperties"]
            required = (f"{path}.{name}" for name in one.get("required", []))
            self.required |= {name.removeprefix(".") for name in required}
            for step, below in inner.items():
                self._add(f"{path}{step}".removeprefix("."), below, schemas, [*parents, one])

    def words(self, path: str, *, with_null: bool = True) -> str:
        """Return the types of a value in words, such as `array of number or null`."""
        texts = []
        for kind, narrowed in self.types[path]:
            if kind == "array" and f"{path}[]" in self.types:
                texts.append(f"array of {self.words(f'{path}[]')}")
            elif kind in {"array", "object"}:
                texts.append(kind)
            elif narrowed and not narrowed.startswith("("):
                texts.append(narrowed)
            elif with_null or kind != "null":
                texts.append(f"{kind} {narrowed}".strip())
        return " or ".join(dict.fromkeys(texts)) or "nothing"


def type_of(schema: dict[str, Any], *, is_mixed: bool) -> Type:
    """Return the type of one alternative. Of several objects, each is compared as a whole."""
    kind = schema.get("type", "any")
    if "const" in schema:
        return kind, json.dumps(schema["const"], ensure_ascii=False)
    ignored = ANNOTATIONS if is_mixed else ANNOTATIONS | FOLLOWED
    if kind == "object" and "properties" not in schema:
        kind, ignored = "mapping", ANNOTATIONS | FOLLOWED | {"additionalProperties"}
    limits = [f"{key} {schema[key]}" for key in sorted(schema.keys() - ignored)]
    return kind, f"({', '.join(limits).replace('format ', '')})" if limits else ""


def compare(old: Payload, new: Payload, *, is_sent: bool) -> Iterator[str]:
    """Yield what breaks the readers of a sent payload, or the senders of a received one."""
    written, read = (new, old) if is_sent else (old, new)
    changed: list[str] = []
    for path in old.types | new.types:
        name = f'field "{path}"' if path else "the payload"
        if path.startswith(tuple(changed)):
            # The cause is further up.
            continue
        if path not in new.types:
            if is_sent:
                changed += [f"{path}.", f"{path}["]
                yield f"{name} is gone"
            continue
        if path in read.required - written.required and path.rpartition(".")[0] in old.types:
            yield f"{name} is {'optional' if is_sent else 'required'} now"
        if path not in old.types:
            continue
        if old.units[path] not in {None, new.units[path]}:
            yield f"{name} changes its unit from {old.units[path]} to {new.units[path] or 'none'}"
        if not all(fits(one, read.types[path]) for one in written.types[path]):
            changed += [f"{path}.", f"{path}["]
            yield f"{name} changes from {old.words(path)} to {new.words(path)}"


def fits(written: Type, readers: Iterable[Type]) -> bool:
    """Return whether one of the readers takes every value of a type."""
    kinds = {written[0], "any", *(["number"] if written[0] == "integer" else [])}
    return any(kind in kinds and narrowed in {written[1], ""} for kind, narrowed in readers)
