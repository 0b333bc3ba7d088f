"""Refuse a service that cannot be added, with all reasons at once, before a file is written."""

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
# What YAML takes for a truth value or for nothing.
YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
# Folders, compose keys and topic levels of the repository, and the name of a class.
REPOSITORY_WORDS = {"base", "base-service", "coordinator", "errors", "mqtt", "shared"}
RESERVED = WINDOWS_DEVICES | YAML_WORDS | REPOSITORY_WORDS
MAX_NAME, MAX_TITLE, MAX_DESCRIPTION = 40, 60, 100

# scripts/new-service.sh renders elsewhere: it tells for which repository, and the options it got.
REPOSITORY = os.environ.get("NEW_SERVICE_REPOSITORY")
OPTIONS = os.environ.get("NEW_SERVICE_OPTIONS", "").split()


def name_problem(value: str) -> str | None:
    """What stands against a name of a folder, a container and a topic level, or None."""
    if not NAME.fullmatch(value):
        return "must be lower-case letters, digits and single hyphens, and begin with a letter"
    if len(value) > MAX_NAME:
        return f"must have at most {MAX_NAME} characters"
    if value.startswith("x-"):
        return "must not begin with x-, which Compose takes for an extension"
    if value in RESERVED:
        return "is reserved: by Windows, by YAML or for a part of the repository"
    return None


def text_problem(value: str, longest: int) -> str | None:
    """What stands against a free text, or None."""
    if not value.strip():
        return "must not be blank"
    if len(value) > longest:
        return f"must have at most {longest} characters"
    for character in value:
        # They have no portable form in TOML and YAML.
        unprintable = unicodedata.category(character) in {"Cc", "Cn", "Cs", "Zl", "Zp"}
        if unprintable and character not in "\n\t":
            return f"must not contain the character U+{ord(character):04X}"
    return None


def given() -> dict[str, str]:
    """What the user has answered in words of their own, and what they know it by."""
    if not REPOSITORY:
        return {name: name for name in ("service_name", "service_slug", "description")}
    # Both names are the script's NAME.
    known = {"service_slug": "NAME", "description": "--description"}
    return {name: word for name, word in known.items() if word in ["NAME", *OPTIONS]}


def find_problems(answers: dict[str, str]) -> list[tuple[str, str, str]]:
    """Every problem as (answer, rule, example)."""
    checks = [
        ("service_name", text_problem(answers["service_name"], MAX_TITLE), "Soil Moisture"),
        ("service_slug", name_problem(answers["service_slug"]), "soil-moisture"),
        (
            "description",
            text_problem(answers["description"], MAX_DESCRIPTION),
            "Reads the moisture of the soil",
        ),
    ]
    return [
        (name, problem, example) for name, problem, example in checks if problem and name in given()
    ]


def taken(repository: Path, slug: str) -> str | None:
    """What in the repository has the name already, or None."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(repository / "scripts"))
    from wire_service import what_is_taken

    found: str | None = what_is_taken(repository, slug)
    return found


def corrected_command(answers: dict[str, str], examples: dict[str, str]) -> str:
    """The command that adds the service, with the examples in place of the bad answers."""
    asked = ("service_name", "service_slug", "description", "service_type")
    values = {name: examples.get(name, answers[name]) for name in asked}
    if REPOSITORY:
        words = [values["service_slug"], "--type", values["service_type"]]
        if "description" in given():
            words += ["--description", values["description"]]
        return shlex.join(["scripts/new-service.sh", *words])
    template = str(answers.get("_template") or "templates/service")
    # Inside the repository of both templates, which `_template` names as a whole.
    folder = "service-template"
    is_inside = Path(answers.get("_repo_dir", "")).name == folder != Path(template).name
    inside = ["--directory", folder] if is_inside else []
    checkout = ["--checkout", answers["_checkout"]] if answers.get("_checkout") else []
    words = [f"{name}={value}" for name, value in values.items()]
    options = [*inside, *checkout, "-o", "services", "--no-input"]
    return shlex.join(["cookiecutter", template, *options, *words])


def refuse(*lines: str) -> int:
    """Say why, on stderr; returns the exit code."""
    print(*lines, sep="\n", file=sys.stderr)
    return 1


def main() -> int:
    """Report and refuse, or let the generation go on."""
    # cookiecutter has made the folder of the service already, and runs this in it.
    folder = Path.cwd()
    repository = Path(REPOSITORY or folder.parent.parent)
    slug, names = ANSWERS["service_slug"], given()
    if problems := find_problems(ANSWERS):
        return refuse(
            "These answers cannot be used:",
            *(
                f"  - {names[name]}: {rule} (got {ANSWERS[name]!r}; for example {example!r})"
                for name, rule, example in problems
            ),
            "\nNothing was written. With the examples filled in, the command is:\n",
            f"  {corrected_command(ANSWERS, {name: example for name, _, example in problems})}\n",
        )
    if folder.parent.name != "services" or not (repository / "scripts/wire_service.py").is_file():
        return refuse(
            "A service can be added only to a repository made from this template: run this in its"
            " root, with --output-dir services."
        )
    if any(folder.iterdir()):
        return refuse(f"services/{slug} exists already. Nothing was changed.")
    if reason := taken(repository, slug):
        return refuse(f"The name {slug} is taken: {reason}. Nothing was changed.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
