"""Pairs: which judgments are trained on. Judgments in, `PreferencePair` records or Drops out
(arXiv 2510.06652: D ← D ∪ {(x, y_w, y_l)}).

The verdicts on a prompt's answers become scores (`sao.stages.calibration`): for two answers the calibrated
margin, for more the Bradley–Terry strengths. A rule (RULES) says which answers pair, and guards drop what
should not be trained on. `confident` keeps a pair whose orders agree and whose probability reaches `min_p`:
label noise costs more than lost pairs (arXiv 2404.09824). `all` keeps every readable verdict, as the paper
does.
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
from sao.stages.rows import index_of, pair_row

Group = tuple[Prompt, list[Response], list[Judgment]]
"""A prompt, its answers, and the verdicts on them by all judges."""
Scores = dict[int, float]
"""The score of each answer that has one, by its index, in nats."""
IndexPair = tuple[int, int]
"""Two answers of a prompt, by their indices."""
IDENTICAL = "identical answers"
"""Why two equal answers make no pair."""
NOT_NEWER = "chosen is not the newer model's, rejected the older's"
"""Why a clear pair is dropped where the rejected answers are an older model's."""
GRAMS = 4
TINY = 1e-9
"""Nats below which a margin is rounding."""
VOTE = log_odds(0.75)
"""Log-odds of a verdict without a number from a judge whose skill is not known, beside other judges'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The judges of a run, by name: each one's calibration and the weight of its vote; `orders`: how often
    each judges a pair."""

    calibrations: Mapping[str, Calibration]
    weights: Mapping[str, float]
    orders: int = 1

    def calibration(self, judge: str) -> Calibration:
        """That of a judge; the verdicts of one that is not known are taken as they are."""
        return self.calibrations.get(judge, Calibration())


def calibrate(groups: Iterable[Group]) -> dict[str, Calibration]:
    """Each judge's calibration over a whole run, by its name."""
    calibrators: dict[str, Calibrator] = {}
    for _, _, judgments in groups:
        for judge, own in _by_judge(judgments).items():
            calibrators.setdefault(judge, Calibrator()).see(own)
    return {judge: calibrator.calibration() for judge, calibrator in calibrators.items()}


def _by_judge(judgments: Iterable[Judgment]) -> dict[str, list[Judgment]]:
    groups: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        groups.setdefault(judgment.judge, []).append(judgment)
    return groups


# Which answers pair: scores in, (chosen, rejected) indices out. `draw` is the prompt's own generator.


def every_two(scores: Scores, min_p: float, draw: random.Random) -> list[IndexPair]:
    """Every two answers."""
    return [(a, b) if scores[a] >= scores[b] else (b, a) for a, b in combinations(scores, 2)]


def first_last(scores: Scores, min_p: float, draw: random.Random) -> list[IndexPair]:
    """The best and the worst."""
    best, *_, worst = _ranked(scores)
    return [(best, worst)]


def best_random(scores: Scores, min_p: float, draw: random.Random) -> list[IndexPair]:
    """The best and any other."""
    best, *others = _ranked(scores)
    return [(best, draw.choice(others))]


def mu_2sigma(scores: Scores, min_p: float, draw: random.Random) -> list[IndexPair]:
    """The best and the one nearest to μ − 2σ of the prompt's scores: the worst is often an outlier (arXiv
    2502.16825)."""
    best, *others = _ranked(scores)
    values = list(scores.values())
    target = float(np.mean(values) - 2 * np.std(values))
    return [(best, min(others, key=lambda i: abs(scores[i] - target)))]


def quality_aware(scores: Scores, min_p: float, draw: random.Random) -> list[IndexPair]:
    """The best and the best of those that are worse with probability `min_p`: a rejected answer of high
    quality, a moderate gap (arXiv 2501.18578, 2504.03612). None where no answer is clearly worse."""
    best, *others = _ranked(scores)
    clearly_worse = [i for i in others if sigmoid(scores[best] - scores[i]) >= min_p]
    return [(best, clearly_worse[0])] if clearly_worse else []


def adjacent(scores: Scores, min_p: float, draw: random.Random) -> list[IndexPair]:
    """Neighbours in the ranking."""
    return list(pairwise(_ranked(scores)))


def _ranked(scores: Scores) -> list[int]:
    """Answers from best to worst; equals in order of index."""
    return sorted(scores, key=lambda i: (-scores[i], i))


Rule = Callable[[Scores, float, random.Random], list[IndexPair]]
RULES: dict[str, Rule] = {
    "all": every_two, "first_last": first_last, "best_random": best_random, "mu_2sigma": mu_2sigma,
    "quality_aware": quality_aware, "adjacent": adjacent,
}  # fmt: skip


# Pairs.


def build_pairs(
    groups: Iterable[Group],
    config: PairsConfig,
    key: str,
    n: int,
    panel: Panel,
    balance: Balance | None = None,
    newer: int | None = None,
) -> Iterator[PreferencePair | Drop]:
    """One pair or Drop for every two of a prompt's `n` answers, in order; `balance` says which pairs length
    matching drops, `newer` is for `pairs_of`."""
    for prompt, responses, judgments in groups:
        outcomes = pairs_of(prompt, responses, judgments, config, key, panel, newer)
        for number, (i, j) in enumerate(combinations(range(n), 2)):
            row, pair_id = pair_row(index_of(prompt.row), n, number), make_id(key, prompt.id, i, j)
            outcome = outcomes.get((i, j), "an answer was dropped")
            if isinstance(outcome, Duo) and balance is not None and balance.drops(outcome, pair_id):
                outcome = "length matching"
            if isinstance(outcome, str):
                yield Drop(row=row, stage="pairs", record_id=pair_id, reason=outcome)
            else:
                yield _record(outcome, pair_id, row, prompt.id)


def _record(duo: Duo, pair_id: str, row: int, prompt_id: str) -> PreferencePair:
    return PreferencePair(
        id=pair_id,
        row=row,
        prompt_id=prompt_id,
        chosen_id=duo.chosen.id,
        rejected_id=duo.rejected.id,
        p_chosen=None if duo.margin is None else sigmoid(duo.margin),
        margin=duo.margin,
        margin_sd=duo.sd,
    )


@dataclass(frozen=True, slots=True)
class Duo:
    """A chosen and a rejected answer, the log-odds (nats) that the chosen one is better and their standard
    deviation, where known."""

    chosen: Response
    rejected: Response
    margin: float | None
    sd: float | None

    @property
    def longer(self) -> int:
        """1 where the chosen answer is the longer one, −1 where it is the shorter one, else 0 (in
        characters)."""
        chosen, rejected = len(self.chosen.text), len(self.rejected.text)
        return (chosen > rejected) - (chosen < rejected)


def pairs_of(
    prompt: Prompt,
    responses: list[Response],
    judgments: list[Judgment],
    config: PairsConfig,
    key: str,
    panel: Panel,
    newer: int | None = None,
) -> dict[IndexPair, Duo | str]:
    """For every two answers that are there: the pair that they make, or the reason why they make none. Where
    the first `newer` ones are a newer model's, only those are chosen, and only others rejected."""
    by_index = {response.index: response for response in responses}
    outcomes: dict[IndexPair, Duo | str] = {**_unfit_pairs(responses, config)}
    candidates = [pair for pair in combinations(by_index, 2) if pair not in outcomes]
    opinions = {
        (i, j): opinion_on([by_index[i], by_index[j]], judgments, config, panel) for i, j in candidates
    }
    usable = sorted({index for pair in candidates for index in pair})
    ranks = _rank([by_index[i] for i in usable], judgments, opinions, panel)
    if ranks is None:
        return outcomes | {pair: opinion.reason or "not judged" for pair, opinion in opinions.items()}
    draw = random.Random(make_id(key, prompt.id))
    picked = RULES[config.rule](ranks.scores, config.min_p, draw)
    chosen_first = {(min(pair), max(pair)): pair for pair in picked}
    for pair in candidates:
        if pair in chosen_first:
            chosen, rejected = (by_index[index] for index in chosen_first[pair])
            outcome = _decide(chosen, rejected, opinions[pair], ranks, config)
            is_wrong = newer is not None and not chosen.index < newer <= rejected.index
            outcomes[pair] = NOT_NEWER if is_wrong and isinstance(outcome, Duo) else outcome
        else:
            outcomes[pair] = f"not chosen by rule {config.rule}"
    return outcomes


def _unfit_pairs(responses: list[Response], config: PairsConfig) -> dict[IndexPair, str]:
    """The answers that make no pair whatever the verdicts say, with the reason."""
    first_of_text = {r.text: r.index for r in reversed(responses)}
    repeated = {r.index for r in responses if first_of_text[r.text] != r.index}
    looping = {r.index for r in responses if repetition(r.text) > config.max_repetition}
    reasons: dict[IndexPair, str] = {}
    for a, b in combinations(responses, 2):
        pair = a.index, b.index
        if not repeated.isdisjoint(pair):  # of equal answers the first stays, to be compared with others
            reasons[pair] = IDENTICAL
        elif not looping.isdisjoint(pair):
            reasons[pair] = "an answer repeats itself"
    return reasons


@dataclass(frozen=True, slots=True)
class Opinion:
    """What all judges together say of answers a and b.

    `margin`: their mean log-odds for a (nats), None where no judge gives a number. `votes`: the weighted sum
    of their votes for a. `reason`: why they say nothing; None where they do.
    """

    margin: float | None
    votes: float
    reason: str | None

    @property
    def lean(self) -> float:
        """Above 0 for a: by the numbers, or by the votes where there are none or they cancel."""
        return self.votes if self.margin is None or abs(self.margin) < TINY else self.margin


@dataclass(frozen=True, slots=True)
class Vote:
    """What one judge says of answers a and b over its orders: the weight of its vote, the vote (from 1 for a
    to −1 for b), and its log-odds for a (nats), None where they are not known."""

    weight: float
    vote: float
    log_odds: float | None


def opinion_on(pair: list[Response], judgments: list[Judgment], config: PairsConfig, panel: Panel) -> Opinion:
    """What the judges say of two answers, by their verdicts on these two alone.

    A judge whose own orders disagree, or cannot be read, abstains from a confident opinion; the mean of the
    others counts.
    """
    a, b = (response.id for response in pair)
    votes: list[Vote] = []
    reasons: list[str] = []
    on_these = (j for j in judgments if {j.first_id, j.second_id} == {a, b})
    for judge, own in _by_judge(on_these).items():
        vote = _vote_of(judge, own, a, config, panel)
        if isinstance(vote, str):
            reasons.append(vote)
        else:
            votes.append(vote)
    if not votes:
        return Opinion(None, 0.0, min(reasons, default="not judged"))
    return _joint_opinion(votes)


def _vote_of(judge: str, own: list[Judgment], a: str, config: PairsConfig, panel: Panel) -> Vote | str:
    """One judge's vote on answer a against another, or why it abstains."""
    calibration = panel.calibration(judge)
    if config.keep == "confident" and (reason := _abstains(own, calibration, panel.orders)):
        return reason
    readable = [judgment for judgment in own if judgment.verdict is not None]
    if not readable:
        return "unparseable verdict"
    vote = fmean(0.0 if j.winner_id is None else 1.0 if j.winner_id == a else -1.0 for j in readable)
    numbers = []
    for judgment in readable:
        first = calibration.first(judgment)
        if first is not None:
            numbers.append(first if judgment.first_id == a else -first)
    return Vote(panel.weights.get(judge, 1.0), vote, fmean(numbers) if numbers else None)


def _joint_opinion(votes: list[Vote]) -> Opinion:
    """The weighted mean of the judges' votes. Where some judges give numbers, a vote without one counts as
    log-odds of VOTE."""
    sum_of_votes = sum(v.weight * v.vote for v in votes)
    if all(v.log_odds is None for v in votes):
        return Opinion(None, sum_of_votes, None)
    total = sum(v.weight * (VOTE * v.vote if v.log_odds is None else v.log_odds) for v in votes)
    return Opinion(total / sum(v.weight for v in votes), sum_of_votes, None)


def _abstains(own: list[Judgment], calibration: Calibration, orders: int) -> str | None:
    """Why one judge's verdicts on a pair make no confident opinion; None where they do."""
    if any(judgment.verdict is None for judgment in own):
        return "unparseable verdict"
    if len(own) < orders:
        return "a verdict was dropped"
    winners = {_winner(judgment, calibration) for judgment in own}
    return "orders disagree" if len(winners) > 1 else None


def _winner(judgment: Judgment, calibration: Calibration) -> str | None:
    """The id of the answer that a readable verdict prefers, its slot bias removed where it is a number; None
    for a tie."""
    margin = calibration.first(judgment) if judgment.p_first is not None else None
    if margin is None:
        return judgment.winner_id
    if abs(margin) <= TINY:
        return None
    return judgment.first_id if margin > 0 else judgment.second_id


@dataclass(frozen=True, slots=True)
class Ranks:
    """Scores of a prompt's answers, by index.

    `sd`: the standard deviation of each difference, where it is known. `group`: a number for each answer, the
    same for those that were compared, if only through others. `numbers`: whether scores are log-odds; else
    only their order means anything.
    """

    scores: Scores
    sd: Mapping[IndexPair, float]
    group: Mapping[int, int]
    numbers: bool


def _rank(
    answers: list[Response],
    judgments: list[Judgment],
    opinions: Mapping[IndexPair, Opinion],
    panel: Panel,
) -> Ranks | None:
    """Ranks of two answers by the judges' opinion, of more by Bradley–Terry; None where nothing can be
    said."""
    if len(opinions) != 1:
        return _rank_many(answers, judgments, panel)
    ((a, b), opinion) = next(iter(opinions.items()))
    if opinion.reason is not None:
        return None
    scores = {a: opinion.lean / 2, b: -opinion.lean / 2}
    return Ranks(scores, sd={}, group={a: 0, b: 0}, numbers=opinion.margin is not None)


def _rank_many(answers: list[Response], judgments: list[Judgment], panel: Panel) -> Ranks | None:
    """Bradley–Terry strengths from all verdicts on the answers; None where there are none."""
    number_of = {answer.id: number for number, answer in enumerate(answers)}
    wins, has_numbers = np.zeros((len(answers), len(answers))), False
    for judgment in judgments:
        if judgment.verdict is None or not {judgment.first_id, judgment.second_id} <= number_of.keys():
            continue
        margin = panel.calibration(judgment.judge).first(judgment)
        if margin is None:
            margin = VOTE * {"first": 1.0, "tie": 0.0, "second": -1.0}[judgment.verdict]
        else:
            has_numbers = True
        first, second = number_of[judgment.first_id], number_of[judgment.second_id]
        weight, p_first = panel.weights.get(judgment.judge, 1.0), sigmoid(margin)
        wins[first, second] += weight * p_first
        wins[second, first] += weight * (1 - p_first)
    if not wins.any():
        return None
    strengths = bradley_terry(wins)
    index = [answer.index for answer in answers]
    scores = {i: float(strengths.values[k]) for k, i in enumerate(index)}
    sd = {(i, j): strengths.sd(k, m) for k, i in enumerate(index) for m, j in enumerate(index)}
    return Ranks(scores, sd, dict(zip(index, connected(wins), strict=True)), has_numbers)


def _decide(
    chosen: Response, rejected: Response, opinion: Opinion, ranks: Ranks, config: PairsConfig
) -> Duo | str:
    """The pair of two answers that a rule picked, or why it is not kept."""
    better, worse = chosen.index, rejected.index
    if ranks.group[better] != ranks.group[worse]:
        return "never compared"
    margin = ranks.scores[better] - ranks.scores[worse]
    if abs(margin) < TINY:
        return "tie"
    if config.keep == "confident":
        lean = opinion.lean if better < worse else -opinion.lean
        if reason := _doubt(opinion, lean, margin if ranks.numbers else None, config.min_p):
            return reason
    shorter, longer = sorted((len(chosen.text), len(rejected.text)))
    if config.max_length_ratio is not None and longer > config.max_length_ratio * shorter:
        return "lengths too unlike"
    if not ranks.numbers:
        return Duo(chosen, rejected, None, None)
    return Duo(chosen, rejected, margin, ranks.sd.get((better, worse)))


def _doubt(opinion: Opinion, lean: float, margin: float | None, min_p: float) -> str | None:
    """Why a pair is not confident; None where it is. `lean`: the direct verdicts for the chosen answer;
    `margin`: its log-odds (nats), None where only the ranks are known."""
    if opinion.reason is not None and opinion.reason != "not judged":
        return opinion.reason
    if lean < 0:
        return "direct verdict and ranks disagree"
    return "p too small" if margin is not None and sigmoid(margin) < min_p else None


def repetition(text: str) -> float:
    """Share of the 4-grams of words that occur earlier in the text; 0 for fewer than four words."""
    words = text.split()
    grams = [tuple(words[i : i + GRAMS]) for i in range(len(words) - GRAMS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, slots=True)
class Balance:
    """Which pairs are dropped, so that the longer answer is chosen as often as the shorter one: of those on
    the `side` (see `Duo.longer`) that has more, all whose id is above `last`."""

    side: int
    last: int

    def drops(self, pair: Duo, pair_id: str) -> bool:
        """Whether this pair is dropped."""
        return pair.longer == self.side and int(pair_id, 16) > self.last


def balance_lengths(
    groups: Iterable[Group], config: PairsConfig, key: str, panel: Panel, newer: int | None = None
) -> Balance:
    """What length matching has to drop over a whole run; 8 bytes a pair."""
    ids_by_side = {-1: array("Q"), 0: array("Q"), 1: array("Q")}
    for prompt, responses, judgments in groups:
        for (i, j), pair in pairs_of(prompt, responses, judgments, config, key, panel, newer).items():
            if isinstance(pair, Duo):
                ids_by_side[pair.longer].append(int(make_id(key, prompt.id, i, j), 16))
    side = 1 if len(ids_by_side[1]) > len(ids_by_side[-1]) else -1
    kept = len(ids_by_side[-side])
    return Balance(side, sorted(ids_by_side[side])[kept - 1] if kept else -1)
