"""The golden run: small runs whose record files must stay the same while the code around them moves.

    python scripts/golden.py            compare with tests/golden.json
    python scripts/golden.py --write    take what comes out now as right
    python scripts/golden.py --toy      also the toy world with its model (its bytes depend on the processor,
    so it is
                                        compared on one machine only, in build/golden-toy.json)

A hash stands for each records.jsonl, drops.jsonl and stage.json of a run folder, by the names of its stage
folder and file. Fractions count to twelve digits: numpy rounds the last ones by the processor's instructions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

GOLDEN = Path(__file__).parents[1] / "tests" / "golden.json"
TOY = Path(__file__).parents[1] / "build" / "golden-toy.json"
NAMES = ("records.jsonl", "drops.jsonl", "stage.json")

BASE: dict[str, Any] = {
    "engine": {"name": "scripted"},
    "personas": {"source": "builtin:world", "n": 40, "held_out": 8},
    "max_drop_share": 1.0,
}
SCRIPTED: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"judging": {"method": "text", "orders": "one"}, "pairs": {"keep": "all"}},
    "four answers, panel": {
        "responses": {"n": 4},
        "judging": {"panel": [{"template": "world/judge", "weight": 0.5}]},
        "pairs": {"rule": "first_last", "length_matched": True, "min_p": 0.5},
    },
    "filters": {"filters": {"duplicates": "near", "min_words": 2, "decontaminate": ["FOLDER/set.jsonl"]}},
    "no filters": {
        "filters": {"duplicates": "none", "refusals": False, "persona_text": False, "unfinished": False}
    },
    "user turn": {"prompts": {"method": "user_turn"}},
    "mix": {"prompts": {"mix": {"prompt": 2, "prompt_code": 1}, "prefill": True}},
    "nobody": {"personas": {"source": "none", "n": 40, "held_out": 8}},
    "self-made": {"personas": {"source": "self", "n": 40, "held_out": 8, "writing": {"traits": "world"}}},
    "given prompts": {"prompts": {"source": "FOLDER/prompts.jsonl"}, "personas": {"n": 20, "held_out": 5}},
    "coin": {"judging": {"method": "random"}},
    "longer": {"judging": {"method": "longer"}},
    "oracle": {"judging": {"method": "oracle"}},
}


def hashes(root: Path) -> dict[str, str]:
    """Digest of each record file by its place."""
    files = sorted(p for p in root.rglob("*.json*") if p.name in NAMES)
    return {str(p.relative_to(root)): hashlib.sha256(_rounded(p).encode()).hexdigest()[:16] for p in files}


def _rounded(path: Path) -> str:
    """The file's text with fractions of twelve digits."""
    text = path.read_text("utf-8")
    parts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return "\n".join(
        json.dumps(json.loads(part, parse_float=lambda number: float(f"{float(number):.12g}")))
        for part in parts
    )


def scripted(folder: Path) -> dict[str, dict[str, str]]:
    """All stages up to the pairs with the scripted engine, and an imported set."""
    from sao.cli import main as sao
    from sao.config import make_config
    from sao.method import run

    write_inputs(folder)
    found = {}
    for number, (name, sections) in enumerate(SCRIPTED.items()):
        text = json.dumps({**BASE, **sections}).replace("FOLDER", str(folder))
        root = folder / f"run-{number}"
        run(make_config(json.loads(text)), root, until="pairs")
        found[name] = hashes(root)
    quietly(
        lambda: sao(
            ["import", str(folder / "pairs.jsonl"), "--out", str(folder / "imported"), "--held-out", "3"]
        )
    )
    found["imported"] = hashes(folder / "imported")
    return found


def toy(folder: Path) -> dict[str, dict[str, str]]:
    """The whole loop with the toy world's model, and `sao eval` of what it trained."""
    from sao.cli import main as sao

    run, sizes = folder / "toy", ["--personas.n", "80", "--personas.held_out", "16", "--train.epochs", "1"]
    quietly(lambda: sao(["run", "demo", "--out", str(run), "--quiet", *sizes]))
    both = ["--base", "builtin:world", "--tuned", str(run), "--out", str(folder / "eval"), "--quiet"]
    quietly(lambda: sao(["eval", *both, "--evaluation.bootstrap", "200", "--evaluation.self_tests", "0"]))
    weights = next(run.glob("round-1/train-*/model/model.safetensors"))
    model = {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}
    return {"toy": hashes(run), "eval": hashes(folder / "eval"), "trained": model}


def quietly(work: Callable[[], int]) -> None:
    """Without its prints; raises where it fails."""
    with Path(os.devnull).open("w") as nothing:
        before, sys.stdout = sys.stdout, nothing
        try:
            status = work()
        finally:
            sys.stdout = before
    if status:
        raise SystemExit(f"failed with {status}")


def write_inputs(folder: Path) -> None:
    """A set of prompts, one of pairs, and an evaluation set that shares a prompt with nobody."""
    prompts = [{"prompt": f"How do I mend chair number {i} with glue?"} for i in range(30)]
    pairs = [
        {"prompt": f"Question {i}?", "chosen": f"A good answer {i}.", "rejected": f"No {i}"}
        for i in range(12)
    ]
    items = [{"question": f"What is the height of tower number {i} in the town of Ulm?"} for i in range(5)]
    for name, rows in (("prompts", prompts), ("pairs", pairs), ("set", items)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def differences(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> list[str]:
    """What is not the same, a line each."""
    names = sorted({(case, file) for found in (old, new) for case, files in found.items() for file in files})
    return [f"{c}: {f}" for c, f in names if old.get(c, {}).get(f) != new.get(c, {}).get(f)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    wrong = []
    for place, make in [(GOLDEN, scripted), *([(TOY, toy)] if args.toy else [])]:
        with tempfile.TemporaryDirectory() as folder:
            found = make(Path(folder))
        if args.write:
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(found, indent=1) + "\n")
        else:
            wrong += differences(json.loads(place.read_text()), found)
        print(f"{place.name}: {sum(map(len, found.values()))} files of {len(found)} runs")
    print("\n".join(wrong) or ("written" if args.write else "the same"))
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
