"""Imports point down only, and what needs no torch does not load it."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import sao

ROOT = Path(sao.__file__).parent
# Lowest row first; a module may import from its own row only where that is allowed below.
ROWS = [
    ["errors", "types"],
    ["config", "templates"],
    ["store", "manifest", "rows", "similarity", "evaluation_sets", "weights", "vocabulary", "shards", "json_arrays"],
    ["engines", "leaks", "gguf"],
    ["chat"],
    [
        "engines.auto",
        "engines.transformers",
        "engines.lanes",
        "engines.scripted",
        "engines.vllm",
        "engines.openai",
        "engines.client",
        "engines.reward",
    ],
    ["world", "shapes", "ranking"],
    ["personas", "prompts", "filters", "responses", "judging", "pairs"],
    ["training", "evaluation", "card", "export_forms"],
    ["folder", "plan", "data_card", "drops"],
    ["audit", "label", "probe", "stats", "imported", "export", "bench"],
    ["report", "evaluate"],
    ["pipeline"],
    ["cli", "__main__"],
]
WITHIN_PACKAGE = ("training", "evaluation", "world", "engines", "audit", "stats")


def row_of(module: str) -> int:
    """The row of "engines.transformers" or, failing that, of "engines"."""
    for name in (module, module.split(".")[0]):
        for number, row in enumerate(ROWS):
            if name in row:
                return number
    raise AssertionError(f"module {module} has no row: add it to ROWS")


def imports_of(path: Path) -> set[str]:
    """The modules of sao that a file imports while it runs (not those for type checkers only)."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sao":
            base = node.module.removeprefix("sao").removeprefix(".")
            found |= {base} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("sao.") for a in node.names if a.name.startswith("sao.")}
    return {name for name in found if name and name != "__version__"}


def test_imports_point_down() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "__init__":
            continue
        for target in imports_of(path):
            same_package = module.split(".")[0] == target.split(".")[0] and module.split(".")[0] in WITHIN_PACKAGE
            opened_here = module == "engines" and target.startswith("engines.")
            lower = row_of(target) < row_of(module)
            peer = row_of(target) == row_of(module) and row_of(module) in (0, 1, 2, len(ROWS) - 1)
            if not (same_package or opened_here or lower or peer):
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_an_upward_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("from sao import cli\nfrom sao.pipeline import run\nimport sao.store\n")
    assert imports_of(file) == {"cli", "pipeline", "store"}


def test_torch_stays_out() -> None:
    code = (
        "import sys, sao, sao.pipeline, sao.cli, sao.audit, sao.label; sao.load_recipe('demo');"
        "sao.cli.build_parser().format_help();"
        "print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_start_is_quick() -> None:
    """`sao --help` in under 0.3 s (the best of several, since the machine may be busy; 0.6 allows for a slow one)."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sao", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.6
