"""The rules of the repository that no other tool holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LONGEST = 40
"""Lines of a function, from `def` to its end without the docstring."""


def function_lines(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each function with its lines; those of its docstring do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                words = node.body[0]
                lines -= (words.end_lineno or words.lineno) - words.lineno + 1
            yield node.name, lines


def test_no_function_is_long() -> None:
    sources = sorted((ROOT / "src" / "sao").rglob("*.py"))
    assert len(sources) > 100
    found = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in sources
        for name, lines in function_lines(ast.parse(path.read_text("utf-8")))
        if lines > LONGEST
    ]
    assert found == [], "split it by meaning"


def test_lines_of_a_function_by_hand() -> None:
    text = '''
@wrapped
def outer(
    a: int,
) -> int:
    """One line.

    Two more.
    """

    def inner() -> int:
        return a

    return inner()
'''
    assert dict(function_lines(ast.parse(text))) == {"outer": 8, "inner": 2}


@pytest.mark.parametrize("name", ["ruff", "typos"])
def test_commits_are_checked_by_the_versions_that_the_checks_run_with(name: str) -> None:
    pinned = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert pinned is not None
    assert [hook["rev"] for hook in hooks if name in hook["repo"]] == [f"v{pinned[1]}"]
