"""`sao eval --base --tuned`: judges with closed-form preferences, guards, suites, files, kills."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sao.analysis.evaluate import Asked, TaskOptions, evaluate
from sao.cli import main
from sao.config import make_config
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine, read_answers
from sao.errors import ConfigError, DataError, StoreError
from sao.evaluation import alpaca_files
from sao.evaluation.questions import read_answers as read_given
from sao.evaluation.questions import read_questions
from sao.evaluation.tasks import TaskResult, TaskResults
from sao.execution.runner import Runner
from sao.execution.status import read_status
from sao.pipeline.players import Player, player
from sao.pipeline.two_models import TwoModels
from sao.records import Message
from sao.report.evaluation import show_evaluation
from sao.results.evaluation import Evaluation, MarkedSuite, PairedSuite
from sao.store.files import write_atomic
from sao.store.manifest import FORMAT
from sao.templates import load_template
from support.checks import a, known
from support.errors import raises
from support.run_files import json_rows

N = 40
Choose = Callable[[tuple[Message, ...], tuple[str, ...]], tuple[float, ...]]


def questions(path: Path, n: int = N, turns: int = 1) -> Path:
    rows = [{"prompt": [f"question {i}, turn {t}" for t in range(turns)], "category": "c"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answering(name: str, quality: Callable[[int], float]) -> ScriptedEngine:
    """A model whose answer to question i says how good it is."""

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        number = int(messages[-1].content.split()[1].rstrip(","))
        return f"{name} worth {quality(number):.3f}"

    return ScriptedEngine(identity=name, reply=reply)


def worth(text: str) -> float:
    return float(text.split()[-1])


def judging(p_first: Callable[[str, str], float]) -> ScriptedEngine:
    def choose(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        answers = read_answers(messages)
        assert answers is not None
        p = p_first(*answers)
        return math.log(p), math.log1p(-p)

    return ScriptedEngine(identity="the judge", name="judge", choose=choose)


def by_worth(first: str, second: str) -> float:
    return 0.5 if worth(first) == worth(second) else 0.9 if worth(first) > worth(second) else 0.1


def by_length(first: str, second: str) -> float:
    return 0.9 if len(first) >= len(second) else 0.1


def bench(
    out: Path, base: ScriptedEngine, tuned: ScriptedEngine, judge: ScriptedEngine, **more: Any
) -> TwoModels:
    config = make_config(
        {
            "engine": {"name": "scripted"},
            "evaluation": {"bootstrap": 500, "self_tests": 0, **more.pop("evaluation", {})},
            **more,
        }
    )
    return TwoModels(config, out, {"base": base, "tuned": tuned, "judge": judge})


def asked(tmp_path: Path, suite: str = "heldout", **more: Any) -> Asked:
    file = questions(tmp_path / "q.jsonl", turns=2 if suite.startswith("mtbench") else 1)
    base, tuned = Player(role="base", model="the base"), Player(role="tuned", model="the tuned")
    return Asked(base=base, tuned=tuned, questions={suite: str(file)}, **more)


def heldout(tmp_path: Path, better: int, judge: ScriptedEngine, **more: Any) -> Evaluation:
    """The suite heldout where tuned is better on the first `better` questions and worse on the others."""
    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.9 if i < better else 0.1)
    return evaluate(bench(tmp_path / "out", base, tuned, judge, **more), asked(tmp_path), ["heldout"])


def test_a_judge_with_a_known_preference_gives_the_exact_win_rate(tmp_path: Path) -> None:
    found = heldout(tmp_path, 30, judging(by_worth))
    suite = a(PairedSuite, found.suites["heldout"])
    assert known(suite.tuned.win_rate).value == 30 / N
    assert (suite.tuned.win, suite.tuned.tie, suite.tuned.loss) == (30, 0, 10)
    assert known(suite.delta).value == pytest.approx(0.25)
    low, high = known(suite.delta).ci95
    assert 0 < low < 0.25 < high < 0.5
    assert 0 < known(known(suite.delta).p) < 0.01
    assert known(suite.delta).p == known(suite.delta).p_holm
    assert suite.tuned.warnings == []
    assert found.label == ""
    assert Evaluation.model_validate_json((tmp_path / "out" / "results.json").read_text()) == found
    rows = json_rows(tmp_path / "out" / "items-heldout.jsonl")
    assert len(rows) == N
    assert rows[0]["answers"] == {"base": ["base worth 0.500"], "tuned": ["tuned worth 0.900"]}
    assert len(rows[0]["judged"]["tuned"]) == 2
    assert not (tmp_path / "out" / ".eval_results").exists()  # the hub has no data set of these


def test_the_sides_mirror_each_other(tmp_path: Path) -> None:
    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.9 if i % 3 else 0.1)
    rates = []
    for i, (x, y) in enumerate(((base, tuned), (tuned, base))):
        found = evaluate(bench(tmp_path / str(i), x, y, judging(by_worth)), asked(tmp_path), ["heldout"])
        suite = a(PairedSuite, found.suites["heldout"]).tuned
        rates.append((known(suite.win_rate).value, known(suite.adjusted).value))
    assert rates[0][0] + rates[1][0] == pytest.approx(1)
    assert rates[0][1] + rates[1][1] == pytest.approx(1, abs=1e-6)


def test_a_model_against_itself_is_a_half(tmp_path: Path) -> None:
    same = answering("same", lambda i: 0.5)
    found = evaluate(bench(tmp_path / "out", same, same, judging(by_worth)), asked(tmp_path), ["heldout"])
    suite = a(PairedSuite, found.suites["heldout"])
    assert known(suite.tuned.win_rate).value == 0.5
    assert suite.tuned.verdicts == 0
    assert known(suite.tuned.adjusted).value == 0.5
    assert known(suite.delta).value == 0
    assert known(suite.delta).p == 1.0


def test_a_judge_of_the_first_slot_says_nothing_and_is_found_out(tmp_path: Path) -> None:
    found = heldout(tmp_path, 30, judging(lambda first, second: 0.97))
    tuned = a(PairedSuite, found.suites["heldout"]).tuned
    assert known(tuned.win_rate).value == 0.5
    assert tuned.first_slot_rate == 1.0
    assert tuned.warnings == ["POSITION BIAS: 100 % of the decided verdicts are for the first slot"]
    assert "POSITION BIAS" in show_evaluation(found)


def test_unparseable_verdicts_are_counted_and_bounded(tmp_path: Path) -> None:
    def choose(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        answers = read_answers(messages)
        assert answers is not None
        number = int(messages[-1].content.split("question ")[1].split(",")[0])
        if number < 10:
            return -9.0, -9.0  # no mass on a verdict
        p = by_worth(*answers)
        return math.log(p), math.log1p(-p)

    found = heldout(tmp_path, 30, ScriptedEngine(identity="j", name="judge", choose=choose))
    tuned = a(PairedSuite, found.suites["heldout"]).tuned
    assert (tuned.unparseable, tuned.lost) == (20, 10)
    assert known(tuned.win_rate).value == pytest.approx(20 / 30)
    assert tuned.bounds == pytest.approx([20 / 40, 30 / 40])
    assert (
        "20 of 80 verdicts unparseable or not given; with them the figure would be between 50.0 and 75.0 %"
        in show_evaluation(found)
    )


def test_the_trained_model_as_judge_is_circular_and_withheld(tmp_path: Path) -> None:
    judge = judging(by_worth)
    judge.identity = "tuned"
    found = heldout(tmp_path, 30, judge)
    assert found.label == "CIRCULAR"
    assert not found.headline
    table = show_evaluation(found)
    assert "75.0" not in table
    assert "withheld" in table
    assert "--headline shows them" in table
    assert not (tmp_path / "out" / ".eval_results").exists()
    (tmp_path / "b").mkdir()
    judge.identity = "base"
    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.9)
    shown = evaluate(bench(tmp_path / "b", base, tuned, judge), asked(tmp_path, headline=True), ["heldout"])
    assert shown.label == "CIRCULAR"
    assert "100.0" in show_evaluation(shown)


def test_a_constant_answer_is_flagged(tmp_path: Path) -> None:
    base = answering("base", lambda i: 0.5 + i / 1000)
    constant = ScriptedEngine(identity="constant", reply=lambda m, s, p: "always worth 0.9")
    found = evaluate(bench(tmp_path / "out", base, constant, judging(by_worth)), asked(tmp_path), ["heldout"])
    wrong = found.suites["heldout"].degenerate
    assert "40 of 40 answers are the same text: 'always worth 0.9'" in wrong["tuned"][0]
    assert "base" not in wrong
    assert "DEGENERATE" in show_evaluation(found)


def test_a_reference_stands_between_two_models(tmp_path: Path) -> None:
    answers = [
        {"instruction": f"question {i}, turn 0", "output": f"reference worth {0.5:.3f}", "generator": "ref"}
        for i in range(N)
    ]
    (tmp_path / "ref.json").write_text(json.dumps(answers))
    base, tuned = (
        answering("base", lambda i: 0.9 if i < 10 else 0.1),
        answering("tuned", lambda i: 0.9 if i < 30 else 0.1),
    )
    want = asked(tmp_path, "alpaca", reference=Player(role="reference", model=str(tmp_path / "ref.json")))
    found = evaluate(bench(tmp_path / "out", base, tuned, judging(by_worth)), want, ["alpaca"])
    suite = a(PairedSuite, found.suites["alpaca"])
    # AlpacaEval counts the judge's probability, 0.9 or 0.1; discrete wins stand in its leaderboard.
    assert known(known(suite.base).win_rate).value == pytest.approx((10 * 0.9 + 30 * 0.1) / N)
    assert known(suite.tuned.win_rate).value == pytest.approx((30 * 0.9 + 10 * 0.1) / N)
    assert known(suite.delta).value == pytest.approx(0.4)
    assert known(known(known(suite.tuned.adjusted).delta).p) < 0.01
    assert (tmp_path / "out" / ".eval_results" / "alpaca.yaml").is_file()
    assert known(suite.tuned.adjusted).name == "length-adjusted win rate"  # not LC: no official files
    annotations = alpaca_files.read_annotations(
        str(tmp_path / "out" / "alpaca" / "tuned" / "annotations.json")
    )
    assert len(annotations) == N
    assert alpaca_files.standing_of(annotations).discrete_win_rate == 75.0
    board = alpaca_files.read_leaderboard(str(tmp_path / "out" / "alpaca" / "leaderboard.csv"))
    assert board["the tuned"]["n_wins"] == 30
    answers.pop()
    (tmp_path / "ref.json").write_text(json.dumps(answers))
    with raises(DataError, key="missing answers", match="1 of the 40 questions"):
        evaluate(bench(tmp_path / "x", base, tuned, judging(by_worth)), want, ["alpaca"])


def talking(verdict: Callable[[str, str], str]) -> ScriptedEngine:
    """A judge that writes its verdict on answers A and B."""

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        text = messages[-1].content
        tags = ("<answer_a>", "<answer_b>") if "<answer_a>" in text else ("<assistant_a>", "<assistant_b>")
        sides = [text.split(f"{tag}\n")[1].split(f"\n{tag.replace('<', '</')}")[0] for tag in tags]
        return f"Reasons first.\n{verdict(*sides)}"

    return ScriptedEngine(identity="talker", name="judge", reply=reply)


def test_arena_reads_five_verdicts_in_both_orders(tmp_path: Path) -> None:
    def verdict(first: str, second: str) -> str:
        gap = worth(first) - worth(second)
        sign = ">>" if abs(gap) > 0.3 else ">"
        return "[[A=B]]" if gap == 0 else f"[[A{sign}B]]" if gap > 0 else f"[[B{sign}A]]"

    base, tuned = (
        answering("base", lambda i: 0.5),
        answering("tuned", lambda i: 0.9 if i < 25 else 0.5 if i < 30 else 0.4),
    )
    found = evaluate(
        bench(tmp_path / "out", base, tuned, talking(verdict)), asked(tmp_path, "arena"), ["arena"]
    )
    tuned_side = a(PairedSuite, found.suites["arena"]).tuned
    assert (tuned_side.win, tuned_side.tie, tuned_side.loss) == (25, 5, 10)
    assert tuned_side.unparseable == 0
    # Strong wins count three times: 25·3 wins, 5 ties, 10 losses over two orders.
    assert known(tuned_side.arena).value == pytest.approx((75 + 2.5) / (75 + 5 + 10), abs=0.01)
    assert "style controlled" in known(tuned_side.arena_style).name
    assert "Arena-Hard, Bradley–Terry score %" in show_evaluation(found)


def test_mtbench_marks_both_turns(tmp_path: Path) -> None:
    def mark(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        text = messages[-1].content
        answer = text.split("<answer>\n")[1].split("\n</answer>")[0]
        assert ("Assistant: " in text.split("<answer>")[0]) == ("turn 1" in text)
        return f"Good.\n[[{10 * worth(answer):.1f}]]"

    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.8)
    judge = ScriptedEngine(identity="marker", name="judge", reply=mark)
    found = evaluate(bench(tmp_path / "out", base, tuned, judge), asked(tmp_path, "mtbench"), ["mtbench"])
    suite = a(MarkedSuite, found.suites["mtbench"])
    assert (known(suite.base.mark).value, known(suite.tuned.mark).value) == (5.0, 8.0)
    assert suite.tuned.verdicts == 2 * N
    assert known(suite.delta).value == pytest.approx(3.0)
    assert "MT-Bench, rating" in show_evaluation(found)


def test_mtbench_in_pairs_shows_the_whole_conversation(tmp_path: Path) -> None:
    def verdict(first: str, second: str) -> str:
        assert "User: question" in first
        assert "Assistant: " in second
        return "[[A]]" if worth(first) > worth(second) else "[[B]]"

    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.8)
    want = asked(tmp_path, "mtbench-pairs")
    found = evaluate(bench(tmp_path / "out", base, tuned, talking(verdict)), want, ["mtbench-pairs"])
    assert known(a(PairedSuite, found.suites["mtbench-pairs"]).tuned.win_rate).value == 1.0


def test_what_is_finished_is_not_asked_again(tmp_path: Path) -> None:
    base, tuned, judge = (
        answering("base", lambda i: 0.5),
        answering("tuned", lambda i: 0.9),
        judging(by_worth),
    )
    first = evaluate(bench(tmp_path / "out", base, tuned, judge), asked(tmp_path), ["heldout"])
    calls = (base.calls, tuned.calls, judge.calls)
    assert calls == (N, N, 2 * N)
    again = evaluate(bench(tmp_path / "out", base, tuned, judge), asked(tmp_path), ["heldout"])
    assert again == first
    assert (base.calls, tuned.calls, judge.calls) == calls
    other = answering("other", lambda i: 0.2)
    evaluate(bench(tmp_path / "out", base, other, judge), asked(tmp_path), ["heldout"])
    assert (base.calls, other.calls, judge.calls) == (N, N, 4 * N)  # the base's answers are known


def test_the_judge_is_tried_once(tmp_path: Path) -> None:
    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.9 + i / 1000)
    judge = judging(by_length)
    for _ in range(2):
        found = evaluate(
            bench(tmp_path / "out", base, tuned, judge, evaluation={"self_tests": 5}),
            asked(tmp_path),
            ["heldout"],
        )
    assert judge.calls == 2 * N + 4 * 2 * 5
    tests = known(found.self_tests)
    assert (tests["padded"].rate, tests["truncated"].rate) == (
        0.0,
        1.0,
    )  # it likes what is long
    assert tests["identical"].rate == 1.0  # and the first of two equals
    assert known(tests["padded"].flips).rate == 0.0
    assert "padded 0 %" in show_evaluation(found)


def test_the_judge_is_tried_again_with_another_template(tmp_path: Path) -> None:
    """It is the text that counts, not the name of its file."""
    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.9 + i / 1000)
    template, judge, calls = tmp_path / "judge.txt", judging(by_length), list[int]()
    for more in ("", "\nDo not look at the length.", "\nDo not look at the length."):
        template.write_text(load_template("judge", ()) + more)
        two = bench(
            tmp_path / "out", base, tuned, judge,
            evaluation={"self_tests": 5}, judging={"template": str(template)},
        )  # fmt: skip
        evaluate(two, asked(tmp_path), ["heldout"])
        calls.append(judge.calls)
    assert calls == [2 * N + 40, 2 * (2 * N + 40), 2 * (2 * N + 40)]
    for kept in (tmp_path / "out").glob("self-tests-*.json"):
        kept.write_text("{")
    with raises(StoreError, key="self-tests", match=r"self-tests-.*Delete the file"):
        evaluate(two, asked(tmp_path), ["heldout"])


def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    base, tuned, judge = (
        answering("base", lambda i: 0.5),
        answering("tuned", lambda i: 0.9),
        judging(by_worth),
    )
    whole = evaluate(bench(tmp_path / "whole", base, tuned, judge), asked(tmp_path), ["heldout"])
    left = 100

    def dying(engine: ScriptedEngine) -> ScriptedEngine:
        def reply(*args: Any) -> str:
            nonlocal left
            left -= 1
            if left % 30 == 0:
                raise Killed
            return engine.reply(*args)

        return ScriptedEngine(identity=engine.identity, reply=reply)

    for _ in range(2):
        with pytest.raises(Killed):
            evaluate(bench(tmp_path / "out", dying(base), dying(tuned), judge), asked(tmp_path), ["heldout"])
    assert evaluate(bench(tmp_path / "out", base, tuned, judge), asked(tmp_path), ["heldout"]) == whole


def test_answers_that_were_cut_off_count(tmp_path: Path) -> None:
    from sao.engines import Completion

    class Cut(ScriptedEngine):
        def generate(self, requests: Any) -> Any:
            for completion in super().generate(requests):
                yield Completion(completion.id, completion.text, None, "length")

    cut = Cut(identity="cut", reply=lambda m, s, p: f"cut off worth 0.1{s % 10}")
    base = answering("base", lambda i: 0.5)
    found = evaluate(bench(tmp_path / "out", base, cut, judging(by_worth)), asked(tmp_path), ["heldout"])
    assert a(PairedSuite, found.suites["heldout"]).tuned.loss == N
    assert found.suites["heldout"].missing == {"base": 0, "tuned": 0}


def test_the_status_names_the_tasks_while_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def run_tasks(model: str, *args: Any, notify: Callable[[str], None], **kwargs: Any) -> TaskResults:
        notify("a line")
        seen.append(read_status(tmp_path / "out").step)
        scores = {f"t/{i}": float(i % 2) for i in range(4)}
        result = TaskResult(
            task="t", shots=0, metric="acc,none", higher_is_better=True, value=0.5, scores=scores,
            asked=dict.fromkeys(scores, ""), cut=0, settings={},
        )  # fmt: skip
        return TaskResults(model=model, identity=model, results=(result,))

    monkeypatch.setattr("sao.evaluation.tasks.run_tasks", run_tasks)
    monkeypatch.setattr("sao.analysis.evaluate.find_spec", lambda name: name)
    base, tuned = answering("base", lambda i: 0.5), answering("tuned", lambda i: 0.9)
    models = bench(tmp_path / "out", base, tuned, judging(by_worth))
    found = evaluate(models, asked(tmp_path), ["heldout", "tasks"], TaskOptions())
    assert [task.task for task in found.tasks] == ["t"]
    assert seen == ["base tasks", "tuned tasks"]


def test_intervals_are_a_step_of_their_own(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    judge = talking(lambda first, second: "[[A>B]]")
    models = bench(tmp_path / "out", answering("base", float), answering("tuned", float), judge)
    models.runner = Runner(
        models.root, models.session, 1.0, lambda what, done, total: seen.append((what, done, total))
    )
    evaluate(models, asked(tmp_path, "arena"), ["arena"])
    assert [call for call in seen if call[0] == "arena intervals"] == [
        ("arena intervals", done, 2) for done in range(3)
    ]
    assert seen.index(("arena intervals", 0, 2)) > max(
        number for number, call in enumerate(seen) if call[0] == "arena verdicts"
    )


# Questions and the command


def test_questions_of_every_shape(tmp_path: Path) -> None:
    shapes: list[Any] = [
        {"instruction": "a"},
        {"prompt": ["b", "c"], "category": "math"},
        {"turns": [{"content": "d"}], "cluster": "x"},
        {"prompt": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "no"}]},
        {"question": "f"},
        {"instruction": "a"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shapes))
    found = read_questions(str(tmp_path / "q.jsonl"))
    assert [(q.prompt.text, q.later, q.category) for q in found] == [
        ("a", (), ""), ("b", ("c",), "math"), ("d", (), "x"), ("e", (), ""), ("f", (), "")]  # fmt: skip
    (tmp_path / "bad.jsonl").write_text('{"x": 1}\n')
    with raises(DataError, key="questions", match=r"bad\.jsonl, line 1.*it holds: x"):
        read_questions(str(tmp_path / "bad.jsonl"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"turns": ["b", "c"], "output": ["one"]}) + "\n")
    with raises(DataError, key="answers"):
        read_given(str(tmp_path / "a.jsonl"), found[1:2])


def test_bad_requests_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--base", "builtin:world"]) == 1
    assert "both --base and --tuned" in capsys.readouterr().err
    pair = ["eval", "--base", "builtin:world", "--tuned", "builtin:world", "--out", str(tmp_path)]
    assert main([*pair, "--suite", "alpacka"]) == 1
    assert "no suite 'alpacka'" in capsys.readouterr().err
    assert main(pair) == 1
    assert "suite heldout: no questions. Give them (--questions heldout=FILE)" in capsys.readouterr().err
    assert main([*pair, "--questions", "x.jsonl"]) == 1
    assert "SUITE=VALUE" in capsys.readouterr().err
    write_atomic(
        tmp_path / "manifest.json",
        json.dumps(
            {
                "format": FORMAT,
                "sizes": [[1000, 200]],
                "outside": {},
                "config": make_config({}).model_dump(mode="json"),
            }
        ),
    )
    with raises(ConfigError, key="model"):
        player("tuned", str(tmp_path))


@pytest.mark.slow
def test_the_command_on_real_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sao.config import load_recipe
    from sao.method import run

    sizes = {"personas.n": "1500", "personas.held_out": "200", "engine.threads": "1", "seed": "7"}
    run(load_recipe("demo", sizes), tmp_path / "run", until="train")
    command = [
        "eval",
        "--base",
        str(tmp_path / "run"),
        "--tuned",
        str(tmp_path / "run"),
        "--engine.threads",
        "1",
        "--headline",
    ]
    assert (
        main([*command, "--out", str(tmp_path / "eval"), "--evaluation.self_tests", "5", "--json", "--quiet"])
        == 0
    )
    table, _, last = capsys.readouterr().out.partition("\n\nfiles in")
    found = Evaluation.model_validate_json(last.splitlines()[-1])
    assert (tmp_path / "eval" / "table.md").read_text() == table + "\n"
    assert found.label == "CIRCULAR"
    suite = a(PairedSuite, found.suites["heldout"])
    assert suite.delta is not None and suite.delta.value > 0.05
    assert set(found.self_tests or {}) == {"identical", "padded", "truncated", "shuffled"}
