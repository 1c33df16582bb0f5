"""Batches: how pairs are padded, packed, dealt to processes and cut into micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.config import TrainConfig
from sao.training import TokenPair, simpo_loss
from sao.training.batches import EpochOrder, MicroBatches, pack, pad
from sao.training.job import at_most
from support.tiny_training import (
    CONFIG,
    END,
    lines,
    run,
    some_pairs,
    tiny_model,
    weights,
)


def the_order() -> list[int]:
    return list(EpochOrder([len(pair) for pair in some_pairs()], 7, CONFIG.batch_size))


TWO = [
    TokenPair(id="x", prompt_ids=(1, 3), chosen_ids=(5, END), rejected_ids=(6, 7, END)),
    TokenPair(id="y", prompt_ids=(1,), chosen_ids=(8, END), rejected_ids=(END,)),
]


def test_pad_by_hand() -> None:
    batch = pad(TWO, pad_id=0, rows=[4, 9])
    assert batch.input_ids.tolist() == [[1, 3, 5, 2, 0], [1, 8, 2, 0, 0], [1, 3, 6, 7, 2], [1, 2, 0, 0, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1] * 5, [1, 1, 0, 0, 0]]
    # In rows of five, the token before each label; prompts (with_prompts) are predicted from the chosen rows.
    assert batch.selected.tolist() == [1, 2, 5, 6, 11, 12, 13, 15]
    assert batch.targets.tolist() == [5, END, 8, END, 6, 7, END, END]
    assert (batch.lengths, batch.rows, batch.weights.tolist()) == ([2, 2, 3, 1], [4, 9], [1, 1])
    assert pad(TWO, 0, with_prompts=True).targets.tolist()[8:] == [3]


@pytest.mark.parametrize("share_prompt", [True, False])
def test_what_is_only_read_is_no_label(share_prompt: bool) -> None:
    """The first token of x's chosen answer, the first two of its rejected one: read as before, but the labels
    begin after them."""
    pairs = [replace(TWO[0], chosen_read=1, rejected_read=2), TWO[1]]
    for whole, batch in (
        (pad(TWO, 0), pad(pairs, 0)),
        (pack(TWO, share_prompt=share_prompt), pack(pairs, share_prompt=share_prompt)),
    ):
        assert torch.equal(batch.input_ids, whole.input_ids)
        assert batch.targets.tolist() == [END, 8, END, END, END]
        kept = [1, 2, 3, 6, 7]
        assert batch.selected.tolist() == [whole.selected.tolist()[i] for i in kept]
        assert batch.lengths == [1, 2, 1, 1]
        assert batch.tokens.tolist() == [1, 2, 1, 1]


def test_pack_by_hand() -> None:
    batch = pack(TWO, with_prompts=True)
    assert batch.input_ids.tolist() == [[1, 3, 5, 2, 6, 7, 2, 1, 8, 2, 2]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 1]]
    assert batch.selected.tolist() == [1, 2, 7, 8, 1, 4, 5, 7, 0]
    assert batch.targets.tolist() == [5, END, 8, END, 6, 7, END, END, 3]
    assert batch.lengths == [2, 2, 3, 1, 1, 0]
    segments = batch.segments
    assert segments is not None
    assert (segments.queries, segments.keys) == ([4, 3, 3, 1], [4, 5, 3, 2])
    assert segments.key_index is not None
    assert segments.key_index.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 7, 10]
    apart = pack(TWO, share_prompt=False)
    assert apart.input_ids.tolist() == [[1, 3, 5, 2, 1, 3, 6, 7, 2, 1, 8, 2, 1, 2]]
    assert apart.selected.tolist() == [1, 2, 9, 10, 5, 6, 7, 12]
    assert apart.segments is not None
    assert apart.segments.key_index is None


def test_masks_by_hand() -> None:
    segments = pack(TWO).segments
    assert segments is not None
    cpu = torch.device("cpu")
    assert segments.mask(0, None, cpu) is None
    assert segments.mask(0, 4, cpu) is None  # a window as long as the segment
    second = segments.mask(1, None, cpu)
    assert second is not None
    assert second.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    narrow = segments.mask(1, 2, cpu)
    assert narrow is not None
    assert narrow.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    micro=st.integers(1, 4),
    world=st.integers(1, 3),
    steps=st.integers(1, 4),
    epoch=st.integers(0, 2),
    packed=st.booleans(),
)
@settings(max_examples=100)
def test_every_pair_is_dealt_once_and_every_process_gets_as_many_batches(
    lengths: list[int], micro: int, world: int, steps: int, epoch: int, packed: bool
) -> None:
    batch = micro * world * steps
    dealt = []
    for rank in range(world):
        order = EpochOrder(lengths, 5, batch)
        order.set_epoch(epoch)
        batches = MicroBatches(order, batch, micro, world, rank, packed)
        dealt.append(list(batches))
        assert len(dealt[-1]) == len(batches)
        assert all(1 <= len(rows) <= micro for rows in dealt[-1])
    real = [row for hand in dealt for rows in hand for row in rows if row >= 0]
    assert sorted(real) == list(range(len(lengths)))
    # A step's pairs do not depend on how they are dealt.
    alone = EpochOrder(lengths, 5, batch)
    alone.set_epoch(epoch)
    order_alone = list(alone)
    for step in range(0, len(lengths), batch):
        some = order_alone[step : step + batch]
        micro_steps = -(-len(some) // (micro * world))
        first = step // batch * steps
        here = [
            row for hand in dealt for rows in hand[first : first + micro_steps] for row in rows if row >= 0
        ]
        assert sorted(here) == sorted(some)


def test_the_longest_pairs_come_first_and_micro_batches_are_alike_in_length() -> None:
    lengths = [5 + (i * 37) % 101 for i in range(96)]
    order = EpochOrder(lengths, 0, batch_size=16)
    longest = sorted(lengths, reverse=True)
    batches = [[lengths[row] for row in rows] for rows in MicroBatches(order, 16, 4, packed=False)]
    assert [*batches[0], *batches[1]] == longest[:8]
    assert [*batches[4], *batches[5]] == longest[8:16]
    for first in range(0, len(batches), 4):
        step = [length for rows in batches[first : first + 4] for length in rows]
        assert step == sorted(step, reverse=True)
    # Packed, a step's micro-batches are alike in tokens, and the first has the most.
    tokens = [sum(lengths[row] for row in rows) for rows in MicroBatches(order, 16, 4)]
    for first in range(0, len(tokens), 4):
        step = tokens[first : first + 4]
        assert step == sorted(step, reverse=True)
        assert max(step) < 1.15 * min(step)
    order.set_epoch(1)
    assert sorted([lengths[row] for row in list(order)[:16]], reverse=True)[:4] != longest[:4]


def test_order_is_a_permutation_for_each_epoch_and_seed() -> None:
    order = EpochOrder([1] * 50, 3, 8)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first == list(order)
    assert len({tuple(first), tuple(second), tuple(EpochOrder([1] * 50, 4, 8)), tuple(range(50))}) == 4


def test_each_pair_weighs_the_same_also_in_the_last_batch(tmp_path: Path) -> None:
    # weights stay, so that losses can be added up
    still = CONFIG.model_copy(update={"lr": 1e-30, "epochs": 1})
    run(tmp_path, still, dropout=0.0)
    batch = pad(some_pairs(), pad_id=0)
    with torch.no_grad():
        logits = tiny_model()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    logps = logits.flatten(0, 1)[batch.selected].log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    means = torch.stack([part.mean() for part in torch.split(logps, batch.lengths)])
    chosen, rejected = means.chunk(2)
    losses = simpo_loss(chosen, rejected, still.scale, still.target_margin)
    rows = the_order()
    expected = [losses[rows[start : start + 4]].mean().item() for start in range(0, 22, 4)]
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_make_no_difference(tmp_path: Path) -> None:
    config = TrainConfig(batch_size=8, micro_batch_size=8, lr=1e-3, epochs=2, max_length=32)
    run(tmp_path / "8", config, dropout=0.0)
    run(tmp_path / "2", config.model_copy(update={"micro_batch_size": 2}), dropout=0.0)
    whole, cut = weights(tmp_path / "8/model"), weights(tmp_path / "2/model")
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=0, atol=1e-6)
    norms = [[line["grad_norm"] for line in lines(tmp_path / size)] for size in ("8", "2")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_at_most_so_many_pairs_whatever_their_order() -> None:
    pairs = [
        TokenPair(id=f"{i:016x}", prompt_ids=(1,), chosen_ids=(2,), rejected_ids=(3,)) for i in range(100)
    ]
    kept = at_most(pairs, 30)
    assert len(kept) == 30
    assert [pair.id for pair in kept] == sorted(pair.id for pair in kept)  # in the order in which they came
    assert {pair.id for pair in at_most(pairs[::-1], 30)} == {pair.id for pair in kept}
    assert {pair.id for pair in at_most(pairs, 20)} < {pair.id for pair in kept}
    assert at_most(pairs, None) == at_most(pairs, 100) == pairs
