"""Calibration and ranks against hand-worked and simulated truth; schedules, pair rules, guards, panels;
verdict texts."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.config import Config, JudgingConfig, PairsConfig, make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DropError
from sao.method import run
from sao.records import Drop, Judgment, PreferencePair, Prompt, Response, make_id
from sao.stages.calibration import Calibration, Calibrator, bradley_terry, connected, log_odds, sigmoid
from sao.stages.judging import compared_pairs, judge, ordered_pairs, read_ranking
from sao.stages.pairs import RULES, Jury, balance_lengths, build_pairs, repetition
from sao.store.files import read_jsonl
from support import planted
from support.run_files import records_of

PLAIN = Jury(calibrations={}, weights={}, orders=2)
ASKED = Prompt(id="prompt0", row=0, persona_id="x", text="q")


def answers(texts: list[str]) -> list[Response]:
    return [
        Response(
            id=make_id("r", i),
            row=i,
            prompt_id="prompt0",
            index=i,
            text=text,
            token_ids=None,
            finish_reason="stop",
        )
        for i, text in enumerate(texts)
    ]


def said(
    first: Response, second: Response, p: float | None, verdict: str | None = None, judge: str = "self"
) -> Judgment:
    word: Any = verdict if p is None else "first" if p > 0.5 else "second" if p < 0.5 else "tie"
    return Judgment(
        id=make_id(judge, first.id, second.id),
        row=0,
        prompt_id="prompt0",
        first_id=first.id,
        second_id=second.id,
        judge=judge,
        verdict=word,
        p_first=p,
    )


# Calibration


def test_calibration_by_hand() -> None:
    """Log-odds for the first slot of 3 and −1, then 1 and −3: a bias of 0 each; shifted by 0.7."""
    a, b = answers(["a", "b"])
    seen = Calibrator()
    for x, y in ((3.0, -1.0), (1.0, -3.0), (2.0, -2.0)):
        seen.see([said(a, b, sigmoid(x + 0.7)), said(b, a, sigmoid(y + 0.7))])
    found = seen.calibration()
    assert found.bias == pytest.approx(0.7)
    assert (found.agreement, found.pairs) == (1.0, 3)
    assert found.temperature == pytest.approx(1.0)  # never surer than it says
    assert found.first(said(a, b, sigmoid(2.7))) == pytest.approx(2.0)
    assert found.first(said(a, b, None, None)) is None


def words(skill: float, bias: float, n: int = 4000) -> Calibration:
    """The calibration of a judge of words with that skill and slot bias (nats), its two orders erring
    alone."""
    rng, seen = random.Random(1), Calibrator()
    a, b = answers(["a", "b"])  # a is the better one
    for _ in range(n):
        one = "first" if rng.random() < sigmoid(skill + bias) else "second"
        two = "second" if rng.random() < sigmoid(skill - bias) else "first"
        seen.see([said(a, b, None, one), said(b, a, None, two)])
    return seen.calibration()


@pytest.mark.parametrize(("skill", "bias"), [(1.5, 0.0), (1.5, 1.0), (2.5, -2.0), (0.5, 0.3)])
def test_skill_and_slot_bias_of_a_judge_of_words_are_recovered(skill: float, bias: float) -> None:
    found = words(skill, bias)
    assert found.bias == pytest.approx(bias, abs=0.2)  # of 4,000 pairs few go to the slot that is disliked
    assert found.skill == pytest.approx(skill, abs=0.2)


def test_two_words_that_agree_count_twice_and_two_for_one_slot_not_at_all() -> None:
    a, b = answers(["a", "b"])
    known = Calibration(bias=1.0, skill=1.5)
    mine = [known.first(said(a, b, None, "first")) or 0.0, -(known.first(said(b, a, None, "second")) or 0.0)]
    assert sum(mine) / 2 == pytest.approx(2 * 1.5)
    slot = [known.first(said(a, b, None, "first")) or 0.0, -(known.first(said(b, a, None, "first")) or 0.0)]
    assert sum(slot) / 2 == pytest.approx(0.0)
    assert known.first(said(a, b, None, "tie")) == 0.0
    assert Calibrator().calibration().skill is None
    # What an agreeing pair is worth is what is true of it: right in both orders against wrong in both.
    right, wrong = sigmoid(2.5) * sigmoid(0.5), sigmoid(-2.5) * sigmoid(-0.5)
    assert sigmoid(3.0) == pytest.approx(right / (right + wrong))


def test_in_one_order_the_mean_is_the_bias() -> None:
    a, b = answers(["a", "b"])
    seen = Calibrator()
    for x in [2.0, -2.0, 1.0, -1.0] * 100:
        seen.see([said(a, b, sigmoid(x - 0.3))])
    assert seen.calibration().bias == pytest.approx(-0.3)
    chance = Calibrator()
    for x in (2.0, -1.0, 1.5, -2.0):
        chance.see([said(a, b, sigmoid(x))])
    assert chance.calibration().bias == 0.0  # no more than chance


@given(st.floats(-40, 40), st.floats(0.5, 20), st.floats(-3, 3))
def test_swapping_the_answers_swaps_calibrated_log_odds(x: float, temperature: float, bias: float) -> None:
    a, b = answers(["a", "b"])
    known = Calibration(bias=bias, temperature=temperature)
    one, two = known.first(said(a, b, sigmoid(x))), known.first(said(b, a, sigmoid(2 * bias - x)))
    assert one is not None
    assert two is not None
    if abs(x) < 25 and abs(2 * bias - x) < 25:
        assert one == pytest.approx(-two, abs=1e-3)


# Bradley–Terry


def test_two_answers_by_hand() -> None:
    """Without a prior to speak of, 3 wins in 4 are log 3."""
    found = bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), prior_sd=1e4)
    assert found.margin(0, 1) == pytest.approx(math.log(3), abs=1e-4)
    assert found.sd(0, 1) == pytest.approx(math.sqrt(1 / (4 * 0.75 * 0.25)), rel=1e-3)


def test_strengths_are_recovered_and_their_intervals_cover() -> None:
    rng, truth = np.random.default_rng(0), np.array([1.2, 0.4, -0.3, -1.3])
    inside = total = 0
    for _ in range(100):
        wins = np.zeros((4, 4))
        for i, j in combinations(range(4), 2):
            k = rng.binomial(30, 1 / (1 + np.exp(truth[j] - truth[i])))
            wins[i, j], wins[j, i] = k, 30 - k
        found = bradley_terry(wins)
        for i, j in combinations(range(4), 2):
            inside += abs(found.margin(i, j) - (truth[i] - truth[j])) < 1.96 * found.sd(i, j)
            total += 1
    assert 0.92 < inside / total < 0.98


@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_strengths_do_not_hang_on_the_order_and_unbeaten_ones_stay_finite(n: int, rng: random.Random) -> None:
    wins = np.array([[0.0 if i == j else rng.choice([0.0, 1.0, 2.0]) for j in range(n)] for i in range(n)])
    found = bradley_terry(wins)
    assert np.isfinite(found.values).all()
    order = rng.sample(range(n), n)
    mixed = bradley_terry(wins[np.ix_(order, order)])
    assert np.allclose(mixed.values, found.values[order], atol=1e-6)
    back = bradley_terry(wins.T)
    assert np.allclose(back.values, -found.values, atol=1e-6)


# The schedule


@pytest.mark.parametrize(
    ("n", "comparisons_per_answer"), [(4, 2), (5, 2), (6, 3), (6, 4), (8, 2), (8, 5), (9, 4)]
)
def test_a_budget_compares_each_answer_as_often_and_leaves_none_apart(
    n: int, comparisons_per_answer: int
) -> None:
    pairs = compared_pairs(n, comparisons_per_answer)
    met = Counter(i for pair in pairs for i in pair)
    assert set(met.values()) == {comparisons_per_answer}
    reached, edge = {0}, [0]
    while edge:
        here = edge.pop()
        for pair in pairs:
            if here in pair and (other := sum(pair) - here) not in reached:
                reached.add(other)
                edge.append(other)
    assert reached == set(range(n))


@settings(max_examples=80)
@given(st.integers(3, 8), st.integers(2, 6), st.randoms(use_true_random=False))
def test_a_budget_holds_together_although_answers_are_missing_or_alike(
    n: int, comparisons_per_answer: int, rng: random.Random
) -> None:
    there = [r for r in answers([rng.choice("abcdefgh") for _ in range(n)]) if rng.random() < 0.8]
    found = list(ordered_pairs([("prompt0", "q", there)], 1, "key", n, comparisons_per_answer))
    texts = sorted({r.text for r in there})
    place = {text: k for k, text in enumerate(texts)}
    met = np.zeros((len(texts), len(texts)))
    for pair in found:
        met[place[pair.first.text], place[pair.second.text]] = 1
    assert len(set(connected(met))) <= 1
    assert len({pair.row for pair in found}) == len(found)


def test_without_a_budget_all_meet() -> None:
    for n in range(2, 7):
        assert compared_pairs(n, None) == set(combinations(range(n), 2)) == compared_pairs(n, n - 1)
    met = Counter(i for pair in compared_pairs(5, 3) for i in pair)
    assert set(met.values()) <= {3, 4}


def test_a_text_that_stands_there_twice_is_judged_once() -> None:
    found = list(ordered_pairs([("prompt0", "q", answers(["a", "b", "a", "c"]))], 2, "key", 4))
    assert sorted({(d.first.text, d.second.text) for d in found}) == sorted(permutations("abc", 2))
    assert len(found) == 6
    assert len({d.row for d in found}) == 6


# Rules


SCORES = {0: 1.0, 1: 3.0, 2: -2.0, 3: 0.5, 4: 2.5}


def test_rules_by_hand() -> None:
    draw = random.Random(0)
    assert RULES["first_last"](SCORES, 0.8, draw) == [(1, 2)]
    assert RULES["adjacent"](SCORES, 0.8, draw) == [(1, 4), (4, 0), (0, 3), (3, 2)]
    assert RULES["all"](SCORES, 0.8, draw) == [
        (1, 0),
        (0, 2),
        (0, 3),
        (4, 0),
        (1, 2),
        (1, 3),
        (1, 4),
        (3, 2),
        (4, 2),
        (4, 3),
    ]
    # σ(3 − 1) = 0.88 is the least gap above 0.8; σ(3 − 0.5) = 0.92 the least above 0.9.
    assert RULES["quality_aware"](SCORES, 0.8, draw) == [(1, 0)]
    assert RULES["quality_aware"](SCORES, 0.9, draw) == [(1, 3)]
    assert RULES["quality_aware"](SCORES, 0.999, draw) == []
    # μ = 1, σ = 1.79: μ − 2σ = −2.6, nearest −2; with an outlier at −20, μ − 2σ = −19.2 is nearest to it,
    # too.
    assert RULES["mu_2sigma"](SCORES, 0.8, draw) == [(1, 2)]
    many = dict.fromkeys(range(1, 9), 0.0) | {0: 1.0, 9: -4.0, 10: -30.0}
    assert RULES["mu_2sigma"](many, 0.8, draw) == [(0, 10)]
    spread = dict(enumerate([2.0, 1.0, 0.0, -1.0, -2.0, -2.5, -9.0]))
    assert RULES["mu_2sigma"](spread, 0.8, draw) == [(0, 6)]
    picks = Counter(RULES["best_random"](SCORES, 0.8, random.Random(k))[0] for k in range(400))
    assert {best for best, _ in picks} == {1}
    assert min(picks.values()) > 70
    assert len(picks) == 4


@settings(max_examples=60)
@given(st.sampled_from(sorted(RULES)), st.integers(2, 5), st.randoms(use_true_random=False))
def test_every_rule_prefers_the_better_one_and_all_pairs_are_accounted_for(
    rule: str, n: int, rng: random.Random
) -> None:
    group = answers([f"answer {i}" for i in range(n)])
    worth = rng.sample(range(100), n)
    verdicts = []
    config = PairsConfig(rule=rule, min_p=0.5)  # type: ignore[arg-type]
    for i, j in permutations(range(n), 2):
        gap = 0.1 * (worth[i] - worth[j])
        verdicts.append(said(group[i], group[j], sigmoid(gap)))
    found = list(build_pairs([(ASKED, group, verdicts)], config, "key", n, PLAIN))
    assert len(found) == n * (n - 1) // 2
    assert [item.row for item in found] == list(range(len(found)))
    by_id = {r.id: worth[r.index] for r in group}
    kept = [item for item in found if isinstance(item, PreferencePair)]
    assert kept
    for pair in kept:
        assert by_id[pair.chosen_id] > by_id[pair.rejected_id]
        assert pair.p_chosen == pytest.approx(sigmoid(pair.margin or 0.0))
        assert (pair.margin_sd is None) == (n == 2)
    if rule == "first_last":
        assert [(by_id[p.chosen_id], by_id[p.rejected_id]) for p in kept] == [(max(worth), min(worth))]
    dropped = Counter(item.reason for item in found if isinstance(item, Drop))
    assert set(dropped) <= {f"not chosen by rule {rule}"}


def test_a_budgeted_run_ranks_what_never_met(tmp_path: Path) -> None:
    """Six answers, each compared with two others: the best and the worst are found although they seldom
    met."""
    engine = ScriptedEngine(reply=planted.reply, choose=planted.judge(_soft))
    sections = {
        "responses": {"n": 6},
        "judging": {"comparisons_per_answer": 2},
        "pairs": {"rule": "first_last", "min_p": 0.7},
    }
    summary = run(_recipe(60, **sections), tmp_path, until="pairs", engine=engine)
    judged = next(row for row in summary.funnel if row.stage == "judgments")
    assert judged.records == 60 * 6 * 2
    texts = {row["id"]: row["text"] for row in records_of(tmp_path, "responses")}
    pairs = records_of(tmp_path, "pairs")
    assert len(pairs) > 40
    right = [planted.quality(texts[p["chosen_id"]]) > planted.quality(texts[p["rejected_id"]]) for p in pairs]
    assert all(right)


def _soft(first: str, second: str) -> float:
    return sigmoid(8 * (planted.quality(first) - planted.quality(second)))


def _recipe(n: int, **sections: Any) -> Config:
    people = {"source": "none", "n": n, "held_out": 0}
    return make_config({"engine": {"name": "scripted"}, "personas": people, **sections})


# Guards


def reason(texts: list[str], ps: tuple[float, float] = (0.95, 0.05), **settings: Any) -> str:
    a, b = answers(texts)
    (only,) = build_pairs(
        [(ASKED, [a, b], [said(a, b, ps[0]), said(b, a, ps[1])])], PairsConfig(**settings), "k", 2, PLAIN
    )
    return only.reason if isinstance(only, Drop) else ""


def test_guards_drop_with_their_reasons() -> None:
    assert reason(["good", "bad"]) == ""
    assert reason(["same", "same"]) == "identical answers"
    assert reason(["good", "no no no no no no no no no no"]) == "an answer repeats itself"
    assert reason(["good", "no no no no no no no no no no"], max_repetition=1.0) == ""
    assert reason(["good", "x" * 9], max_length_ratio=2.0) == "lengths too unlike"
    assert reason(["good", "x" * 8], max_length_ratio=2.0) == ""
    assert reason(["good", "bad"], (0.6, 0.4), min_p=0.7) == "p too small"
    assert reason(["good", "bad"], (0.6, 0.4), keep="all") == ""
    assert reason(["good", "bad"], (0.95, 0.95)) == "orders disagree"


def test_repetition_by_hand() -> None:
    assert repetition("a b c") == 0.0
    assert repetition("a b c d e") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("no " * 10) == pytest.approx(1 - 1 / 7)


@given(st.lists(st.sampled_from([("aa", "b"), ("b", "aa"), ("a", "b")]), max_size=40))
def test_length_matching_leaves_as_many_longer_as_shorter_ones(texts: list[tuple[str, str]]) -> None:
    groups = []
    for row, pair in enumerate(texts):
        a, b = (replace(r, id=make_id(row, r.index)) for r in answers(list(pair)))
        groups.append(
            (replace(ASKED, row=2 * row, id=make_id(row)), [a, b], [said(a, b, 0.95), said(b, a, 0.05)])
        )
    config = PairsConfig(length_matched=True)
    found = list(build_pairs(groups, config, "key", 2, PLAIN, balance_lengths(groups, config, "key", PLAIN)))
    assert [item.row for item in found] == list(range(len(texts)))
    kept = Counter(texts[item.row] for item in found if isinstance(item, PreferencePair))
    assert kept["aa", "b"] == kept["b", "aa"] == min(texts.count(("aa", "b")), texts.count(("b", "aa")))
    assert kept["a", "b"] == texts.count(("a", "b"))


def test_length_matching_in_a_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(reply=planted.reply, choose=planted.judge(planted.always_longer))
    summary = run(_recipe(80, pairs={"length_matched": True}), tmp_path, until="pairs", engine=engine)
    assert summary.funnel[-1].reasons["length matching"] > 60  # nothing shorter is ever chosen
    assert summary.funnel[-1].records == 0


# Panels


def test_a_panel_votes_and_each_judges_rows_are_kept(tmp_path: Path) -> None:
    """Three judges that are right three times in four, each by itself: two of three are right in 84 %."""

    class Bench(ScriptedEngine):
        def choice_logprobs(self, requests: Any) -> Any:
            for request in requests:
                text = request.messages[-1].content
                who = "b" if text.startswith("B") else "c" if text.startswith("C") else "a"
                self.choose = planted.judge(lambda first, second, who=who: _opinion(who, first, second))  # type: ignore[misc]
                yield from super().choice_logprobs(iter([request]))

    template = "<answer_1>\n{first}\n</answer_1> {prompt} <answer_2>\n{second}\n</answer_2>"
    for name in "BC":
        (tmp_path / f"{name}.txt").write_text(name + template)
    panel = [{"template": str(tmp_path / f"{name}.txt")} for name in "BC"]
    engine = Bench(reply=planted.reply)
    config = _recipe(500, judging={"panel": panel}, pairs={"min_p": 0.5})
    summary = run(config, tmp_path / "r", until="pairs", engine=engine)
    alone = run(_recipe(500, pairs={"min_p": 0.5}), tmp_path / "r", until="pairs", engine=engine)
    stages = list((tmp_path / "r/round-1").glob("judgments-*"))
    assert len(stages) == 3  # the first judge's verdicts serve both
    names = {row["judge"] for path in stages for row in read_jsonl(path / "records.jsonl")}
    assert len(names) == 3
    assert [row.stage for row in summary.funnel].count("judgments") == 3
    texts = {row["id"]: row["text"] for row in records_of(tmp_path / "r", "responses")}

    def right(summary: dict[str, Any]) -> float:
        pairs = list(read_jsonl(Path(summary.paths["pairs"])))
        assert len(pairs) > 450
        return sum(
            planted.quality(texts[p["chosen_id"]]) > planted.quality(texts[p["rejected_id"]]) for p in pairs
        ) / len(pairs)

    assert right(alone) == pytest.approx(0.75, abs=0.06)
    assert right(summary) == pytest.approx(0.75**3 + 3 * 0.75**2 * 0.25, abs=0.05)


def _opinion(who: str, first: str, second: str) -> float:
    pair = sorted((first, second))
    right = planted.unit(who, *pair) < 0.75
    return 0.75 if (planted.quality(first) > planted.quality(second)) == right else 0.25


def test_a_judge_whose_orders_disagree_abstains() -> None:
    a, b = answers(["good", "bad"])
    unsure = [said(a, b, 0.9, judge="x"), said(b, a, 0.9, judge="x")]
    sure = [said(a, b, 0.9, judge="y"), said(b, a, 0.1, judge="y")]
    (only,) = build_pairs([(ASKED, [a, b], unsure + sure)], PairsConfig(min_p=0.8), "k", 2, PLAIN)
    assert isinstance(only, PreferencePair)
    assert only.margin == pytest.approx(log_odds(0.9))
    (none,) = build_pairs([(ASKED, [a, b], unsure)], PairsConfig(min_p=0.8), "k", 2, PLAIN)
    assert isinstance(none, Drop)
    weights = Jury(calibrations={}, weights={"y": 3.0, "z": 1.0}, orders=2)
    against = [said(a, b, 0.2, judge="z"), said(b, a, 0.8, judge="z")]
    (both,) = build_pairs([(ASKED, [a, b], sure + against)], PairsConfig(min_p=0.5), "k", 2, weights)
    assert isinstance(both, PreferencePair)
    assert both.margin == pytest.approx((3 * log_odds(0.9) - log_odds(0.8)) / 4)


def test_a_word_of_unknown_worth_beside_numbers_counts_as_three_to_one() -> None:
    """One order, so the words' worth is not known: two of them outvote a number of 0.6."""
    a, b = answers(["good", "bad"])
    verdicts = [said(a, b, 0.6, judge="x"), *(said(a, b, None, "second", judge=name) for name in "yz")]
    one = Jury(calibrations={}, weights={}, orders=1)
    (pair,) = build_pairs([(ASKED, [a, b], verdicts)], PairsConfig(min_p=0.5), "k", 2, one)
    assert isinstance(pair, PreferencePair)
    assert pair.chosen_id == b.id
    assert pair.margin == pytest.approx((2 * log_odds(0.75) - log_odds(0.6)) / 3)


def test_words_alone_rank_and_have_no_number() -> None:
    group = answers(["good", "fair", "bad"])
    verdicts = [said(group[i], group[j], None, "first") for i, j in combinations(range(3), 2)]
    one = Jury(calibrations={}, weights={}, orders=1)
    found = list(build_pairs([(ASKED, group, verdicts)], PairsConfig(), "k", 3, one))
    assert [(p.chosen_id, p.margin, p.p_chosen) for p in found if isinstance(p, PreferencePair)] == [
        (group[i].id, None, None) for i, _ in combinations(range(3), 2)
    ]


def test_answers_that_were_never_compared_make_no_pair_and_a_circle_is_a_tie() -> None:
    group = answers(["a", "b", "c", "d"])
    apart = [
        said(group[i], group[j], p) for i, j, p in ((0, 1, 0.99), (1, 0, 0.01), (2, 3, 0.9), (3, 2, 0.1))
    ]
    found = {
        item.row: item for item in build_pairs([(ASKED, group, apart)], PairsConfig(min_p=0.5), "k", 4, PLAIN)
    }
    assert {row for row, item in found.items() if isinstance(item, PreferencePair)} == {0, 5}
    assert {item.reason for item in found.values() if isinstance(item, Drop)} == {"never compared"}
    ring = [said(group[i], group[(i + 1) % 3], 0.8) for i in range(3)]
    circle = list(build_pairs([(ASKED, group[:3], ring)], PairsConfig(keep="all"), "k", 3, PLAIN))
    assert {item.reason for item in circle if isinstance(item, Drop)} == {"tie"}
    assert len(circle) == 3


def test_verdicts_that_cannot_be_read_end_the_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(choose=lambda m, c: (-9.0, -9.0))
    for personas, lost in ((20, "32 of the first 32"), (10, "20 of 20")):
        with pytest.raises(DropError, match=rf"(?s)judgments: {lost} .*unreadable verdict.*judging\.prefill"):
            run(_recipe(personas), tmp_path / str(personas), until="pairs", engine=engine)


def test_bad_panels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two judges are the same"):
        run(_recipe(5, judging={"panel": [{}]}), tmp_path, until="pairs", engine=ScriptedEngine())
    for bad, message in (
        ({"method": "random", "panel": [{}]}, "not random"),
        ({"reasoning": True}, "method text"),
        ({"method": "reward"}, "needs the reward model"),
        ({"choices": ["1", "1 "]}, "both '1'"),
        ({"method": "text", "reasoning": True}, "judge_reasoning"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_config({"judging": bad})


# Controls


@pytest.mark.parametrize(("method", "winner"), [("longer", "lengthy"), ("shorter", "brief"), ("first", None)])
def test_controls_by_hand(method: str, winner: str | None) -> None:
    group = [("prompt0", "q", answers(["brief", "lengthy"]))]
    found = list(
        judge(ordered_pairs(group, 2, "k", 2), None, JudgingConfig(method=method), set(), name=method)
    )  # type: ignore[arg-type]
    assert {j.judge for j in found} == {method}
    texts = {r.id: r.text for r in group[0][2]}
    won = {texts[j.winner_id] for j in found if j.winner_id}
    assert won == ({winner} if winner else {"brief", "lengthy"})


def test_a_scorer_judges_by_the_difference_of_its_scores() -> None:
    class Lengths:
        name = "lengths"

        def __init__(self) -> None:
            self.seen: list[tuple[str, str]] = []

        def score(self, texts: Any) -> list[float]:
            self.seen.extend(texts)
            return [math.nan if answer == "broken" else 0.5 * len(answer) for _, answer in texts]

    scorer, config = Lengths(), JudgingConfig(method="reward", engine={"model": "x"})  # type: ignore[arg-type]
    group = [("prompt0", "q", answers(["aa", "bbbb", "broken"]))]
    found = {
        (j.first_id, j.second_id): j
        for j in judge(ordered_pairs(group, 2, "k", 3), None, config, set(), scorer=scorer, name="rm")
    }
    a, b, c = (r.id for r in group[0][2])
    assert found[a, b].p_first == pytest.approx(sigmoid(-1.0))
    assert (found[a, b].verdict, found[b, a].verdict, found[a, c].verdict) == ("second", "first", None)
    assert len(scorer.seen) == 3  # each text once


# Verdict texts


def reference(text: str, reasoning: bool) -> str | None:
    """The grammar once more, without regular expressions."""

    def line(words: str) -> str | None:
        plain = words.strip().replace(" ", "").replace("\t", "")
        return {"1>2": "first", "2>1": "second", "1=2": "tie", "2=1": "tie"}.get(plain)

    if not reasoning:
        return (
            line(text)
            if not any(c in text.strip() for c in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
            else None
        )
    lines = [found for found in text.splitlines() if found.strip()]
    if not lines or line(lines[-1]) is None:
        return None
    return line(lines[-1]) if {line(x) for x in lines} - {None} == {line(lines[-1])} else None


REAL = [
    "1 > 2", "2 > 1", " 2>1\n", "1 = 2", "Answer 1 is better.\n1 > 2", "1 > 2\n\nHowever: 2 > 1", "2 > 1.",
    "**1 > 2**",
    "Ranking: 1 > 2", "1 ≻ 2", "1 > 2 > 1", "1 >= 2", "1 &gt; 2", "I think both are fine.\n1 = 2", "１ > ２",
    "1>2 because 2 < 1",
]  # fmt: skip


def test_of_100_000_fuzzed_texts_none_is_guessed() -> None:
    rng = random.Random(0)
    alphabet = "12 >=<\n\t.:*\r\u00a0\u2028abcANSWERanswer３0-"
    readable = 0
    for _ in range(100_000):
        text = list(rng.choice(REAL))
        for _ in range(rng.randint(0, 4)):
            place = rng.randint(0, len(text))
            match rng.randint(0, 3):
                case 0:
                    text.insert(place, rng.choice(alphabet))
                case 1 if text:
                    del text[place - 1]
                case 2 if text:
                    text[place - 1] = rng.choice(alphabet)
                case _:
                    text[place:place] = rng.choice(REAL)
        whole = "".join(text)
        for reasoning in (False, True):
            assert read_ranking(whole, ("1", "2"), reasoning) == reference(whole, reasoning), (
                whole,
                reasoning,
            )
        readable += read_ranking(whole, ("1", "2")) is not None
    assert 5_000 < readable < 60_000  # both sides of the grammar are visited


@settings(max_examples=500)
@given(st.text(alphabet=st.sampled_from("12>= \n\tx"), max_size=14), st.booleans())
def test_short_texts_are_read_by_the_grammar_alone(text: str, reasoning: bool) -> None:
    assert read_ranking(text, ("1", "2"), reasoning) == reference(text, reasoning)


@given(st.sampled_from(REAL), st.booleans())
def test_swapping_the_choices_swaps_the_verdict(text: str, reasoning: bool) -> None:
    swapped = {"first": "second", "second": "first", "tie": "tie", None: None}
    assert read_ranking(text, ("2", "1"), reasoning) == swapped[read_ranking(text, ("1", "2"), reasoning)]


def test_a_verdict_after_reasons_goes_through_a_run(tmp_path: Path) -> None:
    def reply(messages: Any, seed: int, sampling: Any) -> str:
        from sao.engines.scripted import read_answers

        pair = read_answers(messages)
        if pair is None:
            return planted.reply(messages, seed, sampling)
        if planted.unit(*pair) < 0.1:
            return "Both have merits. 1 > 2"  # no line of its own
        better = planted.quality(pair[0]) > planted.quality(pair[1])
        return f"The first says {pair[0][:12]}, the second less.\n\n{'1 > 2' if better else '2 > 1'}"

    config = _recipe(
        80, judging={"method": "text", "reasoning": True, "template": "judge_reasoning", "max_tokens": 300}
    )
    summary = run(config, tmp_path, until="pairs", engine=ScriptedEngine(reply=reply))
    assert 4 < summary.judge.unreadable < 40
    kept = list(read_jsonl(Path(summary.paths["pairs"])))
    assert len(kept) > 50
    assert len({round(pair["p_chosen"], 9) for pair in kept}) == 1  # twice its skill
    assert kept[0]["p_chosen"] > 0.95


# A reward model


def reward_model(folder: Path, labels: int = 1, template: bool = True) -> str:
    """A tiny random sequence classifier with a chat template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from support import tiny_models

    base = tiny_models.llama(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    settings = {**tiny_models.SMALL, "max_position_embeddings": 512}
    config = LlamaConfig(
        **settings, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=labels
    )
    LlamaForSequenceClassification(config).save_pretrained(folder / "rm")
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "rm")
    return str(folder / "rm")


@pytest.mark.parametrize("template", [True, False])
def test_a_reward_model_scores_alone_as_in_a_batch(tmp_path: Path, template: bool) -> None:
    from sao.config import EngineConfig
    from sao.engines.reward import RewardModel

    model = RewardModel(reward_model(tmp_path, template=template), EngineConfig(threads=1))
    texts = [("Name a tool.", "Hello " * k) for k in (1, 7, 20, 3)] + [("Name a tool.", "Hello " * 600)]
    together = model.score(texts)
    assert math.isnan(together[-1])
    assert len(set(together[:4])) == 4
    for text, value in zip(texts[:4], together[:4], strict=True):
        assert model.score([text])[0] == pytest.approx(value, abs=1e-4)
    model.close()


def test_a_run_judged_by_a_reward_model(tmp_path: Path) -> None:
    rm = reward_model(tmp_path)
    judging = {"method": "reward", "engine": {"model": rm, "threads": 1}}
    engine = ScriptedEngine(reply=planted.reply)
    config = _recipe(12, judging=judging, pairs={"min_p": 0.5})
    summary = run(config, tmp_path / "r", until="pairs", engine=engine)
    rows = records_of(tmp_path / "r", "judgments")
    assert {row["judge"] for row in rows} == {rm}
    assert summary.judge.flip_rate == 0.0
    assert summary.kept.share > 0.9


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    from sao.config import EngineConfig
    from sao.engines.reward import RewardModel
    from sao.errors import ModelError

    with pytest.raises(ModelError, match="scores 3 classes"):
        RewardModel(reward_model(tmp_path / "a", labels=3), EngineConfig())
    reward_model(tmp_path / "b")
    with pytest.raises(ModelError, match=r"weight score\.weight is missing"):
        RewardModel(str(tmp_path / "b/base"), EngineConfig())
