"""Refuse a service that cannot be added, with all reasons at once, before a file is written."""

from __future__ import annotations

import json
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
# Folders, compose keys and topic levels of the repository.
RESERVED = WINDOWS_DEVICES | {"base", "coordinator", "errors", "influxdb", "mqtt", "shared"}
MAX_NAME, MAX_TEXT = 40, 200


def name_problem(value: str) -> str | None:
    """What stands against a name of a folder, a container and a topic level, or None."""
    if not NAME.fullmatch(value):
        return "must be lower-case letters, digits and single hyphens, and begin with a letter"
    if len(value) > MAX_NAME:
        return f"must have at most {MAX_NAME} characters"
    if value in RESERVED:
        return "is a reserved name"
    return None


def text_problem(value: str) -> str | None:
    """What stands against a free text, or None."""
    if not value.strip():
        return "must not be blank"
    if len(value) > MAX_TEXT:
        return f"must have at most {MAX_TEXT} characters"
    for character in value:
        # They have no portable form in TOML and YAML.
        unprintable = unicodedata.category(character) in {"Cc", "Cn", "Cs", "Zl", "Zp"}
        if unprintable and character not in "\n\t":
            return f"must not contain the character U+{ord(character):04X}"
    return None


def find_problems(answers: dict[str, str]) -> list[tuple[str, str, str]]:
    """Every problem as (answer, rule, example)."""
    checks = [
        ("service_name", text_problem(answers["service_name"]), "Soil Moisture"),
        ("service_slug", name_problem(answers["service_slug"]), "soil-moisture"),
        ("description", text_problem(answers["description"]), "Reads the moisture of the soil"),
    ]
    return [(name, problem, example) for name, problem, example in checks if problem]


def taken(repository: Path, slug: str) -> str | None:
    """What in the repository has the name already, or None."""
    sys.path.insert(0, str(repository / "scripts"))
    from wire_service import what_is_taken

    found: str | None = what_is_taken(repository, slug)
    return found


def main() -> int:
    """Report and refuse, or let the generation go on."""
    # cookiecutter has made the folder of the service already, and runs this in it.
    folder = Path.cwd()
    repository = folder.parent.parent
    slug = ANSWERS["service_slug"]
    problems = find_problems(ANSWERS)
    if problems:
        print("These answers cannot be used:", file=sys.stderr)
        for name, rule, example in problems:
            got = ANSWERS[name]
            print(f"  - {name}: {rule} (got {got!r}; for example {example!r})", file=sys.stderr)
        answers = {
            name: ANSWERS[name]
            for name in ("service_name", "service_slug", "description", "service_type")
        }
        answers |= {name: example for name, _, example in problems}
        words = " ".join(shlex.quote(f"{name}={value}") for name, value in answers.items())
        template = shlex.quote(str(ANSWERS.get("_template") or "templates/service"))
        print(
            "\nNothing was written. With the examples filled in, the command is:\n", file=sys.stderr
        )
        print(f"  cookiecutter {template} -o services --no-input {words}\n", file=sys.stderr)
        return 1
    if folder.parent.name != "services" or not (repository / "scripts/wire_service.py").is_file():
        print(
            "A service can be added only to a repository made from this template: run this in its"
            " root, with --output-dir services.",
            file=sys.stderr,
        )
        return 1
    if any(folder.iterdir()):
        print(f"services/{slug} exists already. Nothing was changed.", file=sys.stderr)
        return 1
    if reason := taken(repository, slug):
        print(f"The name {slug} is taken: {reason}. Nothing was changed.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
