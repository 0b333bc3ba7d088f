#!/usr/bin/env python3
"""Show every container in one table; exit code 1 when one is not running or not healthy.

    scripts/status.py [--logs]

Standard library only. LAST SUCCESS is the health timestamp that the last health check saw.
RESTARTS says how often the container ran out of memory, as far as Docker remembers: it keeps the
last 256 events. ERRORS counts the lines of the last hour at level error or above. `--logs` also
prints the last lines and the last health check of each container that is not healthy. A line on
stderr warns of MQTT sessions without a client.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEADER = ("SERVICE", "STATE", "HEALTH", "UPTIME", "LAST SUCCESS", "RESTARTS", "ERRORS (1 h)")
_ERROR = re.compile(r'"level": ?"(error|critical)"|\[(error|critical) *\]|^[^{]*Error:')


def docker(*arguments: str) -> str:
    """Return the output of a Docker command; ends the program with its message when it fails."""
    try:
        result = subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if arguments[0] == "logs" else subprocess.PIPE,
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


def describe(container: dict[str, Any], out_of_memory: list[str]) -> tuple[str, ...]:
    """Return the row of one container."""
    state = container["State"]
    running = state["Status"] == "running"
    health = state.get("Health", {})
    checks = health.get("Log") or [{"Output": ""}]
    success = re.search(r"\d+ s ago", checks[-1]["Output"])
    started = datetime.fromisoformat(f"{state['StartedAt'][:19]}+00:00")
    uptime = timedelta(seconds=int((datetime.now(started.tzinfo) - started).total_seconds()))
    # Docker forgets the flag when it restarts the container.
    kills = max(out_of_memory.count(container["Id"]), int(state["OOMKilled"]))
    log = docker("logs", "--since", "1h", container["Id"])
    return (
        container["Row"],
        state["Status"] if running else f"{state['Status']} ({state['ExitCode']})",
        health.get("Status", "-") if running else "-",
        str(uptime) if running else "-",
        success[0] if success and running else "-",
        f"{container['RestartCount']}" + (f", {kills} out of memory" if kills else ""),
        str(sum(bool(_ERROR.search(line)) for line in log.splitlines())),
    )


def is_good(row: tuple[str, ...]) -> bool:
    """Return whether the container of this row runs and is not unhealthy."""
    return row[1] == "running" and row[2] in {"healthy", "-"}


def count_waiting_sessions(containers: list[dict[str, Any]]) -> int:
    """Return how many sessions the broker of this repository keeps for clients that are away."""
    broker = next((c for c in containers if c["Service"] == "mqtt"), None)
    if broker is None or broker["State"].get("Health", {}).get("Status") != "healthy":
        return 0
    # start.sh has written the options of the client there.
    options = ("--env", "XDG_CONFIG_HOME=/run/mosquitto/.config", broker["Id"])
    # The broker publishes the number for the first time 10 s after its start.
    command = "mosquitto_sub -h 127.0.0.1 -t '$SYS/broker/clients/disconnected' -C 1 -W 1 || echo 0"
    return int(docker("exec", *options, "sh", "-c", command))


def main() -> int:
    """Print the table."""
    expected = docker("compose", "config", "--services").split()
    containers = find_containers()
    past = ("--since", "24h", "--until", "0s")
    kills = docker("events", *past, "--filter", "event=oom", "--format", "{{.Actor.ID}}").split()
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(describe, containers, [kills] * len(containers)))
    bad = [container for container, row in zip(containers, rows, strict=True) if not is_good(row)]
    present = {container["Service"] for container in containers}
    rows += [(name, "absent", *["-"] * 5) for name in expected if name not in present]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in (HEADER, *sorted(rows)):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    if waiting := count_waiting_sessions(containers):
        sys.stderr.write(
            f"The broker collects messages for {waiting} sessions whose clients are away. Start"
            " those services, or scale back up: a session goes after one day.\n"
        )
    for container in bad if "--logs" in sys.argv else []:
        sys.stdout.write(f"\n=== last lines of {container['Row']}\n")
        sys.stdout.write(docker("logs", "--tail", "30", container["Id"]))
        checks = container["State"].get("Health", {}).get("Log") or [{"Output": "none yet"}]
        sys.stdout.write(f"Restarts: {container['RestartCount']}. ")
        sys.stdout.write(f"Last health check: {checks[-1]['Output'].strip()}\n")
    return int(not all(map(is_good, rows)))


if __name__ == "__main__":
    raise SystemExit(main())
