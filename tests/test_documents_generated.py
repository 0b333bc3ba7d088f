"""The documents that scripts/topics.py writes from the models: up to date, valid and guarded."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.baked import ROOT, SERVICE_TEMPLATE, BakedProject, run
from tests.combinations import CHOICES
from tests.rendering import render, typed_context
from tests.tools import needs

DOCUMENTS = ("docs/topics.md", "docs/asyncapi.json", ".env.example")
SERVICE_TYPES = CHOICES["first_service_type"]
ASYNCAPI_PARSER = "@asyncapi/parser@3.6.6"
PARSE = """
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";
const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
const errors = diagnostics.filter(({ severity }) => severity === 0);
console.log(JSON.stringify({ isValid: Boolean(document), errors }));
"""
# Runs each script in a process of its own, with pydantic imported once for all of them.
CHECK_ALL = """
import multiprocessing, runpy, sys, pydantic_settings

def check(script):
    sys.path[0], sys.argv = script.rpartition("/")[0], [script, "--check"]
    runpy.run_path(script, run_name="__main__")

for script in sys.argv[1:]:
    process = multiprocessing.get_context("fork").Process(target=check, args=[script])
    process.start()
    process.join()
    if process.exitcode:
        print(script, process.exitcode)
"""
ODD_SERVICE = {
    "config.py": """
from datetime import timedelta
from pathlib import Path
from pydantic import AliasChoices, Field, SecretStr
from shared.config import CommaSeparated, Settings

class ServiceSettings(Settings):
    api_key: SecretStr = Field(default=SecretStr("hunter2"), validation_alias="ODD_API_KEY")
    rooms: CommaSeparated[str] = Field(default=["hall", "attic"], validation_alias="ODD_ROOMS")
    limits: dict[str, int] = Field(default_factory=lambda: {"küche": 3})
    is_on: bool = Field(default=True, validation_alias=AliasChoices("ODD_IS_ON", "OLD_IS_ON"))
    account: str = Field(description="Name of the account,\\n    without a default")
    station: Path | None = None
""",
    "units.py": "POWER = {'unit': 'W'}",
    "schemas.py": """
from typing import Annotated, Literal
from pydantic import BaseModel, Field
from shared.schemas import Command, CommandSpec, Message, Topic
from units import POWER

class Cat(BaseModel):
    kind: Literal["cat"]
    kittens: list["Cat"] = []

class Dog(BaseModel):
    kind: Literal["dog"]

class Pets(Message):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    power: Annotated[float, Field(json_schema_extra=POWER)] | None = Field(
        default=None, description="Of the lamp | the fan"
    )
    position: tuple[float, float] = (0, 0)
    rooms: dict[str, list[int]] = {}

class Feed(BaseModel):
    status: str
    grams: float = Field(json_schema_extra={"unit": "g"})

COMMANDS = [
    CommandSpec(name="feed-all", arguments=Feed, reply=Pets, description="feed the pets"),
    CommandSpec(name="call", arguments=Command, description="call the pets"),
]
TOPICS = [
    Topic(pattern="{prefix}/{service}/pets", payload=Pets, description="Pets at home"),
    Topic(pattern="{prefix}/pets", payload=Pets, description="Pets of all"),
    Topic(pattern="{prefix}/+/pets/#", payload=Pets, direction="receive", description="Pets away"),
    Topic(pattern="zigbee/{room}/lamp", payload=Cat, direction="receive", description="A lamp"),
]
""",
}


def fresh_repository(output: Path, environments: Path, **answers: Any) -> BakedProject:
    """Render a repository and its first service, without the hooks that would set it up."""
    context = typed_context(ROOT, None, answers)
    project = BakedProject(render(ROOT, output, context), answers, environments)
    name, service_type = (
        context["cookiecutter"][key] for key in ("first_service", "first_service_type")
    )
    add_service(project, name, service_type)
    return project


def add_service(project: BakedProject, name: str, service_type: str) -> None:
    answers = {"service_name": name, "service_slug": name, "service_type": service_type}
    context = typed_context(SERVICE_TEMPLATE, None, answers)
    render(SERVICE_TEMPLATE, project.file("services"), context)


def topics_script(project: BakedProject, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.run(python_of(project), "scripts/topics.py", *arguments, check=False)


def python_of(project: BakedProject) -> str:
    return f"{project.environment()['UV_PROJECT_ENVIRONMENT']}/bin/python"


@pytest.fixture
def repository(tmp_path: Path, environments: Path) -> BakedProject:
    return fresh_repository(tmp_path, environments)


@pytest.mark.real
def test_a_fresh_repository_has_the_documents_that_make_docs_writes(
    tmp_path: Path, environments: Path
) -> None:
    """If this fails after a change of settings or messages, run `make documents`."""
    names = ("first_service_type", "include_home_assistant", "include_influxdb")
    projects = [
        fresh_repository(
            tmp_path,
            environments,
            project_slug=f"lab-{number}",
            topic_prefix=f"home/{'cellar' * number}_{number}",
            first_service=f"a{number}-service-of-mine",
            **dict(zip(names, chosen, strict=True)),
        )
        for number, chosen in enumerate(itertools.product(*(CHOICES[name] for name in names)))
    ]
    check = python_of(projects[0]), "-c", CHECK_ALL
    done = run(*check, *(project.file("scripts/topics.py") for project in projects), check=False)
    assert (done.stdout, done.stderr) == ("", "")
    assert len(projects) == 4 * len(SERVICE_TYPES)


@pytest.mark.real
def test_a_stale_document_is_reported_and_written_again(repository: BakedProject) -> None:
    expected = {name: repository.read(name) for name in DOCUMENTS}
    schemas = repository.file("services/example-service/schemas.py")
    original = schemas.read_text()
    schemas.write_text(original.replace("cycle: int", "number: int"))
    repository.file(".env.example").unlink()
    done = topics_script(repository, "--check")
    assert done.returncode == 1
    assert done.stderr == "not up to date: {}. Run make docs.\n".format(", ".join(DOCUMENTS))
    assert not repository.file(".env.example").exists()
    assert topics_script(repository).returncode == 0
    assert "| `number` | integer |  | Number of the reading" in repository.read("docs/topics.md")
    assert topics_script(repository, "--check").returncode == 0
    schemas.write_text(original)
    assert topics_script(repository).returncode == 0
    assert {name: repository.read(name) for name in DOCUMENTS} == expected


@pytest.mark.real
def test_settings_and_topics_of_any_kind_are_documented(repository: BakedProject) -> None:
    add_odd_service(repository)
    assert topics_script(repository).stderr == ""
    block = repository.read(".env.example").partition("# --- odd ---\n")[2]
    assert block.splitlines() == [
        "ODD_API_KEY=''",
        "ODD_ROOMS='hall, attic'",
        """LIMITS='{"küche": 3}'""",
        "ODD_IS_ON='true'",
        "# Name of the account, without a default",
        "ACCOUNT=''",
        "STATION=''",
    ]
    page = repository.read("docs/topics.md")
    assert page.index("## example-service\n") < page.index("## odd\n")
    assert "\n### Sent: `{prefix}/odd/pets`\n\nPets at home. QoS 1, not retained.\n" in page
    assert "\n### Received: `{prefix}/+/pets/#`\n" in page
    assert "\n| `power?` | number | W | Of the lamp \\| the fan |\n" in page
    channels = repository.json("docs/asyncapi.json")["channels"]
    addresses = [channel["address"] for channel in channels.values()]
    assert addresses[-7:] == [
        *("{prefix}/odd/pets", "{prefix}/pets", "{prefix}/+/pets/#", "zigbee/{room}/lamp"),
        *("{prefix}/coordinator/command/odd", "{prefix}/odd/response"),
        "{prefix}/coordinator/command/odd",
    ]
    assert "\nCommand `feed-all`: feed the pets. QoS 1, not retained.\n" in page
    assert '\n| `grams` | number | g |  |\n| `command` | "feed-all" |  |  |\n' in page
    # A change of any module counts, although the rest comes from a cache.
    repository.file("services/odd/units.py").write_text("POWER = {'unit': 'kW'}")
    assert topics_script(repository, "--check").returncode == 1
    assert topics_script(repository).stderr == ""
    assert "\n| `power?` | number | kW | Of the lamp \\| the fan |\n" in repository.read(
        "docs/topics.md"
    )


@pytest.mark.real
def test_fleet_offers_every_argument_of_a_command(repository: BakedProject) -> None:
    add_odd_service(repository)
    add_service(repository, "fleet", "fleet")
    assert topics_script(repository).returncode == 0
    program = (
        "from catalog import Catalog; print([*Catalog().commands('odd')[0].arguments['required']])"
    )
    path = {"PYTHONPATH": f"{repository.path}:{repository.file('services/fleet')}"}
    done = repository.run(python_of(repository), "-c", program, env=path)
    assert done.stdout == "['status', 'grams']\n"


@pytest.mark.real
@pytest.mark.slow
@needs("npm", "node")
def test_the_official_parser_accepts_the_asyncapi_document(repository: BakedProject) -> None:
    for service_type in SERVICE_TYPES:
        add_service(repository, f"another-{service_type}", service_type)
    add_odd_service(repository)
    assert topics_script(repository).returncode == 0
    document = repository.read("docs/asyncapi.json")
    assert parsed(document) == {"isValid": True, "errors": []}
    assert parsed(document.replace('"action": "send"', '"action": "shout"'))["errors"] != []


@pytest.mark.real
@needs("git")
def test_breaking_changes_since_a_commit_are_listed(repository: BakedProject) -> None:
    def breaking(revision: str) -> tuple[int, str]:
        done = topics_script(repository, "--breaking", revision)
        return done.returncode, done.stdout

    for command in ("init --quiet", "add .", "commit --quiet --message Start"):
        repository.run("git", *command.split())
    assert breaking("HEAD") == (0, "No payload change since HEAD breaks a consumer.\n")
    schemas = repository.file("services/example-service/schemas.py")
    schemas.write_text(schemas.read_text().replace("value: float", "power: float"))
    lines = [
        f'- example-service/{topic}: field "value" is gone (breaking)\n'
        for topic in ("reading", "response")
    ]
    assert breaking("HEAD") == (1, "".join(lines))
    assert breaking("--help")[0] == 2
    assert breaking("v9")[0] == 2


def add_odd_service(repository: BakedProject) -> None:
    repository.file("services/odd").mkdir()
    for name, text in ODD_SERVICE.items():
        repository.file(f"services/odd/{name}").write_text(text, encoding="utf-8")


def parsed(document: str) -> Any:
    """Return the messages of the parser, which npm installs once, into .tools/."""
    place = ROOT / ".tools/asyncapi-parser"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        script = place / "parse.mjs"
        if not script.exists():
            run("npm", "install", "--silent", "--no-audit", "--no-fund", ASYNCAPI_PARSER, cwd=place)
            script.write_text(PARSE)
    return json.loads(run("node", "parse.mjs", cwd=place, stdin=document).stdout)
