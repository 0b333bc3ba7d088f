"""Make a repository from this template; `make new` calls it.

    scripts/new.py [--no-input] OUTPUT-DIR [NAME=ANSWER ...]

Without a terminal, or with --no-input, every answer that is not given is the default.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from click import Abort
from cookiecutter.exceptions import CookiecutterException, FailedHookException
from cookiecutter.main import cookiecutter
from cookiecutter.prompt import YesNoPrompt

ROOT = Path(__file__).resolve().parent.parent


def find_problems(words: list[str]) -> list[str]:
    """What stands against the answers where cookiecutter would pass it over, or raise."""
    context = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))
    questions = {name: default for name, default in context.items() if not name.startswith("_")}
    problems = []
    for word in words:
        name, equals, answer = word.partition("=")
        if not equals:
            problems.append(f"{word}: must be NAME=ANSWER")
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


def main() -> int:
    """Command line; 2 for answers that are no answers, 1 when the template refuses them."""
    parser = argparse.ArgumentParser(description="Make a repository from this template.")
    parser.add_argument("--no-input", action="store_true", help="ask nothing")
    parser.add_argument("output_dir", metavar="OUTPUT-DIR", help="where its folder is made")
    parser.add_argument("answers", metavar="NAME=ANSWER", nargs="*")
    options = parser.parse_args()
    if problems := find_problems(options.answers):
        print("These answers cannot be used:", *problems, sep="\n  - ", file=sys.stderr)
        return 2
    # The hooks say themselves what they refuse, and cookiecutter would add a traceback.
    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)
    try:
        cookiecutter(
            str(ROOT),
            no_input=options.no_input or not sys.stdin.isatty(),
            extra_context=dict(word.split("=", 1) for word in options.answers),
            output_dir=options.output_dir,
        )
    except FailedHookException:
        return 1
    except CookiecutterException as error:
        print(error, file=sys.stderr)
        return 1
    except (Abort, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
