"""Losses worked by hand, training that is exact: the same weights however batches are cut and whenever it is
killed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sao.config import TrainConfig
from sao.errors import ModelError, StoreError, Terminated, TrainingError
from sao.training import PairLogps, TokenPair, TrainResult, orpo_loss, preference_loss, simpo_loss, train
from sao.training import run as training_run
from sao.training.batches import EpochOrder, MicroBatches, pack, pad
from sao.training.monitors import SaveAndStop
from support.tiny_training import (
    CONFIG,
    END,
    HASTY,
    TEMPLATE,
    WORDS,
    lines,
    run,
    some_pairs,
    stop_at,
    tiny_model,
    tiny_tokenizer,
    weights,
)

STEPS = 12


def the_order() -> list[int]:
    return list(EpochOrder([len(pair) for pair in some_pairs()], 7, CONFIG.batch_size))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run(out)
    return out


def assert_same(out: Path, undisturbed: Path) -> None:
    """The same weights, bit for bit, the same metrics, and nothing left over."""
    expected, found = weights(undisturbed / "model"), weights(out / "model")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert (out / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "model", "training.json"]


# Losses


def test_simpo_by_hand() -> None:
    chosen, rejected = torch.tensor([-1.0, -0.8, -2.0]), torch.tensor([-1.5, -1.0, -2.0])
    # β 2, γ 0.5: margins 1, 0.4, 0; less γ 0.5, −0.1, −0.5; −log σ = log(1 + e^−x)
    expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.1)), math.log(1 + math.exp(0.5))]
    assert simpo_loss(chosen, rejected, 2.0, 0.5).tolist() == pytest.approx(expected, abs=1e-6)
    # 2 − 3 = −1
    assert simpo_loss(chosen[1:2], rejected[1:2], 10.0, 3.0).item() == pytest.approx(1.3132617, abs=1e-6)
    # margin = γ
    assert simpo_loss(chosen[:1], rejected[:1], 4.0, 2.0).item() == pytest.approx(math.log(2), abs=1e-6)


def test_gamma_shifts_the_margin_and_is_not_scaled_by_beta() -> None:
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-1.25])
    with_gamma = simpo_loss(chosen, rejected, 4.0, 3.0)
    assert with_gamma.item() == pytest.approx(
        simpo_loss(chosen - 3.0 / 4.0, rejected, 4.0, 0.0).item(), abs=1e-6
    )
    assert with_gamma.item() == pytest.approx(math.log(1 + math.exp(2.0)), abs=1e-6)


def test_simpo_gradient_by_hand_and_no_overflow() -> None:
    chosen = torch.tensor([-1.0, -100.0], requires_grad=True)
    loss = simpo_loss(chosen, torch.tensor([-1.0, -1.0]), 10.0, 0.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(2), 990.0])
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-5.0, -10.0])  # −β σ(−margin)


LOGPS = PairLogps(
    chosen=torch.tensor([-4.0]),
    rejected=torch.tensor([-9.0]),
    chosen_tokens=torch.tensor([4.0]),
    rejected_tokens=torch.tensor([6.0]),
    ref_chosen=torch.tensor([-5.0]),
    ref_rejected=torch.tensor([-8.0]),
)
SIGMOID = {m: 1 / (1 + math.exp(-m)) for m in (0.1, 1.0, -0.2)}
# By hand: ā −1 and −1.5; gains +1 and −1, a token +1/4 and −1/6.
BY_HAND = [
    ("simpo", 2.0, math.log(1 + math.exp(-(2 * 0.5 - 0.6))), 2 * -1, 2 * -1.5),  # γ is 0.3 β
    ("dpo", 0.5, math.log(1 + math.exp(-0.5 * 2)), 0.5, -0.5),
    ("dpo_norm", 3.0, math.log(1 + math.exp(-3 * (1 / 4 + 1 / 6))), 3 / 4, -3 / 6),
    ("ipo", 0.5, (1 / 4 + 1 / 6 - 1 / (2 * 0.5)) ** 2, 0.5 / 4, -0.5 / 6),
    ("cpo", 0.1, math.log(1 + math.exp(-0.1 * 5)), -0.4, -0.9),
    ("kto", 0.1, (1 - SIGMOID[0.1]) + (1 - SIGMOID[0.1]), 0.1, -0.1),
    # Odds e^−1 / (1 − e^−1) against e^−1.5 / (1 − e^−1.5); −log σ of the difference of their logarithms.
    ("orpo", 0.1, 0.1 * math.log(1 + (math.exp(1) - 1) / (math.exp(1.5) - 1)), -0.1, -0.15),
]


@pytest.mark.parametrize(("loss", "beta", "value", "reward_w", "reward_l"), BY_HAND)
def test_losses_by_hand(loss: Any, beta: float, value: float, reward_w: float, reward_l: float) -> None:
    config = TrainConfig(loss=loss, beta=beta)
    losses, chosen, rejected = preference_loss(config, LOGPS, config.target_margin, 1.0)
    assert losses.item() == pytest.approx(value, rel=1e-5)
    assert chosen.item() == pytest.approx(reward_w, rel=1e-5)
    assert rejected.item() == pytest.approx(reward_l, rel=1e-5)


@pytest.mark.parametrize("loss", [row[0] for row in BY_HAND])
def test_every_loss_falls_as_the_chosen_answer_gains(loss: Any) -> None:
    chosen = torch.tensor([-4.0], requires_grad=True)
    rejected = torch.tensor([-9.0], requires_grad=True)
    config = TrainConfig(loss=loss)
    logps = dataclasses.replace(LOGPS, chosen=chosen, rejected=rejected)
    preference_loss(config, logps, config.target_margin, 1.0)[0].sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("loss", [row[0] for row in BY_HAND])
def test_a_label_of_zero_is_the_pair_the_other_way_round(loss: Any) -> None:
    config = TrainConfig(loss=loss)
    swapped = PairLogps(
        chosen=LOGPS.rejected,
        rejected=LOGPS.chosen,
        chosen_tokens=LOGPS.rejected_tokens,
        rejected_tokens=LOGPS.chosen_tokens,
        ref_chosen=LOGPS.ref_rejected,
        ref_rejected=LOGPS.ref_chosen,
    )
    with_zero = preference_loss(config, LOGPS, 0.0, 0.0)[0]
    assert with_zero.item() == pytest.approx(preference_loss(config, swapped, 0.0, 1.0)[0].item(), rel=1e-5)
    half = preference_loss(config, LOGPS, 0.0, 0.5)[0].item()
    assert half == pytest.approx(
        (with_zero.item() + preference_loss(config, LOGPS, 0.0, 1.0)[0].item()) / 2, rel=1e-5
    )


def test_orpo_is_finite_where_an_answer_is_certain_or_hopeless() -> None:
    chosen = torch.tensor([0.0, -1e-9, -400.0, -3.0], requires_grad=True)
    losses = orpo_loss(chosen, torch.tensor([-2.0, 0.0, 0.0, -400.0]), 1.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


# Batches


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
@settings(max_examples=100, deadline=None)
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
    losses = simpo_loss(*means.chunk(2), still.scale, still.target_margin)
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


# Training


def test_loss_falls_and_margin_rises(tmp_path: Path) -> None:
    result = run(tmp_path, CONFIG.model_copy(update={"epochs": 5}), dropout=0.0)
    log = lines(tmp_path)
    assert result.steps == 30
    assert result.metrics == log[-1]
    assert log[-1]["loss"] < 0.2 * log[0]["loss"]
    assert log[-1]["rewards/margins"] > log[0]["rewards/margins"] + 5
    assert log[-1]["rewards/accuracies"] == 1.0


def test_metrics_have_the_usual_names_and_add_up(undisturbed: Path) -> None:
    log = lines(undisturbed)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    names = (
        "step loss grad_norm learning_rate rewards/chosen rewards/rejected rewards/margins rewards/accuracies"
    )
    assert set(log[0]) == {*names.split(), "logps/chosen", "logps/rejected", "tokens", "epoch"}
    for line in log:
        assert line["rewards/chosen"] == pytest.approx(CONFIG.scale * line["logps/chosen"])
        assert line["rewards/margins"] == pytest.approx(
            line["rewards/chosen"] - line["rewards/rejected"], abs=1e-6
        )
    # Cosine after ceil(0.1 · 12) = 2 steps of warm-up, each line with the rate of its own step.
    rates = [CONFIG.lr * r for r in [0, 0.5, *((1 + math.cos(math.pi * k / 10)) / 2 for k in range(10))]]
    assert [line["learning_rate"] for line in log] == pytest.approx(rates)
    assert log[-1]["epoch"] == 2.0


def test_saved_folder_is_a_normal_one(undisturbed: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(undisturbed / "model")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "model")
    assert model.dtype == torch.float32
    assert model.config.use_cache is True
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (END, END)
    assert tokenizer.chat_template == TEMPLATE
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": " a "}], tokenize=False)
    assert rendered == "<s><|user|> a <|end|>"
    assert {path.name for path in (undisturbed / "model").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


@pytest.mark.parametrize("loaded_as", [torch.float32, torch.bfloat16])
def test_number_format_on_disk_is_that_of_the_source(tmp_path: Path, loaded_as: torch.dtype) -> None:
    tiny_model().bfloat16().save_pretrained(tmp_path / "base")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=loaded_as)
    config = CONFIG.model_copy(update={"epochs": 1})
    result = train(some_pairs(), model, tiny_tokenizer(), tmp_path / "out", config, seed=0)
    saved = AutoModelForCausalLM.from_pretrained(result.model_dir, dtype="auto")
    assert saved.dtype == torch.bfloat16
    assert json.loads((result.model_dir / "config.json").read_text())["dtype"] == "bfloat16"


def test_nothing_on_stderr_or_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    assert capfd.readouterr() == ("", "")


# What cannot be trained on


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no pairs.*pairs\.min_p"):
        train([], tiny_model(), tiny_tokenizer(), tmp_path, CONFIG, seed=0)


def test_empty_response_is_named(tmp_path: Path) -> None:
    empty = TokenPair(id="pair-x", prompt_ids=(1,), chosen_ids=(5, END), rejected_ids=())
    with pytest.raises(TrainingError, match="pair-x"):
        train([*some_pairs(3), empty], tiny_model(), tiny_tokenizer(), tmp_path, CONFIG, seed=0)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"not finite; NaN or infinite weights in lm_head\.weight"):
        train(some_pairs(), model, tiny_tokenizer(), tmp_path, CONFIG, seed=7)
    assert not (tmp_path / "model").exists()


def test_ids_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    strange = TokenPair(id="pair-x", prompt_ids=(1,), chosen_ids=(5, END), rejected_ids=(len(WORDS), END))
    with pytest.raises(TrainingError, match="pair-x: token id 31 is outside the model's vocabulary of 31"):
        train([*some_pairs(3), strange], tiny_model(), tiny_tokenizer(), tmp_path, CONFIG, seed=0)


def test_only_the_broken_pair_is_named_and_nothing_of_it_saved(tmp_path: Path) -> None:
    model = tiny_model()
    pairs = [
        TokenPair(id=f"pair-{i}", prompt_ids=(1, 5), chosen_ids=(6, END), rejected_ids=(7, END))
        for i in range(8)
    ]
    bad = list(EpochOrder([7] * 8, 0, 4))[-1]  # in the second batch
    pairs[bad] = TokenPair(id="the-bad-one", prompt_ids=(1, 30), chosen_ids=(6, END), rejected_ids=(7, END))
    model.model.embed_tokens.weight.data[30] = math.inf
    config = CONFIG.model_copy(update={"save_steps": 1})
    with pytest.raises(TrainingError, match="step 2: the loss is not finite for the pairs the-bad-one"):
        train(pairs, model, tiny_tokenizer(), tmp_path, config, seed=0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]


# Interruption


def test_resume_is_exact_and_repeats_no_line(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_log=stop_at(9))
    assert len(lines(tmp_path)) == 9
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint-6",
        "checkpoint-8",
    ]
    seen: list[float] = []
    run(tmp_path, on_log=lambda line: seen.append(line["step"]))
    assert seen == list(range(9, STEPS + 1))
    assert_same(tmp_path, undisturbed)


def test_half_written_checkpoint_is_ignored_and_deleted(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_log=stop_at(5))
    newest = tmp_path / "checkpoints/checkpoint-4"
    (newest / "complete.json").unlink()
    (newest / "optimizer.pt").write_bytes(b"half")
    (tmp_path / "checkpoints/checkpoint-6").mkdir()
    (tmp_path / "model.partial").mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step":6,"lo')
    seen: list[float] = []
    run(tmp_path, on_log=lambda line: seen.append(line["step"]))
    assert seen[0] == 3
    assert_same(tmp_path, undisturbed)


def test_checkpoints_by_time_change_nothing(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, HASTY, on_log=stop_at(5))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    seen: list[float] = []
    run(tmp_path, on_log=lambda line: seen.append(line["step"]))  # and goes on with another save_minutes
    assert seen == list(range(5, STEPS + 1))
    assert_same(tmp_path, undisturbed)


def test_checkpoints_come_after_their_minutes(tmp_path: Path) -> None:
    """A step takes 20 s by this clock and a checkpoint 200 s: counted from its end, one is due at every
    fourth step."""
    now = [0.0]
    flow = SaveAndStop(save_steps=10, save_minutes=1, clock=lambda: now[0])
    args, state = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState(max_steps=14)
    now[0] = 1000.0  # loading the model is no training
    flow.on_train_begin(args, state, TrainerControl())
    saved = []
    for step in range(1, 15):
        now[0] += 20
        state.global_step, control = step, TrainerControl()
        flow.on_step_end(args, state, control)
        if control.should_save:
            saved.append(step)
            now[0] += 200
            flow.on_save(args, state, control)
        assert not control.should_training_stop
    assert saved == [4, 8, 10, 14]  # 10 by save_steps, 14 is also the last step


def test_resume_between_epochs(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_log=stop_at(7))
    seen: list[float] = []
    run(tmp_path, on_log=lambda line: seen.append(line["step"]))
    assert seen[0] == 7  # the first step of the second epoch
    assert_same(tmp_path, undisturbed)


def test_a_finished_training_is_not_done_again(undisturbed: Path) -> None:
    before = (undisturbed / "model/model.safetensors").stat().st_mtime_ns
    # a kill came before they were all deleted
    (undisturbed / "checkpoints/checkpoint-12").mkdir(parents=True)
    result = run(undisturbed, on_log=lambda line: pytest.fail("trained again"))
    assert result == TrainResult(model_dir=undisturbed / "model", steps=STEPS, metrics=lines(undisturbed)[-1])
    assert (undisturbed / "model/model.safetensors").stat().st_mtime_ns == before
    assert not (undisturbed / "checkpoints").exists()


def test_full_disk_keeps_earlier_checkpoints(tmp_path: Path, undisturbed: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(line: dict[str, float]) -> None:
        if line["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))  # bytes to a file: no weights fit

    try:
        with pytest.raises(StoreError, match=r"checkpoint-4.*free some space"):
            run(tmp_path, on_log=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    run(tmp_path)
    assert_same(tmp_path, undisturbed)


def test_a_full_disk_after_the_last_step_costs_no_step(tmp_path: Path, undisturbed: Path) -> None:
    """`save_steps` is larger than the number of steps, as it may be with a real model."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(*args: Any, **kwargs: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
        return original(*args, **kwargs)

    original, rarely = training_run._publish, CONFIG.model_copy(update={"save_steps": 1000})
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(StoreError, match=r"model.partial.*free some space"),
        ):
            patch.setattr(training_run, "_publish", fill_disk)
            run(tmp_path, rarely)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run(tmp_path, rarely, on_log=lambda line: pytest.fail("a step was repeated"))
    assert_same(tmp_path, undisturbed)


def test_sigterm_while_the_model_is_saved_waits_for_it(tmp_path: Path, undisturbed: Path) -> None:
    original = training_run._publish

    def terminated(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Terminated, match="the model is saved"):
        patch.setattr(training_run, "_publish", terminated)
        run(tmp_path)
    assert_same(tmp_path, undisturbed)


def test_another_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_log=stop_at(5))
    with pytest.raises(TrainingError, match="with other lr"):
        run(tmp_path, CONFIG.model_copy(update={"lr": 2e-3}))
    with pytest.raises(TrainingError, match="with other seed"):
        train(some_pairs(), tiny_model(0.1), tiny_tokenizer(), tmp_path, CONFIG, seed=8)
    with pytest.raises(TrainingError, match="with other pairs"):
        train(some_pairs(21), tiny_model(0.1), tiny_tokenizer(), tmp_path, CONFIG, seed=7)
    with pytest.raises(TrainingError, match="with other model"):
        train(some_pairs(), another_model(), tiny_tokenizer(), tmp_path, CONFIG, seed=7)
    seen: list[float] = []
    run(
        tmp_path,
        CONFIG.model_copy(update={"micro_batch_size": 1}),
        on_log=lambda line: seen.append(line["step"]),
    )
    assert seen[0] == 5


def another_model() -> LlamaForCausalLM:
    model = tiny_model(0.1)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.1)
    return model


def test_the_model_is_left_as_it_was_found(tmp_path: Path) -> None:
    model = tiny_model()
    attention, cache = model.config._attn_implementation, model.config.use_cache
    train(some_pairs(), model, tiny_tokenizer(), tmp_path, CONFIG, seed=7)
    assert (model.config._attn_implementation, model.config.use_cache, model.training) == (
        attention,
        cache,
        False,
    )
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
        padded = model(input_ids=torch.tensor([[0, 0, 5, 6, 7, 8]]), attention_mask=mask).logits[0, -1]
    torch.testing.assert_close(alone, padded, rtol=0, atol=1e-5)


def run_and_die(
    out: Path, function: str, call: int, lines_to_live: int = 10**6, config: str = "CONFIG"
) -> int:
    """Train in another process that kills itself at that call or at that line of metrics; its exit status."""
    script = (
        "import os, signal, sys, torch; from support import tiny_training as t; from pathlib import Path\n"
        "out, function, call, lines, threads, config = sys.argv[1:]\n"
        "torch.set_num_threads(int(threads))\n"
        "if function: t.die_in(function, int(call))\n"
        "left = [int(lines)]\n"
        "def on_log(line):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.run(Path(out), getattr(t, config), on_log=on_log)\n"
    )
    arguments = [str(out), function, str(call), str(lines_to_live), str(torch.get_num_threads()), config]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, check=False).returncode


# Every checkpoint calls torch.save four times: arguments, optimiser, scheduler, random numbers.
MOMENTS = [
    pytest.param("torch.save", 6, id="in the second checkpoint, before the optimiser"),
    pytest.param(
        "torch.save", 12, id="in the third checkpoint, before the random numbers", marks=pytest.mark.slow
    ),
    pytest.param("sao.training.checkpoints.write_atomic", 3, id="before the marker", marks=pytest.mark.slow),
    pytest.param("shutil.rmtree", 1, id="while an old checkpoint is deleted", marks=pytest.mark.slow),
    pytest.param("sao.training.run._publish", 1, id="before the model is saved", marks=pytest.mark.slow),
    pytest.param("sao.training.run.fsync", 1, id="before the model is renamed", marks=pytest.mark.slow),
    pytest.param("sao.training.run.fsync", 2, id="after the model is renamed", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("function", "call"), MOMENTS)
def test_sigkill_changes_nothing(tmp_path: Path, undisturbed: Path, function: str, call: int) -> None:
    assert run_and_die(tmp_path, function, call) == -signal.SIGKILL
    run(tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_sigkill_at_every_third_step_changes_nothing(tmp_path: Path, undisturbed: Path) -> None:
    statuses = [run_and_die(tmp_path, "", 0, lines_to_live=3)]
    while statuses[-1] == -signal.SIGKILL and len(statuses) < 12:
        statuses.append(run_and_die(tmp_path, "", 0, lines_to_live=3))
    assert statuses == [-signal.SIGKILL] * 5 + [0]
    assert_same(tmp_path, undisturbed)


def test_sigkill_between_checkpoints_by_time_changes_nothing(tmp_path: Path, undisturbed: Path) -> None:
    """The kill comes in the fourth checkpoint, before the optimiser's states."""
    assert run_and_die(tmp_path, "torch.save", 14, config="HASTY") == -signal.SIGKILL
    complete = sorted(path.parent.name for path in (tmp_path / "checkpoints").glob("*/complete.json"))
    assert complete == ["checkpoint-2", "checkpoint-3"]
    run(tmp_path, HASTY)
    assert_same(tmp_path, undisturbed)
