"""Run services on this machine without Docker, one under the debugger, or the checks of one.

    make run SERVICE="name other-name"
    make debug SERVICE=name [HOST=1]
    make diagnose SERVICE=name [HOST=1] [ARGS="--step mqtt"]
    make watch [SERVICE=name] [TOPIC=filter]
    make send SERVICE=name COMMAND=name [ARGS='{"field": 1}']

`make run` starts a broker if `MQTT_HOST` is this machine or `mqtt`, and none listens here. It
belongs to no service and ends last.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NoReturn, TextIO

from common import ROOT, find_programs, make_parser, read_dotenv
from common import run as run_tool

sys.path.insert(0, str(ROOT))

from tests.brokers import BrokerError, listens, make_broker

DATA = ROOT / ".data"
LOCAL_HOSTS = {"127.0.0.1", "localhost"}
DEBUG_PORT = 5678
DEBUG_ADDRESS = f"127.0.0.1:{DEBUG_PORT}"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# At most: one from the terminal, and one from uv.
SIGNALS_OF_ONE_CTRL_C = 2


def fail(text: str) -> NoReturn:
    """End the program with exit code 2, because a condition is missing that the text names."""
    say(text)
    raise SystemExit(2)


def call(*command: str, env: dict[str, str] | None = None, stdout: TextIO | None = None) -> int:
    """Run a command in the repository, with the terminal of this program. Return its exit code."""
    return subprocess.run(command, cwd=ROOT, env=env, stdout=stdout, check=False).returncode


def find_services(names: list[str], *, only_one: bool) -> list[Path]:
    """Return the programs of the services."""
    if only_one and len(names) > 1:
        fail("Set SERVICE to only one service.")
    known = find_programs()
    if not names or not known.keys() >= set(names):
        unknown = [f"Unknown service {name}. " for name in names if name not in known]
        choices = ", ".join(known) or "none exists yet"
        fail(f"{''.join(unknown)}Set SERVICE to one of: {choices}")
    return [known[name] for name in names]


def make_environment() -> dict[str, str]:
    """Return the environment of a service on this machine: `.env` is read by the service itself."""
    settings = {**read_dotenv(ROOT / ".env"), **os.environ}
    host = settings.get("MQTT_HOST") or "mqtt"
    return {
        **os.environ,
        # The broker's name among the containers is unknown to this machine.
        "MQTT_HOST": "127.0.0.1" if host == "mqtt" else host,
        "MQTT_PORT": settings.get("MQTT_PORT") or "1883",
        "MQTT_TLS": settings.get("MQTT_TLS") or "false",
        "PYTHONPATH": str(ROOT),
    }


def broker_address(environment: dict[str, str]) -> tuple[str, int]:
    """Return the host and the port of the broker."""
    host, port = environment["MQTT_HOST"], environment["MQTT_PORT"]
    if not port.isdecimal():
        fail(f"MQTT_PORT must be a number, not {port!r}.")
    return host, int(port)


@contextlib.contextmanager
def broker(environment: dict[str, str]) -> Iterator[None]:
    """Start a broker when the services look for one on this machine and none listens."""
    host, port = broker_address(environment)
    if host not in LOCAL_HOSTS or listens(host, port):
        ends = " One that another make run has started ends with it." if host in LOCAL_HOSTS else ""
        say(f"Using the broker on {host}:{port}.{ends}")
        yield
        return
    if environment["MQTT_TLS"].lower() in {"1", "on", "t", "true", "y", "yes"}:
        fail(
            f"MQTT_TLS is on and no broker listens on port {port}. Start one with TLS, or run: "
            "MQTT_TLS=false MQTT_PORT=1883 make run ..."
        )
    own = make_broker(DATA, port)
    try:
        own.start()
        program = Path(own.command()[0]).name
        say(f"Started {program} on port {port}, log in {own.log.relative_to(ROOT)}")
        yield
    except BrokerError as error:
        fail(str(error))
    finally:
        own.stop()


def run(programs: list[Path], *, debug: bool) -> int:
    """Run the services until all have ended, and return the highest exit code."""
    environment = make_environment()
    processes: list[subprocess.Popen[bytes]] = []
    has_broker, signals = False, 0

    def stop(number: int, _frame: object) -> None:
        """Forward a signal to each service. A repeated Ctrl-C ends one that does not stop."""
        nonlocal signals
        if not has_broker:
            # It is still starting, and ends with this program.
            raise SystemExit(128 + number)
        signals += 1
        # uv and make repeat SIGTERM as well.
        again = signals > SIGNALS_OF_ONE_CTRL_C and number == signal.SIGINT
        for process in processes if signals == 1 or again else []:
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    DATA.mkdir(exist_ok=True)
    for number in SIGNALS:
        signal.signal(number, stop)
    with broker(environment):
        has_broker = True
        for program in programs:
            name = program.parent.name
            data = DATA / name
            data.mkdir(exist_ok=True)
            own = {
                "DATA_DIR": str(data),
                "HEALTH_PATH": str(data / "healthcheck"),
                # No service has this name. An empty variable would leave the one in .env.
                "DEBUG_SERVICE": name if debug else "-",
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, program],
                    cwd=ROOT,
                    env={**environment, **own},
                    start_new_session=True,
                )
            )
            if signals:
                # The first signal came before this service could receive it.
                processes[-1].terminate()
                break
        codes = [process.wait() for process in processes]
    # A negative code is the signal that ended the process.
    return max(code if code >= 0 else 128 - code for code in codes)


def debug_container(name: str) -> int:
    """Run one service in its container, waiting for the debugger."""
    files = []
    if not any((ROOT / f"docker-compose.override.{ending}").exists() for ending in ("yml", "yaml")):
        files = ["-f", "docker-compose.yml", "-f", "docker-compose.override.example.yml"]
    compose = ["docker", "compose", *files]
    if code := call("scripts/build-base.sh"):
        return code
    container = f"{ROOT.name}-{name}-debug"
    # Two instances would share the volume and its session.
    call(*compose, "stop", name)
    remove_container(container)
    options = ["--rm", "--name", container, "--build", "--use-aliases"]
    options += ["--publish", f"{DEBUG_ADDRESS}:{DEBUG_PORT}"]
    if run_tool(*compose, "ps", "--quiet", "--status", "running", "mqtt").stdout:
        # The override publishes its port, so Compose would replace it.
        options += ["--no-deps"]
    # A published port needs all interfaces of the container.
    options += ["--env", f"DEBUG_SERVICE={name}", "--env", "DEBUG_HOST=0.0.0.0"]
    say(f"Attach the debugger to {DEBUG_ADDRESS}, in VS Code with `Attach to container`.")
    # Compose receives Ctrl-C as well. It ends at once, and the container may not get the signal.
    signal.signal(signal.SIGINT, lambda *_: None)
    code = call(*compose, "run", *options, name, "python", "main.py")
    remove_container(container)
    say(f"Start {name} again: docker compose up --detach {name}")
    return code


def remove_container(name: str) -> None:
    """Stop a container that was started with `--rm`, if it is still there."""
    run_tool("docker", "stop", name)


def diagnose(name: str, arguments: list[str]) -> int:
    """Run the checks of one service on this machine."""
    data = DATA / name
    data.mkdir(parents=True, exist_ok=True)
    environment = {**make_environment(), "DATA_DIR": str(data)}
    host, port = broker_address(environment)
    if host in LOCAL_HOSTS and not listens(host, port):
        say(
            f"No broker listens on {host}:{port}. Run: make run SERVICE={name}. If yours runs in "
            "a container, leave out HOST=1, or publish its port as "
            "docker-compose.override.example.yml does."
        )
    return call(sys.executable, f"services/{name}/diagnose.py", *arguments, env=environment)


def diagnose_container(name: str, arguments: list[str]) -> int:
    """Run the checks of one service in its container, or in one that is removed at the end."""
    compose = ["docker", "compose"]
    env, reason = ROOT / ".env", f"{name} does not run"
    running = run_tool(*compose, "ps", "--quiet", "--status", "running", name).stdout.split()
    fields = "{{.Created}} {{with .State.Health}}{{.Status}}{{end}}"
    if found := run_tool("docker", "inspect", "--format", fields, *running[:1]).stdout.split():
        made, *health = found
        is_stale = env.exists() and datetime.fromisoformat(made).timestamp() < env.stat().st_mtime
        reason = f".env is newer than the container of {name}" if is_stale else ""
        if health in (["starting"], ["unhealthy"]):
            # It may end during the checks, and start again.
            reason = f"{name} is {health[0]}"
    if not reason:
        compose += ["exec", name]
    else:
        say(f"{reason}, so a new container is used.")
        # Standard output belongs to the checks.
        for build in (["scripts/build-base.sh"], [*compose, "build", name]):
            if code := call(*build, stdout=sys.stderr):
                return code
        # Dependencies may be the problem, so their health is not awaited.
        compose += ["run", "--rm", "--no-deps", name]
    return call(*compose, "python", "diagnose.py", *arguments)


def console(arguments: list[str]) -> int:
    """Show messages or send a command, from here or from a container if only that has a broker."""
    known = find_programs()
    match arguments:
        case ["send", name, *_] | ["watch", "--service", name, *_] if name not in known:
            # Services of other repositories may have the same broker.
            say(f"{name} is not a service of this repository: {', '.join(known) or 'it has none'}")
    environment = make_environment()
    host, port = broker_address(environment)
    command = ["python", "-m", "shared.console", *arguments]
    if host not in LOCAL_HOSTS or listens(host, port):
        return call_console(*command, env=environment)
    compose = ["docker", "compose"]
    running = run_tool(*compose, "ps", "--services", "--status", "running").stdout.split()
    files = [ROOT / "services" / name / "compose.yml" for name in running]
    services = [file for file in files if file.is_file()]
    if not services:
        fail(
            f"No broker listens on {host}:{port}, and no service runs in a container. "
            "Run: make run SERVICE=name, or make up"
        )
    # An account of its own may reach the topics of its service only.
    service = min(services, key=lambda file: "MQTT_USERNAME" in file.read_text()).parent.name
    options = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["--no-TTY"]
    options += ["--env", f"NO_COLOR={os.environ.get('NO_COLOR', '')}"]
    return call_console(*compose, "exec", *options, service, *command)


def call_console(*command: str, env: dict[str, str] | None = None) -> int:
    """Run a program that receives Ctrl-C as well, and ends by itself."""
    signal.signal(signal.SIGINT, lambda *_: None)
    return call(*command, env=env)


def say(text: str) -> None:
    """Tell the user on standard error, since standard output belongs to the services."""
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Return the exit code of the program, or 2 when a condition is missing."""
    parser = make_parser(__doc__, "that of the service or the checks, 2 a condition is missing")
    actions = parser.add_subparsers(dest="action", required=True)
    for action, text in {
        "run": "run services",
        "debug": "run one service that waits for the debugger",
        "diagnose": "run the checks of one service",
    }.items():
        of_services = actions.add_parser(action, help=text)
        of_services.add_argument("services", metavar="SERVICE", nargs="*")
        of_services.add_argument("--container", action="store_true", help="in its container")
        of_services.add_argument("--arguments", default="", help="arguments of diagnose.py")
    messages = actions.add_parser("console", help="run shared/console.py", add_help=False)
    messages.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.action == "console":
        return console(options.arguments)
    programs = find_services(options.services, only_one=options.action != "run")
    if options.action == "diagnose":
        say(f"Checking what {options.services[0]} needs. A timeout takes 10 s or more.")
        run_checks = diagnose_container if options.container else diagnose
        return run_checks(options.services[0], shlex.split(options.arguments))
    if options.container:
        return debug_container(options.services[0])
    return run(programs, debug=options.action == "debug")


if __name__ == "__main__":
    code = main()
    # uv may repeat a signal so late that it would end this program in place of its exit code.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(code)
