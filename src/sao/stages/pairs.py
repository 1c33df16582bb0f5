"""Pairs: which judgments are learnt from. Judgments in, `PreferencePair` records or Drops out
(arXiv 2510.06652: D ← D ∪ {(x, y_w, y_l)}).

The verdicts on a prompt's answers make scores (`sao.stages.calibration`): for two answers the calibrated
margin, for more the strengths of Bradley and Terry. A rule (RULES) says which answers pair, and guards drop
what should not be learnt from. `confident` keeps a pair whose orders agree and whose probability reaches
`min_p`: label noise costs more than lost pairs (arXiv 2404.09824). `all` keeps every readable verdict, as the
paper does.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

import numpy as np

from sao.config import PairsConfig
from sao.records import Drop, Judgment, PreferencePair, Prompt, Response, make_id
from sao.stages.calibration import Calibration, Calibrator, bradley_terry, connected, log_odds, sigmoid

Group = tuple[Prompt, list[Response], list[Judgment]]
"""A prompt, its answers, and the verdicts on them by all judges."""
Scores = dict[int, float]
"""The score of each answer that has one, by its index, in nats."""
GRAMS = 4
TINY = 1e-9
"""Nats below which a margin is rounding."""
VOTE = log_odds(0.75)
"""Log-odds of a word whose worth is not known, beside others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jury:
    """The judges of a run by name: what is known of each, and the weight of its vote; `orders`: how often
    each judges a pair."""

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
    """The best and the one nearest to μ − 2σ of the prompt's scores: the worst is often an outlier (arXiv
    2502.16825)."""
    best, *others = _ranked(scores)
    values = list(scores.values())
    target = float(np.mean(values) - 2 * np.std(values))
    return [(best, min(others, key=lambda i: abs(scores[i] - target)))]


def quality_aware(scores: Scores, min_p: float, draw: random.Random) -> list[tuple[int, int]]:
    """The best and the best of those that are worse with probability `min_p`: a rejected answer of high
    quality, a moderate gap (arXiv 2501.18578, 2504.03612). None where all are as good."""
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
    groups: Iterable[Group], config: PairsConfig, key: str, n: int, jury: Jury, balance: Balance | None = None
) -> Iterator[PreferencePair | Drop]:
    """One pair or Drop for every two of a prompt's `n` answers, in order; `balance` says which pairs lengths
    cost."""
    for prompt, responses, judgments in groups:
        found = pairs_of(prompt, responses, judgments, config, key, jury)
        for place, (i, j) in enumerate(combinations(range(n), 2)):
            row, pair_id = prompt.row * (n * (n - 1) // 2) + place, make_id(key, prompt.id, i, j)
            pair = found.get((i, j), "an answer was dropped")
            if not isinstance(pair, str) and balance is not None and balance.drops(pair, pair_id):
                pair = "length matching"
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
class Duo:
    """A chosen and a rejected answer, the log-odds (nats) that this is right and their standard deviation,
    where known."""

    chosen: Response
    rejected: Response
    margin: float | None
    sd: float | None

    @property
    def longer(self) -> int:
        """1 where the chosen answer is the longer one, −1 where it is the shorter one, else 0 (in
        characters)."""
        a, b = len(self.chosen.text), len(self.rejected.text)
        return (a > b) - (a < b)


def pairs_of(
    prompt: Prompt,
    responses: list[Response],
    judgments: list[Judgment],
    config: PairsConfig,
    key: str,
    jury: Jury,
) -> dict[tuple[int, int], Duo | str]:
    """For every two answers that are there, by index: the pair that they make, or the reason why they make
    none."""
    by_index = {r.index: r for r in responses}
    outcomes: dict[tuple[int, int], Duo | str] = {}
    open_pairs = []
    for pair, why in _unfit(responses, config):
        if why is None:
            open_pairs.append(pair)
        else:
            outcomes[pair] = why
    usable = sorted({index for pair in open_pairs for index in pair})
    opinions = {pair: opinion_on([by_index[k] for k in pair], judgments, config, jury) for pair in open_pairs}
    ranks = _rank([by_index[i] for i in usable], judgments, opinions, jury) if usable else None
    if ranks is None:
        return outcomes | {pair: opinion.reason or "not judged" for pair, opinion in opinions.items()}
    draw = random.Random(make_id(key, prompt.id))
    wanted = {(min(pair), max(pair)): pair for pair in RULES[config.rule](ranks.scores, config.min_p, draw)}
    for pair in open_pairs:
        if pair in wanted:
            best, other = (by_index[k] for k in wanted[pair])
            outcomes[pair] = _decide(best, other, opinions[pair], ranks, config)
        else:
            outcomes[pair] = f"not chosen by rule {config.rule}"
    return outcomes


def _unfit(responses: list[Response], config: PairsConfig) -> Iterator[tuple[tuple[int, int], str | None]]:
    """Every two answers, and why they make no pair whatever the verdicts say; None where they may."""
    first_of = {r.text: r.index for r in reversed(responses)}
    repeating = {r.index for r in responses if repetition(r.text) > config.max_repetition}
    for a, b in combinations(responses, 2):
        same = a.text == b.text or any(first_of[r.text] != r.index for r in (a, b))
        why = (
            "identical answers"
            if same
            else "an answer repeats itself"
            if {a.index, b.index} & repeating
            else None
        )
        yield (a.index, b.index), why


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judges say of answers a and b directly: the mean log-odds for a, None where no number is
    known; the weighted sum of the votes for a; and, where they say nothing, why."""

    margin: float | None
    votes: float
    reason: str | None

    @property
    def lean(self) -> float:
        """Above 0 for a: by the numbers, or by the votes where there are none or they cancel."""
        return self.votes if self.margin is None or abs(self.margin) < TINY else self.margin


def opinion_on(pair: list[Response], judgments: list[Judgment], config: PairsConfig, jury: Jury) -> Opinion:
    """A judge whose own orders disagree, or cannot be read, abstains from a confident opinion; the others'
    means count. Where some judges give numbers, a word of unknown worth counts as one of VOTE."""
    a, b = (r.id for r in pair)
    by_judge: dict[str, list[Judgment]] = {}
    for j in judgments:
        if {j.first_id, j.second_id} == {a, b}:
            by_judge.setdefault(j.judge, []).append(j)
    reasons, heard = set() if by_judge else {"not judged"}, []
    for judge, own in by_judge.items():
        why = _abstains(own, jury.calibration(judge), jury.orders) if config.keep == "confident" else None
        readable = [j for j in own if j.verdict is not None]
        if why or not readable:
            reasons.add(why or "unreadable verdict")
            continue
        vote = fmean(0.0 if j.winner_id is None else 1.0 if j.winner_id == a else -1.0 for j in readable)
        said = [
            v if j.first_id == a else -v
            for j in readable
            if (v := jury.calibration(judge).first(j)) is not None
        ]
        heard.append((jury.weights.get(judge, 1.0), vote, fmean(said) if said else None))
    if not heard:
        return Opinion(None, 0.0, min(reasons))
    votes, weight = sum(w * vote for w, vote, _ in heard), sum(w for w, _, _ in heard)
    if all(number is None for _, _, number in heard):
        return Opinion(None, votes, None)
    total = sum(w * (VOTE * vote if number is None else number) for w, vote, number in heard)
    return Opinion(total / weight, votes, None)


def _abstains(own: list[Judgment], calibration: Calibration, orders: int) -> str | None:
    """Why one judge's verdicts on a pair make no confident opinion; None where they do."""
    if any(j.verdict is None for j in own):
        return "unreadable verdict"
    if len(own) < orders:
        return "a verdict was dropped"
    sides = set()
    for j in own:
        number = (
            calibration.first(j)
            if j.p_first is not None
            else {"first": 1.0, "second": -1.0}.get(str(j.verdict), 0.0)
        )
        assert number is not None
        toward = number if j.first_id < j.second_id else -number
        sides.add((toward > TINY) - (toward < -TINY))
    return "orders disagree" if len(sides) > 1 else None


@dataclass(frozen=True, slots=True)
class Ranks:
    """Scores of a prompt's answers; the standard deviation of each difference, where it is known; which
    answers were compared, if only through others (a number for each group that hangs together); and whether
    scores are log-odds or only ranks."""

    scores: Scores
    sd: Mapping[tuple[int, int], float]
    group: Mapping[int, int]
    numbers: bool


def _rank(
    answers: list[Response],
    judgments: list[Judgment],
    opinions: Mapping[tuple[int, int], Opinion],
    jury: Jury,
) -> Ranks | None:
    """Ranks by the mean log-odds of two answers, or by Bradley and Terry of more; None where nothing can be
    said."""
    if len(answers) == 2:
        ((a, b), opinion), *_ = opinions.items()
        if opinion.reason is not None:
            return None
        return Ranks(
            {a: opinion.lean / 2, b: -opinion.lean / 2}, {}, {a: 0, b: 0}, opinion.margin is not None
        )
    place = {answer.id: k for k, answer in enumerate(answers)}
    wins, numbers = np.zeros((len(answers), len(answers))), False
    for j in judgments:
        if j.verdict is None or j.first_id not in place or j.second_id not in place:
            continue
        said = jury.calibration(j.judge).first(j)
        numbers |= said is not None
        p = sigmoid(VOTE * {"first": 1.0, "tie": 0.0, "second": -1.0}[j.verdict] if said is None else said)
        first, second, weight = place[j.first_id], place[j.second_id], jury.weights.get(j.judge, 1.0)
        wins[first, second] += weight * p
        wins[second, first] += weight * (1 - p)
    if not wins.any():
        return None
    strengths, groups = bradley_terry(wins), connected(wins)
    index = [answer.index for answer in answers]
    scores = {i: float(strengths.values[k]) for k, i in enumerate(index)}
    sd = {(i, j): strengths.sd(k, m) for k, i in enumerate(index) for m, j in enumerate(index)}
    return Ranks(scores, sd, dict(zip(index, groups, strict=True)), numbers)


def _decide(
    chosen: Response, rejected: Response, opinion: Opinion, ranks: Ranks, config: PairsConfig
) -> Duo | str:
    """The pair of two answers that a rule picked, or why it is not kept."""
    a, b = chosen.index, rejected.index
    if ranks.group[a] != ranks.group[b]:
        return "never compared"
    margin = ranks.scores[a] - ranks.scores[b]
    if abs(margin) < TINY:
        return "tie"
    if config.keep == "confident":
        if opinion.reason not in (None, "not judged"):
            return opinion.reason or ""
        if (opinion.lean if a < b else -opinion.lean) < 0:
            return "direct verdict and ranks disagree"
        if ranks.numbers and sigmoid(margin) < config.min_p:
            return "p too small"
    lengths = sorted((len(chosen.text), len(rejected.text)))
    if config.max_length_ratio is not None and lengths[1] > config.max_length_ratio * lengths[0]:
        return "lengths too unlike"
    return Duo(
        chosen, rejected, margin if ranks.numbers else None, ranks.sd.get((a, b)) if ranks.numbers else None
    )


def repetition(text: str) -> float:
    """Share of the 4-grams of words that stand in the text before; 0 for fewer than four words."""
    words = text.split()
    grams = [tuple(words[i : i + GRAMS]) for i in range(len(words) - GRAMS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, slots=True)
class Balance:
    """Which pairs go, so that the longer answer is chosen as often as the shorter one: of those on the `side`
    (see `Duo.longer`) that has more, all whose id lies above `last`."""

    side: int
    last: int

    def drops(self, pair: Duo, pair_id: str) -> bool:
        """Whether this pair goes."""
        return pair.longer == self.side and int(pair_id, 16) > self.last


def balance_lengths(groups: Iterable[Group], config: PairsConfig, key: str, jury: Jury) -> Balance:
    """What length matching has to drop over a whole run; 8 bytes a pair."""
    ids = {-1: array("Q"), 0: array("Q"), 1: array("Q")}
    for prompt, responses, judgments in groups:
        for (i, j), pair in pairs_of(prompt, responses, judgments, config, key, jury).items():
            if isinstance(pair, Duo):
                ids[pair.longer].append(int(make_id(key, prompt.id, i, j), 16))
    more = 1 if len(ids[1]) > len(ids[-1]) else -1
    kept = len(ids[-more])
    return Balance(more, sorted(ids[more])[kept - 1] if kept else -1)
