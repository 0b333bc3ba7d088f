"""The program around .env.enc, on real sops and age, in a directory whose name has spaces."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.baked import TEMPLATE, run, user_environment
from tests.conftest import Bake
from tests.stack import is_asleep, until
from tests.tools import needs, path_without

pytestmark = [pytest.mark.real, needs("git", "sops", "age-keygen")]

VALUES = r"""# heading, ünïcode
#
PLAIN=plain
EQUALS=a=b==
HASH=a#b # c
SINGLE='$HOME ${HOME} # "x"'
DOUBLE="it's"
INNER=it's "so"
DOLLAR=$x$$
SPACES=  at both ends  
BLANKS = around
QUOTED_SPACES='  at both ends  '
NEWLINE="first\nsecond"
BACKSLASH=a\b\\c
LETTERS=größe, 温度, 🌡
EMPTY=
export EXPORTED=yes
# comment in the middle = with an equals sign
lower_case=1
LAST=last
"""  # noqa: W291
SECRET = "correct-horse-battery-staple"
# A public key whose secret key does not exist.
ADA = "age1zwhmq9wc5egxp0gxvfe3mtg94a8c6jf7a5geezd9vpm65eqgjy6qv3hqyj"
MISTYPED = "age1" + "q" * 58


class Repository:
    """A git repository with the scripts and nothing else of a generated one."""

    def __init__(self, path: Path, python: Path) -> None:
        self.path, self.python = path, python

    @classmethod
    def create(cls, path: Path, python: Path) -> Repository:
        path.mkdir()
        shutil.copytree(TEMPLATE / "scripts", path / "scripts")
        shutil.copy(TEMPLATE / ".gitignore", path)
        repository = cls(path, python)
        repository.write(
            ".env.example",
            "# Host\nMQTT_HOST='mqtt'\n\n# Password, random in a first .env\nMQTT_PASSWORD=''\n",
        )
        run("git", "init", "--quiet", cwd=path)
        return repository

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> str:
        return self.file(name).read_bytes().decode()

    def write(self, name: str, text: str) -> None:
        self.file(name).write_bytes(text.encode())

    @property
    def program(self) -> list[str | Path]:
        return [self.python, self.file("scripts/manage_secrets.py")]

    def do(
        self, *arguments: str, check: bool = True, cwd: Path | None = None, **env: Any
    ) -> subprocess.CompletedProcess[str]:
        return run(*self.program, *arguments, cwd=cwd or self.path, env=env, check=check)

    def fails(self, *arguments: str, **env: Any) -> str:
        """Run a command that must fail, and return its message."""
        done = self.do(*arguments, check=False, **env)
        assert done.returncode in {1, 3}, done
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def findings(self, **env: Any) -> dict[str, str]:
        """Return the result of `check`: status and detail of each check."""
        done = self.do("check", check=False, **env)
        assert SECRET not in done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert done.returncode == 0, done
        assert all(bool(each["fix"]) == (each["status"] != "PASS") for each in found), found
        return {f"{each['check']}: {each['detail']}": each["status"] for each in found}

    def recipient(self) -> str:
        return self.read(".sops/age-key.pub").strip()

    def recipients(self) -> list[str]:
        return [line.split()[0] for line in self.do("recipients", "list").stdout.splitlines()]

    def contents(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.path).as_posix(): path.read_bytes()
            for path in self.path.rglob("*")
            if path.is_file() and ".git" not in path.parts
        }

    def leftovers(self) -> list[Path]:
        return [path for path in self.path.rglob(".env.tmp*") if path.name != ".env.tmpl"]


@pytest.fixture(scope="session")
def python(bake: Bake) -> Path:
    """The interpreter of the locked environment of a generated repository."""
    return Path(str(bake().environment()["UV_PROJECT_ENVIRONMENT"])) / "bin" / "python"


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Repository:
    path = tmp_path_factory.mktemp("secrets") / "my repository"
    repository = Repository.create(path, python)
    repository.do("init")
    repository.write(".env", f"{VALUES}PASSWORD='{SECRET}'\n")
    repository.do("encrypt")
    return repository


@pytest.fixture
def repository(initialised: Repository, tmp_path: Path) -> Iterator[Repository]:
    """A repository with a key, .env and an .env.enc that is up to date."""
    path = tmp_path / "my repository"
    shutil.copytree(initialised.path, path, symlinks=True)
    copy = Repository(path, initialised.python)
    yield copy
    assert copy.leftovers() == []


@pytest.fixture
def fresh(tmp_path: Path, python: Path) -> Repository:
    """A repository before the first `init`."""
    return Repository.create(tmp_path / "fresh repository", python)


@pytest.fixture
def other_key(tmp_path: Path) -> tuple[Path, str]:
    """The key file of another person and its public key."""
    path = tmp_path / "other-key.txt"
    run("age-keygen", "-o", path)
    return path, run("age-keygen", "-y", path).stdout.strip()


def opens(repository: Repository, key: Path, **env: str) -> bool:
    """Return whether sops opens .env.enc with this key alone."""
    dotenv = ("--input-type", "dotenv", "--output-type", "dotenv")
    command = ("sops", "decrypt", *dotenv, repository.file(".env.enc"))
    return run(*command, env={"SOPS_AGE_KEY_FILE": str(key), **env}, check=False).returncode == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- init --------------------------------------------------------------------------------------


def test_init_makes_key_rule_and_env_for_the_owner_alone(fresh: Repository) -> None:
    fresh.do("init")
    modes = {".sops/age-key.txt": 0o600, ".env": 0o600, ".sops": 0o700, ".sops.yaml": 0o644}
    assert {name: mode(fresh.file(name)) for name in modes} == modes
    assert f"- {fresh.recipient()} # Test Author\n" in fresh.read(".sops.yaml")
    # A copy of a default would hide its later changes.
    explanation, comment, password = fresh.read(".env").splitlines()
    assert ".env.example" in explanation
    assert comment == "# Password, random in a first .env"
    name, _, value = password.partition("=")
    assert name == "MQTT_PASSWORD"
    assert len(value.strip("'")) == 32
    assert value.strip("'").isalnum()
    before = fresh.contents()
    assert "Already there" in fresh.do("init").stdout
    assert fresh.contents() == before
    for name in (".sops/age-key.txt", ".env"):
        fresh.file(name).unlink()
    fresh.do("init")
    assert password not in fresh.read(".env")
    assert fresh.read(".sops/age-key.txt") != before[".sops/age-key.txt"].decode()


def test_init_completes_a_key_from_a_password_manager_and_keeps_an_env(
    fresh: Repository, other_key: tuple[Path, str]
) -> None:
    fresh.file(".sops").mkdir()
    fresh.write(".sops/age-key.txt", other_key[0].read_text().splitlines()[-1] + "\n")
    fresh.write(".env", "MINE=1\n")
    fresh.do("init")
    assert fresh.recipient() == other_key[1]
    assert other_key[1] in fresh.read(".sops.yaml")
    assert fresh.read(".env") == "MINE=1\n"


def test_init_without_age_is_skipped_and_says_how_to_get_it(
    fresh: Repository, tmp_path: Path
) -> None:
    path = path_without("age-keygen", "sops", "uv", folder=tmp_path / "bin")
    done = fresh.do("init", check=False, PATH=path)
    assert done.returncode == 3, done
    assert "apt install age" in done.stderr
    assert fresh.file(".env").exists()
    assert not fresh.file(".sops").exists()
    fresh.do("init")
    assert fresh.recipient().startswith("age1")


def test_init_uses_pyrage_when_age_is_missing(fresh: Repository, tmp_path: Path) -> None:
    fresh.do("init", PATH=path_without("age-keygen", folder=tmp_path / "bin"))
    derived = run("age-keygen", "-y", fresh.file(".sops/age-key.txt")).stdout.strip()
    assert derived == fresh.recipient()


def test_a_damaged_key_file_is_named(fresh: Repository) -> None:
    fresh.file(".sops").mkdir()
    fresh.write(".sops/age-key.txt", "no key\n")
    assert ".sops/age-key.txt holds no age key. Move it away" in fresh.fails("init")


# --- Which key, which recipients ----------------------------------------------------------------


@pytest.mark.parametrize("variable", ["SOPS_AGE_KEY_FILE", "SOPS_AGE_KEY", "SOPS_AGE_KEY_CMD"])
def test_a_key_that_the_environment_names_is_used_everywhere(
    fresh: Repository, other_key: tuple[Path, str], variable: str
) -> None:
    key, public = other_key
    values = {
        "SOPS_AGE_KEY_FILE": os.path.relpath(key, fresh.path),
        "SOPS_AGE_KEY": key.read_text().splitlines()[-1],
        "SOPS_AGE_KEY_CMD": f"cat '{key}'",
    }
    env: dict[str, Any] = {variable: values[variable]}
    fresh.do("init", **env)
    assert not fresh.file(".sops").exists()
    assert public in fresh.read(".sops.yaml")
    fresh.do("encrypt", **env)
    assert fresh.findings(**env)[".env.enc: your key opens it"] == "PASS"
    assert f"{public} Test Author (you)" in fresh.do("recipients", "list", **env).stdout


def test_a_variable_that_is_the_cause_is_named(
    repository: Repository, other_key: tuple[Path, str], tmp_path: Path
) -> None:
    key, public = other_key
    before = repository.read(".env")
    said = repository.do("decrypt", SOPS_AGE_KEY_FILE=str(key)).stderr
    assert said == "SOPS_AGE_KEY_FILE does not open .env.enc, but age-key.txt does\n"
    recipient = repository.recipient()
    shutil.rmtree(repository.file(".sops"))
    said = repository.fails("decrypt", SOPS_AGE_KEY_FILE=str(key))
    assert "Tried: SOPS_AGE_KEY_FILE, .sops/age-key.txt (missing: make setup)" in said
    assert f'make secrets-recipients ARGS="add {public}"' in said
    assert recipient in said
    missing = str(tmp_path / "missing")
    assert "Tried: SOPS_AGE_KEY_FILE, " in repository.fails("decrypt", SOPS_AGE_KEY_FILE=missing)
    assert "Tried: .sops/age-key.txt (missing" in repository.fails("decrypt", SOPS_AGE_KEY_FILE="")
    assert repository.read(".env") == before


FOREIGN: dict[str, Any] = {
    "SOPS_AGE_RECIPIENTS": ADA,
    "SOPS_PGP_FP": "85D77543B3D624B63CEA9E6DBC17301B491B3F21",
    "SOPS_KMS_ARN": "arn:aws:kms:us-east-1:656532927350:key/920aff2e",
    "SOPS_GCP_KMS_IDS": "projects/p/locations/global/keyRings/r/cryptoKeys/k",
    "SOPS_AZURE_KEYVAULT_URLS": "https://x.vault.azure.net/keys/k/1",
    "SOPS_VAULT_URIS": "http://127.0.0.1:1/v1/sops/keys/k",
    "SOPS_HUAWEICLOUD_KMS_IDS": "tr-west-1:abc",
    "SOPS_CONFIG": "/nowhere",
    "SOPS_KEYSERVICE": "tcp://127.0.0.1:1",
}


def test_recipients_come_from_the_repository_alone(repository: Repository) -> None:
    repository.file(".env.enc").unlink()
    repository.do("encrypt", **FOREIGN)
    repository.write(".env", "A=2\n")
    repository.do("encrypt", **FOREIGN)
    assert repository.read(".env.enc").count("__map_enc=") == 1
    repository.do("decrypt")


def test_an_env_enc_for_other_recipients_replaces_nothing(
    repository: Repository, tmp_path: Path, other_key: tuple[Path, str]
) -> None:
    """A sops that adds a recipient of its own."""
    before = repository.contents()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sops").write_text(
        f'#!/bin/sh\nSOPS_AGE_RECIPIENTS={other_key[1]} exec "{shutil.which("sops")}" "$@"\n'
    )
    (tools / "sops").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    said = repository.fails("recipients", "add", ADA, PATH=path)
    assert "others than .sops.yaml names" in said
    assert repository.contents() == before


def test_a_worktree_uses_the_key_of_the_main_one(repository: Repository, tmp_path: Path) -> None:
    run("git", "add", ".sops.yaml", ".env.enc", ".env.example", "scripts", cwd=repository.path)
    run("git", "commit", "--quiet", "--message", "All", cwd=repository.path)
    tree = Repository(tmp_path / "tree", repository.python)
    run("git", "worktree", "add", "--quiet", tree.path, cwd=repository.path)
    tree.do("init")
    assert not tree.file(".sops").exists()
    tree.do("decrypt")
    assert tree.read(".env") == repository.read(".env")


def test_links_are_followed(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    for name in (".env", ".sops/age-key.txt"):
        target = tmp_path / "private" / Path(name).name
        repository.file(name).rename(target)
        repository.file(name).symlink_to(target)
    (tmp_path / "private/.env.tmp..env").touch()
    repository.write(".env.tmpl", "a file of the user")
    assert "FAIL" not in {
        status for check, status in repository.findings().items() if "others" in check
    }
    repository.write(".env", "A=1\n")
    repository.do("decrypt")
    assert SECRET in (tmp_path / "private/.env").read_text()
    repository.do("recipients", "rotate")
    assert repository.file(".env").is_symlink()
    assert repository.file(".sops/age-key.txt").is_symlink()
    assert sorted(path.name for path in (tmp_path / "private").iterdir()) == [".env", "age-key.txt"]
    assert repository.read(".env.tmpl") == "a file of the user"


# --- Encrypt and decrypt ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (VALUES, VALUES),
        ("\n# One\nA=1\n\n  \n# Two\nB=2", "# One\nA=1\n# Two\nB=2\n"),
        ("A=1\r\nB='x'\r\n", "A=1\nB='x'\n"),
        ("\ufeffA=1\n#\nA=2\n", "A=1\n#\nA=2\n"),
    ],
    ids=["values", "blank lines", "CRLF", "byte order mark"],
)
def test_a_round_trip_drops_nothing_but_blank_lines(
    repository: Repository, tmp_path: Path, text: str, kept: str
) -> None:
    repository.write(".env", text)
    repository.do("encrypt")
    assert "already up to date" in repository.do("decrypt").stdout
    repository.file(".env").unlink()
    repository.do("decrypt", cwd=tmp_path)
    assert repository.read(".env") == kept
    assert mode(repository.file(".env")) == 0o600


def test_env_enc_shows_only_names_and_a_diff_those_that_changed(repository: Repository) -> None:
    before = repository.read(".env.enc")
    for word in (SECRET, "plain", "größe", "heading", "comment in the middle", "at both ends"):
        assert word not in before
    repository.write(".env", repository.read(".env").replace("PLAIN=plain", "PLAIN=other"))
    repository.do("encrypt")
    after = repository.read(".env.enc")
    changed = {
        line.partition("=")[0] for line in set(after.splitlines()) - set(before.splitlines())
    }
    assert "PLAIN" in changed
    assert changed <= {"PLAIN", "sops_mac", "sops_lastmodified"}
    assert "already" in repository.do("encrypt").stdout
    assert repository.read(".env.enc") == after


def test_decrypt_keeps_an_env_with_other_values(repository: Repository) -> None:
    repository.write(".env", "MINE=1\n")
    assert ".env.previous" in repository.do("decrypt").stdout
    assert repository.read(".env.previous") == "MINE=1\n"
    assert mode(repository.file(".env.previous")) == 0o600
    assert SECRET in repository.read(".env")
    run("git", "check-ignore", ".env.previous", cwd=repository.path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"A=1\n{SECRET}\n", "2"),
        (f'A=1\nB="{SECRET}\nmore"\n', "2, 3"),
        (f"A=1\n\n# x\nsops_A={SECRET}\nA_unencrypted={SECRET}\n", "4, 5"),
        (f" A={SECRET}\nA-B={SECRET}\n={SECRET}\n", "1, 2, 3"),
        ("\n", "1"),
    ],
)
def test_values_that_sops_cannot_store_are_rejected_by_line(
    repository: Repository, text: str, line: str
) -> None:
    before = repository.read(".env.enc")
    repository.write(".env", text)
    assert f"sops cannot store line {line}\nWrite NAME=VALUE" in repository.fails("encrypt")
    assert repository.read(".env.enc") == before


# --- A failure changes nothing ------------------------------------------------------------------


def test_values_that_no_key_opens_are_not_replaced(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    before = repository.read(".env.enc")
    repository.write(".env", "A=1\n")
    shutil.copy(other_key[0], repository.file(".sops/age-key.txt"))
    closed = "No key opens .env.enc. Tried: .sops/age-key.txt"
    assert closed in repository.fails("encrypt")
    assert repository.findings()[f".env.enc: {closed}"] == "FAIL"
    assert repository.read(".env.enc") == before


DAMAGES = {
    "cut in the values": lambda text: "".join(text.splitlines(keepends=True)[:5]),
    "cut in the metadata": lambda text: text[: text.index("sops_mac=") + 40],
    "a value swapped": lambda text: re.sub(
        "(?s)^(PLAIN=).*?$(.*PASSWORD=(.*?)$)", r"\1\3\2", text, flags=re.MULTILINE
    ),
    "a line removed": lambda text: re.sub("(?m)^PLAIN=.*\n", "", text),
    "a value in the clear": lambda text: text.replace("EMPTY=\n", f"EMPTY={SECRET}\n"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_env_enc_never_touches_env(
    repository: Repository, damage: Callable[[str], str]
) -> None:
    good = repository.read(".env.enc")
    repository.write(".env.enc", damage(good))
    before = repository.contents()
    assert before[".env.enc"] != good.encode()
    assert "git restore .env.enc" in repository.fails("decrypt")
    repository.fails("encrypt")
    assert repository.contents() == before


def test_a_sops_that_is_missing_or_old_is_the_cause(repository: Repository, tmp_path: Path) -> None:
    path = path_without("sops", "age-keygen", folder=tmp_path / "bin")
    said = repository.fails("decrypt", PATH=path)
    assert said.startswith("sops is missing\nInstall 3.11 or newer")
    assert repository.findings(PATH=path)[".env.enc: sops is missing"] == "WARN"
    (tmp_path / "bin/sops").write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo sops 3.8.1 ;; *) echo what >&2; exit 1 ;; esac\n'
    )
    (tmp_path / "bin/sops").chmod(0o755)
    said = repository.fails("decrypt", PATH=path)
    assert said.startswith("sops is too old: 3.8.1\nInstall 3.11 or newer")


# Lets the first call pass. The second one says that it was called, and waits.
WAITING_TOOL = """#!/bin/sh
echo >>"{folder}/calls"
if [ "$(wc -l <"{folder}/calls")" -ge 2 ]; then
  echo x >"{folder}/started"
  read -r line <"{folder}/release"
fi
exec "{tool}" "$@"
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("arguments", "number", "whole_group"),
    [
        (("encrypt",), signal.SIGINT, True),
        (("edit",), signal.SIGTERM, False),
        (("recipients", "add", ADA), signal.SIGHUP, True),
    ],
)
def test_an_interrupt_leaves_everything_as_it_was(
    repository: Repository,
    tmp_path: Path,
    arguments: tuple[str, ...],
    number: signal.Signals,
    whole_group: bool,
) -> None:
    repository.write(".env", f"CHANGED='{SECRET}'\n")
    before = repository.contents()
    for pipe in ("started", "release"):
        os.mkfifo(tmp_path / pipe)
    tools, temporary = tmp_path / "bin", tmp_path / "tmp"
    tools.mkdir()
    temporary.mkdir()
    for tool, real in (("sops", shutil.which("sops")), ("editor", "true")):
        (tools / tool).write_text(WAITING_TOOL.format(folder=tmp_path, tool=real))
        (tools / tool).chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "EDITOR": "editor", "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [*repository.program, *arguments],
        env=user_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # A suite that runs in the background hands down an ignored signal.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert (tmp_path / "started").read_text() == "x\n"
    assert repository.leftovers() != []
    # Python loses a signal that comes after the start of the tool and before the wait for its end.
    until(lambda: is_asleep(process.pid), "wait for the tool", seconds=0.001)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + number, said
    assert SECRET not in said
    assert repository.contents() == before
    assert list(temporary.iterdir()) == []


# Runs the program and kills it after the given rename.
KILLED = """
import os, pathlib, runpy, signal, sys
program, number, *arguments = sys.argv[1:]
done, rename = 0, pathlib.Path.replace
def replace(path, target):
    global done
    result = rename(path, target)
    done += 1
    if done == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
pathlib.Path.replace = replace
sys.argv = [program, *arguments]
sys.path.insert(0, os.path.dirname(program))
runpy.run_path(program, run_name="__main__")
"""


def killed(repository: Repository, number: int, *arguments: str) -> int:
    python, program = repository.program
    return run(
        *(python, "-c", KILLED, program, str(number), *arguments), cwd=repository.path, check=False
    ).returncode


def test_a_rotation_killed_after_any_rename_is_finished_by_the_next_one(
    initialised: Repository, tmp_path: Path
) -> None:
    for number in itertools.count(1):
        path = tmp_path / str(number)
        shutil.copytree(initialised.path, path, symlinks=True)
        repository = Repository(path, initialised.python)
        old = repository.recipient()
        code = killed(repository, number, "recipients", "rotate")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert "already up to date" in repository.do("decrypt").stdout
        assert repository.leftovers() == []
        repository.do("recipients", "rotate")
        public = run("age-keygen", "-y", repository.file(".sops/age-key.txt")).stdout.strip()
        assert repository.recipient() == public
        for name in (".sops.yaml", ".env.enc"):
            assert public in repository.read(name)
            assert old not in repository.read(name)
        kept = "".join(path.read_text() for path in repository.file(".sops").glob("age-key-*.txt"))
        assert old in kept
    # Copy of the old key, both keys, .env.enc, .sops.yaml, the new key, its public half.
    assert number == 7


def test_recipients_killed_between_the_renames_are_changed_by_the_next_run(
    repository: Repository,
) -> None:
    assert killed(repository, 1, "recipients", "add", ADA) == -signal.SIGKILL
    assert repository.leftovers() != []
    assert any("for others" in check for check in repository.findings())
    repository.do("recipients", "add", ADA)
    assert ADA in repository.read(".sops.yaml")
    assert ADA in repository.read(".env.enc")
    assert not any("for others" in check for check in repository.findings())


def test_one_command_at_a_time_changes_the_secrets(repository: Repository) -> None:
    lock = os.open(repository.path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    repository.file(".env.tmp").mkdir()
    assert "Another command is changing the secrets" in repository.fails("encrypt")
    assert repository.file(".env.tmp").exists()
    os.close(lock)
    repository.do("encrypt")


def test_no_secret_is_on_a_command_line_or_in_the_output(
    repository: Repository, fresh: Repository, tmp_path: Path
) -> None:
    log, tools = tmp_path / "calls", tmp_path / "bin"
    tools.mkdir()
    for tool in ("sops", "age-keygen", "git", "tee", "cat"):
        (tools / tool).write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{tool} $*" >>"{log}"\nexec "{shutil.which(tool)}" "$@"\n'
        )
        (tools / tool).chmod(0o755)
    env: dict[str, Any] = {"PATH": f"{tools}:{os.environ['PATH']}", "EDITOR": "true"}
    repository.write(".env", repository.read(".env") + "MORE=more\n")
    old_key = repository.read(".sops/age-key.txt")
    runs = [fresh.do("init", **env)]
    for command in ("encrypt", "check", "edit", "recipients add " + ADA, "recipients rotate"):
        runs.append(repository.do(*command.split(), check=False, **env))
    shown = log.read_text() + "".join(done.stdout + done.stderr for done in runs)
    assert "sops --config" in shown
    keys = old_key, repository.read(".sops/age-key.txt"), fresh.read(".sops/age-key.txt")
    password = fresh.read(".env").rpartition("=")[2].strip("'\n")
    for secret in (SECRET, password, *(key.splitlines()[-1] for key in keys)):
        assert secret not in shown


# --- Edit --------------------------------------------------------------------------------------


def test_edit_changes_env_enc(repository: Repository, tmp_path: Path) -> None:
    editor = tmp_path / "an editor"
    editor.write_text(f'#!/bin/sh\nprintf "ADDED=%s\\n" "{SECRET}-2" >>"$1"\n')
    editor.chmod(0o755)
    before = repository.read(".env.enc")
    assert "already up to date" in repository.do("edit", EDITOR="true").stdout
    for failing in ("false", "/nowhere/editor"):
        message = repository.fails("edit", EDITOR=failing)
        assert f"The editor {failing} is missing or failed" in message
    assert repository.read(".env.enc") == before
    assert list(repository.path.glob(".env.rejected-*")) == []
    said = repository.do("edit", EDITOR=f"'{editor}'")
    assert SECRET not in said.stdout + said.stderr
    assert "ADDED=ENC[" in repository.read(".env.enc")
    repository.do("decrypt")
    assert repository.read(".env").endswith(f"ADDED={SECRET}-2\n")


@pytest.mark.parametrize("end", ["echo nothing", "exit 1", "kill -TERM $PPID"])
def test_an_edit_that_fails_keeps_the_text(repository: Repository, end: str) -> None:
    before = repository.read(".env.enc")
    editor = f"sh -c 'exec >>\"$0\"; echo A={SECRET}; {end}'"
    done = repository.do("edit", EDITOR=editor, check=False)
    assert done.returncode in {1, 128 + signal.SIGTERM}
    assert SECRET not in done.stdout + done.stderr
    assert repository.read(".env.enc") == before
    [kept] = repository.path.glob(".env.rejected-*")
    assert f"Your text is kept in {kept.name}" in done.stderr
    assert f"A={SECRET}\n" in kept.read_text()
    assert mode(kept) == 0o600
    run("git", "check-ignore", kept.name, cwd=repository.path)


# --- Recipients --------------------------------------------------------------------------------


def test_a_second_recipient_comes_and_goes(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    key, public = other_key
    repository.do("recipients", "add", public, "Ada Müller", "(Zürich)")
    assert "Nothing to change" in repository.do("recipients", "add", public).stdout
    listed = repository.do("recipients", "list").stdout
    assert f"{public} Ada Müller (Zürich)\n" in listed
    assert f"{repository.recipient()} Test Author (you)\n" in listed
    assert opens(repository, key)
    with_both = repository.read(".env.enc")
    assert "another recipient" in repository.fails("recipients", "remove", repository.recipient())

    repository.do("recipients", "remove", public)
    assert "Nothing to change" in repository.do("recipients", "remove", public).stdout
    assert public not in repository.read(".sops.yaml") + repository.read(".env.enc")
    assert not opens(repository, key)
    # The data key is new as well: the removed key must not open values that it knew.
    kept = {line for line in repository.read(".env.enc").splitlines() if "=ENC[" in line}
    assert not kept & set(with_both.splitlines())


def test_recipients_before_there_is_an_env_enc(
    fresh: Repository, other_key: tuple[Path, str]
) -> None:
    fresh.do("init")
    fresh.do("recipients", "add", other_key[1])
    fresh.do("encrypt")
    assert opens(fresh, other_key[0])


def test_recipients_that_make_no_sense_are_rejected(repository: Repository) -> None:
    before = repository.contents()
    secret_key = repository.read(".sops/age-key.txt").splitlines()[-1]
    said = repository.fails("recipients", "add", secret_key)
    assert "Not a valid public key" in said
    assert secret_key not in said
    assert "Not an action: rename" in repository.fails("recipients", "rename")
    assert "sops failed" in repository.fails("recipients", "add", MISTYPED)
    assert repository.contents() == before


def test_rotation_replaces_the_key_and_keeps_the_old_one(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    old_key, old_public = repository.read(".sops/age-key.txt"), repository.recipient()
    old_file = repository.read(".env.enc")
    repository.write(".sops/age-key.txt", other_key[0].read_text() + old_key)
    assert "several keys" in repository.fails("recipients", "rotate")
    repository.write(".sops/age-key.txt", old_key)
    repository.do("recipients", "rotate")
    assert repository.recipient() != old_public
    assert old_public not in repository.read(".sops.yaml") + repository.read(".env.enc")
    assert "# Test Author" in repository.read(".sops.yaml")
    assert mode(repository.file(".sops/age-key.txt")) == 0o600
    [kept] = repository.file(".sops").glob("age-key-*")
    assert kept.read_text() == old_key
    assert mode(kept) == 0o600
    assert not opens(repository, kept)
    # An older version of .env.enc is opened by the kept key, which is named.
    repository.write(".env.enc", old_file)
    assert f"{kept.name} does" in repository.do("decrypt").stderr


@needs("ssh-keygen")
def test_an_ssh_recipient_is_one_like_any_other(repository: Repository, tmp_path: Path) -> None:
    private = tmp_path / "id"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada@host", "-f", private)
    key = (tmp_path / "id.pub").read_text().strip().removesuffix(" ada@host")
    repository.do("recipients", "add", *key.split(), "ada@host")
    assert f"{key} ada@host\n" in repository.do("recipients", "list").stdout
    assert not any("for others" in check for check in repository.findings())
    assert "already" in repository.do("recipients", "sync").stdout
    assert opens(repository, Path(os.devnull), SOPS_AGE_SSH_PRIVATE_KEY_FILE=str(private))
    repository.do("recipients", "remove", *key.split())
    assert key not in repository.read(".sops.yaml") + repository.read(".env.enc")


def test_only_the_rule_for_env_enc_counts(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    own, public = repository.recipient(), other_key[1]
    first = f"creation_rules:\n  - path_regex: \\.yaml$\n    age:\n      - {ADA}\n      - {own}\n"
    rule = repository.read(".sops.yaml").partition("creation_rules:\n")[2]
    last = f"  - age: {ADA}\n"
    repository.write(".sops.yaml", first + rule + last)
    assert repository.recipients() == [own]
    assert "already" in repository.do("recipients", "sync").stdout
    repository.do("recipients", "add", public, "Bob")
    assert repository.recipients() == [own, public]
    added = f"      - {public} # Bob\n"
    assert repository.read(".sops.yaml") == first + rule + added + last
    repository.do("recipients", "rotate")
    assert repository.read(".sops.yaml") == (
        first + rule.replace(own, repository.recipient()) + added + last
    )
    assert not any("for others" in check for check in repository.findings())


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("- age: age1x\n    pgp: ABCD", "line 3: this pgp is not supported"),
        ("- key_groups: [{}]", "line 2: this key_groups is not supported"),
        ("- age: [{}]", "line 2: this age is not supported"),
        ("- path_regex: '('", "not valid"),
        ("- path_regex: other", "no rule for .env.enc"),
        ("- shamir_threshold: 1", "names no recipient"),
    ],
)
def test_rules_that_cannot_be_judged_are_rejected_by_line(
    repository: Repository, rules: str, said: str
) -> None:
    repository.write(".sops.yaml", f"creation_rules:\n  {rules}\n")
    before = repository.contents()
    assert said in repository.fails("recipients", "add", ADA)
    assert said in repository.do("check", check=False).stdout
    assert repository.contents() == before


@pytest.mark.parametrize("form", ["{own},{other}", "[{own}, {other}]", "'{own}'"])
def test_sync_follows_an_edit_of_the_rules_by_hand(
    repository: Repository, other_key: tuple[Path, str], form: str
) -> None:
    form = form.format(own=repository.recipient(), other=other_key[1])
    repository.write(".sops.yaml", f"creation_rules:\n  - age: {form}\n")
    differs = ".env.enc: it is for others than .sops.yaml names"
    assert repository.findings().get(differs) == ("FAIL" if other_key[1] in form else None)
    repository.do("recipients", "sync")
    if other_key[1] in form:
        assert opens(repository, other_key[0])
    before = repository.contents()
    said = repository.fails("recipients", "add", ADA)
    assert "line 2: change this by hand" in said
    assert repository.contents() == before


def test_a_new_team_member_gets_access(
    repository: Repository, tmp_path: Path, python: Path
) -> None:
    clone = Repository.create(tmp_path / "clone", python)
    for name in (".sops.yaml", ".env.enc"):
        shutil.copy(repository.file(name), clone.path)
    said = clone.do("init").stdout
    assert f'make secrets-recipients ARGS="add {clone.recipient()}"' in said
    # Values made here would go over those of the team.
    assert not clone.file(".env").exists()
    clone.fails("decrypt")
    repository.do("recipients", "add", clone.recipient())
    for name in (".sops.yaml", ".env.enc"):
        shutil.copy(repository.file(name), clone.path)
    assert "make secrets-decrypt" in clone.do("init").stdout
    clone.do("decrypt")
    assert clone.read(".env") == repository.read(".env")


# --- Check and scan -----------------------------------------------------------------------------


def test_check_finds_nothing_until_env_and_env_enc_differ(repository: Repository) -> None:
    repository.write(".env", f"MQTT_HOST='mqtt'\nMQTT_PASSWORD='{SECRET}'\n")
    repository.do("encrypt")
    assert set(repository.findings().values()) == {"PASS"}
    repository.write(".env", repository.read(".env") + "MORE=1\n")
    present = repository.file(".env.enc").stat().st_mtime
    for shift, state, way in ((10, "newer", "encrypt"), (-10, "older", "decrypt")):
        os.utime(repository.file(".env"), (present + shift, present + shift))
        said = repository.do("stale").stdout
        assert said.startswith(f"WARN  .env is {state} than .env.enc, and has other values")
        assert f"make secrets-{way}" in said
    # Another recipient is no newer value, nor is an editor that changes nothing.
    os.utime(repository.file(".env"), (present + 10, present + 10))
    repository.do("recipients", "add", ADA)
    assert "make secrets-decrypt" not in repository.do("edit", EDITOR="true").stdout
    os.utime(repository.file(".env"), (present + 0.01, present + 0.01))
    assert "make secrets-encrypt" in repository.do("stale").stdout
    # A colleague has added MORE, and this .env has another line.
    repository.do("encrypt")
    repository.write(".env", repository.read(".env").replace("MORE=1", "OTHER=1"))
    said = repository.do("stale").stdout
    assert ".env lacks MORE, which .env.enc has" in said
    assert "make secrets-decrypt" in said
    assert "Removed MORE." in repository.do("encrypt").stdout
    repository.file(".env").rename(repository.file(".env.previous"))
    found = json.loads(repository.do("check").stdout)
    assert {each["check"]: each["fix"] for each in found}[".env"] == "make secrets-decrypt"
    repository.file(".env.previous").rename(repository.file(".env"))
    shutil.rmtree(repository.file(".sops"))
    assert repository.do("stale").stdout == ""


def test_check_finds_missing_names_open_modes_and_odd_lines(repository: Repository) -> None:
    repository.write(".env", f"A='{SECRET}\\\\'\nB=\"$HOME\"\nC=$HOME\nD='fine ${{x}} $5'\nE=x#y\n")
    repository.file(".env").chmod(0o644)
    repository.file(".sops/age-key.txt").chmod(0o640)
    found = repository.findings()
    # MQTT_HOST has a default.
    assert found["names: .env has no MQTT_PASSWORD"] == "WARN"
    assert found[".env: others can read it"] == "FAIL"
    assert found["age key: others can read it"] == "FAIL"
    assert found["lines: Compose and Python read these lines differently: 1, 2, 3"] == "FAIL"


def test_check_finds_misspelt_names_only(repository: Repository) -> None:
    lines = "MQTT_PASWORD=1\nMQTT_PASSWORD_FILE=/x\nHA_TOKEN_FILE=/y\nMETER_PASSWORD=2\nTZ=UTC\n"
    repository.write(".env", lines)
    names = {key for key in repository.findings() if key.startswith("names: ")}
    assert names == {
        "names: .env has no MQTT_PASSWORD",
        "names: MQTT_PASWORD in .env is no setting",
    }


def test_a_scan_finds_values_of_env_without_showing_them(repository: Repository) -> None:
    shutil.copy(repository.file(".env"), repository.file("env-backup.txt"))
    repository.write("notes.md", f"# Notes\nIt is {SECRET}, and plain\n")
    repository.write("fine.md", f"It is {SECRET}  <!-- pragma: allowlist secret -->\nplain\n")
    files = ["env-backup.txt", "notes.md", "fine.md", ".env.enc"]
    done = repository.do("scan", *files, check=False)
    assert done.returncode == 1
    line = repository.read(".env").splitlines().index(f"PASSWORD='{SECRET}'") + 1
    assert done.stdout.splitlines()[:2] == [
        f"env-backup.txt:{line} holds the value of PASSWORD in .env",
        "notes.md:2 holds the value of PASSWORD in .env",
    ]
    assert len(done.stdout.splitlines()) == 3
    assert SECRET not in done.stdout + done.stderr
    repository.file(".env").unlink()
    assert repository.do("scan", *files).stdout == ""


def test_a_secret_has_such_a_name_and_eight_characters_or_more(repository: Repository) -> None:
    secrets = {"MQTT_PASSWORD": "12345678", "HA_TOKEN": "23456789", "CLIENT_SECRET": "34567890"}
    others = {"API_KEY": "7654321", "MQTT_HOST": "45678901", "KEYBOARD": "56789012"}
    lines = (f"export {name} = {value} # comment\r\n" for name, value in (secrets | others).items())
    repository.write(".env", "".join(lines))
    repository.write("a.yml", "".join(f"x{value}y\n" for value in (secrets | others).values()))
    *found, _ = repository.do("scan", "a.yml", check=False).stdout.splitlines()
    assert found == [
        f"a.yml:{number} holds the value of {name} in .env"
        for number, name in enumerate(secrets, 1)
    ]


def test_encrypted_data_is_not_taken_for_a_token(repository: Repository) -> None:
    data = f"ENC[AES256_GCM,data:{'a' * 86}==,iv:x,tag:y,type:str]"
    repository.write(".env.enc", f"#{data}\nA={data}\nsops_mac={data}\n")
    repository.do("scan", ".env.enc")
    repository.write("file.yml", f"key: {'a' * 86}==\n")
    assert repository.do("scan", "file.yml", check=False).returncode == 1


# --- The dotenv reader --------------------------------------------------------------------------


def test_the_dotenv_reader_takes_real_files(tmp_path: Path, python: Path) -> None:
    lines = ["\ufeffexport A = one # c", "B='two' # c", "# c", "", "C=a#b", "D='${A}'", "E=$A", "F"]
    (tmp_path / ".env").write_bytes("\r\n".join(lines).encode())
    code = "import common, json, pathlib as p; print(json.dumps(common.read_dotenv(p.Path('{}'))))"
    env = {"PYTHONPATH": str(TEMPLATE / "scripts")}
    done = run(python, "-c", code.format(tmp_path / ".env"), env=env)
    assert json.loads(done.stdout) == {
        "A": "one", "B": "two", "C": "a#b", "D": "${A}", "E": "$A",
    }  # fmt: skip
    assert "read line 7 differently" in done.stderr
    assert "read line 8 differently" in done.stderr
    assert done.stderr.count("differently") == 2
    assert run(python, "-c", code.format(tmp_path / "missing"), env=env).stdout == "{}\n"


@needs("docker")
def test_compose_and_python_read_alike_what_the_reader_lets_pass(
    bake: Bake, tmp_path: Path, python: Path
) -> None:
    project = bake()
    alphabet = "a'\"\\$#{ ="
    values = [
        "".join(each) for size in (1, 2, 3) for each in itertools.product(alphabet, repeat=size)
    ]
    values += [f"'{value}'" for value in values] + [f'"{value}"' for value in values]
    (tmp_path / "all").write_text("".join(f"V={value}\n" for value in values))
    code = f"import common; print(*common.find_ambiguous(open('{tmp_path}/all').read()))"
    env = {"PYTHONPATH": str(TEMPLATE / "scripts")}
    odd = set(map(int, run(python, "-c", code, env=env).stdout.split()))
    passed = [value for number, value in enumerate(values, 1) if number not in odd]
    assert 100 < len(passed) < len(values)

    (tmp_path / ".env").write_text("".join(f"V{i}={value}\n" for i, value in enumerate(passed)))
    (tmp_path / "compose.yaml").write_text("services: {one: {image: none, env_file: .env}}\n")
    shown = run("docker", "compose", "config", "--format", "json", cwd=tmp_path).stdout
    compose = json.loads(shown)["services"]["one"]["environment"]
    read = """
import json
from pydantic import create_model
from shared.config import Settings
Probe = create_model("Probe", __base__=Settings, **{f"v{i}": (str, "") for i in range(COUNT)})
probe = Probe(_env_file="ENV")
print(json.dumps([getattr(probe, f"v{i}") for i in range(COUNT)]))
""".replace("COUNT", str(len(passed))).replace("ENV", str(tmp_path / ".env"))
    loaded = json.loads(project.uv_run("python", "-c", read, env={"PYTHONPATH": "."}).stdout)
    for number, value in enumerate(passed):
        assert compose[f"V{number}"].replace("$$", "$") == loaded[number], value


# --- The example in docs/secrets.md -------------------------------------------------------------


@pytest.mark.docker
def test_the_documented_account_reaches_its_own_topics_alone(
    bake_copy: Bake,
) -> None:
    project = bake_copy(topic_prefix="home")
    page = project.read("docs/secrets.md")
    blocks = dict(
        re.findall(r"^```(python|sh|text|yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    start = project.file("infrastructure/mosquitto/start.sh")
    start.write_text(start.read_text().replace("else\n", f"{blocks['sh']}else\n"))
    config = project.file("services/example-service/config.py")
    imports, field = blocks["python"].split("class ServiceSettings(Settings):\n")
    docstring, rest = config.read_text().split("\n", 1)
    config.write_text(f"{docstring}\n{imports}{rest}\n{field}")
    project.uv_run("python", "scripts/topics.py")
    # As CI does.
    project.file(".env").unlink()
    project.run("make", "setup")
    acl = project.file("infrastructure/mosquitto/acl.conf")
    acl.write_text(blocks["text"])
    for path in (acl.parent, acl):
        path.chmod(path.stat().st_mode | 0o055)
    with project.file(".env").open("a") as env:
        env.write("OTHER_TOKEN='of-another-service'\n")
    own, shared = (
        re.findall(f"^{name}='(.*)'$", project.read(".env"), re.MULTILINE)[0]
        for name in ("METER_PASSWORD", "MQTT_PASSWORD")
    )
    meter = "services: {meter: {image: none, env_file: .env, networks: [internal]}}\n"
    project.file("meter.yml").write_text(meter)
    project.file("example.yml").write_text(blocks["yaml"])
    name = f"acl-{os.getpid()}"
    files = ("-f", "docker-compose.yml", "-f", "meter.yml", "-f", "example.yml")
    compose = ("docker", "compose", "-p", name, *files)
    model = json.loads(project.run(*compose, "config", "--format", "json").stdout)
    assert model["services"]["meter"]["environment"] == {
        "MQTT_USERNAME": "meter", "MQTT_PASSWORD": own,
    }  # fmt: skip

    def client(tool: str, user: str, password: str, *options: str, check: bool = True) -> str:
        inside = (*compose, "exec", "-T", "mqtt", f"mosquitto_{tool}", "-u", user, "-P", password)
        return project.run(*inside, *options, check=check).stdout.strip()

    def arrives(topic: str) -> bool:
        """Publish on a topic as `meter`, and return whether the message reaches `services`."""
        client("pub", "meter", own, "-t", topic, "-m", "it", "-r", "-q", "1")
        services = ("services", shared)
        client("pub", *services, "-t", "home/end", "-m", "end", "-r", "-q", "1")
        first = client("sub", *services, "-t", topic, "-t", "home/end", "-C", "1", "-W", "10")
        return first == "it"

    try:
        project.run(*compose, "up", "--detach", "--wait", "mqtt")
        assert arrives("home/meter/data")
        assert arrives("home/errors/meter")
        assert arrives("home/coordinator/response/1")
        assert arrives("home/diagnose-1/echo")
        assert not arrives("home/other/data")
        hidden = ("-t", "home/end", "-t", "home/meter/data", "-C", "1", "-W", "10")
        assert client("sub", "meter", own, *hidden) == "it"
    finally:
        project.run(*compose, "down", "--volumes", check=False)
