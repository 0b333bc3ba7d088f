"""Upkeep of a repository and its template: doctor, refreshing, releases, workflows."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, ClassVar

import pytest
import yaml

from tests.baked import ROOT, BakedProject, publish, run, user_environment
from tests.conftest import Bake
from tests.tools import needs, path_without


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As a program it finds its neighbours.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        spec.loader.exec_module(module)
    return module


# --- doctor -------------------------------------------------------------------------------------


def doctor(project: BakedProject, **env: str | None) -> dict[str, dict[str, Any]]:
    done = project.run(sys.executable, "scripts/doctor.py", "--json", env=env, check=False)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    failed = any(finding["status"] == "FAIL" for finding in found.values())
    assert done.returncode == failed, done.stderr
    for finding in found.values():
        assert bool(finding["fix"]) == (finding["status"] != "PASS"), finding
    return found


def findings(project: BakedProject, check: str, **env: str | None) -> dict[str, dict[str, Any]]:
    """The findings of one function of doctor.py alone: `tools`, `scripts` and so on."""
    code = f"import doctor, json; print(json.dumps([x._asdict() for x in doctor.check_{check}()]))"
    done = project.run(sys.executable, "-c", code, env={"PYTHONPATH": "scripts", **env})
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


@pytest.mark.real
@needs("git", "age-keygen", "sops", "mosquitto")
def test_a_new_repository_is_well(bake_copy: Bake) -> None:
    project = bake_copy()
    found = doctor(project)
    assert found[".env.enc"]["status"] == "SKIP"
    project.run("scripts/new-service.sh", "lamp")
    assert "names" not in findings(project, "secrets")
    project.run("scripts/remove-service.sh", "lamp", "--yes")
    project.run("scripts/secrets-encrypt.sh")
    found = doctor(project)
    for name in ("python", "uv", "git", "mosquitto", "age", "sops", "git hooks", "age key",
                 ".env.enc", "lock", "template"):  # fmt: skip
        assert found[name]["status"] == "PASS", found[name]
    assert "nothing newer" in found["template"]["detail"]
    shown = project.run("make", "doctor", check=False).stdout
    assert "PASS  git hooks" in shown
    assert "\033" not in shown
    summary = r"^\d+ passed, 0 not set up, \d+ warned, 0 failed$"
    assert re.search(summary, shown, re.MULTILINE)


@pytest.mark.parametrize(("no_color", "escapes"), [("", True), ("1", False)])
def test_doctor_fits_a_terminal(bake_copy: Bake, no_color: str, escapes: bool) -> None:
    project = bake_copy()
    project.file(".cruft.json").unlink()
    terminal, its_other_end = pty.openpty()
    termios.tcsetwinsize(its_other_end, (24, 80))
    command = [sys.executable, str(project.file("scripts/doctor.py"))]
    env = user_environment({**project.environment(), "NO_COLOR": no_color, "COLUMNS": None})
    subprocess.run(command, cwd=project.path, env=env, stdout=its_other_end, timeout=60)
    os.close(its_other_end)
    shown = b""
    with suppress(OSError):
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    assert (b"\033[32mPASS\033[0m" in shown) == escapes
    plain = re.sub(rb"\033\[\d+m", b"", shown).decode()
    assert "does not know its template" in plain
    assert max(map(len, plain.splitlines())) <= 80


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
    found = doctor(project)
    for name, fix in {
        "git hooks": "make setup",
        ".env": "chmod 600 .env",
        ".env.enc": 'make secrets-recipients ARGS="add age1',
        "lock": "make lock",
    }.items():
        assert found[name]["status"] == "FAIL", found[name]
        assert fix in found[name]["fix"]
    project.run("scripts/install-hooks.sh")
    project.run("chmod", "600", ".env")
    project.run("make", "lock")
    mended = doctor(project)
    assert {mended[name]["status"] for name in ("git hooks", "lock")} == {"PASS"}
    assert mended[".env"]["status"] == "PASS"


@pytest.mark.real
@needs("git")
def test_doctor_asks_whether_the_template_is_ahead(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    origin = tmp_path / "template"
    record = project.json(".cruft.json")
    run("git", "clone", "--quiet", record["template"], origin)
    record["template"] = str(origin)
    project.file(".cruft.json").write_text(json.dumps(record))
    run("git", "commit", "--quiet", "--allow-empty", "-m", "Newer", cwd=origin)
    finding = findings(project, "scripts")["template"]
    assert (finding["status"], finding["fix"]) == ("WARN", "make template-update")
    assert finding["detail"].startswith("A newer template is available")
    origin.rename(tmp_path / "moved")
    finding = findings(project, "scripts")["template"]
    assert finding["status"] == "WARN"
    assert "cannot be reached" in finding["detail"]
    assert finding["fix"] == f"git ls-remote {origin}"
    project.file(".cruft.json").unlink()
    finding = findings(project, "scripts")["template"]
    assert "template-update" not in str(finding)
    assert finding["fix"] == "scripts/uv run --frozen cruft link URL"


@pytest.mark.real
@needs("git")
def test_doctor_needs_nothing_but_python_and_git(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "bash", "env", "sh", "sed", "dirname", "mktemp", "rm", "mkdir", "cat"):
        (tools / name).symlink_to(shutil.which(name) or name)
    found = doctor(project, PATH=str(tools))
    for name in ("docker", "age", "sops"):
        assert found[name]["status"] == "WARN", found[name]
    assert found["git"]["status"] == "PASS"


@pytest.mark.parametrize("record", ["{}", "[]", "<<<<<<< ours\n"])
@needs("git")
def test_a_damaged_record_of_the_template_is_told(bake_copy: Bake, record: str) -> None:
    project = bake_copy()
    project.file(".cruft.json").write_text(record)
    finding = findings(project, "scripts")["template"]
    assert (finding["status"], ".cruft.json cannot be read" in finding["detail"]) == ("WARN", True)
    if "commit" not in record:
        done = project.run("scripts/template-update.sh", "--check", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert ".cruft.json cannot be read" in done.stderr


@needs("git")
def test_a_tool_that_does_not_run_is_told(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    for name in ("docker", "age", "sops"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'no plugin' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    found = findings(project, "tools", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("docker", "docker compose", "age", "sops"):
        assert found[name]["status"] == "WARN"
        assert "does not run" in found[name]["detail"]


@needs("git")
def test_a_docker_that_hangs_holds_up_nothing(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    (tmp_path / "docker").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "docker").chmod(0o755)
    code = "import doctor, json; doctor.TOOL_SECONDS = 0.5; print(*doctor.check_swarm()); "
    code += "print(json.dumps([x._asdict() for x in doctor.check_tools()]))"
    env = {"PYTHONPATH": "scripts", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = project.run(sys.executable, "-c", code, env=env, timeout=60)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    for name in ("docker", "docker compose"):
        assert found[name]["status"] == "WARN"
        assert "does not respond" in found[name]["detail"]


@pytest.mark.parametrize(
    ("status", "detail"),
    [("SKIP", "the containers have older settings than .env"), ("FAIL", "no service is announced")],
)
@needs("git")
def test_doctor_takes_the_check_of_the_container(
    bake_copy: Bake, tmp_path: Path, status: str, detail: str
) -> None:
    project = bake_copy()
    project.file(".env").write_text("HA_DISCOVERY_PREFIX='homeassistant'\n")
    own = {"SKIP": "is empty", "FAIL": detail}[status]
    step = {"step": "discovery", "status": status, "detail": own, "fix": "make up"}
    (tmp_path / "docker").write_text(
        f"""#!/bin/sh
echo '{json.dumps([step])}'
case "$*" in compose*) exit {int(status == "FAIL")} ;; esac
"""
    )
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    finding = findings(project, "discovery", PATH=path)["discovery"]
    assert (finding["status"], finding["fix"]) == ("WARN", "make up")
    assert finding["detail"] == detail


@needs("git")
def test_a_uv_of_the_repository_is_enough(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    pinned = re.search(r"pinned='uv==(\S+)", project.read("scripts/uv"))
    assert pinned
    program = project.file(f".tools/uv-{pinned[1]}/bin/uv")
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho uv {pinned[1]}\n")
    program.chmod(0o755)
    path = path_without("uv", folder=tmp_path / "bin")
    finding = findings(project, "tools", PATH=path)["uv"]
    assert (finding["status"], finding["detail"]) == ("PASS", pinned[1])


@needs("git")
def test_make_passes_over_an_old_python(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    old = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])"
    (tmp_path / "python3").write_text(
        f"#!/bin/sh\n[ \"$1\" != -c ] || exec '{sys.executable}' -c '{old}' \"$2\"\n"
        "echo 'too old' >&2\nexit 9\n"
    )
    (tmp_path / "python3").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = project.run("make", "--silent", "doctor", "ARGS=--help", env={"PATH": path})
    assert "usage: " in done.stdout


@pytest.mark.parametrize(
    ("containers", "fix"),
    [
        (["example-service", "mqtt"], "make logs SERVICE=example-service, or make diagnose "),
        (["mqtt"], "make logs SERVICE=mqtt\n"),
        ([], "make up\n"),
    ],
)
@needs("git")
def test_status_counts_on_and_names_the_next_command(
    bake_copy: Bake, tmp_path: Path, containers: list[str], fix: str
) -> None:
    project = bake_copy()
    now = datetime.now(timezone(timedelta(hours=2)))
    check = {"End": f"{(now - timedelta(hours=1)).isoformat()}", "Output": "timestamp 7 s ago\n"}
    found = [
        {
            "Id": name,
            "RestartCount": 0,
            "Config": {
                "Labels": {
                    "com.docker.compose.oneoff": "False",
                    "com.docker.compose.container-number": "1",
                    "com.docker.compose.service": name,
                }
            },
            "State": {
                "Status": "running",
                "StartedAt": f"{now.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}.123456789Z",
                "OOMKilled": False,
                "Health": {"Status": "unhealthy", "Log": [check]},
            },
        }
        for name in containers
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    (tmp_path / "docker").write_text(
        f"""#!/bin/sh
case "$*" in
"compose config --services") echo example-service mqtt ;;
"compose ps "*) echo {" ".join(containers)} ;;
inspect*) cat {tmp_path}/found.json ;;
esac
"""
    )
    (tmp_path / "docker").chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = project.run(sys.executable, "scripts/status.py", env=env, check=False)
    assert done.returncode == 1
    ages = [int(age) for age in re.findall(r" (\d+) s ago ", done.stdout)]
    assert len(ages) == len(containers)
    assert all(3607 <= age < 3900 for age in ages)
    assert f"Run: {fix}" in done.stderr


@pytest.mark.parametrize(
    ("engine", "compose", "status"),
    [
        ("24.0.9", "2.23.3", "FAIL"),
        ("25.0.0-rc.1", "v2.24.0-desktop.1", "PASS"),
        ("100.1", "3.0", "PASS"),
    ],
)
@needs("git")
def test_a_docker_that_is_too_old_is_told(
    bake_copy: Bake, tmp_path: Path, engine: str, compose: str, status: str
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f"version) echo {engine} ;;\ncompose) echo Docker Compose version {compose} ;;\n"
        "*) exit 1 ;;\nesac\n"
    )
    docker.chmod(0o755)
    found = findings(bake_copy(), "tools", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("docker", "docker compose"):
        assert found[name]["status"] == status, found[name]


@needs("git")
def test_what_containers_cannot_read_is_told(bake_copy: Bake) -> None:
    project = bake_copy()
    assert findings(project, "permissions")["permissions"]["status"] == "PASS"
    for name in ("shared/log.py", "infrastructure/mosquitto", "docs/topics.md"):
        project.run("chmod", "go=", name)
        if name.startswith("docs/"):
            assert findings(project, "permissions")["permissions"]["status"] == "PASS"
            project.run("scripts/new-service.sh", "fleet", "--type", "fleet")
            project.run("chmod", "go=", name)
        finding = findings(project, "permissions")["permissions"]
        assert (finding["status"], name in finding["detail"]) == ("FAIL", True)
        project.run("sh", "-c", finding["fix"])
        assert findings(project, "permissions")["permissions"]["status"] == "PASS"


@needs("git")
def test_hooks_that_are_kept_elsewhere(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    project.run("git", "config", "core.hooksPath", tmp_path / "hooks")
    elsewhere = findings(project, "scripts")["git hooks"]
    assert (elsewhere["status"], "core.hooksPath" in elsewhere["detail"]) == ("WARN", True)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/pre-commit").write_text("#!/bin/sh\nmake lint\n")
    assert findings(project, "scripts")["git hooks"]["status"] == "PASS"
    inner = tmp_path / "outer/inner"
    shutil.copytree(project.path, inner, ignore=shutil.ignore_patterns(".git"))
    run("git", "init", "--quiet", inner.parent)
    around = findings(BakedProject(inner), "scripts")["git hooks"]
    assert (around["status"], "is inside the git repository" in around["detail"]) == ("WARN", True)


@needs("git")
def test_a_key_in_the_environment_counts(bake_copy: Bake) -> None:
    project = bake_copy()
    shutil.rmtree(project.file(".sops"))
    assert findings(project, "secrets")["age key"]["status"] == "WARN"
    assert "age key" not in findings(project, "secrets", SOPS_AGE_KEY_CMD="true")


@needs("git")
def test_doctor_by_make_prints_json_alone(bake_copy: Bake) -> None:
    project = bake_copy()
    done = project.run("make", "--silent", "doctor", "ARGS=--json", check=False)
    loud = project.run("make", "doctor", "ARGS=--json", check=False)
    assert json.loads(loud.stdout) == json.loads(done.stdout)


# --- refreshing ---------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@needs("git")
def test_refreshing_without_upgrading_finds_all_in_step(tmp_path: Path) -> None:
    """Locks, exports and reserved names are those that the template's pyproject.toml gives."""
    copy = tmp_path / "template"
    publish(copy)
    refresh = (sys.executable, "scripts/refresh.py", "--no-upgrade", "--no-prove")
    assert run(*refresh, cwd=copy).stdout == "Everything was current.\n"


def test_a_pinned_action_is_read_whole() -> None:
    refresh = load("refresh")
    pinned = "uses: actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8 # v5.0.0"
    assert refresh.PINNED_ACTION.fullmatch(pinned).groups() == (
        "actions/checkout",
        "",
        "08c6903cd8c0fde910a37f88322edcfb5dd907a8",
        "5.0.0",
    )


@needs("git")
def test_an_action_gets_the_commit_of_its_newest_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a stand-in for GitHub, with plain and annotated tags and one that is no release."""
    upstream = tmp_path / "github" / "octo" / "tool"
    upstream.mkdir(parents=True)
    run("git", "init", "--quiet", cwd=upstream)
    commits = {}
    for tag in ("v9.0.0", "v10.1.0", "v11.0.0-beta"):
        run("git", "commit", "--quiet", "--allow-empty", "-m", tag, cwd=upstream)
        annotated = ["-a", "-m", tag] if tag == "v10.1.0" else []
        run("git", "tag", *annotated, tag, cwd=upstream)
        commits[tag] = run("git", "rev-parse", "HEAD", cwd=upstream).stdout.strip()
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{tmp_path}/github/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
    newest_action = load("refresh").newest_action
    assert (
        newest_action("octo/tool", "/sub", "0" * 40, "9.0.0")
        == f"uses: octo/tool/sub@{commits['v10.1.0']} # v10.1.0"
    )
    assert newest_action("octo/none", "", "1" * 40, "1.2.3").endswith(f"@{'1' * 40} # v1.2.3")
    assert "octo/none stays at v1.2.3" in capsys.readouterr().out


REGISTRY = f"""#!/bin/sh
[ "$*" = "buildx imagetools inspect --format {{{{.Manifest.Digest}}}} python:3.13-slim" ] ||
  {{ echo no route to host >&2; exit 1; }}
echo sha256:{"a" * 64}
"""


def test_an_image_gets_the_digest_of_its_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a stand-in for a registry that has one of three images."""
    docker = tmp_path / "docker"
    docker.write_text(REGISTRY)
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    refresh = load("refresh")
    monkeypatch.setattr(refresh, "IMAGES", tmp_path / "images.jinja")
    old = f"x.org/y:2@sha256:{'b' * 64}"
    text = '{{% set images = {{\n "a": "{}",\n "b": "influxdb:2",\n "c": "{}",\n}} %}}\n'
    refresh.IMAGES.write_text(text.format(f"python:3.13-slim@sha256:{'0' * 64}", old))
    refresh.refresh_images()
    assert refresh.IMAGES.read_text() == text.format(f"python:3.13-slim@sha256:{'a' * 64}", old)
    assert capsys.readouterr().out.count("stays: its digest cannot be read: no route to host") == 2


def test_every_image_is_one_that_a_refresh_pins() -> None:
    refresh = load("refresh")
    images = refresh.IMAGES.read_text()
    assert len(refresh.IMAGE.findall(images)) == images.count('": "')


# --- releases -----------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    project = BakedProject(ROOT)
    version = project.toml("pyproject.toml")["project"]["version"]
    assert project.json("cookiecutter.json")["__template_version"] == version
    assert f"## [{version}] - " in project.read("CHANGELOG.md")


def test_release_notes_are_the_section_of_the_version() -> None:
    version = BakedProject(ROOT).toml("pyproject.toml")["project"]["version"]
    done = run(sys.executable, "scripts/release_notes.py", f"v{version}", cwd=ROOT)
    assert "\n### Migration\n" in done.stdout
    assert "## [" not in done.stdout.replace("### ", "")
    notes = load("release_notes").notes
    changelog = "## [Unreleased]\n\n## [1.1.0] - x\n\nNew.\n\n## [1.0.0] - y\n\nOld.\n\n[1.0.0]: #"
    assert notes(changelog, "1.1.0") == "New.\n"
    assert notes(changelog, "1.0.0") == "Old.\n"


@pytest.mark.parametrize("version", ["v9.9.9", "nonsense"])
def test_a_release_without_notes_or_with_another_version_is_refused(version: str) -> None:
    done = run(sys.executable, "scripts/release_notes.py", version, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "does not name the version" in done.stderr
    with pytest.raises(ValueError, match=r"no notes for 1\.0\.0"):
        load("release_notes").notes("## [1.0.0] - x\n\n## [0.9.0]\n\nOld.\n", "1.0.0")


def test_breaking_changes_tell_how_to_migrate() -> None:
    notes = load("release_notes").notes
    changelog = BakedProject(ROOT).read("CHANGELOG.md")
    versions = [line.split("]")[0][4:] for line in changelog.splitlines() if line[:4] == "## ["]
    assert versions[0] == "Unreleased"
    for version in versions[1:]:
        if version.endswith(".0"):
            assert "### Migration\n" in notes(changelog, version), version


# --- workflows ----------------------------------------------------------------------------------

GH = """#!/bin/sh
echo "$*" >> "$CALLS"
[ "$1 $2" != "issue list" ] || echo "$OPEN_ISSUES"
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("state", "open_issues", "code", "called"),
    [
        ("current", 0, 0, []),
        ("behind", 0, 0, ["issue list", "issue create"]),
        ("behind", 1, 0, ["issue list"]),
        ("out of reach", 0, 2, []),
        ("unknown", 0, 0, []),
    ],
)
@needs("git")
def test_the_scheduled_job_opens_one_issue_when_there_is_something_newer(
    bake_copy: Bake, tmp_path: Path, state: str, open_issues: int, code: int, called: list[str]
) -> None:
    project = bake_copy()
    origin = tmp_path / "template"
    record = project.json(".cruft.json")
    run("git", "clone", "--quiet", record["template"], origin)
    record["template"] = str(origin)
    project.file(".cruft.json").write_text(json.dumps(record, indent=2) + "\n")
    if state == "behind":
        (origin / "{{cookiecutter.project_slug}}" / "newer.md").write_text("Newer\n")
        run("git", "add", "--all", cwd=origin)
        run("git", "commit", "--quiet", "-m", "Newer", cwd=origin)
    elif state == "out of reach":
        origin.rename(tmp_path / "moved")
    elif state == "unknown":
        project.file(".cruft.json").unlink()
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text(GH)
    gh.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    step = project.yaml(".github/workflows/upkeep.yml")["jobs"]["template"]["steps"][-1]
    env = {
        "PATH": f"{gh.parent}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        "OPEN_ISSUES": str(open_issues),
        "TITLE": step["env"]["TITLE"],
    }
    done = project.run("bash", "-eo", "pipefail", "-c", step["run"], env=env, check=False)
    assert done.returncode == code, done.stderr
    assert [" ".join(line.split()[:2]) for line in calls.read_text().splitlines()] == called


@needs("git")
def test_dependency_upkeep_reads_what_is_pinned(bake: Bake) -> None:
    """Every file that holds a pin is one that Dependabot is told of."""
    for folder in (bake().path, ROOT):
        listed = yaml.safe_load((folder / ".github/dependabot.yml").read_text())["updates"]
        ecosystems = {entry["package-ecosystem"] for entry in listed}
        assert {"uv", "github-actions"} <= ecosystems
        assert ("docker" in ecosystems) == (folder / "base").exists()


@pytest.mark.real
def test_the_workflow_lists_the_packages_of_the_images(bake_copy: Bake) -> None:
    project = bake_copy()
    jobs = project.yaml(".github/workflows/upkeep.yml")["jobs"]
    project.run("bash", "-c", jobs["sbom"]["steps"][1]["run"])
    listed = project.json(jobs["sbom"]["steps"][2]["with"]["path"])
    assert listed["bomFormat"] == "CycloneDX"
    names = {component["name"] for component in listed["components"]}
    assert set(re.findall(r"(?m)^([\w.-]+)==", project.read("base/requirements.txt"))) <= names
    assert "pytest" not in names


class Vulnerabilities(BaseHTTPRequestHandler):
    """A database without an entry, which keeps the names of the packages."""

    asked: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.asked.update(query["package"]["name"] for query in queries)
        body = json.dumps({"results": [{} for _ in queries]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.real
def test_the_workflow_audits_every_locked_package(bake_copy: Bake) -> None:
    project = bake_copy()
    step = project.yaml(".github/workflows/upkeep.yml")["jobs"]["audit"]["steps"][1]["run"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Vulnerabilities) as server:
        Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        project.run("bash", "-c", f"{step} --service-url {address}")
        server.shutdown()
    assert {"httpx", "pydantic", "pytest"} <= Vulnerabilities.asked


DOCKER = """#!/bin/sh
read -r token && [ "$2" = ghcr.io ] && echo "logged in with $token" >> "$CALLS"
[ "$2" = build ] && echo "$*" >> "$CALLS"
[ "$2 $3" = "imagetools create" ] && echo "$*" >> "$CALLS"
exit 0
"""


@pytest.mark.real
def test_the_workflow_pushes_the_base_first_and_one_image_for_both_platforms(
    bake_copy: Bake, tmp_path: Path
) -> None:
    project = bake_copy()
    jobs = project.yaml(".github/workflows/images.yml")["jobs"]
    assert jobs["build"]["if"] == "vars.IMAGE_REGISTRY != ''"
    assert all(job["permissions"]["packages"] == "write" for job in jobs.values())
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    calls = tmp_path / "calls"
    env = {
        "PATH": f"{docker.parent}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        "IMAGE_REGISTRY": "ghcr.io/owner/plant",
        "REGISTRY_USER": "owner",
        "REGISTRY_TOKEN": "token",
        "GITHUB_SHA": "1f2e",
        "TAG": "1f2e-arm64",
    }
    for job in jobs.values():
        for step in job["steps"][1:]:
            project.run("bash", "-eo", "pipefail", "-c", step["run"], env=env)
    build = "buildx build --push --sbom=true --provenance=mode=max --tag ghcr.io/owner/plant"
    create = "buildx imagetools create --tag"
    pairs = [f"ghcr.io/owner/plant/{name}:1f2e" for name in ("base", "example-service")]
    assert calls.read_text().splitlines() == [
        "logged in with token",
        f"{build}/base:1f2e-arm64 base",
        f"{build}/example-service:1f2e-arm64 --build-arg BASE_IMAGE=ghcr.io/owner/plant/base"
        ":1f2e-arm64 --file services/example-service/Dockerfile .",
        "logged in with token",
        *(f"{create} {image} {image}-amd64 {image}-arm64" for image in pairs),
    ]


@pytest.mark.real
@needs("git")
@pytest.mark.parametrize("stale", [True, False])
def test_requirements_are_exported_on_the_branch_of_dependabot(
    bake_copy: Bake, tmp_path: Path, stale: bool
) -> None:
    project = bake_copy()
    run("git", "init", "--quiet", "--bare", tmp_path / "github")
    project.run("git", "remote", "add", "origin", tmp_path / "github")
    requirements = project.read("base/requirements.txt")
    if stale:
        project.file("base/requirements.txt").write_text(requirements + "outdated==1.0\n")
        project.run("git", "commit", "--quiet", "--no-verify", "--all", "--message", "Bump")
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text(GH)
    gh.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    job = project.yaml(".github/workflows/dependabot.yml")["jobs"]["lock"]
    env = {
        "PATH": f"{gh.parent}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        "BRANCH": "dependabot/uv/python-1",
    }
    for step in job["steps"]:
        if "run" in step:
            project.run("bash", "-eo", "pipefail", "-c", step["run"], env=env)
    if not stale:
        assert calls.read_text() == ""
        return
    exported = "dependabot/uv/python-1:base/requirements.txt"
    assert run("git", "show", exported, cwd=tmp_path / "github").stdout == requirements
    assert "workflow run ci.yml --ref dependabot/uv/python-1" in calls.read_text()
    # A dispatched run needs the trigger.
    assert "workflow_dispatch" in project.yaml(".github/workflows/ci.yml")[True]
