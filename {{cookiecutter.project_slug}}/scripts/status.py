#!/usr/bin/env python3
"""Show every container in one table.

Standard library only. LAST SUCCESS is the age of the health timestamp that the last health check
saw. RESTARTS is the number of restarts, with the kills for lack of memory that Docker remembers:
it keeps the last 256 events. ERRORS counts the lines of the last hour at level error or above, and
plain lines with `Error:`. `--logs` also prints the last lines and the last health check of each
container that is not healthy. A line on stderr warns of MQTT sessions without a client.

Services of a swarm have one line each, and exit code 1 also stands for an update that was rolled
back. LAST SUCCESS is known for tasks on the node of the Docker context. `--wait` waits for an
update to end. `--heartbeats` also listens until each replica has sent one. A silent replica is not
healthy.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from common import ROOT, make_parser

HEADER = ("SERVICE", "STATE", "HEALTH", "UPTIME", "LAST SUCCESS", "RESTARTS", "ERRORS (1 h)")
STACK_HEADER = ("SERVICE", "REPLICAS", "NODES", "UPDATE", "LAST SUCCESS", "ERRORS (1 h)")
HEARTBEAT_HEADER = ("SERVICE", "INSTANCE", "NODES", "HEARTBEAT", "UPTIME", "AGE")
# The broker counts its sessions this often, so a younger container may be missing in the number.
BROKER_COUNT_SECONDS = 10
_ERROR = re.compile(r'"level": ?"(error|critical)"|\[(error|critical) *\]|^[^{]*Error:')


def docker(*arguments: str) -> str:
    """Return the output of a Docker command. End the program with its message when it fails."""
    try:
        result = subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if "logs" in arguments else subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        sys.exit(f"docker: {error.strerror}")
    if result.returncode != 0:
        sys.exit((result.stderr or result.stdout).strip())
    return result.stdout


def find_containers() -> list[dict[str, Any]]:
    """Return what Docker knows of each container, with its name in the table."""
    ids = docker("compose", "ps", "--all", "--quiet").split()
    containers = json.loads(docker("inspect", *ids)) if ids else []
    found = []
    for container in containers:
        labels = container["Config"]["Labels"]
        if labels["com.docker.compose.oneoff"] == "False":
            number = labels["com.docker.compose.container-number"]
            service = labels["com.docker.compose.service"]
            found.append(
                {**container, "Service": service, "Row": f"{service}/{number}".removesuffix("/1")}
            )
    return found


def seconds_since(time_of_docker: str) -> int:
    """Return the age of a time, which Docker gives in nanoseconds."""
    then = datetime.strptime(re.sub(r"\.\d+", "", time_of_docker), "%Y-%m-%dT%H:%M:%S%z")
    return int((datetime.now(then.tzinfo) - then).total_seconds())


def last_success(container: dict[str, Any]) -> str:
    """Return the age that the last health check has printed, and that of the check itself."""
    checks = container["State"].get("Health", {}).get("Log") or [{"Output": ""}]
    found = re.search(r"(\d+) s ago", checks[-1]["Output"])
    return f"{int(found[1]) + seconds_since(checks[-1]['End'])} s ago" if found else "-"


def count_errors(*command: str) -> str:
    """Return the number of errors in the log of the last hour."""
    log = docker(*command[:-1], "--since", "1h", command[-1])
    return str(sum(bool(_ERROR.search(line)) for line in log.splitlines()))


def describe(container: dict[str, Any], out_of_memory: list[str]) -> tuple[str, ...]:
    """Return the row of one container."""
    state = container["State"]
    running = state["Status"] == "running"
    health = state.get("Health", {})
    uptime = timedelta(seconds=seconds_since(state["StartedAt"]))
    # Docker forgets the flag when it restarts the container.
    kills = max(out_of_memory.count(container["Id"]), int(state["OOMKilled"]))
    return (
        container["Row"],
        state["Status"] if running else f"{state['Status']} ({state['ExitCode']})",
        health.get("Status", "-") if running else "-",
        str(uptime) if running else "-",
        last_success(container) if running else "-",
        f"{container['RestartCount']}" + (f", {kills} out of memory" if kills else ""),
        count_errors("logs", container["Id"]),
    )


def is_good(row: tuple[str, ...]) -> bool:
    """Return whether the container of this row runs and is healthy, if it has a health check."""
    return row[1] == "running" and row[2] in {"healthy", "-"}


def count_waiting_sessions(containers: list[dict[str, Any]]) -> int:
    """Return how many sessions the broker of this repository keeps for clients that are away."""
    broker = next((c for c in containers if c["Service"] == "mqtt"), None)
    if broker is None or broker["State"].get("Health", {}).get("Status") != "healthy":
        return 0
    if min(seconds_since(c["State"]["StartedAt"]) for c in containers) < 2 * BROKER_COUNT_SECONDS:
        return 0
    # start.sh has written the options of the client there.
    options = ("--env", "XDG_CONFIG_HOME=/run/mosquitto/.config", broker["Id"])
    # The broker publishes the number for the first time 10 s after its start.
    command = "mosquitto_sub -h 127.0.0.1 -t '$SYS/broker/clients/disconnected' -C 1 -W 1 || echo 0"
    return int(docker("exec", *options, "sh", "-c", command))


def show(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *sorted(rows)):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def find_stack() -> list[str]:
    """Return the ids of the services that a swarm runs for this repository."""
    if docker("info", "--format", "{{.Swarm.ControlAvailable}}").strip() != "true":
        return []
    name = json.loads(docker("compose", "config", "--format", "json"))["name"]
    label = f"label=com.docker.stack.namespace={name}"
    return docker("service", "ls", "--quiet", "--filter", label).split()


def read_tasks(*options: str) -> list[dict[str, Any]]:
    """Return the tasks of services, of which the newest is the last."""
    tasks = docker("service", "ps", "--quiet", "--no-trunc", *options).split()
    found = json.loads(docker("inspect", "--type", "task", *tasks)) if tasks else []
    return sorted(found, key=lambda task: str(task["CreatedAt"]))


def read_stack(ids: list[str]) -> list[dict[str, Any]]:
    """Return the services of a stack with their state."""
    services: list[dict[str, Any]] = json.loads(docker("service", "inspect", *ids))
    tasks = read_tasks("--filter", "desired-state=running", *ids)
    for service in services:
        stack = service["Spec"]["Labels"]["com.docker.stack.namespace"]
        service["Name"] = service["Spec"]["Name"].removeprefix(f"{stack}_")
        own = [task for task in tasks if task["ServiceID"] == service["ID"]]
        # Tasks of the last version run until they are replaced. A service shows defaults as well.
        wanted = service["Spec"]["TaskTemplate"]["ContainerSpec"].items()
        current = [task for task in own if task["Spec"]["ContainerSpec"].items() <= wanted]
        running = [task for task in current if task["Status"]["State"] == "running"]
        replicas = service["Spec"]["Mode"].get("Replicated", {"Replicas": len(own)})["Replicas"]
        update = service.get("UpdateStatus", {}).get("State", "-")
        service["Running"], service["Replicas"], service["Update"] = running, replicas, update
        is_complete = len(running) == replicas and update not in {"updating", "rollback_started"}
        service["IsGood"] = is_complete and update in {"-", "completed"}
        service["IsSettled"] = is_complete or update.endswith("paused")
    return services


def describe_service(service: dict[str, Any], nodes: dict[str, str]) -> tuple[str, ...]:
    """Return the row of one service of a stack."""
    label = f"label=com.docker.swarm.service.id={service['ID']}"
    here = docker("ps", "--quiet", "--filter", label).split()
    replicas = json.loads(docker("inspect", *here)) if here else []
    ages = [age for age in map(last_success, replicas) if age != "-"]
    return (
        service["Name"],
        f"{len(service['Running'])}/{service['Replicas']}",
        ", ".join(sorted({nodes[task["NodeID"]] for task in service["Running"]})) or "-",
        service["Update"],
        min(ages, key=lambda age: int(age.split()[0]), default="-"),
        count_errors("service", "logs", "--raw", service["ID"]),
    )


def receive_heartbeats(stack: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield services and heartbeats for an interval, received in a container on this node."""
    names = {service["Name"] for service in stack}
    # An account of its own may not be allowed to read the heartbeats of others.
    for service in sorted(stack, key=lambda each: "MQTT_PASSWORD_FILE" in str(each["Spec"])):
        label = f"label=com.docker.swarm.service.id={service['ID']}"
        if ids := docker("ps", "--quiet", "--filter", label, "--filter", "health=healthy").split():
            break
    else:
        sys.exit("Heartbeats: no healthy service runs on the node of this Docker context.")
    command = ("docker", "exec", ids[0], "python", "-m", "shared.console", "heartbeats")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout or ())
        if not (seconds := next(lines, "").strip()):
            sys.exit("Heartbeats cannot be received, see above.")
        sys.stderr.write(f"Listening for heartbeats (up to {seconds} s).\n")
        try:
            for name, _, payload in (line.partition(" ") for line in lines):
                if name in names:
                    yield name, json.loads(payload)
        finally:
            process.kill()


def show_heartbeats(stack: list[dict[str, Any]], nodes: dict[str, str]) -> set[str]:
    """Print the heartbeat of each replica. Return the services that are silent or degraded."""
    # Services of this repository. Others, such as the broker, send none.
    own = [service for service in stack if "/app/shared.zip" in str(service["Spec"])]
    replicas: dict[tuple[str, int | None], set[str]] = {}
    for service in own:
        for task in service["Running"]:
            # The replicas of a global service have no numbers.
            replica = replicas.setdefault((service["Name"], task.get("Slot")), set())
            replica.add(nodes[task["NodeID"]])
    heard: dict[tuple[str, int | None], tuple[float, dict[str, Any]]] = {}
    for name, heartbeat in receive_heartbeats(own) if replicas else ():
        heard[name, heartbeat.get("instance")] = time.monotonic(), heartbeat
        if replicas.keys() <= heard.keys():
            break
    rows: list[tuple[str, ...]] = []
    for (name, instance), where in replicas.items():
        received, heartbeat = heard.get((name, instance), (0.0, {}))
        uptime = timedelta(seconds=int(heartbeat.get("uptime_seconds", 0)))
        age = f"{time.monotonic() - received:.0f} s ago"
        state = (str(heartbeat["status"]), str(uptime), age) if heartbeat else ("silent", "-", "-")
        rows.append((name, str(instance or "-"), ", ".join(sorted(where)), *state))
    sys.stdout.write("\n")
    show(HEARTBEAT_HEADER, rows)
    return {row[0] for row in rows if row[3] != "online"}


def show_stack(ids: list[str], options: argparse.Namespace) -> int:
    """Print the services of a stack as soon as no update goes on, or after so many seconds."""
    deadline = time.monotonic() + options.wait
    stack = read_stack(ids)
    while not all(service["IsSettled"] for service in stack) and time.monotonic() < deadline:
        time.sleep(1)
        stack = read_stack(ids)
    lines = docker("node", "ls", "--format", "{{.ID}} {{.Hostname}}").splitlines()
    nodes = dict(line.split() for line in lines)
    show(STACK_HEADER, [describe_service(service, nodes) for service in stack])
    bad = [service for service in stack if not service["IsGood"]]
    for service in bad:
        for task in [task for task in read_tasks(service["ID"]) if task["Status"].get("Err")][-1:]:
            sys.stdout.write(f"\n{service['Spec']['Name']}: {task['Status']['Err']}\n")
            if options.logs:
                sys.stdout.write(docker("service", "logs", "--raw", "--tail", "30", task["ID"]))
    silent = show_heartbeats(stack, nodes) if options.heartbeats else set()
    bad = [service for service in stack if service in bad or service["Name"] in silent]
    fix = "Run: docker service ps --no-trunc NAME, or docker service logs NAME"
    if any(service["Update"].startswith("rollback") for service in bad):
        fix = f"After a rollback the previous version runs. {fix}"
    return report([service["Spec"]["Name"] for service in bad], fix)


def report(bad: list[str], fix: str) -> int:
    """Return the exit code, and give its reason."""
    if bad:
        sys.stderr.write(f"Not running or not healthy: {', '.join(bad)}. {fix}\n")
    return int(bool(bad))


def main() -> int:
    """Print the table."""
    parser = make_parser(__doc__, "0 everything is healthy, 1 something is not, 2 wrong usage")
    parser.add_argument("--logs", action="store_true", help="show why one is not healthy")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="wait for an update of a swarm"
    )
    parser.add_argument(
        "--heartbeats", action="store_true", help="listen to the replicas of a swarm, too"
    )
    options = parser.parse_args()
    if stack := find_stack():
        return show_stack(stack, options)
    if options.heartbeats:
        parser.error("--heartbeats needs a swarm that runs the services of this repository")
    expected = docker("compose", "config", "--services").split()
    containers = find_containers()
    past = ("--since", "24h", "--until", "0s")
    kills = docker("events", *past, "--filter", "event=oom", "--format", "{{.Actor.ID}}").split()
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(describe, containers, [kills] * len(containers)))
    bad = [container for container, row in zip(containers, rows, strict=True) if not is_good(row)]
    present = {container["Service"] for container in containers}
    rows += [(name, "absent", *["-"] * 5) for name in expected if name not in present]
    show(HEADER, rows)
    if waiting := count_waiting_sessions(containers):
        sys.stderr.write(
            f"MQTT sessions without a client: {waiting}. The broker collects their messages for a"
            " day. Start those services, scale back up, or wait if they were removed.\n"
        )
    for container in bad if options.logs else []:
        sys.stdout.write(f"\n=== last lines of {container['Row']}\n")
        sys.stdout.write(docker("logs", "--tail", "30", container["Id"]))
        checks = container["State"].get("Health", {}).get("Log") or [{"Output": "none yet"}]
        sys.stdout.write(f"Restarts: {container['RestartCount']}. ")
        sys.stdout.write(f"Last health check: {checks[-1]['Output'].strip()}\n")
    failed = [row for row in sorted(rows) if not is_good(row)]
    # Absent ones have no log.
    named = [row[0].partition("/")[0] for row in failed if row[1] != "absent"]
    fix = f"make logs SERVICE={named[0]}" if named else "make up"
    if named and (ROOT / "services" / named[0]).is_dir():
        fix += f", or make diagnose SERVICE={named[0]}"
    return report([row[0] for row in failed], f"Run: {fix}")


if __name__ == "__main__":
    raise SystemExit(main())
