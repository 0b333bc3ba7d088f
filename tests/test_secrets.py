"""The scripts around .env.enc, on real sops and age, in a folder whose name has spaces."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.baked import TEMPLATE, run
from tests.conftest import Bake
from tests.tools import needs, path_without

pytestmark = [pytest.mark.real, needs("git", "sops", "age-keygen")]

VALUES = r"""# heading, ünïcode
PLAIN=plain
EQUALS=a=b==
HASH=a#b # c
SINGLE='$HOME ${HOME} # "x"'
DOUBLE="it's"
INNER=it's "so"
DOLLAR=$x$$
SPACES=  at both ends  
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
COREUTILS = (
    *("awk", "base64", "cat", "chmod", "cmp", "cp", "cut", "grep", "head", "mkdir", "mktemp", "mv"),
    *("rm", "sed", "sort", "tr"),
)
SECRET = "correct-horse-battery-staple"
# A team mate's public key; nobody has the other half.
ADA = "age1zwhmq9wc5egxp0gxvfe3mtg94a8c6jf7a5geezd9vpm65eqgjy6qv3hqyj"


class Repository:
    """A git repository that has the scripts, and nothing else of a generated one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        shutil.copytree(TEMPLATE / "scripts", path / "scripts")
        shutil.copy(TEMPLATE / ".gitignore", path)
        self.write(
            ".env.example",
            "# Host\nMQTT_HOST='mqtt'\n\n# Password, random in a first .env\nMQTT_PASSWORD=''\n",
        )
        run("git", "init", "--quiet", cwd=path)

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> str:
        return self.file(name).read_bytes().decode()

    def write(self, name: str, text: str) -> None:
        self.file(name).write_bytes(text.encode())

    def script(
        self,
        name: str,
        *arguments: str,
        check: bool = True,
        cwd: Path | None = None,
        **env: str | None,
    ) -> subprocess.CompletedProcess[str]:
        command = self.path / "scripts" / name
        return run(command, *arguments, cwd=cwd or self.path, env=env, check=check)

    def fails(self, name: str, *arguments: str, **env: str) -> str:
        """Run a script that has to fail; what it says on standard error."""
        done = self.script(name, *arguments, check=False, cwd=None, **env)
        assert done.returncode == 1, done
        assert SECRET not in done.stdout + done.stderr
        return done.stderr

    def recipient(self) -> str:
        return self.read(".sops/age-key.pub").strip()

    def contents(self) -> dict[str, bytes]:
        """Every file with its bytes, but for those of git."""
        return {
            path.relative_to(self.path).as_posix(): path.read_bytes()
            for path in self.path.rglob("*")
            if path.is_file() and ".git" not in path.parts
        }

    def leftovers(self) -> list[str]:
        return [path.name for path in self.path.iterdir() if path.name.startswith(".env.tmp")]


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory, isolated_environment: None) -> Repository:
    del isolated_environment
    repository = Repository(tmp_path_factory.mktemp("secrets") / "my repository")
    repository.script("init-secrets.sh")
    repository.write(".env", f"{VALUES}PASSWORD='{SECRET}'\n")
    repository.script("secrets-encrypt.sh")
    return repository


@pytest.fixture
def repository(initialised: Repository, tmp_path: Path) -> Iterator[Repository]:
    """With a key, .env and an .env.enc in step."""
    path = tmp_path / "my repository"
    shutil.copytree(initialised.path, path, symlinks=True)
    copy = Repository.__new__(Repository)
    copy.path = path
    yield copy
    assert copy.leftovers() == []


@pytest.fixture
def fresh(tmp_path: Path) -> Repository:
    """Before the first run of init-secrets.sh."""
    return Repository(tmp_path / "fresh repository")


@pytest.fixture
def other_key(tmp_path: Path) -> tuple[Path, str]:
    """A key file of a team mate and its public key."""
    path = tmp_path / "other-key.txt"
    run("age-keygen", "-o", path)
    return path, run("age-keygen", "-y", path).stdout.strip()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# init-secrets.sh


def test_init_makes_key_rule_and_env_for_the_owner_alone(fresh: Repository) -> None:
    fresh.script("init-secrets.sh")
    assert mode(fresh.file(".sops/age-key.txt")) == 0o600
    assert mode(fresh.file(".env")) == 0o600
    assert mode(fresh.file(".sops")) == 0o700
    assert mode(fresh.file(".sops.yaml")) == 0o644
    assert fresh.recipient() in fresh.read(".sops.yaml")
    *others, password = fresh.read(".env").splitlines()
    assert others == fresh.read(".env.example").splitlines()[:-1]
    name, _, value = password.partition("=")
    assert name == "MQTT_PASSWORD"
    assert len(value.strip("'")) == 32
    assert value.strip("'").isalnum()
    assert fresh.leftovers() == []


def test_init_again_changes_nothing(fresh: Repository) -> None:
    names = (".env", ".sops.yaml", ".sops/age-key.txt", ".sops/age-key.pub")
    fresh.script("init-secrets.sh")
    before = [(fresh.read(name), fresh.file(name).stat().st_mtime_ns) for name in names]
    assert "already there" in fresh.script("init-secrets.sh").stdout
    assert [(fresh.read(name), fresh.file(name).stat().st_mtime_ns) for name in names] == before


def test_two_repositories_get_different_keys_and_passwords(tmp_path: Path) -> None:
    one, two = Repository(tmp_path / "one"), Repository(tmp_path / "two")
    one.script("init-secrets.sh")
    two.script("init-secrets.sh")
    assert one.recipient() != two.recipient()
    assert one.read(".env") != two.read(".env")


def test_init_completes_what_a_key_alone_lacks(fresh: Repository) -> None:
    fresh.file(".sops").mkdir()
    run("age-keygen", "-o", fresh.file(".sops/age-key.txt"))
    key = fresh.read(".sops/age-key.txt")
    # As from a password manager: the secret line alone.
    fresh.write(".sops/age-key.txt", key.splitlines()[-1] + "\n")
    fresh.script("init-secrets.sh")
    assert fresh.recipient() in key
    assert fresh.recipient() in fresh.read(".sops.yaml")


def test_init_leaves_an_env_of_the_user_alone(fresh: Repository) -> None:
    fresh.write(".env", "MINE=1\n")
    fresh.script("init-secrets.sh")
    assert fresh.read(".env") == "MINE=1\n"


def test_init_without_age_is_skipped_and_says_how_to_get_it(
    fresh: Repository, tmp_path: Path
) -> None:
    path = path_without("age-keygen", "sops", folder=tmp_path / "bin")
    done = fresh.script("init-secrets.sh", check=False, PATH=path, SETUP_PYTHON="false")
    assert done.returncode == 3, done
    assert "apt install age" in done.stderr
    assert fresh.file(".env").exists()
    assert not fresh.file(".sops").exists()
    # Once age is there, the same command goes on.
    fresh.script("init-secrets.sh")
    assert fresh.recipient().startswith("age1")


def test_init_takes_pyrage_when_age_is_missing(fresh: Repository, tmp_path: Path) -> None:
    pytest.importorskip("pyrage")
    path = path_without("age-keygen", folder=tmp_path / "bin")
    fresh.script("init-secrets.sh", PATH=path, SETUP_PYTHON=sys.executable)
    fresh.script("secrets-encrypt.sh")
    assert run("age-keygen", "-y", fresh.file(".sops/age-key.txt")).stdout.strip() == (
        fresh.recipient()
    )


# Encrypt and decrypt


def test_round_trip_is_byte_for_byte(repository: Repository) -> None:
    before = repository.read(".env")
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh")
    assert repository.read(".env") == before
    assert mode(repository.file(".env")) == 0o600


def test_round_trip_loses_blank_lines_only(repository: Repository) -> None:
    repository.write(".env", "\n# One\nA=1\n\n  \n# Two\nB=2")
    repository.script("secrets-encrypt.sh")
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh")
    assert repository.read(".env") == "# One\nA=1\n# Two\nB=2\n"


def test_nothing_but_names_is_readable_in_env_enc(repository: Repository) -> None:
    text = repository.read(".env.enc")
    for word in (SECRET, "plain", "größe", "heading", "comment in the middle", "at both ends"):
        assert word not in text
    names = [line.partition("=")[0] for line in text.splitlines() if not line.startswith("sops_")]
    assert [name for name in names if not name.startswith("#")] == [
        line.partition("=")[0]
        for line in repository.read(".env").splitlines()
        if not line.startswith("#")
    ]


def test_a_diff_shows_which_names_changed(repository: Repository) -> None:
    before = repository.read(".env.enc").splitlines()
    repository.write(".env", repository.read(".env").replace("PLAIN=plain", "PLAIN=other"))
    repository.script("secrets-encrypt.sh")
    after = repository.read(".env.enc").splitlines()
    changed = {line.partition("=")[0] for line in set(after) - set(before)}
    assert "PLAIN" in changed
    assert changed <= {"PLAIN", "sops_mac", "sops_lastmodified"}


def test_a_second_run_changes_nothing(repository: Repository) -> None:
    before = repository.read(".env"), repository.read(".env.enc")
    assert "already" in repository.script("secrets-encrypt.sh").stdout
    assert "already" in repository.script("secrets-decrypt.sh").stdout
    assert (repository.read(".env"), repository.read(".env.enc")) == before


def test_works_from_another_folder(repository: Repository, tmp_path: Path) -> None:
    before = repository.read(".env")
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh", cwd=tmp_path)
    assert repository.read(".env") == before
    repository.write(".env", "A=2\n")
    repository.script("secrets-encrypt.sh", cwd=repository.file("scripts"))
    assert "A=ENC[" in repository.read(".env.enc")


def test_decrypt_keeps_an_env_with_other_values(repository: Repository) -> None:
    repository.write(".env", "MINE=1\n")
    assert ".env.previous" in repository.script("secrets-decrypt.sh").stdout
    assert repository.read(".env.previous") == "MINE=1\n"
    assert mode(repository.file(".env.previous")) == 0o600
    assert SECRET in repository.read(".env")
    ignored = run("git", "check-ignore", ".env.previous", cwd=repository.path)
    assert ignored.returncode == 0


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (f"A=1\n{SECRET}\n", 2, "has no ="),
        (f'A=1\nB="{SECRET}\nmore"\n', 2, "quote"),
        (f"B='{SECRET}\nC=1'\n", 1, "quote"),
        (f"A=1\n\n# x\nsops_A={SECRET}\n", 4, "sops_"),
        (f"A_unencrypted={SECRET}\n", 1, "_unencrypted"),
        (f"A=1\nB=2\nA={SECRET}\n", 3, "line 1"),
        (f"A=1\nexport A={SECRET}\n", 2, "line 1"),
        (f"A =  {SECRET}\n", 1, "space before"),
        (f" A={SECRET}\n", 1, "begins with a space"),
        (f"A-B={SECRET}\n", 1, "no valid name"),
        (f"={SECRET}\n", 1, "no valid name"),
        (f"A=1\nB={SECRET}\r\n", 2, "CRLF"),
    ],
)
def test_what_sops_cannot_keep_is_refused_by_line(
    repository: Repository, text: str, line: int, reason: str
) -> None:
    before = repository.read(".env.enc")
    repository.write(".env", text)
    said = repository.fails("secrets-encrypt.sh")
    assert f"line {line}: " in said
    assert reason in said
    assert repository.read(".env.enc") == before


def test_all_lines_that_are_wrong_are_named_at_once(repository: Repository) -> None:
    repository.write(".env", "A=1\nnothing\nA=2\nsops_x=1\n")
    said = repository.fails("secrets-encrypt.sh")
    assert [f"line {number}:" in said for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_an_empty_env_is_refused(repository: Repository) -> None:
    before = repository.read(".env.enc")
    repository.write(".env", "\n")
    assert "empty" in repository.fails("secrets-encrypt.sh")
    assert repository.read(".env.enc") == before


# A failure changes nothing


def test_wrong_key_names_both_sides(repository: Repository, other_key: tuple[Path, str]) -> None:
    key, public = other_key
    before = repository.read(".env")
    said = repository.fails("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(key))
    assert f"secrets-recipients.sh add {public}" in said
    assert repository.recipient() in said
    assert repository.read(".env") == before


def test_missing_key_says_where_it_belongs(repository: Repository) -> None:
    before = repository.read(".env")
    recipient = repository.recipient()
    shutil.rmtree(repository.file(".sops"))
    said = repository.fails("secrets-decrypt.sh")
    assert ".sops/age-key.txt is missing" in said
    assert recipient in said
    assert repository.read(".env") == before


def test_who_cannot_read_the_values_cannot_replace_them(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    before = repository.read(".env.enc")
    repository.write(".env", "A=1\n")
    repository.fails("secrets-encrypt.sh", SOPS_AGE_KEY_FILE=str(other_key[0]))
    assert repository.read(".env.enc") == before


def test_a_first_encryption_that_fails_leaves_no_env_enc(repository: Repository) -> None:
    repository.file(".env.enc").unlink()
    # Well-formed at a glance only.
    rules = repository.read(".sops.yaml").replace(repository.recipient(), "age1" + "q" * 58)
    repository.write(".sops.yaml", rules)
    assert "nothing was changed" in repository.fails("secrets-encrypt.sh")
    assert not repository.file(".env.enc").exists()


def damaged(text: str, how: str) -> str:
    lines = text.splitlines(keepends=True)
    match how:
        case "cut in the values":
            return "".join(lines[:5])
        case "cut in the metadata":
            return text[: text.index("sops_mac=") + 40]
        case "empty":
            return ""
        case "a value swapped":
            one = next(line for line in lines if line.startswith("PLAIN="))
            two = next(line for line in lines if line.startswith("PASSWORD="))
            return text.replace(one, "PLAIN=" + two.partition("=")[2])
        case "a line removed":
            return "".join(line for line in lines if not line.startswith("PLAIN="))
        case "a value in the clear":
            return text.replace("EMPTY=\n", f"EMPTY={SECRET}\n")
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "cut in the values",
        "cut in the metadata",
        "empty",
        "a value swapped",
        "a line removed",
        "a value in the clear",
    ],
)
def test_a_damaged_env_enc_never_touches_env(repository: Repository, how: str) -> None:
    before = repository.read(".env")
    repository.write(".env.enc", damaged(repository.read(".env.enc"), how))
    broken = repository.read(".env.enc")
    assert "git restore .env.enc" in repository.fails("secrets-decrypt.sh")
    repository.fails("secrets-encrypt.sh")
    assert repository.read(".env") == before
    assert repository.read(".env.enc") == broken


@pytest.mark.parametrize("name", ["secrets-encrypt.sh", "secrets-decrypt.sh", "secrets-edit.sh"])
def test_without_sops_the_message_says_how_to_get_it(
    repository: Repository, tmp_path: Path, name: str
) -> None:
    path = path_without("sops", folder=tmp_path / "bin")
    assert "sops is missing: " in repository.fails(name, PATH=path)


# Lets the first calls pass, then tells that it was called, and waits.
WAITING_TOOL = """#!/bin/sh
echo >>"{folder}/calls"
if [ "$(wc -l <"{folder}/calls")" -ge {number} ]; then
  echo x >"{folder}/started"
  read -r line <"{folder}/release"
fi
exec "{tool}" "$@"
"""


@pytest.mark.timeout(60)  # a script that never gets to that call would be waited for
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "script"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("name", "arguments", "call"),
    [
        ("secrets-encrypt.sh", (), 1),
        ("secrets-encrypt.sh", (), 2),
        ("secrets-decrypt.sh", (), 1),
        # sops decrypts to compare, then for the editor, which is the third.
        ("secrets-edit.sh", (), 3),
        ("secrets-check.sh", (), 2),
        ("secrets-recipients.sh", ("add", ADA), 2),
        ("secrets-recipients.sh", ("rotate",), 3),
    ],
)
def test_an_interrupt_leaves_everything_as_it_was(
    repository: Repository,
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
    call: int,
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
        (tools / tool).write_text(WAITING_TOOL.format(folder=tmp_path, number=call, tool=real))
        (tools / tool).chmod(0o755)
    process = subprocess.Popen(
        [repository.file("scripts") / name, *arguments],
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "EDITOR": "editor",
            "TMPDIR": str(temporary),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # A suite that runs in the background hands down an ignored signal.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert (tmp_path / "started").read_text() == "x\n"
    assert repository.leftovers() != []
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
        (tmp_path / "release").write_text("x\n")
        # bash acts on the signal once the tool is done; it must not call it again.
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + number, said
    assert SECRET not in said
    assert repository.contents() == before
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_rotation_cannot_be_stopped_between_its_files(
    repository: Repository, tmp_path: Path, call: int
) -> None:
    """The key, its public half, .env.enc and .sops.yaml fit each other at the end."""
    values = repository.read(".env")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mv").write_text(
        f'#!/bin/sh\necho >>"{tmp_path}/calls"\n'
        f'[ "$(wc -l <"{tmp_path}/calls")" -ne {call} ] || kill -TERM "$PPID"\n'
        f'exec "{shutil.which("mv")}" "$@"\n'
    )
    (tools / "mv").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    repository.script("secrets-recipients.sh", "rotate", PATH=path)
    assert (tmp_path / "calls").read_text() == "\n" * 4
    public = run("age-keygen", "-y", repository.file(".sops/age-key.txt")).stdout.strip()
    assert repository.recipient() == public
    assert public in repository.read(".sops.yaml")
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh")
    assert repository.read(".env") == values


def test_no_secret_is_on_a_command_line_or_in_the_log(
    repository: Repository, fresh: Repository, tmp_path: Path
) -> None:
    log, tools = tmp_path / "calls", tmp_path / "bin"
    tools.mkdir()
    for tool in ("sops", "age-keygen", "git", *COREUTILS):
        (tools / tool).write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{tool} $*" >>"{log}"\nexec "{shutil.which(tool)}" "$@"\n'
        )
        (tools / tool).chmod(0o755)
    env: dict[str, Any] = {"PATH": f"{tools}:{os.environ['PATH']}", "EDITOR": "true"}
    repository.write(".env", repository.read(".env") + "MORE=more\n")
    old_key = repository.read(".sops/age-key.txt")
    runs = [
        fresh.script("init-secrets.sh", **env),
        repository.script("secrets-encrypt.sh", **env),
        repository.script("secrets-check.sh", check=False, **env),
        repository.script("secrets-edit.sh", **env),
        repository.script("secrets-recipients.sh", "add", ADA, "Ada", **env),
        repository.script("secrets-recipients.sh", "remove", ADA, **env),
        repository.script("secrets-recipients.sh", "rotate", **env),
    ]
    repository.file(".env").unlink()
    runs.append(repository.script("secrets-decrypt.sh", **env))
    shown = log.read_text() + "".join(done.stdout + done.stderr for done in runs)
    assert "sops --config" in shown
    keys = old_key, repository.read(".sops/age-key.txt"), fresh.read(".sops/age-key.txt")
    password = fresh.read(".env").rpartition("=")[2].strip("'\n")
    for secret in (SECRET, password, *(key.splitlines()[-1] for key in keys)):
        assert secret not in shown


# Edit


def test_edit_changes_env_enc(repository: Repository, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nprintf "ADDED=%s\\n" "{SECRET}-2" >>"$1"\n')
    editor.chmod(0o755)
    said = repository.script("secrets-edit.sh", EDITOR=f"'{editor}'", SOPS_EDITOR=None)
    assert SECRET not in said.stdout + said.stderr
    assert "ADDED=ENC[" in repository.read(".env.enc")
    repository.script("secrets-decrypt.sh")
    assert repository.read(".env").endswith(f"ADDED={SECRET}-2\n")


def test_edit_without_a_change_is_no_error(repository: Repository) -> None:
    before = repository.read(".env.enc")
    assert "Nothing changed" in repository.script("secrets-edit.sh", EDITOR="true").stdout
    assert repository.read(".env.enc") == before


@pytest.mark.parametrize("editor", ["false", 'sh -c \'echo A=1 >>"$0"; echo A=2 >>"$0"\''])
def test_a_failed_edit_changes_nothing(repository: Repository, editor: str) -> None:
    before = repository.read(".env.enc")
    assert "stays as it was" in repository.fails("secrets-edit.sh", EDITOR=editor)
    assert repository.read(".env.enc") == before


# Recipients


def test_a_second_recipient_comes_and_goes(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    key, public = other_key
    repository.script("secrets-recipients.sh", "add", public, "Ada Müller", "(Zürich)")
    listed = repository.script("secrets-recipients.sh", "list").stdout
    assert f"{public} Ada Müller (Zürich)" in listed
    assert f"{repository.recipient()} Test Author (you)" in listed
    values = repository.read(".env")
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(key))
    assert repository.read(".env") == values
    with_both = repository.read(".env.enc")

    repository.script("secrets-recipients.sh", "remove", public)
    assert public not in repository.read(".sops.yaml") + repository.read(".env.enc")
    repository.fails("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(key))
    # The data key is a new one, too: what the old one opened opens nothing now.
    kept = {line for line in repository.read(".env.enc").splitlines() if "=ENC[" in line}
    assert not kept & set(with_both.splitlines())
    repository.write(".env", "LATER=1\n")
    repository.script("secrets-encrypt.sh")
    repository.fails("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(key))
    repository.script("secrets-check.sh")


def test_recipients_before_there_is_an_env_enc(
    fresh: Repository, other_key: tuple[Path, str]
) -> None:
    fresh.script("init-secrets.sh")
    fresh.script("secrets-recipients.sh", "add", other_key[1])
    fresh.script("secrets-encrypt.sh")
    fresh.script("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(other_key[0]))


def test_adding_and_removing_twice_changes_nothing(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    repository.script("secrets-recipients.sh", "add", other_key[1])
    before = repository.read(".env.enc"), repository.read(".sops.yaml")
    repository.script("secrets-recipients.sh", "add", other_key[1])
    repository.script("secrets-recipients.sh", "sync")
    assert (repository.read(".env.enc"), repository.read(".sops.yaml")) == before
    repository.script("secrets-recipients.sh", "remove", other_key[1])
    before = repository.read(".env.enc"), repository.read(".sops.yaml")
    repository.script("secrets-recipients.sh", "remove", other_key[1])
    assert (repository.read(".env.enc"), repository.read(".sops.yaml")) == before


def test_recipients_that_make_no_sense_are_refused(repository: Repository) -> None:
    before = repository.read(".env.enc"), repository.read(".sops.yaml")
    secret_key = repository.read(".sops/age-key.txt").splitlines()[-1]
    said = repository.fails("secrets-recipients.sh", "add", secret_key)
    assert "secret key" in said
    assert secret_key not in said
    assert "Not an age public key" in repository.fails("secrets-recipients.sh", "add", "ada")
    # Well-formed at a glance only: sops finds the checksum wrong, and nothing changes.
    repository.fails("secrets-recipients.sh", "add", "age1" + "q" * 58)
    said = repository.fails("secrets-recipients.sh", "remove", repository.recipient())
    assert "only recipient" in said
    assert (repository.read(".env.enc"), repository.read(".sops.yaml")) == before


def test_only_another_recipient_removes_a_key(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    key, public = other_key
    repository.script("secrets-recipients.sh", "add", public)
    said = repository.fails("secrets-recipients.sh", "remove", repository.recipient())
    assert "another recipient" in said
    repository.script(
        "secrets-recipients.sh", "remove", repository.recipient(), SOPS_AGE_KEY_FILE=str(key)
    )
    repository.fails("secrets-decrypt.sh")


def test_rotation_replaces_the_key_and_keeps_the_old_one(repository: Repository) -> None:
    old_key, old_public = repository.read(".sops/age-key.txt"), repository.recipient()
    repository.write("old-key.txt", old_key)
    repository.script("secrets-recipients.sh", "rotate")
    assert repository.recipient() != old_public
    assert old_public not in repository.read(".sops.yaml") + repository.read(".env.enc")
    assert "# Test Author" in repository.read(".sops.yaml")
    assert mode(repository.file(".sops/age-key.txt")) == 0o600
    kept = [path for path in repository.file(".sops").glob("age-key-*") if path.is_file()]
    assert [path.read_text() for path in kept] == [old_key]
    assert [mode(path) for path in kept] == [0o600]
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh")
    repository.fails("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(repository.file("old-key.txt")))


def test_sync_follows_an_edit_of_the_rules_by_hand(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    key, public = other_key
    rules = f"creation_rules:\n  - age: {repository.recipient()},{public}\n"
    repository.write(".sops.yaml", rules)
    assert "secrets-recipients.sh sync" in repository.script("secrets-check.sh", check=False).stdout
    repository.script("secrets-recipients.sh", "sync")
    repository.script("secrets-decrypt.sh", SOPS_AGE_KEY_FILE=str(key))
    # This shape is not for the script to edit; it says so instead of spoiling it.
    assert "by hand" in repository.fails("secrets-recipients.sh", "remove", public)
    assert repository.read(".sops.yaml") == rules


def test_a_new_team_mate_gets_in(repository: Repository, tmp_path: Path) -> None:
    clone = Repository(tmp_path / "clone")
    for name in (".sops.yaml", ".env.enc"):
        shutil.copy(repository.file(name), clone.path)
    said = clone.script("init-secrets.sh").stdout
    assert f"secrets-recipients.sh add {clone.recipient()}" in said
    # Values of one's own, made up, would go over the team's.
    assert not clone.file(".env").exists()
    clone.fails("secrets-decrypt.sh")
    repository.script("secrets-recipients.sh", "add", clone.recipient())
    for name in (".sops.yaml", ".env.enc"):
        shutil.copy(repository.file(name), clone.path)
    clone.script("secrets-decrypt.sh")
    assert clone.read(".env") == repository.read(".env")


def test_a_lost_key_is_replaced_with_the_help_of_another_recipient(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    key, public = other_key
    old, values = repository.recipient(), repository.read(".env")
    repository.script("secrets-recipients.sh", "add", public)
    repository.file(".sops/age-key.txt").unlink()
    said = repository.script("init-secrets.sh").stdout
    new = repository.recipient()
    assert new == run("age-keygen", "-y", repository.file(".sops/age-key.txt")).stdout.strip()
    assert new != old
    assert f"secrets-recipients.sh add {new}" in said
    for change in (("add", new), ("remove", old)):
        repository.script("secrets-recipients.sh", *change, SOPS_AGE_KEY_FILE=str(key))
    repository.file(".env").unlink()
    repository.script("secrets-decrypt.sh")
    assert repository.read(".env") == values


def test_when_all_keys_are_lost_one_starts_anew(repository: Repository) -> None:
    old = repository.recipient()
    for name in (".sops/age-key.txt", ".env.enc", ".sops.yaml"):
        repository.file(name).unlink()
    repository.script("init-secrets.sh")
    repository.script("secrets-encrypt.sh")
    assert old not in repository.read(".sops.yaml") + repository.read(".env.enc")
    assert SECRET in repository.read(".env")
    assert "in step" in repository.script("secrets-decrypt.sh").stdout


# secrets-check.sh


def test_check_is_content_with_a_repository_in_step(repository: Repository) -> None:
    repository.write(".env", f"MQTT_HOST='mqtt'\nMQTT_PASSWORD='{SECRET}'\n")
    repository.script("secrets-encrypt.sh")
    said = repository.script("secrets-check.sh").stdout
    assert f"{repository.recipient()} Test Author (you)" in said
    assert "your key opens .env.enc" in said
    assert ".env is in step with .env.enc" in said
    assert "warn" not in said
    assert SECRET not in said


def test_check_tells_what_is_newer(repository: Repository) -> None:
    repository.write(".env", repository.read(".env") + "MORE=1\n")
    present = repository.file(".env.enc").stat().st_mtime
    os.utime(repository.file(".env"), (present + 10, present + 10))
    newer = repository.script("secrets-check.sh", check=False).stdout
    assert "warn  .env is newer than .env.enc" in newer
    assert "newer" in repository.script("secrets-check.sh", "--stale").stdout
    os.utime(repository.file(".env"), (present - 10, present - 10))
    older = repository.script("secrets-check.sh", check=False).stdout
    assert "secrets-decrypt.sh brings it in step" in older
    assert repository.script("secrets-check.sh", "--stale").stdout == ""


def test_check_finds_missing_names_open_modes_and_odd_lines(repository: Repository) -> None:
    repository.write(".env", f"A='{SECRET}\\\\'\nB=\"$HOME\"\nC=$HOME\nD='fine ${{x}} $5'\nE=x#y\n")
    repository.file(".env").chmod(0o644)
    repository.file(".sops/age-key.txt").chmod(0o640)
    done = repository.script("secrets-check.sh", check=False)
    assert done.returncode == 1
    assert "not in .env: MQTT_HOST MQTT_PASSWORD" in done.stdout
    assert "fail  .env can be read by others" in done.stdout
    assert "fail  .sops/age-key.txt can be read by others" in done.stdout
    odd = [line.strip() for line in done.stdout.splitlines() if line.startswith("  line ")]
    assert odd == ["line 1", "line 2", "line 3", "line 5"]
    assert SECRET not in done.stdout


def test_check_tells_that_the_key_does_not_open(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    done = repository.script("secrets-check.sh", check=False, SOPS_AGE_KEY_FILE=str(other_key[0]))
    assert done.returncode == 1
    assert "fail  Your key does not open .env.enc" in done.stdout


def test_check_says_nothing_of_values_that_it_cannot_see(
    repository: Repository, tmp_path: Path
) -> None:
    newer = repository.file(".env.enc").stat().st_mtime + 10
    os.utime(repository.file(".env"), (newer, newer))
    missing = str(tmp_path / "missing")
    done = repository.script("secrets-check.sh", check=False, SOPS_AGE_KEY_FILE=missing)
    assert "fail  No age key" in done.stdout
    assert "in step" not in done.stdout
    path = path_without("sops", folder=tmp_path / "bin")
    stale = ("secrets-check.sh", "--stale")
    assert repository.script(*stale, SOPS_AGE_KEY_FILE=missing).stdout == ""
    assert repository.script(*stale, PATH=path).stdout == ""


def test_without_an_env_the_way_to_one_is_named(repository: Repository) -> None:
    repository.file(".env").unlink()
    assert "secrets-decrypt.sh makes .env" in repository.script("init-secrets.sh").stdout
    assert "no .env: scripts/secrets-decrypt.sh" in repository.script("secrets-check.sh").stdout
    repository.file(".env.enc").unlink()
    assert "no .env: scripts/init-secrets.sh" in repository.script("secrets-check.sh").stdout


def test_a_damaged_key_file_stops_the_setup(fresh: Repository) -> None:
    shutil.copy(TEMPLATE / "Makefile", fresh.path)
    fresh.file(".sops").mkdir()
    fresh.write(".sops/age-key.txt", "no key\n")
    done = run("make", "setup", cwd=fresh.path, check=False)
    assert done.returncode != 0
    assert "holds no age key: move it away" in done.stderr
    assert "init-git" not in done.stdout


def test_a_rule_without_an_age_key_is_told(repository: Repository) -> None:
    repository.write(".sops.yaml", "creation_rules:\n  - pgp: ABCD\n")
    for command in (["list"], ["sync"], ["remove", repository.recipient()]):
        assert "names no age key" in repository.fails("secrets-recipients.sh", *command)
    done = repository.script("secrets-check.sh", check=False)
    assert done.returncode == 1
    assert "names no age key" in done.stdout
    assert "your key opens .env.enc" in done.stdout


def test_a_mistyped_key_is_refused_before_there_is_anything_to_encrypt(
    fresh: Repository, other_key: tuple[Path, str]
) -> None:
    fresh.script("init-secrets.sh")
    before = fresh.read(".sops.yaml")
    wrong = other_key[1][:-1] + ("q" if other_key[1][-1] != "q" else "p")
    assert "Not an age public key" in fresh.fails("secrets-recipients.sh", "add", wrong)
    assert fresh.read(".sops.yaml") == before
    said = fresh.script("secrets-recipients.sh", "add", other_key[1]).stdout
    assert said.endswith("Commit .sops.yaml.\n")


def test_a_key_file_may_hold_several_keys(
    repository: Repository, other_key: tuple[Path, str]
) -> None:
    mine = repository.recipient()
    repository.script("secrets-recipients.sh", "add", other_key[1])
    both = repository.read(".sops/age-key.txt") + other_key[0].read_text()
    repository.write(".sops/age-key.txt", both)
    assert repository.script("secrets-recipients.sh", "list").stdout.count("(you)") == 2
    for key in (mine, other_key[1]):
        assert "That is your own key" in repository.fails("secrets-recipients.sh", "remove", key)
    assert "several keys" in repository.fails("secrets-recipients.sh", "rotate")


def test_check_tells_what_a_killed_run_left(repository: Repository) -> None:
    repository.file(".env.tmp.abc").mkdir()
    said = repository.script("secrets-check.sh", check=False).stdout
    repository.file(".env.tmp.abc").rmdir()
    assert "warn  .env.tmp.abc was left" in said


@needs("docker")
def test_compose_and_python_read_alike_what_check_lets_pass(bake: Bake, tmp_path: Path) -> None:
    project = bake()
    alphabet = "a'\"\\$#{ ="
    values = [
        "".join(each) for size in (1, 2, 3, 4) for each in itertools.product(alphabet, repeat=size)
    ]
    values += [f"'{value}'" for value in values] + [f'"{value}"' for value in values]
    (tmp_path / "all").write_text("".join(f"V={value}\n" for value in values))
    check = 'source "$0/scripts/secrets-lib.sh"; check_reading "$1"'
    done = run("bash", "-c", check, project.path, tmp_path / "all", check=False)
    odd = {int(line.split()[1]) for line in done.stdout.splitlines()}
    passed = [value for number, value in enumerate(values, 1) if number not in odd]
    assert 1000 < len(passed) < len(values)

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
    python = json.loads(project.uv_run("python", "-c", read, env={"PYTHONPATH": "."}).stdout)
    for number, value in enumerate(passed):
        assert compose[f"V{number}"].replace("$$", "$") == python[number], value


def test_check_works_without_sops(repository: Repository, tmp_path: Path) -> None:
    path = path_without("sops", "age-keygen", folder=tmp_path / "bin")
    repository.write(".env", "A='1'\n")
    repository.file(".env").chmod(0o600)
    assert "sops is missing" in repository.script("secrets-check.sh", PATH=path).stdout
