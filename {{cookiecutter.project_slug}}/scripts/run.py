"""Run services on this machine without Docker, or one service under the debugger.

    make run SERVICE="name other-name"
    make debug SERVICE=name [HOST=1]

A broker is started where none listens on this machine. It belongs to no service and ends last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dotenv_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data"
LOCAL_HOSTS = {"127.0.0.1", "localhost"}
DEBUG_PORT = 5678
BROKER_PATIENCE_SECONDS = 20


class CannotRunError(Exception):
    """A condition is missing that the message names."""


def find_services(names: list[str], *, is_debug: bool) -> list[Path]:
    """Return the programs of the services; raises CannotRunError for an unknown name."""
    known = {path.parent.name: path for path in sorted(ROOT.glob("services/*/main.py"))}
    if is_debug and len(names) != 1:
        message = "Only one service at a time can wait for the debugger."
        raise CannotRunError(message)
    if not names or not known.keys() >= set(names):
        unknown = (
            f"Unknown service {next(name for name in names if name not in known)}. "
            if names
            else ""
        )
        message = f"{unknown}Set SERVICE to one of: {', '.join(known) or 'none exists yet'}"
        raise CannotRunError(message)
    return [known[name] for name in names]


def make_environment() -> dict[str, str]:
    """Return the environment of a service on this machine: `.env` is read by the service itself."""
    env_file = dotenv_file.read(ROOT / ".env")
    settings = {**env_file, **os.environ}
    host = settings.get("MQTT_HOST") or "mqtt"
    return {
        **os.environ,
        # The broker's name among the containers is unknown to this machine.
        "MQTT_HOST": "127.0.0.1" if host == "mqtt" else host,
        "MQTT_PORT": settings.get("MQTT_PORT") or "1883",
        "MQTT_TLS": settings.get("MQTT_TLS") or "false",
        "PYTHONPATH": str(ROOT),
    }


def listens(host: str, port: int) -> bool:
    """Return whether something accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def start_broker(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that Ctrl-C reaches the services first."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )


@contextlib.asynccontextmanager
async def broker(environment: dict[str, str]) -> AsyncIterator[None]:
    """Start a broker when the services look for one on this machine and none listens."""
    host, port = environment["MQTT_HOST"], int(environment["MQTT_PORT"])
    if host not in LOCAL_HOSTS or listens(host, port):
        yield
        return
    if environment["MQTT_TLS"].lower() in {"1", "on", "t", "true", "y", "yes"}:
        message = (
            f"MQTT_TLS is on and no broker listens on port {port}. Start one with TLS, or run: "
            "MQTT_TLS=false MQTT_PORT=1883 make run ..."
        )
        raise CannotRunError(message)
    log = DATA / "broker.log"
    command = [sys.executable, "-m", "tests.brokers", str(port)]
    if mosquitto := shutil.which(
        "mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    ):
        config = DATA / "broker.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
        )
        command = [mosquitto, "-c", str(config)]
    process = start_broker(command, log)
    try:
        async with asyncio.timeout(BROKER_PATIENCE_SECONDS):
            while not listens(host, port):
                if process.poll() is not None:
                    message = (
                        f"{command[0]} did not start: {log.read_text(errors='replace')[-500:]}"
                    )
                    raise CannotRunError(message)
                await asyncio.sleep(0.05)
        say(f"Started {Path(command[0]).name} on port {port}, log in {log.relative_to(ROOT)}")
        yield
    finally:
        process.terminate()
        process.wait()


async def run(programs: list[Path], *, debug: bool) -> int:
    """Run the services until all have ended, and return the highest exit code."""
    environment = make_environment()
    DATA.mkdir(exist_ok=True)
    async with broker(environment):
        processes = []
        for program in programs:
            name = program.parent.name
            own = {"DATA_DIR": data_directory(name)}
            if debug:
                own["DEBUG_SERVICE"] = name
            processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    program,
                    cwd=ROOT,
                    env={**environment, **own},
                    start_new_session=True,
                )
            )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, processes, number)
        codes = await asyncio.gather(*(process.wait() for process in processes))
        # A negative code is the signal that ended the process.
        return max(code if code >= 0 else 128 - code for code in codes)


def data_directory(name: str) -> str:
    """Return the directory of a service's state, which is made when it is missing."""
    path = Path(os.environ.get("DATA_DIR") or DATA / name)
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def stop(processes: list[asyncio.subprocess.Process], number: signal.Signals) -> None:
    """Hand a signal on; a second one ends a service that does not stop."""
    for process in processes:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM if number is signal.SIGHUP else number)


def debug_container(name: str) -> int:
    """Run one service in its container, waiting for the debugger."""
    files = []
    if not any((ROOT / f"docker-compose.override.{ending}").exists() for ending in ("yml", "yaml")):
        files = ["-f", "docker-compose.yml", "-f", "docker-compose.override.example.yml"]
    compose = ["docker", "compose", *files]
    # Two instances would share the volume and its session.
    subprocess.run([*compose, "stop", name], cwd=ROOT, check=False)
    port = f"127.0.0.1:{DEBUG_PORT}:{DEBUG_PORT}"
    command = ["run", "--rm", "--build", "--use-aliases", "--publish", port, "--env"]
    say(f"Attach the debugger to 127.0.0.1:{DEBUG_PORT}, in VS Code with `Attach to container`.")
    program = [f"DEBUG_SERVICE={name}", name, "python", "main.py"]
    code = subprocess.run([*compose, *command, *program], cwd=ROOT, check=False).returncode
    say(f"Start {name} again: docker compose up --detach {name}")
    return code


def say(text: str) -> None:
    """Tell the user on standard error, since standard output belongs to the services."""
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Command line; 2 when a condition is missing."""
    parser = argparse.ArgumentParser(description="Run services on this machine.")
    parser.add_argument("services", metavar="SERVICE", nargs="*")
    parser.add_argument(
        "--debug", action="store_true", help="wait for the debugger; one service only"
    )
    parser.add_argument("--container", action="store_true", help="debug in the service's container")
    options = parser.parse_args()
    try:
        programs = find_services(options.services, is_debug=options.debug)
        if options.debug and options.container:
            return debug_container(options.services[0])
        return asyncio.run(run(programs, debug=options.debug))
    except CannotRunError as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
