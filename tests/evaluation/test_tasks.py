"""Tasks through lm-eval: planted models whose every answer is known, on small files of the benchmarks'
shapes, offline."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sao.config import EngineConfig
from sao.engines import ChoiceRequest
from sao.engines.transformers import TransformersEngine
from sao.errors import ConfigError, DataError, EngineError
from sao.evaluation import harness
from sao.evaluation.tasks import LEADERBOARD, TaskResult, TaskResults, compare_tasks, run_tasks
from sao.models.chat import ChatTokenizer
from sao.models.load import load_model
from sao.records import Message
from sao.statistics import effect
from sao.toy_world.language import OCCUPATIONS
from sao.training import TokenPair
from sao.training.batches import pad
from sao.training.policy import as_policy, part_sums
from support import tiny_models
from support.errors import raises
from support.run_files import json_rows

pytest.importorskip("lm_eval")

CPU = EngineConfig(device="cpu", threads=1)
MMLU_SIZES = {"mmlu_anatomy": 3, "mmlu_virology": 1, "mmlu_marketing": 2}
"""Documents of some subjects; the others have two."""


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets
    import huggingface_hub.constants

    def refuse(*_: object) -> None:
        raise AssertionError("something reached for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


# Planted models --------------------------------------------------------


def planted(folder: Path, table: dict[str, dict[str, float]], context: int = 2048) -> str:
    """A Llama that sees its last word alone: `table[word][next]` are its logits, all others 0.

    Its layers add nothing (their outputs are zero), embeddings are one-hot, and the head holds the table.
    """
    words = [
        "<unk>",
        "<pad>",
        "<end>",
        "<user>",
        "<bot>",
        *sorted({*table, *(w for row in table.values() for w in row)}),
    ]
    size = len(words) + len(words) % 2
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>",
        additional_special_tokens=["<user>", "<bot>"],
        chat_template="{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content "
                      "}}"
        "{{ ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}",
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        rms_norm_eps=1e-12,
        max_position_embeddings=context, tie_word_embeddings=False, eos_token_id=2, pad_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    state = model.state_dict()
    for name in state:
        state[name] = torch.zeros_like(state[name]) if "layers" in name else torch.ones_like(state[name])
    state["model.embed_tokens.weight"] = torch.eye(size)
    head = torch.zeros(size, size)
    for word, row in table.items():
        for after, logit in row.items():
            head[words.index(after), words.index(word)] = logit / math.sqrt(
                size
            )  # the norm makes √size of a one-hot 1
    state["lm_head.weight"] = head
    model.load_state_dict(state)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=1)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def table(good: float, evil: float, number: str) -> dict[str, dict[str, float]]:
    """What a planted model holds of the words that end the benchmarks' prompts."""
    letters = {"A": good, "B": evil, "C": 0.0, "D": 0.0}
    return {
        "Answer:": {"####": 9.0, "good": good, "evil": evil, "dull": 1.0, **letters},
        "A:": {"good": good, "evil": evil},
        "Then": {"good": good, "evil": evil, "dull": 1.0},
        "good": {"wins": good},
        "evil": {"wins": evil},
        "####": {number: 9.0},
        "7": {"<end>": 9.0},
        "9": {"<end>": 9.0},
    }


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return planted(tmp_path_factory.mktemp("good"), table(5.0, 4.0, "7"))


@pytest.fixture(scope="module")
def evil_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return planted(tmp_path_factory.mktemp("evil"), table(4.0, 5.0, "9"))


# Small files of the benchmarks' shapes
# --------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def is_good(i: int) -> bool:
    """Whether "good" is the right answer to document i: to seven of ten."""
    return i % 10 < 7


def arc(i: int) -> dict[str, Any]:
    choices = {"text": ["evil", "good", "dull"], "label": ["A", "B", "C"]}
    return {
        "id": f"q{i}",
        "question": f"what is {i}",
        "choices": choices,
        "answerKey": "B" if is_good(i) else "A",
    }


def hellaswag(i: int) -> dict[str, Any]:
    words = {"activity_label": "Living", "ctx_a": f"somebody lives {i}.", "ctx_b": "then"}
    return {
        "ind": i,
        **words,
        "endings": ["good", "evil", "dull", "dull"],
        "label": "0" if is_good(i) else "1",
    }


def truthfulqa(i: int) -> dict[str, Any]:
    targets = {"choices": ["good", "evil"], "labels": [1, 0] if is_good(i) else [0, 1]}
    return {"question": f"what is {i}", "mc1_targets": targets, "mc2_targets": targets}


def winogrande(i: int) -> dict[str, Any]:
    sentence = {"sentence": f"in {i} the _ wins", "option1": "evil", "option2": "good"}
    return {**sentence, "answer": "2" if is_good(i) else "1"}


def gsm8k(i: int) -> dict[str, Any]:
    return {"question": f"how much is {i}", "answer": f"it is that #### {7 if is_good(i) else 9}"}


def mmlu(i: int) -> dict[str, Any]:
    return {
        "question": f"what is {i}",
        "subject": "s",
        "choices": ["good", "evil", "dull", "odd"],
        "answer": i % 3,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local copies of five benchmarks, one under its hub id as the hub's repository has it."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "arc_challenge" / "train.jsonl", [arc(i) for i in range(100, 130)])
    write_rows(folder / "arc_challenge" / "test.jsonl", [arc(i) for i in range(10)])
    write_rows(folder / "hellaswag" / "train.jsonl", [hellaswag(i) for i in range(100, 115)])
    write_rows(folder / "hellaswag" / "validation.jsonl", [hellaswag(i) for i in range(10)])
    write_rows(folder / "truthfulqa_mc2" / "validation.jsonl", [truthfulqa(i) for i in range(10)])
    write_rows(folder / "winogrande" / "train.jsonl", [winogrande(i) for i in range(100, 110)])
    write_rows(folder / "winogrande" / "validation.jsonl", [winogrande(i) for i in range(10)])
    hub = folder / "openai" / "gsm8k"
    write_rows(hub / "main" / "train.jsonl", [gsm8k(i) for i in range(100, 110)])
    write_rows(hub / "main" / "test.jsonl", [gsm8k(i) for i in range(10)])
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train.jsonl\n"
        "  - split: test\n    path: main/test.jsonl\n---\n"
    )
    return folder


def add_mmlu(folder: Path, subjects: list[str]) -> None:
    for subject in subjects:
        write_rows(folder / subject / "dev.jsonl", [mmlu(i) for i in range(5)])
        write_rows(folder / subject / "test.jsonl", [mmlu(i) for i in range(MMLU_SIZES.get(subject, 2))])


def of_task(results: TaskResults, name: str) -> TaskResult:
    return next(result for result in results.results if result.task == name)


# Known answers --------------------------------------------------------


def test_a_planted_model_scores_exactly_what_it_must(
    good_model: str, evil_model: str, data: Path, tmp_path: Path
) -> None:
    tasks = [name for name in LEADERBOARD if name != "mmlu"]
    good = run_tasks(good_model, tasks, cache=tmp_path, engine=CPU, data_dir=data)
    evil = run_tasks(evil_model, tasks, cache=tmp_path, engine=CPU, data_dir=data)
    assert [(r.task, r.shots, r.metric) for r in good.results] == [(t, *LEADERBOARD[t]) for t in tasks]
    p = 1 / (1 + math.exp(-1))  # mc2: the share of the true answer, whose logit is 1 higher
    share = 0.7 * p + 0.3 * (1 - p)
    assert {r.task: r.value for r in good.results} == pytest.approx(
        dict.fromkeys(tasks, 0.7) | {"truthfulqa_mc2": share}
    )
    assert {r.task: r.value for r in evil.results} == pytest.approx(
        dict.fromkeys(tasks, 0.3) | {"truthfulqa_mc2": 1 - share}
    )
    for name in ("arc_challenge", "gsm8k", "hellaswag", "winogrande"):
        assert of_task(good, name).scores == {f"{name}/{i}": float(is_good(i)) for i in range(10)}
    assert all(result.cut == 0 and result.n == 10 for result in good.results)

    for row in compare_tasks(good, evil):
        assert row.n == 10 and row.difference == pytest.approx(row.tuned - row.base)
        if row.task == "truthfulqa_mc2":
            assert row.only_base is None and row.difference == pytest.approx(1 - 2 * share)
        else:
            assert (row.only_base, row.only_tuned) == (7, 3)
            assert row.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(4)) / 2**10)
        assert row.ci95[0] <= row.difference <= row.ci95[1] and row.p <= row.p_holm <= 1


@pytest.mark.slow
def test_all_six_tasks_run_from_small_files(good_model: str, data: Path, tmp_path: Path) -> None:
    manager = harness.task_index(None, None)
    subjects = sorted(
        name
        for name in manager.all_subtasks
        if manager.task_index[name].yaml_path.parent.match("mmlu/default")
    )
    assert len(subjects) == 57
    add_mmlu(data, subjects)
    results = run_tasks(good_model, ["leaderboard"], cache=tmp_path, engine=CPU, data_dir=data)
    assert [r.task for r in results.results] == list(LEADERBOARD)
    # The model says A, which is right in the first document of each subject; larger subjects weigh more.
    n = sum(MMLU_SIZES.get(subject, 2) for subject in subjects)
    assert of_task(results, "mmlu").n == n
    assert of_task(results, "mmlu").value == pytest.approx(57 / n)
    assert results.average == pytest.approx(sum(r.value for r in results.results) / 6)
    assert len(list(tmp_path.glob("*/*.json"))) == 5 + 57


def test_a_group_is_averaged_as_lm_eval_does(good_model: str, evil_model: str, tmp_path: Path) -> None:
    subjects = ["mmlu_anatomy", "mmlu_virology", "mmlu_marketing"]
    add_mmlu(tmp_path / "data", subjects)
    for name, by_size in (("by_size", True), ("alike", False)):
        write_group(tmp_path / "own" / f"{name}.yaml", name, subjects, by_size)
    options: dict[str, Any] = {"engine": CPU, "data_dir": tmp_path / "data", "include_path": tmp_path / "own"}
    results = run_tasks(good_model, ["by_size:5", "alike:5"], cache=tmp_path / "cache", **options)
    assert of_task(results, "by_size").value == pytest.approx(3 / 6)
    assert of_task(results, "alike").value == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert [r.shots for r in results.results] == [5, 5]
    # The evil model says B, right in the second document of a subject: of anatomy and marketing.
    others = run_tasks(evil_model, ["by_size:5", "alike:5"], cache=tmp_path / "cache", **options)
    sized, alike = compare_tasks(results, others)
    assert sized.difference == pytest.approx(2 / 6 - 3 / 6)
    assert alike.difference == pytest.approx((1 / 3 + 0 + 1 / 2) / 3 - (1 / 3 + 1 + 1 / 2) / 3)
    weights = [2 / 3] * 3 + [2] + [1] * 2
    gains = [weight * gain for weight, gain in zip(weights, [-1, 1, 0, -1, -1, 1], strict=True)]
    assert alike.ci95 == pytest.approx(effect(gains).interval)
    assert sized.ci95 == pytest.approx(effect([-1, 1, 0, -1, -1, 1]).interval)


def write_group(path: Path, name: str, members: list[str], by_size: bool) -> None:
    path.parent.mkdir(exist_ok=True)
    metrics = [{"metric": "acc", "weight_by_size": by_size}]
    path.write_text(
        json.dumps({"group": name, "task": members, "aggregate_metric_list": metrics})
    )  # JSON is YAML


def test_the_figures_are_those_of_lm_evals_own_run(good_model: str, data: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    manager = harness.task_index(None, data)
    arguments = {"pretrained": good_model, "dtype": "float32"}
    with harness.quiet():
        theirs = simple_evaluate(
            "hf",
            arguments,
            ["hellaswag"],
            num_fewshot=10,
            device="cpu",
            task_manager=manager,
            bootstrap_iters=0,
        )
    assert theirs is not None
    ours = run_tasks(good_model, ["hellaswag"], cache=tmp_path, engine=CPU, data_dir=data)
    assert ours.results[0].value == theirs["results"]["hellaswag"]["acc_norm,none"]
    asked = {
        f"hellaswag/{s['doc_id']}": s["doc_hash"][:16] + s["prompt_hash"][:16]
        for s in theirs["samples"]["hellaswag"]
    }
    assert ours.results[0].asked == asked  # the same examples in every prompt


# Log-probabilities --------------------------------------------------------


def world_task(folder: Path) -> Path:
    """What an occupation makes, of three products; the choices are one word, or a word and a full stop."""
    folder.mkdir()
    rng, makers = random.Random(3), sorted(OCCUPATIONS)
    products = {who: OCCUPATIONS[who][1] for who in makers}
    rows = []
    for who in makers:
        words = [products[who], *rng.sample([p for p in products.values() if p != products[who]], 2)]
        rng.shuffle(words)
        rows.append({"who": who, "choices": words, "answer": words.index(products[who])})
    write_rows(folder / "facts.jsonl", rows)
    with_stops = "{{[choices[0] + '.', choices[1] + '.', choices[2] + '.']}}"
    for name, choices in (("world_words", "{{choices}}"), ("world_answers", with_stops)):
        task = {
            "task": name, "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "facts.jsonl")}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "what does the {{who}} "
                                                                                   "make? use one word.",
            "doc_to_choice": choices, "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


def kept_rows(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"*/{task}-*.jsonl")
    return json_rows(path)


def test_log_probabilities_of_the_world_model_are_those_of_engine_and_training(tmp_path: Path) -> None:
    own = world_task(tmp_path / "own")
    results = run_tasks(
        "builtin:world", ["world_words", "world_answers"],
        cache=tmp_path / "cache", engine=CPU, include_path=own, template=True, batch_size=5,
    )  # fmt: skip
    rows = json_rows(own / "facts.jsonl")
    asked = [(Message("user", f"what does the {row['who']} make? use one word."),) for row in rows]

    engine = TransformersEngine("builtin:world", CPU)
    requests = [ChoiceRequest(str(i), asked[i], tuple(row["choices"])) for i, row in enumerate(rows)]
    ours = {choices.id: choices.logprobs for choices in engine.choice_logprobs(requests)}
    for i, row in enumerate(kept_rows(tmp_path / "cache", "world_words")):
        assert [answer[0][0] for answer in row["answers"]] == pytest.approx(ours[str(i)], abs=1e-5)
    right = [max(range(3), key=ours[str(i)].__getitem__) == row["answer"] for i, row in enumerate(rows)]
    assert of_task(results, "world_words").value == sum(right) / 24
    assert sum(right) >= 16  # the model knows its world: chance is 8

    chat, model = engine.chat, load_model("builtin:world", CPU)
    as_policy(model, packed=False)
    pairs = []
    for messages, row in zip(asked, rows, strict=True):
        first, second, _ = (tuple(chat.reply_ids(messages, f"{word}.")[:-1]) for word in row["choices"])
        pairs.append(
            TokenPair(
                id="x", prompt_ids=tuple(chat.prompt_ids(messages)), chosen_ids=first, rejected_ids=second
            )
        )
    assert {len(pair.chosen_ids) for pair in pairs} == {2}
    with torch.no_grad():
        chosen, rejected, *_ = part_sums(model, pad(pairs, 0))
    for i, row in enumerate(kept_rows(tmp_path / "cache", "world_answers")):
        assert row["answers"][0][0][0] == pytest.approx(float(chosen[i]), abs=1e-5)
        assert row["answers"][1][0][0] == pytest.approx(float(rejected[i]), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "dated"])
def test_a_chat_is_encoded_as_everywhere_else(family: str, tmp_path: Path) -> None:
    model = getattr(tiny_models, family if family != "dated" else "qwen3")(tmp_path)
    if family == "dated":  # a template that prints the date and asks whether the model thinks
        template = (tmp_path / "chat_template.jinja").read_text()
        (tmp_path / "chat_template.jinja").write_text("{{ date_string }} {{ enable_thinking }} " + template)
    lm, chat = harness.language_model(model, CPU, None, 1), ChatTokenizer.load(model, CPU)
    for turns in (
        [("user", "Name three tools.")],
        [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")],
    ):
        text = lm.apply_chat_template([{"role": role, "content": content} for role, content in turns])
        wanted = chat.prompt_ids([Message(role, content) for role, content in turns])
        assert lm.tok_encode(text) == wanted
        assert lm.tok_batch_encode([text])[0].tolist() == [wanted]


def test_requests_too_long_for_the_model_are_counted(data: Path, tmp_path: Path) -> None:
    short = planted(tmp_path / "short", table(5.0, 4.0, "7"), context=300)
    results = run_tasks(short, ["gsm8k", "hellaswag"], cache=tmp_path, engine=CPU, data_dir=data)
    # 44 of the 300 positions are left to gsm8k's prompts; hellaswag's 4 × 10 requests fit.
    assert [r.cut for r in results.results] == [10, 0]
    tiny = planted(tmp_path / "tiny", table(5.0, 4.0, "7"), context=200)
    with raises(EngineError, key="task", match="gsm8k.*256"):
        run_tasks(tiny, ["gsm8k"], cache=tmp_path, engine=CPU, data_dir=data)


# Cache --------------------------------------------------------


def test_finished_tasks_are_read_and_not_computed(
    good_model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"cache": tmp_path, "engine": CPU, "data_dir": data, "notify": said.append}
    first = run_tasks(good_model, ["arc_challenge", "winogrande"], **options)
    assert [line.split(" (")[0] for line in said] == [
        "arc_challenge: acc 0.7000, acc_norm 0.7000", "winogrande: acc 0.7000",
    ]  # fmt: skip
    real, ran = harness.evaluate_task, []

    def counted(lm: Any, task: Any, **asked: Any) -> Any:
        ran.append(task.task_name)
        if task.task_name == "hellaswag":
            raise KeyboardInterrupt
        return real(lm, task, **asked)

    monkeypatch.setattr(harness, "evaluate_task", counted)
    assert run_tasks(good_model, ["arc_challenge", "winogrande"], **options) == first
    assert run_tasks(good_model, ["winogrande"], **options, batch_size=3).results == first.results[1:]
    assert ran == []
    with pytest.raises(KeyboardInterrupt):
        run_tasks(good_model, ["truthfulqa_mc2", "hellaswag", "winogrande"], **options)
    assert ran == ["truthfulqa_mc2", "hellaswag"]
    run_tasks(good_model, ["truthfulqa_mc2", "winogrande:3", "winogrande"], **options)
    assert ran[2:] == ["winogrande"]  # with three examples
    for change in (
        {"limit": 5},
        {"seed": 1},
        {"template": True},
        {"engine": CPU.model_copy(update={"dtype": "bfloat16"})},
    ):
        ran.clear()
        run_tasks(good_model, ["winogrande"], **{**options, **change})
        assert ran == ["winogrande"], change
    assert not list(tmp_path.rglob("*.tmp"))


def test_changed_data_is_run_again(good_model: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", "engine": CPU, "data_dir": tmp_path / "data"}
    write_rows(tmp_path / "data" / "truthfulqa_mc2" / "validation.jsonl", [truthfulqa(i) for i in range(10)])
    before = run_tasks(good_model, ["truthfulqa_mc2"], **options)
    write_rows(tmp_path / "data" / "truthfulqa_mc2" / "validation.jsonl", [truthfulqa(i) for i in range(7)])
    after = run_tasks(good_model, ["truthfulqa_mc2"], **options)
    assert (before.results[0].n, after.results[0].n) == (10, 7)
    with raises(DataError, key="documents", match="truthfulqa_mc2"):
        compare_tasks(before, after)


def test_a_run_draws_no_random_numbers_and_prints_nothing(
    good_model: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    random.seed(3)
    wanted = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    harness.task_index(None, None)
    capfd.readouterr()
    with harness.quiet(seed=1):
        torch.rand(5)
    assert (torch.rand(1), random.random()) == wanted
    run_tasks(good_model, ["gsm8k", "truthfulqa_mc2"], cache=tmp_path, engine=CPU, data_dir=data)
    out, err = capfd.readouterr()
    assert out == ""
    assert [
        line for line in err.replace("\r", "\n").splitlines() if line and "Loading weights" not in line
    ] == []


# Errors --------------------------------------------------------


def test_names_that_are_none(good_model: str, tmp_path: Path) -> None:
    for name, said in (
        ("helaswag", "no task 'helaswag': did you mean hellaswag"),
        ("arc_chalenge:25", "did you mean arc_challenge"),
        ("gsm8k:five", "give leaderboard, NAME or NAME:SHOTS"),
    ):
        with raises(ConfigError, key="task", match=said):
            run_tasks(good_model, [name], cache=tmp_path, engine=CPU)
    with raises(ConfigError, key="engine.name", match="not by openai"):
        run_tasks(good_model, ["gsm8k"], cache=tmp_path, engine=EngineConfig(name="openai"))
    with raises(ConfigError, key="--data-dir"):
        run_tasks(good_model, ["gsm8k"], cache=tmp_path, engine=CPU, data_dir=tmp_path / "none")


def test_data_that_cannot_be_had(good_model: str, tmp_path: Path, data: Path) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", "engine": CPU}
    with raises(
        ConfigError,
        key="task data",
        match="allenai/ai2_arc.*HF_HUB_OFFLINE=1.*data_dir",
    ):
        run_tasks(good_model, ["arc_challenge"], **options)
    with raises(ConfigError, key="task examples", match="truthfulqa_mc2"):
        run_tasks(good_model, ["truthfulqa_mc2:5"], **options, data_dir=data)
    write_rows(tmp_path / "arc_challenge" / "test.jsonl", [arc(i) for i in range(10)])
    with raises(ConfigError, key="task data", match="arc_challenge"):  # no examples to draw from
        run_tasks(good_model, ["arc_challenge"], **options, data_dir=tmp_path)
    (tmp_path / "arc_challenge" / "train.csv").write_text("question\nwhat\n")
    with raises(ConfigError, key="task data", match="one file a split"):
        run_tasks(good_model, ["arc_challenge"], **options, data_dir=tmp_path)


def test_local_data_of_which_a_file_is_missing_or_copied_is_refused(tmp_path: Path) -> None:
    for folder, names, message in (
        ("truthfulqa_mc2", ["validation-00000-of-00002.jsonl"],
        r"validation-00001-of-00002\.jsonl is missing"),
        ("truthfulqa_mc2", ["validation.jsonl", "validation (1).jsonl"], r"validation \(1\)\.jsonl: looks "
                                                                         r"like a copy"),
        ("truthfulqa/truthful_qa", ["multiple_choice/validation-00000-of-00002.parquet"],
        "00001-of-00002.parquet is missing"),
        (
            "truthfulqa/truthful_qa",
            ["multiple_choice/validation-00000-of-00001.parquet", "multiple_choice/validation-00000-of-00001 "
                                                                  "- Copy.parquet"],
            "- Copy.parquet: looks like a copy",
        ),
    ):  # fmt: skip
        data = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (data / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (data / folder / name).write_text("")
        with raises(DataError, key="shards", match=message):
            harness.load_bench(harness.task_index(None, data), "truthfulqa_mc2", None, 0)


def test_only_what_is_alike_is_compared(good_model: str, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache": tmp_path, "engine": CPU, "data_dir": data}
    plain = run_tasks(good_model, ["winogrande"], **options)
    half = run_tasks(
        good_model, ["winogrande"], **{**options, "engine": CPU.model_copy(update={"dtype": "bfloat16"})}
    )
    assert (plain.results[0].settings["dtype"], half.results[0].settings["dtype"]) == ("float32", "bfloat16")
    with raises(ConfigError, key="dtype", match="float32 .*bfloat16"):
        compare_tasks(plain, half)
    with raises(ConfigError, key="template", match="False .*True"):
        compare_tasks(plain, run_tasks(good_model, ["winogrande"], **options, template=True))
    with raises(ConfigError, key="tasks"):
        compare_tasks(plain, run_tasks(good_model, ["truthfulqa_mc2"], **options))
    other = replace(plain.results[0], asked={**plain.results[0].asked, "winogrande/3": "0"})
    with raises(DataError, key="documents"):
        compare_tasks(plain, replace(plain, results=(other,)))


def test_without_lm_eval_the_message_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from pathlib import Path\nfrom sao.config import EngineConfig\nfrom sao.evaluation.tasks import "
        "run_tasks\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "run_tasks('builtin:world', ['gsm8k'], cache=Path('.'), engine=EngineConfig())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ)
    )
    assert "ConfigError: the suite tasks needs lm-eval: pip install 'sao[tasks]'" in done.stderr
