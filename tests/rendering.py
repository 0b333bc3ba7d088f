"""The templates rendered in this process, with cookiecutter's own environment."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cookiecutter import prompt
from cookiecutter.generate import generate_context, generate_files
from cookiecutter.utils import create_env_with_context

_numbers = itertools.count()


def typed_context(
    template: Path, output: Path | None, answers: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The context after these answers were typed at the prompts, and Enter at all others.

    With an `output` it is cookiecutter's context, without one it is cruft's.
    """

    def typed(name: str, default: Any, *_: Any) -> Any:
        return answers.get(name, default)

    def chosen(name: str, options: list[Any], *_: Any) -> Any:
        return answers.get(name, options[0])

    unknown = set(answers) - set(
        generate_context(str(template / "cookiecutter.json"))["cookiecutter"]
    )
    assert not unknown, f"no such prompt: {unknown}"
    context: dict[str, dict[str, Any]] = generate_context(str(template / "cookiecutter.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt, "read_user_variable", typed)
        patch.setattr(prompt, "read_user_yes_no", typed)
        patch.setattr(prompt, "read_user_choice", chosen)
        context["cookiecutter"].update(prompt.prompt_for_config(context, no_input=False))
    context["cookiecutter"]["_template"] = str(template)
    if output is not None:
        context["cookiecutter"] |= {
            "_output_dir": str(output),
            "_repo_dir": str(template),
            "_checkout": None,
        }
    return context


def hook_source(template: Path, name: str, context: dict[str, dict[str, Any]]) -> str:
    """A hook as cookiecutter writes it to its temporary file."""
    source = (template / "hooks" / f"{name}.py").read_text(encoding="utf-8")
    rendered: str = create_env_with_context(context).from_string(source).render(**context)
    return rendered


def load_hook(template: Path, name: str, context: dict[str, dict[str, Any]]) -> ModuleType:
    """A hook, rendered and imported under a name other than `__main__`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.py")
        file.write_text(hook_source(template, name, context), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"hook_{next(_numbers)}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def render(template: Path, output: Path, context: dict[str, dict[str, Any]]) -> Path:
    """Render all files without hooks, and return the directory of the result."""
    return Path(
        generate_files(repo_dir=template, context=context, output_dir=output, accept_hooks=False)
    )
