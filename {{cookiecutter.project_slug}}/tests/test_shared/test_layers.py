"""Imports in `shared/` point in one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "shared").rglob("*.py")
}
# Modules of the template. Leave yours out: they may import these, but not the other way round.
LIBRARY = {
    "api_client",
    "commands",
    "config",
    "cycles",
    "debugger",
    "diagnose",
    "errors",
    "files",
    "health",
{% if cookiecutter.include_home_assistant %}
    "home_assistant",
{% endif %}
{% if cookiecutter.include_influxdb %}
    "influx",
{% endif %}
    "log",
    "mqtt",
    "redaction",
    "retry",
    "schemas",
    "service",
    "service_status",
    "state",
    "timestamps",
    "tracing",
}


def imports(path: Path) -> set[str]:
    """Return the modules of `shared/` that a file imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & FILES.keys()


GRAPH = {name: imports(path) for name, path in FILES.items()}


def test_imports_have_no_cycle() -> None:
    TopologicalSorter(GRAPH).prepare()


def test_the_library_does_not_import_your_modules() -> None:
    own = {name for name in FILES if name != "shared" and name.split(".")[1] not in LIBRARY}
    assert {name: found for name in GRAPH.keys() - own if (found := GRAPH[name] & own)} == {}
