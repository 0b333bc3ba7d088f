"""A new service joins a repository, and leaves it again, without a trace of either."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.baked import SERVICE_TEMPLATE, BakedProject, user_environment
from tests.combinations import OPTIONS
from tests.conftest import Bake, Cookiecutter
from tests.rendering import render, typed_context
from tests.tools import needs, path_without

pytestmark = pytest.mark.real

TYPES = ["poller", "subscriber", "http-api"]
NOT_WATCHED = {".git", "__pycache__", ".venv", ".ruff_cache", ".mypy_cache", ".pytest_cache"}


@pytest.fixture
def repository(bake_copy: Bake, environments: Path) -> BakedProject:
    project = bake_copy()
    # One after the other: uv does not expect two to make the same environment at once.
    with FileLock(environments / "services.lock"):
        project.uv_run("python", "-c", "")
    return project


def tree(project: BakedProject) -> dict[str, bytes | None]:
    """Every folder (None) and every file with its bytes, but for what git and tools keep."""
    return {
        path.relative_to(project.path).as_posix(): path.read_bytes() if path.is_file() else None
        for path in project.path.rglob("*")
        if not NOT_WATCHED & set(path.relative_to(project.path).parts)
    }


def add(project: BakedProject, name: str, kind: str = "poller", *options: str) -> None:
    project.run("scripts/new-service.sh", name, "--type", kind, *options)


def add_directly(
    cookiecutter: Cookiecutter, project: BakedProject, **answers: Any
) -> subprocess.CompletedProcess[str]:
    return cookiecutter(
        output=project.path / "services", template=project.file("templates/service"), **answers
    )


def edit(project: BakedProject, name: str, change: Callable[[str], str]) -> None:
    text = change(project.read(name))
    project.file(name).write_text(text, encoding="utf-8", newline="")


# --- what is made -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_it_is_wired_in_everywhere(repository: BakedProject, kind: str) -> None:
    add(repository, "soil-moisture", kind, "--description", "Watches the soil")
    compose = repository.yaml("docker-compose.yml")
    service = compose["services"]["soil-moisture"]
    assert service["build"]["dockerfile"] == "services/soil-moisture/Dockerfile"
    assert "soil_moisture_data:/app/data" in service["volumes"]
    assert "soil_moisture_data" in compose["volumes"]
    assert "ports" not in service
    assert "    # Watches the soil\n" in repository.read("docker-compose.yml")
    override = repository.yaml("docker-compose.override.example.yml")["services"]
    debuggers = {
        name: port.split(":")[1]
        for name, overridden in override.items()
        for port in overridden.get("ports", [])
        if port.endswith(":5678")
    }
    assert len(set(debuggers.values())) == len(debuggers) == 2
    launch = {
        entry["name"]: entry for entry in repository.json(".vscode/launch.json")["configurations"]
    }
    attached = launch["Attach to soil-moisture"]["connect"]["port"]
    assert str(attached) == debuggers["soil-moisture"]
    assert "SOIL_MOISTURE_" in repository.read(".env.example")
    assert ("## soil-moisture" in repository.read("docs/topics.md")) == (kind != "http-api")
    assert repository.file("tests/test_soil_moisture.py").is_file()
    assert not repository.file("services/soil-moisture/wiring").exists()


@pytest.mark.parametrize("kind", TYPES)
def test_a_developers_own_override_gets_it_as_well(repository: BakedProject, kind: str) -> None:
    own = repository.file("docker-compose.override.yml")
    shutil.copy(repository.file("docker-compose.override.example.yml"), own)
    add(repository, "soil-moisture", kind)
    example = repository.file("docker-compose.override.example.yml")
    assert own.read_bytes() == example.read_bytes()


def test_the_template_adds_services_by_itself(
    repository: BakedProject, cookiecutter: Cookiecutter
) -> None:
    """From wherever the template is, without the script and without an answer but the name."""
    by_script = tree(repository)
    options = ("--directory", "service-template")
    done = cookiecutter(*options, output=repository.path / "services", service_name="Soil Moisture")
    assert done.returncode == 0, done.stderr
    directly = tree(repository)
    assert "services/soil-moisture/main.py" in directly
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert tree(repository) == by_script


def test_it_needs_cookiecutter_or_uv_only(repository: BakedProject, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cookiecutter").symlink_to(Path(sys.executable).with_name("cookiecutter"))
    repository.run(
        *("scripts/new-service.sh", "soil-moisture"), env={"PATH": f"{folder}:/usr/bin:/bin"}
    )
    assert repository.file("services/soil-moisture/main.py").is_file()
    assert not repository.file(".tools").exists()


def test_hostile_descriptions_are_plain_text(repository: BakedProject) -> None:
    before = repository.yaml("docker-compose.yml")
    hostile = "A \"q\" 'r' \\ # : {{ x }} {% y %} $(touch z) `z` %s\t漢 🎈\nnext: line"
    add(repository, "soil-moisture", "poller", "--description", hostile)
    compose = repository.read("docker-compose.yml")
    assert f"    # {' '.join(hostile.split())}\n" in compose
    after = repository.yaml("docker-compose.yml")
    assert set(after["services"]) - set(before["services"]) == {"soil-moisture"}


def test_dry_run_shows_all_and_changes_nothing(repository: BakedProject) -> None:
    before = tree(repository)
    shown = repository.run("scripts/new-service.sh", "soil-moisture", "--dry-run").stdout
    assert tree(repository) == before
    add(repository, "soil-moisture")
    changed = {name for name, content in tree(repository).items() if before.get(name) != content}
    for name in changed:
        content = repository.file(name)
        if content.is_file() and content.stat().st_size:
            assert f"+++ {name}" in shown, name


def test_dry_run_needs_no_git_and_leaves_an_override_that_is_a_link(
    repository: BakedProject, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "override.yml"
    shutil.copy(repository.file("docker-compose.override.example.yml"), elsewhere)
    repository.file("docker-compose.override.yml").symlink_to(elsewhere)
    before, override = tree(repository), elsewhere.read_bytes()
    shown = repository.run(
        *("scripts/new-service.sh", "soil-moisture", "--dry-run"),
        env={"PATH": path_without("git", folder=tmp_path / "bin")},
    ).stdout
    for name in ("docker-compose.override.yml", "services/soil-moisture/main.py"):
        assert f"+++ {name}\n" in shown
    assert elsewhere.read_bytes() == override
    assert tree(repository) == before


def write_override(project: BakedProject, services: str) -> None:
    project.file("docker-compose.override.yml").write_text(f"services:\n{services}")


MINE = """\
  soil-moisture:
    volumes: !override ["./services/soil-moisture:/live:ro"]
    ports: ["127.0.0.1:5999:5678"]
"""
OTHERS = """\
  a:
    ports: ["5679:5678"]
  b:
    ports: !override
      - target: 5678
        published: "5680"
  c:
    ports: ["127.0.0.1:${PORT:-5681}:80/tcp"]
"""


@pytest.mark.parametrize(("services", "port"), [(MINE, 5999), (OTHERS, 5682)])
def test_the_debugger_has_the_port_that_it_had_or_one_that_is_free(
    repository: BakedProject, services: str, port: int
) -> None:
    write_override(repository, services)
    add(repository, "soil-moisture")
    launch = repository.json(".vscode/launch.json")["configurations"]
    assert [entry["connect"]["port"] for entry in launch] == [5678, port]
    example = repository.yaml("docker-compose.override.example.yml")["services"]["soil-moisture"]
    assert example["ports"] == [f"127.0.0.1:{port}:5678"]


def test_help_and_wrong_usage(repository: BakedProject) -> None:
    for script in ("new-service.sh", "remove-service.sh"):
        assert "Usage" in repository.run(f"scripts/{script}", "--help").stdout
        for wrong in ([], ["--unknown"], ["a", "b"]):
            done = repository.run(f"scripts/{script}", *wrong, check=False)
            assert done.returncode == 2
            assert "Usage" in done.stderr
    assert repository.run("scripts/new-service.sh", "a", "--type", "x", check=False).returncode == 2


# --- and taken away -----------------------------------------------------------------------------


REAL_LIFE = {
    "as generated": lambda text: text,
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "no final newline": lambda text: text.removesuffix("\n"),
}


@pytest.mark.parametrize("variant", REAL_LIFE)
@pytest.mark.parametrize("kind", TYPES)
def test_removed_it_leaves_no_trace(repository: BakedProject, kind: str, variant: str) -> None:
    for name in (
        "docker-compose.yml",
        "docker-compose.override.example.yml",
        ".env.example",
        "docs/topics.md",
        ".vscode/launch.json",
    ):
        edit(repository, name, REAL_LIFE[variant])
    before = tree(repository)
    add(repository, "soil-moisture", kind)
    first = tree(repository)
    add(repository, "a-second", "subscriber")
    repository.run("scripts/remove-service.sh", "a-second", "--yes")
    assert tree(repository) == first
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert tree(repository) == before


def no_named_volumes(text: str) -> str:
    start, end = text.index("\nvolumes:\n"), text.index("\nnetworks:\n")
    return re.sub(r"- (\w+_data:)", r"- ./.data/\1", text[:start] + text[end:])


def volumes_first(text: str) -> str:
    start, end = text.index("\nvolumes:\n"), text.index("\nnetworks:\n")
    rest = text[:start] + text[end:]
    return rest.replace("\nservices:\n", f"{text[start:end]}\nservices:\n")


# Each is what becomes of the generated Compose file in some repository.
LIVED_IN: dict[str, Callable[[str], str]] = {
    "comments everywhere": lambda text: re.sub(
        r"^( *)([^#\n]+)$", r"\1# above\n\1\2  # beside\n\1  # below", text, flags=re.MULTILINE
    ),
    "anchors and profiles": lambda text: text.replace(
        "\nvolumes:\n",
        "\n  db: &db\n    image: x\n    profiles: [dev]\n  copy:\n    <<: *db\n\nvolumes: &v\n",
    ),
    "a section of one's own after all others": lambda text: (
        f"{text}\nconfigs:\n  c: {{content: x}}\n"
    ),
    "four spaces": lambda text: re.sub(
        r"^ +", r"\g<0>\g<0>", re.sub(r"(path: .+)\n +(.+)", r"{\1, \2}", text), flags=re.MULTILINE
    ),
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "no final newline": lambda text: text.removesuffix("\n"),
    "no named volumes": no_named_volumes,
    "volumes first": volumes_first,
    "volumes last": lambda text: (
        text.replace("\nnetworks:\n  internal:\n    driver: bridge\n", "")
        + "\nnetworks: {internal: {}}\n"
    ),
    "volumes in flow style": lambda text: re.sub(
        r"\nvolumes:\n(  \w+:\n)+", "\nvolumes: { mqtt_data: {}, example_service_data: {} }\n", text
    ),
    "long form": lambda text: text.replace(
        "- example_service_data:/app/data",
        "- type: volume\n        source: example_service_data\n        target: /app/data",
    ),
}


@needs("docker")
@pytest.mark.parametrize("change", LIVED_IN.values(), ids=LIVED_IN)
def test_a_repository_that_has_lived_for_a_while(
    bake_copy: Bake, change: Callable[[str], str]
) -> None:
    """With the service and without it Compose takes the file, and the rest of it is as it was."""
    project = bake_copy(include_influxdb=False)
    before = project.read("docker-compose.yml")
    edit(project, "docker-compose.yml", change)
    changed = project.read("docker-compose.yml")
    assert changed != before
    add(project, "soil-moisture")
    config = project.run("docker", "compose", "config", "--format", "json").stdout
    service = json.loads(config)["services"]["soil-moisture"]
    assert service["build"]["dockerfile"] == "services/soil-moisture/Dockerfile"
    assert [mount["target"] for mount in service["volumes"]] == ["/app/shared", "/app/data"]
    rest = iter(project.read("docker-compose.yml"))
    assert all(character in rest for character in changed)
    project.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert project.read("docker-compose.yml") == changed


def test_a_block_of_ones_own_stays(repository: BakedProject) -> None:
    add(repository, "soil-moisture")
    write_override(repository, "  soil-moisture:\n    image: nginx\n")
    own = repository.read("docker-compose.override.yml")
    done = repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert "docker-compose.override.yml: its service soil-moisture is none of" in done.stdout
    assert repository.read("docker-compose.override.yml") == own
    assert "soil-moisture" not in repository.read("docker-compose.override.example.yml")


def test_without_the_compose_file_nothing_is_removed(repository: BakedProject) -> None:
    add(repository, "soil-moisture")
    repository.file("docker-compose.yml").rename(repository.file("compose.yaml"))
    before = tree(repository)
    done = repository.run("scripts/remove-service.sh", "soil-moisture", "--yes", check=False)
    assert done.returncode == 1
    assert "Nothing was changed.\ndocker-compose.yml: " in done.stderr
    assert tree(repository) == before


def test_data_is_not_deleted_without_docker(repository: BakedProject, tmp_path: Path) -> None:
    add(repository, "soil-moisture")
    before = tree(repository)
    done = repository.run(
        *("scripts/remove-service.sh", "soil-moisture", "--delete-data", "--yes"),
        env={"PATH": path_without("docker", folder=tmp_path / "bin")},
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr == "--delete-data needs Docker, which does not answer. Nothing was changed.\n"
    )
    assert tree(repository) == before


def test_the_last_service_leaves_no_trace_either(repository: BakedProject) -> None:
    repository.run("scripts/remove-service.sh", "example-service", "--yes")
    for file in ("docker-compose.yml", ".env.example", "docs/topics.md", ".vscode/launch.json"):
        assert "example-service" not in repository.read(file), file
    before = tree(repository)
    add(repository, "example-service")
    repository.run("scripts/remove-service.sh", "example-service", "--yes")
    assert tree(repository) == before


def test_a_launch_file_with_comments_and_trailing_commas(repository: BakedProject) -> None:
    text = """\
// Mine, "configurations": [
{
  "configurations": [ // one of mine
    { "name": "a, [b]", "type": "x", },
    /* { "name": "off" }, */
  ],
  "compounds": [],
}
"""
    repository.file(".vscode/launch.json").write_text(text, encoding="utf-8")
    add(repository, "soil-moisture")
    added = repository.read(".vscode/launch.json")
    rest = iter(added)
    assert all(character in rest for character in text)
    assert added.count('"Attach to soil-moisture"') == 1
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert repository.read(".vscode/launch.json") == text


def test_settings_that_others_have_added_stay(repository: BakedProject) -> None:
    add(repository, "soil-moisture")
    edit(
        repository,
        ".env.example",
        lambda text: text + "# Mine\nMY_OWN='1'\n# Of the service\nSOIL_MOISTURE_MORE='2'\n",
    )
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    text = repository.read(".env.example")
    assert text.endswith("# Mine\nMY_OWN='1'\n")
    assert "SOIL_MOISTURE" not in text


def test_keep_code_takes_it_out_of_the_stack_only(repository: BakedProject) -> None:
    add(repository, "soil-moisture")
    repository.run("scripts/remove-service.sh", "soil-moisture", "--keep-code", "--yes")
    assert "soil-moisture" not in repository.read("docker-compose.yml")
    assert "soil-moisture" not in repository.read("docker-compose.override.example.yml")
    assert repository.file("services/soil-moisture/main.py").is_file()
    assert repository.file("tests/test_soil_moisture.py").is_file()
    assert "## soil-moisture" in repository.read("docs/topics.md")


def test_removal_asks_first(repository: BakedProject) -> None:
    add(repository, "soil-moisture")
    before = tree(repository)
    done = repository.run("scripts/remove-service.sh", "soil-moisture", stdin="y\n", check=False)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    shown = repository.run("scripts/remove-service.sh", "soil-moisture", "--dry-run").stdout
    assert "-  soil-moisture:" in shown
    assert tree(repository) == before


@needs("git")
@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_the_answer_decides(
    repository: BakedProject, answer: str, goes: bool
) -> None:
    add(repository, "soil-moisture")
    repository.run("git", "add", "--all")
    repository.run("git", "commit", "--quiet", "--no-verify", "--message", "Soil")
    edit(repository, "tests/test_soil_moisture.py", lambda text: text + "# Mine\n")
    before = tree(repository)
    terminal, its_other_end = pty.openpty()
    os.write(terminal, answer.encode())
    done = subprocess.run(
        [repository.file("scripts/remove-service.sh"), "soil-moisture"],
        cwd=repository.path,
        env=user_environment(repository.environment()),
        stdin=its_other_end,
        capture_output=True,
        text=True,
    )
    os.close(terminal)
    os.close(its_other_end)
    assert "This deletes services/soil-moisture and its test." in done.stdout
    assert "There are changes in them that are in no commit." in done.stdout
    assert done.returncode == (0 if goes else 1), done.stderr
    assert (tree(repository) == before) != goes
    assert repository.file("services/soil-moisture").exists() != goes


@pytest.mark.parametrize("kind", TYPES)
def test_wiring_again_changes_nothing(repository: BakedProject, tmp_path: Path, kind: str) -> None:
    answers = {"service_name": "soil-moisture", "service_type": kind}
    unwired = render(SERVICE_TEMPLATE, tmp_path, typed_context(SERVICE_TEMPLATE, None, answers))
    wire = ("scripts/uv", "run", "--frozen", "python", "scripts/wire_service.py")
    add(repository, "soil-moisture", kind)
    added = tree(repository)
    shutil.copytree(unwired / "wiring", repository.file("services/soil-moisture/wiring"))
    repository.run(*wire, "add", "soil-moisture")
    assert tree(repository) == added
    repository.run(*wire, "remove", "soil-moisture")
    removed = tree(repository)
    repository.run(*wire, "remove", "soil-moisture")
    assert tree(repository) == removed


@pytest.mark.docker
def test_data_is_deleted_only_when_that_is_asked_for(bake_copy: Bake) -> None:
    project = bake_copy(project_slug="data-of-services")
    volume = "data-of-services_soil_moisture_data"
    local = project.file(".data/soil-moisture/state.json")

    def volumes() -> list[str]:
        listed = ("docker", "volume", "ls", "--quiet", "--filter", "name=data-of-services_")
        return project.run(*listed).stdout.split()

    labels = ("project=data-of-services", "volume=soil_moisture_data")
    project.run(
        *("docker", "volume", "create", volume),
        *(f"--label=com.docker.compose.{label}" for label in labels),
    )
    add(project, "soil-moisture")
    local.parent.mkdir(parents=True)
    local.write_text("{}")
    remove = ("scripts/remove-service.sh", "soil-moisture", "--yes")
    try:
        project.run(*remove, "--keep-code")
        assert (volumes(), local.exists()) == ([volume], True)
        project.run(*remove)
        assert (volumes(), local.exists()) == ([volume], True)
        add(project, "soil-moisture")
        project.run(*remove, "--keep-code")
        project.run(*remove, "--delete-data")
        assert (volumes(), local.exists()) == ([], False)
        add(project, "soil-moisture")
        project.run(*remove, "--delete-data")
    finally:
        project.run("docker", "volume", "rm", "--force", volume)


@pytest.mark.docker
def test_a_refused_removal_leaves_container_and_data(bake_copy: Bake) -> None:
    project = bake_copy(project_slug="refused-removal")
    add(project, "soil-moisture")
    edit(
        project,
        "docker-compose.yml",
        lambda text: text.replace(
            "\nvolumes:\n",
            "\n  shop:\n    image: x\n    depends_on: [soil-moisture]\n\nvolumes:\n",
        ),
    )
    remove = ("scripts/remove-service.sh", "soil-moisture", "--delete-data", "--yes")
    before = tree(project)
    labels = ("project=refused-removal", "service=soil-moisture", "oneoff=False", "config-hash=x")
    container = project.run(
        *("docker", "create", "--name", "refused-removal-soil-moisture-1"),
        *(f"--label=com.docker.compose.{label}" for label in labels),
        *("python:3.14-slim", "true"),
    ).stdout.strip()
    try:
        done = project.run(*remove, check=False)
        assert done.returncode == 1
        assert "shop needs soil-moisture" in done.stderr
        project.run("docker", "inspect", container)
        assert tree(project) == before
    finally:
        project.run("docker", "rm", "--force", container)


@pytest.mark.parametrize("name", ["mqtt", "nothing", "../shared", ".", "example-service/.."])
def test_only_services_are_removed(repository: BakedProject, name: str) -> None:
    before = tree(repository)
    for command in (
        ["scripts/remove-service.sh", name, "--yes"],
        ["scripts/uv", "run", "--frozen", "python", "scripts/wire_service.py", "remove", name],
    ):
        repository.run(*command, check=False)
        assert tree(repository) == before


def test_a_service_that_another_one_needs_stays(repository: BakedProject) -> None:
    add(repository, "soil-moisture")
    edit(
        repository,
        "docker-compose.yml",
        lambda text: text.replace(
            "\nvolumes:\n",
            "\n  shop:\n    image: x\n    depends_on: [soil-moisture]\n\nvolumes:\n",
        ),
    )
    before = tree(repository)
    done = repository.run("scripts/remove-service.sh", "soil-moisture", "--yes", check=False)
    assert done.returncode == 1
    assert "shop needs soil-moisture" in done.stderr
    assert tree(repository) == before


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slug",
    ["Soil", "soil_moisture", "-soil", "soil-", "so--il", "1soil", "soil moisture", "soil#",
     "soil+", "bödén", "a" * 41, "mqtt",
     "coordinator", "errors", "shared", "base", "on", "null",
     "con", "com1", "base-service", "x-soil"],
)  # fmt: skip
def test_names_that_cannot_be(
    repository: BakedProject, cookiecutter: Cookiecutter, slug: str
) -> None:
    before = tree(repository)
    done = add_directly(cookiecutter, repository, service_slug=slug)
    assert done.returncode == 1
    assert "  - service_slug: " in done.stderr
    assert "for example 'soil-moisture'" in done.stderr
    assert tree(repository) == before


@pytest.mark.parametrize("carried", [True, False], ids=["carried template", "directory option"])
def test_all_problems_at_once_and_the_command_that_works(
    repository: BakedProject, cookiecutter: Cookiecutter, template: Path, carried: bool
) -> None:
    done = cookiecutter(
        *([] if carried else ["--directory", "service-template"]),
        output=repository.path / "services",
        template=repository.file("templates/service") if carried else template,
        service_name="It's",
        service_slug="NO",
        description="x" * 101,
        service_type="subscriber",
    )
    assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("  - ")] == [
        "  - service_slug",
        "  - description",
    ]
    command = next(line for line in done.stderr.splitlines() if line.startswith("  cookiecutter "))
    words = shlex.split(command)
    assert "service_type=subscriber" in words
    assert "service_name=It's" in words
    repository.run(sys.executable, "-m", *words)
    assert repository.file("services/soil-moisture/main.py").is_file()


def test_enter_at_every_prompt_makes_a_service(repository: BakedProject) -> None:
    repository.run(
        *(sys.executable, "-m", "cookiecutter", "templates/service", "--output-dir", "services"),
        stdin="\n" * 4,
    )
    assert repository.file("services/my-service/main.py").is_file()


def test_the_script_shows_its_own_command(repository: BakedProject) -> None:
    done = repository.run(
        *("scripts/new-service.sh", "Soil", "--type", "http-api", "--description", "It's mine"),
        check=False,
    )
    assert done.returncode == 1
    command = next(line for line in done.stderr.splitlines() if "new-service.sh" in line)
    assert "  - NAME: must be lower-case" in done.stderr
    repository.run(*shlex.split(command))
    assert repository.file("services/soil-moisture/api.py").is_file()
    assert "Traceback" not in done.stderr


def test_the_script_does_not_describe_what_was_not_described(repository: BakedProject) -> None:
    done = repository.run("scripts/new-service.sh", "Soil" * 20, check=False)
    assert done.stderr.count("  - ") == 1
    assert "\n  scripts/new-service.sh soil-moisture --type poller\n" in done.stderr


@pytest.mark.parametrize("description", ["soil-moisture, " + "x" * 100, " ", "a\x07b"])
def test_every_description_that_was_given_is_checked(
    repository: BakedProject, description: str
) -> None:
    before = tree(repository)
    script = ("scripts/new-service.sh", "soil-moisture", "--description", description)
    done = repository.run(*script, check=False)
    assert done.returncode == 1
    assert "  - --description: must " in done.stderr
    assert tree(repository) == before


def test_a_name_with_slashes_makes_no_folders(repository: BakedProject) -> None:
    before = tree(repository)
    for name in ("a/b", "../b", "/tmp/b", "."):
        done = repository.run("scripts/new-service.sh", name, check=False)
        assert done.returncode == 2
        assert tree(repository) == before


def take_service(project: BakedProject) -> None:
    project.file("services/soil-moisture").mkdir()
    project.file("services/soil-moisture/main.py").touch()


def take_compose_key(project: BakedProject) -> None:
    edit(
        project,
        "docker-compose.yml",
        lambda text: text.replace("\nvolumes:\n", "\n  soil-moisture:\n    image: x\n\nvolumes:\n"),
    )


def take_volume(project: BakedProject) -> None:
    edit(
        project,
        "docker-compose.yml",
        lambda text: text.replace("\nvolumes:\n", "\nvolumes:\n  soil_moisture_data:\n"),
    )


def take_test(project: BakedProject) -> None:
    project.file("tests/test_soil_moisture.py").touch()


def take_override(project: BakedProject) -> None:
    write_override(project, "  soil-moisture:\n    image: nginx\n")


def take_entry(project: BakedProject) -> None:
    entry = '{ "name": "Attach to soil-moisture", "type": "node" },'
    edit(project, ".vscode/launch.json", lambda text: text.replace("[", f"[\n    {entry}", 1))


def take_heading(project: BakedProject) -> None:
    edit(project, ".env.example", lambda text: text + "# --- soil-moisture ---\nMINE='1'\n")


def take_section(project: BakedProject) -> None:
    edit(project, "docs/topics.md", lambda text: text + "\n## soil-moisture\n\nMine.\n")


TAKE = [
    *(take_service, take_compose_key, take_volume, take_test),
    *(take_override, take_entry, take_heading, take_section),
]


def break_compose(project: BakedProject) -> None:
    edit(project, "docker-compose.yml", lambda text: text + "services: [\n")


@pytest.mark.parametrize("take", TAKE)
@pytest.mark.parametrize("options", [[], ["--overwrite-if-exists"]])
def test_names_that_are_taken(
    repository: BakedProject,
    cookiecutter: Cookiecutter,
    take: Callable[[BakedProject], None],
    options: list[str],
) -> None:
    take(repository)
    before = tree(repository)
    done = cookiecutter(
        *options,
        output=repository.path / "services",
        template=repository.file("templates/service"),
        service_name="Soil Moisture",
    )
    assert done.returncode != 0
    assert "soil" in done.stderr + done.stdout
    assert tree(repository) == before


@pytest.mark.parametrize("take", TAKE)
def test_the_script_says_where_a_name_is_taken(
    repository: BakedProject, take: Callable[[BakedProject], None]
) -> None:
    untouched = tree(repository)
    take(repository)
    before = tree(repository)
    changed = {name for name, content in before.items() if untouched.get(name, b"none") != content}
    done = repository.run("scripts/new-service.sh", "soil-moisture", check=False)
    assert done.returncode == 1
    assert any(name in done.stderr for name in changed)
    assert tree(repository) == before


def test_a_compose_file_that_does_not_parse(repository: BakedProject) -> None:
    break_compose(repository)
    before = tree(repository)
    done = repository.run("scripts/new-service.sh", "soil-moisture", check=False)
    assert done.returncode == 1
    assert "docker-compose.yml cannot be read" in done.stderr
    assert tree(repository) == before


def test_outside_a_generated_repository(tmp_path: Path, cookiecutter: Cookiecutter) -> None:
    for output in (tmp_path / "elsewhere", tmp_path / "elsewhere/services"):
        done = cookiecutter(output=output, template=SERVICE_TEMPLATE)
        assert done.returncode == 1
        assert "run this in its root, with --output-dir services" in done.stderr
        assert list(output.iterdir()) == []


def test_a_restructured_compose_file_gets_the_block_by_hand(repository: BakedProject) -> None:
    """It is printed with its place; once it is there, the script does the rest."""
    edit(
        repository,
        "docker-compose.yml",
        lambda text: text.replace("&service\n", "&ours\n").replace("*service\n", "*ours\n"),
    )
    before = tree(repository)
    done = repository.run("scripts/new-service.sh", "soil-moisture", check=False)
    assert done.returncode == 1
    assert "Nothing was changed" in done.stderr
    assert "below `services:`" in done.stderr
    assert tree(repository) == before
    start = done.stderr.index("  soil-moisture:\n")
    block = done.stderr[start : done.stderr.index("\nand below", start)]
    edit(
        repository,
        "docker-compose.yml",
        lambda text: text.replace(
            "\nvolumes:\n",
            f"\n{block.replace('*service', '*ours')}\nvolumes:\n  soil_moisture_data:\n",
        ),
    )
    by_hand = repository.read("docker-compose.yml")
    add(repository, "soil-moisture")
    assert repository.read("docker-compose.yml") == by_hand
    assert "SOIL_MOISTURE" in repository.read(".env.example")


# --- interrupts ---------------------------------------------------------------------------------

# Loaded by every Python that the test starts: does something before or after the Nth call of these
# functions, in the process that has imported this module.
TRAP = """
import os, signal, sys

def trap(function):
    def trapped(*arguments, **options):
        # Once only: what cleans up afterwards is not to be caught.
        if os.environ["TRAP_IN"] not in sys.modules or os.path.exists(os.environ["TRAP_FILE"]):
            return function(*arguments, **options)
        trap.count += 1
        at, when, what = os.environ["TRAP"].split(",")
        if trap.count == int(at) and when == "before":
            spring(what)
        result = function(*arguments, **options)
        if trap.count == int(at) and when == "after":
            spring(what)
        return result
    return trapped

def spring(what):
    open(os.environ["TRAP_FILE"], "w").close()
    if what == "fail":
        raise OSError(28, "No space left on device")
    if what == "wait":
        signal.pause()
    else:
        # The script leads the group.
        who, _, number = what.rpartition(" ")
        one = {"": os.getpid(), "cookiecutter": os.getppid(), "script": os.getpgrp(), "all": 0}
        os.kill(one[who], getattr(signal, number))

trap.count = 0
for name in os.environ["TRAP_CALLS"].split(","):
    setattr(os, name, trap(getattr(os, name)))
"""
# Six files are replaced, then the wiring folder is renamed.
STEPS = range(1, 8)


@pytest.fixture
def trapped(tmp_path: Path) -> Callable[[int, str, str], dict[str, str]]:
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(TRAP, encoding="utf-8")

    def environment(step: int, when: str, what: str) -> dict[str, str]:
        return {
            "PYTHONPATH": str(folder),
            "TRAP": f"{step},{when},{what}",
            "TRAP_IN": "compose_services",
            "TRAP_CALLS": "replace,rename",
            "TRAP_FILE": str(tmp_path / "sprung"),
        }

    return environment


@pytest.mark.parametrize("what", ["fail", "SIGINT", "SIGTERM"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_interrupted_while_adding_all_is_as_before(
    repository: BakedProject,
    cookiecutter: Cookiecutter,
    trapped: Callable[[int, str, str], dict[str, str]],
    step: int,
    when: str,
    what: str,
) -> None:
    before = tree(repository)
    done = cookiecutter(
        output=repository.path / "services",
        template=repository.file("templates/service"),
        env=trapped(step, when, what),
        service_name="Soil Moisture",
    )
    assert done.returncode != 0
    assert tree(repository) == before


@pytest.mark.parametrize("what", ["fail", "SIGINT", "SIGTERM"])
# The test is deleted and not replaced, and the folder is that of the code.
@pytest.mark.parametrize("step", STEPS[:-1])
def test_interrupted_while_removing_all_is_as_before(
    repository: BakedProject,
    trapped: Callable[[int, str, str], dict[str, str]],
    step: int,
    what: str,
) -> None:
    add(repository, "soil-moisture")
    before = tree(repository)
    done = repository.run(
        *("scripts/remove-service.sh", "soil-moisture", "--yes"),
        env=trapped(step, "after", what),
        check=False,
    )
    assert done.returncode != 0
    assert tree(repository) == before


@pytest.mark.parametrize(
    "where",
    [
        pytest.param({}, id="wiring"),
        pytest.param({"TRAP_IN": "cookiecutter.generate", "TRAP_CALLS": "chmod"}, id="rendering"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_end_all_processes_and_leave_all_as_before(
    repository: BakedProject,
    trapped: Callable[[int, str, str], dict[str, str]],
    where: dict[str, str],
    number: signal.Signals,
) -> None:
    """A terminal sends the signal to the script, to cookiecutter and to the hook alike."""
    before = tree(repository)
    environment = {**repository.environment(), **trapped(4, "after", "wait"), **where}
    process = subprocess.Popen(
        ["scripts/new-service.sh", "soil-moisture"],
        cwd=repository.path,
        env=user_environment(environment),
        start_new_session=True,
    )
    sprung = Path(environment["TRAP_FILE"] or "")
    while not sprung.exists():
        assert process.poll() is None
        signal.sigtimedwait([], 0.02)
    assert repository.file("services/soil-moisture/main.py").exists() or where
    os.killpg(process.pid, number)
    assert process.wait(timeout=30) != 0
    assert tree(repository) == before


def new_service(
    project: BakedProject, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """The script as the leader of a group of processes, as on a terminal."""
    return subprocess.run(
        ["scripts/new-service.sh", "soil-moisture"],
        cwd=project.path,
        env=user_environment({**project.environment(), **environment}),
        start_new_session=True,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize(
    "what", ["SIGKILL", "cookiecutter SIGTERM", "cookiecutter SIGKILL", "script SIGTERM"]
)
def test_when_one_process_is_ended_all_is_as_before_and_said(
    repository: BakedProject,
    trapped: Callable[[int, str, str], dict[str, str]],
    what: str,
    step: int,
) -> None:
    before = tree(repository)
    done = new_service(repository, trapped(step, "after", what))
    assert done.returncode > 0
    assert "taking services/soil-moisture away again" in done.stderr
    assert tree(repository) == before


@pytest.mark.parametrize(("step", "when"), [(1, "before"), (1, "after"), (6, "after")])
def test_after_a_kill_of_all_the_removal_that_is_named_cleans_up(
    repository: BakedProject,
    trapped: Callable[[int, str, str], dict[str, str]],
    step: int,
    when: str,
) -> None:
    before = tree(repository)
    assert new_service(repository, trapped(step, when, "all SIGKILL")).returncode < 0
    assert tree(repository) != before
    again = repository.run("scripts/new-service.sh", "soil-moisture", check=False)
    assert again.returncode == 1
    assert "interrupted, first run scripts/remove-service.sh soil-moisture" in again.stderr
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert tree(repository) == before


def test_after_a_late_kill_of_the_hook_the_template_names_the_removal(
    repository: BakedProject,
    cookiecutter: Cookiecutter,
    trapped: Callable[[int, str, str], dict[str, str]],
) -> None:
    before = tree(repository)
    killed = trapped(6, "after", "SIGKILL")
    for environment in (killed, {}):
        done = cookiecutter(
            output=repository.path / "services",
            template=repository.file("templates/service"),
            env=environment,
            service_name="Soil Moisture",
        )
        assert done.returncode != 0
    assert "was interrupted, run scripts/remove-service.sh soil-moisture" in done.stderr
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes")
    assert tree(repository) == before


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_removal_that_was_killed_can_be_repeated(
    repository: BakedProject,
    trapped: Callable[[int, str, str], dict[str, str]],
    step: int,
) -> None:
    before = tree(repository)
    add(repository, "soil-moisture")
    remove = ("scripts/remove-service.sh", "soil-moisture", "--yes")
    killed = repository.run(*remove, env=trapped(step, "after", "SIGKILL"), check=False)
    assert killed.returncode != 0
    assert tree(repository) != before
    repository.run(*remove)
    assert tree(repository) == before


def test_what_a_killed_removal_has_left_goes_with_the_next_addition(
    repository: BakedProject, trapped: Callable[[int, str, str], dict[str, str]]
) -> None:
    add(repository, "soil-moisture")
    added = tree(repository)
    remove = ("scripts/remove-service.sh", "soil-moisture", "--yes")
    repository.run(*remove, env=trapped(6, "after", "SIGKILL"), check=False)
    assert repository.file("services/.soil-moisture.removed").is_dir()
    add(repository, "soil-moisture")
    assert tree(repository) == added


# --- many ---------------------------------------------------------------------------------------


@pytest.mark.docker
def test_a_hundred_services(repository: BakedProject, cookiecutter: Cookiecutter) -> None:
    names = [f"service-{number}" for number in range(100)]
    for number, name in enumerate(names):
        answers = {"service_slug": name, "service_type": TYPES[number % 3]}
        done = add_directly(cookiecutter, repository, **answers)
        assert done.returncode == 0, done.stderr
    listed = repository.run("docker", "compose", "config", "--services").stdout.split()
    assert set(names) <= set(listed)
    shutil.copy(
        repository.file("docker-compose.override.example.yml"),
        repository.file("docker-compose.override.yml"),
    )
    config = json.loads(repository.run("docker", "compose", "config", "--format", "json").stdout)
    ports = [
        port["published"]
        for service in config["services"].values()
        for port in service.get("ports", [])
    ]
    assert len(set(ports)) == len(ports) > 100


@needs("git", "python3.13")
@pytest.mark.parametrize("answers", OPTIONS)
def test_three_types_pass_all_checks_together(bake_copy: Bake, answers: dict[str, Any]) -> None:
    """With names of every length, since names decide where lines break."""
    project = bake_copy(**answers)
    longest = "a" * 40
    add(project, "b", "poller")
    add(project, "soil-moisture", "subscriber")
    add(project, longest, "http-api")
    add(project, longest[:-2] + "-s", "subscriber")
    add(project, longest[:-2] + "-p", "poller")
    project.run("git", "add", "--all")
    project.run("make", "lint")
    assert project.run("git", "diff", "--name-only").stdout == ""
    # The shared library knows nothing of services; tests/test_matrix.py runs its tests.
    done = project.run("make", "test", "ARGS=--ignore tests/test_shared", python="3.13")
    assert " passed" in done.stdout
