#!/usr/bin/env python3
"""Check this repository and the tools on this machine, and show how to fix each problem.

Standard library only. Exit code 1 when something has failed. A warning is not a failure.
"""

import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from common import MISSING, ROOT, TIMED_OUT, TIMEOUT_SECONDS, make_parser, run_within

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
# Tool, command that prints its version, the oldest that will do, its purpose.
TOOLS = [
    # GIT_CONFIG_COUNT, which the update of the template sets, came with 2.31.
    ("git", ["git", "--version"], "2.31", "history and hooks"),
    # The one on PATH, or else its own in .tools/.
    ("uv", ["scripts/uv", "--version"], "0.8", "everything"),
    # The server's: start_interval of a health check came with 25.
    ("docker", ["docker", "version", "--format", "{{.Server.Version}}"], "25", "containers"),
    # `required` of an env_file came with 2.24.
    ("docker compose", ["docker", "compose", "version"], "2.24", "containers"),
    ("mosquitto", ["mosquitto", "-h"], "0", "tests with a real broker"),
    ("age", ["age", "--version"], "0", "secrets"),
    ("sops", ["sops", "--disable-version-check", "--version"], "3.11", "secrets"),
]
# A Docker that hangs would hold up every check that asks it.
TOOL_SECONDS = 10.0
COLORS = {"PASS": 32, "SKIP": 90, "WARN": 33, "FAIL": 31}
# Check, status of exit code 1, fix, and the script that does it.
SCRIPTS = [
    ("git hooks", "FAIL", "make setup", ["scripts/install-hooks.sh", "--check"]),
    ("lock", "FAIL", "make lock", ["scripts/lock.sh", "--check"]),
    ("template", "WARN", "make template-update", ["scripts/template-update.sh", "--check"]),
]


class Finding(NamedTuple):
    """The result of one check: PASS, SKIP (not set up), WARN or FAIL, and what to do."""

    check: str
    status: str
    detail: str
    fix: str = ""


def look(*command: str, timeout: float = TIMEOUT_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a command whose output is read."""
    return run_within(timeout, *command, PATH=PATH, LC_ALL="C", GIT_TERMINAL_PROMPT="0")


@functools.cache
def look_at_docker() -> subprocess.CompletedProcess[str]:
    """Ask Docker about its swarm, once. The exit code is 0 if it responds."""
    form = "{{.Swarm.ControlAvailable}} {{.Swarm.Managers}} {{.SecurityOptions}}"
    return look("docker", "info", "--format", form, timeout=TOOL_SECONDS)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed, on one line."""
    return " ".join(f"{result.stdout} {result.stderr}".split())


def check_tools() -> Iterator[Finding]:
    """Compare the versions of the tools with the oldest that will do."""
    for name, command, oldest, purpose in TOOLS:
        result = look(*command, timeout=TOOL_SECONDS)
        # An address on stderr may look like a version.
        found = re.search(r"(\d+)\.(\d+)[.\d]*", result.stdout)
        if result.returncode == MISSING:
            status = "FAIL" if name == "git" else "WARN"
            yield Finding(name, status, f"missing ({purpose})", f"install {name}")
        elif result.returncode and not found:
            problem = "does not respond" if result.returncode == TIMED_OUT else "does not run"
            yield Finding(name, "WARN", f"{problem} ({purpose})", f"run {' '.join(command)}")
        elif found and [*map(int, found.groups())] < [*map(int, oldest.split("."))]:
            detail = f"{found[0]} is too old ({purpose})"
            yield Finding(name, "FAIL", detail, f"install {oldest} or newer")
        else:
            yield Finding(name, "PASS", found[0] if found else "present")


def check_python() -> Iterator[Finding]:
    """Look for the Python version of the repository."""
    wanted = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    result = look("scripts/uv", "python", "find", "--no-project", wanted)
    if result.returncode:
        fix = f"scripts/uv python install {wanted}"
        yield Finding("python", "WARN", f"{wanted}: {said(result)}", fix)
    else:
        yield Finding("python", "PASS", wanted)


def check_secrets() -> Iterator[Finding]:
    """Ask the program that manages the secrets."""
    program = ("python", "scripts/manage_secrets.py", "check")
    result = look("scripts/uv", "run", "--quiet", "--frozen", *program)
    if result.returncode:
        yield Finding("secrets", "WARN", f"not checked: {said(result)}", "scripts/uv sync --frozen")
    else:
        yield from (Finding(**finding) for finding in json.loads(result.stdout))


def check_scripts() -> Iterator[Finding]:
    """Ask the scripts that would fix the rest. Exit codes above 1 say that it is unknown."""
    for name, status_of_1, fix, command in SCRIPTS:
        result = look(*command)
        status = {0: "PASS", 1: status_of_1}.get(result.returncode, "WARN")
        detail, _, own_fix = said(result).partition(" Run: ")
        if status == "PASS":
            yield Finding(name, status, detail or "up to date")
        else:
            yield Finding(name, status, detail, own_fix or fix)


def check_permissions() -> Iterator[Finding]:
    """Containers have users of their own, who have to read what is mounted."""
    mounted = [ROOT / "infrastructure", ROOT / "shared"]
    # Services of the type fleet mount it.
    if any("docs:/app/docs" in path.read_text() for path in ROOT.glob("services/*/compose.yml")):
        mounted.append(ROOT / "docs")
    for path in [*mounted, *(path for directory in mounted for path in directory.rglob("*"))]:
        wanted = 0o005 if path.is_dir() else 0o004
        # Python does without its caches.
        if "__pycache__" not in path.parts and path.stat().st_mode & wanted != wanted:
            detail = f"containers cannot read {path.relative_to(ROOT)}"
            fix = "chmod -R go+rX infrastructure shared docs services"
            yield Finding("permissions", "FAIL", detail, fix)
            return
    yield Finding("permissions", "PASS", "containers can read what they mount")


def check_discovery() -> Iterator[Finding]:
    """Ask the diagnosis of a service whether the announcements of all services arrive."""
    env = ROOT / ".env"
    is_set = re.compile(r"(?m)^HA_DISCOVERY_PREFIX=['\"]?\w")
    services = sorted(path.parent.name for path in ROOT.glob("services/*/diagnose.py"))
    # Only repositories with MQTT discovery have this module.
    if not (ROOT / "shared/discovery.py").is_file() or not services:
        return
    if not env.is_file() or not is_set.search(env.read_text(encoding="utf-8")):
        return
    options = ("--json", "--step", "discovery")
    # The broker may be within reach of the containers only.
    exec_in = ("docker", "compose", "exec", "-T", services[0], "python", "diagnose.py")
    result = look_at_docker()
    if result.returncode == 0:
        result = look(*exec_in, *options)
    is_inside = bool(look_at_docker().returncode == 0 and result.stdout)
    if not is_inside:
        program = ("python", "scripts/run.py", "diagnose", f"--arguments={' '.join(options)}")
        result = look("scripts/uv", "run", "--quiet", "--frozen", *program, services[0])
    try:
        (found,) = (step for step in json.loads(result.stdout) if step["step"] == "discovery")
    except ValueError:
        found = {"status": "WARN", "detail": f"not checked: {said(result)}", "fix": "make up"}
    # .env has the prefix, which the running service skips.
    if is_inside and found["status"] == "SKIP":
        found |= {"detail": "the containers have older settings than .env", "fix": "make up"}
    # The repository itself is in order without a broker.
    status = "PASS" if found["status"] == "PASS" else "WARN"
    yield Finding("discovery", status, found["detail"], found["fix"])


def check_swarm() -> Iterator[Finding]:
    """Check the swarm, if this Docker is a manager of one."""
    info = look_at_docker().stdout.split(" ", 2)
    if info[0] != "true":
        return
    ids = look("docker", "service", "ls", "--quiet").stdout.split()
    form = "{{.Spec.Name}} {{range .Spec.TaskTemplate.ContainerSpec.Mounts}}{{.Type}} {{end}}"
    form += "{{with .Spec.TaskTemplate.Placement}}{{.Constraints}}{{end}}"
    services = look("docker", "service", "inspect", "--format", form, *ids).stdout
    moves = re.findall(r"^(\S+) (?=.*volume )[^\[]*(?:\[\])?$", services, re.MULTILINE)
    moving = ", ".join(moves) or "none"
    running = ("--filter", "desired-state=running", "--format", "{{.Name}}:{{.Node}}")
    tasks = look("docker", "service", "ps", *running, *ids).stdout.split()
    waiting = ", ".join(task[:-1] for task in tasks if task.endswith(":")) or "none"
    flag = "on" if "no-new-privileges" in info[2] else "off on this node"
    promote = "docker node promote NODE, or docker node demote NODE"
    place = "add deploy.placement.constraints: docs/swarm.md, Replicas"
    explain = "docker service ps --no-trunc NAME shows the reason"
    privileges = 'set "no-new-privileges": true in /etc/docker/daemon.json of every node'
    for name, is_good, detail, fix in (
        ("managers", int(info[1]) % 2 == 1, f"{info[1]}, an odd number is best", promote),
        ("state", moving == "none", f"services whose volume may move: {moving}", place),
        ("tasks", waiting == "none", f"tasks that wait for a node: {waiting}", explain),
        ("privileges", flag == "on", f"no-new-privileges: {flag}", privileges),
    ):
        status = "PASS" if is_good else "WARN"
        yield Finding(f"swarm {name}", status, detail, "" if is_good else fix)


def show(finding: Finding) -> None:
    """Print a finding, in the width of the terminal if there is one."""
    status, detail = finding.status, finding.detail
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns - 22, 30)
        lines = textwrap.wrap(detail, width, break_long_words=False, break_on_hyphens=False)
        detail = f"\n{'':<22}".join(lines)
        if not os.environ.get("NO_COLOR"):
            status = f"\033[{COLORS[status]}m{status}\033[0m"
    fixes = [f"{'':<22}-> {line}\n" for line in finding.fix.splitlines()]
    sys.stdout.write(f"{status}  {finding.check:<14}  {detail}\n{''.join(fixes)}")
    sys.stdout.flush()


def main() -> int:
    """Print the findings, as JSON if asked. The exit code is 1 if one of them is FAIL."""
    parser = make_parser(__doc__, "0 nothing has failed, 1 a check has failed, 2 wrong usage")
    parser.add_argument("--secrets", action="store_true", help="check only the secrets")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args()
    checks = (
        *(check_python, check_tools, check_scripts, check_secrets),
        *(check_permissions, check_discovery, check_swarm),
    )
    chosen = (check_secrets,) if options.secrets else checks
    findings = []
    for finding in (finding for check in chosen for finding in check()):
        findings.append(finding)
        if not options.json:
            show(finding)
    counts = collections.Counter(finding.status for finding in findings)
    if options.json:
        sys.stdout.write(json.dumps([finding._asdict() for finding in findings], indent=2) + "\n")
    else:
        good, skipped, warned, failed = (counts[status] for status in COLORS)
        summary = f"{good} passed, {skipped} not set up, {warned} warned, {failed} failed"
        sys.stdout.write(f"{summary}\n")
    return int(counts["FAIL"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
