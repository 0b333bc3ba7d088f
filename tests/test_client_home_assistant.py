"""The client of generated repositories with a real Home Assistant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Bake
from tests.home_assistant import HomeAssistant
from tests.test_library import add_library_tests
from tests.tools import needs

HELPERS = "input_boolean:\n  lamp:\ninput_button:\n  bell:\ninput_text:\n  note:\n    max: 100\n"


@pytest.mark.slow
@pytest.mark.real
@needs("home-assistant")
def test_client_fits_a_real_home_assistant(bake_copy: Bake, tmp_path: Path) -> None:
    hass = HomeAssistant(tmp_path, HELPERS)
    project = bake_copy(first_service_type="http-api")
    add_library_tests(project)
    options = ("-p", "no:cacheprovider", "-m", "home_assistant")
    variables: dict[str, str | None] = {"HA_LAB_URL": hass.url, "HA_LAB_TOKEN": hass.token}
    hass.start()
    try:
        done = project.uv_run("pytest", "tests/library", *options, env=variables)
    finally:
        hass.stop()
    assert "2 passed" in done.stdout
