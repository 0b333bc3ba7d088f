"""Every script of a generated repository explains itself, and does nothing that was not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.baked import TEMPLATE, run
from tests.conftest import Bake

SCRIPTS = sorted(
    path.name for path in TEMPLATE.glob("scripts/*.sh") if not path.name.endswith("lib.sh")
)
TAKES_ANY_ARGUMENT = {"build-base.sh"}


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_shown_and_nothing_done(name: str, option: str, bake: Bake, tmp_path: Path) -> None:
    project = bake()
    before = project.run("git", "status", "--porcelain", "--ignored").stdout
    (tmp_path / "link").symlink_to(project.path)
    done = run(f"link/scripts/{name}", option, cwd=tmp_path)
    assert f"Usage: scripts/{name}" in done.stdout
    assert not any(line.startswith(("#", "set ")) for line in done.stdout.splitlines())
    assert done.stderr == ""
    assert project.run("git", "status", "--porcelain", "--ignored").stdout == before


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in TAKES_ANY_ARGUMENT])
def test_an_unknown_option_is_an_error_with_the_usage(name: str, bake: Bake) -> None:
    project = bake()
    before = project.run("git", "status", "--porcelain", "--ignored").stdout
    done = project.run(f"scripts/{name}", "--nonsense", check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nonsense" in done.stderr or name == "run-service.sh"
    assert f"Usage: scripts/{name}" in done.stderr
    assert project.run("git", "status", "--porcelain", "--ignored").stdout == before
