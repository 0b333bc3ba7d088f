"""Check the wording of documents, docstrings and comments.

    python scripts/check_words.py [PATH...]    all tracked files by default

Print `file:line: rule: sentence`, and exit with 1 when there is a fault. Code in documents,
tables, quoted text, addresses and indented lines of comments are left out. Rules:

- A sentence begins with a noun or a verb, not with one of `OPENINGS`.
- A sentence has at most 25 words and no semicolon.
- Something is not valid, and never "no valid X".
- One term for one idea, see `TERMS`.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

from cli import make_parser

ROOT = Path(__file__).resolve().parent.parent
MAX_WORDS = 25
OPENINGS = re.compile(r"(What|Who|Whoever|Those of|Else|Not|Without)\b")
NO_VALID = re.compile(r"\b(?:is|are) no valid\b", re.IGNORECASE)
TERMS = {
    r"anew": "again",
    r"whoever|somebody": "the service, the user or the maintainer",
    r"folders?": "directory",
    r"farewell|goodbye": "offline message",
    r"in step": "up to date",
    r"signs? of (?:life|health)": "health timestamp",
    r"buried": "dead letter",
    r"refuse[sd]?|refusal": "reject",
}
WRONG_TERMS = {
    re.compile(rf"\b(?:{term})\b", re.IGNORECASE): right for term, right in TERMS.items()
}
# Another project's words, or text that a program writes.
LEFT_OUT = re.compile(r"(^|/)(LICENSE|uv\.lock|topics\.md|.*\.txt|.*\.json)$|^templates/licences")
COMMENT = re.compile(r"(?:^|\s)(?:#(?!!)|//)(.*)$")
OTHER_SUFFIXES = {".sh", ".yml", ".yaml", ".toml", ".conf", ".js", ""}
JINJA_LINE = re.compile(r"^\s*\{%.*%\}$", re.MULTILINE)
JINJA_VALUE = re.compile(r"\{\{.*?\}\}|\{[%#].*?[%#]\}")
# A pragma or a heading line, not a sentence.
PRAGMA = re.compile(
    r"\s*(noqa|type:|pragma|shellcheck|hadolint|yamllint|syntax=|group:|mypy:|v\d|fmt:)"
)

Text = tuple[int, str]


def prose_of_markdown(text: str) -> Iterator[Text]:
    """Yield paragraphs and list items, without code, tables and headings."""
    fence = False
    start, lines = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            fence = not fence
            line = ""
        is_other = fence or not line.strip() or line.startswith(("|", "#", "<", "    ", "{"))
        is_item = re.match(r"\s*(?:[-*]|\d+\.) ", line)
        if lines and (is_other or is_item):
            yield start, " ".join(lines)
            lines = []
        if not is_other:
            start = start if lines else number
            lines.append(re.sub(r"^\s*(?:[-*]|\d+\.|>) ", "", line).strip())


def prose_of_python(text: str) -> Iterator[Text]:
    """Yield docstrings and blocks of comments."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                line = node.body[0].lineno
                for paragraph in docstring.split("\n\n"):
                    # Indented lines are examples, and sections of arguments are lists.
                    if not paragraph.startswith((" ", ">>>", "Args:", "Raises:", "- ", "* ")):
                        yield line, " ".join(paragraph.split())
                    line += paragraph.count("\n") + 2
    comments = [
        (token.start[0], token.string[1:])
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    yield from joined(comments)


def prose_of_others(text: str) -> Iterator[Text]:
    """Yield blocks of comments that begin with # or //."""
    lines = enumerate(text.splitlines(), 1)
    found = ((number, COMMENT.search(line)) for number, line in lines)
    yield from joined([(number, match[1]) for number, match in found if match])


def joined(comments: list[Text]) -> Iterator[Text]:
    """Join comments of consecutive lines into one text."""
    start, lines = 0, list[str]()
    for number, comment in [*comments, (0, "")]:
        if lines and number != start + len(lines):
            yield start, " ".join(lines)
            lines = []
        # An indented line is an example or an entry in a list of options.
        if comment.strip() and not comment.startswith("   ") and not PRAGMA.match(comment):
            start = start if lines else number
            lines.append(comment.strip())


def sentences(text: str) -> Iterator[str]:
    """Split a text without its code, quotes and addresses, which count as one word each."""
    text = re.sub(r"`+[^`]*`+|\"[^\"]*\"|'[^' ]*'", "CODE", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"https?://\S+", "ADDRESS", text).replace("**", "")
    yield from re.split(r"(?<=[.:?!])\s+", text)


def faults(sentence: str) -> Iterator[str]:
    """Yield the rules that a sentence breaks."""
    if match := OPENINGS.match(sentence):
        yield f'begins with "{match[0]}"'
    if len(re.findall(r"[\w'-]+", sentence)) > MAX_WORDS:
        yield f"longer than {MAX_WORDS} words"
    if ";" in sentence:
        yield "semicolon"
    if NO_VALID.search(sentence):
        yield 'says "is no valid"'
    for term, right in WRONG_TERMS.items():
        if match := term.search(sentence):
            yield f'"{match[0]}" instead of {right}'


def check(path: Path) -> Iterator[str]:
    """Yield a line for each fault of a file."""
    text = path.read_text(encoding="utf-8")
    # The rest of a template has the same lines, and is Python where the template makes Python.
    text = JINJA_VALUE.sub("CODE", JINJA_LINE.sub("", text))
    prose = {".md": prose_of_markdown, ".py": prose_of_python}.get(path.suffix, prose_of_others)
    for line, paragraph in prose(text):
        for sentence in sentences(paragraph):
            for fault in faults(sentence):
                yield f"{path.relative_to(ROOT)}:{line}: {fault}: {sentence[:90]}"


def main() -> int:
    """Check the files, and return 1 when one has a fault."""
    parser = make_parser(__doc__, "0 no fault, 1 a fault, 2 wrong usage")
    parser.add_argument("paths", metavar="PATH", nargs="*", help="default: all tracked files")
    names = parser.parse_args().paths or subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.rstrip("\0").split("\0")
    paths = [
        path
        for path in ((ROOT / name).resolve() for name in names)
        if path.is_file()
        and not LEFT_OUT.search(str(path.relative_to(ROOT)))
        and path.suffix in {*OTHER_SUFFIXES, ".md", ".py"}
    ]
    lines = [line for path in paths for line in check(path)]
    print("\n".join(lines) or f"{len(paths)} files are worded well.")
    return bool(lines)


if __name__ == "__main__":
    raise SystemExit(main())
