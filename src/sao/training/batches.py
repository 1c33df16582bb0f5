"""From token pairs to what one forward pass eats, without waste: the order of the pairs, micro-batches,
packing.

Each optimiser step takes `batch_size` pairs of a random permutation. Only inside a step are pairs arranged by
length, so the step is as random as without: packed micro-batches get about as many tokens each, padded ones
pairs of like length. Every process gets as many micro-batches as the others, of about the same number of
tokens; where pairs run out, a filler of weight 0 stands in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from sao.config import TrainConfig
from sao.errors import TrainingError
from sao.records import make_id, seed_of
from sao.training.attention import Segments, copy_to

FRONT = 16
"""How many of the longest pairs go into each of the first two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A preference pair as token ids. The responses end with the end of turn. `margin` is the judge's, in
    nats, and `p_chosen` its probability of the chosen answer, where there are any."""

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    p_chosen: float | None = None
    margin: float | None = None
    chosen_read: int = 0
    """Tokens at the beginning of the chosen answer that are read but not learnt (`train.reasoning: keep`)."""
    rejected_read: int = 0
    """The same of the rejected answer."""

    def __len__(self) -> int:
        """Tokens of the prompt and both answers."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


def check_pairs(pairs: Sequence[TokenPair], vocabulary: int) -> None:
    """Raise TrainingError where there is nothing to train on, or a pair that cannot be."""
    if not pairs:
        raise TrainingError(
            "there are no pairs to train on. See in the report why they were dropped; then loosen the filter "
            "(pairs.min_p, pairs.keep) or take more personas (personas.n)",
            key="pairs",
        )
    for pair in pairs:
        learnt = pair.chosen_ids[pair.chosen_read :] and pair.rejected_ids[pair.rejected_read :]
        if not (pair.prompt_ids and learnt):
            raise TrainingError(
                f"pair {pair.id}: its prompt or a response has no tokens. Drop it before training",
                key="pair",
            )
        ids = {*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids}
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise TrainingError(
                f"pair {pair.id}: token id {max(ids) if max(ids) >= vocabulary else min(ids)} is outside the "
                f"model's vocabulary of {vocabulary}. Its tokenizer belongs to another model",
                key="pair",
            )


def check_columns(pairs: Sequence[TokenPair], config: TrainConfig) -> None:
    """Raise TrainingError where the config asks for a number of each pair that a pair lacks."""
    for wanted, column, key in (
        (config.soft_labels, "p_chosen", "soft_labels"),
        (config.margin_weight > 0, "margin", "margin_weight"),
    ):
        lacking = [pair.id for pair in pairs if getattr(pair, column) is None] if wanted else []
        if lacking:
            raise TrainingError(
                f"train.{key} needs {column} of each pair, and {len(lacking)} of {len(pairs)} have none "
                f"(first: {lacking[0]}). Verdicts by log-probability bring it (judging.method logprob); else "
                f"leave train.{key} out",
                key=f"train.{key}",
            )


def batch_of(pairs: Sequence[TokenPair], rows: list[int], config: TrainConfig, pad_id: int) -> Batch:
    """Rows of `pairs` as one batch; ~row is a filler of weight 0."""
    weights = [float(row >= 0) for row in rows]
    rows = [row if row >= 0 else ~row for row in rows]
    chosen = [pairs[row] for row in rows]
    if config.batches == "padded":
        return pad(chosen, pad_id, rows, weights, config.nll_on_prompt)
    return pack(chosen, rows, weights, config.share_prompt, config.nll_on_prompt)


def split_pairs(pairs: Sequence[TokenPair], share: float) -> tuple[list[TokenPair], list[TokenPair]]:
    """Training and held-out pairs; the latter are those whose prompts' hashes come first, so a prompt is in
    one part only."""
    if not share:
        return list(pairs), []
    bound = share * 2**63
    held = [seed_of(make_id("held out", *pair.prompt_ids)) < bound for pair in pairs]
    parts = (
        [pair for pair, h in zip(pairs, held, strict=True) if not h],
        [pair for pair, h in zip(pairs, held, strict=True) if h],
    )
    if not all(parts):
        raise TrainingError(
            f"train.held_out_share {share:g} of {len(pairs)} pairs leaves {len(parts[0])} for training and "
            f"{len(parts[1])} held out; give another share or more pairs",
            key="train.held_out_share",
        )
    return parts


class EpochOrder:
    """The rows of each epoch: a permutation that depends on the seed and the epoch's number alone.

    The longest pairs of all are moved to the front, into the first two steps of the first epoch: where memory
    is too small, that shows at once (the optimiser's state exists from the second step on).
    """

    def __init__(self, lengths: Sequence[int], seed: int, batch_size: int) -> None:
        """`lengths` are the pairs' tokens; `batch_size` pairs make a step."""
        self.lengths = lengths
        self.seed = seed
        self.batch_size = batch_size
        # Of no other settings: the order must not depend on how a step is cut and dealt.
        self.front = min(FRONT, batch_size // 2)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; Trainer calls this before each, also when it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rows = len(self.lengths)
        generator = torch.Generator().manual_seed(seed_of(make_id("order", self.seed, self.epoch)))
        order: list[int] = torch.randperm(rows, generator=generator).tolist()
        if self.epoch == 0 and self.front and 2 * self.batch_size <= rows:
            longest = sorted(range(rows), key=lambda row: -self.lengths[row])[: 2 * self.front]
            position = {row: i for i, row in enumerate(order)}
            for rank, row in enumerate(longest):
                step, offset = divmod(rank, self.front)
                front = step * self.batch_size + offset
                displaced, before = order[front], position[row]
                order[front], order[before] = row, displaced
                position[row], position[displaced] = front, before
        return iter(order)


class MicroBatches(Sampler[list[int]]):
    """The micro-batches of this process, as lists of rows; ~row is a filler, which counts for nothing."""

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        micro_batch_size: int,
        world: int = 1,
        rank: int = 0,
        packed: bool = True,
    ) -> None:
        """`packed` rows have no padding: then the micro-batches of a step are alike in tokens, which keeps
        their memory low.

        Otherwise the pairs of one are alike in length, which keeps their padding low.
        """
        self.sampler = order  # Trainer looks for set_epoch here
        self.packed = packed
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.world = world
        self.rank = rank

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole * self._micro_steps(self.batch_size) + self._micro_steps(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            yield from self._deal(order[start : start + self.batch_size])

    def _micro_steps(self, pairs: int) -> int:
        return -(-pairs // (self.micro_batch_size * self.world))

    def _deal(self, rows: list[int]) -> Iterator[list[int]]:
        """One step's rows, cut into micro-steps, each dealt to the processes; the one with the most tokens
        comes first."""
        lengths = self.sampler.lengths
        rows = sorted(rows, key=lambda row: (-lengths[row], row))
        steps = self._micro_steps(len(rows))
        if self.packed:
            groups = self._balanced(rows, steps)
            groups.sort(key=lambda group: -sum(lengths[row] for row in group))
        else:
            # Alike in number: 9 pairs for 2 processes in micro-batches of up to 4 make 2 micro-steps of 5 and
            # 4.
            sizes = [len(rows) // steps + (i < len(rows) % steps) for i in range(steps)]
            groups = [rows[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(steps)]
        for group in groups:
            own = self._balanced(group, self.world)[self.rank]
            yield own or [~group[-1]]

    def _balanced(self, rows: list[int], n_parts: int) -> list[list[int]]:
        """Rows, sorted by length, dealt to parts of about as many rows each: the longest left to the part
        with the fewest tokens."""
        parts: list[list[int]] = [[] for _ in range(n_parts)]
        tokens = [0] * n_parts
        most = -(-len(rows) // n_parts)
        for row in rows:
            lightest = min((i for i in range(n_parts) if len(parts[i]) < most), key=lambda i: tokens[i])
            parts[lightest].append(row)
            tokens[lightest] += self.sampler.lengths[row]
        return parts


@dataclass
class Batch:
    """What one forward pass eats. N label tokens: all chosen answers, then all rejected ones, then the
    prompts where the likelihood covers them; `lengths` has the tokens of each."""

    input_ids: Tensor
    """[1, T] packed or [2B, T] padded."""
    position_ids: Tensor | None
    """[1, T]: places within prompt and answer."""
    attention_mask: Tensor | None
    """[2B, T], for padded rows."""
    segments: Segments | None
    """How a packed row is cut."""
    selected: Tensor
    """[N] places in the flattened rows whose hidden state predicts a label token."""
    targets: Tensor
    """[N] those tokens."""
    lengths: list[int]
    """[2B] or, with prompts, [3B]: label tokens of each part."""
    rows: list[int]
    """[B] numbers of the pairs."""
    weights: Tensor
    """[B] 1, or 0 for a filler."""
    tokens: Tensor
    """`lengths` as float32, where the batch is."""
    row_index: Tensor
    """`rows` as int64, where the batch is."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        values = vars(self)
        tensors = {key: copy_to(value, device) for key, value in values.items() if isinstance(value, Tensor)}
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(**{**values, **tensors, "segments": segments})

    @property
    def model_inputs(self) -> dict[str, Tensor | Segments]:
        """The arguments of the policy's forward pass (see sao.training.policy)."""
        names = ("input_ids", "position_ids", "attention_mask", "segments", "selected", "targets")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


LabelTokens = tuple[Sequence[int], tuple[int, ...]]
"""Places in the flattened rows whose hidden states predict tokens, and those tokens."""


def _learnt(places: Sequence[int], tokens: tuple[int, ...], read: int) -> LabelTokens:
    """Without the first `read` tokens, which are no labels."""
    return places[read:], tokens[read:]


@dataclass
class _PackedRow:
    """A row [1, T] that is built segment by segment; see `Segments`."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    key_index: list[int] = field(default_factory=list)

    def append(self, ids: Sequence[int], first_position: int = 0, shared: Sequence[int] = ()) -> int:
        """Append a segment that sees itself and the `shared` places before it; returns where it starts."""
        start, n = len(self.ids), len(ids)
        self.ids += ids
        self.positions += range(first_position, first_position + n)
        self.queries.append(n)
        self.keys.append(len(shared) + n)
        self.key_index += [*shared, *range(start, start + n)]
        return start


def pack(
    pairs: Sequence[TokenPair],
    rows: Sequence[int] = (),
    weights: Sequence[float] = (),
    share_prompt: bool = True,
    with_prompts: bool = False,
) -> Batch:
    """B pairs as one row [1, T] without padding.

    A pair stands there as prompt, chosen, rejected, with the rejected answer's positions going on from the
    prompt and its queries seeing the prompt and itself; or, without `share_prompt`, as prompt, chosen,
    prompt, rejected.
    """
    row = _PackedRow()
    chosen: list[LabelTokens] = []
    rejected: list[LabelTokens] = []
    prompts: list[LabelTokens] = []
    for pair in pairs:
        n_prompt, n_chosen, n_rejected = map(len, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        start = row.append([*pair.prompt_ids, *pair.chosen_ids])
        prompt = range(start, start + n_prompt)
        prompts.append((prompt[:-1], pair.prompt_ids[1:]))
        chosen.append(_learnt(range(prompt[-1], prompt[-1] + n_chosen), pair.chosen_ids, pair.chosen_read))
        if share_prompt:
            own = row.append(pair.rejected_ids, first_position=n_prompt, shared=prompt)
            predicting: Sequence[int] = [prompt[-1], *range(own, own + n_rejected - 1)]
        else:
            own = row.append([*pair.prompt_ids, *pair.rejected_ids])
            predicting = range(own + n_prompt - 1, own + n_prompt + n_rejected - 1)
        rejected.append(_learnt(predicting, pair.rejected_ids, pair.rejected_read))
    parts = [*chosen, *rejected, *(prompts if with_prompts else [])]
    return Batch(
        input_ids=torch.tensor([row.ids]),
        position_ids=torch.tensor([row.positions]),
        attention_mask=None,
        segments=Segments(row.queries, row.keys, torch.tensor(row.key_index) if share_prompt else None),
        **_labels(parts, pairs, rows, weights),
    )


def pad(
    pairs: Sequence[TokenPair],
    pad_id: int,
    rows: Sequence[int] = (),
    weights: Sequence[float] = (),
    with_prompts: bool = False,
) -> Batch:
    """B pairs as 2B rows [2B, T] padded on the right: the chosen answers first, then the rejected ones."""
    sides = [(p.prompt_ids, p.chosen_ids, p.chosen_read) for p in pairs]
    sides += [(p.prompt_ids, p.rejected_ids, p.rejected_read) for p in pairs]
    ids = [torch.tensor([*prompt, *response]) for prompt, response, _ in sides]
    width = max(len(row) for row in ids)
    parts: list[LabelTokens] = []
    for i, (prompt, response, read) in enumerate(sides):
        last_of_prompt = i * width + len(prompt) - 1
        parts.append(_learnt(range(last_of_prompt, last_of_prompt + len(response)), response, read))
    if with_prompts:
        for i, pair in enumerate(pairs):
            start = i * width
            parts.append((range(start, start + len(pair.prompt_ids) - 1), pair.prompt_ids[1:]))
    return Batch(
        input_ids=pad_sequence(ids, batch_first=True, padding_value=pad_id),
        position_ids=None,
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        segments=None,
        **_labels(parts, pairs, rows, weights),
    )


def _labels(
    parts: list[LabelTokens],
    pairs: Sequence[TokenPair],
    rows: Sequence[int],
    weights: Sequence[float],
) -> dict[str, Any]:
    """The fields of a Batch that say which hidden states predict which tokens, and whose they are."""
    rows = list(rows) or list(range(len(pairs)))
    lengths = [len(tokens) for _, tokens in parts]
    return {
        "selected": torch.tensor([place for places, _ in parts for place in places]),
        "targets": torch.tensor([token for _, tokens in parts for token in tokens]),
        "lengths": lengths,
        "tokens": torch.tensor(lengths, dtype=torch.float32),
        "rows": rows,
        "row_index": torch.tensor(rows),
        "weights": torch.tensor(list(weights) or [1.0] * len(pairs)),
    }
