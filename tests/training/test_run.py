"""Training that is exact: the same weights whenever it is killed, and what cannot be trained on refused."""

from __future__ import annotations

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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sao.errors import ModelError, StoreError, Terminated, TrainingError
from sao.training import TokenPair, TrainResult, train
from sao.training.batches import EpochOrder
from sao.training.monitors import SaveAndStop
from sao.training.trainer import PreferenceTrainer
from support.errors import raises
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run(out)
    return out


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_of_which_a_file_is_gone_is_trained_again(
    undisturbed: Path, tmp_path: Path, name: str
) -> None:
    run(tmp_path)
    (tmp_path / "model" / name).unlink()
    run(tmp_path)
    assert_same(tmp_path, undisturbed)


def assert_same(out: Path, undisturbed: Path) -> None:
    """The same weights, bit for bit, the same metrics, and nothing left over."""
    expected, found = weights(undisturbed / "model"), weights(out / "model")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert (out / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "model", "training.json"]


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


def test_half_precision_changes_the_products_and_not_the_format_of_the_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    run(tmp_path, CONFIG.model_copy(update={"half_precision": True}))
    exact, half = lines(undisturbed)[-1], lines(tmp_path)[-1]
    assert half["loss"] != exact["loss"]
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert {weight.dtype for weight in weights(tmp_path / "model").values()} == {torch.float32}


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
    with raises(TrainingError, key="pairs", match=r"pairs\.min_p"):
        train([], tiny_model(), tiny_tokenizer(), tmp_path, CONFIG, seed=0)


def test_empty_response_is_named(tmp_path: Path) -> None:
    empty = TokenPair(id="pair-x", prompt_ids=(1,), chosen_ids=(5, END), rejected_ids=())
    with raises(TrainingError, key="pair", match="pair-x"):
        train([*some_pairs(3), empty], tiny_model(), tiny_tokenizer(), tmp_path, CONFIG, seed=0)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head.weight.data[0, 0] = math.nan
    with raises(ModelError, key="weights", match=r"lm_head\.weight"):
        train(some_pairs(), model, tiny_tokenizer(), tmp_path, CONFIG, seed=7)
    assert not (tmp_path / "model").exists()


def test_ids_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    strange = TokenPair(id="pair-x", prompt_ids=(1,), chosen_ids=(5, END), rejected_ids=(len(WORDS), END))
    with raises(TrainingError, key="pair", match="pair-x: token id 31.* of 31"):
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
    with raises(TrainingError, key="loss", match="step 2: .*the-bad-one"):
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
        with raises(StoreError, key="checkpoint", match=r"checkpoint-4.*free some space"):
            run(tmp_path, on_log=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    run(tmp_path)
    assert_same(tmp_path, undisturbed)


def test_a_full_disk_after_the_last_step_costs_no_step(tmp_path: Path, undisturbed: Path) -> None:
    """`save_steps` is larger than the number of steps, as it may be with a real model."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(self: PreferenceTrainer) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
        return original(self)

    original, rarely = PreferenceTrainer.whole_model, CONFIG.model_copy(update={"save_steps": 1000})
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            raises(StoreError, key="checkpoint", match=r"model.partial.*free some space"),
        ):
            patch.setattr(PreferenceTrainer, "whole_model", fill_disk)
            run(tmp_path, rarely)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run(tmp_path, rarely, on_log=lambda line: pytest.fail("a step was repeated"))
    assert_same(tmp_path, undisturbed)


def test_sigterm_while_the_model_is_saved_waits_for_it(tmp_path: Path, undisturbed: Path) -> None:
    original = PreferenceTrainer.whole_model

    def terminated(self: PreferenceTrainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Terminated, match="the model is saved"):
        patch.setattr(PreferenceTrainer, "whole_model", terminated)
        run(tmp_path)
    assert_same(tmp_path, undisturbed)


def test_another_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_log=stop_at(5))
    with raises(TrainingError, key="training", match="with other lr"):
        run(tmp_path, CONFIG.model_copy(update={"lr": 2e-3}))
    with raises(TrainingError, key="training", match="with other seed"):
        train(some_pairs(), tiny_model(0.1), tiny_tokenizer(), tmp_path, CONFIG, seed=8)
    with raises(TrainingError, key="training", match="with other pairs"):
        train(some_pairs(21), tiny_model(0.1), tiny_tokenizer(), tmp_path, CONFIG, seed=7)
    with raises(TrainingError, key="training", match="with other model"):
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
    pytest.param(
        "sao.training.trainer.PreferenceTrainer.whole_model",
        1,
        id="before the model is saved",
        marks=pytest.mark.slow,
    ),
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
