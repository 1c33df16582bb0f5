"""The reference model's log-probabilities: computed once, before training, and kept in reference.jsonl.

One line for each pair: {"id", "chosen", "rejected"}, sums in nats. At that moment the policy is the reference
(a fresh adapter changes nothing), so no second model is ever held. A killed pass goes on with the batches
that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

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
        found = []
        mine = rows[rank::world]
        if mine:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
                chosen, rejected, *_ = part_sums(model, collate(mine).to(device))
            found = [
                (pairs[r].id, c, x) for r, c, x in zip(mine, chosen.tolist(), rejected.tolist(), strict=True)
            ]
        found = gather_object(found) if world > 1 else found
        stored |= {key: (c, x) for key, c, x in found}
        if rank == 0:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.writelines(dumps({"id": key, "chosen": c, "rejected": x}) + "\n" for key, c, x in found)
    return torch.tensor([stored[pair.id] for pair in pairs], dtype=torch.float32).view(len(pairs), 2)
