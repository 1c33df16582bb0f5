"""Judging: what the judge is asked, verdicts read out of numbers and words, the schedule, panels."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.config import JudgingConfig, make_config
from sao.engines import Choices, Completion
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DropError
from sao.method import run
from sao.records import Drop, Judgment, Response
from sao.results.summary import Summary
from sao.stages.calibration import connected, sigmoid
from sao.stages.judging import OrderedPair, compared_pairs, judge, ordered_pairs, read_logprobs, read_ranking
from sao.store.files import read_jsonl
from support import planted
from support.checks import all_of, known
from support.errors import raises
from support.made_up import answers, response, scripted_recipe
from support.run_files import records_of


class FairJudge(ScriptedEngine):
    """Prefers the answer with the greater number in it, wherever it stands."""

    def choice_logprobs(self, requests: Iterable[Any]) -> Iterator[Choices]:
        for request in requests:
            words = [float(w) for w in request.messages[0].content.split() if w.replace(".", "").isdigit()]
            p = 1 / (1 + math.exp(words[1] - words[0]))
            yield Choices(request.id, (math.log(p), math.log1p(-p)))


@pytest.fixture
def numbers(tmp_path: Path) -> JudgingConfig:
    (tmp_path / "judge.txt").write_text("{prompt} {first} versus {second}")
    return JudgingConfig(template=str(tmp_path / "judge.txt"))


@given(st.floats(0, 20), st.floats(0, 20))
def test_swapping_the_answers_swaps_the_verdict(x: float, y: float) -> None:
    lx, ly = -math.log1p(math.exp(-(x - y))), -math.log1p(math.exp(x - y))
    one, two = read_logprobs(lx, ly, 0.05), read_logprobs(ly, lx, 0.05)
    assert {"first": "second", "second": "first", "tie": "tie"}[one[0] or ""] == two[0]
    assert (one[1] or 0) + (two[1] or 0) == pytest.approx(1)


def test_logprob_verdicts_by_hand() -> None:
    verdict, p, verdict_prob = read_logprobs(math.log(0.6), math.log(0.2), 0.05)
    assert verdict == "first"
    assert (p, verdict_prob) == pytest.approx((0.75, 0.8))
    assert read_logprobs(math.log(0.01), math.log(0.02), 0.05)[0] is None  # too little verdict_prob
    assert read_logprobs(math.nan, -1.0, 0.05) == (None, None, None)
    assert read_logprobs(-math.inf, -math.inf, 0.0) == (None, None, None)
    assert read_logprobs(-1000.0, -1.0, 0.05)[1] == 0.0
    assert read_logprobs(-1.0, -1.0, 0.05)[0] == "tie"


@given(st.text(max_size=30))
def test_no_text_but_a_ranking_line_is_a_verdict(text: str) -> None:
    verdict = read_ranking(text, ("1", "2"))
    assert (verdict is None) == (
        text.strip().replace(" ", "").replace("\t", "") not in ("1>2", "2>1", "1=2", "2=1")
    )


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1 > 2", "first"),
        (" 2>1\n", "second"),
        ("1 > 1", None),
        ("1 > 2 > 1", None),
        ("1", None),
        ("1 > 2.", None),
        ("1 < 2", None),
        ("1 = 2", "tie"),
        ("1\n> 2", None),
    ],
)
def test_ranking_lines(text: str, verdict: str | None) -> None:
    assert read_ranking(text, ("1", "2")) == verdict


def test_both_orders_judge_each_pair_twice(numbers: JudgingConfig) -> None:
    group = [("prompt0", "q", [response(0, "3"), response(1, "5")])]
    out = all_of(Judgment, judge(ordered_pairs(group, 2, "key", 2), FairJudge(), numbers, set()))
    assert [(j.verdict, j.row) for j in out] == [("second", 0), ("first", 1)]
    assert {j.winner_id for j in out} == {response(1, "5").id}
    assert out[0].p_first == pytest.approx(1 - (out[1].p_first or 0))
    assert list(judge(ordered_pairs(group, 2, "key", 2), FairJudge(), numbers, {j.id for j in out})) == []


def test_identical_answers_are_not_judged() -> None:
    assert list(ordered_pairs([("p", "q", [response(0, "same"), response(1, "same")])], 2, "key", 2)) == []


def test_in_one_order_each_slot_comes_first_about_as_often() -> None:
    groups = [(f"prompt{i}", "q", [response(0, "a", i), response(1, "b", i)]) for i in range(1000)]
    firsts = [d.first.index for d in ordered_pairs(groups, 1, "key", 2)]
    assert 440 < sum(firsts) < 560
    assert len({d.row for d in ordered_pairs(groups, 1, "key", 2)}) == 1000


def test_two_judges_can_be_shown_the_same_order() -> None:
    groups = [(f"prompt{i}", "q", [response(0, "a", i), response(1, "b", i)]) for i in range(99)]
    keys = (("k", None), ("l", None), ("l", "k"))
    one, two, same = (list(ordered_pairs(groups, 1, key, 2, None, order)) for key, order in keys)
    firsts = [[pair.first.index for pair in pairs] for pairs in (one, two, same)]
    assert firsts[0] == firsts[2] != firsts[1]
    assert {pair.id for pair in same}.isdisjoint(pair.id for pair in one)


def test_rows_of_three_answers_are_distinct() -> None:
    answers = [replace(response(i, str(i)), row=3 + i) for i in range(3)]
    found = list(ordered_pairs([("p", "q", answers)], 2, "key", 3))
    assert sorted(d.row for d in found) == [6, 7, 8, 9, 10, 11]
    assert [d.first.index for d in found] == [0, 0, 1, 1, 2, 2]  # those that begin alike follow each other


def test_controls() -> None:
    groups = [(f"prompt{i}", "q", [response(0, "a", i), response(1, "b", i)]) for i in range(400)]
    coins = all_of(
        Judgment, judge(ordered_pairs(groups, 2, "k", 2), None, JudgingConfig(method="random"), set())
    )
    by_prompt: dict[str, set[str | None]] = {}
    for j in coins:
        by_prompt.setdefault(j.prompt_id, set()).add(j.winner_id)
    assert all(len(winners) == 1 for winners in by_prompt.values())  # the coin falls once for a pair
    heads = sum(response(0, "a", i).id in by_prompt[f"prompt{i}"] for i in range(400))
    assert 150 < heads < 250
    worth = {"a": 0.2, "b": 0.9}
    right = all_of(
        Judgment,
        judge(
            ordered_pairs(groups[:1], 2, "k", 2),
            None,
            JudgingConfig(method="oracle"),
            set(),
            lambda p, a: worth[a],
        ),
    )
    assert {j.winner_id for j in right} == {response(1, "b", 0).id}


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
    config = scripted_recipe(500, judging={"panel": panel}, pairs={"min_p": 0.5})
    summary = run(config, tmp_path / "r", until="pairs", engine=engine)
    alone = run(scripted_recipe(500, pairs={"min_p": 0.5}), tmp_path / "r", until="pairs", engine=engine)
    stages = list((tmp_path / "r/round-1").glob("judgments-*"))
    assert len(stages) == 3  # the first judge's verdicts serve both
    names = {row["judge"] for path in stages for row in read_jsonl(path / "records.jsonl")}
    assert len(names) == 3
    assert [row.stage for row in summary.funnel].count("judgments") == 3
    texts = {row["id"]: row["text"] for row in records_of(tmp_path / "r", "responses")}

    def right(summary: Summary) -> float:
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


def test_verdicts_that_cannot_be_read_end_the_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(choose=lambda m, c: (-9.0, -9.0))
    for personas, lost in ((20, "32 of the first 32"), (10, "20 of 20")):
        with raises(
            DropError,
            key="max_drop_share",
            match=rf"(?s)judgments: {lost} .*unparseable verdict.*judging\.prefill",
        ):
            run(scripted_recipe(personas), tmp_path / str(personas), until="pairs", engine=engine)


def test_bad_panels_are_refused(tmp_path: Path) -> None:
    with raises(ConfigError, key="judging.panel"):
        run(scripted_recipe(5, judging={"panel": [{}]}), tmp_path, until="pairs", engine=ScriptedEngine())
    for bad, message in (
        ({"method": "random", "panel": [{}]}, "not random"),
        ({"reasoning": True}, "method text"),
        ({"method": "reward"}, "needs the reward model"),
        ({"choices": ["1", "1 "]}, "both '1'"),
        ({"method": "text", "reasoning": True}, "judge_reasoning"),
    ):
        with raises(ConfigError, key="judging", match=message):
            make_config({"judging": bad})


# Controls


@pytest.mark.parametrize(("method", "winner"), [("longer", "lengthy"), ("shorter", "brief"), ("first", None)])
def test_controls_by_hand(method: str, winner: str | None) -> None:
    group = [("prompt0", "q", answers(["brief", "lengthy"]))]
    config = JudgingConfig.model_validate({"method": method})
    found = all_of(Judgment, judge(ordered_pairs(group, 2, "k", 2), None, config, set(), name=method))
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
        for j in all_of(
            Judgment,
            judge(ordered_pairs(group, 2, "k", 3), None, config, set(), scorer=scorer, name="rm"),
        )
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

    config = scripted_recipe(
        80, judging={"method": "text", "reasoning": True, "template": "judge_reasoning", "max_tokens": 300}
    )
    summary = run(config, tmp_path, until="pairs", engine=ScriptedEngine(reply=reply))
    assert 4 < known(summary.judge).unparseable < 40
    kept = list(read_jsonl(Path(summary.paths["pairs"])))
    assert len(kept) > 50
    assert len({round(pair["p_chosen"], 9) for pair in kept}) == 1  # twice its skill
    assert kept[0]["p_chosen"] > 0.95


@pytest.mark.parametrize("method", ["logprob", "text"])
def test_the_judges_prefill_reaches_the_engine(method: str) -> None:
    seen: list[str] = []

    class Watching(ScriptedEngine):
        def generate(self, requests: Iterable[Any]) -> Iterator[Completion]:
            for request in requests:
                seen.append(request.prefill)
                yield from super().generate([request])

        def choice_logprobs(self, requests: Iterable[Any]) -> Iterator[Choices]:
            for request in requests:
                seen.append(request.prefill)
                yield from super().choice_logprobs([request])

    answers = [
        Response(id=str(i), row=i, prompt_id="p", index=i, text=f"t{i}", token_ids=None, finish_reason="stop")
        for i in (0, 1)
    ]
    config = JudgingConfig.model_validate({"method": method, "prefill": "Ranking: "})
    engine = Watching(reply=lambda m, seed, s: "1 > 2")
    (found,) = judge([OrderedPair("d", 0, "p", "q", *answers)], engine, config, set())
    assert seen == ["Ranking: "]
    assert not isinstance(found, Drop)
    assert found.verdict is not None
