"""What SAO does with each family of models, by trying: writes docs/models.json and docs/models.md.

    .venv/bin/python scripts/models.py [MODEL_TYPE …]

For each model type a tiny random model is made from its own config class and put through the checks of
tests/support/family_checks.py. With names, only those are tried, and printed; nothing is written.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sao.errors import SAOError  # noqa: E402
from support.families import FAMILIES, build  # noqa: E402
from support.family_checks import CHECKS  # noqa: E402


def try_all(model_type: str, columns: list[str]) -> dict[str, Any]:
    """A line of docs/models.json: true or false for each column, and why not."""
    found: dict[str, Any] = {"model_type": model_type}
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        try:
            model = build(model_type, path / "model")
        except Exception as error:
            return {**found, "why": f"not built: {type(error).__name__}: {error}"}
        for name in columns:
            args = (model, path / "out") if name == "saves" else (model,)
            try:
                note = CHECKS[name](*args)
                found[name] = True
                if note:
                    reasons.append(f"{name}: {note}")
            except SAOError as error:
                found[name] = False
                reasons.append(f"{name}: {error}".replace(str(path), "").strip())
            except Exception as error:  # a fault of ours, which the table shows as such
                found[name] = False
                reasons.append(f"{name}: {type(error).__name__}: {error}".split("\n")[0])
                if "-v" in sys.argv:
                    traceback.print_exc()
    return {**found, "why": "; ".join(reasons)}


def main() -> None:
    """Try the families that were named, or all of them."""
    named = [name for name in sys.argv[1:] if name in FAMILIES]
    columns = [name for name in sys.argv[1:] if name in CHECKS] or list(CHECKS)
    transformers.logging.set_verbosity_error()
    lines = []
    for model_type in named or FAMILIES:
        lines.append(try_all(model_type, columns))
        print(json.dumps(lines[-1]), flush=True)


if __name__ == "__main__":
    main()
