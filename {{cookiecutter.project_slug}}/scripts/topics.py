"""Write docs/topics.md, docs/asyncapi.json and .env.example from the pydantic models.

    scripts/uv run --frozen python scripts/topics.py [--check | --breaking REV]

Topics come from `LIBRARY_TOPICS` in shared/schemas.py, and from `TOPICS` and `COMMANDS` in the
schemas.py of each service. Settings come from shared/config.py and from `ServiceSettings` in each
config.py.
"""

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin, override

from common import ROOT, make_parser
from contract import Payload, Schema, Schemas, breaking_changes, payload_of, resolve
from pydantic import BaseModel, Field, SecretStr, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema, to_jsonable_python

sys.path.insert(0, str(ROOT))

from shared.config import SETTING_GROUPS, CommaSeparated, Settings, variable_of
from shared.files import atomic_write
from shared.schemas import (
    LIBRARY_TOPICS,
    Command,
    CommandReply,
    CommandSpec,
    Message,
    Topic,
)

ASYNCAPI = "docs/asyncapi.json"
LIBRARY = "all_services"
CACHE = ROOT / ".tools" / "topics.json"
Part = dict[str, Any]
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
PARAMETERS = {
    "prefix": {"default": DEFAULTS["topic_prefix"], "description": "Setting TOPIC_PREFIX"},
    "service": {"description": "Name of a service"},
}
MODES: dict[str, JsonSchemaMode] = {"send": "serialization", "receive": "validation"}
SETTINGS_INTRODUCTION = """\
# All settings with their defaults, written by `make docs`. Set values in .env, each in single
# quotes: Docker Compose and Python read those in the same way. An empty value stands for the
# default. Headings separate the blocks, since sops drops blank lines.
"""
TOPICS_INTRODUCTION = """\
# Topics

All topics and their JSON payloads, written by `make docs`. [asyncapi.json](asyncapi.json) describes
the same for tools.

`{prefix}` is the setting `TOPIC_PREFIX`, `{service}` is the name of a service, and `?` marks an
optional field. Every message also carries these fields:
"""


class PayloadSchema(GenerateJsonSchema):
    """JSON schemas without `discriminator`, which AsyncAPI defines in another way than OpenAPI."""

    @override
    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        result = super().tagged_union_schema(schema)
        result.pop("discriminator", None)
        return result


def load(file: Path) -> ModuleType:
    """Import a module of a service, whose directory comes first on the path as in its container."""
    before = set(sys.modules)
    sys.path.insert(0, str(file.parent))
    try:
        return importlib.import_module(file.stem)
    finally:
        sys.path.remove(str(file.parent))
        # The modules of the next service have the same names.
        for name in sys.modules.keys() - before:
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if os.path.dirname(origin) == str(file.parent):  # noqa: PTH120 - Path takes ten times
                del sys.modules[name]


def topics_of(schemas: ModuleType) -> list[Topic]:
    """Return `TOPICS` of a schemas.py, with the topics of its `COMMANDS`."""
    topics = list(getattr(schemas, "TOPICS", []))
    commands: list[CommandSpec[BaseModel]] = getattr(schemas, "COMMANDS", [])
    for command in commands:
        request = Topic(
            pattern="{prefix}/coordinator/command/{service}",
            payload=arguments_model(command),
            direction="receive",
            description=f"Command `{command.name}`: {command.description}",
            command=command.name,
        )
        reply = Topic(
            pattern="{prefix}/{service}/response",
            payload=command.reply,
            description=f"Reply to `{command.name}`, unless the command has a `reply_to`",
            command=command.name,
        )
        topics += [request] if command.reply is CommandReply else [request, reply]
    return topics


def arguments_model(command: CommandSpec[BaseModel]) -> type[BaseModel]:
    """Return the arguments with the name of the command. The library lists the other fields."""
    title = re.sub(r"\W|_", "", command.name.title()) + "Command"
    base = BaseModel if command.arguments is Command else command.arguments
    name = (str, Field(json_schema_extra={"const": command.name}))
    model: type[BaseModel] = create_model(title, __base__=base, command=name)
    return model


def describe(service: str, topics: list[Topic], settings: type[Settings]) -> Part:
    """Return the channels, operations, schemas and settings of one service, as JSON holds them."""
    payloads, definitions = models_json_schema(
        [(topic.payload, MODES[topic.direction]) for topic in topics],
        ref_template=f"#/components/schemas/{service}.{{model}}",
        schema_generator=PayloadSchema,
    )
    schemas = {f"{service}.{key}": one for key, one in definitions.get("$defs", {}).items()}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in topics:
        key, address = channel_key(service, topic), topic.pattern
        if service != LIBRARY:
            address = address.replace("{service}", service)
        while key in channels and channels[key]["address"] != address:
            # {prefix}/alarm, beside {prefix}/{service}/alarm
            key += ".2"
        if key in channels:
            message = f"{service}: TOPICS lists {topic.pattern} twice"
            raise ValueError(message)
        payload = payloads[topic.payload, MODES[topic.direction]]
        names = re.findall(r"{(\w+)}", address)
        channels[key] = {
            "address": address,
            "parameters": {name: PARAMETERS.get(name, {}) for name in names},
            "messages": {topic.payload.__name__: {"payload": payload}},
        }
        operations[key] = {
            "action": topic.direction,
            "channel": {"$ref": f"#/channels/{key}"},
            "summary": topic.description,
            "bindings": {"mqtt": {"qos": topic.qos, "retain": topic.retain}},
        }
    lines = settings_of(settings)
    return {"channels": channels, "operations": operations, "schemas": schemas, "settings": lines}


def asyncapi(parts: Iterable[Part]) -> dict[str, Any]:
    """Return the AsyncAPI document of the library and all services."""
    merged: dict[str, Any] = {"channels": {}, "operations": {}, "schemas": {}}
    for part in parts:
        for section, entries in merged.items():
            entries.update(part[section])
    broker = {"host": "{mqtt_host}:{mqtt_port}".format(**DEFAULTS), "protocol": "mqtt"}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": f"Topics of {DEFAULTS['topic_prefix']}", "version": "1.0.0"},
        "defaultContentType": "application/json",
        "servers": {"broker": broker},
        "channels": merged["channels"],
        "operations": merged["operations"],
        "components": {"schemas": merged["schemas"]},
    }


def channel_key(service: str, topic: Topic) -> str:
    """Return a key that a JSON pointer holds without escapes."""
    levels = topic.pattern.removeprefix("{prefix}/").removeprefix("{service}/")
    words = re.findall(r"[\w-]+", levels.replace("+", "any").replace("#", "all"))
    return ".".join([service, topic.direction, *words, *filter(None, [topic.command])])


def topics_page(document: dict[str, Any]) -> str:
    """Return docs/topics.md: a section for each service, with a table for each topic."""
    schemas = document["components"]["schemas"]
    envelope = Message.model_json_schema(mode="serialization")
    lines = [TOPICS_INTRODUCTION, *field_table(envelope, schemas, known={})]
    section = ""
    for key, channel in document["channels"].items():
        operation, service = document["operations"][key], key.partition(".")[0]
        if service != section:
            section = service
            lines += ["", f"## {'All services' if service == LIBRARY else service}"]
        direction = "Sent" if operation["action"] == "send" else "Received"
        delivery = operation["bindings"]["mqtt"]
        retained = "retained" if delivery["retain"] else "not retained"
        lines += ["", f"### {direction}: `{channel['address']}`", ""]
        lines += [f"{operation['summary']}. QoS {delivery['qos']}, {retained}.", ""]
        lines += field_table(payload_of(channel), schemas, known=envelope["properties"])
    return "\n".join(lines) + "\n"


def field_table(schema: Schema, schemas: Schemas, *, known: Schemas) -> list[str]:
    """Return the lines of a Markdown table of all fields but those that are known already."""
    lines = ["| Field | Type | Unit | Description |", "| --- | --- | --- | --- |"]
    payload = Payload(schema, schemas)
    for name, field in resolve(schema, schemas).get("properties", {}).items():
        if field == known.get(name):
            continue
        is_required = name in payload.required
        title = f"`{name}`" if is_required else f"`{name}?`"
        # An optional field is left out rather than sent as null.
        kinds = payload.words(name, with_null=is_required)
        description = resolve(field, schemas).get("description", "")
        cells = [title, kinds, payload.units[name] or "", description]
        lines.append(f"| {' | '.join(cell.replace('|', '\\|') for cell in cells)} |")
    return lines


def settings_of(model: type[Settings]) -> dict[str, str]:
    """Return the lines of .env.example for each variable."""
    lines = {}
    for name, field in model.model_fields.items():
        variable = variable_of(name, field).upper()
        comment = f"# {' '.join(field.description.split())}\n" if field.description else ""
        lines[variable] = f"{comment}{variable}='{default_of(variable, field)}'\n"
    return lines


def settings_example(parts: dict[str, Part]) -> str:
    """Return .env.example: the settings of the library, then those of each service."""
    blocks: dict[str, dict[str, str]] = {}
    listed: set[str] = set()
    for service, part in parts.items():
        for variable, lines in part["settings"].items():
            heading = service
            if service == LIBRARY:
                heading = SETTING_GROUPS.get(variable.partition("_")[0].lower(), "General")
            if variable not in listed:
                blocks.setdefault(heading, {})[variable] = lines
                listed.add(variable)
    texts = (f"# --- {key} ---\n{''.join(block.values())}" for key, block in blocks.items())
    return SETTINGS_INTRODUCTION + "".join(texts)


def default_of(variable: str, field: FieldInfo) -> str:
    """Return the default of a setting as its variable holds it. That of a secret is empty."""
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None or isinstance(default, SecretStr):
        return ""
    text = value = to_jsonable_python(default)
    if get_origin(field.annotation) is CommaSeparated:
        text = ", ".join(map(str, value))
    elif not isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    if set(text) & set("'\r\n"):
        message = f"{variable}: the default cannot stand in single quotes in .env: {text!r}"
        raise ValueError(message)
    return str(text)


def digest(*files: Path) -> str:
    """Return a hash of the names and the content of files."""
    content = (bytes(file.relative_to(ROOT)) + file.read_bytes() for file in sorted(files))
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def describe_all() -> dict[str, Part]:
    """Return the parts of the library and of all services. Unchanged ones come from a cache."""
    common = digest(ROOT / "uv.lock", *ROOT.glob("shared/**/*.py"), *ROOT.glob("scripts/*.py"))
    cached = json.loads(CACHE.read_text(encoding="utf-8")) if CACHE.exists() else {}
    parts = {}
    for config in sorted(ROOT.glob("services/*/config.py")):
        name, schemas = config.parent.name, config.with_name("schemas.py")
        key = common + digest(*config.parent.rglob("*.py"))
        if cached.get(name, {}).get("key") != key:
            topics = topics_of(load(schemas)) if schemas.exists() else []
            part = describe(name, topics, load(config).ServiceSettings)
            cached[name] = {"key": key, **part}
        parts[name] = cached[name]
    CACHE.parent.mkdir(exist_ok=True)
    atomic_write(CACHE, json.dumps(parts))
    return {LIBRARY: describe(LIBRARY, LIBRARY_TOPICS, Settings), **parts}


def documents() -> dict[str, str]:
    """Return the text of each document by its path."""
    parts = describe_all()
    contract = asyncapi(parts.values())
    return {
        "docs/topics.md": topics_page(contract),
        ASYNCAPI: json.dumps(contract, indent=2, ensure_ascii=False) + "\n",
        ".env.example": settings_example(parts),
    }


def find_breaking(revision: str, current: str) -> int:
    """Print the changes of payloads since a revision. Return 1 when one breaks consumers."""
    command = ["git", "show", "--end-of-options", f"{revision}:./{ASYNCAPI}"]
    shown = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if shown.returncode != 0:
        return 2
    changes = breaking_changes(json.loads(shown.stdout), json.loads(current))
    sys.stdout.writelines(f"- {change} (breaking)\n" for change in changes)
    if not changes:
        sys.stdout.write(f"No payload change since {revision} breaks a consumer.\n")
    return int(bool(changes))


def main() -> int:
    """Write the documents, check them, or compare the payloads with those of a revision."""
    codes = "0 done, 1 not up to date or breaking, 2 wrong usage or an unknown revision"
    parser = make_parser(__doc__, codes)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="fail if a file is not up to date")
    group.add_argument("--breaking", metavar="REV", help="list changes that break consumers")
    options = parser.parse_args()
    texts = documents()
    if options.breaking:
        return find_breaking(options.breaking, texts[ASYNCAPI])
    present = {name: (ROOT / name).read_text("utf-8") for name in texts if (ROOT / name).exists()}
    stale = [name for name, text in texts.items() if present.get(name) != text]
    if options.check and stale:
        sys.stderr.write(f"not up to date: {', '.join(stale)}. Run make docs.\n")
        return 1
    for name in stale:
        (ROOT / name).write_text(texts[name], encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
