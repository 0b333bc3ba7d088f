"""Manage the secrets: .env, .env.enc (encrypted by sops), its recipients and the age key.

The Makefile, the git hooks and scripts/secrets-*.sh call this program. `init` also runs on
Python 3.10 outside the locked environment, while a repository is generated.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import yaml

ROOT = Path(__file__).resolve().parent.parent
ENV, EXAMPLE, ENCRYPTED = ROOT / ".env", ROOT / ".env.example", ROOT / ".env.enc"
CONFIG = ROOT / ".sops.yaml"
NEW_CONFIG = r"""# Who can open .env.enc. Change this with: make secrets-recipients ARGS="add KEY"
creation_rules:
  - path_regex: (^|/)\.env\.enc$
    age:
      - """
TEMPORARY = ".env.tmp."
# sops would guess the type from the ending of the name, wrongly.
DOTENV = ("--input-type", "dotenv", "--output-type", "dotenv")
OLDEST_SOPS = (3, 11)
GET_SOPS = "Install 3.11 or newer: brew install sops, or https://github.com/getsops/sops/releases"
GET_AGE = "Install it: apt install age, or brew install age"
RESTORE = "Take a good one: git restore .env.enc, or git log -- .env.enc"
KEY_VARIABLES = ("SOPS_AGE_KEY", "SOPS_AGE_KEY_FILE", "SOPS_AGE_KEY_CMD")
SSH_VARIABLES = ("SOPS_AGE_SSH_PRIVATE_KEY_FILE", "SOPS_AGE_SSH_PRIVATE_KEY_CMD")
FAILED, SKIPPED, MISSING, WRONG_KEY, DAMAGED = 1, 3, 127, 128, (25, 51)
# Field of a rule in .sops.yaml: the name of such a recipient in an encrypted file.
RECIPIENT_FIELDS = {
    "age": "recipient", "pgp": "fp", "kms": "arn", "gcp_kms": "resource_id", "hckms": "key_id",
}  # fmt: skip
UNSUPPORTED_FIELDS = {"key_groups", "azure_keyvault", "hc_vault_transit_uri", "<<"}
# A line of .env.enc that gives nothing away.
ENCRYPTED_LINE = re.compile(
    r"#(ENC\[AES256_GCM,.*\])?|(?!sops_)[^=]+=(ENC\[AES256_GCM,.*\])?|sops_mac=ENC\[.*\]|"
    r"sops_(age|pgp|kms|gcp_kms|azure_kv|hc_vault|hckms)__list_\d+__map_.*|"
    r"sops_(lastmodified|version|shamir_threshold|mac_only_encrypted)=.*|"
    r"sops_(un)?encrypted_(suffix|regex|comment_regex)=.*"
)
SECRET_NAME = re.compile(r"(PASSWORD|PASSPHRASE|TOKEN|SECRET|KEY|CREDENTIAL)S?$", re.IGNORECASE)
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
    """A command cannot go on. The message holds no value."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def fail(*lines: str, code: int = FAILED) -> NoReturn:
    raise SecretsError("\n".join(lines), code)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- Files and processes -----------------------------------------------------------------------


def run(
    *command: str | Path, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository. A missing program counts as exit code 127."""
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, input=stdin, capture_output=True, encoding="utf-8",
            check=False,
        )  # fmt: skip
    except OSError as error:
        return subprocess.CompletedProcess(command, MISSING, "", str(error))


def read(path: Path) -> str:
    """Return the text of a file, without byte order mark, its lines ending in LF."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        fail(f"{shown(path)} is not valid UTF-8. Save it again as UTF-8")


def without_blank_lines(text: str) -> str:
    """Return a dotenv file as sops stores it."""
    return "".join(f"{line}\n" for line in text.split("\n") if line.strip())


def replace(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file, or the one that a symbolic link leads to, in one step."""
    target = path.resolve()
    target.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Let one command at a time change the secrets, in a private directory."""
    os.umask(0o077)
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail("Another command is changing the secrets. Wait until it has ended")
    # Only a killed run can have left these, because this one has the lock.
    for directory in {ROOT, *(path.resolve().parent for path in (ENV, ENCRYPTED, CONFIG, KEY))}:
        for leftover in directory.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=ROOT) as work:
        # sops puts the values there that its editor sees.
        os.environ["TMPDIR"] = work
        yield Path(work)


# --- Keys --------------------------------------------------------------------------------------


def find_key() -> Path:
    """Return the path of the age key. The worktrees of a clone share that of the main one."""
    main, link = ROOT, ROOT / ".git"
    if link.is_file():
        # gitdir: /path/to/main/.git/worktrees/NAME
        git_dir = (ROOT / link.read_text(encoding="utf-8").partition(":")[2].strip()).resolve()
        if git_dir.parts[-3:-1] == (".git", "worktrees"):
            main = git_dir.parents[2]
    return main / ".sops" / "age-key.txt"


KEY = find_key()


def key_variables() -> list[str]:
    """Return the variables that name a key. It is tried before the key of the repository."""
    return [name for name in KEY_VARIABLES if os.environ.get(name)]


def sops_environment() -> dict[str, str]:
    """Return the environment with the key in use, but without recipients and options of sops."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SOPS_") or (name in KEY_VARIABLES + SSH_VARIABLES and value)
    }
    if "SOPS_AGE_KEY_FILE" in environment:
        environment["SOPS_AGE_KEY_FILE"] = os.path.realpath(environment["SOPS_AGE_KEY_FILE"])
    elif not key_variables() and KEY.is_file():
        environment["SOPS_AGE_KEY_FILE"] = str(KEY)
    return environment


def own_public_keys() -> list[str]:
    """Return the public keys of the environment and of this repository, in the order of use."""
    environment = sops_environment()
    identities = [environment.get("SOPS_AGE_KEY", "")]
    paths = dict.fromkeys([Path(environment.get("SOPS_AGE_KEY_FILE", KEY)), KEY])
    identities += [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    if command := environment.get("SOPS_AGE_KEY_CMD"):
        identities.insert(0, run(*shlex.split(command)).stdout)
    return public_keys("\n".join(identities))


def public_keys(identities: str) -> list[str]:
    """Return the public keys of secret keys. Without age, the comments of a key file name them."""
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
    # Without a network, uv would try for minutes.
    environment = {**os.environ, "UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}
    for command in commands:
        made = run(*command, environment=environment)
        if made.returncode == 0:
            return made.stdout
    fail(f"No age key: age is missing. {GET_AGE}", code=SKIPPED)


# --- .sops.yaml --------------------------------------------------------------------------------


class Rule:
    """The rule of .sops.yaml for .env.enc: the first that matches, as in sops."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Each recipient, with its node.
        self.recipients: dict[str, yaml.Node] = {}
        try:
            document = self._fields(yaml.compose(text, yaml.SafeLoader))
            for rule in getattr(document.get("creation_rules"), "value", []):
                fields = self._fields(rule)
                regex = fields.get("path_regex")
                if regex is None or re.search(regex.value, ENCRYPTED.name):
                    break
            else:
                fail(".sops.yaml has no rule for .env.enc. See docs/secrets.md")
        except (yaml.YAMLError, re.error) as error:
            fail(f".sops.yaml is not valid: {error}")
        for field in UNSUPPORTED_FIELDS & fields.keys():
            self.fail(fields[field], f"{field} is not supported. Use sops itself")
        for field in RECIPIENT_FIELDS.keys() & fields.keys():
            node = fields[field]
            for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                if not isinstance(item, yaml.ScalarNode):
                    self.fail(item, "this form of a recipient is not supported. Use sops itself")
                keys = filter(None, map(str.strip, item.value.split(",")))
                self.recipients |= dict.fromkeys(keys, item)
        if not self.recipients:
            fail(".sops.yaml names no recipient for .env.enc. Add your age key")

    @staticmethod
    def _fields(node: yaml.Node | None) -> dict[str, yaml.Node]:
        return {k.value: v for k, v in node.value} if isinstance(node, yaml.MappingNode) else {}

    @staticmethod
    def fail(node: yaml.Node, problem: str) -> NoReturn:
        fail(f".sops.yaml, line {node.start_mark.line + 1}: {problem}")

    def comment(self, recipient: str) -> str:
        """Return the comment behind a recipient, which is a person's name."""
        rest = self.text[self.recipients[recipient].end_mark.index :]
        return rest.partition("\n")[0].partition("#")[2].strip()

    def change(self, *, remove: str = "", add: str = "", name: str = "") -> str:
        """Return the text with a recipient added, removed or replaced, each on a line."""
        node = self.recipients.get(remove) or list(self.recipients.values())[-1]
        lines = self.text.splitlines(keepends=True)
        line = lines[node.start_mark.line]
        if not remove:
            comment = f" # {name}" if name else ""
            lines[node.start_mark.line] += f"{line[: node.start_mark.column]}{add}{comment}\n"
        else:
            lines[node.start_mark.line] = line.replace(remove, add) if add else ""
        changed = "".join(lines)
        try:
            present = set(Rule(changed).recipients)
        except SecretsError:
            present = set()
        # A rule may have another form than a key on each line.
        if present != {*self.recipients, add} - {remove, ""}:
            self.fail(node, 'change this by hand, then run: make secrets-recipients ARGS="sync"')
        return changed


def read_rule() -> Rule:
    if not CONFIG.is_file():
        fail(".sops.yaml is missing. Make it, with a key: make setup")
    return Rule(CONFIG.read_text(encoding="utf-8"))


# --- .env.enc ----------------------------------------------------------------------------------


def sops(*arguments: str | Path, stdin: str = "", **variables: str) -> str:
    """Run sops and return its output. An error is explained."""
    result = run("sops", *arguments, stdin=stdin, environment={**sops_environment(), **variables})
    code = result.returncode
    if code == MISSING:
        fail(f"sops is missing. {GET_SOPS}", code=MISSING)
    if code == WRONG_KEY:
        fail(*explain_key(), code=WRONG_KEY)
    if code in DAMAGED:
        fail(f".env.enc is damaged or was changed by hand (sops exit {code}). {RESTORE}")
    if code != 0:
        require_sops()
        fail(result.stderr.strip(), f"sops failed (exit {code}). .env.enc was not changed")
    return result.stdout


def require_sops() -> None:
    """Fail if sops is too old."""
    version = run("sops", "--disable-version-check", "--version").stdout
    number = re.match(r"sops (\d+)\.(\d+)", version)
    if number is None or tuple(map(int, number.groups())) < OLDEST_SOPS:
        fail(f"sops is too old: {version.partition('(')[0].strip()}. {GET_SOPS}")


def explain_key() -> list[str]:
    """Return why .env.enc stays closed, and which recipients can help."""
    tried = [*key_variables(), *([shown(KEY)] if KEY.is_file() else [])]
    key_file = os.environ.get("SOPS_AGE_KEY_FILE")
    if tried:
        reason = f"The key in {' or '.join(tried)} does not open .env.enc."
    else:
        reason = f"No age key: {shown(KEY)} is missing. Put your copy there, or run: make setup"
    if key_file and not Path(key_file).is_file():
        reason += f" SOPS_AGE_KEY_FILE names {key_file}, which is missing."
    recipients = sorted(recipients_in(read(ENCRYPTED)))
    mine = own_public_keys() or ["YOUR_PUBLIC_KEY"]
    return [
        reason,
        *(".env.enc is encrypted for:", *(f"  {recipient}" for recipient in recipients)),
        "One of them can run this, then push .sops.yaml and .env.enc:",
        f'  make secrets-recipients ARGS="add {mine[0]}"',
    ]


def recipients_in(encrypted: str) -> set[str]:
    """Return the recipients that an encrypted file names."""
    fields = "|".join(RECIPIENT_FIELDS.values())
    return set(re.findall(rf"^sops_\w+__map_(?:{fields})=(.*)$", encrypted, re.MULTILINE))


def find_readable(encrypted: str) -> list[str]:
    """Return what is not encrypted in an .env.enc, by line."""
    problems = [
        f"  line {number}: is not encrypted"
        for number, line in enumerate(encrypted.split("\n"), 1)
        if line.strip() and not ENCRYPTED_LINE.fullmatch(line)
    ]
    if not problems and "\nsops_mac=ENC[" not in encrypted:
        problems = ["  sops_mac is missing: the file is cut short, or was never encrypted"]
    return problems


def find_unstorable(text: str) -> list[str]:
    """Return the lines of a dotenv file that sops would reject or change, without their values."""
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        name, equals, value = line.partition("=")
        name, value = re.sub(r"^export\s+", "", name).rstrip(), value.strip()
        if not line.strip() or line.startswith("#"):
            continue
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            problem = r"is not NAME=VALUE. Write a value of several lines on one line, with \n"
        elif name.startswith("sops_") or name.endswith("_unencrypted"):
            problem = "has a name that sops keeps for itself: sops_* or *_unencrypted"
        elif name in seen:
            problem = f"has the same name as line {seen[name]}"
        elif value[:1] in {"'", '"'} and value[0] not in value[1:]:
            problem = r"has no closing quote. Write a value of several lines on one line, with \n"
        else:
            seen[name] = number
            continue
        problems.append(f"  line {number}: {problem}")
    return problems or ([] if seen else ["  it is empty"])


def decrypt() -> str:
    """Return the values in .env.enc, opened by the key in use or by one that a rotation kept."""
    if not ENCRYPTED.is_file():
        fail(".env.enc is missing. Make it from .env: make secrets-encrypt")
    if problems := find_readable(read(ENCRYPTED)):
        fail(".env.enc is not as sops wrote it:", *problems, RESTORE)
    command = ("--config", os.devnull, "decrypt", *DOTENV, ENCRYPTED)
    try:
        return sops(*command)
    except SecretsError as error:
        if error.code != WRONG_KEY:
            raise
        kept = sorted([*KEY.parent.glob("age-key-*.txt"), *(ROOT / ".sops").glob("age-key*.txt")])
        for key in [KEY, *kept]:
            with contextlib.suppress(SecretsError):
                values = sops(*command, SOPS_AGE_KEY_FILE=str(key))
                used = " and ".join(key_variables()) or shown(KEY)
                sys.stderr.write(f"{used} does not open .env.enc, but {shown(key)} does\n")
                os.environ["SOPS_AGE_KEY_FILE"] = str(key)
                return values
        raise


def encrypt(values: str, config: Path) -> str:
    """Encrypt for the recipients in `config`, with a new data key."""
    as_name = ("--filename-override", config.with_name(ENCRYPTED.name))
    return verify(sops("--config", config, "encrypt", *as_name, *DOTENV, stdin=values), config)


def verify(encrypted: str, config: Path) -> str:
    """Return what sops has written, unless it is readable or for other recipients."""
    if problems := find_readable(encrypted):
        fail("sops left something readable. .env.enc was not changed:", *problems)
    if recipients_in(encrypted) != Rule(config.read_text(encoding="utf-8")).recipients.keys():
        fail("sops encrypted for others than .sops.yaml names. .env.enc was not changed")
    return encrypted


def save(text: str, before: str, work: Path) -> None:
    """Write .env.enc. A value that did not change keeps its ciphertext, for a readable diff."""
    if problems := find_unstorable(text):
        fail("sops cannot store this. .env.enc was not changed:", *problems)
    values, recipients = without_blank_lines(text), read_rule().recipients.keys()
    if before and recipients_in(read(ENCRYPTED)) == recipients:
        if values == before:
            say(".env.enc is already up to date")
            return
        draft = work / ENCRYPTED.name
        shutil.copyfile(ENCRYPTED, draft)
        # An editor that only takes the new values: sops encrypts those that differ.
        sops("--config", CONFIG, "edit", *DOTENV, draft, stdin=values, SOPS_EDITOR="tee")
        encrypted = verify(draft.read_text(encoding="utf-8"), CONFIG)
    else:
        encrypted = encrypt(values, CONFIG)
    replace(ENCRYPTED, encrypted, 0o644)
    say(f"Encrypted .env.enc for {len(recipients)} recipient(s). Commit it")


# --- Commands ----------------------------------------------------------------------------------


def init(_: argparse.Namespace) -> None:
    """Make what is missing of a first .env, the age key and .sops.yaml."""
    made = []
    if not ENV.exists() and not ENCRYPTED.exists() and EXAMPLE.is_file():
        replace(ENV, fill_in(EXAMPLE.read_text(encoding="utf-8")))
        made.append(".env with random secrets for the containers")
    if not KEY.exists() and not key_variables():
        replace(KEY, make_key())
        made.append(f"{shown(KEY)} (back it up in a password manager)")
    source = " and ".join(key_variables()) or shown(KEY)
    mine = own_public_keys()
    if not mine:
        fail(f"{source} holds no age key. Move it away or unset it, then run: make setup")
    if not key_variables():
        replace(KEY.with_name("age-key.pub"), f"{mine[0]}\n")
    if not CONFIG.exists():
        name = "".join(filter(str.isprintable, run("git", "config", "user.name").stdout))
        replace(CONFIG, NEW_CONFIG + mine[0] + (f" # {name}\n" if name else "\n"), 0o644)
        made.append(".sops.yaml")
    say(f"Made {', '.join(made)}" if made else f"Already there: {source} and .sops.yaml")
    if not set(mine) & read_rule().recipients.keys():
        say(f'Ask a recipient to run: make secrets-recipients ARGS="add {mine[0]}"')
    elif not ENV.exists():
        say("Make .env from .env.enc: make secrets-decrypt")


def fill_in(example: str) -> str:
    """Return .env.example with a random value below each comment that asks for one."""
    lines = example.splitlines()
    for number, above in enumerate(lines[:-1], 1):
        if above.startswith("#") and "random in a first .env" in above:
            letters = string.ascii_letters + string.digits
            value = "".join(secrets.choice(letters) for _ in range(32))
            lines[number] = f"{lines[number].partition('=')[0]}='{value}'"
    return "\n".join(lines) + "\n"


def encrypt_env(options: argparse.Namespace) -> None:
    """Encrypt .env to .env.enc for the recipients in .sops.yaml."""
    if not ENV.is_file():
        fail(".env is missing. Make one from .env.example: make setup")
    # Replacing values that this key cannot read would lose them.
    save(read(ENV), decrypt() if ENCRYPTED.is_file() else "", options.work)


def decrypt_env(_: argparse.Namespace) -> None:
    """Decrypt .env.enc to .env. Other values in .env are kept in .env.previous."""
    values, kept = decrypt(), ""
    if ENV.is_file():
        if without_blank_lines(read(ENV)) == values:
            ENV.chmod(0o600)
            say(".env is already up to date")
            return
        replace(ROOT / ".env.previous", ENV.read_text(encoding="utf-8"))
        kept = ". The one before is .env.previous"
    replace(ENV, values)
    say(f"Decrypted .env.enc to .env{kept}")


def edit(options: argparse.Namespace) -> None:
    """Change the values of .env.enc in $EDITOR."""
    before, draft = decrypt(), options.work / ".env"
    replace(draft, before)
    default = next(filter(shutil.which, ("vim", "nano")), "vi")
    editor = shlex.split(os.environ.get("SOPS_EDITOR") or os.environ.get("EDITOR") or default)
    if not shutil.which(editor[0]):
        fail(f"The editor {editor[0]} is missing. Set EDITOR to another one")
    try:
        code = subprocess.call([*editor, draft], cwd=ROOT)
        if code != 0:
            fail(f"{editor[0]} failed (exit {code}). .env.enc was not changed")
        if read(draft) == before:
            say("Nothing changed")
            return
        save(read(draft), before, options.work)
    except BaseException:
        if draft.is_file() and draft.read_bytes() != before.encode():
            # Only the user can read what mkstemp makes.
            kept = tempfile.mkstemp(prefix=".env.rejected-", dir=ROOT)[1]
            shutil.copyfile(draft, kept)
            sys.stderr.write(f"Your text is kept in {Path(kept).name}\n")
        raise
    say("Now update .env: make secrets-decrypt")


def change_recipients(work: Path, config: str) -> None:
    """Encrypt .env.enc for the recipients in a new .sops.yaml, and replace both."""
    staged = work / CONFIG.name
    replace(staged, config)
    # Without an .env.enc, sops only judges whether the recipients are valid.
    encrypted = encrypt(decrypt() if ENCRYPTED.is_file() else "PROBE=1\n", staged)
    if ENCRYPTED.is_file():
        replace(ENCRYPTED, encrypted, 0o644)
    replace(CONFIG, config, 0o644)
    say(f"Changed {'.sops.yaml and .env.enc' if ENCRYPTED.is_file() else '.sops.yaml'}. Commit it")


def list_recipients(_: argparse.Namespace) -> None:
    """Show who can open .env.enc."""
    rule, mine = read_rule(), own_public_keys()
    for recipient in rule.recipients:
        words = [recipient, rule.comment(recipient), "(you)" if recipient in mine else ""]
        say(" ".join(filter(None, words)))


def add_recipient(options: argparse.Namespace) -> None:
    """Let a public key open .env.enc."""
    # An SSH key is two words.
    size = 2 if options.words[0].startswith("ssh-") and " " not in options.words[0] else 1
    recipient, name = " ".join(options.words[:size]), " ".join(options.words[size:])
    if recipient.startswith("AGE-"):
        fail("This is a secret key: keep it to yourself. A public key begins with age1")
    if not re.fullmatch(r"age1[0-9a-z]{50,}|ssh-\S+ [\w+/=]+", recipient):
        fail(f"Not a valid public key (age1... or ssh-...): {recipient}")
    rule = read_rule()
    if recipient in rule.recipients:
        say(f"Already a recipient: {recipient}")
        return
    name = "".join(filter(str.isprintable, name))
    change_recipients(options.work, rule.change(add=recipient, name=name))


def remove_recipient(options: argparse.Namespace) -> None:
    """Encrypt .env.enc without a public key."""
    recipient, rule = " ".join(options.words), read_rule()
    if recipient not in rule.recipients:
        say(f"Not a recipient: {recipient}")
        return
    if len(rule.recipients) == 1:
        fail("This is the only recipient: nobody could open .env.enc without it")
    if recipient in own_public_keys():
        fail("This is your own key: another recipient must remove it")
    change_recipients(options.work, rule.change(remove=recipient))
    say("It still opens old versions in git. Now change the passwords and tokens themselves")


def rotate(options: argparse.Namespace) -> None:
    """Replace the age key. After a kill at any step, the key file still opens .env.enc."""
    if key_variables() or not KEY.is_file():
        fail(f"Only {shown(KEY)} can be rotated. Unset {', '.join(KEY_VARIABLES)}")
    present = KEY.read_text(encoding="utf-8")
    *newer, old = public_keys(present) or fail(f"{shown(KEY)} holds no age key")
    kept = KEY.with_name(f"age-key-{old[:12]}.txt")
    if not newer:
        new = make_key()
        replace(kept, present)
        replace(KEY, new + present)
    elif kept.is_file():
        # An earlier rotation was killed: its new key comes first, and the old one is kept.
        new = present.removesuffix(kept.read_text(encoding="utf-8"))
    else:
        fail(f"{shown(KEY)} holds several keys. Leave one in it, then run this again")
    [new_public] = public_keys(new)
    rule = read_rule()
    if old in rule.recipients:
        change_recipients(options.work, rule.change(remove=old, add=new_public))
    elif new_public not in rule.recipients:
        fail(f"Your key is not a recipient: {old}")
    replace(KEY, new)
    replace(KEY.with_name("age-key.pub"), f"{new_public}\n")
    say(f"Your key is now {new_public}. Back up {shown(KEY)}. The old key is {shown(kept)}")


def sync(options: argparse.Namespace) -> None:
    """Encrypt .env.enc again, after .sops.yaml was edited by hand."""
    rule = read_rule()
    if ENCRYPTED.is_file() and recipients_in(read(ENCRYPTED)) == rule.recipients.keys():
        say(".env.enc is already up to date with .sops.yaml")
        return
    change_recipients(options.work, rule.text)


# --- Checks ------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """The result of one check, as in scripts/doctor.py."""

    check: str
    status: str
    detail: str
    fix: str = ""


def check() -> Iterator[Finding]:
    """Judge the key, .env.enc, its recipients and .env. No value is shown."""
    if variables := key_variables():
        yield Finding("age key", "PASS", f"the one in {' and '.join(variables)}")
    elif not KEY.is_file():
        yield Finding("age key", "WARN", f"{shown(KEY)} is missing", "put it there, or: make setup")
    elif KEY.stat().st_mode & 0o077:
        yield Finding("age key", "FAIL", "others can read it", f"chmod 600 {shown(KEY)}")
    else:
        yield Finding("age key", "PASS", "there, and readable by you alone")
    if not ENCRYPTED.is_file():
        yield Finding(".env.enc", "WARN", "not there yet", "make secrets-encrypt")
    else:
        try:
            if recipients_in(read(ENCRYPTED)) != read_rule().recipients.keys():
                detail = ".env.enc is for others than .sops.yaml names"
                yield Finding("recipients", "FAIL", detail, 'make secrets-recipients ARGS="sync"')
            decrypt()
            yield Finding(".env.enc", "PASS", "your key opens it")
        except SecretsError as error:
            status = "WARN" if error.code == MISSING else "FAIL"
            detail, _, fix = str(error).partition("\n")
            yield Finding(".env.enc", status, detail, fix or "see docs/secrets.md")
    if ENV.is_file():
        yield from find_stale()
        yield from check_env()
    else:
        way = "make secrets-decrypt" if ENCRYPTED.is_file() else "make setup"
        yield Finding(".env", "WARN", "missing", way)


def check_env() -> Iterator[Finding]:
    """Judge .env."""
    import dotenv_file  # noqa: PLC0415 - `init` runs without python-dotenv

    if ENV.stat().st_mode & 0o077:
        yield Finding(".env", "FAIL", "others can read it", "chmod 600 .env")
    else:
        yield Finding(".env", "PASS", "there, and readable by you alone")
    if problems := find_unstorable(read(ENV)):
        yield Finding("values", "FAIL", "sops cannot store .env", "\n".join(problems))
    if lines := dotenv_file.find_ambiguous(read(ENV)):
        detail = f"Compose and Python read these lines differently: {', '.join(map(str, lines))}"
        yield Finding("values", "FAIL", detail, "write NAME='value', without ' and \\ in the value")
    values, example = (dotenv_file.read(path, warn=False) for path in (ENV, EXAMPLE))
    if names := ", ".join(sorted(example.keys() - values.keys())):
        fix = "copy the lines from .env.example"
        yield Finding("values", "WARN", f".env has no {names}", fix)


def find_stale() -> Iterator[Finding]:
    """Judge whether .env and .env.enc hold the same values, if both are there to be read."""
    with contextlib.suppress(SecretsError, FileNotFoundError):
        if without_blank_lines(read(ENV)) != decrypt():
            newer = ENV.stat().st_mtime > ENCRYPTED.stat().st_mtime
            state, way = ("newer", "encrypt") if newer else ("older", "decrypt")
            detail = f".env is {state} than .env.enc, and has other values"
            yield Finding("values", "WARN", detail, f"make secrets-{way}")


def scan(files: list[str]) -> Iterator[str]:
    """Find values of .env and other secrets in files, and name the place without the value."""
    import dotenv_file  # noqa: PLC0415 - `init` runs without python-dotenv

    patterns = dict(SECRET_PATTERNS)
    for name, value in dotenv_file.read(ENV, warn=False).items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            patterns[f"the value of {name} in .env"] = re.compile(re.escape(value))
    for file in files:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        if Path(file).name == ENCRYPTED.name and (problems := find_readable(text)):
            yield f"{file} is not encrypted. Run make secrets-encrypt:"
            yield from problems
        for number, line in enumerate(text.split("\n"), 1):
            for kind, pattern in patterns.items():
                if pattern.search(line) and "pragma: allowlist secret" not in line:
                    yield f"{file}:{number} holds {kind}"


# --- Command line ------------------------------------------------------------------------------


def show_check(options: argparse.Namespace) -> int:
    """Check the key, the recipients and the values."""
    findings = list(find_stale() if options.stale else check())
    if options.json:
        say(json.dumps([finding._asdict() for finding in findings]))
        return 0
    for finding in findings:
        say(f"{finding.status}  {finding.check}: {finding.detail}")
        for line in finding.fix.splitlines():
            say(f"      -> {line}")
    return int(any(finding.status == "FAIL" for finding in findings))


def show_scan(options: argparse.Namespace) -> int:
    """Find secrets in files."""
    found = list(scan(options.files))
    for line in found:
        say(line)
    if found:
        say("Take the secrets out, or end a harmless line with: pragma: allowlist secret")
    return int(bool(found))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Manage .env, .env.enc and its recipients.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    recipients = commands.add_parser("recipients", help="Show or change who can open .env.enc.")
    actions = recipients.add_subparsers(required=True, metavar="ACTION")
    parsers = {}
    for group, name, function in (
        (commands, "init", init),
        (commands, "encrypt", encrypt_env),
        (commands, "decrypt", decrypt_env),
        (commands, "edit", edit),
        (commands, "check", show_check),
        (commands, "scan", show_scan),
        (actions, "list", list_recipients),
        (actions, "add", add_recipient),
        (actions, "remove", remove_recipient),
        (actions, "rotate", rotate),
        (actions, "sync", sync),
    ):
        parsers[name] = group.add_parser(name, help=function.__doc__)
        parsers[name].set_defaults(function=function)
    parsers["add"].add_argument("words", nargs="+", metavar="KEY [NAME]")
    parsers["remove"].add_argument("words", nargs="+", metavar="KEY")
    parsers["check"].add_argument("--json", action="store_true", help="print JSON")
    parsers["check"].add_argument("--stale", action="store_true", help="only compare the values")
    parsers["scan"].add_argument("files", nargs="*", metavar="FILE")
    return parser.parse_args()


READ_ONLY = (list_recipients, show_check, show_scan)


def main() -> int:
    """Run one command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    options = parse_arguments()
    try:
        if options.function in READ_ONLY:
            return options.function(options) or 0
        with workspace() as options.work:
            options.function(options)
    except SecretsError as error:
        sys.stderr.write(f"{error}\n")
        return SKIPPED if error.code == SKIPPED else FAILED
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
