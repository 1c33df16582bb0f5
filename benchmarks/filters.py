"""Planted duplicates and evaluation items among many prompts: how many are found, how long that takes, and
how much memory.

    PYTHONPATH=src python benchmarks/filters.py --rows 60000

Prompts of 8 to 60 made-up words (Zipf's law) and templated ones lie in a file as the store keeps them, beside
an evaluation set of 3,000 items. Planted are exact copies (case, punctuation and spaces changed), light edits
of prompts of 12 words and more (one word replaced, taken out or put in, or two neighbours swapped), and
evaluation items: as they are, within other text, edited. `sao.stages.filters.filter_prompts` runs in a
process of its own, as in a run with the default filters and `filters.decontaminate`.

The JSON line printed last: `recall` of what was planted; `near_by_definition`, the share of the light edits
whose similarity reaches the threshold at all; `wrong`, rows that nobody planted and that were dropped though
they are less similar than the threshold to the row that they are said to repeat; `seconds`, `cpu_seconds` and
`peak_mb` of the process that filters, `idle_mb` before it begins. Exits with 1 where recall is below 1
(near-duplicates: 0.9; edited items: any) or rows are dropped wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from sao.data.similarity import jaccard, shingles

VOCABULARY, ITEMS, THRESHOLD = 30_000, 3_000, 0.7
SHARES = {
    "exact": 0.03,
    "near": 0.03,
    "item_exact": 0.003,
    "item_wrapped": 0.005,
    "item_edited": 0.005,
    "templated": 0.05,
}
DROPPED_AS = {"exact": ("equals",), "near": ("repeats", "equals")}


class Texts:
    """The prompts and evaluation items. Each follows from seed and number alone, so none has to be held."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        syllables = [
            a + b for a in "bdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il", "or", "un")
        ]
        rng = random.Random(seed)
        made = (
            "".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(4 * VOCABULARY)
        )
        real = ("to", "for")  # a text that ends in these without a full stop is dropped as unfinished
        self.words = [word for word in dict.fromkeys(made) if word not in real][:VOCABULARY]
        self.weights = list(accumulate(1 / (rank + 2.7) for rank in range(len(self.words))))

    def draw(self, rng: random.Random, n: int) -> list[str]:
        return rng.choices(self.words, cum_weights=self.weights, k=n)

    def item(self, number: int) -> list[str]:
        """An evaluation item; one in fifty has one or two words."""
        rng = random.Random(f"item {self.seed} {number}")
        return self.draw(rng, rng.randint(1, 2) if number % 50 == 0 else rng.randint(6, 60))

    def kind(self, row: int) -> str:
        """What a row is: "own", "templated", or one of those that are planted."""
        drawn = random.Random(f"kind {self.seed} {row}").random()
        for kind, share in SHARES.items():
            drawn -= share
            if drawn < 0:
                return kind if row else "own"
        return "own"

    def own(self, row: int) -> list[str]:
        rng = random.Random(f"own {self.seed} {row}")
        return self.draw(rng, rng.randint(8, 60))

    def original(self, row: int) -> int:
        """The earlier row that a planted duplicate repeats."""
        rng = random.Random(f"original {self.seed} {row}")
        while True:
            found = rng.randrange(row)
            if found == 0 or (
                self.kind(found) == "own" and (len(self.own(found)) >= 12 or self.kind(row) == "exact")
            ):
                return found

    def row(self, row: int) -> str:
        """The prompt of a row."""
        rng = random.Random(f"row {self.seed} {row}")
        kind = self.kind(row)
        if kind == "own":
            return written(self.own(row), random.Random(f"form {self.seed} {row}"))
        if kind == "templated":
            who, what = self.draw(rng, 2)
            return f"Explain {what}{row} to {who} in {rng.randint(2, 400)} words."
        if kind == "exact":
            return changed(written(self.own(self.original(row)), rng), rng)
        if kind == "near":
            return written(self.edited(self.own(self.original(row)), rng), rng)
        item = (
            self.item(rng.choice([n for n in range(ITEMS) if n % 50]))
            if kind != "item_exact"
            else self.item(rng.randrange(ITEMS))
        )
        if kind == "item_exact":
            return changed(written(item, rng), rng)
        if kind == "item_edited":
            return written(self.edited(item, rng), rng)
        before, after = (written(self.draw(rng, rng.randint(3, 40)), rng) for _ in range(2))
        return f'{before}\n\n"{written(item, rng)}"\n{after}'

    def edited(self, words: list[str], rng: random.Random) -> list[str]:
        """One word replaced, taken out or put in, or two neighbours swapped."""
        at, new = rng.randrange(len(words) - 1), self.draw(rng, 1)
        match rng.randrange(4):
            case 0:
                return [*words[:at], *new, *words[at + 1 :]]
            case 1:
                return [*words[:at], *words[at + 1 :]]
            case 2:
                return [*words[:at], *new, *words[at:]]
        return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def written(words: list[str], rng: random.Random) -> str:
    """Words as a sentence, with a comma here and there."""
    said = [word + "," if rng.random() < 0.05 else word for word in words[:-1]] + [
        words[-1] + rng.choice(".?!")
    ]
    return " ".join(said).capitalize()


def changed(text: str, rng: random.Random) -> str:
    """Other case, punctuation or spaces, or the same."""
    match rng.randrange(4):
        case 0:
            return text.upper()
        case 1:
            return re.sub(r"[,.?!]", "", text)
        case 2:
            return "  " + text.replace(" ", "\n ") + "\t"
    return text


def write_files(rows: int, texts: Texts, folder: Path) -> None:
    """prompts.jsonl, as the store keeps records, and items.jsonl, an evaluation set."""
    from sao.records import Prompt, make_id, to_dict
    from sao.store.files import dumps

    with (folder / "prompts.jsonl").open("w") as out:
        for row in range(rows):
            prompt = Prompt(id=make_id(row), row=row, persona_id=make_id("persona", row), text=texts.row(row))
            out.write(dumps(to_dict(prompt)) + "\n")
    with (folder / "items.jsonl").open("w") as out:
        for number in range(ITEMS):
            out.write(json.dumps({"instruction": written(texts.item(number), random.Random(number))}) + "\n")


def child(folder: Path) -> None:
    """Filter the file; writes what is dropped and prints what it took."""
    import numpy  # noqa: F401 - what is loaded anyway counts as idle
    import pyarrow  # noqa: F401
    import rensa  # noqa: F401

    from sao.config import FiltersConfig
    from sao.records import Drop, Prompt, from_dict, to_dict
    from sao.stages.filters import filter_prompts
    from sao.store.files import dumps, read_jsonl

    idle = peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    config = FiltersConfig(
        duplicates="near", decontaminate=[str(folder / "items.jsonl")], max_similarity=THRESHOLD
    )

    def read() -> Any:
        return ((from_dict(Prompt, row), "") for row in read_jsonl(folder / "prompts.jsonl"))

    with (folder / "drops.jsonl").open("w") as out:
        for record in filter_prompts(read, config, "Prompt:", ()):
            if isinstance(record, Drop):
                out.write(dumps(to_dict(record)) + "\n")
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    print(
        json.dumps(
            {**{name: round(value, 1) for name, value in took.items()}, "peak_mb": peak_mb(), "idle_mb": idle}
        )
    )


def peak_mb() -> float:
    """The process's greatest resident set so far, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def found_of(rows: int, texts: Texts, folder: Path) -> dict[str, Any]:
    """Recall of what was planted, and what was dropped without reason."""
    from sao.store.files import read_jsonl

    drops = {int(row["row"]): row for row in read_jsonl(folder / "drops.jsonl")}
    planted, found, wrong = Counter[str](), Counter[str](), Counter[str]()
    for row in range(rows):
        kind, drop = texts.kind(row), drops.get(row)
        reason = drop["reason"] if drop else ""
        if kind in ("own", "templated"):
            if drop and reason.startswith(("equals", "repeats")):
                other = int(re.search(r"row (\d+)", drop["detail"])[1])  # type: ignore[index]
                close = jaccard(shingles(texts.row(row)), shingles(texts.row(other))) >= THRESHOLD
                wrong["close" if close else kind] += 1
            elif drop:
                wrong[reason.split()[0]] += 1
            continue
        planted[kind] += 1
        found[kind] += reason.startswith(DROPPED_AS.get(kind, ("contaminated",)))
        if kind == "near":
            original = texts.row(texts.original(row))
            planted["close"] += jaccard(shingles(texts.row(row)), shingles(original)) >= THRESHOLD
    return {
        "planted": {kind: planted[kind] for kind in SHARES if kind != "templated"},
        "recall": {kind: round(found[kind] / planted[kind], 4) for kind in SHARES if planted[kind]},
        "near_by_definition": round(planted["close"] / max(1, planted["near"]), 4),
        "close_by_chance": wrong.pop("close", 0),
        "wrong": dict(wrong),
        "dropped": len(drops),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60_000, help="prompts (default: 60000)")
    parser.add_argument("--threads", type=int, default=1, help="threads of numpy and rensa (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="what the texts are drawn from (default: 0)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return 0
    texts = Texts(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(args.rows, texts, folder)
        limits = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(args.threads)
        )
        command = [sys.executable, __file__, "--child", name]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits}
        )
        took = json.loads(done.stdout.splitlines()[-1])
        found = found_of(args.rows, texts, folder)
    state = round((took["peak_mb"] - took["idle_mb"]) * 2**20 / args.rows)
    packages = {name: version(name) for name in ("numpy", "rensa")}
    print(json.dumps({"benchmark": "filters", "rows": args.rows, "threads": args.threads, **took,
    "bytes_a_row": state, **found,
                      "versions": {"python": platform.python_version(), **packages}}))  # fmt: skip
    failed = (
        found["recall"]["exact"] < 1
        or found["recall"]["item_exact"] < 1
        or found["recall"]["item_wrapped"] < 1
    )
    return int(failed or found["recall"]["near"] < 0.9 or bool(found["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
