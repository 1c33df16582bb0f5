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
from support.family_checks import CHECKS, in_two_processes  # noqa: E402

WORDS = """# Families of models

What SAO does with {n} model types, tried with transformers {version} by `make models`: each on a tiny
random model from its own config class, float32, on a CPU. [models.json](models.json) has the same as data.

- **writes**: greedy token ids equal those of `model.generate`. "equal lengths" in the notes: the model's
  layers keep more than keys and values (or choose among them), so the built-in engine writes texts of equal
  length together, by the model's own `generate`; that is correct, but slower.
- **judges**: log-probabilities of choices equal those of a plain forward pass to 1e-4.
- **trains**: log-probabilities and gradients of padded rows equal those of the model's own logits to 1e-5.
- **packed**: the same for packed rows, with the prompt shared and without. "no": `train.batches: auto`
  takes padded rows, since in a packed one an answer would see another.
- **lora**: the same for an adapter on all linear layers of the text model. Routers get none, nor do experts
  whose weights lie in one tensor.
- **saves**: a trained model has the same weight names as before and the same logits; towers for pictures
  and sound are kept, frozen, under the names they came with.
  vLLM for the CPU (0.32) reads such models back with the same greedy tokens where it knows the family and
  fits transformers 5.19: tried with llama, qwen3, qwen3_moe, mixtral, gemma3_text, olmo3 and falcon_h1.
- **shares**: two processes (DDP) find the loss and the gradient's norm of one to 1e-5.
- **planned**: `sao plan` counts the weights, and the bytes that the cache keeps of a token.

Mixtures of experts: routers are frozen unless `train.router` is `trained`, and no loss that balances
experts is added. Models with an index of keys (DeepSeek-V3.2, GLM-MoE-DSA, HY-4) write texts of up to
`index_topk` tokens: beyond that transformers 5.19 may pick keys that come later in the text.

"""


def try_all(model_type: str, model: str, columns: list[str]) -> dict[str, Any]:
    """A line of docs/models.json: true or false for each column, and why not."""
    found: dict[str, Any] = {"model_type": model_type}
    reasons, path = [], Path(model).parent
    for name in columns:
        args = (model, path / "out") if name in ("saves", "shares") else (model,)
        try:
            note = CHECKS[name](*args)
            found[name] = True
            if note:
                reasons.append(f"{name}: {note}")
        except SAOError as error:
            found[name] = False
            reasons.append(f"{name}: {error}".replace(str(path), "").partition(" (off by")[0])
        except Exception as error:  # a fault of ours, which the table shows as such
            found[name] = False
            reasons.append(f"{name}: {type(error).__name__}: {error}".split("\n")[0])
            if "-v" in sys.argv:
                traceback.print_exc()
    return {**found, "why": "; ".join(reasons)}


def table(lines: list[dict[str, Any]]) -> str:
    """docs/models.md."""
    head = ["model type", *CHECKS, "notes"]
    rows = [
        [
            f"`{line['model_type']}`",
            *("yes" if line[c] else "no" for c in CHECKS),
            line["why"].replace("|", "/"),
        ]
        for line in lines
    ]
    text = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return WORDS.format(version=transformers.__version__, n=len(lines)) + "\n".join(text) + "\n"


def main() -> None:
    """Try the families that were named, or all of them."""
    named = [name for name in sys.argv[1:] if name in FAMILIES]
    columns = [name for name in sys.argv[1:] if name in CHECKS] or list(CHECKS)
    transformers.logging.set_verbosity_error()
    lines = []
    with tempfile.TemporaryDirectory() as place:
        models = {name: build(name, Path(place) / name / "model") for name in named or FAMILIES}
        if "shares" in columns:
            in_two_processes(list(models.values()))
        for model_type, model in models.items():
            lines.append(try_all(model_type, model, columns))
            print(json.dumps(lines[-1]), flush=True)
    if not named and columns == list(CHECKS):
        text = "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"
        (ROOT / "docs" / "models.json").write_text(text, "utf-8")
        (ROOT / "docs" / "models.md").write_text(table(lines), "utf-8")


if __name__ == "__main__":
    main()
