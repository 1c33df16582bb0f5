"""Pairs: which judgments are learnt from. Judgments in, `PreferencePair` records or Drops out
(arXiv 2510.06652: D ← D ∪ {(x, y_w, y_l)}).

The verdicts on a prompt's answers make scores (`sao.ranking`): for two answers the calibrated margin, for more the
strengths of Bradley and Terry. A rule (RULES) says which answers pair, and guards drop what should not be learnt from.
`confident` keeps a pair whose orders agree and whose probability reaches `min_p`: label noise costs more than lost pairs
(arXiv 2404.09824). `all` keeps every readable verdict, as the paper does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from sao.config import PairsConfig
from sao.ranking import Calibration, Calibrator, bradley_terry, sigmoid
from sao.types import Drop, Judgment, PreferencePair, Prompt, Response, make_id

Group = tuple[Prompt, list[Response], list[Judgment]]
"""A prompt, its answers, and the verdicts on them by all judges."""
Scores = dict[int, float]
"""The score of each answer that has one, by its index, in nats."""
GRAMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Jury:
    """The judges of a run by name: what is known of each, and the weight of its vote; `orders`: how often each judges a pair."""

    calibrations: Mapping[str, Calibration]
    weights: Mapping[str, float]
    orders: int = 1

    def calibration(self, judge: str) -> Calibration:
        """That of a judge; one that is not known is taken at its word."""
        return self.calibrations.get(judge, Calibration())


def calibrate(groups: Iterable[Group]) -> dict[str, Calibration]:
    """Each judge's calibration over a whole run, by its name."""
    seen: dict[str, Calibrator] = {}
    for _, _, judgments in groups:
        by_judge: dict[str, list[Judgment]] = {}
        for judgment in judgments:
            by_judge.setdefault(judgment.judge, []).append(judgment)
        for judge, own in by_judge.items():
            seen.setdefault(judge, Calibrator()).see(own)
    return {judge: calibrator.calibration() for judge, calibrator in seen.items()}


# Which answers pair: scores in, (chosen, rejected) indices out. `draw` is the prompt's own generator.


def every_two(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """Every two answers."""
    return [(a, b) if scores[a] >= scores[b] else (b, a) for a, b in combinations(scores, 2)]


def first_last(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """The best and the worst."""
    best, *_, worst = _ranked(scores)
    return [(best, worst)]


def best_random(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """The best and any other."""
    best, *others = _ranked(scores)
    return [(best, draw.choice(others))]


def mu_2sigma(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """The best and the one nearest to μ − 2σ of the prompt's scores: the worst is often an outlier (arXiv 2502.16825)."""
    best, *others = _ranked(scores)
    values = list(scores.values())
    target = float(np.mean(values) - 2 * np.std(values))
    return [(best, min(others, key=lambda i: abs(scores[i] - target)))]


def quality_aware(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """The best and the best of those that are worse with probability `min_p`: a rejected answer of high quality, a moderate gap
    (arXiv 2501.18578, 2504.03612). None where all are as good."""
    best, *others = _ranked(scores)
    clearly = [i for i in others if sigmoid(scores[best] - scores[i]) >= min_p]
    return [(best, clearly[0])] if clearly else []


def adjacent(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """Neighbours in the ranking."""
    return list(pairwise(_ranked(scores)))


def _ranked(scores: Scores) -> list[int]:
    """Answers from best to worst; equals in order of index."""
    return sorted(scores, key=lambda i: (-scores[i], i))


Rule = Callable[[Scores, float, random.Random], list[tuple[int, int]]]
RULES: dict[str, Rule] = {
    "all": every_two, "first_last": first_last, "best_random": best_random, "mu_2sigma": mu_2sigma,
    "quality_aware": quality_aware, "adjacent": adjacent,
}  # fmt: skip


# Pairs.


def build_pairs(
    groups: Iterable[Group], config: PairsConfig, key: str, n: int, jury: Jury
) -> Iterator[PreferencePair | Drop]:
    """One pair or Drop for every two of a prompt's `n` answers, in order."""
    for prompt, responses, judgments in groups:
        found = pairs_of(prompt, responses, judgments, config, key, jury)
        for place, (i, j) in enumerate(combinations(range(n), 2)):
            row, pair_id = prompt.row * (n * (n - 1) // 2) + place, make_id(key, prompt.id, i, j)
            pair = found.get((i, j), "an answer was dropped")
            if isinstance(pair, str):
                yield Drop(row=row, stage="pairs", record_id=pair_id, reason=pair)
                continue
            yield PreferencePair(
                id=pair_id,
                row=row,
                prompt_id=prompt.id,
                chosen_id=pair.chosen.id,
                rejected_id=pair.rejected.id,
                p_chosen=None if pair.margin is None else sigmoid(pair.margin),
                margin=pair.margin,
                margin_sd=pair.sd,
            )


@dataclass(frozen=True, slots=True)
class _Pair:
    chosen: Response
    rejected: Response
    margin: float | None
    sd: float | None


def pairs_of(
    prompt: Prompt, responses: list[Response], judgments: list[Judgment], config: PairsConfig, key: str, jury: Jury
) -> dict[tuple[int, int], _Pair | str]:
    """For every two answers that are there, by index: the pair that they make, or the reason why they make none."""
    by_index = {r.index: r for r in responses}
    first_of: dict[str, int] = {}
    for r in responses:
        first_of.setdefault(r.text, r.index)
    outcomes: dict[tuple[int, int], _Pair | str] = {}
    for i, j in combinations(by_index, 2):
        if by_index[i].text == by_index[j].text or first_of[by_index[i].text] != i or first_of[by_index[j].text] != j:
            outcomes[i, j] = "identical answers"
        elif any(repetition(by_index[k].text) > config.max_repetition for k in (i, j)):
            outcomes[i, j] = "an answer repeats itself"
        else:
            outcomes[i, j] = "not judged"
    open_pairs = [pair for pair, outcome in outcomes.items() if outcome == "not judged"]
    usable = sorted({index for pair in open_pairs for index in pair})
    if not usable:
        return outcomes
    opinions = {pair: opinion_on([by_index[k] for k in pair], judgments, config, jury) for pair in open_pairs}
    scored = _scores([by_index[i] for i in usable], judgments, opinions, jury)
    if scored is None:
        return outcomes | {pair: opinion.reason or "not judged" for pair, opinion in opinions.items()}
    scores, sd = scored
    chosen = RULES[config.rule](scores, config.min_p, random.Random(make_id(key, prompt.id)))
    wanted = {(min(pair), max(pair)): pair for pair in chosen}
    for pair in open_pairs:
        if pair in wanted:
            best, other = (by_index[k] for k in wanted[pair])
            outcomes[pair] = _decide(best, other, opinions[pair], scores, sd(*wanted[pair]), config)
        else:
            outcomes[pair] = f"not chosen by rule {config.rule}"
    return outcomes


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judges say of answers a and b directly: the mean log-odds for a, None where no number is known; the sum of the
    votes for a; and, where nothing confident can be said, why."""

    margin: float | None
    votes: float
    reason: str | None


def opinion_on(pair: list[Response], judgments: list[Judgment], config: PairsConfig, jury: Jury) -> Opinion:
    """A judge whose own orders disagree, or cannot be read, abstains from a confident opinion; the others' means count."""
    a, b = (r.id for r in pair)
    by_judge: dict[str, list[Judgment]] = {}
    for j in judgments:
        if {j.first_id, j.second_id} == {a, b}:
            by_judge.setdefault(j.judge, []).append(j)
    if not by_judge:
        return Opinion(None, 0.0, "not judged")
    reasons, total, weight, votes, known = set(), 0.0, 0.0, 0.0, False
    for judge, own in by_judge.items():
        calibration, readable = jury.calibration(judge), [j for j in own if j.verdict is not None]
        said = [(v if j.first_id == a else -v) for j in readable if (v := calibration.first(j)) is not None]
        leans = said or [0.0 if j.winner_id is None else 1.0 if j.winner_id == a else -1.0 for j in readable]
        if config.keep == "confident":
            if len(readable) < len(own):
                reasons.add("unreadable verdict")
                continue
            if len(own) < jury.orders:
                reasons.add("a verdict was dropped")
                continue
            if min(leans) < 0 < max(leans) or (min(leans) < max(leans) and 0 in leans):
                reasons.add("orders disagree")
                continue
        elif not readable:
            reasons.add("unreadable verdict")
            continue
        share = jury.weights.get(judge, 1.0)
        votes += share * sum(leans) / len(leans)
        if said:
            total, weight, known = total + share * sum(said) / len(said), weight + share, True
    if len(reasons) and not known and votes == 0.0:
        return Opinion(None, 0.0, min(reasons))
    return Opinion(total / weight if known else None, votes, None)


def _scores(
    answers: list[Response], judgments: list[Judgment], opinions: Mapping[tuple[int, int], Opinion], jury: Jury
) -> tuple[Scores, Callable[[int, int], float | None]] | None:
    """Scores by index, and the standard deviation of their differences; None where nothing can be said."""
    if len(answers) == 2:
        (pair,) = opinions
        opinion = opinions[pair]
        if opinion.reason is not None:
            return None
        lean = opinion.votes if opinion.margin is None else opinion.margin
        return {pair[0]: lean / 2, pair[1]: -lean / 2}, lambda a, b: None
    place = {answer.id: k for k, answer in enumerate(answers)}
    wins = np.zeros((len(answers), len(answers)))
    for j in judgments:
        if j.verdict is None or j.first_id not in place or j.second_id not in place:
            continue
        said = jury.calibration(j.judge).first(j)
        p = {"first": 1.0, "tie": 0.5, "second": 0.0}[j.verdict] if said is None else sigmoid(said)
        first, second, weight = place[j.first_id], place[j.second_id], jury.weights.get(j.judge, 1.0)
        wins[first, second] += weight * p
        wins[second, first] += weight * (1 - p)
    if not wins.any():
        return None
    strengths = bradley_terry(wins)
    number = {answer.index: k for k, answer in enumerate(answers)}
    return {i: float(strengths.values[k]) for i, k in number.items()}, lambda a, b: strengths.sd(number[a], number[b])


def _decide(
    chosen: Response, rejected: Response, opinion: Opinion, scores: Scores, sd: float | None, config: PairsConfig
) -> _Pair | str:
    """The pair of two answers that a rule picked, or why it is not kept."""
    margin: float | None = scores[chosen.index] - scores[rejected.index]
    if margin == 0:
        return "tie"
    if sd is None and opinion.margin is None:  # votes alone: no number is known
        margin = None
    if config.keep == "confident":
        if opinion.reason not in (None, "not judged"):
            return str(opinion.reason)
        said = opinion.votes if opinion.margin is None else opinion.margin
        toward = said if chosen.index < rejected.index else -said
        if opinion.reason is None and toward < 0:
            return "direct verdict and ranks disagree"
        if margin is not None and sigmoid(margin) < config.min_p:
            return "p too small"
    lengths = sorted((len(chosen.text), len(rejected.text)))
    if config.max_length_ratio is not None and lengths[1] > config.max_length_ratio * lengths[0]:
        return "lengths too unlike"
    return _Pair(chosen, rejected, margin, sd)


def repetition(text: str) -> float:
    """Share of the 4-grams of words that stand in the text before; 0 for fewer than four words."""
    words = text.split()
    grams = [tuple(words[i : i + GRAMS]) for i in range(len(words) - GRAMS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def match_lengths(
    pairs: Callable[[], Iterable[PreferencePair | Drop]], lengths: Callable[[PreferencePair], tuple[int, int]]
) -> Iterator[PreferencePair | Drop]:
    """The pairs without those by which the longer answer is chosen more often than the shorter one, or the other way round.

    `pairs` is read twice; `lengths` gives those of the chosen and the rejected answer. Which ones go is decided by their ids.
    """

    def side(pair: PreferencePair) -> int:
        a, b = lengths(pair)
        return (a > b) - (a < b)

    ids: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    for pair in pairs():
        if isinstance(pair, PreferencePair):
            ids[side(pair)].append(int(pair.id, 16))
    more = 1 if len(ids[1]) > len(ids[-1]) else -1
    kept = set(sorted(ids[more])[: len(ids[-more])])
    for pair in pairs():
        if isinstance(pair, PreferencePair) and side(pair) == more and int(pair.id, 16) not in kept:
            yield Drop(row=pair.row, stage="pairs", record_id=pair.id, reason="length matching")
        else:
            yield pair
