"""The check of the wording of documents, docstrings and comments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_upkeep import load

words = load("check_words")

FAULTS = {
    "What it does.": 'begins with "What"',
    "It is so; it stays so.": "semicolon",
    f"It is {'very ' * 25}long.": "longer than 25 words",
    "It is no valid URL.": 'says "is no valid"',
    "It is refused.": '"refused" instead of reject',
}
FILES = {"page.md": "# Page\n\n{}\n", "code.py": '"""{}"""\n', "other.sh": "true\n# {}\n"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sentence", FAULTS)
def test_a_fault_is_found(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "ROOT", tmp_path)
    path = tmp_path / name
    path.write_text(FILES[name].format(sentence))
    (fault,) = words.check(path)
    assert f"{FAULTS[sentence]}: {sentence[:20]}" in fault
    path.write_text(FILES[name].format("It is good. Run `it; What` and `folder`."))
    assert list(words.check(path)) == []
