"""Modules of `shared/` import downwards only, in the layers of the architecture guide."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "ARCHITECTURE_GUIDELINES.md"
MODULES = {path.stem: path for path in (ROOT / "shared").glob("[!_]*.py")}


def layers() -> dict[str, int]:
    """The row of each module in the guide's table, counted from the top."""
    table = GUIDE.read_text(encoding="utf-8").partition("| Layer of `shared/` |")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    return {
        module: number
        for number, row in enumerate(rows)
        for module in re.findall(r"`(\w+)`", row.split("|")[2])
    }


def imports(path: Path) -> set[str]:
    """The modules of `shared/` that a file imports, at its top or within a function."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    return {name.removeprefix("shared.") for name in names if name.startswith("shared.")}


def test_every_module_has_its_layer() -> None:
    assert layers().keys() == MODULES.keys()


def test_imports_go_down() -> None:
    rows = layers()
    upwards = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imports(path)
        if rows[imported] <= rows[module]
    ]
    assert upwards == []
