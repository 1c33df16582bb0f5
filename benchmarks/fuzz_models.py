"""Broken model folders: what is said of them, and what is not.

    PYTHONPATH=src .venv/bin/python benchmarks/fuzz_models.py --n 500 --seed 0

Small random chat models are saved, and one thing in each copy is broken: a file dropped, emptied or cut,
bytes overwritten, the type of a value in a JSON file changed, a weight renamed, dropped, added, reshaped or
made NaN. Then the folder is checked and three greedy answers are written. Each mutation must end in one of

    same      the same answers as unbroken: what was broken does not matter
    error     an error of SAO
    warning   a line that names the file
    FAULT     anything else: a traceback, or other answers without a word

Faults are printed as they are found. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers
from safetensors.torch import load_file, save_file

from sao.config import EngineConfig
from sao.engines import Request, Sample, Sampling
from sao.engines.transformers import TransformersEngine
from sao.errors import SAOError
from sao.models.load import check_model
from sao.records import Message
from support import families, tiny_models

ENGINE = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)
Mutation = Callable[[Path, random.Random], str]


def builders() -> dict[str, Callable[[Path], str]]:
    """The models that are broken."""
    return {
        "llama": tiny_models.llama,
        "gemma2": tiny_models.gemma2,
        "qwen3": tiny_models.qwen3,
        "lfm2": lambda folder: families.build("lfm2", folder),
        "gemma3": lambda folder: families.build("gemma3", folder),
    }


# What is broken: each changes one thing in the folder and says what.


def drop_file(folder: Path, rng: random.Random) -> str:
    """A file is missing."""
    file = rng.choice(sorted(folder.iterdir()))
    file.unlink()
    return file.name


def empty_file(folder: Path, rng: random.Random) -> str:
    """A file has no bytes, as after a full disk."""
    file = rng.choice(sorted(folder.iterdir()))
    file.write_bytes(b"")
    return file.name


def cut_file(folder: Path, rng: random.Random) -> str:
    """A file ends early, as after a broken download."""
    file = rng.choice(sorted(folder.iterdir()))
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])
    return file.name


def overwrite(folder: Path, rng: random.Random) -> str:
    """Bytes of a text file are no UTF-8."""
    file = rng.choice([file for file in sorted(folder.iterdir()) if file.suffix != ".safetensors"])
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    data[at : at + 4] = b"\xff\xfe\xff\xfe"
    file.write_bytes(bytes(data))
    return f"{file.name} at {at}"


def change_type(folder: Path, rng: random.Random) -> str:
    """A value in a JSON file is of another type. (A number for a number, and null, are other settings, not
    broken ones.)"""
    file = rng.choice([file for file in sorted(folder.iterdir()) if file.suffix == ".json"])
    whole = json.loads(file.read_text("utf-8"))
    places = list(values_in(whole))
    if not places:
        return drop_file(folder, rng)
    holder, key = rng.choice(places[:200])
    before = holder[key]
    others: list[Any] = ["words", 7, [], {}, ["a", 1], True]
    numbers = (int, float)
    holder[key] = rng.choice(
        [
            x
            for x in others
            if type(x) is not type(before) and not (type(x) in numbers and type(before) in numbers)
        ]
    )
    file.write_text(json.dumps(whole), "utf-8")
    return f"{file.name}: {key} = {before!r} -> {holder[key]!r}"


def values_in(value: Any) -> Any:
    """Every place in a JSON value, as its holder and key."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from values_in(value[key])


def weights_of(folder: Path, change: Callable[[dict[str, torch.Tensor]], str]) -> str:
    """Change the weights and save them again."""
    weights = load_file(folder / "model.safetensors")
    said = change(weights)
    save_file({k: w.contiguous() for k, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return said


def rename_weight(folder: Path, rng: random.Random) -> str:
    """A weight has another name."""

    def change(weights: dict[str, torch.Tensor]) -> str:
        name = rng.choice(sorted(weights))
        words = {0: f"policy.{name}", 1: name.replace("weight", "w"), 2: f"{name}.0", 3: name[1:]}
        weights[words[rng.randrange(4)]] = weights.pop(name)
        return name

    return weights_of(folder, change)


def drop_weight(folder: Path, rng: random.Random) -> str:
    """A weight is missing."""

    def change(weights: dict[str, torch.Tensor]) -> str:
        name = rng.choice(sorted(weights))
        del weights[name]
        return name

    return weights_of(folder, change)


def add_weight(folder: Path, rng: random.Random) -> str:
    """There is a weight too many, as of a layer that config.json does not know."""

    def change(weights: dict[str, torch.Tensor]) -> str:
        name = rng.choice([name for name in sorted(weights) if ".0." in name])
        weights[name.replace(".0.", ".9.")] = weights[name].clone()
        return name.replace(".0.", ".9.")

    return weights_of(folder, change)


def reshape_weight(folder: Path, rng: random.Random) -> str:
    """A weight has another shape."""

    def change(weights: dict[str, torch.Tensor]) -> str:
        name = rng.choice(sorted(weights))
        weight = weights[name]
        weights[name] = rng.choice([weight[:-1], weight.repeat(2, *[1] * (weight.ndim - 1)), weight[None]])
        return name

    return weights_of(folder, change)


def spoil_weight(folder: Path, rng: random.Random) -> str:
    """A number of a weight is NaN or infinite."""

    def change(weights: dict[str, torch.Tensor]) -> str:
        name = rng.choice(sorted(weights))
        weights[name].view(-1)[rng.randrange(weights[name].numel())] = rng.choice(
            [float("nan"), float("inf")]
        )
        return name

    return weights_of(folder, change)


MUTATIONS: tuple[Mutation, ...] = (
    drop_file, empty_file, cut_file, overwrite, change_type, change_type, change_type, rename_weight,
    drop_weight, add_weight, reshape_weight, spoil_weight,
)  # fmt: skip


def answers(folder: Path, notes: list[str]) -> list[str]:
    """Three greedy answers, and what was said on the way."""
    check_model(str(folder), ENGINE)
    engine = TransformersEngine(str(folder), ENGINE, notify=notes.append)
    requests = [
        Request((Message("user", text),), (Sample(text, 1),), Sampling(10, 0.0))
        for text in ("hello world", "Name three tools of a baker.", "héllo 4")
    ]
    return [done.text for done in sorted(engine.generate(iter(requests)), key=lambda done: done.id)]


def outcome(folder: Path, expected: list[str], own_notes: list[str]) -> tuple[str, str]:
    """What became of a broken folder, in a word and in words."""
    notes: list[str] = []
    try:
        found = answers(folder, notes)
    except SAOError as error:
        return "error", str(error)
    except Exception as error:
        return "FAULT", f"{type(error).__name__}: {error}"
    if found == expected:
        return "same", ""
    new = [note for note in notes if note not in own_notes]
    return ("warning", new[0]) if new else ("FAULT", f"other answers: {found} instead of {expected}")


def main() -> None:
    """Break folders and count what is said."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=500, help="mutations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng, started = random.Random(options.seed), time.perf_counter()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults = []
    with tempfile.TemporaryDirectory() as place:
        whole = {}
        for name, build in builders().items():
            notes: list[str] = []
            whole[name] = (Path(build(Path(place) / name)), notes)
        expected = {name: answers(folder, notes) for name, (folder, notes) in whole.items()}
        for number in range(options.n):
            name = rng.choice(sorted(whole))
            mutation = rng.choice(MUTATIONS)
            broken = Path(place) / f"broken-{number}"
            shutil.copytree(whole[name][0], broken)
            said = mutation(broken, rng)
            word, words = outcome(broken, expected[name], whole[name][1])
            counts[mutation.__name__][word] += 1
            if word == "FAULT":
                faults.append(f"{number} {name} {mutation.__name__} ({said}): {words}")
                print(faults[-1][:600], flush=True)
            shutil.rmtree(broken)
    line = {
        "benchmark": "fuzz_models", "n": options.n, "seed": options.seed, "faults": len(faults),
        "by_mutation": {name: dict(count) for name, count in sorted(counts.items())},
        "seconds": round(time.perf_counter() - started),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
