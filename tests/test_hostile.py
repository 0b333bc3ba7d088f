"""Hostile and merely human answers: rejected before a file is written, or data in every file."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.baked import ROOT, TEMPLATE, BakedProject, run, source_files
from tests.conftest import Bake, Cookiecutter
from tests.rendering import load_hook, render, typed_context
from tests.tools import slow_after_first

TRAPS = [
    # YAML, TOML, JSON
    *(
        "no",
        "~",
        "null",
        "1e3",
        "0x1F",
        "1_000",
        "2026-11-23",
        "12:30",
        "- x",
        "# y",
        "a: b",
        "a #b",
    ),
    *("{a: b}", "[x]", "&a", "*a", "!!python/object/apply:os.getcwd []", "%YAML 1.2", "---", "..."),
    *('"', '""', '"""', "'", "'''", "\\", "\\\\", '\\"', "\\n", "\\u0041", "\\N{BULLET}", "\\x00"),
    # templates, shells, formats
    *(
        "{{ 7 * 7 }}",
        "{{",
        "}}",
        "{% raw %}",
        "{% endraw %}",
        "{%",
        "{#",
        "#}",
        "{{ cookiecutter }}",
    ),
    *(
        "$HOME",
        "${HOME}",
        "$(id)",
        "`id`",
        "; id",
        "&& id",
        "| id",
        "> x",
        "!!",
        "%s",
        "%(x)s",
        "{0}",
    ),
    # Markdown, HTML
    *("```", "~~~", "<!--", "<script>", "</p>", "# h", "> q", "[a]: b", "===", "| a |", "1. x"),
    # letters
    *(
        "ä",
        "e\u0301",
        "\u202eabc",
        "\u200f",
        "\u200b",
        "\ufeff",
        "\U0001f331",
        "名前",
        "\u0130",
        "ß",
    ),
    # names that mean something elsewhere
    *("class", "None", "True", "con", "COM1", "aux.txt", "__init__", "mqtt", "pydantic"),
    *(
        "\n",
        "\t",
        "\r\n",
        "\0",
        "\x1b[31m",
        "\x85",
        "\u2028",
        "\ud800",
        "\uffff",
        " ",
        "\u00a0",
        "",
    ),
]
FREE_TEXT = ["project_name", "description", "author_name"]

texts = st.one_of(
    st.sampled_from(TRAPS),
    st.text(max_size=30),
    st.lists(st.one_of(st.sampled_from(TRAPS), st.text(max_size=5)), max_size=5).map("".join),
    st.text(alphabet="ab \"'\\{}%#$`", max_size=12),
    st.integers(190, 300).map(lambda size: "x" * size),
)
names = st.one_of(
    st.sampled_from(TRAPS),
    st.from_regex(r"[a-z][a-z0-9-]{0,60}", fullmatch=True),
    st.from_regex(r"[a-zA-Z0-9_/+#$ .-]{0,20}", fullmatch=True),
    st.text(max_size=10),
)
quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def refused(context: dict[str, dict[str, Any]]) -> bool:
    """Whether the first hook stops the generation."""
    hook = load_hook(ROOT, "pre_gen_project", context)
    with contextlib.redirect_stderr(io.StringIO()):
        code = hook.main()
    assert code in {0, 1}
    return bool(code)


@pytest.fixture(scope="module")
def answers_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository template less the files that hold no answer, which makes it quick."""
    root = tmp_path_factory.mktemp("template")
    shutil.copy(ROOT / "cookiecutter.json", root)
    shutil.copytree(ROOT / "templates", root / "templates")
    for source in source_files(TEMPLATE):
        relative = source.relative_to(TEMPLATE)
        if relative.parts[0] == "templates" or source.name == "uv.lock" or ".png" in source.name:
            continue
        if re.search(
            r"cookiecutter\.|\{% include", f"{relative} {source.read_text(encoding='utf-8')}"
        ):
            target = root / TEMPLATE.name / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return root


@contextlib.contextmanager
def rendered(
    template: Path, context: dict[str, dict[str, Any]]
) -> Iterator[tuple[BakedProject, dict[str, Any]]]:
    """The rendered files, and what each parsed to."""
    with tempfile.TemporaryDirectory() as folder:
        project = BakedProject(render(template, Path(folder, "out"), context))
        yield project, {name: project.load(name) for name in project.files()}


def scalars(value: Any) -> Iterator[str]:
    """All strings in a parsed file."""
    if isinstance(value, ast.AST):
        for node in ast.walk(value):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from scalars(key)
            yield from scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from scalars(item)
    elif isinstance(value, str):
        yield value


def outline(markdown: str) -> list[str]:
    """Block structure of a document: what a value in it must not change."""
    return [token.type for token in MarkdownIt("commonmark").parse(markdown)]


@pytest.fixture(scope="module")
def outlines(answers_only: Path) -> dict[str, list[str]]:
    """The outline of each document with the default answers."""
    with rendered(answers_only, typed_context(ROOT, Path("/x"), {})) as (plain, _):
        return {name: outline(plain.read(name)) for name in plain.files("*.md")}


@quick
@given(project_name=texts, description=texts, author_name=texts)
@example(project_name='O\'Brien "x" \\', description='a"b\\c\nd\te', author_name="{{ x }} {% y %}")
@example(project_name="```", description="<!--", author_name="- x")
@example(project_name="# y", description="[a]: b", author_name="\ufeff")
def test_free_text_is_refused_or_comes_back_equal(
    answers_only: Path,
    outlines: dict[str, list[str]],
    project_name: str,
    description: str,
    author_name: str,
) -> None:
    answers = {
        "project_name": project_name,
        "project_slug": "valid",
        "description": description,
        "author_name": author_name,
    }
    context = typed_context(ROOT, Path("/somewhere"), answers)
    if refused(context):
        return
    with rendered(answers_only, context) as (project, parsed):
        for answer in FREE_TEXT:
            for name in files_with(f"cookiecutter.__{answer}_quoted"):
                if name in parsed and not isinstance(parsed[name], str):
                    assert answers[answer] in set(scalars(parsed[name])), (answer, name)
        assert project.toml("pyproject.toml")["project"]["description"] == description
        for name in project.files("*.md"):
            if name in outlines:
                assert outline(project.read(name)) == outlines[name], name


def files_with(variable: str) -> list[str]:
    """Files of the repository template that use a variable."""
    return [
        path.relative_to(TEMPLATE).as_posix()
        for path in source_files(TEMPLATE)
        if "templates" not in path.relative_to(TEMPLATE).parts
        and variable in path.read_text(encoding="utf-8", errors="replace")
    ]


@quick
@given(project_slug=names, topic_prefix=names, first_service=names)
@example(project_slug="no", topic_prefix="no", first_service="no")
@example(project_slug="true", topic_prefix="1e3", first_service="null")
@example(project_slug="e1", topic_prefix="0x1F", first_service="n")
@example(project_slug="class", topic_prefix="2026-11-23", first_service="import")
def test_names_are_refused_or_the_same_string_everywhere(
    answers_only: Path, project_slug: str, topic_prefix: str, first_service: str
) -> None:
    answers = {
        "project_slug": project_slug,
        "topic_prefix": topic_prefix,
        "first_service": first_service,
    }
    context = typed_context(ROOT, Path("/somewhere"), answers)
    if refused(context):
        return
    with rendered(answers_only, context) as (project, parsed):
        assert project.path.name == project_slug
        assert parsed["pyproject.toml"]["project"]["name"] == "services"
        strings = set(scalars([content for content in parsed.values() if content is not None]))
        assert topic_prefix in strings
        for content in parsed.values():
            if isinstance(content, list):
                assert_keys_are_strings(content)


def assert_keys_are_strings(value: Any) -> None:
    """YAML made no `no` a False and no `1e3` a number (`on:` of a workflow is known)."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, str) or key is True, key
            assert_keys_are_strings(item)
    elif isinstance(value, list):
        for item in value:
            assert_keys_are_strings(item)


@quick
@given(
    text=st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), min_size=1, max_size=60)
)
def test_what_people_write_is_not_refused(text: str) -> None:
    if not text.strip():
        return
    answers = {"project_name": text, "project_slug": "valid", "description": text}
    assert not refused(typed_context(ROOT, Path("/somewhere"), answers))


@pytest.mark.parametrize("trap", slow_after_first(TRAPS))
def test_every_trap_in_every_answer_at_once(answers_only: Path, trap: str) -> None:
    answers = dict.fromkeys([*FREE_TEXT, "project_slug", "topic_prefix", "first_service"], trap)
    context = typed_context(ROOT, Path("/somewhere"), answers)
    if refused(context):
        answers |= {"project_slug": "valid", "topic_prefix": "valid", "first_service": "valid"}
        context = typed_context(ROOT, Path("/somewhere"), answers)
        if refused(context):
            return
    with rendered(answers_only, context) as (project, _):
        assert project.toml("pyproject.toml")["project"]["description"] == trap


# --- whole runs: nothing is executed ------------------------------------------------------------

INJECTIONS = [
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    '"""\nopen("canary", "w")\n"""',
    '"\nopen("canary", "w") #',
    "'''\nimport os; os.system('touch canary')\n'''",
    "\n\ttouch canary\n",
    "$(shell touch canary)",
    "!!python/object/apply:os.system ['touch canary']",
    '"); open("canary", "w"); ("',
    '\\"); open("canary", "w"); (\\"',
]


@pytest.mark.real
@pytest.mark.parametrize("injection", slow_after_first(INJECTIONS))
def test_no_answer_is_executed(cookiecutter: Cookiecutter, tmp_path: Path, injection: str) -> None:
    output = tmp_path / "out"
    answers: dict[str, Any] = dict.fromkeys(FREE_TEXT, injection)
    done = cookiecutter(output=output, project_slug="valid", topic_prefix="valid", **answers)
    assert done.returncode == 0, done.stderr
    project = BakedProject(output / "valid")
    for name in project.text_files():
        if not name.startswith("templates/service/"):
            project.load(name)
    run("make", "help", cwd=project.path)
    assert project.toml("pyproject.toml")["project"]["description"] == injection
    assert list(tmp_path.rglob("canary")) == []


@pytest.mark.parametrize("injection", slow_after_first(INJECTIONS))
def test_no_refused_answer_is_executed(
    cookiecutter: Cookiecutter, tmp_path: Path, injection: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    answers: dict[str, Any] = dict.fromkeys(["project_slug", "topic_prefix"], injection)
    done = cookiecutter(output=output, first_service=injection, **answers)
    assert done.returncode != 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


JINJA = "{{ cycler.__init__.__globals__.os.system('touch canary') }}{% raw %}"


@pytest.mark.real
def test_jinja_typed_at_a_prompt_is_text(tmp_path: Path) -> None:
    typed = [JINJA, "valid", JINJA, JINJA, "valid", *[""] * 6]
    done = run(
        *(sys.executable, "-m", "cookiecutter", "--output-dir", tmp_path, ROOT),
        cwd=tmp_path,
        stdin="\n".join(typed) + "\n",
    )
    assert done.returncode == 0
    project = BakedProject(tmp_path / "valid")
    assert project.toml("pyproject.toml")["project"]["description"] == JINJA
    included = project.yaml("docker-compose.yml")["include"]
    assert included == ["services/example-service/compose.yml"]
    assert list(tmp_path.rglob("canary")) == []


@pytest.mark.real
@pytest.mark.parametrize(
    "description",
    [
        *(
            "{% endraw %}{{ 7 * 7 }}{% raw %}",
            "{{ x",
            "{# x #}",
            '{{"{"}}',
            "$(id) `id` \\",
            "\"'# : x",
        ),
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    ],
)
def test_the_description_of_a_new_service_is_text(bake_copy: Bake, description: str) -> None:
    project = bake_copy()
    project.run("scripts/new-service.sh", "probe", "--description", description)
    assert description in project.read("services/probe/compose.yml")
    assert "services/probe/compose.yml" in project.yaml("docker-compose.yml")["include"]
    for name in project.files("*probe*"):
        project.load(name)
    assert list(project.path.rglob("canary")) == []


@pytest.mark.real
def test_the_name_of_a_new_service_is_not_executed(bake_copy: Bake) -> None:
    project = bake_copy()
    name = "{{cycler.__init__.__globals__.os.system('touch canary')}}"
    assert project.run("scripts/new-service.sh", name, check=False).returncode != 0
    assert list(project.path.rglob("canary")) == []
    assert project.run("git", "status", "--porcelain").stdout == ""
