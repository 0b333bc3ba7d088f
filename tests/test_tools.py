"""Missing tools skip a test, or fail it where everything has to run. Groups of tests hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.baked import ROOT, run
from tests.tools import SOURCES, find_python

NEEDS_A_TOOL = "tests/test_hooks.py::test_a_read_only_target_is_one_clear_error"


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_a_missing_tool(tmp_path: Path, required: str, outcome: str) -> None:
    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"),
        *(f"--basetemp={tmp_path / 'inner'}", NEEDS_A_TOOL),
        cwd=ROOT,
        env={"PATH": str(tmp_path), "REQUIRE_TOOLS": required},
        check=False,
    )
    assert outcome in done.stdout
    assert "needs unshare (apt install util-linux, Linux only)" in done.stdout


def test_every_tool_has_a_source() -> None:
    marks = "".join(path.read_text() for path in ROOT.glob("tests/*.py"))
    needed = set(re.findall(r'"([^"]+)"', "".join(re.findall(r"\bneeds\(([^)*]+)\)", marks))))
    assert "mosquitto" in needed
    assert {tool for tool in needed if not tool.startswith("python3.")} <= set(SOURCES)


def test_an_interpreter_that_uv_has_installed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = tmp_path / f"cpython-{version}.0-linux/bin/python{version}"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    for name in ("PATH", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert find_python.__wrapped__(version) == interpreter


@pytest.mark.xdist_group("one")
def test_a_group_of_tests_is_honored(request: pytest.FixtureRequest) -> None:
    """Tests that share Docker or a browser must not run at the same time."""
    grouped = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@one") == grouped
