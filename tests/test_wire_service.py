"""scripts/wire_service.py on launch files and Compose files as people write them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.baked import TEMPLATE

ENTRY = """\
    {
      "name": "Attach to new",
      "connect": { "port": 5679 }
    }
"""
LAUNCH = {
    "empty": '{"configurations": []}',
    "a space": '{\n  "configurations": [ ]\n}\n',
    "a line": '{\n  "configurations": [\n  ]\n}\n',
    "a comment": '{\n  "configurations": [\n    // none\n  ]\n}\n',
    "one line": '{"configurations":[{"name":"a"}]}',
    "one line and a comma": '{"configurations":[{"name":"a"},],}',
    "blanks at the end": '{\n  "configurations": [\n    { "name": "a" }  \n\n  ]\n}\n',
    "a comment on the entry": '{\n  "configurations": [\n    { "name": "a" } // mine\n  ]\n}\n',
    "a comma and a comment": (
        '{\n  "configurations": [\n    { "name": "a" } /* , */ , // mine, [x]\n    // end\n  ]\n}\n'
    ),
    "a comment before the end": (
        '{"configurations": [\n    { "name": "a" }\n    // { "name": "b" },\n  ]}'
    ),
    "tabs": '{\n\t"configurations": [\n\t\t{\n\t\t\t"name": "a",\n\t\t},\n\t],\n}\n',
    "strings": '{\n  "configurations": [\n    { "name": "q\\"[{", "u": "http://x/*" }\n  ]\n}\n',
    "a second list": '{"inputs":[{"configurations":[1]}],"configurations":[{"name":"a"}]}',
}
REFUSED = {
    "nothing": "",
    "no JSON": '{"configurations": [',
    "no list": '{"configurations": null}',
    "a list without names": '{"configurations": [1]}',
    "an escaped key": '{"configurati\\u006fns": [{"name": "a"}]}',
    "two lists": '{"configurations": [], "configurations": [{"name": "a"}]}',
}


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module."""
    monkeypatch.syspath_prepend(TEMPLATE / "scripts")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("wire_service")
    for name in ("wire_service", "compose_services"):
        del sys.modules[name]


@pytest.mark.parametrize("name", LAUNCH)
def test_an_entry_comes_and_goes_without_a_trace(wire: ModuleType, name: str) -> None:
    for text in (LAUNCH[name], LAUNCH[name].replace("\n", "\r\n")):
        added = wire.add_configuration(text, ENTRY)
        assert '"Attach to new"' in added
        rest = iter(added)
        assert all(character in rest for character in text)
        assert wire.add_configuration(added, ENTRY) == added
        twice = wire.add_configuration(added, ENTRY.replace("new", "other"))
        assert wire.remove_configuration(twice, "Attach to other") == added
        assert wire.remove_configuration(added, "Attach to new") == text


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_launch_file_that_cannot_be_edited_is_refused(wire: ModuleType, text: str) -> None:
    with pytest.raises(wire.CannotEditError):
        wire.add_configuration(text, ENTRY)


def test_a_comment_stays_with_its_entry(wire: ModuleType) -> None:
    added = wire.add_configuration(LAUNCH["a comment on the entry"], ENTRY)
    assert '{ "name": "a" }, // mine\n    {\n' in added


def test_an_entry_has_tabs_where_the_file_has_them(wire: ModuleType) -> None:
    added = wire.add_configuration(LAUNCH["tabs"], ENTRY)
    assert '\t\t{\n\t\t\t"name": "Attach to new",\n' in added


@pytest.mark.parametrize("compose", ["services:\n  a: &a\n    b: *a\n", "? [a, b]\n: c\n"])
def test_a_strange_compose_file_is_refused_in_words(
    wire: ModuleType, tmp_path: Path, compose: str
) -> None:
    (tmp_path / "docker-compose.yml").write_text(compose)
    wiring = tmp_path / "services/new/wiring"
    wiring.mkdir(parents=True)
    for file in ("compose.yml", "override.yml", "env.example", "launch.json", "test_service.py"):
        (wiring / file).write_text("  new:\n    image: x\n")
    with pytest.raises(wire.CannotEditError, match=r"docker-compose\.yml"):
        wire.plan_addition(tmp_path, "new", wiring.parent)
