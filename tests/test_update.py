"""A repository that has lived takes a newer template, in whatever way it was made."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.baked import ROOT, TEMPLATE, BakedProject, publish, run
from tests.conftest import Cookiecutter
from tests.tools import needs, slow_after_first

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1500),
    needs("git", "age-keygen", "sops", "mosquitto"),
]

SLUG = "homelab-services"
SERVICES = ("example-service", "soil-moisture", "attic-window")
TESTS = [f"tests/test_{name.replace('-', '_')}.py" for name in SERVICES]
# Files of the user, which an update must not change.
USERS = ("services/", ".sops", ".env", "infrastructure/")
SOME_TESTS = {"PYTEST_ADDOPTS": "-k 'topics or example_service'"}


def release_commit(version: str) -> str:
    """The commit of a release: its tag or, in a clone without tags, the message tells."""
    tag = run("git", "rev-parse", "--verify", f"v{version}^{{commit}}", cwd=ROOT, check=False)
    if tag.returncode == 0:
        return tag.stdout.strip()
    message = f"^Release {re.escape(version)}$"
    found = run("git", "log", "--format=%H", "--extended-regexp", "--grep", message, cwd=ROOT)
    assert found.stdout, f"neither a tag v{version} nor its commit is in this clone's history"
    return found.stdout.split()[0]


def replace_in(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{old} is not in {file}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


class Published:
    """The template in a git repository that others reach by its address, with a history."""

    def __init__(self, path: Path, version: str | None = None) -> None:
        self.path = path
        self.address = f"git+file://{path}"
        if version is None:
            publish(path)
        else:
            path.mkdir()
            archive = subprocess.run(
                ["git", "archive", release_commit(version)],
                cwd=ROOT,
                capture_output=True,
                check=True,
            )
            subprocess.run(["tar", "-x"], cwd=path, input=archive.stdout, check=True)
            self.git("init", "--quiet")
            self.commit("Release")

    def git(self, *arguments: str) -> str:
        return run("git", *arguments, cwd=self.path).stdout

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def change(self, name: str, old: str, new: str) -> None:
        replace_in(self.path / TEMPLATE.name / name, old, new)

    def become_the_work_tree(self) -> bool:
        """False when it is that already."""
        current = self.path.with_name("work-tree")
        publish(current)
        (current / ".git").rename(current.with_name("unused.git"))
        (self.path / ".git").rename(current / ".git")
        shutil.rmtree(self.path)
        current.rename(self.path)
        is_newer = bool(self.git("status", "--porcelain"))
        if is_newer:
            self.commit("Work tree")
        return is_newer

    def become_next_years(self) -> None:
        """Change each kind of file that the template owns, add one and remove one."""
        generated = self.path / TEMPLATE.name
        change = self.change
        change("base/compose.yml", "    pids_limit: 128", "    pids_limit: 130")
        change("docker-compose.yml", "    pids_limit: 64", "    pids_limit: 65")
        change("scripts/deploy.sh", "\nset -euo pipefail\n", "\nset -euo pipefail\n# Newer.\n")
        change("shared/__init__.py", '"""', '"""Newer: ')
        change("docs/patterns.md", "\n\n", "\n\nNewer.\n\n")
        change("Makefile", "## Show this list", "## Show this newer list")
        change("pyproject.toml", "timeout = 120", "timeout = 121")
        (generated / "docs/newer.md").write_text("# Newer\n\nIt was not there last year.\n")
        shutil.copy(ROOT / "docs/fleet-light.png", generated / "docs/newer.png")
        (generated / "docs/containers.md").unlink()
        poller = self.path / "service-template/templates/poller/main.py"
        replace_in(poller, '"""', '"""Newer: ')
        self.commit("Next year")


def by_cookiecutter_from_git(
    cookiecutter: Cookiecutter, origin: Published, output: Path, environments: Path
) -> BakedProject:
    done = cookiecutter(output=output, template=origin.address)
    assert done.returncode == 0, done.stderr
    return BakedProject(output / SLUG, environments=environments)


def by_cookiecutter_from_a_folder(
    cookiecutter: Cookiecutter, origin: Published, output: Path, environments: Path
) -> BakedProject:
    clone = output.parent / "clone"
    run("git", "clone", "--quiet", origin.path, clone)
    # As if `{{ x }} {% y %}` had been typed at the prompt: an update renders the answer once more.
    typed = "{{ '{{ x }} {% y %}' }} \"\\ z"
    done = cookiecutter(output=output, template=clone, description=typed)
    assert done.returncode == 0, done.stderr
    return BakedProject(output / SLUG, environments=environments)


def by_cruft(
    cookiecutter: Cookiecutter, origin: Published, output: Path, environments: Path
) -> BakedProject:
    del cookiecutter
    cruft = (sys.executable, "-m", "cruft", "create", "--no-input")
    run(*cruft, "--output-dir", output, f"file://{origin.path}")
    project = BakedProject(output / SLUG, environments=environments)
    project.run("git", "init", "--quiet")
    project.run("make", "setup")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--no-verify", "--message", "Start")
    return project


WAYS = [by_cookiecutter_from_git, by_cookiecutter_from_a_folder, by_cruft]
Make = Callable[..., BakedProject]


class Maker:
    """Makes repositories in one of the ways, each in a directory of its own."""

    def __init__(self, cookiecutter: Cookiecutter, tmp_path: Path, environments: Path) -> None:
        self.cookiecutter = cookiecutter
        self.tmp_path = tmp_path
        self.environments = environments

    def __call__(
        self, origin: Published, name: str = "made", way: Make = by_cookiecutter_from_git
    ) -> BakedProject:
        return way(self.cookiecutter, origin, self.tmp_path / name / "here", self.environments)


@pytest.fixture
def make(cookiecutter: Cookiecutter, tmp_path: Path, environments: Path) -> Maker:
    return Maker(cookiecutter, tmp_path, environments)


def edit(project: BakedProject, name: str, old: str, new: str) -> None:
    replace_in(project.file(name), old, new)


def commit(project: BakedProject, message: str) -> None:
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--no-verify", "--message", message)


def live(project: BakedProject) -> None:
    """Change a repository as a year of use does."""
    for name, kind in (("soil-moisture", "subscriber"), ("attic-window", "http-api")):
        project.run("scripts/new-service.sh", name, "--type", kind)
    edit(project, "services/example-service/main.py", '"""', '"""Ours: ')
    edit(project, "services/soil-moisture/config.py", '"""', '"""Ours too: ')
    label = "    labels: [ours] # for the reverse proxy\n"
    edit(
        project, "services/example-service/compose.yml", "    volumes:\n", f"{label}    volumes:\n"
    )
    project.run("make", "secrets-encrypt")
    commit(project, "A year of our own")


def private_files(project: BakedProject) -> dict[str, bytes]:
    """Keys, secrets, services and their tests."""
    ours = [name for name in project.files() if name.startswith(USERS) and name != ".env.example"]
    ours += [name for name in TESTS if project.file(name).exists()]
    return {name: project.file(name).read_bytes() for name in ours}


def assert_nothing_is_left_open(project: BakedProject) -> None:
    assert not project.files("*.rej")
    assert not project.files("*.orig")
    for name in project.files():
        text = project.file(name).read_bytes()
        assert not re.search(rb"^(<<<<<<<|>>>>>>>)( |$)", text, re.MULTILINE), name


def assert_like_new(project: BakedProject, fresh: BakedProject, touched: set[str]) -> None:
    """All that nobody has touched is as the newer template makes it today."""

    def templates_own(project: BakedProject) -> set[str]:
        own = (*USERS, ".cruft.json", *TESTS)
        return {name for name in project.files() if not name.startswith(own)} - touched

    assert templates_own(project) == templates_own(fresh)
    for name in templates_own(fresh):
        assert project.file(name).read_bytes() == fresh.file(name).read_bytes(), name


# Merged or generated, because services are listed in them.
MERGED = {
    ".env.example",
    "docker-compose.override.example.yml",
    "docker-compose.yml",
    "docs/asyncapi.json",
    "docs/topics.md",
}


def update_and_check(
    project: BakedProject, origin: Published, fresh: BakedProject, tests: dict[str, str]
) -> str:
    """Take the newest template, and return the output."""
    before = private_files(project)
    head = project.run("git", "rev-parse", "HEAD").stdout
    check = project.run("make", "template-check", check=False)
    assert check.returncode != 0
    assert "make template-update" in check.stderr
    done = project.run("make", "template-update", env=tests, timeout=1200)
    assert_nothing_is_left_open(project)
    assert private_files(project) == before
    assert project.run("git", "rev-parse", "HEAD").stdout == head
    assert_like_new(project, fresh, MERGED)
    listed = {f"services/{name}/compose.yml" for name in SERVICES}
    assert set(project.yaml("docker-compose.yml")["include"]) == listed
    assert project.json(".cruft.json")["commit"] == origin.git("rev-parse", "HEAD").strip()
    commit(project, "Newer template")
    assert "nothing newer" in project.run("make", "template-check").stdout
    assert "nothing newer" in project.run("make", "template-update").stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_to_next_years(make: Maker, tmp_path: Path, way: Make) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin, way=way)
    live(project)
    origin.become_next_years()
    shown = update_and_check(project, origin, make(origin, "fresh", way), SOME_TESTS)
    assert "docs/newer.md" in shown
    assert project.yaml("base/compose.yml")["services"]["service"]["pids_limit"] == 130
    assert project.yaml("docker-compose.yml")["services"]["mqtt"]["pids_limit"] == 65
    # A service that is made now is made the new way.
    project.run("scripts/new-service.sh", "cellar-light")
    assert project.read("services/cellar-light/main.py").startswith('"""Newer: ')


@pytest.mark.parametrize("named", slow_after_first([".", "../template"]))
def test_a_template_that_is_named_from_where_the_user_is(tmp_path: Path, named: str) -> None:
    """Even when the repository is made inside another one, which is not its template."""
    origin = Published(tmp_path / "template")
    outer = tmp_path / "outer"
    run("git", "init", "--quiet", outer)
    run("git", "commit", "--quiet", "--allow-empty", "-m", "Outer", cwd=outer)
    run("git", "remote", "add", "origin", "https://example.org/outer.git", cwd=outer)
    cookiecutter = f'{sys.executable} -m cookiecutter --no-input -o "$1" "$2"'
    run("sh", "-c", f'cd "$0" && {cookiecutter}', origin.path, outer, named)
    assert BakedProject(outer / SLUG).json(".cruft.json")["template"] == str(origin.path)


@pytest.mark.slow
def test_a_change_on_both_sides_is_shown_and_can_be_settled(make: Maker, tmp_path: Path) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    edit(project, "docker-compose.yml", "    pids_limit: 64", "    pids_limit: 99")
    edit(project, "scripts/deploy.sh", "\nset -euo pipefail\n", "\nset -euo pipefail\n# Ours.\n")
    commit(project, "Ours")
    before = private_files(project)
    origin.become_next_years()
    done = project.run("make", "template-update", check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    shown = re.findall(r"^  (\S+)$", done.stdout, re.MULTILINE)
    assert shown == ["docker-compose.yml", "scripts/deploy.sh"]
    assert "make lock docs lint test" in done.stdout
    assert not project.files("*.rej")
    assert private_files(project) == before
    # Changes without a conflict have been applied all the same.
    assert project.file("docs/newer.md").is_file()
    for name in shown:
        text = project.read(name)
        both = re.sub(r"<<<<<<< \S+\n(.*?)=======\n.*?>>>>>>> \S+\n", r"\1", text, flags=re.DOTALL)
        assert both != text
        project.file(name).write_text(both, encoding="utf-8")
    assert project.yaml("docker-compose.yml")["services"]["mqtt"]["pids_limit"] == 99
    assert "# Ours." in project.read("scripts/deploy.sh")
    project.run("make", "lock", "docs", "lint", "test", env=SOME_TESTS, timeout=600)
    commit(project, "Newer template")
    assert "nothing newer" in project.run("make", "template-check").stdout


@pytest.mark.slow
def test_dependencies_of_both_sides_stay(make: Maker, tmp_path: Path) -> None:
    """The two are neighbours in the lock, so a merge would fail and it is locked again."""
    # Environments of this test alone, because both sides change the lock.
    make.environments = tmp_path / "environments"
    make.environments.mkdir()
    origin = Published(tmp_path / "template")
    project = make(origin)
    edit(project, "pyproject.toml", '    "httpx>=', '    "tomlkit>=0.13",\n    "httpx>=')
    project.run("make", "lock")
    commit(project, "Ours")
    last = '    "structlog>=26.1",'
    origin.change("pyproject.toml", last, f'{last}\n    "toolz>=1",')
    refresh = (sys.executable, "scripts/refresh.py", "--no-upgrade", "--no-prove")
    run(*refresh, cwd=origin.path, timeout=300)
    origin.commit("Next year")
    done = project.run("make", "template-update", env=SOME_TESTS, timeout=600)
    assert_nothing_is_left_open(project)
    assert "uv.lock" in done.stdout
    exported = project.read("base/requirements.txt")
    locked = project.read("uv.lock")
    for name in ("tomlkit", "toolz"):
        assert f'name = "{name}"' in locked
        assert f"\n{name}==" in exported


def test_uncommitted_work_is_not_put_at_risk(make: Maker, tmp_path: Path) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    origin.become_next_years()
    edit(project, "README.md", "\n", "\nOurs.\n")
    before = {name: project.file(name).read_bytes() for name in project.files()}
    done = project.run("make", "template-update", check=False)
    assert done.returncode != 0
    assert "commit or stash" in done.stderr
    assert {name: project.file(name).read_bytes() for name in project.files()} == before


@pytest.mark.parametrize("target", slow_after_first(["template-update", "template-check"]))
def test_without_the_template_nothing_happens(make: Maker, tmp_path: Path, target: str) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    origin.path.rename(tmp_path / "moved")
    done = project.run("make", target, check=False)
    assert done.returncode != 0
    assert "cannot be reached" in done.stderr
    assert str(origin.path) in done.stderr
    assert "Traceback" not in done.stderr
    assert project.run("git", "status", "--porcelain").stdout == ""
    project.file(".cruft.json").unlink()
    commit(project, "Unlinked")
    done = project.run("make", target, check=False)
    assert done.returncode != 0
    assert "there is no .cruft.json" in done.stderr


@pytest.mark.slow
def test_an_answer_is_changed_later_as_documented(
    cookiecutter: Cookiecutter, tmp_path: Path, environments: Path
) -> None:
    origin = Published(tmp_path / "template")
    output = tmp_path / "output"
    done = cookiecutter(output=output, template=origin.address, include_home_assistant=False)
    assert done.returncode == 0, done.stderr
    project = BakedProject(output / SLUG, environments=environments)
    page = project.read("docs/upgrading.md")
    (command,) = re.findall(r"^scripts/uv run --frozen (cruft update .*)$", page, re.MULTILINE)
    assert not project.file("shared/home_assistant.py").exists()
    option = command.replace('"python_version": "3.14"', '"include_home_assistant": "true"')
    assert option != command
    project.uv_run(*shlex.split(option))
    assert project.file("shared/home_assistant.py").exists()
    assert project.file("docs/home-assistant.md").exists()
    assert [name for name in project.files() if name.endswith(".rej")] == []
    answers = project.json(".cruft.json")["context"]["cookiecutter"]
    assert str(answers["include_home_assistant"]).lower() == "true"
    project.run("scripts/lock.sh", "--check")
    commit(project, "With Home Assistant")
    project.uv_run(*shlex.split(command))
    assert project.read(".python-version") == "3.14\n"
    assert "3.14" in project.read("base/Dockerfile")
    assert project.file("shared/home_assistant.py").exists()


@pytest.mark.slow
def test_a_commit_that_the_template_has_no_more_is_told_in_few_words(
    make: Maker, tmp_path: Path
) -> None:
    project = make(Published(tmp_path / "template"))
    record = project.json(".cruft.json") | {"commit": "1" * 40}
    project.file(".cruft.json").write_text(json.dumps(record, indent=2) + "\n")
    commit(project, "Another commit")
    done = project.run("scripts/template-update.sh", check=False)
    assert done.returncode == 2
    assert "history does not hold the commit 1111" in done.stderr
    assert len(done.stderr.splitlines()) < 8
    assert project.run("git", "status", "--porcelain").stdout == ""


@pytest.fixture
def no_make(tmp_path: Path) -> dict[str, str | None]:
    """An environment whose `make` does nothing: linting and testing are the subject elsewhere."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").write_text("#!/bin/sh\n")
    (tmp_path / "bin/make").chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_an_update_shows_the_versions_and_the_notes_between_them(
    make: Maker, tmp_path: Path, no_make: dict[str, str | None]
) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    origin.become_next_years()
    ours = json.loads((origin.path / "cookiecutter.json").read_text())["__template_version"]
    replace_in(origin.path / "cookiecutter.json", f'"{ours}"', '"99.0.0"')
    notes = f"## [99.0.0]\n\n### Migration\n\nDo this.\n\n## [{ours}]\n\nLong ago.\n"
    (origin.path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n{notes}")
    origin.commit("Release")
    origin.git("tag", "v99.0.0")
    check = project.run("scripts/template-update.sh", "--check", check=False)
    assert f"(yours: {ours}, newest release: 99.0.0)" in check.stderr
    shown = project.run("scripts/template-update.sh", env=no_make).stdout
    assert re.search(rf"from {re.escape(ours)} \(\w+\) to 99\.0\.0 \(\w+\):", shown)
    assert ":\n\n## [99.0.0]\n\n### Migration\n\nDo this.\n" in shown
    assert "Unreleased" not in shown
    assert "Long ago" not in shown


@pytest.mark.slow
def test_an_update_whose_tests_fail_shows_the_notes(
    make: Maker, tmp_path: Path, no_make: dict[str, str | None]
) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    origin.become_next_years()
    (tmp_path / "bin/make").write_text('#!/bin/sh\n[ "$1" != test ] || exit 3\n')
    done = project.run("scripts/template-update.sh", env=no_make, check=False)
    assert done.returncode == 3
    assert "Changes of the template from " in done.stdout


@pytest.mark.slow
def test_settings_of_git_do_not_keep_an_update_out(
    make: Maker, tmp_path: Path, no_make: dict[str, str | None]
) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    for name, value in {"apply.whitespace": "error", "diff.context": "0"}.items():
        project.run("git", "config", name, value)
    origin.become_next_years()
    origin.change("docs/patterns.md", "\nNewer.\n", "\nNewer.  \n")
    origin.commit("With a space at the end of a line")
    project.run("scripts/template-update.sh", env=no_make)
    assert "\nNewer.  \n" in project.read("docs/patterns.md")
    assert project.json(".cruft.json")["commit"] == origin.git("rev-parse", "HEAD").strip()


@pytest.mark.parametrize("ignored", slow_after_first([False, True]))
def test_a_file_of_the_users_with_the_name_of_a_new_one_is_a_visible_conflict(
    make: Maker, tmp_path: Path, no_make: dict[str, str | None], ignored: bool
) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    project.file("docs/newer.md").write_text("Ours.\n")
    if ignored:
        project.file(".git/info/exclude").write_text("docs/newer.md\n")
    else:
        commit(project, "Ours")
    origin.become_next_years()
    done = project.run("scripts/template-update.sh", env=no_make, check=False)
    assert done.returncode == 1
    name = "docs/newer.md.rej" if ignored else "docs/newer.md"
    assert f"\n  {name}\n" in done.stdout
    assert "It was not there last year." in project.read(name)
    assert "Ours.\n" in project.read("docs/newer.md")
    assert "Newer." in project.read("docs/patterns.md")


NO_NETWORK = "echo 'fatal: Could not resolve host' >&2; exit 128"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clone", "does", "code", "said"),
    # The first clone brings the program, and cruft makes the second one.
    [
        ("clone -v", 'kill -INT -- "-$(cat "${0%/bin/git}/leader")"', 130, "Interrupted."),
        ("clone --quiet", NO_NETWORK, 2, "Could not resolve host"),
        ("clone -v", NO_NETWORK, 2, "Could not resolve host"),
    ],
    ids=["Ctrl-C", "no network at first", "no network"],
)
def test_an_update_that_is_cut_short_begins_again_the_next_time(
    make: Maker,
    tmp_path: Path,
    no_make: dict[str, str | None],
    clone: str,
    does: str,
    code: int,
    said: str,
) -> None:
    origin = Published(tmp_path / "template")
    project = make(origin)
    origin.become_next_years()
    git = tmp_path / "bin/git"
    git.write_text(
        f'#!/usr/bin/env bash\ncase "$*" in *"{clone}"*) {does} ;; esac\n'
        f'exec {shutil.which("git")} "$@"\n'
    )
    git.chmod(0o755)
    # A process group of its own, as on a terminal. macOS has no setsid command.
    leader = (
        "import os, pathlib, sys; os.setsid();"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()));"
        "os.execv('scripts/template-update.sh', ['scripts/template-update.sh'])"
    )
    group = (sys.executable, "-c", leader, tmp_path / "leader")
    done = project.run(*group, env=no_make, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert "history" not in done.stderr
    assert "Traceback" not in done.stderr
    assert project.run("git", "status", "--porcelain").stdout == ""
    git.unlink()
    project.run("scripts/template-update.sh", env=no_make)
    assert project.file("docs/newer.md").is_file()
