"""The hooks of the repository template: as code, and as a user meets them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.baked import ROOT, SERVICE_TEMPLATE, TEMPLATE, BakedProject, run, user_environment
from tests.conftest import Bake, Cookiecutter
from tests.rendering import load_hook, typed_context
from tests.stack import until
from tests.tools import needs, slow_after_first

DEFAULT = "homelab-services"


def pre_gen(output: Path | None = Path("/somewhere"), **answers: Any) -> ModuleType:
    return load_hook(ROOT, "pre_gen_project", typed_context(ROOT, output, answers))


def post_gen(output: Path | None = Path("/somewhere"), **answers: Any) -> ModuleType:
    return load_hook(ROOT, "post_gen_project", typed_context(ROOT, output, answers))


def refusal(**answers: Any) -> tuple[int, str]:
    """Exit code of the first hook, and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code: int = pre_gen(**answers).main()
    return code, said.getvalue()


def unwrapped(text: str) -> str:
    """The text with each list item and each row on one line."""
    return re.sub(r"\n {4,}(?=\S)", " ", text)


# --- before rendering: answers that cannot work -------------------------------------------------

GOOD = [
    {},
    {"project_name": "Gärtnerei Müller & Söhne", "project_slug": "gaertnerei"},
    {"project_name": 'The "Nest"', "description": "It's $(here): {{ yes }} # and `there` \\"},
    {"description": "erste Zeile\n第二行\n🌱"},
    {"author_name": "O'Brien, <ada@example.org>"},
    {"topic_prefix": "Home/ground_floor-2"},
    {"project_slug": "a", "first_service": "b"},
    {"first_service": "x" * 40},
    {"project_name": "no", "description": "~", "author_name": "1e3"},
]


@pytest.mark.parametrize("answers", GOOD)
def test_good_answers_pass_silently(answers: dict[str, str]) -> None:
    assert refusal(**answers) == (0, "")


BAD = {
    "project_name": ["", "   ", "x" * 300, "bell \a", "nul \0", "line\u2028separator"],
    "project_slug": [
        "",
        "..",
        "a/b",
        "Upper",
        "under_score",
        "-first",
        "last-",
        "two--hyphens",
        "1st",
        "con",
        "com1",
        "ünder",
        "a b",
        "$(id)",
        "x" * 51,
    ],
    "description": ["", "\t", "y" * 300, "escape \x1b[31m", "lone \ud800"],
    "author_name": ["", "z" * 300, "delete \x7f"],
    "topic_prefix": [
        "",
        "#",
        "a/#",
        "+",
        "a/+/b",
        "/leading",
        "trailing/",
        "a//b",
        "a b",
        "$SYS",
        "ä",
        "nul\0",
        "x" * 101,
    ],
    "first_service": [
        "",
        ".",
        "Upper",
        "a.b",
        "a_b",
        "a b",
        "mqtt",
        "influxdb",
        "errors",
        "coordinator",
        "shared",
        "debug",
        "nul",
        "2nd",
        "a/b",
        "x-soil",
        "patterns",
        "b" * 41,
    ],
}


@pytest.mark.parametrize(
    ("answer", "value"), [(answer, value) for answer, values in BAD.items() for value in values]
)
def test_bad_answer_is_refused_by_name_rule_and_example(answer: str, value: str) -> None:
    code, said = refusal(**{answer: value})
    assert code == 1
    problem = r"^  - (\w+): (.+) \(got (.*); for example (.+)\)$"
    lines = re.findall(problem, unwrapped(said), re.MULTILINE)
    found = {name: (rule, example) for name, rule, _, example in lines}
    assert answer in found, said
    # Only answers that derive from it may be wrong too.
    derived = {"project_name": {"project_slug", "topic_prefix", "author_name"}}
    derived["project_slug"] = {"topic_prefix"}
    assert set(found) <= {answer} | derived.get(answer, set())
    rule, example = found[answer]
    assert rule.startswith(("must ", "is "))
    assert refusal(**{answer: example.strip("'\"")})[0] == 0, "its own example is refused"


def test_all_problems_are_told_at_once() -> None:
    bad = {answer: values[1] for answer, values in BAD.items()}
    code, said = refusal(**bad)
    assert code == 1
    assert re.findall(r"^  - (\w+):", said, re.MULTILINE) == list(bad_in_order(bad))


def test_rejected_answers_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answers = {"topic_prefix": "home/#", "first_service": "patterns", "description": "long " * 99}
    said = refusal(**answers)[1]
    prose, _, command = said.partition("the command is:\n\n")
    assert "  - first_service: is used by the repository, for a file in tests/ (got" in prose
    assert [line for line in prose.splitlines() if len(line) > 80] == []
    assert command.startswith("  cookiecutter ")
    assert command.count("\n") == 2


def bad_in_order(bad: dict[str, str]) -> Iterator[str]:
    prompts = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    return (name for name in prompts if name in bad)


def test_the_refused_value_is_shown_without_its_control_characters() -> None:
    said = unwrapped(refusal(description="red \x1b[31m\nnew line")[1])
    assert "\x1b" not in said
    assert r"red \x1b[31m\nnew line" in said


@pytest.mark.real
@pytest.mark.parametrize("answers", [{"first_service": "Bad One", "description": "It's $HOME"}])
def test_the_corrected_command_works(
    cookiecutter: Cookiecutter, tmp_path: Path, answers: dict[str, Any]
) -> None:
    refused = cookiecutter(output=tmp_path / "refused", **answers)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "refused" / DEFAULT).exists()
    command = next(
        line for line in refused.stderr.splitlines() if line.strip().startswith("cookiecutter ")
    )
    done = run(
        *("sh", "-c", f'PATH="{Path(sys.executable).parent}:$PATH"; {command.strip()}'),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    project = BakedProject(tmp_path / "refused" / DEFAULT)
    assert project.toml("pyproject.toml")["project"]["description"] == "It's $HOME"


REFUSED = {
    "reserved slug": {"project_slug": "con"},
    "too long name": {"project_name": "long " * 60},
    "folder elsewhere": {"project_slug": "../elsewhere"},
    "wildcard": {"topic_prefix": "home/#"},
    "service": {"first_service": "No Name"},
}


@pytest.mark.parametrize("answers", REFUSED.values(), ids=REFUSED)
def test_a_refusal_leaves_no_file(
    cookiecutter: Cookiecutter, tmp_path: Path, answers: dict[str, Any]
) -> None:
    output = tmp_path / "a" / "b"
    output.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    done = cookiecutter(output=output, **answers)
    assert done.returncode == 1
    assert set(tmp_path.rglob("*")) == before


def said_command(hook: ModuleType, **answers: Any) -> list[str]:
    """Return the corrected command for rejected answers, split."""
    vars(hook)["ANSWERS"] = json.dumps(json.loads(hook.ANSWERS) | answers)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert hook.main() == 1
    command = (line for line in said.getvalue().splitlines() if "  cookiecutter " in line)
    return shlex.split(next(command))


def test_the_corrected_command_keeps_the_folder_and_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", str(tmp_path))
    elsewhere = pre_gen(output=tmp_path / "my repositories", project_slug="No Slug")
    words = said_command(elsewhere, _checkout="v1.2.3")
    assert words[words.index("--checkout") + 1] == "v1.2.3"
    assert words[words.index("--output-dir") + 1] == str(tmp_path / "my repositories")
    here = said_command(pre_gen(output=tmp_path, project_slug="No Slug"))
    assert "--output-dir" not in here
    assert "--checkout" not in here


def test_the_corrected_command_holds_only_the_answers_that_differ(tmp_path: Path) -> None:
    hook = pre_gen(output=tmp_path, project_name="It is !", first_service="No", license="MIT")
    words = said_command(hook)
    answers = [word for word in words if "=" in word]
    assert answers == ["project_name=It is !", "first_service=soil-moisture"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("3D Printer Farm", "mqtt-3d-printer-farm"),
        (".", "mqtt-services"),
        ("\U0001f331", "mqtt-services"),
        ("Con", "mqtt-con"),
        ("COM1", "mqtt-com1"),
        ("Combo", "combo"),
        ("x" * 300, "x" * 50),
        (("a" * 49 + " ") * 2, "a" * 49),
        ("3" * 60, "mqtt-" + "3" * 45),
    ],
)
def test_the_derived_names_are_always_valid(name: str, slug: str) -> None:
    context = typed_context(ROOT, None, {"project_name": name})["cookiecutter"]
    assert context["project_slug"] == context["topic_prefix"] == slug
    problems = [problem for problem, *_ in pre_gen(project_name=name).find_problems(context)]
    assert problems == (["project_name"] if len(name) > 200 else [])


def test_a_reserved_name_says_which_rule_it_breaks() -> None:
    rule = pre_gen().service_problem
    assert "Windows" in rule("nul")
    assert "YAML" in rule("yes")
    assert "used by the repository" in rule("coordinator")
    assert "file in tests/" in rule("patterns")


def test_both_hooks_reserve_the_same_names() -> None:
    repository, service = (
        pre_gen(),
        load_hook(SERVICE_TEMPLATE, "pre_gen_project", typed_context(SERVICE_TEMPLATE, None, {})),
    )
    reserved = dict(repository.RESERVED_SERVICES)
    tests = reserved.pop("is used by the repository, for a file in tests/")
    own = {path.stem for path in TEMPLATE.glob("tests/test_*.py")}
    assert {f"test_{name.replace('-', '_')}" for name in tests} == own
    # Where the container exists, its key in the Compose file reserves the name.
    assert set().union({"influxdb"}, *service.RESERVED.values()) == set().union(*reserved.values())
    assert repository.NAME == service.NAME
    assert repository.service_problem("x-soil") == service.name_problem("x-soil") is not None


# --- make new -----------------------------------------------------------------------------------


def new(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "scripts/new.py", *arguments)
    return run(*command, cwd=ROOT, env={"COLUMNS": "80"}, check=False)


def test_answers_that_cookiecutter_would_pass_over_are_refused(tmp_path: Path) -> None:
    done = new(
        *(tmp_path, "first_service=good", "python_version=3.9", "include_influxdb=perhaps"),
        *("project=x", "words", "license=mit"),
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if len(line) > 80] == []
    assert re.findall("^  - .*?(?=:)", done.stderr, re.MULTILINE) == [
        *("  - python_version", "  - include_influxdb", "  - project", "  - words", "  - license"),
    ]
    assert list(tmp_path.iterdir()) == []


@needs("git")
def test_a_refusal_is_shown_without_a_traceback(tmp_path: Path) -> None:
    done = new(tmp_path, "project_slug=No Slug")
    assert done.returncode == 1
    assert "  - project_slug: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    made = new(tmp_path, "include_influxdb=No", "project_slug=made")
    assert (made.returncode, made.stderr) == (0, "")
    assert "influx" not in (tmp_path / "made/.env.example").read_text().lower()
    again = new(tmp_path, "project_slug=made")
    assert again.returncode == 1
    assert "already exists" in " ".join(again.stderr.split())
    assert again.stderr.endswith(
        f"  make new NO_INPUT=1 OUT={tmp_path} ARGS=project_slug=made-2\n\n"
    )


# --- after rendering: the plan of steps ---------------------------------------------------------


def test_the_plan_names_scripts_that_exist(bake: Bake) -> None:
    project = bake()
    for step in post_gen().plan():
        by_hand = step.by_hand.split()[0]
        assert by_hand in {"make", "git"} or project.file(by_hand).is_file()


def recorded(hook: ModuleType, monkeypatch: pytest.MonkeyPatch, status: str = "done") -> list[str]:
    """Replace the one function that runs steps, and return the list of their titles."""
    titles: list[str] = []

    def fake(step: Any) -> Any:
        titles.append(step.title)
        return hook.Outcome(step, status, "because")

    monkeypatch.setattr(hook, "run", fake)
    return titles


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_step_is_in_the_table_whatever_became_of_it(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert empty_folder.exists()
    monkeypatch.setenv("COLUMNS", "80")
    for status in ("done", "skipped", "failed"):
        hook = post_gen()
        titles = recorded(hook, monkeypatch, status)
        assert hook.main() == 0
        printed = capsys.readouterr().out
        assert titles == [step.title for step in hook.plan()]
        assert [line for line in printed.splitlines() if len(line) > 80 and "/" not in line] == []
        for step in hook.plan():
            assert re.search(rf"^  {step.title} +{status}", printed, re.MULTILINE)
            # Only a step that was not done explains its loss.
            told = f"{step.title}: until then {step.loss}. Run: {step.by_hand}"
            assert (told in unwrapped(printed)) == (status != "done")
            assert (f"\n      {step.by_hand}\n" in printed) == (status != "done")


def test_under_cruft_only_the_first_service_is_made(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "templates/service").mkdir(parents=True)
    hook = post_gen(output=None)
    titles = recorded(hook, monkeypatch)
    assert hook.main() == 0
    assert titles == ["first service"]
    assert "make setup" in capsys.readouterr().out


OUTCOMES: dict[str, tuple[list[str], str, str]] = {
    "done": (["sh", "-c", "echo one; echo two"], "done", "two"),
    "skipped": (["sh", "-c", "echo no tool >&2; exit 3"], "skipped", "no tool"),
    "failed": (["sh", "-c", "echo why >&2; exit 1"], "failed", "why"),
    "failed mutely": (["sh", "-c", "exit 7"], "failed", "exit code 7"),
    "killed": (["sh", "-c", "kill -9 $$"], "failed", "-9"),
    "missing": (["./no-such-command"], "failed", "no-such-command"),
    "no text": (["sh", "-c", r"printf '\377\n'"], "done", "\ufffd"),
}


@pytest.mark.parametrize(("command", "status", "detail"), OUTCOMES.values(), ids=OUTCOMES)
def test_what_becomes_of_a_step(command: list[str], status: str, detail: str) -> None:
    hook = post_gen()
    outcome = hook.run(hook.Step("step", lambda: hook.run_script(*command), "by hand", "loss"))
    assert outcome.status == status
    assert detail in outcome.detail


def test_a_first_service_that_exists_is_left_alone(empty_folder: Path) -> None:
    (empty_folder / "services" / "example-service").mkdir(parents=True)
    assert "was there already" in post_gen().add_first_service()
    assert list((empty_folder / "services/example-service").iterdir()) == []


# --- whole runs ---------------------------------------------------------------------------------


def table(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """The closing table: step -> (status, detail)."""
    row = r"^  (\S(?:.*?\S)?)  +(done|skipped|failed) *(.*)$"
    rows = re.findall(row, unwrapped(done.stdout), re.MULTILINE)
    return {title: (status, detail) for title, status, detail in rows}


def assert_whole(project: BakedProject) -> None:
    """All rendered files, and the first service, are there."""
    for name in ("docker-compose.yml", "pyproject.toml", "uv.lock", "shared/service.py"):
        assert project.file(name).is_file(), name
    assert project.file("services/example-service/main.py").is_file()
    included = project.yaml("docker-compose.yml")["include"]
    assert included == ["services/example-service/compose.yml"]


@pytest.mark.real
@needs("git", "age-keygen")
def test_everything_there_all_steps_are_done(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    done = cookiecutter(output=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    statuses = {title: status for title, (status, _) in table(done).items()}
    assert set(statuses.values()) == {"done"}, done.stdout
    project = BakedProject(tmp_path / DEFAULT)
    assert_whole(project)
    assert project.run("git", "status", "--porcelain").stdout == ""
    assert project.run("git", "log", "--format=%an").stdout.split("\n") == ["Test Author", ""]
    assert project.run("git", "branch", "--show-current").stdout.strip() == "main"


@pytest.fixture
def path_of(tmp_path: Path) -> Callable[..., str]:
    """A PATH that holds these commands and none else."""

    def make(*commands: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for command in commands:
            found = shutil.which(command)
            assert found is not None, command
            (folder / command).symlink_to(found)
        return str(folder)

    return make


BASICS = (
    *("sh", "bash", "env", "cat", "chmod", "cp", "cut", "dirname", "basename", "grep", "head"),
    *("ln", "ls", "mkdir", "mktemp", "mv", "readlink", "rm", "sed", "tail", "touch", "tr", "uname"),
)
STEP_OF = {"git": "git repository", "age-keygen": "secrets"}


@pytest.mark.real
@needs("git", "age-keygen")
@pytest.mark.parametrize("missing", slow_after_first(["both", "git", "age-keygen"]))
def test_a_missing_tool_costs_its_step_only(
    cookiecutter: Cookiecutter, tmp_path: Path, path_of: Callable[..., str], missing: str
) -> None:
    present = [tool for tool in STEP_OF if missing not in {tool, "both"}]
    # pyrage would take the place of age-keygen.
    (tmp_path / "pyrage.py").write_text("raise ImportError")
    env = {"PATH": path_of(*BASICS, *present), "PYTHONPATH": str(tmp_path)}
    done = cookiecutter(output=tmp_path / "out", env=env)
    assert done.returncode == 0, done.stderr
    project = BakedProject(tmp_path / "out" / DEFAULT)
    assert_whole(project)
    rows = table(done)
    for tool, step in STEP_OF.items():
        status, detail = rows[step]
        if tool in present:
            assert status == "done", done.stdout
        else:
            assert status == "skipped", done.stdout
            assert tool.removesuffix("-keygen") in detail
            assert f"  {step}: until then " in done.stdout
    assert project.file(".git").exists() == ("git" in present)
    assert project.file(".sops/age-key.txt").exists() == ("age-keygen" in present)


@pytest.mark.real
def test_without_any_tool_the_repository_is_whole(
    cookiecutter: Cookiecutter, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = cookiecutter(output=tmp_path / "out", env={"PATH": str(empty)})
    assert done.returncode == 0, done.stderr
    assert_whole(BakedProject(tmp_path / "out" / DEFAULT))
    steps = {title: status for title, (status, _) in table(done).items()}
    assert steps["first service"] == "done"
    assert steps["git repository"] in {"skipped", "failed"}
    # pyrage, which this interpreter has, makes the key.
    assert steps["secrets"] == "done"


@pytest.mark.real
@needs("git")
def test_without_a_git_identity_nothing_is_committed(
    cookiecutter: Cookiecutter, tmp_path: Path
) -> None:
    env = {"GIT_CONFIG_GLOBAL": os.devnull, "EMAIL": None, "COLUMNS": "80"}
    done = cookiecutter(output=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    project = BakedProject(tmp_path / DEFAULT)
    status, detail = table(done)["git repository"]
    assert status == "skipped"
    assert "user.email" in detail
    assert '\n      git config --global user.name "Your Name"\n' in done.stdout
    table_and_losses = done.stdout.partition("\n\n")[2].splitlines()
    assert [line for line in table_and_losses if len(line) > 80 and "cd " not in line] == []
    log = project.run("git", "log", check=False)
    assert log.returncode != 0
    assert "README.md" in project.run("git", "diff", "--cached", "--name-only").stdout


@pytest.mark.real
@needs("git")
def test_in_a_work_tree_no_repository_is_nested(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    run("git", "init", "--quiet", tmp_path)
    done = cookiecutter(output=tmp_path)
    assert done.returncode == 0, done.stderr
    project = BakedProject(tmp_path / DEFAULT)
    assert_whole(project)
    assert not project.file(".git").exists()
    assert not list((tmp_path / ".git/hooks").glob("pre-commit")), (
        "the outer repository was touched"
    )
    assert table(done)["git repository"][0] == "skipped"


@pytest.mark.real
@needs("unshare")
def test_no_network_is_needed(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("unprivileged namespaces are off")
    done = run(
        *("unshare", "-rn", sys.executable, "-m", "cookiecutter", "--no-input"),
        *("--output-dir", tmp_path, ROOT),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_whole(BakedProject(tmp_path / DEFAULT))
    assert "failed" not in {status for status, _ in table(done).values()}


FOLDERS = ["with space", "Ünïcödé 花園", "it's $HOME", "-dash"]


@pytest.mark.real
@pytest.mark.parametrize(
    "output", slow_after_first(["it's $HOME", ".", "..", "-dash", "link/below"])
)
def test_the_way_on_leads_there_from_the_users_folder(
    output: str, template: Path, tmp_path: Path
) -> None:
    user = tmp_path / "user"
    (user / "real" / "below").mkdir(parents=True)
    (user / "link").symlink_to(user / "real")
    cookiecutter = f'{sys.executable} -m cookiecutter --no-input --output-dir="$1" "$2"'
    done = run("sh", "-c", f'cd "$0" && {cookiecutter}', user, output, template)
    way = re.findall(r"^  cd .*$", done.stdout, re.MULTILINE)
    assert len(way) == 1
    arrived = run("sh", "-c", f'cd "$0" && {way[0]} && pwd -P', user)
    assert Path(arrived.stdout.strip()) == (user / output / DEFAULT).resolve()


@pytest.mark.real
@needs("git", "age-keygen")
@pytest.mark.parametrize("folder", slow_after_first(FOLDERS))
def test_any_folder_will_do(cookiecutter: Cookiecutter, tmp_path: Path, folder: str) -> None:
    done = cookiecutter(output=tmp_path / folder)
    assert done.returncode == 0, done.stderr
    project = BakedProject(tmp_path / folder / DEFAULT)
    assert_whole(project)
    assert "failed" not in {status for status, _ in table(done).values()}, done.stdout
    assert project.run("git", "status", "--porcelain").stdout == ""
    assert project.run("make", "help").returncode == 0


@pytest.mark.real
def test_a_terminal_that_cannot_print_the_path_loses_nothing(
    cookiecutter: Cookiecutter, tmp_path: Path
) -> None:
    output = tmp_path / "Gewächshaus 🌱"
    done = cookiecutter(output=output, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert_whole(BakedProject(output / DEFAULT))
    assert done.returncode == 0, done.stderr


@pytest.mark.real
@pytest.mark.parametrize("output", slow_after_first(["closed", "pipe without reader"]))
def test_nobody_reads_the_table(tmp_path: Path, output: str) -> None:
    redirection = ">&-" if output == "closed" else "| :"
    script = f'"$@" {redirection}'
    run(
        *("sh", "-c", script, "sh", sys.executable, "-m", "cookiecutter", "--no-input"),
        *("--output-dir", tmp_path, ROOT),
        check=False,
    )
    assert_whole(BakedProject(tmp_path / DEFAULT))


@pytest.mark.real
@needs("git", "age-keygen")
@pytest.mark.parametrize("umask", slow_after_first(["000", "022", "077"]))
def test_any_umask_keeps_the_key_private(tmp_path: Path, umask: str) -> None:
    done = run(
        *("sh", "-c", f'umask {umask}; exec "$@"', "sh"),
        *(sys.executable, "-m", "cookiecutter", "--no-input", "--output-dir", tmp_path, ROOT),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    project = BakedProject(tmp_path / DEFAULT)
    assert stat.S_IMODE(project.file(".sops/age-key.txt").stat().st_mode) == 0o600
    assert stat.S_IMODE(project.file(".sops").stat().st_mode) & 0o022 == 0
    assert os.access(project.file("scripts/install-hooks.sh"), os.X_OK)
    assert project.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.real
@needs("git")
def test_without_home(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    done = cookiecutter(output=tmp_path, env={"HOME": None})
    assert done.returncode == 0, done.stderr
    assert "failed" not in {status for status, _ in table(done).values()}, done.stdout
    assert_whole(BakedProject(tmp_path / DEFAULT))


@pytest.mark.real
@needs("unshare")
def test_a_read_only_target_is_one_clear_error(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    if run("unshare", "-rm", "sh", "-c", mount, target, "true", check=False).returncode != 0:
        pytest.skip("unprivileged namespaces are off")
    done = run(
        *("unshare", "-rm", "sh", "-c", mount, target),
        *(sys.executable, "-m", "cookiecutter", "--no-input", "--output-dir", target, ROOT),
        check=False,
    )
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert list(target.iterdir()) == []


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_an_existing_folder_is_not_touched(cookiecutter: Cookiecutter, bake_copy: Bake) -> None:
    project = bake_copy()
    project.file("README.md").write_text("mine\n")
    before = snapshot(project.path)
    done = cookiecutter(output=project.path.parent)
    assert done.returncode != 0
    assert "already exists" in done.stdout + done.stderr
    assert snapshot(project.path) == before


@pytest.mark.real
@needs("git", "age-keygen")
def test_overwriting_keeps_what_is_the_users(cookiecutter: Cookiecutter, bake_copy: Bake) -> None:
    project = bake_copy()
    mine = {
        "services/example-service/main.py": "# mine\n",
        "services/other/main.py": "# mine too\n",
        ".env": "SECRET=mine\n",
        "notes.txt": "mine\n",
    }
    for name, text in mine.items():
        project.file(name).parent.mkdir(exist_ok=True)
        project.file(name).write_text(text)
    keys = {name: data for name, data in snapshot(project.path).items() if ".sops" in name}
    assert keys
    head = project.run("git", "rev-parse", "HEAD").stdout
    done = cookiecutter("--overwrite-if-exists", output=project.path.parent)
    assert done.returncode == 0, done.stderr
    assert "failed" not in {status for status, _ in table(done).values()}, done.stdout
    after = snapshot(project.path)
    assert {name: after[name].decode() for name in mine} == mine
    assert {name: after[name] for name in keys} == keys
    assert project.run("git", "rev-parse", "HEAD").stdout == head


@pytest.mark.real
@needs("git", "age-keygen")
def test_an_interrupt_leaves_what_can_be_finished(tmp_path: Path) -> None:
    """Control-C while the key is made: the files stay, and the script makes the key later."""
    tools = tmp_path / "bin"
    tools.mkdir()
    pipe = tmp_path / "started"
    os.mkfifo(pipe)
    slow = tools / "age-keygen"
    slow.write_text(f"#!/bin/sh\necho started > {shlex.quote(str(pipe))}\nexec sleep 300\n")
    slow.chmod(0o755)
    environment = user_environment()
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "cookiecutter", "--no-input", "--output-dir", tmp_path, ROOT],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert pipe.read_text() == "started\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
        until(lambda: not list(tmp_path.glob("*/.env.tmp*")), "end of the script")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    project = BakedProject(tmp_path / DEFAULT)
    assert_whole(project)
    assert not project.file(".sops/age-key.txt").exists()
    project.run(sys.executable, "scripts/manage_secrets.py", "init")
    assert project.read(".sops/age-key.txt").count("AGE-SECRET-KEY-") == 1
