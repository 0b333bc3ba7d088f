"""Add, remove and rename services: new-service.sh, remove-service.sh and rename-service.sh call it.

A service is a directory in services/, a test, and one line in each list of included Compose files.
A directory that no list names is harmless, so an interrupted run can be repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dotenv_file
import yaml
from cookiecutter.exceptions import CookiecutterException
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shared.files import atomic_write  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPOSE = "docker-compose.yml"
EXAMPLE = "docker-compose.override.example.yml"
OVERRIDES = ("docker-compose.override.yml", "docker-compose.override.yaml")
SCRATCH = ROOT / ".tools"
TEMPLATE = ROOT / "templates" / "service"


class ServiceError(Exception):
    """The request is rejected, and nothing was changed."""


class Service:
    """The places and spellings of a service's name."""

    def __init__(self, name: str) -> None:
        """Raise ServiceError for a name that leads to another directory."""
        if "/" in name or name.startswith("."):
            message = f"{name!r} is not a valid name: use lower-case letters, digits and hyphens."
            raise ServiceError(message)
        self.name = name
        self.directory = ROOT / "services" / name
        self.test = ROOT / "tests" / f"test_{name.replace('-', '_')}.py"
        self.volume = f"{name.replace('-', '_')}_data"
        self.pattern = f"{re.escape(name)}|{re.escape(self.volume)}"
        self.variables = name.replace("-", "_").upper() + "_"
        words = f"{name.removesuffix('-service')}-service".split("-")
        self.class_name = "".join(word.capitalize() for word in words)

    @property
    def listed(self) -> bool:
        """Whether the production file includes it."""
        return f"services/{self.name}/compose.yml" in includes(ROOT / COMPOSE)


# Compose files


def parse(text: str | bytes, name: str) -> dict[str, Any]:
    """Return the content of a Compose file. Raises ServiceError when it is not valid."""
    try:
        # All scalars are strings, and tags of Compose such as !reset mean nothing.
        model = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # noqa: S506
    except yaml.YAMLError as error:
        message = f"{name} is not valid YAML: {error}"
        raise ServiceError(message) from error
    return model if isinstance(model, dict) else {}


def listed_in(model: dict[str, Any]) -> list[str]:
    """Return the paths of an `include` list, whose entries have a short and a long form."""
    paths: list[str] = []
    for entry in model.get("include") or []:
        path = entry.get("path", []) if isinstance(entry, dict) else entry
        paths += path if isinstance(path, list) else [path]
    return paths


def includes(path: Path) -> list[str]:
    """Return the paths that a Compose file includes."""
    content = path.read_bytes()
    # Most files include nothing, and parsing takes time.
    return listed_in(parse(content, path.name)) if b"include" in content else []


def compose_files() -> list[Path]:
    """Return every Compose file of this directory, with the files that they include."""
    variables = {**dotenv_file.read(ROOT / ".env", warn=False), **os.environ}
    separator = variables.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
    named = (variables.get("COMPOSE_FILE") or COMPOSE).split(separator)
    waiting = [ROOT / name for name in (*named, COMPOSE, EXAMPLE, *OVERRIDES)]
    found: list[Path] = []
    while waiting:
        path = waiting.pop(0)
        if path not in found and path.is_file():
            found.append(path)
            waiting += [path.parent / name for name in includes(path)]
    return found


def others(service: Service) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the Compose files of others that mention the service, with their content."""
    for path in compose_files():
        content = path.read_bytes()
        # Parsing takes time, and most files have nothing to do with the service.
        names = (service.name.encode(), service.volume.encode())
        if service.directory not in path.parents and any(name in content for name in names):
            yield os.path.relpath(path, ROOT), parse(content, path.name)


def check_name_is_free(service: Service, *, has_test: bool = False) -> None:
    """Raise ServiceError when a Compose file or another service's test has the name already."""
    taken = [
        f"{file} has {name} in its {section}"
        for file, model in others(service)
        for section, name in (("services", service.name), ("volumes", service.volume))
        if name in (model.get(section) or {})
    ]
    if service.test.exists() and not has_test:
        taken.append(f"{service.test.relative_to(ROOT)} exists")
    if taken:
        message = f"The name {service.name} is taken: {taken[0]}."
        raise ServiceError(message)


_REFERENCES = (
    "depends_on", "environment", "ipc", "links", "network_mode", "pid", "volumes", "volumes_from",
)  # fmt: skip


def check_nothing_needs(service: Service) -> None:
    """Raise ServiceError when a service in another Compose file refers to this one."""
    needed_by = [
        f"{name} in {file}"
        for file, model in others(service)
        for name, definition in (model.get("services") or {}).items()
        if name == service.name
        or any(_refers(definition[key], service) for key in _REFERENCES if key in definition)
    ]
    if needed_by:
        message = f"{service.name} is still needed by {', '.join(needed_by)}."
        raise ServiceError(message)


def _refers(value: object, service: Service) -> bool:
    if isinstance(value, dict):
        return any(_refers(part, service) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(_refers(part, service) for part in value)
    return bool(re.search(rf"(?<![\w.-])({service.pattern})(?![\w-])", str(value)))


def edit_list(text: str, name: str, *, add: str = "", remove: str = "") -> str:
    """Return a Compose file with a line added to its `include` list, or taken out.

    Every other byte stays. Raises ServiceError when one line cannot do it.
    """
    before = listed_in(parse(text, name))
    is_new = bool(add) and add not in before
    expected = [path for path in before if path != remove] + [add] * is_new
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if "\r\n" in text else "\n"
    if not any(line.startswith("include:") for line in lines):
        lines[:0] = [f"include: []{newline}", newline]
    head = next(at for at, line in enumerate(lines) if line.startswith("include:"))
    end = head + 1
    for at, line in enumerate(lines[end:], end):
        if re.match(r"[^\s#-]", line):
            break
        if re.match(r"\s*[^\s#]", line):
            end = at + 1
    items = lines[head + 1 : end]
    if remove in before:
        items = [line for line in items if line.partition(" #")[0].strip("- \"'\r\n") != remove]
    if is_new:
        indent = items[0].partition("-")[0] if items else "  "
        items.append(f"{indent}- {add}{newline}")
    lines[head] = lines[head].replace("include: []", "include:")
    if not expected:
        lines[head] = lines[head].replace("include:", "include: []")
    lines[head + 1 : end] = items
    result = "".join(lines)
    with contextlib.suppress(ServiceError):
        if listed_in(parse(result, name)) == expected:
            return result
    wanted = f"add {add or 'nothing'}, remove {remove or 'nothing'}"
    message = f"{name}: edit its include list by hand: {wanted}."
    raise ServiceError(message)


def write_lists(*, add: str = "", remove: str = "") -> None:
    """Change all lists, or none when Compose rejects the result or a list cannot be edited."""
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    # The production file comes last, because it tells whether an addition is finished.
    for path in (ROOT / name for name in (EXAMPLE, *OVERRIDES, COMPOSE)):
        if not path.is_file():
            continue
        text = path.read_bytes().decode()
        file = "compose.yml" if path.name == COMPOSE else "compose.dev.yml"
        # An override that includes no service is the user's own in every line.
        if path.name in OVERRIDES and file not in text:
            continue
        before[path] = text
        after[path] = edit_list(
            text,
            path.name,
            add=add and f"services/{add}/{file}",
            remove=remove and f"services/{remove}/{file}",
        )
    for path, text in after.items():
        atomic_write(path, text)
    # An addition breaks nothing, and an older problem is not of this change.
    if remove and (problem := compose_problem()):
        for path, text in before.items():
            atomic_write(path, text)
        if not compose_problem():
            message = f"Nothing was changed, because Compose rejects the result: {problem}"
            raise ServiceError(message)
        for path, text in after.items():
            atomic_write(path, text)


def compose_problem() -> str:
    """Return why Compose rejects the files, or nothing when it accepts them or is missing."""
    if run("docker", "compose", "version").returncode:
        return ""
    own = run("docker", "compose", "config", "--quiet")
    example = run(*("docker", "compose", "-f", COMPOSE, "-f", EXAMPLE, "config", "--quiet"))
    return (own.stderr if own.returncode else example.stderr if example.returncode else "").strip()


# Commands


def add(options: argparse.Namespace) -> None:
    """Render a service, or finish an addition that was interrupted."""
    service = Service(options.name)
    if service.listed:
        message = f"services/{service.name} exists already."
        raise ServiceError(message)
    rendered_test = service.directory / "test_service.py"
    is_new = not service.directory.exists()
    check_name_is_free(service, has_test=not is_new and not rendered_test.exists())
    if is_new:
        with scratch() as folder:
            render(service.name, options.type, options.description, folder).rename(
                service.directory
            )
    if rendered_test.exists():
        rendered_test.rename(service.test)
    try:
        write_documents()
        write_lists(add=service.name)
    except ServiceError:
        if is_new:
            delete_code(service)
        raise
    say(
        f"Added services/{service.name} and {service.test.relative_to(ROOT)}, with one line each in"
    )
    say(f"{COMPOSE} and {EXAMPLE}.")
    say(
        f"Next: make test SERVICE={service.name}, then make run SERVICE={service.name}, or make up."
    )


def delete_code(service: Service) -> None:
    """Delete the directory and the test of a service, and what was generated from its models."""
    service.test.unlink(missing_ok=True)
    if service.directory.is_dir():
        shutil.rmtree(service.directory)
    write_documents()


def render(name: str, kind: str, description: str, folder: Path) -> Path:
    """Render the service template. Raises ServiceError for a name that is not valid."""
    # The user's defaults for cookiecutter must not get in.
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump({"replay_dir": str(folder), "cookiecutters_dir": str(folder)}),
        encoding="utf-8",
    )
    answers = {"service_name": name, "service_slug": name, "service_type": kind}
    answers["_marks"] = str((ROOT / "shared" / "discovery.py").exists())
    if description:
        answers["description"] = description
    # The template's hook has printed what is wrong.
    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)
    os.environ["SERVICE_REPOSITORY"] = str(ROOT)
    try:
        rendered = cookiecutter(
            str(TEMPLATE),
            no_input=True,
            # cookiecutter takes an answer for a Jinja template. These are plain text.
            extra_context={key: text.replace("{", '{{"{"}}') for key, text in answers.items()},
            output_dir=str(folder),
            config_file=str(config),
        )
    except CookiecutterException as error:
        raise ServiceError from error
    return Path(rendered)


def write_documents() -> None:
    """Generate what is made from the models of all services."""
    subprocess.run([sys.executable, "scripts/topics.py"], cwd=ROOT, check=True)


def remove(options: argparse.Namespace) -> None:
    """Take a service out of the lists, and delete its code unless that is to stay."""
    service = Service(options.name)
    if not (service.directory.is_dir() or service.listed or service.test.exists()):
        message = f"There is no service {service.name}."
        raise ServiceError(message)
    check_nothing_needs(service)
    data = f"the volume {service.volume} and .data/{service.name}"
    if not options.yes:
        confirm(service, keep_code=options.keep_code, data=data if options.delete_data else "")
    remove_container(service)
    write_lists(remove=service.name)
    if not options.keep_code:
        delete_code(service)
    clear_retained(service)
    if options.delete_data:
        delete_data(service)
        say(f"Removed {service.name}, {data}.")
    else:
        say(f"Removed {service.name}. The volume {service.volume} keeps its data.")


def remove_container(service: Service) -> None:
    """Remove the container, because a service that runs would publish retained messages again."""
    run("docker", "compose", "rm", "--stop", "--force", service.name)


def clear_retained(service: Service) -> None:
    """Clear what the broker has retained of a service, or say how to do it."""
    import retained  # noqa: PLC0415 - paho and pydantic take time, which adding a service saves

    if problem := retained.clear(service.name):
        say(f"The broker may keep retained messages of {service.name}: {problem}")
        say(f"Clear them with the broker running: {retained.COMMAND} {service.name}")


def confirm(service: Service, *, keep_code: bool, data: str) -> None:
    """Ask on the terminal. Raises ServiceError unless the user agrees."""
    if not sys.stdin.isatty():
        message = "There is no terminal to ask on: add --yes."
        raise ServiceError(message)
    if not keep_code:
        say(f"This deletes services/{service.name} and its test.")
        code = (str(service.directory), str(service.test))
        if run("git", "status", "--porcelain", "--", *code).stdout:
            say("They hold changes that are in no commit.")
    if data:
        say(f"This deletes {data}.")
    if not input(f"Remove {service.name}? [y/N] ").lower().startswith("y"):
        message = "Nothing was changed."
        raise ServiceError(message)


def delete_data(service: Service) -> None:
    """Delete the volumes of a service, and what it wrote on this machine."""
    model = parse(run("docker", "compose", "config").stdout, "docker compose config")
    labels = {"project": model.get("name", ROOT.name), "volume": service.volume}
    filters = [f"--filter=label=com.docker.compose.{key}={word}" for key, word in labels.items()]
    for volume in run("docker", "volume", "ls", "--quiet", *filters).stdout.split():
        run("docker", "volume", "rm", volume)
    shutil.rmtree(ROOT / ".data" / service.name, ignore_errors=True)


def rename(options: argparse.Namespace) -> None:
    """Give a service another name, and say what stays behind."""
    old, new = Service(options.name), Service(options.new_name)
    if not old.directory.is_dir() or not old.listed:
        message = f"There is no service {old.name}."
        raise ServiceError(message)
    if new.directory.exists():
        message = f"services/{new.name} exists already."
        raise ServiceError(message)
    check_name_is_free(new)
    check_nothing_needs(old)
    with scratch() as folder:
        # The template knows which names are valid.
        shutil.rmtree(render(new.name, "poller", "", folder))
        copy = shutil.copytree(old.directory, folder / new.name)
        for path in copy.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                write_renamed(path, path, old, new)
        copy.rename(new.directory)
    if old.test.exists():
        write_renamed(old.test, new.test, old, new)
    remove_container(old)
    try:
        write_lists(add=new.name, remove=old.name)
    except ServiceError:
        delete_code(new)
        raise
    delete_code(old)
    env = ROOT / ".env"
    if env.exists():
        text = re.sub(
            rf"^{old.variables}", new.variables, env.read_text("utf-8"), flags=re.MULTILINE
        )
        atomic_write(env.resolve(), text)
    say(f"Renamed {old.name} to {new.name}. Start it with make up.")
    say(f"The volume {old.volume} stays, since {new.name} starts with a volume of its own.")
    clear_retained(old)
    found = run(
        "git", "grep", "--untracked", "-nw", "-e", old.name, "--", ":!uv.lock", ":!templates"
    )
    if found.stdout:
        say(
            f"These lines still mention {old.name}:",
            f"  {found.stdout.strip()}".replace("\n", "\n  "),
        )


def write_renamed(source: Path, target: Path, old: Service, new: Service) -> None:
    """Write a file with the new name of the service in place of the old one."""
    name = rf"(?<![\w-]){old.name}(?![\w-])"
    if source.suffix == ".py":
        # In quotes, in paths and in titles only, because a module or a variable may have the name.
        name = rf"(?<=[\"'/]){old.name}(?=[\"'/])|(?<= of ){old.name}(?![\w-])"
    text = source.read_bytes().decode()
    for pattern, word in (
        (name, new.name),
        (rf"\b{old.volume}\b", new.volume),
        (rf"\b{old.variables}", new.variables),
        (rf"\b{old.class_name}\b", new.class_name),
    ):
        text = re.sub(pattern, word, text)
    atomic_write(target, text, mode=source.stat().st_mode & 0o777)


# Helpers


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Provide a directory on the file system of services/, to rename from in one step."""
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="service.") as folder:
        yield Path(folder)


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Wait until no other run changes services, and delete what a killed run has left."""
    services = ROOT / "services"
    services.mkdir(exist_ok=True)
    descriptor = os.open(services, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        for folder in SCRATCH.glob("service.*"):
            shutil.rmtree(folder, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository. A missing program counts as exit code 127."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def say(*lines: str) -> None:
    """Print lines for the user."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def main() -> int:
    """Command line; 1 for a request that is rejected, 2 for wrong usage."""
    command, *words = sys.argv[1:]
    parser = argparse.ArgumentParser(prog=f"scripts/{command}-service.sh")
    parser.add_argument("name", metavar="NAME", help="such as soil-moisture")
    if command == "new":
        answers = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
        types = answers["service_type"]
        parser.add_argument("--type", choices=types, default=types[0], help="default: %(default)s")
        parser.add_argument("--description", default="", metavar="TEXT", help="one line")
    elif command == "remove":
        keep = "only take it out of the Compose files, to which new-service.sh can add it again"
        parser.add_argument("--keep-code", action="store_true", help=keep)
        parser.add_argument(
            "--delete-data", action="store_true", help="delete its volume and .data/NAME"
        )
        parser.add_argument("--yes", action="store_true", help="do not ask")
    else:
        parser.add_argument("new_name", metavar="NEW", help="its new name")
    options = parser.parse_args(words)
    try:
        with lock():
            {"new": add, "remove": remove, "rename": rename}[command](options)
    except ServiceError as error:
        if str(error):
            sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
