"""Reject a service that cannot be added, with all reasons at once, before a file is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import unicodedata
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10)
}
RESERVED = {
    "is reserved by Windows, for a device": WINDOWS_DEVICES,
    "is not text in YAML": {"y", "n", "yes", "no", "on", "off", "true", "false", "null"},
    "is used by the repository, for a directory, a package group, a topic or a class": {
        *("base", "base-service", "coordinator", "debug", "dev", "errors", "http-api"),
        *("mqtt", "shared"),
    },
}
MAX_NAME, MAX_TITLE, MAX_DESCRIPTION = 40, 60, 100

# scripts/new-service.sh renders elsewhere and names its repository here.
# scripts/rename-service.sh names the service to rename as well.
REPOSITORY = os.environ.get("SERVICE_REPOSITORY")
OLD_NAME = os.environ.get("SERVICE_OLD_NAME")


def name_problem(value: str) -> str | None:
    """Return why a name does not fit a directory, a container and a topic level, or None."""
    if not NAME.fullmatch(value):
        return "must be lower-case letters, digits and single hyphens, and begin with a letter"
    if len(value) > MAX_NAME:
        return f"must have at most {MAX_NAME} characters"
    if value.startswith("x-"):
        return "must not begin with x-, which Compose takes for an extension"
    return next((rule for rule, names in RESERVED.items() if value in names), None)


def text_problem(value: str, longest: int) -> str | None:
    """Return the rule that a text breaks, or None."""
    if not value.strip():
        return "must not be blank"
    if len(value) > longest:
        return f"must have at most {longest} characters"
    for character in value:
        # These characters have no portable form in TOML and YAML.
        unprintable = unicodedata.category(character) in {"Cc", "Cn", "Cs", "Zl", "Zp"}
        if unprintable and character not in "\n\t":
            return f"must not contain the character U+{ord(character):04X}"
    return None


def find_problems(answers: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return every problem as (answer, rule, example)."""
    title = text_problem(answers["service_name"], MAX_TITLE)
    description = text_problem(answers["description"], MAX_DESCRIPTION)
    checks = [
        # The script has one NAME, which is both.
        ("service_name", None if REPOSITORY else title, "Soil Moisture"),
        ("service_slug", name_problem(answers["service_slug"]), "soil-moisture"),
        ("description", description, "Reads the moisture of the soil"),
    ]
    return [(name, problem, example) for name, problem, example in checks if problem]


def corrected_command(answers: dict[str, str], examples: dict[str, str]) -> str:
    """Return the command to run, with the examples in place of the bad answers."""
    asked = ("service_name", "service_slug", "description", "service_type")
    values = {name: examples.get(name, answers[name]) for name in asked}
    if OLD_NAME:
        return shlex.join(["scripts/rename-service.sh", OLD_NAME, values["service_slug"]])
    if REPOSITORY:
        words = ["scripts/new-service.sh", values["service_slug"], "--type", values["service_type"]]
        # Its default is made from the name.
        if not answers["description"].startswith(f"{answers['service_name']}, a service"):
            words += ["--description", values["description"]]
        return shlex.join(words)
    template = str(answers.get("_template") or "templates/service")
    # `_template` names the repository, and `_repo_dir` the directory of this template in it. It is
    # `service-template` when cookiecutter takes it from the repository of the templates.
    directory = "service-template"
    is_inside = Path(answers.get("_repo_dir", "")).name == directory != Path(template).name
    inside = ["--directory", directory] if is_inside else []
    checkout = ["--checkout", answers["_checkout"]] if answers.get("_checkout") else []
    words = [f"{name}={value}" for name, value in values.items()]
    options = [*inside, *checkout, "-o", "services", "--no-input"]
    return shlex.join(["cookiecutter", template, *options, *words])


def find_refusal() -> list[str]:
    """Return the lines that say why nothing can be rendered, none when all is well."""
    if problems := find_problems(ANSWERS):
        name = "NEW" if OLD_NAME else "NAME"
        names = {"service_slug": name, "description": "--description"} if REPOSITORY else {}
        return [
            "These answers are not valid:",
            *(
                f"  - {names.get(answer, answer)}: {rule}"
                f" (got {ANSWERS[answer]!r}, for example {example!r})"
                for answer, rule, example in problems
            ),
            "\nNothing was written. With the examples filled in, the command is:\n",
            f"  {corrected_command(ANSWERS, {name: example for name, _, example in problems})}\n",
        ]
    # cookiecutter has made the directory of the service already, and runs this in it.
    directory = Path.cwd()
    repository = directory.parent.parent
    if REPOSITORY:
        return []
    if directory.parent.name != "services" or not (repository / "scripts/services.py").is_file():
        return [
            "A service can be added only to a repository made from this template: run this in its"
            " root, with --output-dir services."
        ]
    if any(directory.iterdir()):
        return [f"services/{directory.name} exists already. Nothing was changed."]
    return []


def main() -> int:
    """Print the reasons, or let the generation go on."""
    reasons = find_refusal()
    if reasons:
        print(*reasons, sep="\n", file=sys.stderr)
    return int(bool(reasons))


if __name__ == "__main__":
    raise SystemExit(main())
