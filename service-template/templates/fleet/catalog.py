"""Topics and commands of the services, from docs/asyncapi.json."""

import json
import re
from pathlib import Path
from typing import Any

from schemas import CommandInfo

import shared
from shared.schemas import Command

# Beside shared/, in a container as on the host.
FILE = Path(shared.__file__).parents[1] / "docs" / "asyncapi.json"


class Catalog:
    """Reader of the document. It reads again after a change. A missing file counts as empty."""

    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        self._read_at = 0.0
        self._document: dict[str, Any] = {}

    def topics(self, service: str, topic_prefix: str) -> dict[tuple[str, str], str]:
        """Return the description of each topic, by direction and topic filter."""
        result: dict[tuple[str, str], str] = {}
        for operation, channel in self._operations(service):
            if self._command(channel) is None:
                address = channel["address"].replace("{prefix}", topic_prefix)
                pattern = re.sub(r"{\w+}", "+", address.replace("{service}", service))
                result.setdefault((operation["action"], pattern), operation["summary"])
        return result

    def commands(self, service: str) -> list[CommandInfo]:
        """Return the commands of a service with the schemas of their arguments."""
        result = []
        for operation, channel in self._operations(service):
            schema = self._command(channel)
            if schema is None:
                continue
            properties = {
                field: self._resolve(one)
                for field, one in schema["properties"].items()
                if field not in Command.model_fields
            }
            required = [field for field in schema.get("required", []) if field in properties]
            arguments = {"type": "object", "properties": properties, "required": required}
            name = schema["properties"]["command"]["const"]
            description = operation["summary"].partition(": ")[2]
            result.append(CommandInfo(name=name, description=description, arguments=arguments))
        return result

    def _command(self, channel: dict[str, Any]) -> dict[str, Any] | None:
        """Return the schema of a command, None for another message."""
        schema = self._resolve(next(iter(channel["messages"].values()))["payload"])
        is_command = "const" in schema.get("properties", {}).get("command", {})
        return schema if is_command else None

    def _operations(self, service: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        document = self._load()
        return [
            (operation, document["channels"][key])
            for key, operation in document.get("operations", {}).items()
            if key.startswith((f"{service}.", "all_services."))
        ]

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        # One level: a form has no nested fields.
        name = schema.get("$ref", "").rpartition("/")[2]
        found: dict[str, Any] = self._load()["components"]["schemas"].get(name, schema)
        return found

    def _load(self) -> dict[str, Any]:
        try:
            changed_at = self._file.stat().st_mtime
        except FileNotFoundError:
            return {}
        if changed_at != self._read_at:
            self._document = json.loads(self._file.read_bytes())
            self._read_at = changed_at
        return self._document
