"""The documents of a generated repository against the repository itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.baked import ROOT, BakedProject, user_environment
from tests.combinations import OPTIONS
from tests.conftest import Bake
from tests.ports import free_port
from tests.stack import background
from tests.tools import needs

GUIDE = "docs/ARCHITECTURE_GUIDELINES.md"
SECTIONS = [
    "Project Structure",
    "Service Architecture",
    "Configuration Management",
    "Logging",
    "Client Wrappers & External APIs",
    "Retry & Resilience",
    "Inter-Service Communication",
    "State Persistence",
    "Error Handling",
    "Docker & Containerization",
    "Health Checks & Diagnostics",
    "Secrets Management",
    "Development Workflow",
    "API & File Exchange Between Tools",
    "Security",
    "Code Style",
    "Testing",
]
# Made by people and scripts later, so not in a fresh repository, or not in git.
LATER = {
    "attic.yml",
    *(f"services/disk-space/{name}.py" for name in ("schemas", "main")),
    "tests/test_disk_space.py",
    *(".env", ".env.enc", ".sops/age-key.txt", "docker-compose.override.yml"),
    "infrastructure/mosquitto/acl.conf",
    # Files of other programs.
    *("services.yaml", "glance.yml"),
}
FILE_NAME = re.compile(r"[\w.-]+\.(py|sh|md|yml|yaml|toml|txt|json|lock|conf)|Dockerfile|Makefile")


def documents(project: BakedProject) -> list[str]:
    names = project.files("*.md")
    return [name for name in names if not name.startswith("templates/service/")]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code_spans(text: str) -> Iterator[str]:
    return (match[1] for match in re.finditer(r"`([^`\n]+)`", prose(text)))


@pytest.mark.parametrize("answers", OPTIONS)
def test_the_guide_has_its_17_sections_all_with_substance(
    bake: Bake, answers: dict[str, Any]
) -> None:
    text = bake(**answers).read(GUIDE)
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    titles = [part.splitlines()[0] for part in parts]
    assert titles == [f"{number}. {title}" for number, title in enumerate(SECTIONS, 1)]
    for part in parts:
        assert len(part.split()) > 60, part.splitlines()[0]


@pytest.mark.parametrize("answers", OPTIONS)
def test_every_file_that_a_document_names_exists(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    files = set(project.files())
    folders = {part for name in files for part in parents(name)}
    base_names = {name.rpartition("/")[2] for name in files}
    top = {name.partition("/")[0] for name in files}
    missing = []
    for document in documents(project):
        for span in code_spans(project.read(document)):
            if span in LATER or re.search(r"[<*{}$ =]", span):
                continue
            if "/" in span and span.partition("/")[0] in top:
                found = span.rstrip("/") in files | folders
            elif FILE_NAME.fullmatch(span):
                found = span in base_names
            else:
                continue
            if not found:
                missing.append(f"{document}: {span}")
    assert missing == []


def parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


@pytest.mark.parametrize("answers", OPTIONS)
def test_every_make_target_that_a_document_names_exists(
    bake: Bake, answers: dict[str, Any]
) -> None:
    project = bake(**answers)
    targets = set(re.findall(r"^([a-z-]+):", project.read("Makefile"), re.MULTILINE))
    for document in documents(project):
        text = project.read(document)
        commands = [*code_spans(text), *"\n".join(blocks(text, "bash")).splitlines()]
        for command in commands:
            if match := re.match(r"make ([a-z-]+)", command):
                assert match[1] in targets, f"{document}: {command}"


@pytest.mark.parametrize("answers", OPTIONS)
def test_python_in_documents_parses_and_imports_what_exists(
    bake: Bake, answers: dict[str, Any]
) -> None:
    project = bake(**answers)
    seen = 0
    for document in documents(project):
        for block in blocks(project.read(document), "python"):
            seen += 1
            code = f"async def _() -> None:\n{indented(block)}" if is_body(block) else block
            for node in ast.walk(ast.parse(code, document)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shared."):
                    module = f"{node.module}".replace(".", "/") + ".py"
                    if not project.file(module).exists():
                        module = module.replace(".py", "/__init__.py")
                    names = top_level_names(project.load(module))
                    assert {alias.name for alias in node.names} <= names, (document, module)
    assert seen


# A block leaves out docstrings, and names that the blocks above it import or define.
NOT_IN_A_BLOCK = "ANN001,D,E402,F401,F821,I001,W292"


@pytest.mark.real
@needs("python3.13")
def test_python_in_documents_is_clean_in_a_service(bake_copy: Bake) -> None:
    """The git hooks must take what a user copies."""
    project = bake_copy()
    project.file("services/copied").mkdir()
    for document in documents(project):
        name = document.removesuffix(".md").replace("/", "_").replace("-", "_").lower()
        for number, block in enumerate(blocks(project.read(document), "python")):
            directory = "tests" if "assert " in block else "services/copied"
            code = f"async def _() -> None:\n{indented(block)}" if is_body(block) else block
            project.file(f"{directory}/{name}_{number}.py").write_text(code, encoding="utf-8")
    project.uv_run("ruff", "check", "--ignore", NOT_IN_A_BLOCK, "services/copied", "tests")


def is_body(block: str) -> bool:
    """Whether the lines make sense inside a coroutine only."""
    try:
        compile(block, "block", "exec")
    except SyntaxError:
        return True
    return False


def indented(block: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in block.splitlines(True))


def top_level_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.AsyncFunctionDef(name=name) | ast.TypeAlias(name=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
    return names


TEST_OF_THE_README = """
async def test_publishes_and_is_healthy(start_service):
    service = await start_service("example-service")
    (reading,) = await service.next_published("reading")
    assert reading["value"] >= 0
    assert service.instance.health.healthy
"""


@pytest.mark.real
def test_the_service_in_the_readme_works(bake_copy: Bake) -> None:
    readme_service(bake_copy).uv_run("pytest", "tests/test_readme.py")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.xdist_group("mypy")
def test_the_service_in_the_readme_has_types(bake_copy: Bake) -> None:
    readme_service(bake_copy).uv_run(
        "mypy", "services/example-service/main.py", env={"MYPYPATH": "services/example-service"}
    )


def readme_service(bake_copy: Bake) -> BakedProject:
    """Return a repository with the service in the README and a test."""
    code, *_ = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    project = bake_copy()
    project.file("services/example-service/main.py").write_text(code, encoding="utf-8")
    project.file("tests/test_readme.py").write_text(TEST_OF_THE_README, encoding="utf-8")
    return project


# Commands that run until Ctrl-C, with the text that shows that they work.
UNTIL_CTRL_C = {"make run": "mqtt_connected", "make watch": "availability"}


@pytest.mark.real
@pytest.mark.slow
@needs("git", "mosquitto")
def test_getting_started_works_word_for_word(bake_copy: Bake) -> None:
    """`make up` is left out: tests/test_add_service_docker.py runs it."""
    project = bake_copy()
    env = {**project.environment(), "MQTT_PORT": str(free_port())}
    page = project.read("docs/getting-started.md")
    parts = re.finditer(
        r"`([^`\n]+)` with:[^`]*```python\n(.*?)^```|```bash\n(.*?)^```", page, re.S | re.M
    )
    with ExitStack() as running:
        for part in parts:
            if part[1]:
                project.file(part[1]).write_text(part[2], encoding="utf-8")
                continue
            for command in part[3].splitlines():
                shown = [text for start, text in UNTIL_CTRL_C.items() if command.startswith(start)]
                if shown:
                    process = background(
                        "bash", "-c", command, cwd=project.path, env=user_environment(env)
                    )
                    running.enter_context(process).wait_for(*shown)
                elif command != "make up":
                    done = project.run("bash", "-c", command, env=env)
                    if command.startswith("make send"):
                        assert '"value": ' in done.stdout
    assert "Add disk-space" in project.run("git", "log", "-1", "--format=%s").stdout


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_template_has_the_files_and_targets_that_its_documents_name(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    linked = re.findall(r'(?:\]\(|src="|srcset=")(?!https?:)([^)"#]+)', text)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []
    makefiles = [ROOT / "Makefile", ROOT / "{{cookiecutter.project_slug}}/Makefile"]
    targets = {
        target
        for makefile in makefiles
        for target in re.findall(r"^([a-z-]+):", makefile.read_text("utf-8"), re.MULTILINE)
    }
    commands = [*code_spans(text), *"\n".join(blocks(text, "bash")).splitlines()]
    named = {match[1] for command in commands if (match := re.match(r"make ([a-z-]+)", command))}
    assert named <= targets


def test_assistants_all_read_the_same(bake: Bake) -> None:
    project = bake()
    assert project.read("CLAUDE.md") == "@AGENTS.md\n"
    assert "make test" in project.read("AGENTS.md")
