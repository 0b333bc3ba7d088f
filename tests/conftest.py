"""Fixtures: generated repositories, each set of answers once, in an isolated environment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from filelock import FileLock

from tests.baked import BakedProject, publish, run
from tests.combinations import DEFAULTS
from tests.tools import require

# They run in a generated repository: see test_library.py.
collect_ignore = ["library"]


class Bake(Protocol):
    def __call__(self, **answers: Any) -> BakedProject: ...


class Cookiecutter(Protocol):
    def __call__(
        self,
        *arguments: str,
        output: Path,
        template: Path | str = ...,
        env: Mapping[str, str | None] | None = ...,
        stdin: str = ...,
        **answers: Any,
    ) -> subprocess.CompletedProcess[str]: ...


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        require(*marker.args)
    if item.get_closest_marker("docker"):
        require("docker")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_TOOLS=1 a skip for whatever reason is a failure."""
    report = yield
    if report.skipped and os.environ.get("REQUIRE_TOOLS") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, and REQUIRE_TOOLS=1 allows none: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the time that each file took, setup included, added up over all processes."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("seconds by file")
    for name, total in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{total:7.1f}  {name}")


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one directory for all workers of a parallel run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home, a git identity and a cookiecutter configuration that are nobody's."""
    # A suite that runs in the background may ignore them, and so would all that it starts.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Test Author\n\temail = author@example.org\n"
        "[init]\n\tdefaultBranch = main\n[commit]\n\tgpgSign = false\n"
        "[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n"
        # No repository of a test outlives a loss of power.
        "[core]\n\tfsync = none\n"
    )
    config = home / "cookiecutter.yaml"
    config.write_text(
        f"cookiecutters_dir: {home / 'cookiecutters'}\nreplay_dir: {home / 'replay'}\n"
    )
    real_home = Path("~").expanduser()
    keep = {
        "UV_CACHE_DIR": real_home / ".cache/uv",
        "PYENV_ROOT": real_home / ".pyenv",
        "UV_PYTHON_INSTALL_DIR": real_home / ".local/share/uv/python",
        "DOCKER_CONFIG": real_home / ".docker",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, path in keep.items():
            patch.setenv(name, os.environ.get(name, str(path)))
        patch.setenv("HOME", str(home))
        if "UV" in os.environ:
            # The one that runs this suite, for machines where it is not on PATH.
            (home / "bin").mkdir()
            (home / "bin/uv").symlink_to(os.environ["UV"])
            patch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("COOKIECUTTER_CONFIG", str(config))
        # `git status` would write to a shared repository while another process copies it.
        patch.setenv("GIT_OPTIONAL_LOCKS", "0")
        patch.setenv("UV_PYTHON_DOWNLOADS", "never")
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        # One for all repositories of this process: mypy takes half a minute without it.
        patch.setenv("MYPY_CACHE_DIR", str(home / "mypy"))
        for name in list(os.environ):
            if name.startswith(
                ("SOPS_", "XDG_", "COMPOSE_", "MQTT_", "GIT_AUTHOR", "GIT_COMMITTER")
            ):
                patch.delenv(name)
        # Variables of `make test ARGS=...` would reach the Makefiles of generated repositories.
        for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
            patch.delenv(name, raising=False)
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "UV_PROJECT_ENVIRONMENT"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def environments(shared_tmp: Path) -> Path:
    """The uv environments of generated repositories, one per Python version and lock.

    A test that runs pytest passes its own on in TEST_ENVIRONMENTS.
    """
    path = Path(os.environ.get("TEST_ENVIRONMENTS", shared_tmp / "environments"))
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def template(shared_tmp: Path, isolated_environment: None) -> Path:
    """The template as this work tree has it, in a git repository with a remote: as users get it."""
    del isolated_environment
    path = shared_tmp / "template"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            publish(path)
    return path


@pytest.fixture(scope="session")
def bake(cookies_session: Any, shared_tmp: Path, environments: Path, template: Path) -> Bake:
    """Make (once for a set of answers, whatever the worker) a repository that is only looked at."""
    index = shared_tmp / "bakes"
    index.mkdir(exist_ok=True)

    def factory(**answers: Any) -> BakedProject:
        changed = {name: value for name, value in answers.items() if value != DEFAULTS.get(name)}
        text = json.dumps(changed, sort_keys=True)
        entry = index / hashlib.sha256(text.encode()).hexdigest()[:16]
        with FileLock(f"{entry}.lock"):
            if not entry.exists():
                result = cookies_session.bake(extra_context=answers, template=str(template))
                if result.exception is not None:
                    raise AssertionError(f"not generated with {answers}") from result.exception
                entry.write_text(str(result.project_path))
        return BakedProject(Path(entry.read_text()), answers, environments)

    return factory


@pytest.fixture
def bake_copy(bake: Bake, tmp_path: Path) -> Bake:
    """Like `bake`, but the repository is the test's own and may be changed."""

    def factory(**answers: Any) -> BakedProject:
        original = bake(**answers)
        parent = tmp_path / "copies"
        parent.mkdir(exist_ok=True)
        target = parent / str(len(list(parent.iterdir()))) / original.path.name
        shutil.copytree(original.path, target, symlinks=True)
        return BakedProject(target, answers, original.environments)

    return factory


@pytest.fixture
def cookiecutter(tmp_path: Path, template: Path) -> Cookiecutter:
    """Run `cookiecutter --no-input` as a process and return it, whatever the outcome."""

    def factory(
        *arguments: str,
        output: Path,
        template: Path | str = template,
        env: Mapping[str, str | None] | None = None,
        stdin: str = "",
        **answers: Any,
    ) -> subprocess.CompletedProcess[str]:
        return run(
            *(sys.executable, "-m", "cookiecutter", "--no-input", *arguments),
            *("--output-dir", output, template),
            *(f"{name}={value}" for name, value in answers.items()),
            cwd=tmp_path,
            env=env,
            check=False,
            stdin=stdin,
        )

    return factory
