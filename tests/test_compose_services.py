"""scripts/compose_services.py on compose files as people write them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.baked import TEMPLATE

SCRIPT = TEMPLATE / "scripts/compose_services.py"
ANCHORS = "x-build: &build\n  context: .\nx-service: &service\n  restart: always\n"
BLOCK = """\
  new:
    # What it is
    <<: *service
    build:
      <<: *build
      dockerfile: services/new/Dockerfile
    volumes:
      - new_data:/app/data
"""
MEANING = {
    "restart": "always",
    "build": {"context": ".", "dockerfile": "services/new/Dockerfile"},
    "volumes": ["new_data:/app/data"],
}

EDITABLE = {
    "as generated": "services:\n  a:\n    image: x\n\nvolumes:\n  v:\n\nnetworks:\n  n:\n",
    "no blank lines": "services:\n  a:\n    image: x\n  b:\n    image: y\nvolumes:\n  v:\n",
    "volumes missing": "services:\n  a:\n    image: x\n",
    "volumes first": "volumes:\n  v:\nservices:\n  a:\n    image: x\n",
    "volumes last of all": "services:\n  a:\n    image: x\nnetworks:\n  n:\n\nvolumes:\n  v:\n",
    "four spaces": "services:\n    a:\n        image: x\n\nvolumes:\n    v:\n",
    "lists that are not indented": (
        'services:\n  a:\n    ports:\n    - "80:80"\n    - "81:81"\n\n\n\nvolumes:\n  v:\n\n'
    ),
    "comments everywhere": (
        "# top\nservices: # all of them\n  # the first\n  a: # one\n    image: x # tagged\n"
        "    # ports:\n    #   - 80\n  # indented after the last\n\n  # b:\n  #   image: y\n\n"
        "# before volumes\nvolumes:\n  v: # kept\n  # w:\n# end\n"
    ),
    "block scalars": (
        "services:\n  a:\n    command: |\n      echo\n      # no comment\n\n# a comment\n"
        "volumes:\n  v:\n"
    ),
    "folded scalar at the end": "services:\n  a:\n    command: >-\n      echo\n      more\n",
    "quoted over lines": (
        "services:\n  a:\n    labels:\n      l: 'one\n        two'\nvolumes:\n  v:\n"
    ),
    "quoted keys": '"services":\n  "a":\n    image: "x"\n\'volumes\':\n  v:\n',
    "anchors and profiles": (
        "services: &all\n  a: &a\n    image: x\n    profiles: [dev]\n  b:\n    <<: *a\n  c: *a\n\n"
        "volumes:\n  v:\n    external: true\n\nnetworks:\n  n:\n"
    ),
    "long forms": (
        "services:\n  a:\n    image: x\n    ports:\n      - {target: 80, published: 8080}\n"
        "    volumes:\n      - type: volume\n        source: v\n        target: /v\n"
        "volumes:\n  v: {driver: local, driver_opts: {type: nfs}}\n"
        "configs:\n  c:\n    content: |\n      text\n"
    ),
    "tags of Compose": (
        "services:\n  a:\n    ports: !reset []\n    environment: !override\n      A: b\n"
    ),
    "markers of a document": "---\nservices:\n  a:\n    image: x\n\nvolumes:\n  v:\n...\n",
    "volumes empty": "services:\n  a:\n    image: x\nvolumes: {}\n",
    "volumes in flow style": "services:\n  a:\n    image: x\nvolumes: {v: {}, w: {}}  # two\n",
    "flow style with spaces": "services:\n  a:\n    image: x\nvolumes: { v: {}, w: {} }\n",
    "flow style with a last comma": "services:\n  a:\n    image: x\nvolumes: {v: {}, w: {}, }\n",
    "empty flow style with a space": "services:\n  a:\n    image: x\nvolumes: { }\n",
    "services empty": "services: {}\nvolumes: {}\n",
    "letters of all kinds": "services:\n  a:\n    image: x # ünï 漢 🎈\nvolumes:\n  v:\n",
}

REFUSED = {
    "services in flow style": "services: {a: {image: x}}\n",
    "services behind an alias": "x-s: &s\n  a: {image: x}\nservices: *s\n",
    "a list": "services:\n  - a\n",
    "two documents": "services:\n  a:\n    image: x\n---\nservices: {}\n",
    "no YAML": "services:\n  a: [\n",
    "a section twice": "services:\n  a:\n    image: x\nservices:\n  b:\n    image: y\n",
    "line ends mixed": "services:\n  a:\r\n    image: x\n",
    "blank lines that count": "services:\n  a:\n    command: |+\n      echo\n\n\nvolumes:\n  v:\n",
    "flow style over lines": "services:\n  a:\n    image: x\nvolumes: {\n  v: }\n",
    "volumes missing before the end of a document": "services:\n  a:\n    image: x\n...\n",
    "a list for a key": "services:\n  a:\n    image: x\n[a, b]: c\n",
    "the volume is there": "services:\n  a:\n    image: x\nvolumes:\n  new_data:\n",
    "flow style throughout": "{services: {}}\n",
}


@pytest.fixture(params=["libyaml", "pure Python"])
def compose(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The script as a module, with both parsers that PyYAML has."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pure Python":
            patch.delattr(yaml, "CSafeLoader")
        elif not yaml.__with_libyaml__:
            pytest.skip("needs PyYAML with libyaml")
        patch.setattr(sys, "dont_write_bytecode", True)
        spec = importlib.util.spec_from_file_location("compose_services", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def variants(name: str) -> Iterator[str]:
    start = "---\n" if EDITABLE[name].startswith("---") else ""
    text = start + ANCHORS + EDITABLE[name].removeprefix(start)
    yield text
    yield text.replace("\n", "\r\n")
    yield text.removesuffix("\n")


@pytest.mark.parametrize("name", EDITABLE)
def test_the_service_and_its_volume_are_added_and_nothing_else(
    compose: ModuleType, name: str
) -> None:
    for text in variants(name):
        before = compose.load(text)
        result = compose.add(text, "new", BLOCK, "new_data")
        after = compose.load(result)
        assert after["services"].pop("new") == MEANING
        assert not after["volumes"].pop("new_data")
        assert after["services"] == before["services"]
        assert after["volumes"] == (before.get("volumes") or {})
        sections = {"services", "volumes"}
        assert {k: v for k, v in after.items() if k not in sections} == {
            k: v for k, v in before.items() if k not in sections
        }


@pytest.mark.parametrize("name", sorted(EDITABLE.keys() - {"services empty"}))
def test_all_other_bytes_stay(compose: ModuleType, name: str) -> None:
    """Taking the added characters away, wherever they are, leaves the old text."""
    for text in variants(name):
        rest = iter(compose.add(text, "new", BLOCK, "new_data"))
        assert all(character in rest for character in text)


@pytest.mark.parametrize("name", EDITABLE)
def test_what_was_added_can_be_removed_without_a_trace(compose: ModuleType, name: str) -> None:
    for text in variants(name):
        once = compose.add(text, "new", BLOCK, "new_data")
        twice = compose.add(once, "other", BLOCK.replace("new", "other"), "other_data")
        assert compose.remove(twice, "other", "other_data") == once
        assert compose.remove(once, "new", "new_data") == text


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proved_is_refused(compose: ModuleType, name: str) -> None:
    with pytest.raises(compose.CannotEditError):
        compose.add(ANCHORS + REFUSED[name], "new", BLOCK, "new_data")


def test_a_file_without_the_anchors_is_refused(compose: ModuleType) -> None:
    with pytest.raises(compose.CannotEditError, match="x-"):
        compose.add("services:\n  a:\n    image: x\n", "new", BLOCK, "new_data")


OVERRIDE = """\
  new:
    working_dir: /live
    volumes:
      - type: bind
        source: ./services/new
        target: /live
    develop:
      watch:
        - path: services/new
          ignore: ["**/__pycache__"]
"""
OVERRIDES = {
    "empty": "",
    "a blank line": "\n",
    "comments only": "# mine\n\n# still nothing\n",
    "networks only": "networks:\n  n:\n",
    "volumes only": "volumes:\n  v:\n",
    "a name only": "name: mine\n",
    "four spaces": "services:\n    a:\n        image: x\n",
    "a list that is not indented": "services:\n  a:\n    ports:\n    - '80:80'\n",
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_is_as_before_when_its_block_has_gone(compose: ModuleType, name: str) -> None:
    text = OVERRIDES[name]
    for original in (text, text.replace("\n", "\r\n"), text.removesuffix("\n")):
        added = compose.add(original, "new", OVERRIDE)
        new = yaml.safe_load(f"services:\n{OVERRIDE}")["services"]["new"]
        assert compose.load(added)["services"]["new"] == new
        assert compose.remove(added, "new") == original


def test_the_indentation_is_that_of_the_file(compose: ModuleType) -> None:
    text = f"{ANCHORS}services:\n  a:\n    image: x\n".replace("  ", "    ")
    added = compose.add(text, "new", BLOCK, "new_data")
    widths = {len(line) - len(line.lstrip(" ")) for line in added.splitlines()}
    assert widths == {0, 4, 8, 12}
    assert "\nvolumes:\n    new_data:\n" in added


def test_adding_again_changes_nothing(compose: ModuleType) -> None:
    text = ANCHORS + EDITABLE["as generated"]
    once = compose.add(text, "new", BLOCK, "new_data")
    assert compose.add(once, "new", BLOCK, "new_data") == once


def test_a_service_that_is_there_gets_the_volume_that_it_mounts(compose: ModuleType) -> None:
    """A block that was pasted without its volume is refused by Compose."""
    mounting = "services:\n  new:\n    image: x\n    volumes: ['new_data:/app/data']\n"
    added = compose.add(mounting, "new", BLOCK, "new_data")
    assert added == mounting + "\nvolumes:\n  new_data:\n"
    other = "services:\n  new:\n    image: x\n    volumes: ['mine:/app/data']\nvolumes:\n  mine:\n"
    assert compose.add(other, "new", BLOCK, "new_data") == other


def test_an_edit_that_does_not_fit_is_not_said_to_be_the_files_fault(compose: ModuleType) -> None:
    text = "services:\n  new: &new\n    image: x\n  a: *new\n"
    with pytest.raises(compose.CannotEditError, match="the edit does not fit"):
        compose.remove(text, "new")


def test_removal_is_in_the_middle_as_well(compose: ModuleType) -> None:
    text = ANCHORS + "services:\n  a:\n    image: x\n\n  new:\n    image: y\n\n  c:\n    image: z\n"
    expected = ANCHORS + "services:\n  a:\n    image: x\n\n  c:\n    image: z\n"
    assert compose.remove(text, "new") == expected


@pytest.mark.parametrize(
    "needs",
    [
        "depends_on: [new]",
        "depends_on: {new: {condition: service_healthy}}",
        'network_mode: "service:new"',
        "links: ['new:alias']",
        "volumes_from: ['new:ro']",
        "extends: {service: new}",
        "build: {context: ., additional_contexts: {base: 'service:new'}}",
        "build: {context: ., additional_contexts: ['base=service:new']}",
    ],
)
def test_a_service_that_another_one_needs_stays(compose: ModuleType, needs: str) -> None:
    text = f"services:\n  new:\n    image: y\n  a:\n    image: x\n    {needs}\n"
    with pytest.raises(compose.CannotEditError, match="a needs new"):
        compose.remove(text, "new")


def test_a_volume_that_another_service_mounts_stays(compose: ModuleType) -> None:
    text = (
        "services:\n  new:\n    image: y\n  a:\n    image: x\n    volumes: ['new_data:/other:ro']\n"
        "volumes:\n  new_data:\n"
    )
    after = compose.load(compose.remove(text, "new", "new_data"))
    assert (set(after["services"]), set(after["volumes"])) == ({"a"}, {"new_data"})


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_is_replaced_whole_and_keeps_its_mode(
    compose: ModuleType, tmp_path: Path, mode: int
) -> None:
    file, link = tmp_path / "docker-compose.yml", tmp_path / "link.yml"
    file.write_text("old")
    file.chmod(mode)
    link.symlink_to(file)
    compose.replace_file(link, b"new")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", mode)
    assert link.is_symlink()
    assert set(tmp_path.iterdir()) == {file, link}
