"""Reject answers that cannot work, all at once, before a file is written.

scripts/new.py imports the rules from here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import unicodedata
from pathlib import Path
from typing import Any

from cookiecutter.prompt import render_variable
from cookiecutter.utils import create_env_with_context

ANSWERS = r"""{{ cookiecutter | tojson }}"""

# The first one that shows `__prompts__` and renders private variables.
OLDEST_COOKIECUTTER = "2.3"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TOPIC = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10)
}
RESERVED_SLUGS = {"is reserved by Windows, for a device": WINDOWS_DEVICES}
RESERVED_SERVICES = {
    **RESERVED_SLUGS,
    "is not text in YAML": {"y", "n", "yes", "no", "on", "off", "true", "false", "null"},
    "is used by the repository, for a directory, a package group, a topic or a class": {
        *("base", "base-service", "coordinator", "debug", "dev", "errors", "http-api"),
        *("influxdb", "mqtt", "shared"),
    },
    "is used by the repository, for a file in tests/": {"patterns"},
}
MAX_SLUG, MAX_SERVICE, MAX_PREFIX, MAX_TEXT = 50, 40, 100, 200


def text_problem(value: str) -> str | None:
    """Return the rule that a free text breaks, or None."""
    if not value.strip():
        return "must not be blank"
    if len(value) > MAX_TEXT:
        return f"must have at most {MAX_TEXT} characters"
    for character in value:
        # Line and paragraph separators, control characters and non-characters have no portable
        # form in TOML and YAML.
        if (
            unicodedata.category(character) in {"Cc", "Cn", "Cs", "Zl", "Zp"}
            and character not in "\n\t"
        ):
            return f"must not contain the character U+{ord(character):04X}"
    return None


def name_problem(value: str, longest: int, reserved: dict[str, set[str]]) -> str | None:
    """Return the rule that the name of a directory, an image or a container breaks, or None."""
    if not NAME.fullmatch(value):
        return "must be lower-case letters, digits and single hyphens, and begin with a letter"
    if len(value) > longest:
        return f"must have at most {longest} characters"
    return next((rule for rule, names in reserved.items() if value in names), None)


def slug_problem(value: str) -> str | None:
    """Return the rule that the name of the repository breaks, or None."""
    return name_problem(value, MAX_SLUG, RESERVED_SLUGS)


def service_problem(value: str) -> str | None:
    """Return the rule that the name of a service breaks, or None."""
    if value.startswith("x-"):
        return "must not begin with x-, which Compose takes for an extension"
    return name_problem(value, MAX_SERVICE, RESERVED_SERVICES)


def topic_problem(value: str) -> str | None:
    """Return the rule that a topic prefix breaks, or None."""
    if not TOPIC.fullmatch(value):
        return "must be letters, digits, hyphens and underscores, in levels split by single slashes"
    if len(value) > MAX_PREFIX:
        return f"must have at most {MAX_PREFIX} characters"
    return None


# Answer: its rule, and an example.
RULES = {
    "project_name": (text_problem, "Greenhouse"),
    "project_slug": (slug_problem, "greenhouse"),
    "description": (text_problem, "Climate control of a greenhouse"),
    "author_name": (text_problem, "Ada Lovelace"),
    "topic_prefix": (topic_problem, "greenhouse"),
    "first_service": (service_problem, "soil-moisture"),
}


def find_problems(answers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return every problem as (answer, rule, example)."""
    return [
        (name, problem, example)
        for name, (check, example) in RULES.items()
        if (problem := check(str(answers[name])))
    ]


def fill(text: str, indent: int = 0) -> str:
    """Return a text in the width of the terminal, indented after its first line."""
    return textwrap.fill(
        text,
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def report(answers: dict[str, Any], problems: list[tuple[str, str, str]]) -> dict[str, str]:
    """Print the problems and return the examples, which replace the bad answers."""
    print("These answers are not valid:", file=sys.stderr)
    for name, rule, example in problems:
        got = str(answers[name])
        line = f"  - {name}: {rule} (got {got!r}; for example {example!r})"
        print(fill(line, indent=4), file=sys.stderr)
    print("\nNothing was written. With the examples filled in, the command is:\n", file=sys.stderr)
    return {name: example for name, _, example in problems}


def words(answers: dict[str, Any], corrections: dict[str, str], template: Path) -> list[str]:
    """Return the answers that are not the defaults of this template, as NAME=ANSWER."""
    file = template / "cookiecutter.json"
    # cruft does not tell where the template is.
    questions = json.loads(file.read_text("utf-8")) if file.is_file() else dict.fromkeys(answers)
    environment = create_env_with_context({"cookiecutter": questions})
    chosen = {}
    for name in (name for name in questions if not name.startswith("_")):
        default = render_variable(environment, questions[name], answers)
        if isinstance(default, list):
            default = default[0]
        if name in corrections or answers[name] != default:
            chosen[name] = corrections.get(name, answers[name])
    return [f"{name}={answer}" for name, answer in chosen.items()]


def template_directory(answers: dict[str, Any]) -> Path:
    """Return where the template is, which cookiecutter names from the directory of its call."""
    return Path(os.environ.get("PWD", "/"), answers.get("_repo_dir", "/"))


def template_problem(template: Path) -> str | None:
    """Return what is wrong with this copy of the template, or None."""
    for carried in template.glob("*cookiecutter.project_slug*/templates/service"):
        if not carried.is_dir():
            problem = (
                f"{template} was copied without symbolic links: {carried.name} in templates/ is"
                " a file. Clone it again:"
            )
            return f"{fill(problem)}\n\n  git clone -c core.symlinks=true URL\n"
    return None


def cookiecutter_problem() -> str | None:
    """Return what is wrong with the version of cookiecutter, or None."""
    version = importlib.metadata.version("cookiecutter")
    found, oldest = (
        [int(part) for part in text.split(".")[:2]] for text in (version, OLDEST_COOKIECUTTER)
    )
    if found >= oldest:
        return None
    problem = (
        f"cookiecutter {version} is too old: this template needs {OLDEST_COOKIECUTTER} or newer."
        " Run a newer one, for example:"
    )
    return f"{fill(problem)}\n\n  uvx cookiecutter URL\n"


def main() -> int:
    """Report and reject, or let the generation go on."""
    answers = json.loads(ANSWERS)
    template = template_directory(answers)
    if problem := cookiecutter_problem() or template_problem(template):
        print(f"{problem}\nNothing was written.", file=sys.stderr)
        return 1
    problems = find_problems(answers)
    if not problems:
        return 0
    corrections = report(answers, problems)
    command = ["cookiecutter", answers.get("_template") or "TEMPLATE", "--no-input"]
    if checkout := answers.get("_checkout"):
        command += ["--checkout", checkout]
    output = answers.get("_output_dir")
    if output and output != os.environ.get("PWD"):
        command += ["--output-dir", output]
    command += words(answers, corrections, template)
    print(f"  {shlex.join(command)}\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
