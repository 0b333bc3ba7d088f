"""Faults planted on purpose: for each, the test that is there to find it has to fail.

A fault in FAULTS is planted in a copy of this repository, and a template test has to notice.
A fault in GENERATED_FAULTS is planted in a generated repository, and a test of that has to.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.baked import TEMPLATE, publish, run
from tests.conftest import Bake

pytestmark = pytest.mark.real

GENERATED = TEMPLATE.name


class Fault(NamedTuple):
    """`old` stands in `file` (all of it is replaced); `test` is what pytest runs."""

    file: str
    old: str
    new: str
    test: str
    is_pattern: bool = False


FAULTS = {
    "a hook that calls a failed step done": Fault(
        "hooks/post_gen_project.py",
        "if result.returncode == 0:",
        "if True:",
        "tests/test_hooks.py::test_what_becomes_of_a_step",
    ),
    "a hook that fails with its steps": Fault(
        "hooks/post_gen_project.py",
        "except Exception as error:",
        "except ZeroDivisionError as error:",
        "tests/test_hooks.py::test_what_becomes_of_a_step",
    ),
    "a hook that sets up keys under cruft": Fault(
        "hooks/post_gen_project.py",
        'if "_output_dir" in ANSWERS:',
        "if True:",
        "tests/test_hooks.py::test_under_cruft_only_the_first_service_is_made",
    ),
    "a hook that cannot print is fatal": Fault(
        "hooks/post_gen_project.py",
        ', "backslashreplace")',
        ")",
        "tests/test_hooks.py::test_a_terminal_that_cannot_print_the_path_loses_nothing",
    ),
    "a topic prefix with wildcards": Fault(
        "hooks/pre_gen_project.py",
        'TOPIC = re.compile(r"[A-Za-z0-9_-]+',
        'TOPIC = re.compile(r"[A-Za-z0-9_#-]+',
        "tests/test_hooks.py::test_bad_answer_is_refused_by_name_rule_and_example",
    ),
    "a backslash that is not escaped": Fault(
        "cookiecutter.json",
        r"\"{{ cookiecutter.description | replace('\\\\', '\\\\\\\\') |",
        r"\"{{ cookiecutter.description |",
        "tests/test_hostile.py::test_every_trap_in_every_answer_at_once",
    ),
    "a description that changes the document": Fault(
        f"{GENERATED}/README.md",
        '**{{ cookiecutter.description.split() | join(" ") | replace("*", "\\\\*") }}**',
        "{{ cookiecutter.description }}",
        "tests/test_hostile.py::test_free_text_is_refused_or_comes_back_equal",
    ),
    "an option that leaves a trace": Fault(
        f"{GENERATED}/shared/config.py",
        "{% if cookiecutter.include_influxdb %}",
        "{% if true %}",
        "tests/test_structure.py::test_an_option_that_is_off_leaves_no_trace",
    ),
    "a variable that nobody uses": Fault(
        "cookiecutter.json",
        '"first_service":',
        '"__unused": "",\n  "first_service":',
        "tests/test_structure.py::test_every_variable_is_defined_and_used",
    ),
    "a secret that git does not ignore": Fault(
        f"{GENERATED}/.gitignore",
        "\n.env\n",
        "\n",
        "tests/test_structure.py::test_ignored_files_are_the_private_ones",
    ),
    "shared code that a container can change": Fault(
        "service-template/{{cookiecutter.service_slug}}/wiring/compose.yml",
        "- ./shared:/app/shared:ro",
        "- ./shared:/app/shared",
        "tests/test_structure.py::test_containers_are_locked_down",
    ),
    "containers that can be written": Fault(
        f"{GENERATED}/docker-compose.yml",
        "  read_only: true\n",
        "",
        "tests/test_structure.py::test_containers_are_locked_down",
    ),
    "a service that may start any number of processes": Fault(
        f"{GENERATED}/docker-compose.yml",
        "  pids_limit: 128\n",
        "",
        "tests/test_structure.py::test_containers_are_locked_down",
    ),
    "packages that nobody has checked": Fault(
        "service-template/{{cookiecutter.service_slug}}/Dockerfile",
        " --require-hashes",
        "",
        "tests/test_structure.py::test_containers_are_locked_down",
    ),
    "an action by its tag": Fault(
        f"{GENERATED}/.github/workflows/ci.yml",
        r"@[0-9a-f]{40} # (v\d+)",
        r"@\1 # \1",
        "tests/test_structure.py::test_actions_are_pinned_and_may_do_little",
        is_pattern=True,
    ),
    "a description that is taken for a template": Fault(
        f"{GENERATED}/scripts/new-service.sh",
        "description=${description//\\{/$brace}",
        "description=$description",
        "tests/test_hostile.py::test_the_description_of_a_new_service_is_text",
    ),
    "a compose file that is not proved": Fault(
        f"{GENERATED}/scripts/compose_services.py",
        "if load(text) == expected:",
        "if True:",
        "tests/test_compose_services.py",
    ),
    "a block of the user's that is taken out": Fault(
        f"{GENERATED}/scripts/wire_service.py",
        ', and stays")\n            return text\n',
        ', and stays")\n',
        "tests/test_add_service.py::test_a_block_of_ones_own_stays",
    ),
    "an interrupted addition that stays": Fault(
        f"{GENERATED}/scripts/new-service.sh",
        "trap clean_up EXIT",
        "trap 'rm -rf \"$scratch\"' EXIT",
        "tests/test_add_service.py::test_when_one_process_is_ended_all_is_as_before_and_said",
    ),
    "data that is deleted without Docker": Fault(
        f"{GENERATED}/scripts/remove-service.sh",
        "if $delete_data && ! $dry_run && ",
        "if false && ",
        "tests/test_add_service.py::test_data_is_not_deleted_without_docker",
    ),
    "a guide that names a file that is not there": Fault(
        f"{GENERATED}/docs/ARCHITECTURE_GUIDELINES.md",
        "`shared/state.py`",
        "`shared/states.py`",
        "tests/test_documents.py::test_every_file_that_a_document_names_exists",
    ),
    "a clock in a rendered file": Fault(
        f"{GENERATED}/README.md",
        "\n## Start\n",
        "\n{{ random_ascii_string(8) }}\n\n## Start\n",
        "tests/test_structure.py::test_same_answers_give_the_same_bytes",
    ),
}

GENERATED_FAULTS = {
    "settings that refuse the variables of other services": Fault(
        "shared/config.py",
        r'extra="ignore",((?:\n.*)*?)\n +dotenv_filtering="only_existing",',
        r'extra="forbid",\1',
        "tests/test_shared/test_config.py",
        is_pattern=True,
    ),
    "a list that is not split": Fault(
        "shared/config.py",
        'value.split(",")',
        'value.split(";")',
        "tests/test_shared/test_config.py",
    ),
    "a memory for ids without an end": Fault(
        "shared/dedup.py",
        "if len(self._entries) > self._max_count:",
        "if False:",
        "tests/test_shared/test_dedup.py",
    ),
    "two messages of one trace that are taken for one": Fault(
        "shared/dedup.py",
        'return f"{trace_id} {hashlib.blake2b(content, digest_size=16).hexdigest()}"',
        "return trace_id",
        "tests/test_shared/test_inbox.py",
    ),
    "a handler that hangs and nobody hears of it": Fault(
        "shared/inbox.py",
        "if seconds >= SLOW_HANDLER_SECONDS and not subscription.found_slow:",
        "if False:",
        "tests/test_shared/test_inbox.py",
    ),
    "a session that ends with the process": Fault(
        "shared/mqtt.py",
        "(not self._session.is_kept or is_shared(name))",
        "True",
        "tests/test_shared/test_mqtt_faults.py",
    ),
    "a dead letter for a dead letter": Fault(
        "shared/mqtt.py",
        'if message.topic.startswith(f"{self._prefix}/errors/"):',
        "if False:",
        "tests/test_shared/test_mqtt.py",
    ),
    "a message that is lost when its handler fails": Fault(
        "shared/mqtt.py",
        "topic,\n                    encode(self._dead_letter(",
        "'nowhere',\n                    encode(self._dead_letter(",
        "tests/test_shared/test_mqtt.py",
    ),
    "subscriptions that a new connection does not renew": Fault(
        "shared/mqtt.py",
        "filters = self._inbox.filters()\n",
        "filters = self._inbox.filters()[: 1 if self._opening else None]\n",
        "tests/test_shared/test_mqtt_faults.py",
    ),
    "a last will that late subscribers miss": Fault(
        "shared/mqtt_link.py",
        "client.will_set(*will, qos=1, retain=True)",
        "client.will_set(*will, qos=1)",
        "tests/test_shared/test_service_process.py",
    ),
    "a crash with exit code 0": Fault(
        "shared/service.py",
        '        service.logger.exception("service_crashed")\n        return 1',
        '        service.logger.exception("service_crashed")\n        return 0',
        "tests/test_shared/test_service.py tests/test_shared/test_service_process.py",
    ),
    "a failed task that nobody hears of": Fault(
        "shared/service.py",
        "        if error is not None:\n",
        "        if False:\n",
        "tests/test_shared/test_service.py",
    ),
    "a sick service that says it is well": Fault(
        "shared/health.py",
        "if not self.status(link).healthy:",
        "if False:",
        "tests/test_shared/test_health.py",
    ),
    "a command without an answer": Fault(
        "shared/commands.py",
        "self._answers.add(key, answer)\n        await self._respond(command, answer)",
        "self._answers.add(key, answer)",
        "tests/test_shared/test_commands.py",
    ),
    "a file that is seen half written": Fault(
        "shared/files.py",
        "        temporary.replace(path)\n",
        "        path.write_bytes(data)\n        temporary.unlink()\n",
        "tests/test_shared/test_files.py",
    ),
    "a corrupt state that stops the service": Fault(
        "shared/state.py",
        "except (ValueError, RecursionError) as error:",
        "except RecursionError as error:",
        "tests/test_shared/test_state.py",
    ),
    "retries of what cannot get better": Fault(
        "shared/retry.py",
        "on=exceptions,",
        "on=Exception,",
        "tests/test_shared/test_retry.py",
    ),
    "a token in the log": Fault(
        "shared/redaction.py",
        "return REDACTED",
        "return item",
        "tests/test_shared/test_redaction.py",
    ),
    "a service that forgets its state at a restart": Fault(
        "services/example-service/main.py",
        "self._state.load(Progress)",
        "Progress()",
        "tests/test_example_service.py",
    ),
}


def plant(fault: Fault, root: Path) -> None:
    path = root / fault.file
    text = path.read_text(encoding="utf-8")
    if fault.is_pattern:
        faulty = re.sub(fault.old, fault.new, text)
    else:
        faulty = text.replace(fault.old, fault.new)
    assert faulty != text, f"{fault.file} has changed: this fault needs new words"
    path.write_text(faulty, encoding="utf-8")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_template_test_notices(fault: Fault, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    publish(copy)
    plant(fault, copy)
    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"),
        *(f"--basetemp={tmp_path / 'inner'}", fault.test),
        cwd=copy,
        check=False,
    )
    assert_failed(done)


@pytest.mark.parametrize("fault", GENERATED_FAULTS.values(), ids=GENERATED_FAULTS)
def test_a_generated_test_notices(fault: Fault, bake_copy: Bake) -> None:
    project = bake_copy()
    plant(fault, project.path)
    done = project.uv_run(
        "pytest",
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *fault.test.split(),
        check=False,
    )
    assert_failed(done)


def assert_failed(done: subprocess.CompletedProcess[str]) -> None:
    """One test failed: nothing else that can go wrong with a run of pytest counts."""
    shown = done.stdout + done.stderr
    assert done.returncode == 1, shown
    assert "1 failed" in done.stdout, shown
