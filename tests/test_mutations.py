"""Faults planted in YAML, shell and hooks: for each, the test that is there to find it must fail.

`make mutate` plants faults in the Python code of the shared library.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.baked import publish, run

pytestmark = [pytest.mark.real, pytest.mark.slow]

GENERATED = "{{cookiecutter.project_slug}}"
LIMITS = "tests/test_compose.py::test_every_container_has_its_limits"
HASHES = "tests/test_structure.py::test_images_are_locked_and_run_as_an_own_user"


class Fault(NamedTuple):
    """Replace `old`, a regular expression, in the files below `places`. Then `test` must fail."""

    places: tuple[str, ...]
    old: str
    new: str
    test: str


FAULTS = {
    # YAML
    "containers that can be written": Fault(
        (GENERATED, "service-template"), r"(?m)^ +read_only: true\n", "", LIMITS
    ),
    "a service that may start any number of processes": Fault(
        (GENERATED, "service-template"), r"(?m)^ +pids_limit: .*\n", "", LIMITS
    ),
    "shared code that a container can change": Fault(
        (GENERATED, "service-template"), r"(/app/shared):ro\b", r"\1", LIMITS
    ),
    "an action by its tag": Fault(
        (f"{GENERATED}/.github/workflows",),
        r"@[0-9a-f]{40} # (v\d+)",
        r"@\1 # \1",
        "tests/test_structure.py::test_actions_are_pinned_and_may_do_little",
    ),
    "a git hook that lets a secret in a directory through": Fault(
        (f"{GENERATED}/.pre-commit-config.yaml",),
        r"files: \(\^\|/\)\(\\\.env",
        r"files: ^(\\.env",
        "tests/test_git_hooks.py::test_an_env_is_refused_in_any_folder",
    ),
    # Dockerfile and .gitignore
    "packages that nobody has checked": Fault(
        (GENERATED, "service-template"), " --require-hashes", "", HASHES
    ),
    "a secret that git does not ignore": Fault(
        (f"{GENERATED}/.gitignore",),
        r"\n\.env\n",
        r"\n",
        "tests/test_structure.py::test_ignored_files_are_the_private_ones",
    ),
    # Shell
    "a new service whose description is a template": Fault(
        (f"{GENERATED}/scripts/services.py",),
        r"text\.replace\(.*?\) for key",
        "text for key",
        "tests/test_hostile.py::test_the_description_of_a_new_service_is_text",
    ),
    # Hooks and answers
    "a hook that fails with its steps": Fault(
        ("hooks/post_gen_project.py",),
        "except Exception as error:",
        "except ZeroDivisionError as error:",
        "tests/test_hooks.py::test_what_becomes_of_a_step",
    ),
    "a hook that sets up keys under cruft": Fault(
        ("hooks/post_gen_project.py",),
        'if "_output_dir" in ANSWERS:',
        "if True:",
        "tests/test_hooks.py::test_under_cruft_only_the_first_service_is_made",
    ),
    "a topic prefix with wildcards": Fault(
        ("hooks/pre_gen_project.py",),
        r"\[A-Za-z0-9_-\]",
        "[A-Za-z0-9_#-]",
        "tests/test_hooks.py::test_bad_answer_is_refused_by_name_rule_and_example",
    ),
    "an option that leaves a trace": Fault(
        (f"{GENERATED}/shared/config.py",),
        r"\{% if cookiecutter\.include_influxdb %\}",
        "{% if true %}",
        "tests/test_structure.py::test_an_option_that_is_off_leaves_no_trace",
    ),
}


def plant(fault: Fault, root: Path) -> None:
    """Replace the words of the fault in every text file below its places."""
    changed = 0
    for place in fault.places:
        path = root / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink() and not file.name.startswith("test_"):
                text = file.read_text(encoding="utf-8")
                faulty, count = re.subn(fault.old, fault.new, text)
                if count:
                    file.write_text(faulty, encoding="utf-8")
                changed += count
    assert changed, f"nothing in {fault.places} matches {fault.old!r}. Update the fault."


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_template_test_notices(fault: Fault, tmp_path: Path, environments: Path) -> None:
    copy = tmp_path / "repository"
    publish(copy)
    plant(fault, copy)
    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"),
        *(f"--basetemp={tmp_path / 'inner'}", fault.test),
        cwd=copy,
        env={"TEST_ENVIRONMENTS": str(environments)},
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 1, shown
    assert "1 failed" in done.stdout, shown
