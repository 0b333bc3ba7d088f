"""The deep tests of the shared library, run in generated repositories."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.baked import ROOT, BakedProject
from tests.combinations import OPTIONS
from tests.conftest import Bake
from tests.tools import needs

pytestmark = pytest.mark.real


def add_library_tests(project: BakedProject) -> None:
    """Copy tests/library into a generated repository, without the tests of clients it lacks."""

    def unused(folder: str, names: list[str]) -> set[str]:
        del folder
        return {"__pycache__"} | {
            name
            for name in names
            for module in ("home_assistant", "influx")
            if name.endswith(f"{module}.py") and not project.file(f"shared/{module}.py").exists()
        }

    shutil.copytree(ROOT / "tests/library", project.file("tests/library"), ignore=unused)


@needs("python3.13", "mosquitto")
@pytest.mark.parametrize("answers", OPTIONS)
def test_library_tests_pass(bake_copy: Bake, answers: dict[str, Any]) -> None:
    project = bake_copy(**answers)
    add_library_tests(project)
    done = project.uv_run(
        "pytest", "-p", "no:cacheprovider", "tests/library", python="3.13", timeout=550
    )
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
