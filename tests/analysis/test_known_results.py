"""`sao eval` on suites whose answers a program checks, and answers to be read: planted engines, kills, files,
the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sao.checks.ifeval
from sao.analysis.evaluate import Asked, evaluate
from sao.cli import main
from sao.config import make_config
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, EngineError
from sao.evaluation.gsm8k import strict_number
from sao.pipeline.players import Player
from sao.pipeline.two_models import TwoModels
from sao.records import Message
from sao.report.evaluation import show_evaluation
from sao.results.evaluation import AnswersOnly, Evaluation, KnownSuiteResult
from support.checks import a, known
from support.errors import raises
from support.run_files import json_rows

DATA = Path(__file__).parents[1] / "evaluation" / "data"
ROWS = {name: json_rows(DATA / f"{name}.jsonl") for name in ("gsm8k", "hellaswag", "ifeval", "mt_bench")}
NUMBERS = {row["question"].strip(): strict_number(row["answer"]) for row in ROWS["gsm8k"]}
LABELS = {row["context"]: row["label"] for row in ROWS["hellaswag"]}
Reply = Callable[[tuple[Message, ...], int, Sampling], str]


def planted(name: str, right: int, form: str = "#### {}") -> ScriptedEngine:
    """A model that solves the first `right` problems of GSM8K and prefers the right ending of the first
    so many of HellaSwag's texts; it refuses what holds "help" and answers all else with its name."""
    problems, contexts = list(NUMBERS), list(LABELS)

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        text = messages[-1].content
        problem = text.partition("\n\nSolve this")[0]
        if problem in NUMBERS:
            assert sampling.temperature == 0
            number = NUMBERS[problem]
            assert number is not None
            return form.format(number if problems.index(problem) < right else number + 1)
        return "I'm sorry, but I can't help." if "help" in text.lower() else f"{name} says {len(text)}"

    def go_on(context: str, continuations: tuple[str, ...]) -> tuple[float, ...]:
        label = LABELS[context]
        best = label if contexts.index(context) < right else (label + 1) % 4
        return tuple(-0.1 if i == best else -50.0 * len(text) for i, text in enumerate(continuations))

    return ScriptedEngine(identity=name, reply=reply, go_on=go_on)


def bench(out: Path, base: ScriptedEngine, tuned: ScriptedEngine, **more: Any) -> TwoModels:
    settings = {"engine": {"name": "scripted"}, "evaluation": {"bootstrap": 500}, **more}
    return TwoModels(make_config(settings), out, {"base": base, "tuned": tuned})


def asked(**more: Any) -> Asked:
    base, tuned = Player(role="base", model="the base"), Player(role="tuned", model="the tuned")
    return Asked(base=base, tuned=tuned, data_dir=DATA, **more)


def scores(evaluation: Evaluation, suite: str) -> dict[str, tuple[float, float, float]]:
    """By figure: base, tuned, difference."""
    found = a(KnownSuiteResult, evaluation.suites[suite]).scores
    return {
        score.name: (known(score.base).value, known(score.tuned).value, known(score.delta).value)
        for score in found
    }


def test_known_answers_give_worked_out_scores(tmp_path: Path) -> None:
    models = bench(tmp_path, planted("base", 12), planted("tuned", 27, "It is {}."))
    found = evaluate(models, asked(), ["gsm8k", "hellaswag"])
    share = pytest.approx
    assert scores(found, "gsm8k")["strict"] == share((12 / 30, 0.0, -12 / 30))
    assert scores(found, "gsm8k")["flexible"] == share((12 / 30, 27 / 30, 15 / 30))
    assert scores(found, "hellaswag")["acc"] == share((12 / 30, 27 / 30, 15 / 30))
    assert scores(found, "hellaswag")["acc_norm"] == share((12 / 30, 27 / 30, 15 / 30))
    suite = a(KnownSuiteResult, found.suites["hellaswag"])
    main_score = known(suite.delta)
    assert main_score.p == pytest.approx(2 / 2**15)  # McNemar: only tuned is right in 15
    assert main_score.p_holm == pytest.approx(2 * main_score.p)  # gsm8k's 12 of 12 is the other main score
    low, high = known(suite.scores[0].tuned).ci95
    assert 0.7 < low < 0.9 < high <= 1
    assert found.judge is None and found.label == "" and found.self_tests is None
    assert Evaluation.model_validate_json((tmp_path / "results.json").read_text()) == found
    assert not (tmp_path / ".eval_results").exists()
    rows = json_rows(tmp_path / "items-hellaswag.jsonl")
    assert len(rows) == 30
    assert rows[0]["earned"] == {
        "base": {"acc": 1.0, "acc_norm": 1.0},
        "tuned": {"acc": 1.0, "acc_norm": 1.0},
    }
    assert len(rows[0]["logprobs"]["tuned"]) == len(rows[0]["endings"]) == 4
    assert json_rows(tmp_path / "items-gsm8k.jsonl")[0]["answers"] == {
        "base": "#### 18",
        "tuned": "It is 18.",
    }
    table = show_evaluation(found)
    assert re.search(r"HellaSwag, acc_norm % \| 40\.0 \[\d+\.\d, \d+\.\d\] \| 90\.0 \[", table)
    assert "GSM8K, flexible (last number) % | 40.0 [" in table


def test_instructions_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(instruction_id: str, kwargs: dict[str, Any], answer: str, prompt: str) -> bool:
        return answer.startswith("tuned") or instruction_id == "punctuation:no_comma"

    monkeypatch.setattr(sao.checks.ifeval, "passes", passes)
    monkeypatch.setattr(sao.checks.ifeval, "loosened", lambda answer: [answer])
    models = bench(tmp_path, planted("base", 0), planted("tuned", 0))
    found = scores(evaluate(models, asked(), ["ifeval"]), "ifeval")
    ids = [row["instruction_id_list"] for row in ROWS["ifeval"]]
    refused = ["help" in row["prompt"].lower() for row in ROWS["ifeval"]]
    commas = [sum(id_ == "punctuation:no_comma" for id_ in own) for own in ids]
    # A refusal holds a comma, but this stand-in passes no_comma whatever is said.
    n = sum(map(len, ids))
    kept = sum(commas[i] if refused[i] else len(ids[i]) for i in range(30))
    assert found["instruction_strict"] == pytest.approx((sum(commas) / n, kept / n, (kept - sum(commas)) / n))
    whole = sum(commas[i] == len(ids[i]) for i in range(30))
    whole_tuned = sum(not refused[i] or commas[i] == len(ids[i]) for i in range(30))
    assert found["prompt_strict"][:2] == pytest.approx((whole / 30, whole_tuned / 30))
    assert found["prompt_loose"] == found["prompt_strict"]


def test_refusals_before_and_after(tmp_path: Path) -> None:
    refuses = ScriptedEngine(identity="no", reply=lambda m, s, p: "I'm sorry, but I can't help with that.")
    helps = ScriptedEngine(identity="yes", reply=lambda m, s, p: f"Take care of {len(m[-1].content)} things.")
    found = evaluate(bench(tmp_path, refuses, helps), asked(), ["refusals"])
    assert scores(found, "refusals") == {"over_refusal": (1.0, 0.0, -1.0), "not_refused": (0.0, 1.0, 1.0)}
    suite = a(KnownSuiteResult, found.suites["refusals"])
    assert [known(score.delta).n for score in suite.scores] == [60, 40]
    assert suite.questions == "shipped with SAO"
    table = show_evaluation(found)
    assert "refusals, harmless requests refused % (less is better) | 100.0 [" in table
    assert "refusals: base: DEGENERATE: 100 of 100 answers are the same text" in table


class Killed(Exception):  # noqa: N818
    pass


def dying(engine: ScriptedEngine, after: int) -> ScriptedEngine:
    """The same engine, that is killed at its call number `after`."""
    left = after

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def reply(*args: Any) -> str:
        count()
        return engine.reply(*args)

    def go_on(*args: Any) -> tuple[float, ...]:
        count()
        return engine.go_on(*args)

    return ScriptedEngine(identity=engine.identity, reply=reply, go_on=go_on)


def bytes_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "status.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_kill_changes_no_byte_and_base_is_asked_once(tmp_path: Path) -> None:
    suites, want = ["gsm8k", "hellaswag", "refusals"], asked(limit=20)
    base, tuned = planted("base", 9), planted("tuned", 15)
    evaluate(bench(tmp_path / "whole", base, tuned), want, suites)
    assert (base.calls, tuned.calls) == (60, 60)
    for after in (7, 27, 13, 5):
        with pytest.raises(Killed):
            evaluate(bench(tmp_path / "out", dying(base, after), dying(tuned, after)), want, suites)
    evaluate(bench(tmp_path / "out", base, tuned), want, suites)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert base.calls < 120  # what the killed ones had is not asked again
    calls = base.calls
    other = planted("other", 3)
    evaluate(bench(tmp_path / "whole", base, other), want, suites)
    assert (base.calls, other.calls) == (calls, 60)


def test_what_cannot_be_is_said_before_a_model_is_asked(tmp_path: Path) -> None:
    base, tuned = planted("base", 1), planted("tuned", 1)
    with raises(ConfigError, key="--limit"):
        evaluate(bench(tmp_path, base, tuned), asked(limit=0), ["gsm8k"])
    with raises(ConfigError, key="--questions", match="not among those asked for"):
        evaluate(bench(tmp_path, base, tuned), asked(questions={"ifeval": "x.jsonl"}), ["gsm8k"])
    with raises(ConfigError, key="--template"):
        evaluate(bench(tmp_path, base, tuned), asked(templates={"gsm8k": "x.txt"}), ["gsm8k"])
    with raises(ConfigError, key="--suite", match="ifeval, hellaswag, gsm8k, refusals, tasks"):
        evaluate(bench(tmp_path, base, tuned), asked(), ["hellaswog"])
    file = tmp_path / "answers.json"
    file.write_text("[]")
    given = Asked(
        base=Player(role="base", model=str(file)), tuned=Player(role="tuned", model="x"), data_dir=DATA
    )
    models = bench(tmp_path, base, tuned)
    del models.given["base"]
    with raises(ConfigError, key="--base", match="log-probabilities"):
        evaluate(models, given, ["hellaswag"])
    assert base.calls == tuned.calls == 0


def test_an_engine_without_log_probabilities_of_texts_is_refused(tmp_path: Path) -> None:
    class Plain:
        name = identity = "plain"

        def close(self) -> None: ...

    models = bench(tmp_path, Plain(), planted("tuned", 1))  # type: ignore[arg-type]
    with raises(EngineError, key="engine.name"):
        evaluate(models, asked(), ["hellaswag"])


# Answers to be read


def test_answers_to_both_turns_stand_below_each_other(tmp_path: Path) -> None:
    def talks(name: str) -> Reply:
        return lambda messages, seed, sampling: f"# {name}\nturn {len(messages) // 2 + 1}"

    base, tuned = (ScriptedEngine(identity=name, reply=talks(name)) for name in ("one", "two"))
    found = evaluate(bench(tmp_path, base, tuned), asked(answers_only=True, limit=12), ["mtbench"])
    suite = a(AnswersOnly, found.suites["mtbench"])
    assert (suite.n, suite.file, found.judge, found.self_tests) == (12, "answers-mtbench.md", None, None)
    text = (tmp_path / "answers-mtbench.md").read_text()
    assert text.count("\n## ") == 12
    first, second = (ROWS["mt_bench"][0]["turns"][turn].strip() for turn in (0, 1))
    part = text.partition("## 81 · writing")[2].partition("\n## 82")[0]
    pieces = [
        f"**Turn 1.** {first}", "**base** (4 words):", "> # one\n> turn 1", "**tuned** (4 words):",
        "> # two\n> turn 1", f"**Turn 2.** {second}", "> # one\n> turn 2", "> # two\n> turn 2",
    ]  # fmt: skip
    places = [part.index(piece) for piece in pieces]
    assert places == sorted(places)
    assert not re.search(r"^# (one|two)", text, re.MULTILINE)  # no heading of an answer is one of the file
    table = show_evaluation(found)
    assert "MT-Bench, answers only" in table
    assert "mtbench: the answers stand in answers-mtbench.md" in table
    assert json.loads((tmp_path / "results.json").read_text())["suites"]["mtbench"]["way"] == "answers"


# The command


@pytest.mark.slow
def test_the_command_on_a_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "eval", "--base", "builtin:world", "--tuned", "builtin:world", "--suite", "hellaswag", "--suite",
        "gsm8k", "refusals", "--data-dir", str(DATA), "--limit", "5", "--out", str(tmp_path),
        "--engine.threads", "1", "--responses.max_tokens", "8", "--json", "--quiet",
    ]  # fmt: skip
    assert main(command) == 0
    table, _, last = capsys.readouterr().out.partition("\n\nfiles in")
    found = Evaluation.model_validate_json(last.splitlines()[-1])
    assert (tmp_path / "table.md").read_text() == table + "\n"
    assert [*found.suites] == ["hellaswag", "gsm8k", "refusals"]
    for suite in found.suites.values():
        assert known(suite.delta).value == 0  # the same model on both sides
