"""Translate the model of Compose into one that `docker stack deploy` keeps.

    docker compose config --format json | python scripts/stack.py DIRECTORY

Reads .env, shared/ and infrastructure/. Exit code 1 names each entry that a swarm would drop or
expose.
"""

import hashlib
import io
import json
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from common import ROOT, SECRET_NAME, make_parser, read_dotenv

_WITHOUT_MEANING = re.compile("build|depends_on|develop|memswap_limit|profiles|pull_policy|restart")
_KEPT = re.compile(
    "cap_(add|drop)|command|configs|deploy|dns.*|entrypoint|environment|extra_hosts|healthcheck|hostname"
    "|image|init|labels|logging|networks|ports|read_only|secrets|stop_.*|sysctls|ulimits|user|volumes"
    "|working_dir|x-.*"
)
# Variables in .env that other programs than the settings of a service read.
_FOR_OTHERS = re.compile(
    r"TZ|HEALTH_.*|.*_PROXY|SSL_CERT_(FILE|DIR)|FORWARDED_ALLOW_IPS", re.IGNORECASE
)
# A task counts as running once it is healthy, so the health check needs none of `monitor`.
_UPDATE = {"order": "stop-first", "failure_action": "rollback", "monitor": "30s"}


class Stack:
    """The model of a stack. `problems` names what cannot be translated."""

    def __init__(self, model: dict[str, Any], env: dict[str, str], directory: Path) -> None:
        self.model = {"configs": {}, "secrets": {}, **model}
        self.problems: list[str] = []
        self._env, self._directory = env, directory
        del self.model["name"]
        for kind in ("configs", "networks", "secrets"):
            for definition in self.model.get(kind, {}).values():
                definition.pop("name", None)
        for name, service in model["services"].items():
            self._convert(f"services.{name}", service)

    def _add(self, service: dict[str, Any], kind: str, target: str, content: bytes) -> None:
        """Give the service a config or secret, whose name changes with its content."""
        name = PurePosixPath(target).name.strip(".")[:24]
        key = f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
        (self._directory / key).write_bytes(content)
        self.model[kind][key] = {"file": str(self._directory / key)}
        owner = str(service.get("user") or ("10001" if "build" in service else "0")).split(":")[0]
        use = {"source": key, "target": target, "uid": owner}
        service.setdefault(kind, []).append({**use, "mode": 0o400 if kind == "secrets" else 0o555})

    def _convert(self, where: str, service: dict[str, Any]) -> None:
        if "build" in service and "image" not in service:
            self.problems.append(f"{where}.image: missing. docs/swarm.md shows the line")
        self._hide_secrets(where, service)
        self._convert_volumes(where, service)
        for port in service.get("ports", []):
            published = str(port.get("published", ""))
            if port.pop("host_ip", "0.0.0.0") != "0.0.0.0" or not published.isdecimal():  # noqa: S104
                problem = f"{published}: a swarm opens one port on all addresses. If that is safe, "
                fix = f"write {{target: {port['target']}, published: NUMBER, mode: host}}"
                self.problems.append(f"{where}.ports: {problem}{fix}")
            else:
                port["published"] = int(published)
        self._convert_limits(where, service)
        if service.get("security_opt") == ["no-new-privileges:true"]:
            del service["security_opt"]
        for key, value in list(service.items()):
            if value is None or _WITHOUT_MEANING.fullmatch(key):
                del service[key]
            elif not _KEPT.fullmatch(key):
                self.problems.append(f"{where}.{key}: not possible in a swarm")
        for name, value in self._env.items():
            hidden = json.dumps(value)[1:-1].replace("$", "$$")
            # A shorter value may be part of any word.
            if SECRET_NAME.search(name) and value[7:] and hidden in json.dumps(service):
                self.problems.append(f"{where}: the value of {name} would be in the clear")

    def _hide_secrets(self, where: str, service: dict[str, Any]) -> None:
        values = service.setdefault("environment", {})
        # A service that Compose does not give all of .env does not get it here either.
        if "build" in service and self._env and self._env.keys() <= values.keys():
            content = ""
            for name, value in self._env.items():
                # A value of the service's own hides that of .env.
                if values[name] == value.replace("$", "$$") and not _FOR_OTHERS.fullmatch(name):
                    content += f"{name}={json.dumps(value, ensure_ascii=False)}\n"
                    del values[name]
            self._add(service, "secrets", "/app/.env", content.encode())
        exports = ""
        for name in [name for name, value in values.items() if value and SECRET_NAME.search(name)]:
            content = values.pop(name).replace("$$", "$").encode()
            self._add(service, "secrets", f"/run/secrets/{name}", content)
            exports += f'export {name}="$$(cat /run/secrets/{name})"; '
            if "build" in service:
                values[f"{name}_FILE"] = f"/run/secrets/{name}"
        if "build" in service:
            # A global service has no numbers.
            if service.get("deploy", {}).get("mode") != "global":
                values.setdefault("INSTANCE", "{{.Task.Slot}}")
        elif exports and service.get("entrypoint"):
            start = ["/bin/sh", "-c", f'{exports}exec "$$@"', "sh"]
            service["entrypoint"] = [*start, *service["entrypoint"]]
        elif exports:
            self.problems.append(f"{where}.environment: secrets need an entrypoint to be hidden")

    def _convert_volumes(self, where: str, service: dict[str, Any]) -> None:
        mounts = []
        for place, _, options in (entry.partition(":") for entry in service.pop("tmpfs", [])):
            found = re.search(r"size=(\d+)([kmg]?)", options)
            size = int(found[1]) << 10 * " kmg".index(found[2] or " ") if found else 0
            mounts.append({"type": "tmpfs", "target": place, "tmpfs": {"size": size}})
        is_stateless = service.get("deploy", {}).get("labels", {}).get("stateless") == "true"
        for volume in service.get("volumes", []):
            source, target = Path(volume.get("source", "")), PurePosixPath(volume["target"])
            if volume["type"] != "bind" and is_stateless:
                # The MQTT session of a replica is found by its number, on whatever node it is. A
                # global service has one replica on each node, and no numbers.
                is_global = service["deploy"].get("mode") == "global"
                session = "{service}-{{.Node.ID}}" if is_global else "{service}-{{.Task.Slot}}"
                service["environment"] |= {"DATA_DIR": "/tmp", "MQTT_CLIENT_ID": session}  # noqa: S108
            elif volume["type"] != "bind":
                mounts.append(volume)
            elif source == ROOT / "shared":
                self._add(service, "configs", f"{target}.zip", _zipped(source))
                service["environment"]["PYTHONPATH"] = f"{target.parent}:{target}.zip"
            elif volume.get("read_only") and source.is_relative_to(ROOT / "infrastructure"):
                for path in sorted(path for path in (source, *source.rglob("*")) if path.is_file()):
                    content = path.read_bytes()
                    kind = "secrets" if b"PRIVATE KEY" in content else "configs"
                    self._add(service, kind, str(target / path.relative_to(source)), content)
            else:
                problem = f"other nodes do not have {source}. If it is small, move it to"
                self.problems.append(f"{where}.volumes: {problem} infrastructure/ and add :ro")
        service["volumes"] = mounts

    def _convert_limits(self, where: str, service: dict[str, Any]) -> None:
        deploy = service.setdefault("deploy", {})
        limits = deploy.setdefault("resources", {}).setdefault("limits", {})
        for name, key in (("cpus", "cpus"), ("memory", "mem_limit"), ("pids", "pids_limit")):
            if limit := service.pop(key, None):
                limits.setdefault(name, limit if name == "pids" else str(limit))
        deploy["update_config"] = {**_UPDATE, **deploy.get("update_config", {})}
        if not service.get("ports"):
            # The virtual address of a service would cut connections that are idle for long.
            deploy.setdefault("endpoint_mode", "dnsrr")
        if any(volume["type"] == "volume" for volume in service["volumes"]):
            if deploy.get("replicas", 1) > 1 or deploy.get("mode") == "global":
                problem = "a volume is on one node. Without state in it, add the label stateless"
                self.problems.append(f"{where}.deploy.replicas: {problem}")
            placement = deploy.setdefault("placement", {})
            placement.setdefault("constraints", ["node.labels.state == true"])


def _zipped(directory: Path) -> bytes:
    """Return the modules of a package as a zip file, the same for the same modules."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*.py")):
            # A ZipInfo of its own has no time in it.
            entry = zipfile.ZipInfo(path.relative_to(directory.parent).as_posix())
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = make_parser(__doc__, "0 done, 1 an entry cannot be translated, 2 wrong usage")
    parser.add_argument("directory", type=Path, help="for the content of configs and secrets")
    directory = parser.parse_args().directory
    stack = Stack(json.load(sys.stdin), read_dotenv(ROOT / ".env"), directory)
    if stack.problems:
        fix = "Change these lines, or run the services on one host: docs/swarm.md"
        sys.exit("\n".join([*stack.problems, fix]))
    json.dump(stack.model, sys.stdout)
