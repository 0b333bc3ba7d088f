# /// script
# requires-python = ">=3.10"
# dependencies = ["cookiecutter==2.7.1"]
# ///
"""Sizes and times of the containers of a generated repository, against a single-stage base image.

`uv run bench/docker/run.py [ROUNDS]` prints a Markdown table. Needs Docker with Compose, and the
network, since the full builds fetch packages. Takes some five minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST = "example-service"
MANY = 20
MEGABYTE = 1_000_000
TYPES = ("poller", "subscriber", "http-api")
# The base image as it is usually written.
SINGLE_STAGE_BASE = """\
FROM {slim}
RUN apt-get update && apt-get install -y --no-install-recommends gcc \\
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/base-requirements.txt
RUN pip install --no-cache-dir -r /tmp/base-requirements.txt \\
    && rm /tmp/base-requirements.txt
ENV PYTHONPATH="/app:/app/shared:${{PYTHONPATH}}"
WORKDIR /app
"""


def cookiecutter(template: Path, output: Path, *answers: str) -> None:
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(output)]
    subprocess.run([*command, str(template), *answers], check=True, capture_output=True)


class Repository:
    """A generated repository, whose images and containers have names of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"bench-{uuid.uuid4().hex[:8]}"
        self.single_stage_base = f"{self.name}-single-stage"
        # The runtime stage is the last.
        dockerfile = (path / "base/Dockerfile").read_text()
        self.slim = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)[-1]

    def run(self, *command: str) -> str:
        env = {**os.environ, "COMPOSE_PROJECT_NAME": self.name}
        done = subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def seconds(self, *command: str) -> float:
        began = time.perf_counter()
        self.run(*command)
        return time.perf_counter() - began

    def compose_seconds(self, *arguments: str) -> float:
        return self.seconds("docker", "compose", *arguments)

    def image(self, name: str) -> str:
        return f"localhost/{self.name}/{name}:latest"

    def size(self, image: str) -> int:
        return int(self.run("docker", "image", "inspect", "--format", "{{.Size}}", image))

    def services(self) -> list[str]:
        return sorted(folder.name for folder in (self.path / "services").iterdir())

    def memory(self) -> list[float]:
        """MiB of each service."""
        containers = self.run("docker", "compose", "ps", "--quiet", *self.services()).split()
        form = ("--no-stream", "--format", "{{.MemUsage}}")
        lines = self.run("docker", "stats", *form, *containers).splitlines()
        return [float(line.partition("MiB")[0]) for line in lines]


@contextmanager
def rendered() -> Iterator[Repository]:
    with tempfile.TemporaryDirectory() as folder:
        cookiecutter(ROOT, Path(folder), "project_slug=bench")
        repository = Repository(Path(folder) / "bench")
        try:
            yield repository
        finally:
            repository.run("docker", "compose", "down", "--volumes")
            images = [repository.image(name) for name in ("base", *repository.services())]
            images.append(repository.single_stage_base)
            repository.run("docker", "image", "rm", "--force", *images)


def single_stage_build(repository: Repository) -> float:
    """Build the single-stage base image with our requirements, without cache."""
    folder = repository.path / "single-stage"
    folder.mkdir()
    shutil.copy(repository.path / "base/requirements.txt", folder)
    (folder / "Dockerfile").write_text(SINGLE_STAGE_BASE.format(slim=repository.slim))
    tag = ("--tag", repository.single_stage_base)
    return repository.seconds("docker", "build", "--no-cache", *tag, "single-stage")


def full_build(repository: Repository) -> float:
    """Build our base image and one service, without cache."""
    base = repository.seconds("scripts/build-base.sh", "--no-cache")
    return base + repository.compose_seconds("build", "--no-cache", FIRST)


def edit(repository: Repository) -> float:
    """Build and start a service after an edit of its code."""
    main = repository.path / f"services/{FIRST}/main.py"
    main.write_text(f"{main.read_text()}\n# {uuid.uuid4()}\n")
    return repository.compose_seconds("up", "--detach", "--build", FIRST)


def edit_shared(repository: Repository) -> float:
    """Restart a service after an edit of the shared library, until the new code runs."""
    log = repository.path / "shared/log.py"
    sign = str(uuid.uuid4())
    log.write_text(f"{log.read_text()}\nprint({sign!r})\n")
    began = time.perf_counter()
    repository.run("docker", "compose", "restart", FIRST)
    while sign not in repository.run("docker", "compose", "logs", FIRST):
        time.sleep(0.05)
    return time.perf_counter() - began


def start(repository: Repository) -> float:
    """Return the seconds from no container to all healthy, with built images and empty volumes."""
    repository.run("docker", "compose", "down", "--volumes")
    return repository.compose_seconds("up", "--detach", "--wait", *repository.services())


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with rendered() as repository:
        single_stage_seconds, full_seconds = single_stage_build(repository), full_build(repository)
        slim = repository.size(repository.slim) / MEGABYTE
        base = repository.size(repository.image("base")) / MEGABYTE
        single_stage = repository.size(repository.single_stage_base) / MEGABYTE
        service = repository.size(repository.image(FIRST)) / MEGABYTE - base

        repository.compose_seconds("up", "--detach", "--wait", FIRST)
        edits = statistics.median(edit(repository) for _ in range(rounds))
        restarts = statistics.median(edit_shared(repository) for _ in range(rounds))
        one = statistics.median(start(repository) for _ in range(rounds))
        for number in range(MANY - 1):
            template = repository.path / "templates/service"
            answers = (f"service_slug=service-{number}", f"service_type={TYPES[number % 3]}")
            cookiecutter(template, repository.path / "services", *answers)
        repository.run("docker", "compose", "build")
        many = statistics.median(start(repository) for _ in range(rounds))
        memory = repository.memory()
        engine = repository.run("docker", "version", "--format", "{{.Server.Version}}").strip()
        compose = repository.run("docker", "compose", "version", "--short").strip()

    print(f"Docker {engine}, Compose {compose}, `{repository.slim}`; medians of {rounds} rounds.\n")
    print("| | ours | peer | | ours / peer | target |\n|---|---:|---|---:|---:|---:|")
    rows = [
        ("base image (MB)", base, "single stage", single_stage, "<= 0.7"),
        (
            "of that on top of slim Python (MB)",
            base - slim,
            "single stage",
            single_stage - slim,
            "",
        ),
        (
            "build without cache, base and service (s)",
            full_seconds,
            "single stage, base alone",
            single_stage_seconds,
            "",
        ),
        ("build and start after an edit (s)", edits, "without cache", full_seconds, ""),
        ("restart until `shared/` is live (s)", restarts, "without cache", full_seconds, ""),
        (f"`up` until {MANY} services are healthy (s)", many, "1 service", one, ""),
    ]
    for title, ours, peer, theirs, target in rows:
        print(f"| {title} | {ours:.1f} | {peer} | {theirs:.1f} | {ours / theirs:.2f} | {target} |")
    print(f"| a service's image on top of the base (kB) | {service * 1000:.1f} | | | | <= 200 kB |")
    print(
        f"| memory of an idle service (MiB) | {statistics.median(memory):.1f}"
        f" | the largest | {max(memory):.1f} | | |"
    )


if __name__ == "__main__":
    main()
