#!/usr/bin/env python3
"""Show every container in one table; exit code 1 when one is not running or not healthy.

Standard library only. CHECKED is the age of the service's last success at the last health check,
ERRORS counts the lines of the last hour at level error or above.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        sys.exit("Docker is not installed. `make run SERVICE=name` runs a service without it.")
    if result.returncode != 0:
        sys.exit(result.stderr.strip() or f"docker {' '.join(arguments)} failed")
    return result.stdout


def find_containers() -> dict[str, dict[str, Any]]:
    """Return what Docker says of the containers, by service and number."""
    listed = [
        json.loads(line)
        for line in docker("compose", "ps", "--all", "--format", "json").splitlines()
    ]
    ids = [row["ID"] for row in listed if "com.docker.compose.oneoff=True" not in row["Labels"]]
    rows = json.loads(docker("inspect", *ids)) if ids else []
    uptimes = {row["ID"][:12]: row["Status"] for row in listed}
    containers = {}
    for row in rows:
        labels = row["Config"]["Labels"]
        number = labels["com.docker.compose.container-number"]
        row["Uptime"] = re.sub(r"^Up | \(.*", "", uptimes[row["Id"][:12]])
        containers[f"{labels['com.docker.compose.service']}/{number}"] = row
    return containers


def describe(name: str, container: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of one container."""
    state = container["State"]
    health = state.get("Health", {})
    checks = health.get("Log") or [{"Output": ""}]
    success = re.search(r"\d+ s ago", checks[-1]["Output"])
    restarts = str(container["RestartCount"]) + (", out of memory" if state["OOMKilled"] else "")
    log = subprocess.run(
        ["docker", "logs", "--since", "1h", container["Id"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    ).stdout
    return (
        name.removesuffix("/1"),
        state["Status"],
        health.get("Status", "-"),
        container["Uptime"] if state["Running"] else "-",
        success[0] if success and state["Running"] else "-",
        restarts,
        str(sum(bool(_ERROR.search(line)) for line in log.splitlines())),
    )


def main() -> int:
    """Print the table."""
    expected = docker("compose", "config", "--services").split()
    containers = find_containers()
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(describe, containers, containers.values()))
    present = {name.partition("/")[0] for name in containers}
    rows += [(name, "absent", *["-"] * 5) for name in expected if name not in present]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in (HEADER, *sorted(rows)):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return int(any(row[1] != "running" or row[2] not in {"healthy", "-"} for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
