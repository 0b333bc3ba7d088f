"""Manage the secrets: .env, .env.enc (encrypted by sops), its recipients and the age key.

The Makefile, the git hooks and scripts/secrets-*.sh call this program. `init` also runs on
Python 3.10 outside the locked environment, while a repository is generated.
"""

import argparse
import contextlib
import difflib
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml
from common import ROOT, SECRET_NAME, find_ambiguous, make_parser, read_dotenv, run, say

ENV, EXAMPLE, ENCRYPTED = ROOT / ".env", ROOT / ".env.example", ROOT / ".env.enc"
CONFIG = ROOT / ".sops.yaml"
# The .git of a worktree is a file: gitdir: /path/to/main/.git/worktrees/NAME
GIT_LINK = (ROOT / ".git").read_text(encoding="utf-8") if (ROOT / ".git").is_file() else ""
MAIN_TREE = re.match(r"gitdir: (.*)/\.git/worktrees/", GIT_LINK)
# Worktrees share the key of the main one.
KEY = Path(ROOT, MAIN_TREE[1] if MAIN_TREE else "").resolve() / ".sops" / "age-key.txt"
KEY_NAME = os.path.relpath(KEY, ROOT)
NEW_CONFIG = r"""# Who can open .env.enc. Change this with: make secrets-recipients ARGS="add KEY"
creation_rules:
  - path_regex: (^|/)\.env\.enc$
    age:
      - """
# A private directory for values in the clear, while a command runs.
WORK = ROOT / ".env.tmp"
KEY_VARIABLES = ("SOPS_AGE_KEY", "SOPS_AGE_KEY_FILE", "SOPS_AGE_KEY_CMD")
# sops would guess the type from the ending of the name, wrongly.
DOTENV = ("--input-type", "dotenv", "--output-type", "dotenv")
# Exit codes: of this program if something is missing, and of sops.
UNAVAILABLE, WRONG_KEY = 3, 128
# Fields of a rule in .sops.yaml that name other recipients than age and SSH keys.
OTHER_RECIPIENTS = {"azure_keyvault", "gcp_kms", "hc_vault_transit_uri", "hckms", "kms", "pgp"}
PUBLIC_KEY = re.compile(r"(age1[0-9a-z]{50,}|ssh-\S+ [\w+/=]+)(?: (.*))?")
ENCRYPTED_LINE = re.compile(
    r"(#|(?!sops_)[^=]+=|sops_mac=)(ENC\[AES256_GCM,.*\])?|sops_(\w+__list_\d+__map_\w+|"
    r"lastmodified|version|shamir_threshold|mac_only_encrypted|(un)?encrypted_\w+)=.*"
)
STORABLE_LINE = re.compile(
    r"#.*|(export\s+)?(?!sops_)[A-Za-z_]\w*(?<!_unencrypted)\s*=\s*((['\"]).*\3.*|[^'\"\s].*)?",
    re.ASCII,
)
SHORTEST_SECRET = 8
SECRET_PATTERNS = {
    "an age secret key": re.compile(r"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{20,}"),
    "an API token": re.compile(r"(?<![\w-])[\w-]{86}=="),
}
PYRAGE = """\
from pyrage import x25519
key = x25519.Identity.generate()
print(f"# public key: {key.to_public()}\\n{key}")
"""


class SecretsError(Exception):
    """A command cannot go on. The arguments are a message without values and an exit code."""


def fail(*lines: str, code: int = 1) -> NoReturn:
    raise SecretsError("\n".join(lines), code)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Let one command at a time change the secrets, and give it WORK."""
    os.umask(0o077)
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail("Another command is changing the secrets. Wait until it has ended")
    # A command that was killed leaves these beside the files that it was replacing.
    for path in (ENV, ENCRYPTED, CONFIG, KEY):
        beside(path).unlink(missing_ok=True)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(WORK)


def read(path: Path) -> str:
    """Return the text of a file, without byte order mark, its lines ending in LF."""
    if not path.is_file():
        fail(f"{path.name} is missing: make setup")
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        fail(f"{path.name} is not valid UTF-8. Save it again as UTF-8")


def beside(path: Path) -> Path:
    """Return the file that becomes `path`, or what a symbolic link leads to."""
    target = path.resolve()
    return target.with_name(f".env.tmp.{target.name}")


def replace(path: Path, text: str) -> None:
    """Replace a file, or the one that a symbolic link leads to, in one step."""
    target, new = path.resolve(), beside(path)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    new.write_text(text, encoding="utf-8", newline="")
    new.chmod(0o644 if path in {CONFIG, ENCRYPTED} else 0o600)
    new.replace(target)


def without_blank_lines(text: str) -> str:
    """Return a dotenv file as sops stores it."""
    return "".join(f"{line}\n" for line in text.split("\n") if line.strip())


def names_without(text: str, stored: str) -> str:
    """Return the names in a stored dotenv text that another one lacks, such as `A, B`."""
    names = re.compile(r"^(?:export\s+)?(\w+)\s*=", re.MULTILINE)
    return ", ".join(sorted({*names.findall(stored)} - {*names.findall(text)}))


def lines_unlike(pattern: re.Pattern[str], text: str) -> str:
    """Return the numbers of the lines that do not match, such as `2, 5`."""
    lines = enumerate(text.split("\n"), 1)
    return ", ".join(str(n) for n, line in lines if line.strip() and not pattern.fullmatch(line))


def sops(*arguments: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run sops with the key in use. Fail if sops is missing or too old."""
    if not key_variables() and KEY.is_file():
        env = {"SOPS_AGE_KEY_FILE": str(KEY), **env}
    # sops puts the values there that its editor sees.
    result = run("sops", *arguments, stdin=stdin, TMPDIR=str(WORK), **env)
    if result.returncode not in {0, WRONG_KEY}:
        version = re.findall(r"\d+", run("sops", "--disable-version-check", "--version").stdout)
        if list(map(int, version[:2])) < [3, 11]:
            state = f"too old: {'.'.join(version[:3])}" if version else "missing"
            way = "Install 3.11 or newer: brew install sops, or"
            releases = "https://github.com/getsops/sops/releases"
            fail(f"sops is {state}", f"{way} {releases}", code=UNAVAILABLE)
    return result


def key_variables() -> list[str]:
    """Return the variables that name a key. It is tried before the key of the repository."""
    return [name for name in KEY_VARIABLES if os.environ.get(name)]


def own_public_keys() -> list[str]:
    """Return the public keys of the environment and of this repository."""
    identities = [os.environ.get("SOPS_AGE_KEY", "")]
    if command := os.environ.get("SOPS_AGE_KEY_CMD"):
        identities.append(run(*shlex.split(command)).stdout)
    files = [Path(os.environ.get("SOPS_AGE_KEY_FILE") or KEY), KEY]
    identities += [read(path) for path in dict.fromkeys(files) if path.is_file()]
    return public_keys("\n".join(identities))


def public_keys(identities: str) -> list[str]:
    """Return the public keys of secret keys. If age is missing, read them from the comments."""
    derived = run("age-keygen", "-y", stdin=identities)
    if derived.returncode == 0:
        return derived.stdout.split()
    return re.findall(r"^#.*\b(age1[0-9a-z]+)", identities, re.MULTILINE)


def make_key() -> str:
    """Return the text of a new key file, made by age or by its Python package."""
    commands = [["age-keygen"], [sys.executable, "-c", PYRAGE]]
    if shutil.which("uv") or (ROOT / ".tools").is_dir():
        options = ["--quiet", "--no-project", "--with", "pyrage==1.4.0"]
        commands.append([str(ROOT / "scripts/uv"), "run", *options, "python", "-c", PYRAGE])
    for command in commands:
        # uv would retry for minutes if the network is away.
        made = run(*command, UV_HTTP_TIMEOUT="10", UV_HTTP_RETRIES="0")
        if made.returncode == 0:
            return made.stdout
    way = "Install it: apt install age, or brew install age"
    fail(f"No age key: age is missing. {way}", code=UNAVAILABLE)


def read_rule(text: str) -> dict[str, int]:
    """Return the recipients of the first rule for .env.enc, as in sops, and their line numbers."""
    try:
        rules = fields_of(yaml.compose(text, yaml.SafeLoader)).get("creation_rules")
        for rule in map(fields_of, getattr(rules, "value", [])):
            if "path_regex" not in rule or re.search(rule["path_regex"].value, ENCRYPTED.name):
                break
        else:
            fail(".sops.yaml has no rule for .env.enc. See docs/secrets.md")
    except (yaml.YAMLError, re.error) as error:
        fail(f".sops.yaml is not valid: {error}")
    recipients: dict[str, int] = {}
    for field, node in rule.items():
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            line = item.start_mark.line + 1
            if field == "age" and isinstance(item, yaml.ScalarNode):
                recipients |= {key.strip(): line for key in item.value.split(",")}
            elif field in {"age", "key_groups", "<<", *OTHER_RECIPIENTS}:
                fail(f".sops.yaml, line {line}: this {field} is not supported. Use sops itself")
    return recipients or fail(".sops.yaml names no recipient for .env.enc. Add your age key")


def fields_of(node: yaml.Node | None) -> dict[str, yaml.Node]:
    return {k.value: v for k, v in node.value} if isinstance(node, yaml.MappingNode) else {}


def edit_rule(*, remove: str = "", add: str = "", name: str = "") -> str:
    """Return .sops.yaml with a public key added, removed or replaced, each on a line of its own."""
    lines, present = read(CONFIG).splitlines(), read_rule(read(CONFIG))
    number = present.get(remove) or max(present.values())
    line = lines[number - 1]
    if remove:
        changed = [line.replace(remove, add)] if add else []
    else:
        indent = line[: len(line) - len(line.lstrip(" -"))]
        changed = [line, f"{indent}{add} # {name}".rstrip(" #")]
    text = "\n".join([*lines[: number - 1], *changed, *lines[number:], ""])
    # The rule may have another form.
    with contextlib.suppress(SecretsError):
        if read_rule(text).keys() == {*present, add} - {remove, ""}:
            return text
    way = 'change this by hand, then run: make secrets-recipients ARGS="sync"'
    fail(f".sops.yaml, line {number}: {way}")


def recipients_in(encrypted: str) -> set[str]:
    """Return the recipients that an encrypted file names."""
    return set(re.findall(r"^sops_\w+__map_(?!enc|created)\w+=(.*)$", encrypted, re.MULTILINE))


def open_values() -> str:
    """Return the values in .env.enc, opened by the key in use or by one that a rotation kept."""
    if not ENCRYPTED.is_file():
        fail(".env.enc is missing", "Make it from .env: make secrets-encrypt", code=UNAVAILABLE)
    for key in [None, KEY, *sorted(KEY.parent.glob("age-key-*.txt"))]:
        env = {"SOPS_AGE_KEY_FILE": str(key)} if key else {}
        opened = sops("--config", os.devnull, "decrypt", *DOTENV, ENCRYPTED, **env)
        if opened.returncode == 0:
            if key:
                used = " and ".join(key_variables()) or KEY_NAME
                sys.stderr.write(f"{used} does not open .env.enc, but {key.name} does\n")
                os.environ.update(env)
            return opened.stdout
        if opened.returncode != WRONG_KEY:
            problem = f"is damaged or was changed by hand (sops exit {opened.returncode})"
            way = "Take a good one: git restore .env.enc, or git log -- .env.enc"
            fail(f".env.enc {problem}", way)
    tried = [*key_variables(), KEY_NAME if KEY.is_file() else f"{KEY_NAME} (missing: make setup)"]
    mine = own_public_keys() or ["YOUR_PUBLIC_KEY"]
    fail(
        f"No key opens .env.enc. Tried: {', '.join(tried)}",
        f"It is encrypted for: {', '.join(sorted(recipients_in(read(ENCRYPTED))))}",
        f'Ask one of them to run: make secrets-recipients ARGS="add {mine[0]}"',
    )


def store(text: str, before: str, config: str) -> None:
    """Encrypt values to .env.enc for the recipients in `config`, a text of .sops.yaml.

    While the recipients stay, a value that does not change keeps its ciphertext, for a readable
    diff. Otherwise all are encrypted again, because former recipients know the data key.
    """
    values, failed = without_blank_lines(text), ".env.enc was not changed"
    if bad := lines_unlike(STORABLE_LINE, text) or ("" if values else "1"):
        rule = "Write NAME=VALUE on one line, with closed quotes, and no sops_* or *_unencrypted"
        fail(f"{failed}: sops cannot store line {bad}", rule)
    recipients = read_rule(config).keys()
    draft, rules = WORK / ENCRYPTED.name, WORK / CONFIG.name
    rules.write_text(config, encoding="utf-8")
    command: list[str | Path] = ["encrypt", "--filename-override", draft, "--output", draft]
    if before and recipients_in(read(ENCRYPTED)) == recipients:
        if values == before:
            say(".env.enc is already up to date")
            return
        shutil.copyfile(ENCRYPTED, draft)
        command = ["edit", draft]
    # As an editor, tee only takes the new values. sops encrypts those that differ.
    done = sops("--config", rules, *command, *DOTENV, stdin=values, SOPS_EDITOR="tee")
    if done.returncode != 0:
        fail(done.stderr.strip(), f"{failed}: sops failed (exit {done.returncode})")
    if bad := lines_unlike(ENCRYPTED_LINE, read(draft)):
        fail(f"{failed}: sops would leave line {bad} readable")
    if recipients_in(read(draft)) != recipients:
        fail(f"{failed}: sops would encrypt for others than .sops.yaml names")
    replace(ENCRYPTED, read(draft))
    say(f"Encrypted .env.enc for {len(recipients)} recipient(s). Commit it")


def first_env(example: str) -> str:
    """Return a .env with the secrets alone. A copy of a default would hide its later changes."""
    lines = ["# .env.example lists all settings with their defaults. Set others here.\n"]
    for comment, name in re.findall(r"^(#.*\n)?(\w+)=", example, re.MULTILINE):
        is_random = "random in a first .env" in comment
        if is_random or SECRET_NAME.search(name):
            lines.append(f"{comment}{name}='{secrets.token_hex(16) if is_random else ''}'\n")
    return "".join(lines)


@locked()
def init(_: argparse.Namespace) -> None:
    """Make what is missing of a first .env, the age key and .sops.yaml."""
    made = []
    if not ENV.exists() and not ENCRYPTED.exists() and EXAMPLE.is_file():
        replace(ENV, first_env(read(EXAMPLE)))
        made.append(".env with random secrets for the containers")
    if not KEY.exists() and not key_variables():
        replace(KEY, make_key())
        made.append(f"{KEY_NAME} (back it up in a password manager)")
    source = " and ".join(key_variables()) or KEY_NAME
    way = "Move it away or unset it, then run: make setup"
    mine = own_public_keys() or fail(f"{source} holds no age key. {way}")
    if not key_variables():
        replace(KEY.with_name("age-key.pub"), f"{mine[0]}\n")
    if not CONFIG.exists():
        recipient = f"{mine[0]} # {run('git', 'config', 'user.name').stdout}".rstrip(" #\n")
        replace(CONFIG, f"{NEW_CONFIG}{recipient}\n")
        made.append(".sops.yaml")
    say(f"Made {', '.join(made)}" if made else f"Already there: {source} and .sops.yaml")
    if not read_rule(read(CONFIG)).keys() & mine:
        say(f'Ask a recipient to run: make secrets-recipients ARGS="add {mine[0]}"')
    elif not ENV.exists():
        say("Make .env from .env.enc: make secrets-decrypt")


@locked()
def encrypt(_: argparse.Namespace) -> None:
    """Encrypt .env to .env.enc for the recipients in .sops.yaml."""
    # Replacing values that this key cannot read would lose them.
    before = open_values() if ENCRYPTED.is_file() else ""
    store(read(ENV), before, read(CONFIG))
    if removed := names_without(read(ENV), before):
        say(f"Removed {removed}. If you want to keep that: git restore .env.enc")


@locked()
def decrypt(_: argparse.Namespace) -> None:
    """Decrypt .env.enc to .env. Other values in .env are kept in .env.previous."""
    values, present = open_values(), read(ENV) if ENV.is_file() else ""
    if without_blank_lines(present) == values:
        ENV.chmod(0o600)
        say(".env is already up to date")
        return
    if present:
        replace(ROOT / ".env.previous", present)
        say("The values before are in .env.previous")
    replace(ENV, values)
    say("Decrypted .env.enc to .env")


@locked()
def edit(_: argparse.Namespace) -> None:
    """Change the values of .env.enc in $EDITOR."""
    before, draft = open_values(), WORK / ENV.name
    draft.write_text(before, encoding="utf-8")
    editor = shlex.split(os.environ.get("EDITOR") or "vi")
    try:
        if not shutil.which(editor[0]) or subprocess.call([*editor, draft]) != 0:
            fail(f"The editor {editor[0]} is missing or failed. .env.enc was not changed")
        text = read(draft)
        store(text, before, read(CONFIG))
    except BaseException:
        if read(draft) != before:
            kept = ROOT / f".env.rejected-{secrets.token_hex(4)}"
            replace(kept, read(draft))
            sys.stderr.write(f"Your text is kept in {kept.name}\n")
        raise
    if without_blank_lines(text) != before:
        say("Now update .env: make secrets-decrypt")


def change_recipients(config: str) -> None:
    """Encrypt .env.enc for the recipients in `config`, and make that the new .sops.yaml."""
    if ENCRYPTED.is_file():
        values, before = open_values(), ENCRYPTED.stat()
        store(values, values, config)
        # The values are as old as they were, which `compare_env` reads.
        os.utime(ENCRYPTED, ns=(before.st_atime_ns, before.st_mtime_ns))
    replace(CONFIG, config)


@locked()
def recipients(options: argparse.Namespace) -> None:
    """Show or change who can open .env.enc: list, add KEY [NAME], remove KEY, sync or rotate."""
    text, mine = read(CONFIG), own_public_keys()
    present = read_rule(text)
    action, *words = options.words or ["list"]
    parts = PUBLIC_KEY.fullmatch(" ".join(words))
    key, name = parts.groups("") if parts else ("", "")
    match action:
        case "list":
            for recipient, number in present.items():
                name = text.splitlines()[number - 1].partition("#")[2]
                say(f"{recipient}{name}{' (you)' if recipient in mine else ''}")
        case "rotate":
            rotate()
        case "sync":
            change_recipients(text)
        case "add" | "remove" if not key:
            fail("Not a valid public key: it begins with age1 or ssh-. Never share a secret key")
        case "add" if key not in present:
            change_recipients(edit_rule(add=key, name=name))
        case "remove" if key in mine:
            fail("This is your own key: another recipient must remove it")
        case "remove" if key in present:
            change_recipients(edit_rule(remove=key))
            say("It still opens old versions in git. Change the passwords and tokens as well")
        case "add" | "remove":
            say("Nothing to change")
        case _:
            fail(f"Not an action: {action}. Use list, add, remove, sync or rotate")


def rotate() -> None:
    """Replace the age key. After a kill at any step, the key file still opens .env.enc."""
    if key_variables() or not KEY.is_file():
        fail(f"Only {KEY_NAME} can be rotated. Unset {', '.join(KEY_VARIABLES)}")
    present = read(KEY)
    *newer, old = public_keys(present) or fail(f"{KEY_NAME} holds no age key")
    kept = KEY.with_name(f"age-key-{old[:12]}.txt")
    if newer and not kept.is_file():
        fail(f"{KEY_NAME} holds several keys. Leave one in it, then run this again")
    # A rotation that was killed has left its new key above the old one.
    old_text = read(kept) if newer else present
    new_text = present.removesuffix(old_text) or make_key()
    [new] = public_keys(new_text)
    config = "" if new in read_rule(read(CONFIG)) else edit_rule(remove=old, add=new)
    replace(kept, old_text)
    replace(KEY, new_text + old_text)
    if config:
        change_recipients(config)
    replace(KEY, new_text)
    replace(KEY.with_name("age-key.pub"), f"{new}\n")
    say(f"Your key is now {new}. Back up {KEY_NAME}. The old key is in {kept.name}")


def findings() -> Iterator[tuple[str, str, str, str]]:
    """Yield check, status, detail and fix, as scripts/doctor.py shows them. No value is shown."""
    for name, path in {".env": ENV, **({} if key_variables() else {"age key": KEY})}.items():
        if not path.is_file():
            is_stored = path is ENV and ENCRYPTED.is_file()
            yield name, "WARN", "missing", "make secrets-decrypt" if is_stored else "make setup"
        elif path.stat().st_mode & 0o077:
            yield name, "FAIL", "others can read it", f"chmod 600 {os.path.relpath(path, ROOT)}"
        else:
            yield name, "PASS", "there, and readable by you alone", ""
    stored = ""
    try:
        stored = open_values()
        if recipients_in(read(ENCRYPTED)) != read_rule(read(CONFIG)).keys():
            fail("it is for others than .sops.yaml names", 'make secrets-recipients ARGS="sync"')
        yield ".env.enc", "PASS", "your key opens it", ""
    except SecretsError as error:
        detail, _, fix = error.args[0].partition("\n")
        status = "WARN" if error.args[1] == UNAVAILABLE else "FAIL"
        # A repository for one user may never need it.
        status = status if ENCRYPTED.is_file() else "SKIP"
        yield ".env.enc", status, detail, fix or "see docs/secrets.md"
    if ENV.is_file():
        yield from compare_env(stored)


def compare_env(stored: str) -> Iterator[tuple[str, str, str, str]]:
    """Compare .env with the values in .env.enc, if they are known, and with .env.example."""
    if stored and without_blank_lines(read(ENV)) != stored:
        newer = ENV.stat().st_mtime > ENCRYPTED.stat().st_mtime
        state, way = ("newer", "encrypt") if newer else ("older", "decrypt")
        detail = f".env is {state} than .env.enc, and has other values"
        fix = f"make secrets-{way}"
        if absent := names_without(read(ENV), stored):
            detail = f".env lacks {absent}, which .env.enc has"
            fix = "make secrets-decrypt, and take your lines from .env.previous"
        yield "values", "WARN", detail, fix
    if odd := ", ".join(map(str, find_ambiguous(read(ENV)))):
        detail = f"Compose and Python read these lines differently: {odd}"
        yield "lines", "FAIL", detail, "write NAME='value', without ' and \\ in the value"
    values, example = (read_dotenv(path, warn=False) for path in (ENV, EXAMPLE))
    # Compose passes this password to the broker, which reads no file.
    in_files = {name.removesuffix("_FILE") for name in values} - {"MQTT_PASSWORD"}
    missing = sorted(example.keys() - values.keys() - in_files)
    # Other settings have a default, or their service names them at its start.
    if names := ", ".join(filter(SECRET_NAME.search, missing)):
        yield "names", "WARN", f".env has no {names}", "set it in .env. .env.previous may hold it"
    for name in sorted(values):
        if not {name, name.removesuffix("_FILE")} & example.keys():
            for setting in difflib.get_close_matches(name, example, n=1, cutoff=0.9):
                fix = f"write {setting} if you mean that, or else delete the line"
                yield "names", "WARN", f"{name} in .env is no setting", fix


def check(_: argparse.Namespace) -> None:
    """Check the key, the recipients and the values, for scripts/doctor.py."""
    keys = ("check", "status", "detail", "fix")
    say(json.dumps([dict(zip(keys, finding, strict=True)) for finding in findings()]))


def stale(_: argparse.Namespace) -> None:
    """Warn when the values of .env and .env.enc differ."""
    for name, _status, detail, fix in findings():
        if name == "values":
            say(f"WARN  {detail}. Run {fix}")


def scan(options: argparse.Namespace) -> int:
    """Find values of .env and other secrets in files, and name the place without the value."""
    patterns, found = dict(SECRET_PATTERNS), []
    for name, value in read_dotenv(ENV, warn=False).items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            patterns[f"the value of {name} in .env"] = re.compile(re.escape(value))
    for file in map(Path, options.words):
        text = file.read_text(encoding="utf-8", errors="replace")
        bad = lines_unlike(ENCRYPTED_LINE, text) or ("" if "\nsops_mac=ENC[" in text else "1")
        if file.name == ENCRYPTED.name:
            if bad:
                way = f"Run make secrets-encrypt, or see line {bad}"
                found.append(f"{file} is not encrypted. {way}")
            # Encrypted data may look like a token.
            text = re.sub(r"ENC\[AES256_GCM,[^]]*\]", "", text)
        for number, line in enumerate(text.split("\n"), 1):
            for kind, pattern in patterns.items():
                if pattern.search(line) and "pragma: allowlist secret" not in line:
                    found.append(f"{file}:{number} holds {kind}")
    if found:
        found.append("Take the secrets out, or end a harmless line with: pragma: allowlist secret")
        say("\n".join(found))
    return int(bool(found))


def main() -> int:
    """Run one command."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    for name, value in list(os.environ.items()):
        # The other variables of sops name recipients and options.
        if name.startswith("SOPS_") and not (re.search("^SOPS_AGE_.*KEY", name) and value):
            del os.environ[name]
    codes = f"0 done, 1 failed, 2 wrong usage, {UNAVAILABLE} a tool or a file is missing"
    parser = make_parser("Manage .env, .env.enc and its recipients.", codes)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for function in (init, encrypt, decrypt, edit, recipients, check, stale, scan):
        text = function.__doc__
        command = commands.add_parser(
            function.__name__, help=text, description=text, epilog=parser.epilog
        )
        # The user called a script that stands for one command.
        if (ROOT / (script := f"scripts/secrets-{function.__name__}.sh")).is_file():
            command.prog = script
        command.set_defaults(function=function)
        if function in {recipients, scan}:
            command.add_argument("words", nargs="*")
    options, unknown = parser.parse_known_args()
    if unknown:
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code: int = options.function(options) or 0
    except SecretsError as error:
        message, code = error.args
        sys.stderr.write(f"{message}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
