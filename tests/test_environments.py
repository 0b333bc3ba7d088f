"""Machines as people have them: settings of other projects, old tools, unusual clones."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.baked import ROOT, TEMPLATE, BakedProject, run, user_environment
from tests.conftest import Bake
from tests.rendering import load_hook, typed_context
from tests.stack import is_asleep, until
from tests.test_hooks import pre_gen
from tests.test_upkeep import findings
from tests.tools import needs, path_without

pytestmark = needs("git")

OLD_GIT = """#!/bin/sh
for word; do case $word in --initial-branch*) echo "usage: git init [-q]" >&2; exit 129;; esac; done
exec {git} "$@"
"""
# Settings of the user that `uv lock --check` must ignore.
UV_TOML = """exclude-newer = "2024-01-01"
[[index]]
url = "https://example.org/simple"
default = true
"""
GITCONFIG = """[user]
name = Test Author
email = author@example.org
[core]
autocrlf = true
excludesFile = {home}/ignore
[init]
templateDir = {home}/git-template
[apply]
whitespace = error
[commit]
gpgSign = true
[url "https://mirror.example.org/"]
insteadOf = https://example.org/
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if text.startswith("#!"):
        path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """The environment of a user with many other projects."""
    home = tmp_path_factory.mktemp("hostile")
    git = shutil.which("git")
    write(home / "bin/git", OLD_GIT.format(git=git))
    write(home / "gitconfig", GITCONFIG.format(home=home))
    write(home / "ignore", "uv.lock\n.vscode\nCLAUDE.md\n*.sh\n")
    write(home / "git-template/hooks/prepare-commit-msg", "#!/bin/sh\necho no ticket >&2\nexit 1\n")
    write(home / "git-template/info/exclude", "README.md\n")
    write(home / "config/uv/uv.toml", UV_TOML)
    run("git", "init", "--quiet", home / "other")
    return {
        "PATH": f"{home}/bin{os.pathsep}{user_environment()['PATH']}",
        "GIT_CONFIG_GLOBAL": f"{home}/gitconfig",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fileMode",
        "GIT_CONFIG_VALUE_0": "false",
        "GIT_DIR": f"{home}/other/.git",
        "GIT_WORK_TREE": f"{home}/other",
        "XDG_CONFIG_HOME": f"{home}/config",
        "UV_EXCLUDE_NEWER": "2024-01-01",
        "UV_DEFAULT_INDEX": "https://example.org/simple",
        "UV_LOCKED": "1",
        "UV_NO_SYNC": "1",
        "UV_NO_DEV": "1",
        "UV_PROJECT": f"{home}/other",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_USER": "1",
        "PIP_PREFIX": f"{home}/prefix",
        "PYTHONSAFEPATH": "1",
        "VIRTUAL_ENV": f"{home}/other/.venv",
        "SOPS_AGE_RECIPIENTS": "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg",
        "CDPATH": f"{home}",
    }


@pytest.fixture(scope="module")
def made(
    hostile: dict[str, str | None],
    template: Path,
    environments: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> BakedProject:
    """A repository that was made in that environment."""
    folder = tmp_path_factory.mktemp("made")
    run("git", "clone", "--quiet", template, folder / "template")
    address = "https://example.org/template.git"
    run("git", "remote", "set-url", "origin", address, cwd=folder / "template")
    write(folder / "template/.idea/workspace.xml", "<xml/>\n")
    cookiecutter = (sys.executable, "-m", "cookiecutter", "--no-input")
    done = run(*cookiecutter, "--output-dir", folder, folder / "template", env=hostile)
    statuses = re.findall(r"^  \S.*?  +(done|skipped|failed)  ", done.stdout, re.MULTILINE)
    assert statuses == ["done"] * 5, done.stdout
    assert done.stderr == ""
    return BakedProject(folder / "homelab-services", environments=environments)


def test_the_first_commit_holds_every_file_with_its_mode(made: BakedProject) -> None:
    assert run("git", "status", "--porcelain", cwd=made.path).stdout == ""
    listed = run("git", "ls-files", "--stage", cwd=made.path).stdout.splitlines()
    modes = {line.split("\t")[1]: line.split()[0] for line in listed}
    private = {".env", ".sops/age-key.txt", ".sops/age-key.pub"}
    assert set(modes) == set(made.files()) - private
    for name, mode in modes.items():
        is_script = made.file(name).read_bytes().startswith(b"#!")
        assert mode == ("100755" if is_script else "100644"), name
        assert name.endswith(".png") or b"\r" not in made.file(name).read_bytes(), name
    assert run("git", "branch", "--show-current", cwd=made.path).stdout == "main\n"


def test_the_other_repository_is_left_alone(
    made: BakedProject, hostile: dict[str, str | None]
) -> None:
    assert made.file(".git/hooks/pre-commit").is_file()
    other = Path(str(hostile["GIT_WORK_TREE"]))
    assert {path.name for path in other.iterdir()} == {".git"}
    assert not (other / ".git/hooks/pre-commit").exists()
    assert not Path(str(hostile["PIP_PREFIX"])).exists()


def test_the_record_holds_the_address_that_others_can_reach(made: BakedProject) -> None:
    assert made.json(".cruft.json")["template"] == "https://example.org/template.git"


def test_the_record_has_the_order_of_an_update(made: BakedProject) -> None:
    template = BakedProject(ROOT).json("cookiecutter.json")
    answers = made.json(".cruft.json")["context"]["cookiecutter"]
    assert list(answers) == [name for name in template if name != "__prompts__"] + ["_template"]
    private = "_jinja2_env_vars"
    assert json.dumps(answers[private]) == json.dumps(template[private])


@pytest.mark.real
def test_the_made_repository_works_in_that_environment(
    made: BakedProject, hostile: dict[str, str | None]
) -> None:
    made.run("scripts/lock.sh", "--check", env=hostile)
    assert "already installed" in made.run("scripts/install-hooks.sh", env=hostile).stdout
    done = made.run("make", "test", "ARGS=tests/test_example_service.py", env=hostile)
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    "program", [["-m", "cookiecutter", "--no-input", "-o"], ["scripts/new.py"]]
)
def test_a_clone_without_symbolic_links_is_rejected(
    template: Path, tmp_path: Path, program: list[str]
) -> None:
    clone, output = tmp_path / "clone", tmp_path / "output"
    run("git", "clone", "--quiet", "-c", "core.symlinks=false", template, clone)
    output.mkdir()
    arguments = [output, "."] if "cookiecutter" in program else [output]
    done = run("sh", "-c", 'cd "$0" && exec "$@"', clone, sys.executable, *program, *arguments,
               check=False)  # fmt: skip
    assert done.returncode == 1
    # The width of the terminal and the length of the path decide where the lines end.
    assert "copied without symbolic links" in " ".join(done.stderr.split())
    assert "git clone -c core.symlinks=true" in done.stderr
    assert list(output.iterdir()) == []
    # `make new` begins with it.
    version = run("scripts/uv", "--version", cwd=clone)
    assert version.stdout.startswith("uv ")


def test_a_clone_with_crlf_for_other_repositories_has_lf(template: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "-c", "core.autocrlf=true", template, clone)
    files = [path for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts]
    # The pictures are no text.
    text = [path for path in files if ".png" not in path.name]
    assert [path for path in text if b"\r\n" in path.read_bytes()] == []


@pytest.mark.parametrize("step", ["start_repository", "record_template"])
def test_a_repository_of_another_owner_is_named_by_git_itself(
    step: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.chdir(tmp_path)
    run("git", "init", "--quiet", tmp_path)
    hook = load_hook(ROOT, "post_gen_project", typed_context(ROOT, tmp_path, {}))
    hook.ANSWERS["_repo_dir"] = str(template)
    outcome = hook.run(hook.Step("step", getattr(hook, step), "by hand", "loss"))
    assert outcome.status == "failed"
    assert "dubious ownership" in outcome.detail
    assert "git config --global --add safe.directory" in outcome.detail


def test_a_cookiecutter_that_is_too_old_is_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.2.3")
    assert pre_gen().main() == 1
    said = capsys.readouterr().err
    assert "cookiecutter 2.2.3 is too old" in said
    assert "uvx cookiecutter" in said


def test_a_uv_that_is_too_old_gives_way_to_the_pinned_one(tmp_path: Path) -> None:
    script = tmp_path / "scripts/uv"
    script.parent.mkdir()
    text = (TEMPLATE / "scripts/uv").read_text()
    write(script, re.sub(r"uv==[\d.]+", "uv==1.2.3", text))
    write(tmp_path / "bin/uv", "#!/bin/sh\necho uv 0.5.31\n")
    path = path_without("uv", "python3", folder=tmp_path / "rest")
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{path}"}
    done = run(script, "--version", env=env, check=False)
    assert done.returncode == 1
    assert "uv 0.5.31 on PATH is older than 0.8" in done.stderr
    write(tmp_path / ".tools/uv-1.2.3/bin/uv", "#!/bin/sh\necho pinned\n")
    assert run(script, "--version", env=env).stdout == "pinned\n"
    write(tmp_path / "bin/uv", "#!/bin/sh\necho uv 0.8.0\n")
    assert run(script, "--version", env=env).stdout == "uv 0.8.0\n"


@pytest.mark.real
def test_a_python3_that_does_not_run_is_not_needed(bake_copy: Bake, tmp_path: Path) -> None:
    """As the alias that Windows hands to WSL, or the shim of a version manager."""
    project = bake_copy()
    write(tmp_path / "python3", "#!/bin/sh\necho no version is set >&2\nexit 127\n")
    write(tmp_path / "docker", "#!/bin/sh\necho no daemon >&2\nexit 1\n")
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    doctor = project.run("make", "doctor", "ARGS=--json", env=env, check=False)
    assert {"check": "lock", "status": "PASS"}.items() <= next(
        item for item in json.loads(doctor.stdout) if item["check"] == "lock"
    ).items()
    assert "no daemon" in project.run("make", "status", env=env, check=False).stderr
    project.run("scripts/install-hooks.sh", env=env)


def test_a_home_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    env = {"HOME": "/proc", "COOKIECUTTER_CONFIG": None, "UV_CACHE_DIR": None}
    script = tmp_path / "scripts/uv"
    script.parent.mkdir()
    shutil.copy(TEMPLATE / "scripts/uv", script)
    write(tmp_path / "bin/uv", '#!/bin/sh\necho "uv 0.13.9"\necho "$UV_CACHE_DIR"\n')
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    said = run(script, env={**env, "PATH": path}).stdout
    assert said == f"uv 0.13.9\n{tmp_path}/.tools/cache\n"
    output = tmp_path / "out"
    output.mkdir()
    run(sys.executable, "scripts/new.py", "--no-input", output, cwd=ROOT, env=env)
    assert (output / "homelab-services/services/example-service/main.py").is_file()


@pytest.mark.real
def test_a_lock_that_cannot_be_checked_is_not_called_stale(bake_copy: Bake) -> None:
    project = bake_copy()
    env = {"UV_PYTHON": "3.99"}
    done = project.run("scripts/lock.sh", "--check", env=env, check=False)
    assert done.returncode == 3
    assert "No interpreter found for Python 3.99" in done.stderr
    assert project.run("scripts/lock.sh", env=env, check=False).returncode == 1
    finding = findings(project, "scripts", **env)["lock"]
    assert finding["status"] == "WARN"
    assert "No interpreter found for Python 3.99" in finding["detail"]
    project.file("pyproject.toml").write_text(
        project.read("pyproject.toml").replace('"httpx>=', '"httpx>=9')
    )
    assert project.run("scripts/lock.sh", "--check", check=False).returncode == 1


@pytest.mark.parametrize(
    ("tool", "printed"),
    [("git", "git version 2.17.1"), ("sops", "sops 3.7.3")],
)  # fmt: skip
def test_doctor_names_a_tool_that_is_too_old(
    bake_copy: Bake, tmp_path: Path, tool: str, printed: str
) -> None:
    write(tmp_path / tool, f"#!/bin/sh\necho '{printed}'\n")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    finding = findings(bake_copy(), "tools", PATH=path)[tool]
    assert finding["status"] == "FAIL"
    assert "is too old" in finding["detail"]
    assert "or newer" in finding["fix"]


# --- make new at a terminal ----------------------------------------------------------------------


def typed(answers: Iterable[str], output: Path) -> tuple[int, str]:
    """Type each answer at its prompt. Return the exit code and the text of the terminal."""
    program = [sys.executable, str(ROOT / "scripts/new.py"), str(output)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(program[0], program)
    shown = ""
    for answer in answers:
        prompt = ""
        while not re.search(r"\)\x1b\[0m: $", prompt):
            prompt += os.read(terminal, 4096).decode(errors="replace")
        shown += prompt
        # Python loses a Ctrl-C that comes after the prompt and before it waits for the answer.
        until(lambda: is_asleep(pid), "read of the answer", seconds=0.001)
        os.write(terminal, answer.encode())
    while True:
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            break
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), re.sub(r"\x1b\[[\d;]*m", "", shown)


@pytest.mark.parametrize("key", ["\x04", "\x03"], ids=["Ctrl-D", "Ctrl-C"])
def test_each_answer_is_judged_when_it_is_given(tmp_path: Path, key: str) -> None:
    (tmp_path / "mqtt-3d-printer-farm").mkdir()
    answers = ["3D Printer Farm\n", "con\n", "mqtt-3d-printer-farm\n", "\n", "\n", "\n", "a b\n"]
    code, shown = typed([*answers, key], tmp_path)
    assert code == 130
    assert "Traceback" not in shown
    assert shown.endswith("\nStopped.\r\n")
    # A directory of the first name is there, so the default has a number.
    assert "(mqtt-3d-printer-farm-2): " in shown
    for rule in ("is reserved by Windows", "already exists", "in levels split by single slashes"):
        assert rule in " ".join(shown.split())
    assert [path.name for path in tmp_path.iterdir()] == ["mqtt-3d-printer-farm"]


def test_the_command_to_repeat_survives_an_interactive_bash(tmp_path: Path) -> None:
    name = """It is $5 `a` !! "q"'s \\"""
    new = (sys.executable, "scripts/new.py", tmp_path)
    rejected = run(*new, f"project_name={name}", "first_service=patterns", cwd=ROOT, check=False)
    command = next(line for line in rejected.stderr.splitlines() if "  make new " in line)
    assert re.findall(r"(\w+)=", command)[:3] == ["NO_INPUT", "OUT", "ARGS"]
    assert "license" not in command
    # make hands the answers to a stand-in for the program.
    makefile = write(tmp_path / "Makefile", "SHELL := bash\nnew:\n\t@printf '%s\\n' $(ARGS)\n")
    script = f"set -H\ncd {makefile.parent}\n{command.strip()}\n"
    done = subprocess.run(["bash", "-i"], input=script, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"project_name={name}", "first_service=soil-moisture"]
