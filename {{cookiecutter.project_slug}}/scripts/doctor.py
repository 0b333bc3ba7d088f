#!/usr/bin/env python3
"""Checks this repository and the tools on this machine, and says how to fix what is wrong.

    scripts/doctor.py [--json]

Standard library only. Exit code 1 when something has failed. A warning is not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_COLOURS = {"PASS": 32, "WARN": 33, "FAIL": 31}
# Tool, command that prints its version, the oldest that will do, its purpose.
_TOOLS = [
    # GIT_CONFIG_COUNT, which scripts/template-update.sh sets, came with 2.31.
    ("git", ["git", "--version"], "2.31", "history and hooks"),
    ("uv", ["uv", "--version"], "0.8", "everything; scripts/uv keeps its own in .tools/"),
    # The server's: start_interval of a health check came with 25.
    ("docker", ["docker", "version", "--format", "{{.Server.Version}}"], "25", "containers"),
    # `required` of an env_file came with 2.24.
    ("docker compose", ["docker", "compose", "version"], "2.24", "containers"),
    ("mosquitto", ["mosquitto", "-h"], "", "tests with a real broker"),
    ("age", ["age", "--version"], "", "secrets"),
    ("sops", ["sops", "--disable-version-check", "--version"], "3.11", "secrets"),
]
_MISSING = 127


class Finding(NamedTuple):
    """The result of one check: PASS, WARN or FAIL, and what to do."""

    check: str
    status: str
    detail: str
    fix: str = ""


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository. A missing program counts as exit code 127."""
    foreign = {"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    environment |= {"PATH": path, "LC_ALL": "C", **variables}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, _MISSING, "", str(error))


def reason(result: subprocess.CompletedProcess[str]) -> str:
    """Return what a command that failed said itself, on one line."""
    return " ".join(result.stderr.split()) or f"exit code {result.returncode}"


def check_tools() -> list[Finding]:
    wanted = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    result = run("scripts/uv", "python", "find", "--no-project", wanted)
    findings = [Finding("python", "PASS", wanted)]
    if result.returncode:
        fix = f"scripts/uv python install {wanted}"
        findings = [Finding("python", "WARN", f"{wanted}: {reason(result)}", fix)]
    for name, command, oldest, purpose in _TOOLS:
        result = run(*command)
        # An address on stderr may look like a version.
        found = re.search(r"v?(\d+\.\d+(\.\d+)?)", result.stdout)
        if result.returncode == _MISSING:
            status = "FAIL" if name == "git" else "WARN"
            findings.append(Finding(name, status, f"missing ({purpose})", f"install {name}"))
        elif result.returncode and not found:
            fix = f"see what `{' '.join(command)}` says"
            findings.append(Finding(name, "WARN", f"does not run ({purpose})", fix))
        elif found and oldest and _parts(found.group(1)) < _parts(oldest):
            detail = f"{found.group(1)} is too old ({purpose})"
            findings.append(Finding(name, "FAIL", detail, f"install {oldest} or newer"))
        else:
            findings.append(Finding(name, "PASS", found.group(1) if found else "present"))
    return findings


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def check_git() -> list[Finding]:
    result = run("git", "rev-parse", "--show-prefix")
    if result.returncode:
        fix = "git init && make setup"
        if "not a git repository" not in result.stderr:
            fix = "do what git says"
        return [Finding("git repository", "FAIL", reason(result).removeprefix("fatal: "), fix)]
    if result.stdout.strip():
        detail, fix = "those of the repository around this one", 'have them run "make lint" here'
        return [Finding("git hooks", "WARN", detail, fix)]
    hook = run("git", "rev-parse", "--git-path", "hooks/pre-commit").stdout.strip()
    path = ROOT / hook
    if run("git", "config", "core.hooksPath").returncode == 0:
        if path.is_file():
            return [Finding("git hooks", "PASS", f"your own: {hook} (core.hooksPath)")]
        fix = f'write {hook}, which runs "make lint", or unset core.hooksPath'
        return [Finding("git hooks", "FAIL", "core.hooksPath leads to none", fix)]
    if path.is_file() and "pre-commit" in path.read_text(encoding="utf-8", errors="replace"):
        return [Finding("git hooks", "PASS", "installed")]
    return [Finding("git hooks", "FAIL", "not installed", "scripts/install-hooks.sh")]


def check_secrets() -> list[Finding]:
    program = ("python", "scripts/manage_secrets.py", "check", "--json")
    result = run("scripts/uv", "run", "--quiet", "--frozen", *program)
    try:
        return [Finding(**finding) for finding in json.loads(result.stdout)]
    except ValueError:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        return [Finding("secrets", "WARN", f"not checked: {reason}", "scripts/uv sync --frozen")]


def check_lock() -> list[Finding]:
    result = run("scripts/lock.sh", "--check")
    if result.returncode == 0:
        return [Finding("lock", "PASS", "uv.lock and the exported requirements are up to date")]
    if result.returncode == 1:
        return [Finding("lock", "FAIL", reason(result), "make lock")]
    return [Finding("lock", "WARN", f"not checked: {reason(result)}", "scripts/lock.sh --check")]


def check_permissions() -> list[Finding]:
    """Containers have users of their own, who have to read what is mounted."""
    for folder in (ROOT / "infrastructure", ROOT / "shared"):
        for path in (folder, *folder.rglob("*")):
            wanted = 0o005 if path.is_dir() else 0o004
            # Python does without its caches.
            if "__pycache__" not in path.parts and path.stat().st_mode & wanted != wanted:
                detail = f"containers cannot read {path.relative_to(ROOT)}"
                fix = "chmod -R go+rX infrastructure shared services"
                return [Finding("permissions", "FAIL", detail, fix)]
    return [Finding("permissions", "PASS", "containers can read what they mount")]


def check_discovery() -> list[Finding]:
    """Ask the diagnosis of a service whether the announcements of all services arrive."""
    env = ROOT / ".env"
    is_set = re.compile(r"^HA_DISCOVERY_PREFIX=['\"]?\w", re.MULTILINE)
    services = sorted(path.parent.name for path in ROOT.glob("services/*/diagnose.py"))
    if not services or not env.is_file() or not is_set.search(env.read_text(encoding="utf-8")):
        return []
    options = ("diagnose.py", "--json", "--step", "discovery")
    # The broker may be within reach of the containers only.
    result = run("docker", "compose", "exec", "-T", services[0], "python", *options)
    if result.returncode and not result.stdout:
        program = f"services/{services[0]}/{options[0]}"
        result = run(
            *("scripts/uv", "run", "--quiet", "--frozen", "python", program, *options[1:]),
            PYTHONPATH=str(ROOT),
        )
    try:
        (found,) = (step for step in json.loads(result.stdout) if step["step"] == "discovery")
    except ValueError:
        found = {"status": "WARN", "detail": f"not checked: {reason(result)}", "fix": "make up"}
    # The repository itself is in order without a broker.
    status = "PASS" if found["status"] == "PASS" else "WARN"
    return [Finding("discovery", status, found["detail"], found["fix"])]


def check_template() -> list[Finding]:
    record = ROOT / ".cruft.json"
    if not record.is_file():
        fix = "scripts/uv run --frozen cruft link URL"
        return [Finding("template", "WARN", "unknown: there is no .cruft.json", fix)]
    try:
        state = json.loads(record.read_text(encoding="utf-8"))
        address, commit = str(state["template"]), str(state["commit"])
        version = state["context"]["cookiecutter"].get("__template_version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f".cruft.json cannot be read: {type(error).__name__}: {error}"
        return [Finding("template", "FAIL", detail, "git log -- .cruft.json shows when it could")]
    known = f"version {version} ({commit[:8]})" if version else commit[:8]
    result = run("git", "ls-remote", "--exit-code", address, "HEAD", GIT_TERMINAL_PROMPT="0")
    if result.returncode:
        detail = f"{known}; {address} cannot be reached: {reason(result)}"
        return [Finding("template", "WARN", detail, "check the network and .cruft.json")]
    newest = result.stdout.split()[0]
    if newest == commit:
        return [Finding("template", "PASS", f"{known}, the newest")]
    detail = f"{known}, the newest is {newest[:8]}{_how_far(address, commit)}"
    return [Finding("template", "WARN", detail, "make template-update")]


def _how_far(template: str, commit: str) -> str:
    """Return how many commits the template is ahead, from a clone without files."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bare", "--quiet", "--filter=tree:0"]
        if run("git", "clone", *options, template, folder).returncode:
            return ""
        count = run("git", "-C", folder, "rev-list", "--count", f"{commit}..HEAD")
        return f"; commits behind: {count.stdout.strip()}" if count.returncode == 0 else ""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check this repository and its tools.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    as_json = parser.parse_args().json
    checks = (
        check_tools, check_git, check_secrets, check_lock, check_permissions, check_discovery,
        check_template,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check()]
    if as_json:
        sys.stdout.write(json.dumps([finding._asdict() for finding in findings], indent=2) + "\n")
    else:
        _print(findings)
    return int(any(finding.status == "FAIL" for finding in findings))


def _print(findings: list[Finding]) -> None:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(len(finding.check) for finding in findings)
    for check, status, detail, fix in findings:
        shown = f"\033[{_COLOURS[status]}m{status}\033[0m" if coloured else status
        sys.stdout.write(f"{shown}  {check:<{width}}  {detail}\n")
        for line in fix.splitlines():
            sys.stdout.write(f"      {'':<{width}}  -> {line}\n")


if __name__ == "__main__":
    raise SystemExit(main())
