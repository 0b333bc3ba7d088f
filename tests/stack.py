"""A generated repository whose containers run under a name of their own."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.baked import BakedProject, run, user_environment

PATIENCE_SECONDS = 90


def until(condition: Callable[[], bool], what: str, seconds: float = 0.3) -> None:
    """Poll, because Docker announces none of this, and fail with `what`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(seconds)


def is_asleep(pid: int) -> bool:
    """Return whether a process waits for an event. See proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("S")


@dataclass
class Stack:
    project: BakedProject
    name: str

    @property
    def env(self) -> dict[str, str | None]:
        return {"COMPOSE_PROJECT_NAME": self.name}

    @property
    def prefix(self) -> str:
        """First level of all topics."""
        return self.project.path.name

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.project.run(*command, env=self.env, **options)

    def compose(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
        done = self.run("docker", "compose", *arguments, check=check, timeout=timeout)
        return done.stdout

    def image(self, name: str) -> str:
        return f"localhost/{self.name}/{name}:latest"

    def up(self, *arguments: str) -> None:
        self.compose("up", "--detach", "--wait", *arguments, timeout=600)

    def exec(self, service: str, *command: str, check: bool = True) -> str:
        return self.compose("exec", "-T", service, *command, check=check)

    def states(self) -> dict[str, dict[str, Any]]:
        command = ("docker", "compose", "ps", "--all", "--format", "json")
        # Compose lists the containers and then asks for each, which may be gone by then.
        done = self.run(*command, check=False)
        while "No such container" in done.stderr:
            done = self.run(*command, check=False)
        assert done.returncode == 0, done.stderr
        rows = map(json.loads, done.stdout.splitlines())
        return {row["Service"]: row for row in rows}

    def ids(self) -> dict[str, str]:
        return {service: state["ID"] for service, state in self.states().items()}

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("docker", "inspect", self.ids()[service]).stdout)[0]
        return found

    def exit_code(self, service: str) -> int:
        code: int = self.inspect(service)["State"]["ExitCode"]
        return code

    def started_at(self, service: str) -> str:
        started: str = self.inspect(service)["State"]["StartedAt"]
        return started

    def is_healthy(self, service: str) -> bool:
        return bool(self.states()[service]["Health"] == "healthy")

    def is_unhealthy(self, service: str) -> bool:
        return bool(self.states()[service]["Health"] == "unhealthy")

    def has_logged(self, text: str, service: str) -> bool:
        # Fails for a moment while the container is being replaced.
        return text in self.compose("logs", service, check=False)

    @contextmanager
    def process(self, *command: str | Path) -> Iterator[Output]:
        """Run in the background, as in a terminal: Ctrl-C ends it."""
        with background(*command, cwd=self.project.path, env=user_environment(self.env)) as output:
            yield output


class Output:
    """Lines that a process prints. `process` and all that it started have one process group."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._coming: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                # Compose begins every line with the code that empties a line of a terminal.
                self._coming.put(line.removeprefix("\x1b[2K"))
        self._coming.put(None)

    def wait_for(self, *texts: str) -> None:
        """Return when each of the texts has been in a line since the last call."""
        missing, deadline = set(texts), time.monotonic() + PATIENCE_SECONDS
        while missing:
            try:
                line = self._coming.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                line = None
            assert line is not None, f"missing {sorted(missing)} in:\n{''.join(self.lines[-60:])}"
            self.lines.append(line)
            missing = {text for text in missing if not re.search(text, line)}

    def close(self) -> None:
        """Press Ctrl-C unless the process has ended, and read what is left."""
        if self.process.poll() is None:
            self.interrupt()
        self._reader.join(timeout=30)

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=60)


@contextmanager
def background(*command: str | Path, cwd: Path, env: dict[str, str]) -> Iterator[Output]:
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    output = Output(process)
    try:
        yield output
    finally:
        output.close()


@contextmanager
def stack_of(original: BakedProject, parent: Path, **env: str) -> Iterator[Stack]:
    """Copy the repository with these lines in `.env`, and build its base image."""
    target = parent / original.path.name
    shutil.copytree(original.path, target, symlinks=True)
    project = BakedProject(target, original.answers, original.environments)
    stack = Stack(project, f"test-{uuid.uuid4().hex[:8]}")
    write_env(project, **env)
    try:
        stack.run("scripts/build-base.sh", "--quiet", timeout=600)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "3")
        remove_images(f"localhost/{stack.name}")


def remove_images(registry: str) -> None:
    """Remove the images of a repository, with all their tags."""
    listed = run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    images = [image for image in listed if image.startswith(f"{registry}/")]
    if images:
        run("docker", "image", "rm", "--force", *images)


def write_env(project: BakedProject, **values: str) -> None:
    path = project.file(".env")
    lines = [f"{name}='{value}'\n" for name, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8")
    path.chmod(0o600)


@contextmanager
def restored(path: Path) -> Iterator[Path]:
    before = path.read_text()
    try:
        yield path
    finally:
        path.write_text(before)


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
