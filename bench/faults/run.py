# /// script
# requires-python = ">=3.10"
# dependencies = ["cookiecutter==2.7.1"]
# ///
"""Messages that are lost or doubled while containers, the network and the disk fail.

`uv run bench/faults/run.py [--quick] [ROW...]` prints a Markdown table. A producer sends 200
numbered messages a second at QoS 1 to a consumer, for about a minute in each row. Needs Docker
with Compose. All rows take some 25 minutes, with `--quick` 5.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent
NAME = "faults"
BROKER, PRODUCER, CONSUMER = "mqtt", "producer", "consumer"
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Pace:
    """Seconds of traffic before, during and after a fault."""

    before: float
    frozen: float
    outage: float
    after: float
    # No message was handled for so long: what is missing is lost.
    quiet: float


FULL = Pace(before=10, frozen=60, outage=20, after=30, quiet=20)
QUICK = Pace(before=2, frozen=4, outage=3, after=4, quiet=40)


@dataclass(frozen=True)
class Counts:
    """Messages of one run. `lost` were acknowledged and never handled."""

    sent: int
    acknowledged: int
    handled: int
    lost: int
    doubled: int
    longest_gap_seconds: float


class Stack:
    """The broker, a producer and a consumer of a rendered repository."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"faults-{uuid.uuid4().hex[:8]}"
        self.journal = path / "journal"
        self.pace = FULL

    def run(self, *command: str) -> str:
        env = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.name,
            "BASE_IMAGE": f"{self.name}-base:latest",
            "COMPOSE_FILE": "docker-compose.yml:docker-compose.override.yml",
        }
        done = subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def compose(self, *arguments: str) -> str:
        return self.run("docker", "compose", *arguments)

    def ids(self, *services: str) -> list[str]:
        return self.compose("ps", "--all", "--quiet", *services).split()

    def kill(self, *containers: str) -> None:
        """Kill containers, and start them after a moment, in this order."""
        self.run("docker", "kill", *containers)
        time.sleep(1)
        for container in containers:
            self.run("docker", "start", container)

    def start(self, replicas: int) -> None:
        self.compose("down", "--volumes", "--timeout", "3")
        for path in self.journal.iterdir():
            path.unlink()
        health = {"interval": "1s", "start_interval": "1s"}
        service = {"volumes": ["./journal:/journal"], "healthcheck": health}
        consumer = {
            **service,
            "environment": {"REPLICAS": "yes" if replicas > 1 else ""},
        }
        override = {"services": {PRODUCER: service, CONSUMER: consumer}}
        self.path.joinpath("docker-compose.override.yml").write_text(json.dumps(override))
        up = ("up", "--detach", "--wait")
        # The consumer first, so that its subscription exists before the first message.
        self.compose(*up, "--scale", f"{CONSUMER}={replicas}", BROKER, CONSUMER)
        self.compose(*up, "--no-recreate", "--scale", f"{CONSUMER}={replicas}")

    def lines(self, name: str) -> list[list[str]]:
        path = self.journal / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def count(self) -> Counts:
        """End the traffic, wait for the messages that are still coming, and count."""
        self.journal.joinpath("stop").touch()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.journal.joinpath("done").exists():
            if time.monotonic() > deadline:
                state = self.compose("ps", "--all") + self.compose("logs", "--tail", "20")
                raise SystemExit(f"the producer does not end\n{state}")
            time.sleep(0.2)
        sent = self.lines("sent")
        acknowledged = {number for kind, number in sent if kind == "acknowledged"}
        handled = Counter[str]()
        changed = time.monotonic()
        while acknowledged - handled.keys() and time.monotonic() - changed < self.pace.quiet:
            time.sleep(0.5)
            now = Counter(number for number, _ in self.lines("handled"))
            if now != handled:
                handled, changed = now, time.monotonic()
        times = sorted(float(moment) for _, moment in self.lines("handled"))
        return Counts(
            sent=sum(kind == "sent" for kind, _ in sent),
            acknowledged=len(acknowledged),
            handled=len(handled),
            lost=len(acknowledged - handled.keys()),
            doubled=handled.total() - len(handled),
            longest_gap_seconds=max(
                (after - before for before, after in pairwise(times)), default=math.inf
            ),
        )


# Faults


def nothing(_stack: Stack) -> None:
    """Let the messages pass."""


def kill_consumer(stack: Stack) -> None:
    stack.kill(*stack.ids(CONSUMER))


def kill_producer(stack: Stack) -> None:
    stack.kill(*stack.ids(PRODUCER))


def kill_broker(stack: Stack) -> None:
    stack.kill(*stack.ids(BROKER))


def kill_all(stack: Stack) -> None:
    stack.kill(*stack.ids(BROKER), *stack.ids(CONSUMER), *stack.ids(PRODUCER))


def freeze_broker(stack: Stack) -> None:
    stack.compose("pause", BROKER)
    time.sleep(stack.pace.frozen)
    stack.compose("unpause", BROKER)


def cut_network(stack: Stack) -> None:
    network, (broker,) = f"{stack.name}_internal", stack.ids(BROKER)
    stack.run("docker", "network", "disconnect", network, broker)
    time.sleep(stack.pace.outage)
    stack.run("docker", "network", "connect", "--alias", BROKER, network, broker)


def fill_disk(stack: Stack) -> None:
    fill = "dd if=/dev/zero of=/tmp/fill bs=4k 2>/dev/null || true"
    stack.compose("exec", "-T", CONSUMER, "sh", "-c", fill)
    time.sleep(stack.pace.outage)
    stack.compose("exec", "-T", CONSUMER, "rm", "/tmp/fill")


def restart(stack: Stack) -> None:
    stack.compose("restart")


def deploy(stack: Stack) -> None:
    with stack.path.joinpath("shared/log.py").open("a") as log:
        log.write("\n# Changed.\n")
    stack.run("scripts/deploy.sh", "--timeout", str(PATIENCE_SECONDS))


def kill_replica(stack: Stack) -> None:
    stack.kill(stack.ids(CONSUMER)[0])


def kill_broker_without_consumer(stack: Stack) -> None:
    stack.compose("stop", CONSUMER)
    time.sleep(2)
    stack.kill(*stack.ids(BROKER))
    stack.compose("start", CONSUMER)


def stop_all_replicas(stack: Stack) -> None:
    stack.compose("stop", CONSUMER)
    time.sleep(2)
    stack.compose("start", CONSUMER)


@dataclass(frozen=True)
class Row:
    """A fault. `limit` is the reason for messages that are lost by design of the broker."""

    title: str
    fault: Callable[[Stack], None]
    replicas: int = 1
    is_saved: bool = True
    limit: str = ""


ROWS = {
    "none": Row("no fault", nothing),
    "consumer": Row("kill -9 of the consumer", kill_consumer),
    "producer": Row("kill -9 of the producer", kill_producer),
    "broker": Row("kill -9 of the broker", kill_broker),
    "all": Row("kill -9 of all at once", kill_all, limit="acknowledged since the last save"),
    "frozen": Row("broker frozen", freeze_broker),
    "network": Row("network of the broker cut", cut_network),
    "disk": Row("disk of the consumer full", fill_disk),
    "restart": Row("restart of all", restart),
    "deploy": Row("deployment with a changed `shared/`", deploy),
    "replicas": Row("3 replicas, one killed", kill_replica, replicas=3),
    "new": Row(
        "kill -9 of the broker before it has saved the subscription",
        kill_broker,
        is_saved=False,
        limit="within `autosave_interval`",
    ),
    "away": Row(
        "kill -9 of the broker while the consumer is stopped",
        kill_broker_without_consumer,
        limit="within `autosave_interval`",
    ),
    "group": Row(
        "stop of all replicas",
        stop_all_replicas,
        replicas=3,
        limit="a group without members keeps nothing",
    ),
}


def measure(stack: Stack, row: Row) -> Counts:
    """Run one row on new containers and volumes."""
    stack.start(row.replicas)
    if row.is_saved:
        # Mosquitto saves its sessions on this signal, as it does after `autosave_interval`.
        stack.compose("kill", "--signal", "USR1", BROKER)
    time.sleep(stack.pace.before)
    row.fault(stack)
    time.sleep(stack.pace.after)
    return stack.count()


@contextmanager
def stack_of_faults(pace: Pace) -> Iterator[Stack]:
    """Render a repository with a producer and a consumer, and remove all of it in the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        options = ("include_influxdb=false", "include_home_assistant=false")
        first = (f"project_slug={NAME}", f"first_service={PRODUCER}", *options)
        render(ROOT, Path(folder), *first, "first_service_type=subscriber")
        answers = (f"service_slug={CONSUMER}", "service_type=subscriber")
        render(path / "templates/service", path / "services", *answers)
        for name in (PRODUCER, CONSUMER):
            program = PROGRAMS.joinpath(f"{name}.py").read_text()
            path.joinpath(f"services/{name}/main.py").write_text(program)
        stack = Stack(path)
        stack.pace = pace
        stack.journal.mkdir()
        # The user of the containers is not the user of this program.
        stack.journal.chmod(0o777)
        path.joinpath("docker-compose.override.yml").write_text("{}")
        try:
            stack.run("scripts/build-base.sh", "--quiet")
            stack.compose("build", "--quiet")
            yield stack
        finally:
            stack.compose("down", "--volumes", "--rmi", "local", "--timeout", "3")
            stack.run("docker", "image", "rm", "--force", f"{stack.name}-base:latest")


def render(template: Path, output: Path, *answers: str) -> None:
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(output)]
    subprocess.run([*command, str(template), *answers], check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count messages while parts fail.")
    parser.add_argument("rows", metavar="ROW", nargs="*", choices=[[], *ROWS], help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="a few seconds for each row")
    options = parser.parse_args()
    print("| fault | sent | acknowledged | handled | lost | doubled | longest gap (s) | limit |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    is_good = True
    with stack_of_faults(QUICK if options.quick else FULL) as stack:
        for name in options.rows or ROWS:
            row = ROWS[name]
            counts = measure(stack, row)
            is_good &= not counts.lost or bool(row.limit)
            print(
                f"| {row.title} | {counts.sent:,} | {counts.acknowledged:,} | {counts.handled:,}"
                f" | {counts.lost:,} | {counts.doubled:,} | {counts.longest_gap_seconds:.1f}"
                f" | {row.limit} |",
                flush=True,
            )
    return int(not is_good)


if __name__ == "__main__":
    raise SystemExit(main())
