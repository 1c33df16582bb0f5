"""What training can do besides the plain way: losses with a reference, adapters, bfloat16, held-out pairs,
alarms, SIGTERM."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from sao.cli import main
from sao.config import Config, LoraConfig, TrainConfig, load_recipe
from sao.errors import ConfigError, Terminated, TrainingError
from sao.models.chat import ChatTokenizer
from sao.pipeline.folder import reader
from sao.training import TokenPair, TrainResult, train
from sao.training.adapters import add_adapter, quantisation
from sao.training.batches import EpochOrder, pad, split_pairs
from sao.training.job import fit, load_to_train
from sao.training.monitors import LAUNCHER, Alarms, rate_warning, sample_metrics
from sao.training.optimizer import AdamWStochastic, round_stochastically
from sao.training.policy import as_policy
from sao.training.run import cast_weights
from sao.training.trainer import PreferenceTrainer
from support import tiny_models
from support.errors import raises
from support.tiny_training import CONFIG, END, lines, some_pairs, stop_at, tiny_model, tiny_tokenizer, weights

SHORT = CONFIG.model_copy(update={"epochs": 1})


def run(out: Path, on_log: Any = None, pairs: list[TokenPair] | None = None, **settings: Any) -> TrainResult:
    config = TrainConfig(**{**SHORT.model_dump(), **settings})
    return train(pairs or some_pairs(), tiny_model(), tiny_tokenizer(), out, config, seed=7, on_log=on_log)


def same_weights(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def sums_by_hand(pairs: list[TokenPair], with_prompts: bool = False) -> torch.Tensor:
    """[pairs, 2] sums of the chosen and rejected answers' log-probabilities under the untrained model; or
    [pairs, 3]."""
    batch = pad(pairs, 0, with_prompts=with_prompts)
    with torch.no_grad():
        logits = tiny_model()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.flatten(
            0, 1
        )
    logps = logits[batch.selected].log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    return torch.stack([part.sum() for part in torch.split(logps, batch.lengths)]).view(-1, len(pairs)).t()


# Losses that compare with the model before training


@pytest.mark.parametrize("loss", ["dpo", "ipo", "dpo_norm", "kto"])
def test_the_reference_is_the_untrained_model(tmp_path: Path, loss: str) -> None:
    run(tmp_path, loss=loss, lr=1e-30)
    log = lines(tmp_path)
    # Nothing has been learnt: every reward is nought, and so is the margin.
    assert max(abs(line["rewards/chosen"]) for line in log) < 1e-5
    assert [line["loss"] for line in log] == pytest.approx(
        [{"dpo": 0.693147, "dpo_norm": 0.693147, "ipo": 25.0, "kto": 1.0}[loss]] * 6, rel=1e-4
    )
    stored = {
        row["id"]: (row["chosen"], row["rejected"])
        for row in map(json.loads, (tmp_path / "reference.jsonl").read_text().splitlines())
    }
    expected = sums_by_hand(some_pairs())
    for pair, sums in zip(some_pairs(), expected.tolist(), strict=True):
        assert stored[pair.id] == pytest.approx(tuple(sums), abs=1e-4)


def test_the_reference_goes_on_where_a_kill_stopped_it(tmp_path: Path) -> None:
    run(tmp_path / "whole", loss="dpo", lr=1e-3)
    path = tmp_path / "cut/reference.jsonl"
    path.parent.mkdir()
    stored = (tmp_path / "whole/reference.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(stored[:8]) + stored[8][:20])  # torn in the ninth line
    run(tmp_path / "cut", loss="dpo", lr=1e-3)
    assert path.read_text() == "".join(stored)
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


def test_dpo_is_exact_after_a_stop(tmp_path: Path) -> None:
    run(tmp_path / "whole", loss="dpo", lr=1e-3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", loss="dpo", lr=1e-3, on_log=stop_at(5))
    run(tmp_path / "cut", loss="dpo", lr=1e-3)
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


# Terms and labels


def test_the_likelihood_term_is_added_with_its_weight(tmp_path: Path) -> None:
    run(tmp_path / "without", lr=1e-30)
    run(tmp_path / "pairs", lr=1e-30, nll_weight=0.5)
    run(tmp_path / "tokens", lr=1e-30, nll_weight=0.5, nll_average="tokens")
    run(tmp_path / "prompt", lr=1e-30, nll_weight=0.5, nll_average="tokens", nll_on_prompt=True)
    sums = sums_by_hand(some_pairs())
    for plain, by_pair, by_token, prompt in zip(
        *(lines(tmp_path / name) for name in ("without", "pairs", "tokens", "prompt")), strict=True
    ):
        assert by_pair["nll"] == pytest.approx(-by_pair["logps/chosen"], rel=1e-5)
        for line in (by_pair, by_token, prompt):
            assert line["loss"] == pytest.approx(plain["loss"] + 0.5 * line["nll"], rel=1e-5)
    # Averaged over tokens, every step's mean weighs with its tokens to the mean over all.
    order = list(EpochOrder([len(p) for p in some_pairs()], 7, 4))
    prompts = sums_by_hand(some_pairs(), with_prompts=True)[:, 2]
    for name, total, counts in (
        ("tokens", sums[:, 0], [len(p.chosen_ids) for p in some_pairs()]),
        ("prompt", sums[:, 0] + prompts, [len(p.chosen_ids) + len(p.prompt_ids) - 1 for p in some_pairs()]),
    ):
        tokens = [sum(counts[row] for row in order[start : start + 4]) for start in range(0, 22, 4)]
        found = sum(line["nll"] * n for line, n in zip(lines(tmp_path / name), tokens, strict=True)) / sum(
            tokens
        )
        assert found == pytest.approx(-total.sum().item() / sum(counts), rel=1e-4)


def test_margins_and_soft_labels_of_each_pair(tmp_path: Path) -> None:
    pair = some_pairs(1)[0]
    judged = dataclasses.replace(pair, p_chosen=0.8, margin=2.0)
    sums = sums_by_hand([pair])[0].tolist()
    chosen, rejected = sums[0] / len(pair.chosen_ids), sums[1] / len(pair.rejected_ids)
    margin = 2.0 * (chosen - rejected)
    settings: dict[str, Any] = {"lr": 1e-30, "beta": 2.0, "gamma": 0.5, "pairs": [judged]}
    down = torch.nn.functional.softplus
    run(tmp_path / "margin", **settings, margin_weight=0.25)
    assert lines(tmp_path / "margin")[0]["loss"] == pytest.approx(
        down(torch.tensor(-(margin - 1.0))).item(), rel=1e-5
    )
    run(tmp_path / "soft", **settings, soft_labels=True)
    up_down = 0.8 * down(torch.tensor(-(margin - 0.5))) + 0.2 * down(torch.tensor(margin - 0.5))
    assert lines(tmp_path / "soft")[0]["loss"] == pytest.approx(up_down.item(), rel=1e-5)
    run(tmp_path / "smooth", **settings, label_smoothing=0.2)
    assert lines(tmp_path / "smooth")[0]["loss"] == pytest.approx(up_down.item(), rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"batches": "padded"}, {"share_prompt": False}, {"gradient_checkpointing": True}]
)
def test_the_ways_of_computing_give_the_same_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    run(tmp_path / "usual", lr=1e-3)
    run(tmp_path / "other", lr=1e-3, **settings)
    usual, other = weights(tmp_path / "usual/model"), weights(tmp_path / "other/model")
    for name in usual:
        torch.testing.assert_close(usual[name], other[name], rtol=0, atol=2e-6)


# Adapters


def test_lora_trains_only_the_adapter_and_merges_it(tmp_path: Path) -> None:
    result = run(tmp_path, method="lora", lr=1e-2, epochs=4, lora=LoraConfig(r=4, alpha=8))
    assert lines(tmp_path)[-1]["loss"] < 0.5 * lines(tmp_path)[0]["loss"]
    merged, base = weights(result.model_dir), dict(tiny_model().state_dict())
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "_proj" in name}
    # The adapter alone, on the model before training, is the same model.
    adapted = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    ids = torch.tensor([[1, 3, 5, 6, 7]])
    with torch.no_grad():
        a, b = adapted(ids).logits, AutoModelForCausalLM.from_pretrained(result.model_dir)(ids).logits
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(result.model_dir).chat_template


def test_an_adapter_on_an_embedding_that_is_the_head_too_is_refused() -> None:
    model = tiny_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    targets = LoraConfig(targets=["embed_tokens", "q_proj"])
    with raises(TrainingError, key="train.lora.targets", match="embed_tokens"):
        add_adapter(model, TrainConfig(method="lora", lora=targets), 0)
    add_adapter(tiny_model(), TrainConfig(method="lora", lora=targets), 0)  # untied


@pytest.mark.parametrize(("key", "value"), [("soft_labels", True), ("margin_weight", 0.5)])
def test_a_number_that_pairs_lack_is_asked_for(tmp_path: Path, key: str, value: Any) -> None:
    known = [dataclasses.replace(pair, p_chosen=0.8, margin=1.4) for pair in some_pairs(4)]
    run(tmp_path / "known", pairs=known, **{key: value})
    with raises(TrainingError, key=f"train.{key}", match="4 of 8 have none"):
        run(tmp_path / "half", pairs=[*known, *some_pairs(8)[4:]], **{key: value})


@pytest.mark.parametrize("loss", ["simpo", "dpo"])
def test_lora_resume_is_exact(tmp_path: Path, loss: str) -> None:
    settings: dict[str, Any] = {
        "method": "lora",
        "lr": 1e-2,
        "loss": loss,
        "lora": LoraConfig(r=4, dropout=0.1),
    }
    run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **settings, on_log=stop_at(5))
    run(tmp_path / "cut", **settings)
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


@pytest.mark.parametrize("targets", [["lm_head"], ["no_such_layer"]])
def test_an_adapter_on_the_head_or_on_nothing_is_refused(tmp_path: Path, targets: list[str]) -> None:
    with pytest.raises((TrainingError, ConfigError, ValueError), match=r"lora\.targets"):
        run(tmp_path, method="lora", lora=LoraConfig(targets=targets))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_small_changes_survive_on_a_bfloat16_disk(tmp_path: Path, method: str) -> None:
    tiny_model().bfloat16().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    lr = 2e-6 if method == "full" else 4e-6  # steps far below a bfloat16 weight's last digit
    config = TrainConfig(**{**SHORT.model_dump(), "method": method, "lr": lr, "epochs": 4})
    exact: dict[str, torch.Tensor] = {}

    def keep(line: dict[str, Any]) -> None:
        if line.get("step") == 24:
            for name, weight in model.state_dict().items():
                exact[name] = weight.clone()

    result = train(some_pairs(), model, tiny_tokenizer(), tmp_path / "out", config, seed=7, on_log=keep)
    saved = AutoModelForCausalLM.from_pretrained(result.model_dir, dtype="auto")
    assert saved.dtype == torch.bfloat16
    if method == "lora":
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32),
            tmp_path / "out/adapter",
        )
        exact = dict(adapted.merge_and_unload().state_dict())
    learnt = torch.cat([(exact[name] - base[name]).flatten() for name in base])
    kept = torch.cat([(weight.float() - base[name]).flatten() for name, weight in saved.state_dict().items()])
    nearest = torch.cat([(exact[name].bfloat16().float() - base[name]).flatten() for name in base])
    assert 0 < learnt.abs().max() < 1e-3
    share = float(kept @ learnt / (learnt @ learnt))
    assert share == pytest.approx(1.0, abs=0.25)  # stochastic: right on average
    assert float(nearest @ learnt / (learnt @ learnt)) < 0.6  # what would have been left


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:bitsandbytes:UserWarning")  # its CPU kernels
def test_qlora_trains_an_adapter_on_four_bits_and_merges_it_into_the_whole_weights(tmp_path: Path) -> None:
    source = tiny_models.llama(tmp_path / "base", hidden_size=64, head_dim=16)
    settings: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 2, "epochs": 2, "max_length": 64}
    config = Config(model=source, train=TrainConfig(method="qlora", lr=1e-2, **settings))
    model = load_to_train(config)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    tokenizer = ChatTokenizer.load(source, config.engine)
    result = train(some_pairs(), model, tokenizer, tmp_path / "out", config.train, seed=0)
    log = lines(tmp_path / "out")
    assert log[-1]["loss"] < 0.2 * log[0]["loss"]
    saved, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (result.model_dir, source))
    adapted = PeftModel.from_pretrained(base, tmp_path / "out/adapter")
    ids = torch.tensor([[1, 3, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(saved(ids).logits, adapted(ids).logits, rtol=0, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with raises(ConfigError, key="bitsandbytes", match=r"pip install 'sao\[qlora\]'"):
        quantisation(TrainConfig(method="qlora"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with raises(ConfigError, key="peft", match=r"pip install 'sao\[lora\]'"):
        add_adapter(tiny_model(), TrainConfig(method="lora"), 0)


# Number formats


def test_pure_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="rounded away"):
        TrainConfig(weights="bfloat16")
    TrainConfig(weights="bfloat16", method="lora")
    TrainConfig(weights="bfloat16", optimizer="adamw_sr")


def test_stochastic_rounding_is_right_on_average_and_exact_where_it_can_be() -> None:
    torch.manual_seed(0)
    exact = torch.full((200_000,), 1.0 + 2**-10)  # an eighth of the way to the next bfloat16
    rounded = round_stochastically(exact)
    assert rounded.dtype == torch.bfloat16
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.float().mean().item() == pytest.approx(1.0 + 2**-10, abs=3e-5)
    kept = torch.tensor([0.0, -0.5, 3.0, float("inf"), -float("inf")])
    assert round_stochastically(kept).tolist() == kept.tolist()
    assert round_stochastically(-exact).float().mean().item() == pytest.approx(-1.0 - 2**-10, abs=3e-5)
    assert round_stochastically(torch.tensor([float("nan")])).isnan().all()


def test_small_steps_are_followed_only_with_stochastic_rounding() -> None:
    torch.manual_seed(0)
    start = torch.ones(4096, dtype=torch.bfloat16)
    plain, stochastic = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimisers = [
        torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0),
        AdamWStochastic([stochastic], lr=1e-5),
    ]
    for _ in range(100):
        for weight, optimiser in zip((plain, stochastic), optimisers, strict=True):
            weight.grad = torch.ones_like(weight)
            optimiser.step()
    assert torch.equal(plain.data, start)
    assert stochastic.float().mean().item() == pytest.approx(1 - 100 * 1e-5, abs=1e-4)


def test_our_adamw_is_torchs_in_float32() -> None:
    torch.manual_seed(0)
    start = torch.randn(50)
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = (
        AdamWStochastic([a], lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW([b], lr=1e-2, weight_decay=0.1),
    )
    for step in range(20):
        gradient = torch.randn(50, generator=torch.Generator().manual_seed(step))
        a.grad, b.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_bfloat16_training_learns_and_resumes_exactly(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"weights": "bfloat16", "optimizer": "adamw_sr", "lr": 1e-3, "epochs": 3}
    run(tmp_path / "whole", **settings)
    assert lines(tmp_path / "whole")[-1]["loss"] < 0.7 * lines(tmp_path / "whole")[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **settings, on_log=stop_at(9))
    run(tmp_path / "cut", **settings)
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


# Held-out pairs and samples


def test_split_by_prompt(tmp_path: Path) -> None:
    pairs = some_pairs(200)
    training, held = split_pairs(pairs, 0.3)
    assert 30 < len(held) < 90
    assert {p.prompt_ids for p in training}.isdisjoint({p.prompt_ids for p in held})
    assert sorted([*training, *held], key=lambda p: p.id) == sorted(pairs, key=lambda p: p.id)
    with raises(TrainingError, key="train.held_out_share", match="held_out_share"):
        split_pairs(pairs[:2], 0.01)


def test_held_out_pairs_are_measured_and_change_nothing_else(tmp_path: Path) -> None:
    pairs = some_pairs(40)
    training, held = split_pairs(pairs, 0.3)
    run(tmp_path / "with", pairs=pairs, lr=1e-3, held_out_share=0.3, eval_steps=3, samples=2)
    run(tmp_path / "without", pairs=training, lr=1e-3)
    assert same_weights(tmp_path / "with/model", tmp_path / "without/model")
    measured = [line for line in lines(tmp_path / "with") if "eval_loss" in line]
    assert [line["step"] for line in measured][:3] == [0, 3, 6]
    sums = sums_by_hand(held)
    means = sums / torch.tensor([[len(p.chosen_ids), len(p.rejected_ids)] for p in held])
    assert measured[0]["eval_rewards/accuracies"] == pytest.approx(
        (means[:, 0] > means[:, 1]).double().mean().item()
    )
    assert measured[0]["eval_logps/chosen"] == pytest.approx(means[:, 0].mean().item(), rel=1e-4)
    assert measured[-1]["eval_loss"] < measured[0]["eval_loss"]
    assert measured[0]["samples/length"] > 0
    result = run(tmp_path / "with", pairs=pairs, lr=1e-3, held_out_share=0.3, eval_steps=3, samples=2)
    assert result.metrics["eval_loss"] == measured[-1]["eval_loss"]
    assert "loss" in result.metrics


def test_sampling_leaves_the_random_numbers_alone() -> None:
    model = tiny_model()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    metrics = sample_metrics(model, [(1, 3, 5), (1, 3, 6, 7)], 12, "sdpa", 3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert metrics == sample_metrics(model, [(1, 3, 5), (1, 3, 6, 7)], 12, "sdpa", 3)
    assert 1 <= metrics["samples/length"] <= 12
    assert 0 <= metrics["samples/repetition"] <= 1


# Alarms


def test_alarms_by_hand() -> None:
    alarms = Alarms()
    line = {"logps/chosen": -1.0, "rewards/margins": 1.0}
    assert [alarms.see(line) for _ in range(8)] == [[]] * 8
    fallen = {"logps/chosen": -1.6, "rewards/margins": 25.0}
    seen = [text for _ in range(8) for text in alarms.see(fallen)]
    assert len(seen) == 2
    assert "fell from -1.00 to" in seen[0] or "fell from -1.00 to" in seen[1]
    assert alarms.raised == {"chosen", "margin"}
    assert alarms.see({"samples/length": 10.0, "samples/repetition": 0.1}) == []
    assert alarms.see({"samples/length": 14.0, "samples/repetition": 0.2}) == []
    assert "grew from 10 to 16" in alarms.see({"samples/length": 16.0, "samples/repetition": 0.2})[0]
    assert "from 10 to 30 %" in alarms.see({"samples/length": 10.0, "samples/repetition": 0.3})[0]


def test_an_alarm_stops_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr": 0.05, "epochs": 6, "beta": 20.0}
    with raises(TrainingError, key="alarm", match=r"train\.on_alarm warn"):
        run(tmp_path, **settings, on_alarm="stop")
    log = lines(tmp_path)
    stopped = int(log[-1]["step"])
    assert "alarm" in log[-1]
    assert stopped < 36
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()][-1:] or stopped == 0
    assert (tmp_path / f"checkpoints/checkpoint-{stopped}/complete.json").is_file()
    with raises(TrainingError, key="alarm"):  # the same command does not go on by itself
        run(tmp_path, **settings, on_alarm="stop")
    result = run(tmp_path, **settings, on_alarm="warn")  # goes on
    assert result.steps == 36
    assert sum("alarm" in line for line in lines(tmp_path)) >= 1


def test_learning_rate_warning() -> None:
    assert rate_warning(TrainConfig(lr=1e-6), 9_000_000_000) is None
    assert "high for simpo" in (rate_warning(TrainConfig(lr=1e-5), 9_000_000_000) or "")
    assert rate_warning(TrainConfig(lr=1e-5, method="lora"), 9_000_000_000) is None
    assert rate_warning(TrainConfig(lr=8e-6, loss="orpo"), 9_000_000_000) is None
    assert rate_warning(TrainConfig(lr=1e-3), 500_000) is None


# The end of a time slot


def test_sigterm_saves_and_the_same_call_goes_on_exactly(tmp_path: Path) -> None:
    def end_slot(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    run(tmp_path / "whole", lr=1e-3, save_steps=100)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Terminated, match="SIGTERM at step 4 of 6"
    ):  # the signal comes after step 3's turn to stop
        run(tmp_path / "cut", lr=1e-3, save_steps=100, on_log=end_slot)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "cut/checkpoints/checkpoint-4/complete.json").is_file()
    run(tmp_path / "cut", lr=1e-3, save_steps=100)
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


def test_training_ends_in_order_when_its_launcher_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    monkeypatch.setenv(LAUNCHER, str(gone.pid))
    with pytest.raises(Terminated, match="at step 1 of 6"):
        run(tmp_path, lr=1e-3)
    monkeypatch.setenv(LAUNCHER, str(os.getpid()))
    assert run(tmp_path, lr=1e-3).steps == 6


@pytest.mark.slow
def test_sigterm_to_the_command(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "name three tools of a baker", "chosen": f"oven tray {i}", "rejected": f"hammer {i}"}
        for i in range(400)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "sao", "train", "--pairs", str(pairs), "--out", str(tmp_path / "run")]
    command += [
        "--model",
        "builtin:world",
        "--train.batch_size",
        "4",
        "--train.micro_batch_size",
        "4",
        "--quiet",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not any(p.stat().st_size for p in (tmp_path / "run").glob("round-1/train-*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        error = process.communicate()[1]
    assert process.returncode == 143, error
    assert "the same command goes on" in error
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


# Lengths


def test_what_does_not_fit_is_dropped_or_cut_and_never_empty() -> None:
    pair = TokenPair(id="x", prompt_ids=(1, 2, 3), chosen_ids=tuple(range(10, 20)), rejected_ids=(5, 6, END))
    tight = TrainConfig(max_length=8)
    assert fit(pair, tight) == (None, "longer than max_length")
    cut, _ = fit(pair, TrainConfig(max_length=8, too_long="cut"))
    assert cut is not None
    assert (cut.chosen_ids, cut.rejected_ids) == ((10, 11, 12, 13, 14), (5, 6, END))
    long_prompt = TokenPair(id="x", prompt_ids=(1,) * 8, chosen_ids=(2,), rejected_ids=(3,))
    assert fit(long_prompt, TrainConfig(max_length=8, too_long="cut")) == (
        None,
        "prompt as long as max_length",
    )
    same = TokenPair(id="x", prompt_ids=(1,) * 6, chosen_ids=(2, 3, 4), rejected_ids=(2, 3, 5))
    assert fit(same, TrainConfig(max_length=8, too_long="cut")) == (None, "chosen equals rejected")
    empty = TokenPair(id="x", prompt_ids=(1,), chosen_ids=(), rejected_ids=(3,))
    assert fit(empty, tight) == (None, "empty answer")
    assert fit(same, TrainConfig(max_length=9))[0] == same


# From a data set that others made


def write_set(path: Path, n: int = 30) -> None:
    tools = ["oven", "tray", "hammer", "saw", "needle"]
    rows: list[Any] = [
        {
            "prompt": [{"role": "user", "content": f"name {i % 3 + 2} tools of the baker."}],
            "chosen": [{"role": "assistant", "content": f"the {tools[i % 5]}."}],
            "rejected": [{"role": "assistant", "content": f"as you may know, the {tools[(i + 1) % 5]}."}],
        }
        for i in range(n)
    ]
    rows.append({"prompt": "what?", "chosen": "the oven.", "rejected": "the oven."})
    rows.append({"prompt": "what?", "chosen": "the oven.", "rejected": ""})
    rows.append({"prompt": "what?", "chosen": "the oven. " * 40, "rejected": "the saw."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SMALL_RUN = [
    "--model",
    "builtin:world",
    "--train.batch_size",
    "8",
    "--train.micro_batch_size",
    "4",
    "--train.lr",
    "1e-4",
]
SMALL_RUN += ["--train.max_length", "64", "--engine.threads", "1", "--quiet"]


def test_train_on_a_labelled_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set.jsonl")
    command = [
        "train",
        "--pairs",
        str(tmp_path / "set.jsonl"),
        *SMALL_RUN,
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = summary["funnel"]
    assert (row["stage"], row["records"], row["dropped"], row["steps"]) == ("train", 30, 3, 12)
    assert row["reasons"] == {"chosen equals rejected": 1, "empty answer": 1, "longer than max_length": 1}
    card = Path(summary["paths"]["model"], "README.md").read_text()
    assert "on a data set of preferences that others made" in card
    assert "| pairs | set.jsonl; licence: unknown: set pairs.licence" in card
    assert "| train | 30 | 3 |" in card
    assert main(command) == 0
    assert "Nothing to do" in capsys.readouterr().out
    # The set is known by its content: another one is trained on anew, beside.
    write_set(tmp_path / "set.jsonl", 16)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["funnel"][0]["records"] == 16
    assert len(list((tmp_path / "run/round-1").glob("train-*"))) == 2


def test_a_seed_of_the_training_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It repeats the training on the same pairs, beside the first one; it is to the training what the run's
    seed would be."""
    write_set(tmp_path / "set.jsonl")
    command = [
        "train",
        "--pairs",
        str(tmp_path / "set.jsonl"),
        *SMALL_RUN,
        "--train.method",
        "lora",
        "--json",
    ]
    found = {}
    for name, out, more in (
        ("run's", "run", ["--seed", "5"]),
        ("other", "run", ["--seed", "5", "--train.seed", "9"]),
        ("same", "run", ["--seed", "5", "--train.seed", "5"]),
        ("of the run", "another", ["--seed", "9"]),
    ):
        assert main([*command, *more, "--out", str(tmp_path / out)]) == 0
        found[name] = Path(json.loads(capsys.readouterr().out.splitlines()[-1])["paths"]["model"])
    assert len(set(found.values())) == 4
    assert same_weights(found["run's"], found["same"])
    assert not same_weights(found["run's"], found["other"])
    assert same_weights(found["other"], found["of the run"])
    seeds = {
        name: json.loads((path.parent / "training.json").read_text())["seed"] for name, path in found.items()
    }
    assert seeds == {"run's": 5, "other": 9, "same": 5, "of the run": 9}
    assert "| seed | 5; of the training 9 |" in (found["other"] / "README.md").read_text()
    assert "| seed | 5 |" in (found["run's"] / "README.md").read_text()


@pytest.mark.parametrize("settings", [{}, {"pairs.source": "set.jsonl"}], ids=["own pairs", "given pairs"])
def test_a_seed_of_the_training_is_another_training_of_the_same_pairs(
    tmp_path: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set.jsonl")
    plain, seeded, later = (
        reader(load_recipe("demo", {**settings, **more}), tmp_path / "run")
        for more in ({}, {"train.seed": "0"}, {"train.save_minutes": "60"})
    )
    assert plain.stage("pairs").fingerprint == seeded.stage("pairs").fingerprint
    assert plain.stage("train").fingerprint != seeded.stage("train").fingerprint
    assert plain.stage("train").fingerprint == later.stage("train").fingerprint
    assert plain.stage("train").settings["seed"] is None
    assert seeded.stage("train").settings["seed"] == 0


def test_a_set_that_is_mostly_dropped_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set.jsonl")
    command = ["train", "--pairs", str(tmp_path / "set.jsonl"), *SMALL_RUN, "--out", str(tmp_path / "run")]
    assert main([*command, "--max_drop_share", "0.05"]) == 1
    error = capsys.readouterr().err
    assert "DropError: train: 3 of 33 pairs were dropped, more than max_drop_share = 0.05" in error
    assert "'longer than max_length': 1" in error


def test_a_set_that_is_none_ends_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert (
        main(["train", "--pairs", str(tmp_path / "set.jsonl"), *SMALL_RUN, "--out", str(tmp_path / "run")])
        == 1
    )
    error = capsys.readouterr().err
    assert "no preference pairs" in error
    assert "'question'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_several_processes_from_one_command_with_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "set.jsonl")
    asked = [
        "--personas.source",
        "builtin:world",
        "--personas.held_out",
        "12",
        "--prompts.template",
        "world/prompt",
    ]
    asked += ["--prompts.marker", "prompt:", "--prompts.max_tokens", "48", "--responses.max_tokens", "48"]
    asked += ["--judging.template", "world/judge"]
    found = []
    for n in ("1", "2"):
        command = [
            "run",
            "--pairs",
            str(tmp_path / "set.jsonl"),
            *SMALL_RUN,
            *asked,
            "--train.processes",
            n,
            "--json",
        ]
        assert main([*command, "--out", str(tmp_path / n)]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [[row["stage"] for row in s["funnel"]] for s in found] == [["prompts", "filtered", "train"]] * 2
    assert found[0]["oracle"]["n"] > 0
    one, two = (weights(Path(s["paths"]["model"])) for s in found)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)


# On a GPU


class NothingRead(TorchDispatchMode):
    """Raises where the host would wait for a number that the device still computes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["simpo", "dpo"])
def test_a_packed_pass_reads_nothing_back_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Else a GPU would stand still while the host waits. (For padded rows transformers itself looks once in a
    pass whether anything is padded.)"""
    config = TrainConfig(**{**SHORT.model_dump(), "loss": loss, "nll_weight": 0.1})
    model = tiny_model()
    as_policy(model, packed=True)
    trainer = PreferenceTrainer(
        some_pairs(), model, tiny_tokenizer(), tmp_path, config, 7, "sdpa", None, False
    )
    trainer.model_wrapped = model
    given: Any = iter([trainer.collate([0, 1]), trainer.collate([2, ~3])])
    inputs, pairs = trainer.get_batch_samples(given, 2, torch.device("cpu"))
    assert pairs == 3
    for name in ("tolist", "item", "numpy"):
        plain = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, plain: Any = plain) -> Any:
            assert any(tensor is each["batch"].weights for each in inputs), "a tensor was read"
            return plain(tensor)

        monkeypatch.setattr(torch.Tensor, name, read)
    with NothingRead():  # type: ignore[no-untyped-call]
        for each in inputs:
            trainer.compute_loss(model, each).backward()
    monkeypatch.undo()
    rows, measured = trainer._measures.take()
    assert rows == [0, 1, 2]
    assert measured.shape[1] == 3
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_frequencies_of_positions_are_not_rounded() -> None:
    """Rounded to bfloat16 they would turn a token at place 1,000 by another angle."""
    model = tiny_model()
    before = model.model.rotary_emb.inv_freq.clone()
    cast_weights(model, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
