"""Images in a registry: pushed, taken by their commit, rolled back and forward."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.baked import user_environment
from tests.conftest import Bake
from tests.ports import free_port
from tests.stack import Stack, background, remove_images, stack_of
from tests.tools import needs

pytestmark = [pytest.mark.real, pytest.mark.docker, pytest.mark.xdist_group("docker")]

SERVICE = "example-service"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty registry. Docker needs no TLS for one on a loopback address."""
    directory = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port()}"
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    command = ("docker-registry", "serve", config)
    with background(*command, cwd=directory, env=user_environment()) as output:
        output.wait_for("listening on")
        yield address


@pytest.fixture(scope="module")
def stack(bake: Bake, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    original = bake(include_home_assistant=False, include_influxdb=False)
    parent = tmp_path_factory.mktemp("images")
    with stack_of(original, parent, IMAGE_REGISTRY=f"{registry}/plant") as stack:
        yield stack
        stack.compose("down", "--volumes", "--timeout", "3")
        remove_images(f"{registry}/plant")


def commit(stack: Stack, told: str) -> str:
    """Commit a version that prints this when it starts."""
    main = stack.project.file(f"services/{SERVICE}/main.py")
    first, _, rest = main.read_text().partition("\n")
    main.write_text(f"{first}\nprint({told!r}, flush=True)\n{rest}")
    stack.run("git", "commit", "--all", "--no-verify", "--quiet", "--message", told)
    return stack.run("git", "rev-parse", "HEAD").stdout.strip()


def image_of(stack: Stack) -> str:
    image: str = stack.inspect(SERVICE)["Config"]["Image"]
    return image


@needs("docker-registry")
def test_a_deployment_takes_the_images_of_its_commit(stack: Stack, registry: str) -> None:
    # The override, which a deployment leaves out, makes the health checks quick.
    override = {"services": {SERVICE: {"healthcheck": {"start_interval": "1s"}}}}
    stack.project.file("docker-compose.override.yml").write_text(json.dumps(override))
    deploy = ("make", "deploy", "COMPOSE_FILE=docker-compose.yml:docker-compose.override.yml")
    commits = []
    for told in ("first version", "second version"):
        commits.append(commit(stack, told))
        stack.run(*deploy, f"ARGS=--registry {registry}/plant", timeout=600)
        assert image_of(stack) == f"{registry}/plant/{SERVICE}:{commits[-1]}"
        assert stack.has_logged(told, SERVICE)
    # Another host has none of them.
    stack.compose("down", "--timeout", "3")
    remove_images(f"{registry}/plant")
    for revision, told in ((commits[0], "first version"), (commits[1], "second version")):
        stack.run("git", "checkout", "--quiet", revision)
        done = stack.run(*deploy, "ARGS=--pull", timeout=600)
        assert "Building" not in done.stdout + done.stderr
        assert image_of(stack) == f"{registry}/plant/{SERVICE}:{revision}"
        assert f"SERVICE_VERSION={revision}" in stack.inspect(SERVICE)["Config"]["Env"]
        assert stack.has_logged(told, SERVICE)
        assert ("second version" in stack.compose("logs", SERVICE)) == (told == "second version")
    # Other commands of Compose keep the version.
    image = stack.inspect(SERVICE)["Image"]
    stack.compose("up", "--detach", "--no-build", "--wait")
    assert stack.inspect(SERVICE)["Image"] == image

    started = stack.started_at(SERVICE)
    missing = commit(stack, "never built")
    done = stack.run(*deploy, "ARGS=--pull", check=False)
    assert done.returncode == 2
    assert f"does not have all images with the tag {missing}. Nothing was changed" in done.stderr
    stack.project.file(f"services/{SERVICE}/main.py").write_text("changed\n")
    done = stack.run(*deploy, "ARGS=--pull", check=False)
    assert f"with the tag {missing}-dirty." in done.stderr
    assert stack.started_at(SERVICE) == started
