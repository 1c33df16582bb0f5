"""What SAO does with a model of a family, each compared with plain transformers: the columns of
docs/models.md.

Each check takes the folder of a tiny model (`support.families.build`) and raises where something is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sao.config import EngineConfig, TrainConfig
from sao.engines import ChoiceRequest, Request, Sample, Sampling
from sao.engines.transformers import TransformersEngine
from sao.errors import ModelError
from sao.models.chat import ChatTokenizer
from sao.models.counting import read_shape
from sao.models.load import load_model
from sao.records import Message
from sao.training import TrainResult, train
from sao.training.adapters import add_adapter
from sao.training.batches import Batch, TokenPair, pack, pad
from sao.training.parallel import processes
from sao.training.policy import as_policy, part_sums
from sao.training.run import choose_policy

ENGINE = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)
LORA = TrainConfig(method="lora", batch_size=4, micro_batch_size=2, max_length=64)
TOKENS = 12


def writes(folder: str) -> str | None:
    """Greedy ids equal those of `generate`; which way the engine took, where it is not the usual one."""
    notes: list[str] = []
    engine, plain = TransformersEngine(folder, ENGINE, notify=notes.append), load_model(folder, ENGINE)
    chats = [(Message("user", "hello world " * i + str(i)),) for i in range(5)]
    requests = [Request(c, (Sample(str(i), i),), Sampling(TOKENS, 0.0)) for i, c in enumerate(chats)]
    found = {done.id: done.token_ids for done in engine.generate(requests)}
    for i, messages in enumerate(chats):
        ids = torch.tensor([engine.chat.prompt_ids(messages)])
        generate: Any = plain.generate
        out = generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS,
            eos_token_id=sorted(engine.chat.end_ids), pad_token_id=engine.chat.pad_id,
        )  # fmt: skip
        expected = tuple(out[0, ids.shape[1] :].tolist())
        assert found[str(i)] == expected, f"{found[str(i)]} instead of {expected}"
    return "equal lengths" if notes else None


def judges(folder: str) -> None:
    """Log-probabilities of choices equal those of a plain forward pass to 1e-4."""
    engine, plain = TransformersEngine(folder, ENGINE), load_model(folder, ENGINE)
    asked = [ChoiceRequest(str(i), (Message("user", "a b " * i + "1 or 2?"),), ("1", "2")) for i in range(5)]
    found = {one.id: one.logprobs for one in engine.choice_logprobs(asked)}
    for request in asked:
        ids, choices = engine.chat.choice_ids(request.messages, request.choices)
        with torch.inference_mode():
            logits = plain(torch.tensor([ids]), use_cache=False).logits[0, -1]
        expected = logits.log_softmax(-1)[list(choices)]
        off = (torch.tensor(found[request.id]) - expected).abs().max()
        assert off < 1e-4, f"off by {off:.2g} nats"


def some_pairs(n: int = 3) -> list[TokenPair]:
    """Pairs of unlike lengths, past the tiny models' windows of 16 tokens."""

    def ids(start: int, count: int) -> tuple[int, ...]:
        return tuple(6 + (start + k * k) % 190 for k in range(count))

    return [
        TokenPair(
            id=f"pair-{i}",
            prompt_ids=(1, 4, *ids(7 * i, 9 + 4 * i), 2, 5),
            chosen_ids=(*ids(3 * i, 20 - 3 * i), 2),
            rejected_ids=(*ids(11 * i + 50, 5 + 4 * i), 2),
        )
        for i in range(n)
    ]


def plain_sums(model: Any, batch: Batch) -> Tensor:
    """The sums of log-probabilities [2B] of a padded batch, from all its logits."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    logps = logits.flatten(0, 1)[batch.selected].float().log_softmax(-1)
    picked = logps.gather(1, batch.targets[:, None])[:, 0]
    return torch.stack([part.sum() for part in torch.split(picked, batch.lengths)])


def gradients(model: Any, sums: Tensor) -> dict[str, Tensor]:
    """Of a loss that every sum enters otherwise, by the weights' names."""
    model.zero_grad()
    loss = (sums * torch.linspace(0.5, 1.5, len(sums)) / 20).tanh().sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found: tuple[Tensor, dict[str, Tensor]], plain: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Sums and gradients equal to 1e-5 of the largest."""
    (sums, ours), (expected, theirs) = found, plain
    off = float((sums - expected).abs().max() / expected.abs().max())
    assert off < 1e-5, f"the sums are off by {off:.2g}"
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in ours.items():
        assert name in theirs, f"{name} is trained here only"
        off = float((gradient - theirs[name]).abs().max()) / largest
        assert off < 1e-5, f"the gradient of {name} is off by {off:.2g}"


def trains(folder: str, pairs: int = 3) -> None:
    """Log-probabilities and gradients of padded rows equal those of the model's own logits."""
    batch = pad(some_pairs(pairs), 0)
    plain = load_model(folder, ENGINE)
    expected = plain_sums(plain, batch)
    theirs = expected.detach(), gradients(plain, expected)
    model = load_model(folder, ENGINE)
    as_policy(model, packed=False)
    sums = torch.cat(part_sums(model, batch))
    same((sums.detach(), gradients(model, sums)), theirs)


def packs(folder: str) -> None:
    """The same for packed rows, with the prompt shared and without: no answer sees another. Raises ModelError
    where training would take padded rows instead."""
    pairs = some_pairs()
    model, config = load_model(folder, ENGINE), LORA.model_copy(update={"method": "full"})
    _, chosen, note = choose_policy(model, config, 7, pairs, processes())
    if chosen.batches == "padded":
        raise ModelError(note or "", key="train.batches")
    plain = load_model(folder, ENGINE)
    expected = plain_sums(plain, pad(pairs, 0))
    theirs = expected.detach(), gradients(plain, expected)
    model = load_model(folder, ENGINE)
    as_policy(model, packed=True)
    for share in (True, False):
        sums = torch.cat(part_sums(model, pack(pairs, share_prompt=share)))
        same((sums.detach(), gradients(model, sums)), theirs)


def adapts(folder: str) -> None:
    """The same for an adapter (LoRA), and it can be merged: a step changes the model."""
    batch = pad(some_pairs(), 0)
    plain = add_adapter(load_model(folder, ENGINE), LORA, 7)
    expected = plain_sums(plain, batch)
    theirs = expected.detach(), gradients(plain, expected)
    base = load_model(folder, ENGINE)
    model = add_adapter(base, LORA, 7)
    as_policy(base, packed=False)
    sums = torch.cat(part_sums(model, batch))
    same((sums.detach(), gradients(model, sums)), theirs)


def train_briefly(folder: str, out: Path) -> TrainResult:
    """One step on three pairs at a rate of 0, padded; under torchrun by all processes together."""
    config = TrainConfig(
        batch_size=4,
        micro_batch_size=2,
        lr=1e-12,
        epochs=1,
        max_length=64,
        batches="padded",
        held_out_share=0,
    )
    shutil.rmtree(out, ignore_errors=True)
    model = load_model(folder, ENGINE)
    return train(some_pairs(), model, ChatTokenizer.load(folder, ENGINE), out, config, 7)


def shares(folder: str, out: Path) -> None:
    """Two processes find the loss and the gradient's norm of one to 1e-5. `support.family_worker` has trained
    already where out/two is there; else it does now."""
    two = out.parent / "two"
    if not two.is_dir():
        in_two_processes([folder])
    if (two / "error.txt").is_file():
        raise AssertionError((two / "error.txt").read_text("utf-8"))
    if not (out / "metrics.jsonl").is_file():
        train_briefly(folder, out)
    one, other = (
        json.loads((place / "metrics.jsonl").read_text("utf-8").splitlines()[0]) for place in (out, two)
    )
    for name in ("loss", "grad_norm"):
        off = abs(one[name] - other[name]) / max(abs(one[name]), 1e-3)
        assert off < 1e-5, f"{name} by two processes is off by {off:.2g}"


def in_two_processes(folders: list[str]) -> None:
    """Train the model of each folder by two processes; what comes of it lies in `two` beside it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests), str(tests.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [*command, "-m", "support.family_worker", *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"torchrun ended with {done.returncode}: {done.stderr[-2000:]}")


def saves(folder: str, out: Path) -> None:
    """After training at a rate of 0 the folder has the same names, shapes and numbers as before."""
    result = train_briefly(folder, out)
    before, after = stored(Path(folder)), stored(result.model_dir)
    assert before.keys() == after.keys(), f"names differ: {sorted(before.keys() ^ after.keys())[:4]}"
    for name, weight in before.items():
        assert weight.shape == after[name].shape, f"{name} has another shape"
        assert torch.allclose(weight.float(), after[name].float(), atol=1e-6), f"{name} changed"
    again, ids = load_model(str(result.model_dir), ENGINE), torch.arange(6, 30)[None]
    with torch.inference_mode():
        expected = load_model(folder, ENGINE)(ids, use_cache=False).logits
        assert torch.allclose(again(ids, use_cache=False).logits, expected, atol=1e-4), "other logits"


def stored(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder's files, by name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    return found


def planned(folder: str) -> None:
    """`sao plan` counts the weights within 1 % of the model's own number, and the bytes that its cache keeps
    of one more token."""
    model, shape = load_model(folder, ENGINE), read_shape(folder)
    own = sum(weight.numel() for weight in model.parameters())
    assert abs(shape.parameters / own - 1) <= 0.01, f"{shape.parameters} instead of {own} weights"
    cached = cached_numbers(model, 11) - cached_numbers(model, 10)
    assert shape.kv_bytes == 2 * cached, f"{shape.kv_bytes} instead of {2 * cached} bytes a token"


@torch.inference_mode()
def cached_numbers(model: Any, tokens: int) -> int:
    """Numbers in the layers of the model's cache of keys and values after so many tokens."""
    cache = model(torch.arange(6, 6 + tokens)[None], use_cache=True).past_key_values
    kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    once = {
        id(numbers): numbers for numbers in kept if isinstance(numbers, Tensor)
    }  # DeepSeek-V4: one for both
    return sum(numbers.numel() for numbers in once.values())


CHECKS: dict[str, Callable[..., Any]] = {
    "writes": writes, "judges": judges, "trains": trains, "packed": packs, "lora": adapts, "saves": saves,
    "shares": shares, "planned": planned,
}  # fmt: skip
