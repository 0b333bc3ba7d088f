"""Write templates/documents/, the documents of a repository with a first service.

    make documents

A generation runs without network and without pydantic, so it renders these files instead. They come
from repositories with placeholders as names, which this program replaces by Jinja expressions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cli import make_parser
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ROOT / "templates" / "documents"
FILES = ("docs/topics.md", "docs/asyncapi.json", ".env.example")
SERVICE = "placeholder-service"
ANSWERS = {
    "first_service": SERVICE,
    "topic_prefix": "placeholder-prefix",
    "project_slug": "placeholder-project",
    "include_home_assistant": True,
    "include_influxdb": True,
}
VARIABLE = SERVICE.replace("-", "_").upper()
EXPRESSIONS = {
    VARIABLE: "{{ cookiecutter.first_service | replace('-', '_') | upper }}",
    SERVICE: "{{ cookiecutter.first_service }}",
    "placeholder-prefix": "{{ cookiecutter.topic_prefix }}",
    "placeholder-project": "{{ cookiecutter.project_slug }}",
}
# Headings of .env.example that only some repositories contain.
OPTIONAL_BLOCKS = {
    "Home Assistant": "include_home_assistant",
    "InfluxDB": "include_influxdb",
}


def template_file(service_type: str, name: str) -> Path:
    """The file that the repository template includes for `name`."""
    return DOCUMENTS / service_type / Path(name).name.removeprefix(".")


def render(template: Path, output: Path, answers: Mapping[str, object]) -> Path:
    """Render a template without its hooks."""
    path = cookiecutter(
        str(template),
        no_input=True,
        output_dir=str(output),
        accept_hooks=False,
        extra_context=answers,
    )
    return Path(path)


def generate(service_type: str, folder: Path) -> dict[str, str]:
    """Return the documents of a repository with one service of a type, by their path."""
    answers = {**ANSWERS, "first_service_type": service_type}
    repository = render(ROOT, folder / service_type, answers)
    service = {"service_name": SERVICE, "service_slug": SERVICE, "service_type": service_type}
    render(ROOT / "service-template", repository / "services", service)
    done = subprocess.run(
        [
            *(str(repository / "scripts/uv"), "run", "--quiet", "--frozen", "--no-default-groups"),
            *("python", "scripts/topics.py"),
        ],
        cwd=repository,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder / "environment")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"scripts/topics.py: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return {name: (repository / name).read_text(encoding="utf-8") for name in FILES}


def as_template(name: str, text: str) -> str:
    """Return a document with Jinja expressions in place of the names of one repository."""
    if found := re.search(r"{[{%#]", text):
        sys.exit(f"{name} contains {found[0]}, which Jinja would take for its own")
    for heading, answer in OPTIONAL_BLOCKS.items():
        block = rf"(?m)^# --- {heading} ---\n(?:.*\n)*?(?=# --- |\Z)"
        text = re.sub(block, rf"{{% if cookiecutter.{answer} %}}\n\g<0>{{% endif %}}\n", text)
    for placeholder, expression in EXPRESSIONS.items():
        text = text.replace(placeholder, expression)
    return text


def refresh_documents() -> None:
    """Write the documents of all types that the first service may have."""
    prompts = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for service_type in prompts["first_service_type"]:
            for name in FILES:
                # The repository template includes it, even before the first run for a new type.
                file = template_file(service_type, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            for name, text in generate(service_type, Path(folder)).items():
                template_file(service_type, name).write_text(
                    as_template(name, text), encoding="utf-8", newline="\n"
                )


if __name__ == "__main__":
    make_parser(__doc__).parse_args()
    refresh_documents()
