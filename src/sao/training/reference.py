"""The reference model's log-probabilities: computed once, before training, and kept in reference.jsonl.

One line for each pair: {"id", "chosen", "rejected"}, sums in nats. At that moment the policy is the reference
(a fresh adapter changes nothing), so no second model is ever held; where another model is the reference, it
makes the file before the policy is loaded (`sao.training.job.reference_run`). A killed pass goes on with the
batches that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from sao.store.files import dumps, read_jsonl, write_atomic
from sao.training.batches import Batch, TokenPair
from sao.training.checkpoints import writing
from sao.training.policy import part_sums

FILE = "reference.jsonl"


def reference_sums(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    collate: Callable[[Iterable[int]], Batch],
    micro_batch_size: int,
    out: Path,
    half: bool,
    world: int = 1,
    rank: int = 0,
) -> Tensor:
    """Sums of the chosen and rejected answers under `model` as it is, [pairs, 2] float32, nats.

    `half` says whether the training autocasts to bfloat16; `collate` makes a batch of row numbers. Every
    process computes its share; the first one writes the file.
    """
    path = out / FILE
    lines = list(read_jsonl(path)) if path.is_file() else []
    if rank == 0 and lines:
        write_atomic(path, "".join(dumps(line) + "\n" for line in lines))  # without the line that a kill tore
    stored = {line["id"]: (line["chosen"], line["rejected"]) for line in lines}
    order = sorted(range(len(pairs)), key=lambda row: (-len(pairs[row]), row))
    size = micro_batch_size * world
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        if all(pairs[row].id in stored for row in rows):
            continue
        lines = []
        own_rows = rows[rank::world]
        if own_rows:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                chosen, rejected, *_ = part_sums(model, collate(own_rows).to(device))
            ids = [pairs[row].id for row in own_rows]
            lines = _lines(ids, chosen.tolist(), rejected.tolist())
        lines = gather_object(lines) if world > 1 else lines
        stored |= {line["id"]: (line["chosen"], line["rejected"]) for line in lines}
        if rank == 0:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.writelines(dumps(line) + "\n" for line in lines)
    return torch.tensor([stored[pair.id] for pair in pairs], dtype=torch.float32).view(len(pairs), 2)


def stored_ids(out: Path) -> set[str]:
    """The pairs whose sums are in the file already."""
    return {line["id"] for line in read_jsonl(out / FILE)} if (out / FILE).is_file() else set()


def _lines(ids: list[str], chosen: list[float], rejected: list[float]) -> list[dict[str, Any]]:
    return [
        {"id": pair_id, "chosen": chosen_sum, "rejected": rejected_sum}
        for pair_id, chosen_sum, rejected_sum in zip(ids, chosen, rejected, strict=True)
    ]
