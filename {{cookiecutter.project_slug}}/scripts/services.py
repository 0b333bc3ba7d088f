"""Add, remove and rename services: new-service.sh, remove-service.sh and rename-service.sh call it.

A service is a directory in services/, a test, and one line in each list of included Compose files.
A directory that no list names is harmless, so an interrupted run can be repeated.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from common import ROOT, find_programs, make_parser, read_dotenv, run, say
from cookiecutter.exceptions import CookiecutterException
from cookiecutter.main import cookiecutter

sys.path.insert(0, str(ROOT))

from shared.files import atomic_write

COMPOSE = "docker-compose.yml"
EXAMPLE = "docker-compose.override.example.yml"
OVERRIDES = ("docker-compose.override.yml", "docker-compose.override.yaml")
TEMPLATE = ROOT / "templates" / "service"
# A directory on the file system of services/, to rename from in one step.
SCRATCH = ROOT / ".tools" / "service"
# Generated, or of the library and the template.
NOT_OF_SERVICES = (
    "*.lock", "*requirements.txt", "docs/topics.md", "docs/asyncapi.json", ".env.example",
    "scripts", "shared", "templates", "tests/test_shared",
)  # fmt: skip
# Fields of a Compose service that can name another service or its volume.
REFERENCES = (
    "depends_on", "environment", "ipc", "links", "network_mode", "pid", "volumes", "volumes_from",
)  # fmt: skip


class ServiceError(Exception):
    """The request is rejected, and nothing was changed."""


def reject(message: str) -> NoReturn:
    raise ServiceError(message)


class Service:
    """The places and spellings of a service's name."""

    def __init__(self, name: str) -> None:
        """Raise ServiceError for a name that leads to another directory."""
        if not name or "/" in name or name.startswith("."):
            reject(f"{name!r} is not a valid name: use lower-case letters, digits and hyphens.")
        identifier = name.replace("-", "_")
        self.name = name
        self.directory = ROOT / "services" / name
        self.test = ROOT / "tests" / f"test_{identifier}.py"
        self.requirements = self.directory / "requirements.txt"
        self.volume = f"{identifier}_data"
        self.prefix = f"{identifier.upper()}_"
        words = f"{name.removesuffix('-service')}-service".split("-")
        self.class_name = "".join(word.capitalize() for word in words)

    @property
    def variables(self) -> set[str]:
        """The names of its own settings. A setting of another service may begin with its name."""
        config = self.directory / "config.py"
        text = config.read_text(encoding="utf-8") if config.exists() else ""
        return set(re.findall(rf"[\"']({self.prefix}\w+)[\"']", text))

    @property
    def is_listed(self) -> bool:
        """Whether the production file includes it."""
        production = (ROOT / COMPOSE).read_bytes()
        return f"services/{self.name}/compose.yml" in listed_in(parse(production, COMPOSE))


def reject_unknown(service: Service) -> NoReturn:
    known = ", ".join(find_programs())
    reject(f"Unknown service {service.name}. Known services: {known or 'none'}.")


# Compose files


def parse(text: str | bytes, name: str) -> dict[str, Any]:
    """Return the content of a Compose file. Raises ServiceError when it is not valid."""
    try:
        # All scalars are strings, and tags of Compose such as !reset mean nothing.
        model = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # noqa: S506
    except yaml.YAMLError as error:
        reject(f"{name} is not valid YAML: {error}")
    return model if isinstance(model, dict) else {}


def listed_in(model: dict[str, Any]) -> list[str]:
    """Return the paths of an `include` list, whose entries have a short and a long form."""
    paths: list[str] = []
    for entry in model.get("include") or []:
        path = entry.get("path", []) if isinstance(entry, dict) else entry
        paths += path if isinstance(path, list) else [path]
    return paths


def mentions(service: Service) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the Compose files of others that mention the service, with their content."""
    variables = {**read_dotenv(ROOT / ".env", warn=False), **os.environ}
    loaded = (variables.get("COMPOSE_FILE") or COMPOSE).split(os.pathsep)
    paths = [ROOT / name for name in dict.fromkeys([*loaded, COMPOSE, EXAMPLE, *OVERRIDES])]
    # Parsing takes time, and most files neither include others nor mention the service.
    relevant = re.compile(rf"(?m)^include:|{re.escape(service.name)}|{service.volume}".encode())
    # The list grows by the files that these include.
    for path in paths:
        content = path.read_bytes() if path.is_file() else b""
        if relevant.search(content):
            model = parse(content, path.name)
            included = (path.parent / name for name in listed_in(model))
            paths += [file for file in included if file not in paths]
            if service.directory not in path.parents:
                yield os.path.relpath(path, ROOT), model


def check_name_is_free(service: Service, *, has_test: bool = False) -> None:
    """Raise ServiceError when a Compose file or another service's test has the name already."""
    for file, model in mentions(service):
        for section, name in (("services", service.name), ("volumes", service.volume)):
            if name in (model.get(section) or {}):
                reject(f"The name {service.name} is taken: {file} has {name} in its {section}.")
    if service.test.exists() and not has_test:
        reject(f"The name {service.name} is taken: {service.test.relative_to(ROOT)} exists.")


def check_nothing_needs(service: Service) -> None:
    """Raise ServiceError when a service in another Compose file refers to this one."""
    reference = re.compile(rf"(?<![\w.-])({re.escape(service.name)}|{service.volume})(?![\w-])")
    for file, model in mentions(service):
        for name, definition in (model.get("services") or {}).items():
            named = [definition.get(key) for key in REFERENCES]
            values = json.dumps(named + list_paths(definition))
            if name == service.name or reference.search(values):
                reject(f"{service.name} is still needed by {name} in {file}.")


def list_paths(definition: dict[str, Any]) -> list[Any]:
    """Return the paths in a Compose service whose keys are words of Compose."""
    build, extends = definition.get("build"), definition.get("extends")
    return [
        *(build.values() if isinstance(build, dict) else [build]),
        extends.get("file") if isinstance(extends, dict) else extends,
    ]


def edit_list(path: Path, *, add: str, remove: str) -> str:
    """Return a Compose file with a line added to its `include` list, or taken out.

    Every other byte stays. Raises ServiceError when the list has another form.
    """
    text = path.read_bytes().decode()
    present = set(listed_in(parse(text, path.name)))
    wanted = present - {remove} | {add} - {""}
    text = re.sub(r"(?m)^include: \[\]", "include:", text)
    if remove:
        text = re.sub(rf"(?m)^ *- [\"']?{re.escape(remove)}[\"']?(?: +#.*)?\r?\n", "", text)
    entries = list(re.finditer(r"(?m)^(?:include:|( *)- [\"']?services/\S+\.yml).*\n", text))
    if entries and wanted - present:
        last = entries[-1]
        newline = "\r\n" if last[0].endswith("\r\n") else "\n"
        line = f"{'  ' if last[1] is None else last[1]}- {add}{newline}"
        text = text[: last.end()] + line + text[last.end() :]
    if not wanted:
        text = re.sub("(?m)^include:", "include: []", text)
    with contextlib.suppress(ServiceError):
        if set(listed_in(parse(text, path.name))) == wanted:
            return text
    change = f"add {add or 'nothing'}, remove {remove or 'nothing'}"
    reject(f"{path.name}: edit its include list by hand: {change}.")


def plan_lists(*, add: str = "", remove: str = "") -> dict[Path, str]:
    """Return the files that list services, with their new content."""
    plan = {}
    # The production file comes last, because it shows whether an addition is finished.
    for path in (ROOT / name for name in (EXAMPLE, *OVERRIDES, COMPOSE)):
        file = "compose.yml" if path.name == COMPOSE else "compose.dev.yml"
        # An override that includes no service is the user's own in every line.
        if path.is_file() and (path.name not in OVERRIDES or file.encode() in path.read_bytes()):
            plan[path] = edit_list(
                path,
                add=add and f"services/{add}/{file}",
                remove=remove and f"services/{remove}/{file}",
            )
    return plan


def write_lists(plan: dict[Path, str], *, remove_container_of: Service) -> None:
    """Write the lists and remove the container, or raise ServiceError and change nothing.

    A service that runs would publish its retained messages again.
    """
    before = {path: path.read_bytes() for path in plan}
    model = run("docker", "compose", "config").stdout
    # An older problem is not of this change.
    was_valid = not compose_problem()
    for path, text in plan.items():
        atomic_write(path, text)
    if was_valid and (problem := compose_problem()):
        for path, content in before.items():
            atomic_write(path, content)
        reject(f"Nothing was changed, because Compose rejects the result: {problem}")
    removal = ("rm", "--stop", "--force", remove_container_of.name)
    run("docker", "compose", "--file", "-", *removal, stdin=model)


def compose_problem() -> str:
    """Return why Compose rejects the files, or nothing when it accepts them or is missing."""
    if run("docker", "compose", "version").returncode == 0:
        for files in ((), ("-f", COMPOSE, "-f", EXAMPLE)):
            result = run("docker", "compose", *files, "config", "--quiet")
            if result.returncode:
                return result.stderr.strip()
    return ""


# Commands


def add(options: argparse.Namespace) -> None:
    """Render a service, or finish an addition that was interrupted."""
    service = Service(options.name)
    if service.is_listed:
        reject(f"services/{service.name} exists already.")
    is_new = not service.directory.exists()
    rendered_test = service.directory / "test_service.py"
    check_name_is_free(service, has_test=not is_new and not rendered_test.exists())
    lists = plan_lists(add=service.name)
    if is_new:
        render(service.name, options.type, options.description).rename(service.directory)
    if rendered_test.exists():
        rendered_test.rename(service.test)
    write_documents()
    for path, text in lists.items():
        atomic_write(path, text)
    password = f"{service.prefix}PASSWORD"
    values = read_dotenv(ROOT / ".env", warn=False)
    needs_password = options.type == "fleet" and not values.get(password)
    say(
        f"Added services/{service.name} and {service.test.relative_to(ROOT)},",
        f"with one line each in {COMPOSE} and {EXAMPLE}.",
        *([f"Set {password} in .env, which its container needs."] if needs_password else []),
        f"Next: make test SERVICE={service.name}, make run SERVICE={service.name}, or make up.",
    )


def render(name: str, kind: str, description: str = "") -> Path:
    """Render the service template. Raises ServiceError for a name that is not valid."""
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
            output_dir=str(SCRATCH),
            # In place of the user's own configuration.
            default_config={"replay_dir": str(SCRATCH), "cookiecutters_dir": str(SCRATCH)},
        )
    except CookiecutterException as error:
        raise ServiceError from error
    return Path(rendered)


def write_documents() -> None:
    """Generate what is made from the models of all services."""
    subprocess.run([sys.executable, "scripts/topics.py"], cwd=ROOT, check=True)


def remove(options: argparse.Namespace) -> None:
    """Take a service out of the lists, and delete its code."""
    service = Service(options.name)
    if not (service.directory.is_dir() or service.is_listed or service.test.exists()):
        reject_unknown(service)
    check_nothing_needs(service)
    lists = plan_lists(remove=service.name)
    if not options.yes:
        confirm(service)
    say(f"Removing {service.name} and its container.")
    write_lists(lists, remove_container_of=service)
    groups = own_groups(service)
    delete_code(service)
    clear_retained(service)
    say(
        f"Removed {service.name}.",
        "Its volume keeps the data, if it has run in a container:",
        f"  {command_of_volume(service)}",
        *(f"Delete its packages: {group} in pyproject.toml, then make lock." for group in groups),
    )


def command_of_volume(service: Service) -> str:
    """Return the command that shows the name of the volume."""
    return f"docker volume ls --filter label=com.docker.compose.volume={service.volume}"


def own_groups(service: Service) -> list[str]:
    """Return the groups in pyproject.toml that add-package.sh has made for the service."""
    if not service.requirements.exists():
        return []
    groups = re.findall(r"(?m)^# group: (\S+)", service.requirements.read_text(encoding="utf-8"))
    return [group for group in groups if not (TEMPLATE / "templates" / group).exists()]


def clear_retained(service: Service) -> None:
    """Clear what the broker has retained of a service, or say how to do it."""
    import retained  # noqa: PLC0415 - paho and pydantic take time, which adding a service saves

    if problem := retained.clear(service.name):
        say(
            f"The broker may keep retained messages of {service.name}: {problem}",
            f"Clear them with the broker running: {retained.COMMAND} {service.name}",
        )


def confirm(service: Service) -> None:
    """Ask on the terminal. Raises ServiceError unless the user agrees."""
    if not sys.stdin.isatty():
        command = f"scripts/remove-service.sh {service.name} --yes"
        reject(f"There is no terminal to ask on. Run: {command}")
    say(f"This deletes services/{service.name} and its test.")
    if run("git", "status", "--porcelain", str(service.directory), str(service.test)).stdout:
        say("They hold changes that are in no commit.")
    try:
        reply = input(f"Remove {service.name}? [y/N] ")
    except (EOFError, KeyboardInterrupt):
        say("")
        reply = ""
    if not reply.lower().startswith("y"):
        reject("Nothing was changed.")


def delete_code(service: Service) -> None:
    """Delete the directory and the test of a service, and what was generated from its models."""
    service.test.unlink(missing_ok=True)
    if service.directory.is_dir():
        shutil.rmtree(service.directory)
    write_documents()


def rename(options: argparse.Namespace) -> None:
    """Give a service another name, and say what stays behind."""
    old, new = Service(options.name), Service(options.new_name)
    check_rename(old, new)
    say(f"Renaming {old.name} to {new.name}.")
    lists = plan_lists(add=new.name, remove=old.name)
    caches = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(old.directory, SCRATCH / new.name, ignore=caches)
    for path in copy.rglob("*"):
        # A package group in pyproject.toml keeps its name, which this file holds.
        if path.is_file() and path.name != "requirements.txt":
            write_renamed(path, path, old, new)
    # An end from here on would leave both services.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    copy.rename(new.directory)
    if old.test.exists():
        write_renamed(old.test, new.test, old, new)
    try:
        write_lists(lists, remove_container_of=old)
    except ServiceError:
        delete_code(new)
        raise
    env = ROOT / ".env"
    if env.exists():
        text = rename_variables(env.read_text(encoding="utf-8"), old, new)
        atomic_write(env.resolve(), text)
    delete_code(old)
    say(
        f"Renamed {old.name} to {new.name}. Start it with make up.",
        f"{new.name} starts with a volume of its own. The data of {old.name} stays:",
        f"  {command_of_volume(old)}",
    )
    clear_retained(old)
    # A hyphen is part of a name, so `grep -w` would find more.
    word = rf"(^|[^[:alnum:]_-]){old.name}([^[:alnum:]_-]|$)"
    places = [f":!{name}" for name in NOT_OF_SERVICES]
    search = ("git", "grep", "--untracked", "-nE", "-e", word, "--", *places)
    kept = re.compile(rf"pyproject\.toml:\d+:({'|'.join(own_groups(new))}) = ")
    if found := [line for line in run(*search).stdout.splitlines() if not kept.match(line)]:
        say(f"Edit these lines if they mean {old.name}:", *(f"  {line}" for line in found))


def check_rename(old: Service, new: Service) -> None:
    """Raise ServiceError if the service cannot get this name."""
    if not old.directory.is_dir() or not old.is_listed:
        reject_unknown(old)
    if new.directory.exists():
        cure = "" if new.is_listed else f" Nothing uses it: scripts/remove-service.sh {new.name}"
        reject(f"services/{new.name} exists already.{cure}")
    check_name_is_free(new)
    check_nothing_needs(old)
    # The template knows which names are valid.
    os.environ["SERVICE_OLD_NAME"] = old.name
    shutil.rmtree(render(new.name, "poller"))


def write_renamed(source: Path, target: Path, old: Service, new: Service) -> None:
    """Write a file with the new name of the service in place of the old one."""
    name = rf"(?<![\w-]){old.name}(?![\w-])"
    if source.suffix == ".py":
        # In quotes, in paths and in titles only, because a module or a variable may have the name.
        name = rf"(?<=[\"'/]){old.name}(?=[\"'/])|(?<= of ){old.name}(?![\w-])"
    content = source.read_bytes()
    # A picture or an archive stays as it is.
    with contextlib.suppress(UnicodeDecodeError):
        text = rename_variables(content.decode(), old, new)
        for pattern, word in (
            (name, new.name),
            (rf"\b{old.volume}\b", new.volume),
            (rf"\b{old.class_name}\b", new.class_name),
        ):
            text = re.sub(pattern, word, text)
        content = text.encode()
    atomic_write(target, content, mode=source.stat().st_mode & 0o777)


def rename_variables(text: str, old: Service, new: Service) -> str:
    """Return the text with the settings of the service under their new names."""
    for variable in old.variables:
        renamed = new.prefix + variable.removeprefix(old.prefix)
        text = re.sub(rf"\b{variable}\b", renamed, text)
    return text


# Helpers


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Wait until no other run changes services, and provide an empty SCRATCH."""
    services = ROOT / "services"
    services.mkdir(exist_ok=True)
    descriptor = os.open(services, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # A run that was killed has left its own.
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(SCRATCH)
        os.close(descriptor)


def main() -> int:
    """Command line. 1 for a request that is rejected, 2 for wrong usage."""
    command, *words = sys.argv[1:]
    codes = "0 done, 1 rejected, and nothing was changed, 2 wrong usage"
    title = "Add" if command == "new" else command.capitalize()
    parser = make_parser(f"{title} a service.", codes, f"scripts/{command}-service.sh")
    parser.add_argument("name", metavar="NAME", help="such as soil-moisture")
    if command == "new":
        answers = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
        types = answers["service_type"]
        parser.add_argument("--type", choices=types, default=types[0], help="default: %(default)s")
        parser.add_argument("--description", default="", metavar="TEXT", help="one line")
    elif command == "remove":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    else:
        parser.add_argument("new_name", metavar="NEW", help="its new name")
    options = parser.parse_args(words)
    try:
        with locked():
            {"new": add, "remove": remove, "rename": rename}[command](options)
    except ServiceError as error:
        if str(error):
            sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
