"""Every command in the documents: run here, or by the test named here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.baked import ROOT, run
from tests.conftest import Bake
from tests.test_documents import blocks, code_spans, documents
from tests.tools import needs

PROGRAM = re.compile(
    r"(make|git|docker \S+|kubectl|openssl|curl|brew|apt|cp|echo|(\w+=\S+ )+make|scripts/\S+) \S"
)
SETTING = re.compile(r"[A-Z_]+='[^']*'")

# Run word for word, in this order, in one repository.
RUN = r"""
make setup
make format
make docs
make lint
make test
make test SERVICE=example-service
make test ARGS="-k retry -x"
make secrets-encrypt
make secrets-decrypt
make secrets-check
make secrets-recipients
make secrets-recipients ARGS=sync
make secrets-recipients ARGS=rotate
scripts/new-service.sh soil-moisture --type subscriber
scripts/remove-service.sh soil-moisture
make new-service NAME=soil-moisture TYPE=poller
scripts/remove-service.sh soil-moisture
make new-service NAME=soil-moisture TYPE=subscriber
scripts/remove-service.sh soil-moisture
scripts/new-service.sh soil-moisture --type subscriber --description "Watches the soil"
make test SERVICE=soil-moisture
scripts/rename-service.sh soil-moisture soil
make fleet
make docs ARGS="--breaking origin/main"
echo "HA_DISCOVERY_PREFIX='homeassistant'" >> .env
cp docker-compose.override.example.yml docker-compose.override.yml
git status
git diff HEAD
git reset --hard
""".strip().splitlines()

DOCKER = "test_docker.py::test_"
ELSEWHERE = {
    "make run": "test_documents.py::test_getting_started_works_word_for_word",
    "make watch": "test_documents.py::test_getting_started_works_word_for_word",
    "make send": "test_documents.py::test_getting_started_works_word_for_word",
    'scripts/new-service.sh disk-space --type poller --description "Watches the disk"': (
        "test_documents.py::test_getting_started_works_word_for_word"
    ),
    "make test SERVICE=disk-space": "test_documents.py::test_getting_started_works_word_for_word",
    "git add .": "test_documents.py::test_getting_started_works_word_for_word",
    'git commit --message "Add disk-space"': (
        "test_documents.py::test_getting_started_works_word_for_word"
    ),
    "MQTT_PORT=1884 make run": "test_documents.py::test_getting_started_works_word_for_word",
    "make test SERVICE=name": "test_matrix.py::test_own_tests_pass",
    "make diagnose": "test_docker_development.py::test_diagnose_uses_the_container",
    "make diagnose SERVICE=example-service HOST=1": "test_run.py::test_diagnose_on_the_host",
    "make debug SERVICE=soil-moisture HOST=1": "test_run.py::test_debug_on_the_host_waits",
    "make debug": "test_docker_development.py::test_debug_starts_one_service",
    "make up": "test_add_service_docker.py::test_services_come_talk_and_go",
    "make down": "test_add_service_docker.py::test_services_come_talk_and_go",
    "make status": f"{DOCKER}status_shows_every_fault_in_one_table",
    "DOCKER_CONTEXT=manager make status": "test_swarm.py::test_updates_and_rollbacks_lose_nothing",
    "make doctor": "test_upkeep.py::test_a_new_repository_is_well",
    "make deploy": "test_images.py::test_a_deployment_takes_the_images_of_its_commit",
    'make deploy ARGS="--context attic"': f"{DOCKER}deploy_goes_through_a_context",
    "DOCKER_CONTEXT=attic make status": f"{DOCKER}deploy_goes_through_a_context",
    'make deploy ARGS="--swarm': "test_swarm.py::test_nodes_as_documented",
    "docker swarm": "test_swarm.py::test_nodes_as_documented",
    "docker node update": "test_swarm.py::test_nodes_as_documented",
    "docker context create manager": "test_swarm.py::test_nodes_as_documented",
    "docker --context manager service create": "test_swarm.py::test_nodes_as_documented",
    "COMPOSE_FILE=attic.yml make deploy": "test_swarm.py::test_a_service_on_another_host",
    "COMPOSE_FILE=attic.yml DOCKER_CONTEXT=attic": "test_swarm.py::test_a_service_on_another_host",
    "docker context create attic": "test_swarm.py::test_a_service_on_another_host",
    "git checkout": "test_images.py::test_a_deployment_takes_the_images_of_its_commit",
    "docker compose watch": "test_docker_development.py::test_every_edit_is_live",
    "docker compose up": "test_docker_development.py::test_every_edit_is_live",
    "docker compose port <name> 8000": "test_docker_development.py::test_every_edit_is_live",
    "docker compose stop mqtt": f"{DOCKER}the_data_of_the_broker_is_copied_as_documented",
    "docker run --rm --user 0 --entrypoint cp": (
        f"{DOCKER}the_data_of_the_broker_is_copied_as_documented"
    ),
    "docker compose restart": f"{DOCKER}a_change_of_the_shared_library_is_live_without_a_build",
    "docker compose up --detach --force-recreate mqtt": (
        "test_secrets.py::test_the_documented_account_reaches_its_own_topics_alone"
    ),
    "make lock": "test_upkeep.py::test_doctor_finds_what_is_wrong",
    "make lock docs lint test": "test_update.py::test_dependencies_of_both_sides_stay",
    "make template-check": "test_update.py::test_to_next_years",
    "make template-update": "test_update.py::test_to_next_years",
    "scripts/uv run --frozen cruft update": "test_update.py::test_an_answer_is_changed_later",
    "scripts/add-package.sh": "test_services.py::test_a_package_of_one_service",
    "make add-package": "test_services.py::test_a_package_of_one_service",
    "make secrets-edit": "test_secrets.py::test_edit_changes_env_enc",
    "make secrets-recipients ARGS=": "test_secrets.py::test_a_second_recipient_comes_and_goes",
    "scripts/uv run --frozen python ": "test_services.py::test_a_renamed_service_works",
    "openssl ": "library/conftest.py::certificates",
}
# Each depends on something that a test does not have.
BY_HAND = {
    "make logs": "it follows the logs until Ctrl-C",
    "make lock ARGS=--upgrade": "its result depends on the releases of the day",
    'make deploy ARGS="--registry ghcr.io': "an account at a public registry",
    "docker buildx imagetools": "a public registry",
    "docker compose exec influxdb": "the image of InfluxDB",
    "docker compose down influxdb": "the image of InfluxDB",
    "docker image prune": "it would remove images of this machine",
    "docker volume rm": "the user names the volume",
    "docker stack rm": "the tests of the swarm remove their own stack",
    "kubectl ": "a cluster",
    "git archive --output /tmp/shared.zip": "a cluster",
    "curl ": "the addresses are tested with httpx and in a browser",
    "brew ": "macOS",
    "apt ": "a Debian without age",
    "git rm .env.enc .sops.yaml": "lost keys",
    "scripts/uv run --frozen cruft link URL": "the address of the template",
}

# The commands of the template's own documents that a generated repository does not have.
OF_THE_TEMPLATE = {
    "make new": "test_documented_commands.py::test_make_new_makes_a_repository",
    "make refresh": "test_upkeep.py::test_refreshing_without_upgrading",
    "cp -r tests/library": "test_library.py::add_library_tests",
    "cd /tmp/homelab-services && scripts/uv run": "test_library.py::run_library_tests",
    "docker compose config": "test_compose.py::test_every_container_has_its_limits",
    "git init && make setup": "test_git_hooks.py::test_the_steps_of_the_setup",
}
OF_THE_TEMPLATE_BY_HAND = {
    "make test-all": ".ci/run runs it",
    'make test ARGS="-k test_library"': "it is a part of make test",
    "make mutate": "the workflow mutation.yml runs it",
    "make bench": "a measurement of forty minutes",
    "cd ../homelab-services": "the test knows the directory",
    "git hooks skipped": "it is a message",
    "git config --global": "it would change this machine",
    "git commit -m": "a release",
    "git tag -a": "a release",
    "scripts/uv lock": "a release",
}


def documented(texts: Iterable[str]) -> set[str]:
    """Return the commands in blocks and in the text, without comments and continued lines."""
    commands = set()
    for text in texts:
        lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
        commands |= {re.sub(r"\s+#.*", "", line).strip() for line in lines}
        commands |= {span for span in code_spans(text) if PROGRAM.match(span)}
    return {command for command in commands if command and not SETTING.fullmatch(command)}


def test_every_documented_command_has_its_test(bake: Bake) -> None:
    project = bake()
    commands = documented(map(project.read, documents(project)))
    beginnings = (*ELSEWHERE, *BY_HAND)
    assert {c for c in commands if c not in RUN and not c.startswith(beginnings)} == set()
    assert set(RUN) <= commands
    assert {b for b in beginnings if not any(c.startswith(b) for c in commands)} == set()
    check_places(ELSEWHERE)


def test_every_command_of_the_template_has_its_test() -> None:
    names = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/updating.md")
    commands = documented((ROOT / name).read_text(encoding="utf-8") for name in names)
    own = (*OF_THE_TEMPLATE, *OF_THE_TEMPLATE_BY_HAND)
    beginnings = (*own, *ELSEWHERE, *BY_HAND)
    assert {c for c in commands if c not in RUN and not c.startswith(beginnings)} == set()
    assert {b for b in own if not any(c.startswith(b) for c in commands)} == set()
    check_places(OF_THE_TEMPLATE)


def check_places(tests: dict[str, str]) -> None:
    for place in set(tests.values()):
        file, name = place.split("::")
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}", source, re.MULTILINE), place


@pytest.mark.real
@needs("git", "age-keygen")
def test_make_new_makes_a_repository(tmp_path: Path) -> None:
    answers = "ARGS=project_name='My Lab' include_influxdb=false"
    done = run("make", "new", "NO_INPUT=1", f"OUT={tmp_path}", answers, cwd=ROOT)
    assert done.stdout.startswith("Starting cookiecutter.")
    assert "make run SERVICE=example-service" in done.stdout
    assert (tmp_path / "my-lab/services/example-service/main.py").is_file()


@pytest.mark.real
@pytest.mark.slow
@needs("git", "sops", "age-keygen", "actionlint", "shellcheck")
def test_documented_commands_work_word_for_word(bake_copy: Bake) -> None:
    project = bake_copy()
    project.run("git", "update-ref", "refs/remotes/origin/main", "HEAD")
    for command in RUN:
        # It asks on a terminal, which a test does not have.
        confirmed = " --yes" if "remove-service" in command else ""
        project.run("bash", "-c", command + confirmed)
