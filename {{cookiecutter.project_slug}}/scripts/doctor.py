#!/usr/bin/env python3
"""Checks this repository and the tools on this machine, and says how to fix what is wrong.

    scripts/doctor.py [--json]

Standard library only. Exit code 1 when something has failed; a warning is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COLOURS = {"PASS": 32, "WARN": 33, "FAIL": 31}
# Tool, how it tells its version, the oldest that will do, whether it is needed, what for.
_TOOLS = [
    ("git", ["git", "--version"], "", True, "history and hooks"),
    # The server's: start_interval of a health check came with 25.
    ("docker", ["docker", "version", "--format", "{{.Server.Version}}"], "25", False, "containers"),
    # `required` of an env_file came with 2.24.
    ("docker compose", ["docker", "compose", "version"], "2.24", False, "containers"),
    ("mosquitto", ["mosquitto", "-h"], "", False, "tests with a real broker"),
    ("age", ["age", "--version"], "", False, "secrets"),
    ("sops", ["sops", "--disable-version-check", "--version"], "", False, "secrets"),
]


@dataclass(frozen=True)
class Finding:
    """What one check has found: PASS, WARN or FAIL, and what to do."""

    check: str
    status: str
    detail: str
    fix: str = ""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository; a missing program counts as exit code 127."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def check_tools() -> list[Finding]:
    findings = [_check_python(), _check_uv()]
    for name, command, oldest, is_needed, purpose in _TOOLS:
        result = run(*command)
        # Of what goes to stderr, an address may look like a version.
        found = re.search(r"v?(\d+\.\d+(\.\d+)?)", result.stdout)
        if result.returncode == 127:  # noqa: PLR2004
            status = "FAIL" if is_needed else "WARN"
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


def _check_python() -> Finding:
    wanted = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    result = run("scripts/uv", "python", "find", wanted)
    if result.returncode == 0:
        return Finding("python", "PASS", wanted)
    return Finding("python", "WARN", f"{wanted} is missing", f"scripts/uv python install {wanted}")


def _check_uv() -> Finding:
    result = run("uv", "--version")
    if result.returncode == 0:
        return Finding("uv", "PASS", result.stdout.split()[1])
    return Finding("uv", "WARN", "not on PATH; scripts/uv keeps its own in .tools/", "install uv")


def check_git() -> list[Finding]:
    if run("git", "rev-parse", "--git-dir").returncode != 0:
        return [Finding("git repository", "FAIL", "there is none", "scripts/init-git.sh")]
    if run("git", "rev-parse", "--show-prefix").stdout.strip():
        detail, fix = "those of the repository around this folder", 'have them run "make lint" here'
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
        return [Finding("lock", "PASS", "uv.lock and the exported requirements are in step")]
    lines = result.stderr.strip().splitlines()
    return [Finding("lock", "FAIL", lines[-1] if lines else "out of step", "make lock")]


def check_base_image() -> list[Finding]:
    if run("docker", "info").returncode != 0:
        return [Finding("base image", "WARN", "Docker does not answer", "start Docker")]
    compose = run("docker", "compose", "config", "--images", "base")
    image = compose.stdout.strip()
    if compose.returncode != 0:
        fix = "see what `docker compose config` says"
        return [Finding("base image", "WARN", "Compose does not name it", fix)]
    template = '{{index .Config.Labels "base.requirements"}}'
    result = run("docker", "image", "inspect", "--format", template, image)
    if result.returncode != 0:
        return [Finding("base image", "WARN", "not built yet", "make build-base")]
    if result.stdout != run("git", "hash-object", "base/requirements.txt").stdout:
        detail = "older than base/requirements.txt"
        return [Finding("base image", "FAIL", detail, "make up, which builds it again")]
    return [Finding("base image", "PASS", "built from the current requirements")]


def check_permissions() -> list[Finding]:
    """Containers have users of their own, who have to read what is mounted."""
    for folder in (ROOT / "infrastructure", ROOT / "shared"):
        for path in (folder, *folder.rglob("*")):
            # Python does without these.
            if "__pycache__" in path.parts:
                continue
            wanted = 0o005 if path.is_dir() else 0o004
            if path.exists() and path.stat().st_mode & wanted != wanted:
                detail = f"containers cannot read {path.relative_to(ROOT)}"
                fix = "chmod -R go+rX infrastructure shared services"
                return [Finding("permissions", "FAIL", detail, fix)]
    return [Finding("permissions", "PASS", "containers can read what they mount")]


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
    if result.returncode != 0:
        detail = f"{known}; {address} cannot be reached"
        return [Finding("template", "WARN", detail, "check the network and .cruft.json")]
    newest = result.stdout.split()[0]
    if newest == commit:
        return [Finding("template", "PASS", f"{known}, the newest")]
    detail = f"{known}, the newest is {newest[:8]}{_how_far(address, commit)}"
    return [Finding("template", "WARN", detail, "make template-update")]


def _how_far(template: str, commit: str) -> str:
    """How many commits the template is ahead, from a clone without files."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bare", "--quiet", "--filter=tree:0"]
        if run("git", "clone", *options, template, folder).returncode != 0:
            return ""
        count = run("git", "-C", folder, "rev-list", "--count", f"{commit}..HEAD")
        return f"; commits behind: {count.stdout.strip()}" if count.returncode == 0 else ""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Check this repository and its tools.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    as_json = parser.parse_args().json
    checks = [
        check_tools,
        check_git,
        check_secrets,
        check_lock,
        check_permissions,
        check_base_image,
        check_template,
    ]
    findings = [finding for check in checks for finding in check()]
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _print(findings)
    return int(any(finding.status == "FAIL" for finding in findings))


def _print(findings: list[Finding]) -> None:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        status = finding.status
        if coloured:
            status = f"\033[{_COLOURS[status]}m{status}\033[0m"
        sys.stdout.write(f"{status}  {finding.check:<{width}}  {finding.detail}\n")
        for line in finding.fix.splitlines():
            sys.stdout.write(f"      {'':<{width}}  -> {line}\n")


if __name__ == "__main__":
    raise SystemExit(main())
