"""Pairs out of verdicts: rules, guards, panels, and the reason of every drop."""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.config import PairsConfig
from sao.engines.scripted import ScriptedEngine
from sao.method import run
from sao.records import Drop, Judgment, PreferencePair, Prompt, Response, make_id
from sao.stages.calibration import Calibration, log_odds, sigmoid
from sao.stages.pairs import RULES, Panel, balance_lengths, build_pairs, repetition
from support import planted
from support.made_up import A, B, answers, said, scripted_recipe
from support.run_files import records_of


def judgment(first: Response, second: Response, p_first: float | None, verdict: str | None = "") -> Judgment:
    if verdict == "":
        assert p_first is not None
        verdict = "first" if p_first > 0.5 else "second"
    return Judgment(
        id=make_id(first.id, second.id),
        row=0,
        prompt_id="prompt0",
        first_id=first.id,
        second_id=second.id,
        judge="x",
        verdict=verdict,  # type: ignore[arg-type]
        p_first=p_first,
    )


ASKED = Prompt(id="prompt0", row=0, persona_id="x", text="q")


PLAIN = Panel(calibrations={}, weights={})


def pair_of(judgments: list[Judgment], **settings: object) -> PreferencePair | Drop:
    """The pair of two answers whose judge is taken at its word."""
    settings = {"min_p": 0.8, **settings}
    (only,) = build_pairs([(ASKED, [A, B], judgments)], PairsConfig(**settings), "key", 2, PLAIN)  # type: ignore[arg-type]
    return only


def test_agreeing_orders_make_a_pair_with_the_mean_log_odds() -> None:
    pair = pair_of([judgment(A, B, 0.9), judgment(B, A, 0.2)])
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.rejected_id) == (A.id, B.id)
    assert pair.margin == pytest.approx((math.log(9) + math.log(4)) / 2)
    assert pair.p_chosen == pytest.approx(1 / (1 + math.exp(-(math.log(9) + math.log(4)) / 2)))


@pytest.mark.parametrize(
    ("judgments", "reason"),
    [
        ([judgment(A, B, 0.9), judgment(B, A, 0.9)], "orders disagree"),
        ([judgment(A, B, 0.6), judgment(B, A, 0.4)], "p too small"),
        ([judgment(A, B, None, None), judgment(B, A, 0.1)], "unparseable verdict"),
        ([judgment(A, B, 0.5, "tie"), judgment(B, A, 0.5, "tie")], "tie"),
        ([], "not judged"),
    ],
)
def test_drops_carry_their_reason(judgments: list[Judgment], reason: str) -> None:
    pair = pair_of(judgments)
    assert isinstance(pair, Drop)
    assert pair.reason == reason


def test_a_dropped_answer_is_accounted_for() -> None:
    (only,) = build_pairs([(ASKED, [B], [])], PairsConfig(), "key", 2, PLAIN)
    assert isinstance(only, Drop)
    assert only.reason == "an answer was dropped"


def test_identical_answers_never_pair() -> None:
    for keep in ("all", "confident"):
        out = list(
            build_pairs([(ASKED, [A, replace(B, text="a")], [])], PairsConfig(keep=keep), "key", 2, PLAIN)
        )
        assert isinstance(out[0], Drop)
        assert out[0].reason == "identical answers"


@given(st.floats(0.5001, 1), st.floats(0.5001, 1))
def test_a_judge_that_always_says_first_yields_no_pair(p: float, q: float) -> None:
    assert isinstance(pair_of([judgment(A, B, p), judgment(B, A, q)]), Drop)


@given(st.floats(0, 1), st.floats(0, 1))
def test_naming_the_answers_the_other_way_changes_nothing(p: float, q: float) -> None:
    one = pair_of([judgment(A, B, p), judgment(B, A, q)], min_p=0.5)
    two = pair_of([judgment(B, A, q), judgment(A, B, p)], min_p=0.5)
    assert one == two


def test_the_papers_way_keeps_a_single_text_verdict() -> None:
    pair = pair_of([judgment(A, B, None, "second")], keep="all")
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.margin) == (B.id, None)
    unparseable = pair_of([judgment(A, B, None, None)], keep="all")
    assert isinstance(unparseable, Drop)
    tie = pair_of([judgment(A, B, None, "first"), judgment(B, A, None, "first")], keep="all")
    assert isinstance(tie, Drop)
    assert tie.reason == "tie"


TWO_ORDERS = Panel(calibrations={}, weights={}, orders=2)
ASKED = Prompt(id="prompt0", row=0, persona_id="x", text="q")


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
    found = list(build_pairs([(ASKED, group, verdicts)], config, "key", n, TWO_ORDERS))
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
    summary = run(scripted_recipe(60, **sections), tmp_path, until="pairs", engine=engine)
    judged = next(row for row in summary.funnel if row.stage == "judgments")
    assert judged.records == 60 * 6 * 2
    texts = {row["id"]: row["text"] for row in records_of(tmp_path, "responses")}
    pairs = records_of(tmp_path, "pairs")
    assert len(pairs) > 40
    right = [planted.quality(texts[p["chosen_id"]]) > planted.quality(texts[p["rejected_id"]]) for p in pairs]
    assert all(right)


def _soft(first: str, second: str) -> float:
    return sigmoid(8 * (planted.quality(first) - planted.quality(second)))


# Guards


def reason(texts: list[str], ps: tuple[float, float] = (0.95, 0.05), **settings: Any) -> str:
    a, b = answers(texts)
    (only,) = build_pairs(
        [(ASKED, [a, b], [said(a, b, ps[0]), said(b, a, ps[1])])], PairsConfig(**settings), "k", 2, TWO_ORDERS
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
    found = list(
        build_pairs(groups, config, "key", 2, TWO_ORDERS, balance_lengths(groups, config, "key", PLAIN))
    )
    assert [item.row for item in found] == list(range(len(texts)))
    kept = Counter(texts[item.row] for item in found if isinstance(item, PreferencePair))
    assert kept["aa", "b"] == kept["b", "aa"] == min(texts.count(("aa", "b")), texts.count(("b", "aa")))
    assert kept["a", "b"] == texts.count(("a", "b"))


def test_length_matching_in_a_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(reply=planted.reply, choose=planted.judge(planted.always_longer))
    summary = run(scripted_recipe(80, pairs={"length_matched": True}), tmp_path, until="pairs", engine=engine)
    assert summary.funnel[-1].reasons["length matching"] > 60  # nothing shorter is ever chosen
    assert summary.funnel[-1].records == 0


def test_a_judge_whose_orders_disagree_abstains() -> None:
    a, b = answers(["good", "bad"])
    unsure = [said(a, b, 0.9, judge="x"), said(b, a, 0.9, judge="x")]
    sure = [said(a, b, 0.9, judge="y"), said(b, a, 0.1, judge="y")]
    (only,) = build_pairs([(ASKED, [a, b], unsure + sure)], PairsConfig(min_p=0.8), "k", 2, TWO_ORDERS)
    assert isinstance(only, PreferencePair)
    assert only.margin == pytest.approx(log_odds(0.9))
    (none,) = build_pairs([(ASKED, [a, b], unsure)], PairsConfig(min_p=0.8), "k", 2, TWO_ORDERS)
    assert isinstance(none, Drop)
    weights = Panel(calibrations={}, weights={"y": 3.0, "z": 1.0}, orders=2)
    against = [said(a, b, 0.2, judge="z"), said(b, a, 0.8, judge="z")]
    (both,) = build_pairs([(ASKED, [a, b], sure + against)], PairsConfig(min_p=0.5), "k", 2, weights)
    assert isinstance(both, PreferencePair)
    assert both.margin == pytest.approx((3 * log_odds(0.9) - log_odds(0.8)) / 4)


def test_a_word_of_unknown_worth_beside_numbers_counts_as_three_to_one() -> None:
    """One order, so the words' worth is not known: two of them outvote a number of 0.6."""
    a, b = answers(["good", "bad"])
    verdicts = [said(a, b, 0.6, judge="x"), *(said(a, b, None, "second", judge=name) for name in "yz")]
    one = Panel(calibrations={}, weights={}, orders=1)
    (pair,) = build_pairs([(ASKED, [a, b], verdicts)], PairsConfig(min_p=0.5), "k", 2, one)
    assert isinstance(pair, PreferencePair)
    assert pair.chosen_id == b.id
    assert pair.margin == pytest.approx((2 * log_odds(0.75) - log_odds(0.6)) / 3)


def test_words_alone_rank_and_have_no_number() -> None:
    group = answers(["good", "fair", "bad"])
    verdicts = [said(group[i], group[j], None, "first") for i, j in combinations(range(3), 2)]
    one = Panel(calibrations={}, weights={}, orders=1)
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
        item.row: item
        for item in build_pairs([(ASKED, group, apart)], PairsConfig(min_p=0.5), "k", 4, TWO_ORDERS)
    }
    assert {row for row, item in found.items() if isinstance(item, PreferencePair)} == {0, 5}
    assert {item.reason for item in found.values() if isinstance(item, Drop)} == {"never compared"}
    ring = [said(group[i], group[(i + 1) % 3], 0.8) for i in range(3)]
    circle = list(build_pairs([(ASKED, group[:3], ring)], PairsConfig(keep="all"), "k", 3, TWO_ORDERS))
    assert {item.reason for item in circle if isinstance(item, Drop)} == {"tie"}
    assert len(circle) == 3


def test_with_keep_all_orders_that_disagree_are_decided_by_the_sum_of_their_log_odds() -> None:
    """Both orders name the first slot, surer of it where a stands there: the bias cancels, and a is left."""
    slots = [judgment(A, B, 0.9), judgment(B, A, 0.6)]
    pair = pair_of(slots, keep="all")
    assert isinstance(pair, PreferencePair)
    assert pair.chosen_id == A.id
    assert pair.margin == pytest.approx((math.log(9) - math.log(1.5)) / 2)
    dropped = pair_of(slots)
    assert isinstance(dropped, Drop)
    assert dropped.reason == "orders disagree"
    # A calibration takes the same bias from both orders: the margin is its own, over the temperature.
    jury = Panel(calibrations={"x": Calibration(bias=1.3, temperature=2.0)}, weights={}, orders=2)
    (calibrated,) = build_pairs([(ASKED, [A, B], slots)], PairsConfig(keep="all"), "key", 2, jury)
    assert isinstance(calibrated, PreferencePair)
    assert calibrated.margin == pytest.approx((math.log(9) - math.log(1.5)) / 4)
