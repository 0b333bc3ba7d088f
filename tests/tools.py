"""The outside tools that some tests need, and where to find them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

# Places of the tools that tests need: the packages of Debian and of Homebrew, or a command.
SOURCES = {
    "actionlint": "go install github.com/rhysd/actionlint/cmd/actionlint@latest",
    "aedes": "npm install --global aedes-cli",
    "age-keygen": "apt or brew install age",
    "chromium": "apt install chromium, brew install --cask chromium",
    "containerd": "comes with Docker Engine, Linux only",
    "docker": "https://docs.docker.com/get-started/get-docker/, and start it",
    "docker-registry": "apt install docker-registry, Linux only",
    "dockerd": "comes with Docker Engine, Linux only",
    "git": "apt or brew install git",
    "home-assistant": "scripts/uv run --frozen python -m tests.home_assistant",
    "ip": "apt install iproute2, Linux only",
    "iptables": "apt install iptables, Linux only",
    "kubernetes-validate": "scripts/uv tool install kubernetes-validate",
    "mochi": ".ci/run installs it",
    "mosquitto": "apt or brew install mosquitto, and add its sbin directory to PATH",
    "mosquitto_sub": "apt install mosquitto-clients, brew install mosquitto",
    "node": "apt install nodejs, brew install node",
    "npm": "apt install npm, brew install node",
    "nsenter": "apt install util-linux, Linux only",
    "shellcheck": "apt or brew install shellcheck",
    "sops": "go install github.com/getsops/sops/v3/cmd/sops@latest, brew install sops",
    "ssh-keygen": "apt install openssh-client",
    "unshare": "apt install util-linux, Linux only",
}

# tests/home_assistant.py installs it there.
HOME_ASSISTANT = Path(__file__).resolve().parent.parent / ".tools/homeassistant"


def needs(*tools: str) -> pytest.MarkDecorator:
    """Mark a test (or, as `pytestmark`, a module) that runs these tools.

    A tool is the name of a command, `docker` (with a running daemon), `home-assistant`, or an
    interpreter such as `python3.12`. Interpreters of pyenv and uv count even if they are not on
    PATH.
    """
    return pytest.mark.needs(*tools)


def slow_after_first(parameters: Iterable[Any]) -> list[ParameterSet]:
    """Mark all parameters but the first as slow."""
    sets = [each if isinstance(each, ParameterSet) else pytest.param(each) for each in parameters]
    return [
        sets[0],
        *(pytest.param(*each.values, id=each.id, marks=pytest.mark.slow) for each in sets[1:]),
    ]


def require(*tools: str) -> None:
    """Skip the running test for the first missing tool, with the way to get it."""
    for tool in tools:
        if not available(tool):
            source = SOURCES.get(tool, f"scripts/uv python install {tool.removeprefix('python')}")
            pytest.skip(f"needs {tool} ({source})")


@functools.cache
def available(tool: str) -> bool:
    if tool == "docker":
        return _answers("docker", "info")
    if tool == "home-assistant":
        return (HOME_ASSISTANT / "installed").exists()
    if tool.startswith("python3."):
        return find_python(tool.removeprefix("python")) is not None
    return shutil.which(tool) is not None


@functools.cache
def find_python(version: str) -> Path | None:
    """Path of an interpreter of that version (`3.12`), None when the machine has none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path("~/.pyenv").expanduser()))
    managed = Path(
        os.environ.get("UV_PYTHON_INSTALL_DIR", Path("~/.local/share/uv/python").expanduser())
    )
    # Interpreters come first, because uv makes the environment again on each run for pyenv's shim.
    candidates = [
        *pyenv.glob(f"versions/{version}.*/bin/python"),
        shutil.which(f"python{version}"),
        *managed.glob(f"cpython-{version}.*/bin/python{version}"),
    ]
    for candidate in candidates:
        if candidate and _answers(candidate, "-c", _EXPECT_VERSION, version):
            return Path(candidate)
    return None


_EXPECT_VERSION = "import sys; assert sys.argv[1] == '%d.%d' % sys.version_info[:2]"


def _answers(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def path_without(*commands: str, folder: Path) -> str:
    """A PATH with all commands of the present one, except these."""
    folder.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for tool in Path(entry).glob("*"):
            if tool.name not in commands and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    return str(folder)
