"""The client of generated repositories with a real Home Assistant on this machine.

HA_LAB_DIR is a directory with a file `env`, which has HA_URL and HA_TOKEN of an instance with
`input_boolean.lamp` and `input_text.note`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.test_library import add_library_tests

ENV = Path(os.environ.get("HA_LAB_DIR", "/var/tmp/ha-lab"), "env")


@pytest.mark.real
def test_client_fits_a_real_home_assistant(bake_copy: Bake) -> None:
    if not ENV.exists():
        pytest.skip("needs home-assistant")
    variables: dict[str, str | None] = {}
    for line in ENV.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        variables[name.replace("HA_", "HA_LAB_")] = value
    project = bake_copy(first_service_type="http-api")
    add_library_tests(project)
    options = ("-p", "no:cacheprovider", "-m", "home_assistant")
    done = project.uv_run("pytest", "tests/library", *options, env=variables)
    assert "2 passed" in done.stdout
