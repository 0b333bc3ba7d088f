"""What keeps a repository and its template in shape: doctor, refreshing, releases, workflows."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.baked import ROOT, BakedProject, publish, run
from tests.conftest import Bake
from tests.tools import needs


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- doctor -------------------------------------------------------------------------------------


def doctor(project: BakedProject, **env: str | None) -> dict[str, dict[str, Any]]:
    done = project.run(sys.executable, "scripts/doctor.py", "--json", env=env, check=False)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    failed = any(finding["status"] == "FAIL" for finding in findings.values())
    assert done.returncode == failed, done.stderr
    for finding in findings.values():
        assert bool(finding["fix"]) == (finding["status"] != "PASS"), finding
    return findings


@pytest.mark.real
@needs("git", "age-keygen", "sops", "mosquitto")
def test_a_new_repository_is_well(bake_copy: Bake) -> None:
    project = bake_copy()
    project.run("scripts/secrets-encrypt.sh")
    findings = doctor(project)
    for name in ("python", "uv", "git", "mosquitto", "age", "sops", "git hooks", "age key",
                 ".env.enc", "lock", "template"):  # fmt: skip
        assert findings[name]["status"] == "PASS", findings[name]
    version = json.loads((ROOT / "cookiecutter.json").read_text())["__template_version"]
    assert f"version {version} " in findings["template"]["detail"]
    shown = project.run("make", "doctor", check=False).stdout
    assert "PASS  git hooks" in shown
    assert "\033" not in shown


@pytest.mark.real
@needs("git", "age-keygen", "sops")
def test_doctor_finds_what_is_wrong_and_says_how_to_mend_it(
    bake_copy: Bake, tmp_path: Path
) -> None:
    project = bake_copy()
    project.run("scripts/secrets-encrypt.sh")
    project.file(".git/hooks/pre-commit").unlink()
    project.file(".env").chmod(0o644)
    run("age-keygen", "-o", tmp_path / "key")
    shutil.copy(tmp_path / "key", project.file(".sops/age-key.txt"))
    project.file(".sops/age-key.txt").chmod(0o600)
    requirements = project.file("base/requirements.txt")
    requirements.write_text(requirements.read_text().replace("httpx==", "httpx==9."))
    findings = doctor(project)
    for name, fix in {
        "git hooks": "scripts/install-hooks.sh",
        ".env": "chmod 600 .env",
        ".env.enc": 'make secrets-recipients ARGS="add age1',
        "lock": "make lock",
    }.items():
        assert findings[name]["status"] == "FAIL", findings[name]
        assert fix in findings[name]["fix"]
    project.run("scripts/install-hooks.sh")
    project.run("chmod", "600", ".env")
    project.run("make", "lock")
    mended = doctor(project)
    assert {mended[name]["status"] for name in ("git hooks", "lock")} == {"PASS"}
    assert mended[".env"]["status"] == "PASS"


@pytest.mark.real
@needs("git")
def test_doctor_counts_how_far_the_template_is_ahead(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    origin = tmp_path / "template"
    record = project.json(".cruft.json")
    run("git", "clone", "--quiet", record["template"], origin)
    record["template"] = str(origin)
    project.file(".cruft.json").write_text(json.dumps(record))
    for number in range(3):
        run("git", "commit", "--quiet", "--allow-empty", "-m", f"{number}", cwd=origin)
    finding = doctor(project)["template"]
    assert finding["status"] == "WARN"
    assert finding["detail"].endswith("commits behind: 3")
    assert finding["fix"] == "make template-update"
    origin.rename(tmp_path / "moved")
    finding = doctor(project)["template"]
    assert finding["status"] == "WARN"
    assert "cannot be reached" in finding["detail"]
    project.file(".cruft.json").unlink()
    assert "cruft link" in doctor(project)["template"]["fix"]


@pytest.mark.real
@needs("git")
def test_doctor_needs_nothing_but_python_and_git(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "bash", "env", "sh", "sed", "dirname", "mktemp", "rm", "mkdir", "cat"):
        (tools / name).symlink_to(shutil.which(name) or name)
    findings = doctor(project, PATH=str(tools))
    for name in ("docker", "age", "sops", "base image"):
        assert findings[name]["status"] == "WARN", findings[name]
    assert findings["git"]["status"] == "PASS"


@pytest.mark.parametrize(
    "record", ["{}", "[]", "    exported = "dependabot/uv/python-1:base/requirements.txt"
    assert run("git", "show", exported, cwd=tmp_path / "github").stdout == requirements
    assert "workflow run ci.yml --ref dependabot/uv/python-1" in calls.read_text()
    # A dispatched run needs the trigger.
    assert "workflow_dispatch" in project.yaml(".github/workflows/ci.yml")[True]
