"""A stack on a swarm: updates, rollbacks and nodes that leave, while messages are counted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.baked import BakedProject, run, user_environment
from tests.conftest import Bake
from tests.ports import free_port
from tests.stack import background, remove_images, replace_in, stack_of, until, write_env
from tests.tools import needs

pytestmark = [pytest.mark.real, pytest.mark.docker, pytest.mark.xdist_group("docker")]

SERVICE = "example-service"
PASSWORD = "a $password of 'ours'".replace("'", '"')
# In the service's own file, as docs/swarm.md shows, with checks that are quick.
DEPLOY = """\
    deploy:
      replicas: 3
      labels: {stateless: "true"}
      update_config: {monitor: 4s}
    healthcheck: {interval: 1s, start_period: 4s, start_interval: 1s, retries: 3}
    volumes:"""
HANGS = "import time\nprint('hangs on purpose', flush=True)\ntime.sleep(600)\n"
# Replicas share the work: each number that one of them receives is passed on.
CONSUMER = """\
from typing import Any

from config import ServiceSettings

from shared.service import BaseService, run_service


HEALTH: dict[int | None, Any] = {}


class Consumer(BaseService[ServiceSettings]):
    name = "example-service"

    async def run(self) -> None:
        topic = f"$share/workers/{self.settings.topic_prefix}/work"
        self.mqtt.subscribe(topic, self._on_work)
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    async def _on_work(self, _topic: str, number: Any) -> None:
        await self.publish("done", {"number": number})

    def health_check(self) -> dict[str, Any]:
        return HEALTH.get(self.settings.instance, {})


if __name__ == "__main__":
    raise SystemExit(run_service(Consumer))
"""
EXITS = "raise SystemExit('exits on purpose')\n"


class Swarm:
    """A repository and the manager that it is deployed to."""

    def __init__(self, project: BakedProject, name: str, host: str | None) -> None:
        self.project, self.name = project, name
        self.env: dict[str, str | None] = {"COMPOSE_PROJECT_NAME": name, "DOCKER_HOST": host}

    def docker(self, *arguments: str, check: bool = True, stdin: str = "") -> str:
        return run("docker", *arguments, env=self.env, check=check, stdin=stdin).stdout

    def deploy(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ("scripts/deploy.sh", "--swarm", *options)
        return self.project.run(*command, env=self.env, check=check, timeout=300)

    def commit(self, program: str) -> str:
        self.project.file(f"services/{SERVICE}/main.py").write_text(program)
        self.project.run("git", "add", "--all")
        self.project.run("git", "commit", "--no-verify", "--quiet", "--message", "Change")
        return self.project.run("git", "rev-parse", "HEAD").stdout.strip()

    def status(self) -> tuple[int, dict[str, list[str]]]:
        done = self.project.run("make", "--silent", "status", env=self.env, check=False)
        rows = [re.split(r"  +", line) for line in done.stdout.splitlines() if "  " in line]
        assert rows[0][:4] == ["SERVICE", "REPLICAS", "NODES", "UPDATE"], done.stderr
        return done.returncode, {row[0]: row[1:] for row in rows[1:]}

    def heartbeats(self) -> tuple[int, dict[str, str]]:
        """The exit code, and the state of each replica."""
        command = ("make", "--silent", "status", "ARGS=--heartbeats")
        done = self.project.run(*command, env=self.env, check=False)
        assert "Listening for heartbeats (up to 7 s).\n" in done.stderr
        row = rf"^{SERVICE} +(\d+) +\S+ +(\w+) +\S+ +(?:\d+ s ago|-)$"
        return done.returncode, dict(re.findall(row, done.stdout, re.MULTILINE))

    def tasks(self) -> list[str]:
        """The nodes of the running replicas, one for each."""
        form = ("--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}")
        lines = self.docker("service", "ps", *form, f"{self.name}_{SERVICE}").splitlines()
        return sorted(line.split()[0] for line in lines if line.split()[1] == "Running")

    def in_broker(self, *command: str) -> list[str]:
        label = f"label=com.docker.swarm.service.name={self.name}_mqtt"
        container = self.docker("ps", "--quiet", "--filter", label).strip()
        home = "XDG_CONFIG_HOME=/run/mosquitto/.config"
        # The options that start.sh has written for the health check hold the password.
        link = "ln -sf mosquitto_sub /run/mosquitto/.config/mosquitto_pub"
        script = f'{link}; {home} exec "$@"'
        return ["docker", "exec", "-i", container, "sh", "-c", script, "sh", *command]

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Publish numbers at QoS 1. In the end, each must have been passed on."""
        topic, recorder = self.project.path.name, f"recorder-{uuid.uuid4().hex[:8]}"
        subscribe = (
            f"mosquitto_sub -h 127.0.0.1 -q 1 -c -i {recorder} -t {topic}/{SERVICE}/done".split()
        )
        environment = user_environment(self.env)
        run(*self.in_broker(*subscribe, "-E"), env=self.env)
        publish = ("mosquitto_pub", "-h", "127.0.0.1", "-q", "1", "-l", "-t", f"{topic}/work")
        publisher = subprocess.Popen(
            self.in_broker(*publish), env=environment, stdin=subprocess.PIPE, text=True
        )
        counter = Counter(publisher)
        try:
            yield counter
        finally:
            counter.stop()
        missing, received = set(range(counter.sent)), 0
        with subprocess.Popen(
            self.in_broker(*subscribe, "-W", "30"),
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as reader:
            assert reader.stdout is not None
            for line in reader.stdout:
                missing.discard(json.loads(line)["number"])
                received += 1
                if not missing:
                    break
            reader.kill()
        print(f"sent {counter.sent}, doubled {received - counter.sent + len(missing)}")
        assert not missing, f"{len(missing)} of {counter.sent} lost"


class Counter:
    """Publishes 40 numbers a second until it is stopped."""

    def __init__(self, publisher: subprocess.Popen[str]) -> None:
        self.sent, self._publisher = 0, publisher
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        assert self._publisher.stdin is not None
        while not self._stopped.wait(0.025):
            self._publisher.stdin.write(f"{self.sent}\n")
            self._publisher.stdin.flush()
            self.sent += 1

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        assert self._publisher.stdin is not None
        self._publisher.stdin.close()
        # It ends when the broker has acknowledged all.
        assert self._publisher.wait(30) == 0


def prepared(bake_copy: Bake, **env: str) -> BakedProject:
    project = bake_copy(include_home_assistant=False, include_influxdb=False)
    write_env(project, MQTT_PASSWORD=PASSWORD, HEARTBEAT_INTERVAL_SECONDS="2", **env)
    replace_in(project.file(f"services/{SERVICE}/compose.yml"), "    volumes:", DEPLOY)
    return project


@contextmanager
def removed(swarm: Swarm) -> Iterator[Swarm]:
    try:
        yield swarm
    finally:
        swarm.docker("stack", "rm", swarm.name, check=False)
        label = f"label=com.docker.stack.namespace={swarm.name}"
        until(lambda: not swarm.docker("ps", "--all", "--quiet", "--filter", label), "no container")


def consumer(health: str = "{}") -> str:
    """The program, with these fields in the heartbeats of single instances."""
    return CONSUMER.replace("] = {}", f"] = {health}")


@pytest.fixture
def swarm(bake_copy: Bake) -> Iterator[Swarm]:
    """On a swarm of this machine alone, which is gone afterwards."""
    if run("docker", "info", "--format", "{{.Swarm.LocalNodeState}}").stdout.strip() != "inactive":
        pytest.skip("this Docker is in a swarm")
    swarm = Swarm(prepared(bake_copy), f"test-{uuid.uuid4().hex[:8]}", None)
    run("docker", "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
    try:
        with removed(swarm):
            yield swarm
    finally:
        run("docker", "swarm", "leave", "--force")
        run("docker", "volume", "rm", f"{swarm.name}_mqtt_data", check=False)
        # Docker leaves this network behind.
        run("docker", "network", "rm", "docker_gwbridge", check=False)
        remove_images(f"localhost/{swarm.name}")


def test_updates_and_rollbacks_lose_nothing(swarm: Swarm) -> None:
    swarm.commit(consumer())
    refused = swarm.deploy(check=False)
    assert refused.returncode == 1
    assert "docker node update --label-add state=true NODE" in refused.stderr
    node = swarm.docker("node", "ls", "--format", "{{.Hostname}}").strip()
    swarm.docker("node", "update", "--label-add", "state=true", node)
    first = swarm.deploy()
    assert re.search(rf"^{SERVICE} +3/3 +{node} +- +\d+ s ago +0$", first.stdout, re.MULTILINE)
    specification = swarm.docker("service", "inspect", f"{swarm.name}_{SERVICE}")
    specification += swarm.docker("service", "inspect", f"{swarm.name}_mqtt")
    assert json.dumps(PASSWORD)[1:-1] not in specification

    with swarm.counting():
        # The number of the third is wrong, so nothing is heard of the third.
        good = swarm.commit(consumer("{2: {'status': 'degraded'}, 3: {'instance': 4}}"))
        swarm.deploy()
        assert swarm.status()[1][SERVICE][2] == "completed"
        code, states = swarm.heartbeats()
        assert (code, states) == (2, {"1": "online", "2": "degraded", "3": "silent"})
        for program, reason in ((EXITS, "exits on purpose"), (HANGS, "hangs on purpose")):
            swarm.commit(program)
            began = time.monotonic()
            done = swarm.deploy(check=False)
            print(f"{reason}: rolled back in {time.monotonic() - began:.0f} s")
            assert done.returncode == 1
            assert "rollback_completed" in done.stdout
            assert "After a rollback the previous version runs. Run: docker service" in done.stderr
            assert f"{swarm.name}_{SERVICE}: task: " in done.stdout
            assert reason in done.stdout
            code, rows = swarm.status()
            assert (code, rows[SERVICE][0], rows[SERVICE][2]) == (2, "3/3", "rollback_completed")
            image = swarm.docker(
                *("service", "inspect", f"{swarm.name}_{SERVICE}"),
                *("--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}}"),
            )
            assert image.strip().endswith(f":{good}")

        # The configuration of the broker is another config now, and the old one is removed.
        swarm.project.run("git", "checkout", "--quiet", good)
        swarm.deploy()
        assert swarm.status()[0] == 0
    label = f"label=com.docker.stack.namespace={swarm.name}"
    assert len(swarm.docker("config", "ls", "--quiet", "--filter", label).split()) == 4
    assert len(swarm.docker("secret", "ls", "--quiet", "--filter", label).split()) == 2
    findings = json.loads(swarm.project.run("scripts/doctor.py", "--json", check=False).stdout)
    found = {finding["check"]: finding["status"] for finding in findings}
    assert {name: found[name] for name in ("swarm managers", "swarm state", "swarm tasks")} == {
        "swarm managers": "PASS",
        "swarm state": "PASS",
        "swarm tasks": "PASS",
    }


NODES = """
for i in 1 2; do
  ip netns add $P$i; ip link add $P-h$i type veth peer name host0 netns $P$i
  ip addr add 10.93.$i.1/24 dev $P-h$i; ip link set $P-h$i up
done
ip link add eth0 netns ${P}1 type veth peer name eth0 netns ${P}2
for i in 1 2; do
  # The addresses in docs/swarm.md. Names cannot be resolved on the second node, and that at once:
  # Docker would look for each image elsewhere first.
  nsenter --net=/run/netns/$P$i sh -ec "ip link set lo up; ip addr add 192.0.2.${i}0/24 dev eth0
    ip link set eth0 up; ip addr add 10.93.$i.2/24 dev host0; ip link set host0 up
    [ $i = 1 ] && ip route add default via 10.93.1.1 || ip route add prohibit default"
done
"""
# The first node builds images, so it needs the packages.
ROUTES = (
    "FORWARD --in-interface {prefix}-h1 --jump ACCEPT",
    "FORWARD --out-interface {prefix}-h1 --jump ACCEPT",
    "POSTROUTING --table nat --source 10.93.1.0/24 --jump MASQUERADE",
)
# A kernel without IPVS has no routing mesh. These rules lead port 5000 of a node to the task.
MESH = """
nsenter --net=$SANDBOX sh -ec "
  iptables -t nat -A PREROUTING -p tcp --dport 5000 -j DNAT --to $TASK
  iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE"
nsenter --net=$NODE sh -ec "
  echo 1 >/proc/sys/net/ipv4/conf/docker_gwbridge/route_localnet
  iptables -t nat -A OUTPUT -p tcp -d 127.0.0.1 --dport 5000 -j DNAT --to $GATEWAY
  iptables -t nat -A POSTROUTING -s 127.0.0.1 -o docker_gwbridge -j MASQUERADE"
"""
# As the image on Docker Hub: it listens on port 5000 and keeps all in /var/lib/registry.
REGISTRY = """\
FROM python:3.13-slim
COPY docker-registry config.yml /
VOLUME /var/lib/registry
EXPOSE 5000
ENTRYPOINT ["/docker-registry", "serve", "/config.yml"]
"""
REGISTRY_CONFIG = """\
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ':5000'}
"""


@dataclass
class Node:
    """An engine in a network namespace."""

    name: str
    directory: Path

    @property
    def host(self) -> str:
        return f"unix://{self.directory}.sock"

    def inside(self, *command: str) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.name}", *command)

    def docker(self, *arguments: str, check: bool = True) -> str:
        return run("docker", *arguments, env={"DOCKER_HOST": self.host}, check=check).stdout.strip()

    def lead_to(self, task: str) -> None:
        """Make the registry reachable as 127.0.0.1:5000."""
        form = '{{(index .Containers "ingress-sbox").IPv4Address}}'
        gateway = self.docker("network", "inspect", "--format", form, "docker_gwbridge")
        rules = {
            "SANDBOX": f"{self.directory}/exec/netns/ingress_sbox",
            "NODE": f"/run/netns/{self.name}",
            "TASK": task.split("/")[0],
            "GATEWAY": gateway.split("/")[0],
        }
        run("sh", "-ec", MESH, env=rules)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two engines. The first one can build images, and has one that is called registry:2."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    # The path of a socket must be short.
    directory = Path(f"/tmp/swarm-{uuid.uuid4().hex[:6]}")
    directory.mkdir()
    prefix = f"sw{uuid.uuid4().hex[:4]}"
    environment = user_environment()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        for i in (1, 2):
            stack.callback(run, "ip", "netns", "del", f"{prefix}{i}", check=False)
            stack.callback(run, "ip", "link", "del", f"{prefix}-h{i}", check=False)
        run("sh", "-ec", f"P={prefix}\n{NODES}")
        for route in ROUTES:
            rule = route.format(prefix=prefix).split()
            run("iptables", "--insert", *rule)
            stack.callback(run, "iptables", "--delete", *rule)
        made = [Node(f"{prefix}{i}", directory / f"{prefix}{i}") for i in (1, 2)]
        for i, node in enumerate(made):
            home = node.directory
            engine = (
                f"hostname {node.name}; exec dockerd --data-root {home}/root"
                f" --exec-root {home}/exec --pidfile {home}/pid -H {node.host}"
                f" --cgroup-parent {node.name} --bip 172.{29 + i}.0.1/24"
                f" --default-address-pool base=172.{49 + i}.0.0/16,size=24"
            )
            command = node.inside("unshare", "--uts", "sh", "-c", engine)
            log = stack.enter_context(background(*command, cwd=directory, env=environment))
            log.wait_for("API listen on")
        images = "python:3.13-slim eclipse-mosquitto:2"
        run("sh", "-ec", f"docker save {images} | docker -H {made[0].host} load")
        context = directory / "registry"
        context.mkdir()
        shutil.copy(shutil.which("docker-registry") or "", context)
        (context / "config.yml").write_text(REGISTRY_CONFIG)
        (context / "Dockerfile").write_text(REGISTRY)
        made[0].docker("build", "--quiet", "--tag", "registry:2", str(context))
        yield made


class Reader:
    """The commands in docs/swarm.md, run with the names of a test."""

    def __init__(self, project: BakedProject, manager: Node, worker: Node, context: str) -> None:
        section = project.read("docs/swarm.md").split("\n## A swarm\n")[1].split("\n### ")[0]
        blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
        self.commands = "".join(blocks).replace("\\\n", " ").splitlines()
        (self.setting,) = re.findall(r"`(IMAGE_REGISTRY='.*?')`", section)
        self._project, self._manager, self._context = project, manager, context
        self._hosts = {"first": manager.host, "others": worker.host}

    def follow(self, command: str) -> subprocess.CompletedProcess[str]:
        token = ""
        if "TOKEN" in command:
            token = self._manager.docker("swarm", "join-token", "--quiet", "worker")
        own = command.replace("TOKEN", token).replace("NODE", self._manager.name)
        own = own.replace("ssh://manager", self._manager.host)
        own = re.sub(r"([ =])manager\b", rf"\1{self._context}", own)
        place = re.search(r"# on the (\w+)", command)
        env = {"DOCKER_HOST": self._hosts[place[1]] if place else None}
        done = self._project.run("sh", "-c", own, env=env, check=False, timeout=300)
        assert done.returncode == 0, f"{own}\n{done.stdout}\n{done.stderr}"
        return done


@needs("dockerd", "containerd", "ip", "iptables", "nsenter", "docker-registry")
def test_nodes_as_documented_come_and_go_without_a_loss(
    bake_copy: Bake, nodes: list[Node], request: pytest.FixtureRequest
) -> None:
    first, second = nodes
    project = prepared(bake_copy)
    context = f"test-{uuid.uuid4().hex[:8]}"
    request.addfinalizer(lambda: run("docker", "context", "rm", "--force", context, check=False))
    reader = Reader(project, first, second, context)
    with project.file(".env").open("a") as env:
        env.write(f"{reader.setting}\n")
    swarm = Swarm(project, project.path.name, first.host)
    swarm.commit(consumer())
    *preparations, deploy, status = reader.commands
    try:
        for command in preparations:
            reader.follow(command)
        task = first.docker("service", "ps", "--quiet", "registry")
        form = "{{range .NetworksAttachments}}{{index .Addresses 0}}{{end}}"
        address = first.docker("inspect", "--format", form, task)
        for node in nodes:
            node.lead_to(address)
        with removed(swarm):
            began = time.monotonic()
            done = reader.follow(deploy)
            print(f"built, pushed and deployed in {time.monotonic() - began:.0f} s")
            row = rf"{SERVICE} +3/3 +{first.name}, {second.name} "
            assert re.search(row, done.stdout), done.stdout
            heard = re.findall(rf"{SERVICE} +(\d) +(\S+) +online ", reader.follow(status).stdout)
            assert [number for number, _ in heard] == ["1", "2", "3"]
            assert {node for _, node in heard} == {first.name, second.name}
            with swarm.counting():
                swarm.docker("node", "update", "--availability", "drain", second.name)
                until(lambda: swarm.tasks() == [first.name] * 3, "all on the first node")
                swarm.docker("node", "update", "--availability", "active", second.name)
                swarm.docker("service", "update", "--quiet", "--force", f"{swarm.name}_{SERVICE}")
                until(lambda: second.name in swarm.tasks() and len(swarm.tasks()) == 3, "on both")
                container = second.docker("ps", "--quiet").split()[0]
                second.docker("kill", container)
                until(lambda: container not in second.docker("ps", "--quiet"), "killed")
                until(lambda: len(swarm.tasks()) == 3, "three again")
    finally:
        for node in (second, first):
            node.docker("swarm", "leave", "--force", check=False)


def test_a_service_on_another_host_as_documented(
    bake: Bake, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The other host is this one, under another name."""
    env = {"MQTT_PASSWORD": PASSWORD, "METER_PASSWORD": "of the meter"}
    original = bake(include_home_assistant=False, include_influxdb=False)
    with stack_of(original, tmp_path, **env) as stack:
        project = stack.project
        stack.run("scripts/new-service.sh", "meter", "--type", "poller")
        section = project.read("docs/swarm.md").split("## Services on another host")[1]
        secrets = project.read("docs/secrets.md").split("## Values that a service can read")[1]
        listener, attic = (
            textwrap.dedent(text)
            for text in re.findall(r"```(?:text|yaml)\n(.*?)```", section, re.S)[:2]
        )
        account = re.findall(r"```sh\n(.*?)```", secrets, re.S)[0]
        start = project.file("infrastructure/mosquitto/start.sh")
        replace_in(start, "else\n", f"{account}else\n")
        access = re.findall(r"```text\n(.*?)```", secrets, re.S)[0]
        project.file("infrastructure/mosquitto/acl.conf").write_text(access)
        with project.file("infrastructure/mosquitto/mosquitto.conf").open("a") as config:
            config.write(listener)
        make_certificates = (
            "import trustme; ca = trustme.CA(); own = ca.issue_cert('broker.example.org')"
            "; place = 'infrastructure/mosquitto/'"
            "; ca.cert_pem.write_to_path('infrastructure/certs/ca.crt')"
            "; own.private_key_pem.write_to_path(place + 'server.key')"
            "; own.cert_chain_pems[0].write_to_path(place + 'server.crt')"
        )
        project.uv_run("python", "-c", make_certificates)
        project.run("sh", "-c", "chmod 644 infrastructure/*/*")
        include = "  - services/meter/compose.yml\n"
        replace_in(project.file("docker-compose.yml"), include, "")
        port = free_port()
        broker = {
            "networks": ["internal", "egress"],
            "ports": [f"{port}:8883"],
            "environment": {"METER_PASSWORD": "${METER_PASSWORD}"},
        }
        own = json.dumps({"services": {"mqtt": broker}})
        project.file("docker-compose.override.yml").write_text(own)
        stack.up("--build", "mqtt")

        project.file("attic.yml").write_text(attic)
        here = {
            "extra_hosts": ["broker.example.org:host-gateway"],
            "environment": {"MQTT_PORT": str(port)},
            "healthcheck": {"start_interval": "1s"},
        }
        project.file("here.yml").write_text(json.dumps({"services": {"meter": here}}))
        name = f"{stack.name}-attic"
        endpoint = ("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
        host = run("docker", *endpoint).stdout.strip()
        run("docker", "context", "create", name, "--docker", f"host={host}")
        request.addfinalizer(lambda: run("docker", "context", "rm", "--force", name))
        there = {"COMPOSE_PROJECT_NAME": name, "COMPOSE_FILE": "attic.yml:here.yml"}
        try:
            done = project.run("scripts/deploy.sh", "--context", name, env=there, timeout=300)
            elsewhere = {**there, "DOCKER_CONTEXT": name}
            shown = project.run("make", "--silent", "status", env=elsewhere).stdout
            for output in (done.stdout, shown):
                assert re.search(r"^meter +running +healthy ", output, re.MULTILINE)
            topic = f"{project.path.name}/meter/availability"
            subscriber = f"mosquitto_sub -h 127.0.0.1 -C 1 -W 20 -t {topic}"
            home = "XDG_CONFIG_HOME=/run/mosquitto/.config"
            status = stack.exec("mqtt", "sh", "-c", f"{home} {subscriber}")
            assert json.loads(status)["status"] == "online"
            environment = project.run("docker", "compose", "exec", "meter", "env", env=there).stdout
            assert PASSWORD not in environment
        finally:
            project.run("docker", "compose", "down", "--volumes", "--timeout", "3", env=there)
            remove_images(f"localhost/{name}")
