"""Services are added, renamed and removed without a trace in what is not theirs."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import publish

from tests.baked import BakedProject, run, user_environment
from tests.combinations import OPTIONS
from tests.conftest import Bake, Cookiecutter
from tests.home_assistant import until
from tests.ports import free_port, is_listening
from tests.tools import needs, path_without, slow_after_first

pytestmark = pytest.mark.real

PICTURE = b"\x89PNG\r\n\xff"
TYPES = ["poller", "subscriber", "http-api", "fleet"]
NOT_WATCHED = {".git", "__pycache__", ".venv", ".tools", ".ruff_cache", ".mypy_cache"}
LISTS = ["docker-compose.yml", "docker-compose.override.example.yml"]


@pytest.fixture
def repository(bake_copy: Bake) -> BakedProject:
    return bake_copy()


def tree(project: BakedProject) -> dict[str, bytes | None]:
    """Every directory (None) and every file with its bytes, but for what git and tools keep."""
    return {
        path.relative_to(project.path).as_posix(): path.read_bytes() if path.is_file() else None
        for path in project.path.rglob("*")
        if not NOT_WATCHED & set(path.relative_to(project.path).parts)
    }


def add(project: BakedProject, name: str, kind: str = "poller", *options: str) -> None:
    project.run("scripts/new-service.sh", name, "--type", kind, *options)


def remove(project: BakedProject, name: str, *options: str) -> None:
    project.run("scripts/remove-service.sh", name, "--yes", *options)


def rejected(project: BakedProject, *command: str) -> str:
    """The message of a command that fails and changes nothing."""
    before = tree(project)
    done = project.run(*command, check=False)
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert tree(project) == before
    return done.stderr


def edit(project: BakedProject, name: str, change: Callable[[str], str]) -> None:
    text = change(project.read(name))
    with project.file(name).open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def included(project: BakedProject, name: str) -> list[str]:
    paths: list[str] = project.yaml(name)["include"]
    return paths


# --- Adding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", slow_after_first(TYPES))
def test_adds_a_directory_a_test_and_a_line_to_each_list(
    repository: BakedProject, kind: str
) -> None:
    before = tree(repository)
    command = ("scripts/new-service.sh", "soil-moisture", "--type", kind)
    said = repository.run(*command, "--description", "Watches the soil").stdout
    changed = {name for name, content in tree(repository).items() if before.get(name) != content}
    outside = {name for name in changed if not name.startswith("services/soil-moisture")}
    documents = {".env.example", "docs/topics.md", "docs/asyncapi.json"}
    assert (
        outside - documents
        == {*LISTS, "tests/test_soil_moisture.py", "tests", "services"} & outside
    )
    assert included(repository, LISTS[0])[-1] == "services/soil-moisture/compose.yml"
    assert included(repository, LISTS[1])[-1] == "services/soil-moisture/compose.dev.yml"
    service = repository.yaml("services/soil-moisture/compose.yml")["services"]["soil-moisture"]
    assert service["build"] == {"dockerfile": "services/soil-moisture/Dockerfile"}
    port = ["127.0.0.1:${SOIL_MOISTURE_HTTP_PORT:-8090}:8090"] if kind == "fleet" else None
    assert service.get("ports") == port
    assert "# Watches the soil\n" in repository.read("services/soil-moisture/compose.yml")
    assert ("Set SOIL_MOISTURE_PASSWORD in .env" in said) == (kind == "fleet")
    assert "SOIL_MOISTURE_" in repository.read(".env.example")
    repository.uv_run("python", "scripts/topics.py", "--check")


def test_make_fleet_adds_the_page_with_a_password_once(repository: BakedProject) -> None:
    said = repository.run("make", "fleet").stdout
    assert "Set FLEET_PASSWORD" not in said
    assert "http://127.0.0.1:8090" in said
    assert included(repository, LISTS[0])[-1] == "services/fleet/compose.yml"
    assert re.search(r"^FLEET_PASSWORD='[\w-]{16}'\n\Z", repository.read(".env"), re.MULTILINE)
    before = tree(repository)
    assert "http://127.0.0.1:8090" in repository.run("make", "fleet").stdout
    assert tree(repository) == before
    # A clone has only the examples.
    repository.file(".env").unlink()
    repository.run("make", "setup")
    assert re.search(r"^FLEET_PASSWORD='[0-9a-f]{32}'\n", repository.read(".env"), re.MULTILINE)


@pytest.mark.parametrize("kind", slow_after_first(TYPES))
def test_removed_it_leaves_no_trace(repository: BakedProject, kind: str) -> None:
    override = repository.file("docker-compose.override.yml")
    override.write_bytes(repository.file(LISTS[1]).read_bytes())
    before = tree(repository)
    add(repository, "soil-moisture", kind)
    assert override.read_bytes() == repository.file(LISTS[1]).read_bytes()
    remove(repository, "soil-moisture")
    assert tree(repository) == before


@needs("python3.13")
def test_the_last_service_leaves_an_empty_list_that_takes_the_next(
    repository: BakedProject,
) -> None:
    before = repository.read(LISTS[0])
    remove(repository, "example-service")
    assert included(repository, LISTS[0]) == []
    # git keeps no empty directory, so a clone has none.
    repository.file("services").rmdir()
    repository.run("make", "test", "ARGS=tests/test_shared/test_retry.py", python="3.13")
    add(repository, "example-service")
    assert repository.read(LISTS[0]) == before


def own_list(newline: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        text = text.replace("  - services", "- services").replace("include:", "include: # mine")
        return text.replace("compose.yml\n", "compose.yml # first\n\n", 1).replace("\n", newline)

    return change


@pytest.mark.parametrize(
    "newline",
    [pytest.param("\r\n", id="CRLF"), pytest.param("\n", id="LF", marks=pytest.mark.slow)],
)
def test_every_other_byte_of_an_edited_compose_file_stays(
    repository: BakedProject, newline: str
) -> None:
    edit(repository, LISTS[0], own_list(newline))
    before = tree(repository)
    add(repository, "soil-moisture")
    assert f"{newline}- services/soil-moisture/compose.yml{newline}" in repository.read(LISTS[0])
    remove(repository, "soil-moisture")
    assert tree(repository) == before


def test_an_override_without_services_stays_as_it_is(repository: BakedProject) -> None:
    own = repository.file("docker-compose.override.yml")
    own.write_text("services:\n  mqtt:\n    ports: ['127.0.0.1:1884:1883']\n")
    before = own.read_bytes()
    add(repository, "soil-moisture")
    assert own.read_bytes() == before


def test_a_list_in_another_form_is_edited_by_hand(repository: BakedProject) -> None:
    edit(
        repository,
        LISTS[0],
        lambda text: text.replace(
            "include:\n  - services/example-service/compose.yml\n",
            "include: [services/example-service/compose.yml]\n",
        ),
    )
    message = rejected(repository, "scripts/new-service.sh", "soil-moisture")
    assert "services/soil-moisture/compose.yml" in message
    assert "by hand" in message


def test_the_template_adds_services_by_itself(
    repository: BakedProject, cookiecutter: Cookiecutter
) -> None:
    before = tree(repository)
    done = cookiecutter(
        *("--directory", "service-template"),
        output=repository.path / "services",
        service_name="Soil Moisture",
    )
    assert done.returncode == 0, done.stderr
    assert "services/soil-moisture/compose.yml" in included(repository, LISTS[0])
    assert repository.file("tests/test_soil_moisture.py").is_file()
    remove(repository, "soil-moisture")
    assert tree(repository) == before


def test_enter_at_every_prompt_makes_a_service(repository: BakedProject) -> None:
    repository.run(
        *(sys.executable, "-m", "cookiecutter", "templates/service", "--output-dir", "services"),
        stdin="\n" * 4,
    )
    assert "services/my-service/compose.yml" in included(repository, LISTS[0])


def test_hostile_descriptions_are_plain_text(repository: BakedProject) -> None:
    hostile = "A \"q\" 'r' \\ # : {{ x }} {% y %} $(touch z) `z` %s\t漢 🎈\nnext: line"
    add(repository, "soil-moisture", "poller", "--description", hostile)
    compose = repository.read("services/soil-moisture/compose.yml")
    assert compose.startswith(f"# {' '.join(hostile.split())}\n")
    assert set(repository.yaml("services/soil-moisture/compose.yml")["services"]) == {
        "soil-moisture"
    }


def test_two_at_once_both_succeed(repository: BakedProject) -> None:
    environment = user_environment(repository.environment())
    script = repository.file("scripts/new-service.sh")
    running = [
        subprocess.Popen([script, name], cwd=repository.path, env=environment) for name in "ab"
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    for file in LISTS:
        assert {path.split("/")[1] for path in included(repository, file)} >= {"a", "b"}
    repository.uv_run("python", "scripts/topics.py", "--check")


KILLED = """
import os, signal, sys
sys.argv = ["services.py", {command!r}, "soil-moisture", *{options!r}]
sys.path.insert(0, "scripts")
import services
steps = iter(range({steps}))
def step(function):
    def wrapper(*arguments, **options):
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapper
services.Path.rename = step(services.Path.rename)
services.Path.unlink = step(services.Path.unlink)
services.shutil.rmtree = step(services.shutil.rmtree)
services.atomic_write = step(services.atomic_write)
services.write_documents = step(services.write_documents)
raise SystemExit(services.main())
"""


def kill_after(project: BakedProject, steps: int, command: str, *options: str) -> bool:
    """Kill a run after some of its steps. False when it has ended before."""
    script = KILLED.format(command=command, options=list(options), steps=steps)
    return project.uv_run("python", "-c", script, check=False).returncode != 0


@pytest.mark.slow
def test_an_interrupted_addition_is_finished_by_running_it_again(repository: BakedProject) -> None:
    before = tree(repository)
    add(repository, "soil-moisture")
    complete = tree(repository)
    remove(repository, "soil-moisture")
    interrupted = 0
    while kill_after(repository, interrupted, "new"):
        interrupted += 1
        again = repository.run("scripts/new-service.sh", "soil-moisture", check=False)
        assert again.returncode == 0 or "exists already" in again.stderr
        assert tree(repository) == complete
        remove(repository, "soil-moisture")
        assert tree(repository) == before
    assert interrupted >= 5


@pytest.mark.slow
def test_an_interrupted_removal_is_finished_by_running_it_again(repository: BakedProject) -> None:
    before = tree(repository)
    add(repository, "soil-moisture")
    interrupted = 0
    while kill_after(repository, interrupted, "remove", "--yes"):
        interrupted += 1
        repository.run("scripts/remove-service.sh", "soil-moisture", "--yes", check=False)
        repository.uv_run("python", "scripts/topics.py")
        assert tree(repository) == before
        add(repository, "soil-moisture")
    assert interrupted >= 4


INTERRUPTED = """
import os, signal, sys
sys.argv = ["services.py", "rename", "example-service", "soil-moisture"]
sys.path.insert(0, "scripts")
import services
write_lists = services.write_lists
def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return write_lists(*arguments, **options)
services.write_lists = interrupted
raise SystemExit(services.main())
"""


def test_ctrl_c_does_not_leave_half_a_rename(repository: BakedProject) -> None:
    repository.uv_run("python", "-c", INTERRUPTED)
    assert not repository.file("services/example-service").exists()
    assert repository.file("services/soil-moisture/main.py").exists()
    repository.uv_run("python", "scripts/topics.py", "--check")


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slug",
    slow_after_first(
        ["Soil", "soil_moisture", "-soil", "soil-", "so--il", "1soil", "soil moisture", "soil#",
         "soil+", "bödén", "a" * 41, "mqtt", "coordinator", "debug", "errors", "shared", "base",
         "on", "null", "con", "com1", "base-service", "x-soil"]
    ),
)  # fmt: skip
def test_names_that_are_not_valid(bake_copy: Bake, cookiecutter: Cookiecutter, slug: str) -> None:
    project = bake_copy()
    done = cookiecutter(
        output=project.path / "services",
        template=project.file("templates/service"),
        service_slug=slug,
    )
    assert done.returncode == 1
    assert "  - service_slug: " in done.stderr
    assert "for example 'soil-moisture'" in done.stderr
    assert not project.file(f"services/{slug}").exists()


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
    problems = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("  - ")]
    assert problems == ["  - service_slug", "  - description"]
    command = next(line for line in done.stderr.splitlines() if line.startswith("  cookiecutter "))
    repository.run(sys.executable, "-m", *shlex.split(command))
    assert repository.file("services/soil-moisture/main.py").is_file()


def test_the_script_shows_its_own_command(repository: BakedProject) -> None:
    words = ("Soil", "--type", "http-api", "--description", "x" * 101)
    message = rejected(repository, "scripts/new-service.sh", *words)
    assert "  - NAME: must be lower-case" in message
    assert "  - --description: must have at most" in message
    command = next(line for line in message.splitlines() if "new-service.sh" in line)
    repository.run(*shlex.split(command))
    assert repository.file("services/soil-moisture/api.py").is_file()


@pytest.mark.parametrize("name", ["a/b", "../b", "/tmp/b", ".", ""])
def test_a_name_leads_to_no_other_directory(repository: BakedProject, name: str) -> None:
    rejected(repository, "scripts/new-service.sh", name)
    message = rejected(repository, "scripts/remove-service.sh", name, "--yes")
    assert "is not a valid name" in message


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("docker-compose.override.yml", "services:\n  soil-moisture:\n    image: x\n"),
        ("docker-compose.override.yaml", "services:\n  'soil-moisture' : {image: x}\n"),
        ("own.yml", "volumes:\n  soil_moisture_data:\n"),
        ("more/nested.yml", "services:\n  soil-moisture:\n    image: x\n"),
        ("tests/test_soil_moisture.py", ""),
    ],
)
def test_a_name_that_any_loaded_file_has(repository: BakedProject, file: str, text: str) -> None:
    repository.file("more").mkdir()
    repository.file("own.yml").write_text("include: [more/nested.yml]\n")
    repository.file("more/nested.yml").write_text("{}\n")
    with repository.file(".env").open("a") as env:
        env.write("COMPOSE_FILE='docker-compose.yml:own.yml'\n")
    repository.file(file).write_text(text)
    assert file in rejected(repository, "scripts/new-service.sh", "soil-moisture")


@pytest.mark.parametrize("ending", [b"\n  x: [\n", b"# \x07\n", b"# \xff\n"])
def test_a_compose_file_that_is_not_valid(repository: BakedProject, ending: bytes) -> None:
    path = repository.file(LISTS[0])
    path.write_bytes(path.read_bytes() + ending)
    message = rejected(repository, "scripts/new-service.sh", "soil-moisture")
    assert message.startswith("docker-compose.yml is not valid YAML: ")


def test_scalars_that_look_like_dates_and_numbers_are_text(repository: BakedProject) -> None:
    override = repository.file("docker-compose.override.yaml")
    lines = [
        "x-until: 2025-02-30",
        "include:",
        "  - services/example-service/compose.dev.yml",
        "services:",
        "  mqtt:",
        "    ports: [22:22, 8000-8010:8000-8010]",
    ]
    override.write_text("\n".join(lines))
    add(repository, "soil-moisture")
    lines.insert(3, "  - services/soil-moisture/compose.dev.yml")
    assert override.read_text().splitlines() == lines


def test_outside_a_generated_repository(tmp_path: Path, cookiecutter: Cookiecutter) -> None:
    done = cookiecutter("--directory", "service-template", output=tmp_path / "elsewhere")
    assert done.returncode == 1
    assert "only to a repository made from this template" in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())


# --- Removing and renaming ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "definition",
    slow_after_first(
        [
            "depends_on: [soil-moisture]",
            "depends_on: {soil-moisture: {condition: service_healthy}}",
            "network_mode: service:soil-moisture",
            "volumes_from: [soil-moisture:ro]",
            "volumes: [soil_moisture_data:/data:ro]",
            "environment: {API: 'http://soil-moisture:8000'}",
            "build: {context: ., dockerfile: services/soil-moisture/Dockerfile}",
            "extends: {file: services/soil-moisture/compose.yml, service: soil-moisture}",
        ]
    ),
)
@pytest.mark.parametrize(
    "file", slow_after_first(["services/shop/compose.yml", "docker-compose.override.yml"])
)
def test_a_service_that_another_one_needs_stays(
    repository: BakedProject, file: str, definition: str
) -> None:
    add(repository, "soil-moisture")
    repository.file("services/shop").mkdir()
    repository.file(file).write_text(f"services:\n  shop:\n    image: x\n    {definition}\n")
    edit(
        repository,
        LISTS[0],
        lambda text: text.replace("include:\n", "include:\n  - services/shop/compose.yml\n"),
    )
    if not repository.file("services/shop/compose.yml").exists():
        repository.file("services/shop/compose.yml").write_text("{}\n")
    message = rejected(repository, "scripts/remove-service.sh", "soil-moisture", "--yes")
    assert f"still needed by shop in {file}" in message


@pytest.mark.docker
def test_compose_decides_where_it_is_installed(repository: BakedProject) -> None:
    """A network of the service is not among the references that the script looks at."""
    add(repository, "soil-moisture")
    with repository.file("services/soil-moisture/compose.yml").open("a") as compose:
        compose.write("\nnetworks:\n  field:\n")
    override = repository.file("docker-compose.override.yml")
    override.write_text("services:\n  shop:\n    image: x\n    networks: [field]\n")
    message = rejected(repository, "scripts/remove-service.sh", "soil-moisture", "--yes")
    assert "Compose rejects the result" in message
    assert "undefined network field" in message
    override.unlink()
    remove(repository, "soil-moisture")


def test_a_removal_that_compose_rejects_leaves_the_container(
    repository: BakedProject, tmp_path: Path
) -> None:
    add(repository, "soil-moisture")
    docker = tmp_path / "docker"
    docker.write_text(
        f"""#!/bin/sh
        echo "$*" >>{tmp_path}/calls
        case "$*" in
          *quiet) grep -q soil-moisture {LISTS[0]} || {{ echo no >&2; exit 1; }} ;;
          *config) echo model ;;
        esac
        """
    )
    docker.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ("scripts/remove-service.sh", "soil-moisture", "--yes")
    done = repository.run(*command, env=path, check=False)
    assert "Nothing was changed" in done.stderr
    assert " rm " not in (tmp_path / "calls").read_text()
    docker.write_text(f"#!/bin/sh\necho $* \\< $(cat) >>{tmp_path}/calls; echo model\n")
    repository.run(*command, env=path)
    removal = "compose --file - rm --stop --force soil-moisture < model\n"
    assert removal in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("name", slow_after_first(["watch", "build", "internal", "service"]))
def test_words_of_compose_are_good_names(repository: BakedProject, name: str) -> None:
    before = tree(repository)
    add(repository, name)
    remove(repository, name)
    assert tree(repository) == before


def test_a_service_that_no_list_names_comes_back(repository: BakedProject) -> None:
    before = tree(repository)
    for name in LISTS:
        edit(repository, name, lambda text: re.sub("include:\n.*\n", "include: []\n", text))
    add(repository, "example-service", "subscriber")
    assert tree(repository) == before


def test_removal_needs_a_terminal_or_yes(repository: BakedProject) -> None:
    assert "--yes" in rejected(repository, "scripts/remove-service.sh", "example-service")
    assert "Unknown service nothing" in rejected(repository, "scripts/remove-service.sh", "nothing")


@needs("git")
@pytest.mark.parametrize(
    ("typed", "goes"), [("y\n", True), ("n\n", False), ("\n", False), ("\4", False)]
)
def test_on_a_terminal_the_user_decides(repository: BakedProject, typed: str, goes: bool) -> None:
    edit(repository, "tests/test_example_service.py", lambda text: text + "# Mine\n")
    before = tree(repository)
    terminal, its_other_end = pty.openpty()
    os.write(terminal, typed.encode())
    done = subprocess.run(
        [repository.file("scripts/remove-service.sh"), "example-service"],
        cwd=repository.path,
        env=user_environment(repository.environment()),
        stdin=its_other_end,
        capture_output=True,
        text=True,
    )
    os.close(terminal)
    os.close(its_other_end)
    assert "This deletes services/example-service and its test." in done.stdout
    assert "They hold changes that are in no commit." in done.stdout
    assert done.returncode == (0 if goes else 1), done.stderr
    assert goes or done.stderr == "Nothing was changed.\n"
    assert (tree(repository) == before) != goes


@needs("git", "python3.13")
@pytest.mark.parametrize("kind", slow_after_first(["http-api", "poller", "subscriber", "fleet"]))
def test_a_renamed_service_works_and_says_what_stays_behind(
    repository: BakedProject, kind: str
) -> None:
    # A module of the http-api type has the name `api` as well.
    add(repository, "api", kind)
    own = re.findall(r'"(API_\w+)"', repository.read("services/api/config.py"))[0]
    with repository.file(".env").open("a") as env:
        env.write(f"{own}='1'\nAPI_OF_OTHERS='1'\n")
    repository.file("services/api/logo.png").write_bytes(PICTURE)
    repository.file("notes.md").write_text("Restart api first.\nThe http-api and api-x stay.\n")
    # As add-package.sh does.
    groups = "[dependency-groups]\n"
    pyproject = repository.read("pyproject.toml").replace(groups, f"{groups}api = []\n")
    repository.file("pyproject.toml").write_text(pyproject)
    requirements = repository.read("services/api/requirements.txt")
    repository.file("services/api/requirements.txt").write_text(f"# group: api\n{requirements}")
    repository.run("git", "add", "--all")
    said = repository.run("scripts/rename-service.sh", "api", "front-door").stdout
    assert "api_data" in said
    assert said.startswith("Renaming api to front-door.\n")
    # Of the places with the name, those that a user has written.
    mentioned = re.findall(r"^  (\S+?):\d+:(.*)", said, re.MULTILINE)
    assert ("notes.md", "Restart api first.") in mentioned
    assert [line for _, line in mentioned if not re.search(r"(?<![\w-])api(?![\w-])", line)] == []
    # The group keeps its name, as requirements.txt names it.
    generated = ("docs/topics.md", "docs/asyncapi.json", ".env.example", "uv.lock")
    others = (*generated, "shared/", "scripts/", "pyproject.toml")
    assert [file for file, _ in mentioned if file.startswith(others)] == []
    # Nothing of this repository runs in containers.
    assert "The broker may keep retained messages of api" in said
    renamed = own.replace("API_", "FRONT_DOOR_")
    assert f"\n{renamed}='1'\nAPI_OF_OTHERS='1'\n" in repository.read(".env")
    assert repository.file("services/front-door/logo.png").read_bytes() == PICTURE
    repository.file("services/front-door/logo.png").unlink()
    assert not repository.file("services/api").exists()
    for name in repository.files("services/front-door/*"):
        assert not re.search(r"\bAPI_|ApiService|api_data|[\"'/]api[\"'/]", repository.read(name))
    # The tests do not see the variables of this machine.
    foreign = {"FRONT_DOOR_HTTP_PORT": "none", "HTTP_PROXY": "http://127.0.0.1:9"}
    repository.run("make", "test", "SERVICE=front-door", python="3.13", env=foreign)
    repository.uv_run("python", "scripts/topics.py", "--check")


@needs("git", "mosquitto", "mosquitto_sub")
@pytest.mark.slow
@pytest.mark.parametrize("home_assistant", [True, False])
def test_the_broker_retains_nothing_of_a_removed_or_renamed_service(
    bake_copy: Bake, tmp_path: Path, home_assistant: bool
) -> None:
    repository = bake_copy(include_home_assistant=home_assistant)
    prefix = repository.path.name
    port = free_port()
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    settings = {"MQTT_PORT": str(port), "MQTT_PASSWORD": ""}
    if home_assistant:
        settings |= {"MQTT_HOST": "127.0.0.1", "HA_DISCOVERY_PREFIX": "homeassistant"}
    else:
        # The default, for which `make run` uses the broker of this machine.
        settings["MQTT_HOST"] = "mqtt"
    with repository.file(".env").open("a", encoding="utf-8") as env:
        env.writelines(f"{name}='{value}'\n" for name, value in settings.items())
    add(repository, "soil-moisture")
    topics = {
        f"{prefix}/{name}/{topic}"
        for name in ("example-service", "soil-moisture", "kept")
        for topic in ("availability", "statistics", "room/1/reading")
    }
    if home_assistant:
        topics |= {
            f"homeassistant/device/{prefix}_{name}/config" for name in ("soil-moisture", "kept")
        }
    with broker(tmp_path / "mosquitto.conf", port):
        # The client waits for its acknowledgements.
        publish.multiple([(topic, "{}", 1, True) for topic in topics], port=port)
        said = repository.run("scripts/rename-service.sh", "soil-moisture", "soil").stdout
        remove(repository, "example-service")
        found = topics & retained_topics(port)
        doctor = repository.run(sys.executable, "scripts/doctor.py", "--json", check=False).stdout
    assert "The broker may keep" not in said
    details = {each["check"]: each["detail"] for each in json.loads(doctor)}
    assert ("discovery" in details) == home_assistant
    assert details.get("discovery", "announced: kept (").startswith("announced: kept (")
    assert found == {topic for topic in topics if "kept" in topic}
    done = repository.uv_run("python", "scripts/retained.py", "soil", check=False)
    assert done.returncode == 1
    assert ("no connection" if home_assistant else "mqtt") in done.stderr


@contextmanager
def broker(configuration: Path, port: int) -> Iterator[None]:
    """Run Mosquitto."""
    with subprocess.Popen(["mosquitto", "-c", configuration], stderr=subprocess.DEVNULL) as process:
        until(lambda: is_listening(port), "broker")
        yield
        process.terminate()


def retained_topics(port: int) -> set[str]:
    command = ["mosquitto_sub", "-p", str(port), "-t", "#", "--retained-only", "-F", "%t"]
    # It ends with the exit code of a timeout.
    return set(run(*command, "-W", "3", check=False).stdout.split())


def test_a_name_that_is_not_valid_is_not_given(repository: BakedProject) -> None:
    said = rejected(repository, "scripts/rename-service.sh", "example-service", "No")
    assert "NEW: must be" in said
    assert said.endswith("\n  scripts/rename-service.sh example-service soil-moisture\n\n")
    assert "taken" in rejected(
        repository, "scripts/rename-service.sh", "example-service", "patterns"
    )
    assert "Unknown service" in rejected(repository, "scripts/rename-service.sh", "nothing", "else")


# --- Packages -----------------------------------------------------------------------------------


@needs("python3.13")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http-api", "poller"])
def test_a_package_of_one_service_is_there_on_the_host_and_in_its_image(
    repository: BakedProject, tmp_path: Path, kind: str
) -> None:
    add(repository, "soil-moisture", kind)
    own = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "environment")}
    package = "PACKAGE=humanize>=4"
    repository.run("make", "add-package", "SERVICE=soil-moisture", package, env=own)
    assert "humanize>=4" in repository.read("pyproject.toml")
    assert not repository.file("=4").exists()
    requirements = repository.read("services/soil-moisture/requirements.txt")
    assert "\nhumanize==" in requirements
    assert ("\nfastapi==" in requirements) == (kind == "http-api")
    assert "humanize" not in repository.read("base/requirements.txt")
    repository.uv_run("python", "-c", "import humanize", env=own)
    repository.run("scripts/rename-service.sh", "soil-moisture", "soil", env=own)
    repository.run("scripts/add-package.sh", "soil", "humanize", env=own)
    groups = repository.toml("pyproject.toml")["dependency-groups"]
    assert [name for name in groups if name.startswith("soil")] == ["soil-moisture"]
    repository.run("scripts/lock.sh", "--check", env=own)
    said = repository.run("scripts/remove-service.sh", "soil", "--yes", env=own).stdout
    assert "Delete its packages: soil-moisture in pyproject.toml" in said
    assert "http-api" not in said


# --- Many ---------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.slow
def test_many_services(repository: BakedProject) -> None:
    names = [f"service-{number}" for number in range(20)]
    for number, name in enumerate(names):
        add(repository, name, TYPES[number % 3])
    config = json.loads(repository.run("docker", "compose", "config", "--format", "json").stdout)
    assert set(names) <= set(config["services"])


@needs("git", "python3.13")
@pytest.mark.slow
@pytest.mark.parametrize("answers", OPTIONS)
def test_all_types_pass_all_checks_together(bake_copy: Bake, answers: dict[str, Any]) -> None:
    """With names of every length, since names decide where lines break."""
    project = bake_copy(**answers)
    longest = "a" * 40
    add(project, "b", "poller")
    add(project, "soil-moisture", "subscriber")
    add(project, longest, "http-api")
    add(project, longest[:-2] + "-s", "subscriber")
    add(project, longest[:-2] + "-p", "poller")
    add(project, "fleet", "fleet")
    add(project, longest[:-2] + "-f", "fleet")
    project.run("git", "add", "--all")
    project.run("make", "lint")
    assert project.run("git", "diff", "--name-only").stdout == ""
    assert " passed" in project.run("make", "test", python="3.13").stdout


def test_without_docker_and_git(repository: BakedProject, tmp_path: Path) -> None:
    env = {"PATH": path_without("docker", "git", folder=tmp_path / "bin")}
    before = tree(repository)
    repository.run("scripts/new-service.sh", "soil-moisture", env=env)
    repository.run("scripts/remove-service.sh", "soil-moisture", "--yes", env=env)
    assert tree(repository) == before
