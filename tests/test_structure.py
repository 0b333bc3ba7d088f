"""Static checks of the rendered files: names, bytes, syntax. No generated code runs here."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.baked import ROOT, SERVICE_TEMPLATE, TEMPLATE, BakedProject, source_files
from tests.combinations import CHOICES, COMBINATIONS, OPTIONS, combinations
from tests.conftest import Bake
from tests.tools import needs

USED = re.compile(r"""cookiecutter(?:\.|\.get\(['"]|\[['"])([A-Za-z_][A-Za-z0-9_]*)""")
# Set by the engine itself, or attributes of the context.
# `json` is the ending of cookiecutter.json, and the others after it are modules of cookiecutter.
ENGINE = {
    *("_output_dir", "_repo_dir", "_template", "_checkout", "get"),
    *("json", "exceptions", "main", "prompt", "utils"),
}
READ_BY_JINJA = ("{{", "hooks/", "cookiecutter.json")
CARRIED = "templates/service/"
EXPECTED_FILES = Path(__file__).parent / "expected_files.txt"


# --- the templates ------------------------------------------------------------------------------


def template_text(folder: Path) -> str:
    """All that Jinja reads below a template's root: prompts, hooks, file names and contents."""
    parts = []
    for path in source_files(folder):
        relative = path.relative_to(folder).as_posix()
        if "templates/service" in relative:
            continue
        if folder == ROOT and not relative.startswith(READ_BY_JINJA):
            continue
        parts += [relative, path.read_text(encoding="utf-8", errors="replace")]
    return "\n".join(parts)


@pytest.mark.parametrize("folder", [ROOT, SERVICE_TEMPLATE], ids=["repository", "service"])
def test_every_variable_is_defined_and_used(folder: Path) -> None:
    prompts = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
    settings = {"__prompts__", "_copy_without_render", "_jinja2_env_vars", "_extensions"}
    # Its version is for the reader of .cruft.json.
    defined = set(prompts) - settings - {"__template_version"}
    text = template_text(folder)
    used = set(USED.findall(text)) - ENGINE
    # The hooks get all answers at once.
    used |= defined & set(re.findall(r"""(?:ANSWERS\[|answers\[|get\()"(\w+)\"""", text))
    assert used - defined == set(), "used, defined nowhere"
    assert defined - used == set(), "defined, used nowhere"


@pytest.mark.parametrize("folder", [ROOT, SERVICE_TEMPLATE], ids=["repository", "service"])
def test_every_question_and_choice_has_words(folder: Path) -> None:
    prompts = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
    words = prompts["__prompts__"]
    asked = {name: value for name, value in prompts.items() if not name.startswith("_")}
    assert set(words) == set(asked)
    for name, value in asked.items():
        if isinstance(value, list):
            assert set(words[name]) == {"__prompt__", *value}


def test_combinations_hold_every_pair_of_answers() -> None:
    seen = set()
    for answers in combinations():
        seen |= set(itertools.combinations(sorted(answers.items()), 2))
    for first, second in itertools.combinations(sorted(CHOICES), 2):
        for pair in itertools.product(CHOICES[first], CHOICES[second]):
            assert ((first, pair[0]), (second, pair[1])) in seen


def test_the_carried_service_template_is_the_one_in_use() -> None:
    assert (TEMPLATE / "templates/service").resolve() == SERVICE_TEMPLATE


def test_no_file_names_the_folder_it_was_written_in() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        path = ROOT / name
        if path.is_symlink() or path == Path(__file__):
            continue
        assert f"{ROOT}/" not in path.read_text(encoding="utf-8", errors="replace"), name


# --- files --------------------------------------------------------------------------------------


def expected_files(answers: dict[str, Any]) -> list[str]:
    """The lines of expected_files.txt that these answers ask for.

    A line is `path`, or `path | answer=value [answer=value ...]`.
    """
    result = []
    for line in EXPECTED_FILES.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        path, _, condition = line.partition(" | ")
        wanted = dict(part.split("=") for part in condition.split())
        if all(str(answers[name]).lower() == value.lower() for name, value in wanted.items()):
            result.append(path)
    return sorted(result)


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_exactly_these_files(bake: Bake, answers: dict[str, Any]) -> None:
    present = [name for name in bake(**answers).files() if not name.startswith(CARRIED)]
    assert present == expected_files(answers)


def test_the_carried_service_template_is_complete(bake: Bake) -> None:
    project = bake()
    carried = {name.removeprefix(CARRIED) for name in project.files() if CARRIED in name}
    source = {
        path.relative_to(SERVICE_TEMPLATE).as_posix() for path in source_files(SERVICE_TEMPLATE)
    }
    assert carried == source
    for name in source:
        here, there = project.file(CARRIED + name), SERVICE_TEMPLATE / name
        assert here.read_bytes() == there.read_bytes(), name
        assert not here.is_symlink()


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_file_names_work_on_every_system(bake: Bake, answers: dict[str, Any]) -> None:
    names = bake(**answers).files()
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        if not name.startswith(CARRIED):
            assert re.fullmatch(r"[A-Za-z0-9._/@-]+", name), name


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_no_file_is_empty_or_a_stub(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    for name in project.text_files():
        text = project.read(name).strip()
        assert text, f"{name} is empty"
        assert not re.search(r"\b(TODO|FIXME|XXX|TBD|lorem ipsum)\b", text), name
        if name.endswith(".py") and not name.startswith("tests/"):
            assert "NotImplementedError" not in text, name


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_scripts_are_executable_and_nothing_else(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    for name in project.files():
        starts_itself = project.file(name).read_bytes().startswith(b"#!")
        assert os.access(project.file(name), os.X_OK) == starts_itself, name


# --- bytes --------------------------------------------------------------------------------------


def rendered_text_files(project: BakedProject) -> list[str]:
    return [name for name in project.text_files() if not name.startswith(CARRIED)]


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_no_jinja_is_left(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    ours = r"\{\{-?\s*cookiecutter|cookiecutter\.[a-z_]+\s*[|}]"
    for name in rendered_text_files(project):
        # Scripts and workflows are copied: `{%` in them is shell, Python or GitHub's own.
        copied = name.startswith(("scripts/", ".github/"))
        left = re.search(ours if copied else rf"\{{[%#]|[%#]\}}|{ours}", project.read(name))
        assert not left, f"{name}: {left}"


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_lines_and_ends_of_files(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    problems = []
    for name in project.text_files():
        text = project.read(name)
        problems += [f"{name}: CR"] * ("\r" in text)
        problems += [f"{name}: no newline at the end"] * (not text.endswith("\n"))
        problems += [f"{name}: blank line at the end"] * text.endswith("\n\n")
        problems += [f"{name}: blank line at the start"] * text.startswith("\n")
        if name.endswith(".md"):
            # Python in a document is formatted as Python.
            text = re.sub(r"^```.*?^```", "code", text, flags=re.DOTALL | re.MULTILINE)
        blank_lines = 2 if name.endswith(".py") or CARRIED in name else 1
        problems += [f"{name}: doubled blank line"] * ("\n" * (blank_lines + 2) in text)
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip():
                problems.append(f"{name}:{number}: trailing space")
            if "\t" in line and name != "Makefile" and not line.startswith("\t"):
                problems.append(f"{name}:{number}: tab")
    assert problems == []


TRACES = {
    "include_home_assistant": r"home[ _-]?assistant|\bhass\b|\bha_(?:url|token|timeout)|\.ha\b",
    "include_influxdb": r"influx|\bflux\b",
}


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_an_option_that_is_off_leaves_no_trace(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    for option, words in TRACES.items():
        found = [
            f"{name}: {match[0]}"
            for name in project.text_files()
            if name != ".cruft.json"  # It holds the answers, the negative ones too.
            for match in re.finditer(words, f"{name}\n{project.read(name)}", re.IGNORECASE)
        ]
        if answers[option]:
            assert found, f"{option} is on and nowhere to be seen"
        else:
            assert found == []


def test_same_answers_give_the_same_bytes(cookies: Any, template: Path) -> None:
    contents = []
    for _ in range(2):
        project = BakedProject(cookies.bake(template=str(template)).project_path)
        contents.append(
            {
                name: project.file(name).read_bytes()
                for name in project.files()
                # Keys and passwords are random on purpose, and .sops.yaml names the public key.
                if not name.startswith((".sops/", ".sops.yaml", ".env")) or name == ".env.example"
            }
        )
    assert contents[0] == contents[1]


# --- syntax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_every_file_parses(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    for name in rendered_text_files(project):
        project.load(name)


@needs("git")
def test_ignored_files_are_the_private_ones(bake: Bake) -> None:
    project = bake()
    private = [".env", ".sops/age-key.txt", "docker-compose.override.yml", ".data/x", ".venv/x"]
    public = [".env.example", ".env.enc", ".sops.yaml", "uv.lock"]
    for name in private:
        assert project.run("git", "check-ignore", "-q", name, check=False).returncode == 0, name
    for name in public:
        assert project.run("git", "check-ignore", "-q", name, check=False).returncode == 1, name


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", OPTIONS)
def test_images_are_locked_and_run_as_an_own_user(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    dockerfile = project.read("services/example-service/Dockerfile")
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)[-1] == "10001:10001"
    # Docker's own start period is none: a service that is slow to start would be unhealthy.
    assert "--start-period=120s" in dockerfile
    assert " --require-hashes " in dockerfile
    assert " --require-hashes " in project.read("base/Dockerfile")


@pytest.mark.parametrize("answers", OPTIONS)
def test_actions_are_pinned_and_may_do_little(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    names = project.files(".github/workflows/*.yml")
    assert names
    for name in names:
        actions = re.findall(r"uses: *(.+)", project.read(name))
        for action in actions:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        workflow = project.yaml(name)
        assert workflow["permissions"] in ({}, {"contents": "read"})
        for job in workflow["jobs"].values():
            assert "timeout-minutes" in job


# --- documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", OPTIONS)
def test_links_in_documents_lead_somewhere(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    dead = []
    for name in project.files("*.md"):
        if name.startswith(CARRIED):
            continue
        text = re.sub(r"```.*?```", "", project.read(name), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (project.file(name).parent / path) if path else project.file(name)
            if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
                dead.append(f"{name}: {target}")
    assert dead == []


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
