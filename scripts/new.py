"""Make a repository from this template.

    make new [OUT=directory] [ARGS="NAME=ANSWER ..."] [NO_INPUT=1]

Missing answers are the defaults with --no-input, and where there is no terminal.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from cli import make_parser
from click import Abort
from cookiecutter.config import get_user_config
from cookiecutter.exceptions import CookiecutterException, FailedHookException
from cookiecutter.generate import generate_context
from cookiecutter.main import cookiecutter
from cookiecutter.prompt import (
    YesNoPrompt,
    read_user_choice,
    read_user_variable,
    read_user_yes_no,
    render_variable,
)
from cookiecutter.utils import create_env_with_context

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "hooks"))

import pre_gen_project as rules  # noqa: E402


def find_problems(words: list[str]) -> list[str]:
    """Return what is wrong with the answers where cookiecutter would ignore it, or raise."""
    context = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))
    questions = {name: default for name, default in context.items() if not name.startswith("_")}
    problems = []
    for word in words:
        name, equals, answer = word.partition("=")
        if not equals:
            problems.append(f"{word}: must be NAME=ANSWER, with spaces as in NAME='My Lab'")
            continue
        if name not in questions:
            problems.append(f"{name}: must be one of {', '.join(questions)}")
            continue
        default, choices = questions[name], None
        if isinstance(default, list):
            choices = default
        elif isinstance(default, bool):
            answer = answer.lower()
            choices = [*YesNoPrompt.yes_choices, *YesNoPrompt.no_choices]
        if choices and answer not in choices:
            problems.append(f"{name}: must be one of {', '.join(choices)} (got {answer!r})")
    return problems


def answer_problem(name: str, answer: str, output: Path) -> str | None:
    """Return the rule that an answer breaks, or None."""
    if name in rules.RULES and (problem := rules.RULES[name][0](answer)):
        return problem
    if name == "project_slug" and (output / answer).exists():
        return f"must be new: {output / answer} already exists"
    return None


def free_name(default: str, output: Path) -> str:
    """Return the default, with a number at its end where a directory of that name exists."""
    number, name = 1, default
    while (output / name).exists():
        number += 1
        name = f"{default[:45].rstrip('-')}-{number}"
    return name


def collect(questions: dict[str, Any], given: set[str], output: Path, ask: bool) -> dict[str, Any]:
    """Return an answer to every question: the given one, the one typed, or the default.

    `given` are the names that need no prompt.
    """
    environment = create_env_with_context({"cookiecutter": questions})
    prompts = questions["__prompts__"]
    names = [name for name in questions if not name.startswith("_")]
    answers: dict[str, Any] = {}
    for number, name in enumerate(names, 1):
        prefix = f"  [dim][{number}/{len(names)}][/] "
        default = render_variable(environment, questions[name], answers)
        if not ask or name in given:
            answers[name] = default[0] if isinstance(default, list) else default
        elif isinstance(default, list):
            answers[name] = read_user_choice(name, default, prompts, prefix)
        elif isinstance(default, bool):
            answers[name] = read_user_yes_no(name, default, prompts, prefix)
        else:
            if name == "project_slug":
                default = free_name(default, output)
            answers[name] = read_user_variable(name, default, prompts, prefix)
            while problem := answer_problem(name, answers[name], output):
                print(rules.fill(f"        {problem}", indent=8))
                answers[name] = read_user_variable(name, default, prompts, prefix)
    return answers


def command(answers: dict[str, Any], corrections: dict[str, str], output: Path) -> str:
    """Return the `make` command that gives these answers, corrected."""

    def quoted(word: str) -> str:
        # make reads `$$`, and the shell of its recipe reads the double quotes.
        if re.fullmatch(r"[\w=./-]+", word):
            return word
        return '"' + re.sub(r'([\\"`$])', r"\\\1", word) + '"'

    variables = {"OUT": "" if output.resolve() == ROOT.parent else str(output)}
    variables["ARGS"] = " ".join(quoted(word) for word in rules.words(answers, corrections, ROOT))
    options = [
        f"{name}={shlex.quote(value.replace('$', '$$'))}"
        for name, value in variables.items()
        if value
    ]
    return " ".join(["make new NO_INPUT=1", *options])


def escaped(value: Any) -> Any:
    """Return a text that Jinja renders to `value`, because cookiecutter renders given answers."""
    is_plain = not isinstance(value, str) or "{" not in value
    return value if is_plain else f"{{{{ {json.dumps(value)} }}}}"


def make(output: Path, words: list[str], ask: bool) -> int:
    """Collect and check the answers, generate, and return the exit code."""
    if problem := rules.template_problem(ROOT):
        print(f"{problem}\nNothing was written.", file=sys.stderr)
        return 1
    given = dict(word.split("=", 1) for word in words)
    config = get_user_config()
    context = generate_context(str(ROOT / "cookiecutter.json"), config["default_context"], given)
    answers = collect(dict(context["cookiecutter"]), set(given), output, ask)
    problems, slug = rules.find_problems(answers), answers["project_slug"]
    if not problems and (rule := answer_problem("project_slug", slug, output)):
        problems = [("project_slug", rule, free_name(slug, output))]
    if problems:
        corrections = rules.report(answers, problems)
        print(f"  {command(answers, corrections, output)}\n", file=sys.stderr)
        return 1
    # The hooks say themselves what they reject, and cookiecutter would add a traceback.
    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        # Its own configuration, because the home directory may be read-only.
        config_file = Path(folder, "config.yaml")
        config_file.write_text(json.dumps({"replay_dir": folder}), encoding="utf-8")
        try:
            cookiecutter(
                str(ROOT),
                no_input=True,
                extra_context={name: escaped(value) for name, value in answers.items()},
                output_dir=str(output),
                config_file=str(config_file),
            )
        except KeyboardInterrupt:
            # uv repeats the signal. The directory did not exist before.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            shutil.rmtree(output / slug, ignore_errors=True)
            raise
    return 0


def main() -> int:
    """Run the command line. Return 2 for arguments that are not valid, 1 for a failure."""
    parser = make_parser(__doc__, "0 done, 1 failed, 2 wrong usage, 130 stopped")
    parser.add_argument("--no-input", action="store_true", help="ask nothing")
    parser.add_argument("output_dir", metavar="OUTPUT-DIR", help="where its directory is made")
    parser.add_argument("answers", metavar="NAME=ANSWER", nargs="*", help="not asked then")
    options = parser.parse_args()
    if problems := find_problems(options.answers):
        lines = [rules.fill(f"  - {problem}", indent=4) for problem in problems]
        print("These answers are not valid:", *lines, sep="\n", file=sys.stderr)
        return 2
    ask = not options.no_input and sys.stdin.isatty()
    try:
        return make(Path(options.output_dir), options.answers, ask)
    except FailedHookException:
        return 1
    except CookiecutterException as error:
        print(error, file=sys.stderr)
        return 1
    except (Abort, EOFError, KeyboardInterrupt):
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
