"""The git hook of a generated repository: files that it rejects, and files that pass."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.baked import BakedProject, run
from tests.conftest import Bake
from tests.stack import remove_images
from tests.tools import needs, path_without

pytestmark = [pytest.mark.real, needs("git", "sops", "age-keygen")]


@pytest.fixture
def project(bake_copy: Bake) -> BakedProject:
    """A repository as generated, with its key, its hook and one commit."""
    project = bake_copy()
    assert git(project, "status", "--porcelain").stdout == ""
    return project


def git(
    project: BakedProject, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return project.run("git", *arguments, check=check)


def commit(project: BakedProject, **files: str) -> subprocess.CompletedProcess[str]:
    """Write these files, stage them even if they are ignored, and commit."""
    for name, text in files.items():
        project.file(name).parent.mkdir(parents=True, exist_ok=True)
        project.file(name).write_text(text)
    git(project, "add", "--force", "--", *files)
    return git(project, "commit", "--message", "Try it", check=False)


def head(project: BakedProject) -> str:
    return git(project, "rev-parse", "HEAD").stdout


def refused(project: BakedProject, **files: str) -> str:
    """Commit files that must not pass, and return the message of the hook."""
    before = head(project)
    done = commit(project, **files)
    assert done.returncode != 0, done
    assert head(project) == before
    return done.stdout + done.stderr


# Linters that take their time, and run in the matrix.
WITHOUT_PYTHON = {"SKIP": "mypy,ruff-check,ruff-format"}

# Made here, so that this file passes such checks itself.
AGE_KEY = "AGE-SECRET-KEY-" + "1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2
TOKEN = base64.urlsafe_b64encode(bytes(range(64))).decode()
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE " + "KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"
WEB_TOKEN = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"iss":"0123456789","iat":1}', bytes(range(32)))
)


# Rejected


def test_an_env_is_refused_in_any_folder(project: BakedProject) -> None:
    names = [".env", "services/x/.env", ".env.production", ".env.previous"]
    said = refused(project, **dict.fromkeys(names, "MQTT_PASSWORD='correct-horse'\n"))
    assert all(f"\n{name}\n" in said for name in names)
    assert "git rm --cached" in said
    assert "make secrets-encrypt" in said
    assert "correct-horse" not in said


def test_the_key_file_is_refused(project: BakedProject) -> None:
    key = project.read(".sops/age-key.txt")
    said = refused(project, **{".sops/age-key.txt": key})
    assert ".sops/age-key.txt" in said
    assert key.splitlines()[-1] not in said


def test_keys_and_tokens_are_refused_and_not_shown(project: BakedProject) -> None:
    kinds = {
        "an age secret key": AGE_KEY,
        "an API token": TOKEN,
        "Private Key": PRIVATE_KEY,
        "JSON Web Token": WEB_TOKEN,
        "Basic Auth": "mqtt://someone:correct-horse@broker",
    }
    names = {kind: f"docs/note-{number}.md" for number, kind in enumerate(kinds)}
    said = refused(project, **{names[kind]: f"It is {text}\n" for kind, text in kinds.items()})
    for kind, text in kinds.items():
        # Each tool has a form of its own: `FILE:1 holds KIND`, and `KIND` above `FILE:1`.
        place = rf"{names[kind]}:1"
        assert re.search(rf"{place} holds {kind}|{kind}.*\s+Location:\s+{place}", said), kind
        assert text not in said
    assert "pragma: allowlist secret" in said


def test_the_password_of_env_is_refused_in_any_file_and_not_shown(project: BakedProject) -> None:
    env = project.read(".env")
    password = next(line for line in env.splitlines() if line.startswith("MQTT_PASSWORD="))
    secret = password.partition("=")[2].strip("'")
    files = {"env-backup.txt": env, "x.yml": f"password: {secret}\n", "docs/x.md": f"`{secret}`\n"}
    said = refused(project, **files, **{"x.sh": f"#!/bin/sh\necho {secret}\n"})
    for name in ("env-backup.txt:", "x.yml:1", "docs/x.md:1", "x.sh:2"):
        assert f"\n{name}" in said
    assert "holds the value of MQTT_PASSWORD in .env" in said
    assert secret not in said


def test_a_false_alarm_can_be_let_through(project: BakedProject) -> None:
    done = commit(project, **{"docs/note.md": f"{TOKEN} <!-- pragma: allowlist secret -->\n"})
    assert done.returncode == 0, done


@pytest.mark.parametrize(
    "text",
    [
        "MQTT_PASSWORD='correct-horse'\n",
        "# a comment\nA=ENC[AES256_GCM,data:x,iv:y,tag:z,type:str]\n",
        "A=ENC[AES256_GCM,data:x,iv:y,tag:z,type:str]\n",
        "sops_mac=ENC[AES256_GCM,data:x]\nsops_password=correct-horse\n",
    ],
    ids=["plain", "plain comment", "no seal", "disguised"],
)
def test_an_env_enc_in_the_clear_is_refused(project: BakedProject, text: str) -> None:
    said = refused(project, **{".env.enc": text, "services/x/.env.enc": text})
    assert "\n.env.enc is not encrypted. Run make secrets-encrypt" in said
    assert "\nservices/x/.env.enc is not encrypted" in said
    assert "correct-horse" not in said


def test_a_line_added_to_env_enc_by_hand_is_refused(project: BakedProject) -> None:
    project.run("scripts/secrets-encrypt.sh")
    said = refused(project, **{".env.enc": "NEW=correct-horse\n" + project.read(".env.enc")})
    assert "Run make secrets-encrypt, or see line 1\n" in said


def test_a_file_that_does_not_pass_the_linters_is_refused(
    project: BakedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIP", "mypy")
    assert "F821" in refused(project, **{"shared/broken.py": '"""Broken."""\n\nprint(nothing)\n'})


# Accepted


def test_an_encrypted_env_enc_is_committed_and_a_stale_one_warned_about(
    project: BakedProject,
) -> None:
    project.run("scripts/secrets-encrypt.sh")
    git(project, "add", ".env.enc")
    done = git(project, "commit", "--message", "Share the secrets", check=False)
    assert done.returncode == 0, done
    assert "WARN  " not in done.stdout + done.stderr
    with project.file(".env").open("a") as env:
        env.write("ADDED='later'\n")
    done = commit(project, **{"docs/note.md": "A note.\n"})
    assert done.returncode == 0, done
    assert "WARN  .env is newer than .env.enc" in done.stdout + done.stderr


def test_history_holds_no_secret(project: BakedProject) -> None:
    project.run("scripts/secrets-encrypt.sh")
    git(project, "add", "--all")
    git(project, "commit", "--message", "Share the secrets")
    history = git(project, "log", "--patch", "--all").stdout
    password = next(
        line.partition("=")[2].strip("'")
        for line in project.read(".env").splitlines()
        if line.startswith("MQTT_PASSWORD=")
    )
    assert len(password) == 32
    assert password not in history
    assert "AGE-SECRET-KEY-1" not in history
    assert project.read(".sops/age-key.pub").strip() in history


@pytest.mark.slow
def test_lint_passes_with_an_encrypted_env_enc_and_changes_nothing(project: BakedProject) -> None:
    project.run("scripts/secrets-encrypt.sh")
    git(project, "add", ".env.enc")
    project.run("make", "lint", env=WITHOUT_PYTHON)
    assert git(project, "status", "--porcelain").stdout == "A  .env.enc\n"


@pytest.mark.slow
def test_lint_finds_what_no_verify_let_through(project: BakedProject) -> None:
    project.file("docs/note.md").write_text(f"{AGE_KEY}\n")
    git(project, "add", "--force", "docs/note.md", ".env")
    git(project, "commit", "--no-verify", "--message", "Slip it in")
    project.file("docs/a new note.md").write_text(f"{AGE_KEY}\n")
    done = project.run("make", "lint", check=False, env=WITHOUT_PYTHON)
    assert done.returncode != 0
    for name in ("note.md", "a new note.md"):
        assert f"docs/{name}:1 holds an age secret key" in done.stdout
    assert "make secrets-encrypt" in done.stdout


def test_ci_runs_what_the_hook_runs(project: BakedProject) -> None:
    jobs = project.yaml(".github/workflows/ci.yml")["jobs"]
    steps = [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert "make lint" in steps
    assert "pre-commit run" in project.run("make", "--dry-run", "lint").stdout


def test_ci_gives_the_containers_a_first_env(project: BakedProject) -> None:
    project.run("scripts/new-service.sh", "page", "--type", "fleet")
    project.run("scripts/secrets-encrypt.sh")
    project.file(".env").unlink()
    project.file(".sops/age-key.txt").unlink()
    steps = project.yaml(".github/workflows/ci.yml")["jobs"]["containers"]["steps"]
    (prepare, start) = [step["run"] for step in steps if "run" in step][:2]
    assert start == "make up"
    project.run("bash", "-e", "-c", prepare)
    for name in ("MQTT_PASSWORD", "PAGE_PASSWORD"):
        assert re.search(rf"^{name}='[0-9a-f]{{32}}'$", project.read(".env"), re.MULTILINE)


@pytest.mark.docker
def test_without_sops_and_age_all_else_works(bake_copy: Bake, tmp_path: Path) -> None:
    """Commits, checks, tests and builds, on a machine that has neither of them."""
    project = bake_copy(project_slug="without-sops", include_influxdb=False)
    project.run("scripts/secrets-encrypt.sh")
    git(project, "add", ".env.enc")
    env = {"PATH": path_without("sops", "age", "age-keygen", folder=tmp_path / "bin")}
    for tool in ("sops", "age", "age-keygen"):
        assert project.run("sh", "-c", f"command -v {tool}", env=env, check=False).stdout == ""
    project.run("git", "commit", "--message", "Share the secrets", env=env)
    project.run("make", "lint", env={**env, **WITHOUT_PYTHON})
    tested = project.run("make", "test", "ARGS=tests/test_example_service.py", env=env)
    assert " passed" in tested.stdout
    try:
        project.run("make", "build-base", env=env)
        project.run("docker", "compose", "build", env=env)
    finally:
        remove_images("localhost/without-sops")
    project.run("make", "setup", env=env)
    assert git(project, "status", "--porcelain").stdout == ""


# The installation of the hook


def test_the_steps_of_the_setup_change_nothing_when_repeated(project: BakedProject) -> None:
    def state() -> dict[str, bytes]:
        own = [path for path in project.path.rglob("*") if path.is_file()]
        return {
            str(path): path.read_bytes()
            for path in own
            if ".git" not in path.parts or "hooks" in path.parts
        }

    before, at = state(), head(project)
    project.run("make", "setup")
    assert state() == before
    assert head(project) == at


def test_a_hook_of_the_user_is_kept_and_runs(project: BakedProject) -> None:
    hook = project.file(".git/hooks/pre-commit")
    hook.write_text("#!/bin/sh\ntouch .git/mine-ran\n")
    hook.chmod(0o755)
    project.run("scripts/install-hooks.sh")
    assert "already installed" in project.run("scripts/install-hooks.sh").stdout
    refused(project, **{".env": "A=1\n"})
    assert project.file(".git/mine-ran").exists()


def test_a_second_hook_of_the_user_is_never_lost(project: BakedProject) -> None:
    hooks = project.file(".git/hooks")
    (hooks / "pre-commit").write_text("#!/bin/sh\necho one\n")
    (hooks / "pre-commit.legacy").write_text("#!/bin/sh\necho two\n")
    done = project.run("scripts/install-hooks.sh", check=False)
    assert done.returncode == 1
    assert "move one away" in done.stderr
    assert (hooks / "pre-commit").read_text() == "#!/bin/sh\necho one\n"
    assert (hooks / "pre-commit.legacy").read_text() == "#!/bin/sh\necho two\n"
    assert not list(hooks.glob("new.*"))


def test_hooks_elsewhere_are_left_alone(project: BakedProject, tmp_path: Path) -> None:
    git(project, "config", "core.hooksPath", str(tmp_path / "hooks"))
    project.file(".git/hooks/pre-commit").unlink()
    done = project.run("scripts/install-hooks.sh", check=False)
    assert done.returncode == 3
    assert "core.hooksPath" in done.stderr
    assert not (tmp_path / "hooks").exists()
    assert not project.file(".git/hooks/pre-commit").exists()


@pytest.mark.slow
def test_the_hook_works_in_a_worktree(project: BakedProject, tmp_path: Path) -> None:
    tree = tmp_path / "another tree"
    git(project, "worktree", "add", "--quiet", "-b", "other", str(tree))
    other = BakedProject(tree, project.answers, project.environments)
    assert "already installed" in other.run("scripts/install-hooks.sh").stdout
    refused(other, **{".env": "A=1\n"})


@pytest.mark.parametrize("outer", [False, True], ids=["no repository", "outer repository"])
def test_without_a_repository_of_its_own_no_hook_is_installed(
    project: BakedProject,
    tmp_path: Path,
    outer: bool,
) -> None:
    folder = tmp_path / "outer" / "inner"
    shutil.copytree(project.file("scripts"), folder / "scripts")
    if outer:
        run("git", "init", "--quiet", cwd=folder.parent)
    done = run(folder / "scripts/install-hooks.sh", cwd=folder, check=False)
    assert done.returncode == 3
    assert "git repository" in done.stderr
    assert not (folder.parent / ".git/hooks/pre-commit").exists()
