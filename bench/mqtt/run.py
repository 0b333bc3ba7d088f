# /// script
# requires-python = ">=3.12"
# dependencies = [
#     "aiomqtt==2.5.1",
#     "httpx==0.28.1",
#     "paho-mqtt==2.2.0",
#     "psutil==7.2.2",
#     "pydantic==2.14.3",
#     "pydantic-settings==2.16.3",
#     "stamina==26.1.0",
#     "structlog==26.1.0",
# ]
# ///
"""Compare the generated MQTT client with raw paho-mqtt and with aiomqtt, in one run.

`uv run bench/mqtt/run.py [ROUNDS]` prints a Markdown table. Needs Mosquitto. Every measurement
is a fresh process. The peers take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import json
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ["ours", "paho", "aiomqtt"]
COUNTS = {0: 20_000, 1: 5_000}
REQUESTS = 400
# name: unit, digits, targets for ours divided by paho and by aiomqtt
COLUMNS = {
    "receive QoS 0": ("msg/s", 0, ">= 1.5", ">= 1.1"),
    "receive QoS 1": ("msg/s", 0, ">= 1.4", ">= 1.0"),
    "publish QoS 0": ("msg/s", 0, ">= 1.0", ">= 1.0"),
    "publish QoS 1": ("msg/s", 0, ">= 1.1", ">= 1.0"),
    "answer QoS 0, p50": ("ms", 2, "<= 1.2", ""),
    "answer QoS 1, p50": ("ms", 2, "<= 1.2", ""),
    "start, CPU time": ("ms", 0, "<= 2.0", ""),
    "memory": ("MiB", 1, "<= 1.4", ""),
}


def render(folder: Path) -> Path:
    """Bake in the environment of the template: the peers must not find its packages."""
    root = HERE.parent.parent
    command = [root / "scripts/uv", "run", "--frozen", "cookiecutter", root, "--no-input"]
    options = ["--accept-hooks", "no", "--output-dir", folder]
    subprocess.run([*command, *options], cwd=root, check=True)
    return next(folder.glob("*/shared")).parent


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise SystemExit("mosquitto is missing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    configuration = folder / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        "max_queued_messages 0\nlog_type none\n"
    )
    process = subprocess.Popen([program, "-c", str(configuration)])
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


class Bench:
    def __init__(self, repository: Path, port: int) -> None:
        self._environment = {"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"}
        # Settings of our service, whose start and memory are measured.
        self._environment |= {"MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(port)}
        self._environment |= {"DATA_DIR": str(repository), "LOG_LEVEL": "WARNING"}
        self._environment["HEALTH_PATH"] = str(repository / "health")
        self._port = port

    def _start(self, file: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(HERE / file), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def _result(self, process: subprocess.Popen[str]) -> dict[str, float]:
        output, _ = process.communicate(timeout=120)
        if process.returncode:
            raise SystemExit(f"failed: {process.args}")
        return json.loads(output.splitlines()[-1]) if output.strip() else {}

    def _ready(self, name: str, measurement: str, qos: int, count: int) -> subprocess.Popen[str]:
        peer = self._start("peers.py", name, measurement, self._port, qos, count)
        assert peer.stdout is not None
        peer.stdout.readline()
        return peer

    def receive(self, name: str, qos: int) -> float:
        count = COUNTS[qos]
        peer = self._ready(name, "receive", qos, count)
        began = self._result(self._start("load.py", "send", self._port, qos, count))["began"]
        return count / (self._result(peer)["ended"] - began)

    def publish(self, name: str, qos: int) -> float:
        return self._result(self._ready(name, "publish", qos, COUNTS[qos]))["rate"]

    def answer(self, name: str, qos: int) -> float:
        peer = self._ready(name, "answer", qos, 0)
        result = self._result(self._start("load.py", "ask", self._port, qos, REQUESTS))
        self._result(peer)
        return result["p50_ms"]

    def start(self, name: str) -> tuple[float, float]:
        result = self._result(self._start("peers.py", name, "start", self._port, 0, 0))
        return result["cpu_seconds"] * 1000, result["rss_mib"]

    def all(self, name: str) -> dict[str, float]:
        values = [self.receive(name, 0), self.receive(name, 1)]
        values += [self.publish(name, 0), self.publish(name, 1)]
        values += [self.answer(name, 0), self.answer(name, 1), *self.start(name)]
        return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    results: dict[str, list[dict[str, float]]] = {name: [] for name in PEERS}
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as port:
        bench = Bench(render(Path(folder)), port)
        for name in PEERS:
            bench.start(name)  # compiles the modules
        for turn in range(rounds):
            for index in range(len(PEERS)):
                name = PEERS[(turn + index) % len(PEERS)]
                results[name].append(bench.all(name))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("paho-mqtt", "aiomqtt"))
    print(f"Python {platform.python_version()}, {libraries}; {rounds} rounds.\n")
    print("| | ours | raw paho | aiomqtt | ours / paho | target | ours / aiomqtt | target |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for column, (unit, digits, *targets) in COLUMNS.items():
        values = {name: [result[column] for result in results[name]] for name in PEERS}
        cells = [f"{column} ({unit})"]
        cells += [f"{statistics.median(values[name]):,.{digits}f}" for name in PEERS]
        for name, target in zip(PEERS[1:], targets, strict=True):
            cells += [ratio(values["ours"], values[name]), target]
        print(f"| {' | '.join(cells)} |")


def ratio(ours: list[float], others: list[float]) -> str:
    """The ratio of the medians, and the range of those of single rounds."""
    rounds = [mine / theirs for mine, theirs in zip(ours, others, strict=True)]
    medians = statistics.median(ours) / statistics.median(others)
    return f"{medians:.2f} ({min(rounds):.2f} to {max(rounds):.2f})"


if __name__ == "__main__":
    main()
