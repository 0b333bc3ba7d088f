"""Writes docs/topics.md from the schemas; with --check, fails when the file is stale.

    scripts/uv run --frozen python scripts/topics.py [--check]

The library's topics come first (shared/schemas.py, LIBRARY_TOPICS), then each service that has
a list TOPICS in its schemas.py, sorted by name. A section is a blank line, the heading `## NAME`, a
blank line and the table, one row a topic in the order of the list:

    | Topic | Payload | QoS | Retained | Description |
    | --- | --- | --- | --- | --- |
    | `{prefix}/NAME/updated` | `timestamp?`, `value` | 1 | no | What it tells |

The payload lists the fields of the model in their order, `?` marks one that may be missing. In a
service's rows `{service}` is replaced by its name.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shared.schemas import LIBRARY_TOPICS, Topic  # noqa: E402

DOCUMENT = ROOT / "docs" / "topics.md"
INTRODUCTION = """\
# Topics

Every topic of this repository and what is sent on it, as JSON. Made from the schemas by
`scripts/topics.py`; change them, then run `make docs`.

`{prefix}` stands for the setting `TOPIC_PREFIX`, `{service}` for the name of a service. `?` marks a
field that may be missing.
"""


def render(services: dict[str, list[Topic]]) -> str:
    sections = [_section("All services", LIBRARY_TOPICS)]
    sections += [
        _section(name, topics, service=name) for name, topics in sorted(services.items()) if topics
    ]
    return INTRODUCTION + "".join(sections)


def _section(title: str, topics: list[Topic], *, service: str = "{service}") -> str:
    rows = [
        "| Topic | Payload | QoS | Retained | Description |",
        "| --- | --- | --- | --- | --- |",
        *(_row(topic, service) for topic in topics),
    ]
    return "\n".join(["", f"## {title}", "", *rows, ""])


def _row(topic: Topic, service: str) -> str:
    fields = ", ".join(
        f"`{name}`" if field.is_required() else f"`{name}?`"
        for name, field in topic.payload.model_fields.items()
    )
    cells = [
        f"`{topic.pattern.replace('{service}', service)}`",
        fields,
        str(topic.qos),
        "yes" if topic.retain else "no",
        topic.description.replace("|", "\\|"),
    ]
    return f"| {' | '.join(cells)} |"


def load_services(folder: Path) -> dict[str, list[Topic]]:
    """The TOPICS of every service below `folder`, by the name of the service."""
    return {
        path.parent.name: getattr(_load(path), "TOPICS", [])
        for path in sorted(folder.glob("*/schemas.py"))
    }


def _load(path: Path) -> ModuleType:
    name = f"_schemas_of_{path.parent.name.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        message = f"{path} is no Python module"
        raise ImportError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/topics.md from the schemas.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when stale")
    check = parser.parse_args(arguments).check
    wanted = render(load_services(ROOT / "services"))
    if check:
        current = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
        if current != wanted:
            sys.stderr.write("docs/topics.md is stale: run make docs\n")
            return 1
        return 0
    DOCUMENT.write_text(wanted, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
