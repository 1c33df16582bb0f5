"""The ways to ask a model for verdicts: what it is asked, how often, and what comes of the answers."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sao.analysis.audit import audit
from sao.config import JudgingConfig, make_config
from sao.engines import ChoiceRequest, Choices, Completion, Failure
from sao.engines.scripted import ScriptedEngine, read_answers
from sao.errors import ConfigError
from sao.method import run
from sao.pipeline.folder import reader
from sao.records import Drop, Judgment, Message
from sao.stages.by_model import CONTENT_FREE, SAMPLES_APART
from sao.stages.calibration import log_odds, sigmoid
from sao.stages.judging import OrderedPair, judge, ordered_pairs, reading_judge
from sao.stages.wordings import check_words, judge_templates
from support import planted
from support.checks import all_of
from support.errors import raises
from support.made_up import response, scripted_recipe
from support.run_files import records_of

WORDINGS = ["judge", "judge_checklist", "judge_reader", "judge_short"]


class Watched(ScriptedEngine):
    """An engine that gives log-odds by a rule on the text of the request, `window` requests at a time and
    these out of order, and notes what it is asked."""

    def __init__(self, odds: Callable[[str], float], window: int = 7, prob: float = 0.9) -> None:
        super().__init__()
        self.odds, self.window, self.prob = odds, window, prob
        self.asked: list[ChoiceRequest] = []

    def choice_logprobs(self, requests: Iterable[Any]) -> Iterator[Choices]:
        incoming, rng = iter(requests), random.Random(1)
        while batch := list(islice(incoming, self.window)):
            self.asked += batch
            rng.shuffle(batch)
            for request in batch:
                p = sigmoid(self.odds(request.messages[0].content))
                yield Choices(request.id, (math.log(p * self.prob), math.log((1 - p) * self.prob)))


def pairs_of(prompts: int, n: int = 2) -> list[OrderedPair]:
    groups = [(f"prompt{k}", f"question {k}", [response(i, f"{i + k}", k) for i in range(n)])
              for k in range(prompts)]  # fmt: skip
    return list(ordered_pairs(groups, 2, "key", n))


def judged(engine: Any, pairs: list[OrderedPair], **keys: Any) -> dict[str, Judgment]:
    config = JudgingConfig.model_validate(keys)
    return {j.id: j for j in all_of(Judgment, judge(iter(pairs), engine, config, set()))}


def worth(text: str) -> float:
    """Log-odds for the answer with the larger number, 0 for answers that are none."""
    both = read_answers((Message("user", text),))
    assert both is not None
    first, second = (float(answer) if answer.isdigit() else 0.0 for answer in both)
    return first - second


def first_slot(text: str) -> float:
    """The same with a bias for the first slot that depends on the wording and the prompt."""
    return worth(text) + text.count("request") + 0.5 * text.count("question 1\n")


# Templates


@pytest.mark.parametrize("choices", [("1", "2"), ("A", "B"), ("first", "second")])
@pytest.mark.parametrize("name", [*WORDINGS, "judge_reasoning"])
def test_the_words_of_a_verdict_stand_in_every_shipped_template(name: str, choices: tuple[str, str]) -> None:
    config = JudgingConfig(template=name, choices=choices)
    check_words(config)
    (text,) = judge_templates(config)
    for place, word in zip(("first", "second"), choices, strict=True):
        assert f"<answer_{word}>\n{{{place}}}\n</answer_{word}>" in text
    assert ("1" in text) == ("1" in choices)


def test_a_template_that_names_other_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("{prompt} A: {first} B: {second} A or B?")
    own = str(tmp_path / "t.txt")
    check_words(JudgingConfig(template=own, choices=("A", "B")))
    check_words(JudgingConfig(template="world/judge"))
    check_words(JudgingConfig(method="pointwise", choices_pointwise=("good", "bad")))
    for keys, key in (
        ({"template": own}, "judging.choices"),
        ({"template": "world/judge", "choices": ("A", "B")}, "judging.choices"),
        ({"wordings": ["judge", own]}, "judging.choices"),
        ({"method": "pointwise", "template_pointwise": "judge"}, "template field"),
    ):
        with raises(ConfigError, key=key):
            check_words(JudgingConfig.model_validate(keys))
    (tmp_path / "p.txt").write_text("{prompt} {answer} good or bad?")
    with raises(ConfigError, key="judging.choices_pointwise"):
        check_words(JudgingConfig(method="pointwise", template_pointwise=str(tmp_path / "p.txt")))
    with raises(ConfigError, key="judging.choices"):
        config = scripted_recipe(4, judging={"template": own})
        run(config, tmp_path / "run", until="pairs", engine=ScriptedEngine())
    assert not list((tmp_path / "run").rglob("records.jsonl"))


# Several wordings


def test_wordings_are_averaged() -> None:
    pairs = pairs_of(5)
    engine = Watched(first_slot)
    found = judged(engine, pairs, wordings=WORDINGS)
    assert len(engine.asked) == 4 * len(pairs)
    each = [judged(Watched(first_slot), pairs, template=name) for name in WORDINGS]
    for pair in pairs:
        odds = [log_odds(one[pair.id].p_first or 0.0) for one in each]
        assert len(set(odds)) > 1
        assert log_odds(found[pair.id].p_first or 0.0) == pytest.approx(sum(odds) / 4)
        assert found[pair.id].verdict_prob == pytest.approx(0.9)


def test_a_verdict_of_which_a_part_failed_is_a_drop() -> None:
    class Failing(Watched):
        def choice_logprobs(self, requests: Any) -> Iterator[Any]:
            for number, said in enumerate(super().choice_logprobs(requests)):
                yield Failure(said.id, "too busy") if number == 3 else said

    config = JudgingConfig(wordings=WORDINGS)
    found = list(judge(iter(pairs_of(3)), Failing(first_slot), config, set()))
    dropped = [one for one in found if isinstance(one, Drop)]
    assert (len(found), len(dropped), dropped[0].reason) == (6, 1, "too busy")


def test_what_waits_is_bounded_by_the_engines_window() -> None:
    taken = 0

    def endless() -> Iterator[OrderedPair]:
        nonlocal taken
        for pair in pairs_of(200, n=4):
            taken += 1
            yield pair

    config = JudgingConfig(wordings=WORDINGS, content_free=True)
    for number, _ in enumerate(judge(endless(), Watched(first_slot), config, set())):
        assert taken - number < 12


# Content-free answers


def test_the_lean_on_answers_without_content_is_subtracted() -> None:
    pairs = pairs_of(4, n=3)
    engine = Watched(first_slot)
    found = judged(engine, pairs, content_free=True, wordings=WORDINGS[:2])
    assert {j.verdict for j in judged(Watched(first_slot), pairs).values()} == {"first"}
    for pair in pairs:
        lean = float(pair.first.text) - float(pair.second.text)
        assert log_odds(found[pair.id].p_first or 0.0) == pytest.approx(lean)
    without = [request for request in engine.asked if "<answer_1>\nN/A\n" in request.messages[0].content]
    assert len(without) == 4 * 2  # once for each prompt and wording, in however many pairs and orders
    assert len(engine.asked) == 2 * len(pairs) + 4 * 2 * len(CONTENT_FREE)


# One answer alone


def test_each_answer_alone_is_asked_about_once() -> None:
    def odds(text: str) -> float:
        return float(text.split("<answer>\n")[1].split("\n")[0]) - 2.5

    pairs = pairs_of(6, n=4)
    for window in (1, 5, 1000):
        engine = Watched(odds, window)
        found = judged(engine, pairs, method="pointwise")
        assert Counter(request.id for request in engine.asked).most_common(1)[0][1] == 1
        assert len(engine.asked) == 6 * 4
        assert {request.choices for request in engine.asked} == {("Yes", "No")}
        for pair in pairs:
            lean = float(pair.first.text) - float(pair.second.text)
            assert found[pair.id].p_first == pytest.approx(sigmoid(lean))
            assert found[pair.id].verdict == ("first" if lean > 0 else "second")
    unlikely = judged(Watched(odds, prob=0.03), pairs, method="pointwise")
    assert {(j.verdict, round(j.verdict_prob or 0, 3)) for j in unlikely.values()} == {(None, 0.03)}


def test_pointwise_by_several_wordings_and_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("{prompt} <answer>\n{answer}\n</answer> {yes} or {no}?")

    def odds(text: str) -> float:
        return float(text.split("<answer>\n")[1].split("\n")[0]) * (3 if text.startswith("question") else 1)

    pairs, keys = pairs_of(3, n=3), {"wordings": ["judge_pointwise", str(tmp_path / "t.txt")]}
    found = judged(Watched(odds), pairs, method="pointwise", **keys)
    for pair in pairs:
        lean = float(pair.first.text) - float(pair.second.text)
        assert log_odds(found[pair.id].p_first or 0.0) == pytest.approx(2 * lean)
    config = JudgingConfig.model_validate({"method": "pointwise", **keys})
    done = {pair.id for pair in pairs[:5]}
    rest = all_of(Judgment, judge(iter(pairs), Watched(odds), config, done))
    assert {j.id: j for j in rest} == {pair.id: found[pair.id] for pair in pairs[5:]}


# Several samples


class Talking(ScriptedEngine):
    """Samples by seed, finished in another order."""

    def generate(self, requests: Iterable[Any]) -> Iterator[Completion]:
        for request in requests:
            for sample in reversed(request.samples):
                text = ("1 > 2", "2 > 1", "1 = 2", "hm")[sample.seed % 4]
                yield Completion(sample.id, text, None, "stop")


def test_several_samples_decide_by_majority() -> None:
    pairs = pairs_of(30)
    found = judged(Talking(), pairs, method="text", samples=5)
    assert {j.verdict for j in found.values()} == {"first", "second", "tie"}
    for judgment in found.values():
        texts = (judgment.text or "").split(SAMPLES_APART)
        assert len(texts) == 5
        a = texts.count("1 > 2") + 0.5 * texts.count("1 = 2")
        b = texts.count("2 > 1") + 0.5 * texts.count("1 = 2")
        assert judgment.p_first == pytest.approx((a + 0.5) / (a + b + 1))
        assert judgment.verdict_prob == pytest.approx((a + b) / 5)
    once = judged(Talking(), pairs, method="text")
    assert all((j.text or "") == (found[j.id].text or "").split(SAMPLES_APART)[0] for j in once.values())
    assert {(j.p_first, j.verdict_prob) for j in once.values()} == {(None, None)}


def test_samples_of_which_none_can_be_read_are_no_verdict() -> None:
    engine = ScriptedEngine(reply=lambda m, seed, s: "both are fine")
    (judgment,) = judged(engine, pairs_of(1)[:1], method="text", samples=3).values()
    assert (judgment.verdict, judgment.p_first, judgment.verdict_prob) == (None, None, 0.0)


# Recipes


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"method": "pointwise"}, "judging.method"),
        ({"wordings": WORDINGS}, "judging.wordings"),
        ({"content_free": True}, "judging.content_free"),
    ],
)
def test_an_engine_without_log_probabilities_is_refused(keys: dict[str, Any], key: str) -> None:
    with raises(ConfigError, key=key, match="log-probabilities"):
        judged(ScriptedEngine(has_logprobs=False), pairs_of(1), **keys)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"method": "text", "wordings": ["judge"]}, "log-odds"),
        ({"method": "pointwise", "content_free": True}, "no slot"),
        ({"method": "text", "content_free": True}, "no log-odds"),
        ({"samples": 3}, "method text"),
        ({"method": "text", "samples": 3, "temperature": 0}, "temperature"),
        ({"wordings": ["judge", "judge"]}, "twice"),
        ({"choices_pointwise": ["Yes", "Yes"]}, "both 'Yes'"),
        ({"method": "pointwise", "panel": [{}]}, "not pointwise"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], match: str) -> None:
    with raises(ConfigError, key="judging", match=match):
        make_config({"judging": keys})


def test_an_evaluation_is_judged_by_what_reads() -> None:
    pointwise = JudgingConfig(method="pointwise", orders="one", flipped=0.2)
    assert reading_judge(pointwise) == JudgingConfig(method="pointwise")
    control = JudgingConfig(method="longer", flipped=0.5)
    assert reading_judge(control) == JudgingConfig(method="logprob")


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "pointwise"},
        {"wordings": WORDINGS, "content_free": True},
        {"method": "text", "samples": 3},
        {"choices": ("A", "B")},
    ],
)
def test_whole_runs_by_each_way(keys: dict[str, Any], tmp_path: Path) -> None:
    def reply(messages: Any, seed: int, sampling: Any) -> str:
        both = read_answers(messages)
        if both is None:
            return planted.reply(messages, seed, sampling)
        better = planted.quality(both[0]) > planted.quality(both[1])
        return "1 > 2" if better == (seed % 10 > 0) else "2 > 1"  # wrong once in ten

    def choose(messages: Any, choices: Any) -> tuple[float, ...]:
        both = read_answers(messages)
        if both is not None:
            quality = [planted.quality(x) if x.startswith("quality") else 0.5 for x in both]
            odds = 8 * (quality[0] - quality[1]) + 1
        else:
            odds = 8 * planted.quality(messages[-1].content.split("<answer>\n")[1]) - 4
        return math.log(sigmoid(odds)), math.log(sigmoid(-odds))

    engine = ScriptedEngine(reply=reply, choose=choose)
    config = scripted_recipe(60, judging=keys, pairs={"min_p": 0.6})
    summary = run(config, tmp_path, until="pairs", engine=engine)
    assert summary.judge is not None
    assert summary.judge.unparseable == 0
    texts = {row["id"]: row["text"] for row in records_of(tmp_path, "responses")}
    made = records_of(tmp_path, "pairs")
    quality = [
        (planted.quality(texts[p["chosen_id"]]), planted.quality(texts[p["rejected_id"]])) for p in made
    ]
    assert len(made) > 20
    assert sum(a > b for a, b in quality) > 0.9 * len(made)
    found = audit(reader(config, tmp_path, engine))
    assert found.verdict
    assert found.kept.pairs == len(made)
    if keys.get("method") == "pointwise":
        assert found.judge.flip_rate.rate is None  # one answer's score knows no order
