"""Do the 95 % intervals cover the truth, and how often does a test see what is not there? By simulation with
a known truth.

    PYTHONPATH=src python benchmarks/coverage.py

Verdicts are drawn prompt by prompt: a prompt has a quality of its own that both orders share, the judge a
taste for the first slot, and some verdicts are ties.

- win_rate, difference: the bootstrap of order-averaged points, of one model and of two against one baseline;
- wilson: the mean over rates from 0.05 to 0.95, exact; the lowest is shown beside it;
- lc: the length-controlled win rate, refitted in each resample, without and with rows of a gamed baseline;
  beside it what few prompts do to it where C is chosen by cross-validation;
- arena: Bradley–Terry by question, without and with style control; what resampling games would cover is shown
  beside it;
- alarms: how often p ≤ 0.05, or the interval leaves out ½, where both models are equally good and the judge
  prefers a slot.

Coverage must be 93 to 97 %, alarms at most 6 %; what is shown beside them is not checked. The simulation's
own standard error is 0.5 % with 2,000 replicates. Prints one JSON line last; exits with 1 where a cell is
outside.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from sao.evaluation.arena import Game, Style, arena_scores
from sao.evaluation.length_control import WEAK, GamedRow, Row, length_controlled
from sao.statistics import Array, Points, bootstrap_ci, effect, paired, prompt_points, wilson

RESAMPLES = 1000
COVERAGE, MOST_ALARMS = (0.93, 0.97), 0.06
Rng = np.random.Generator
Cell = tuple[str, float]
BESIDE = "(beside) "


def sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(x / 2)


def draw_seed(rng: Rng) -> int:
    return int(rng.integers(1 << 31))


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] - 1e-9 <= truth <= interval[1] + 1e-9


def shares(replicates: int, seed: int, once: Callable[[Rng], tuple[bool, ...]]) -> list[float]:
    """How often each thing that `once` returns is true."""
    found = [once(np.random.default_rng([seed, i])) for i in range(replicates)]
    return [sum(column) / replicates for column in zip(*found, strict=True)]


def verdicts(rng: Rng, quality: Array, bias: float, ties: float) -> Array:
    """Points [n, 2] of a model in both orders: ½ with probability `ties`, else by its quality and the judge's
    taste."""
    logits = quality[:, None] + bias * np.array([1.0, -1.0])
    won = rng.random(logits.shape) < sigmoid(logits)
    return np.where(rng.random(logits.shape) < ties, 0.5, won)


def true_rate(centre: float, spread: float, bias: float, ties: float) -> float:
    """The expectation of `verdicts` over qualities from a normal distribution, by Gauss–Hermite
    quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    logits = (centre + spread * nodes)[:, None] + bias * np.array([1.0, -1.0])
    return ties / 2 + (1 - ties) * float(weights @ sigmoid(logits).mean(1) / weights.sum())


def points_of(table: Array) -> Points:
    """Points of prompts [n, 2] as the evaluation makes them."""
    return prompt_points((f"{i:05}", str(k), float(table[i, k])) for i in range(len(table)) for k in (0, 1))


def win_rate_once(rng: Rng, n: int, setting: tuple[float, float, float, float]) -> tuple[bool, ...]:
    centre, spread, bias, ties = setting
    table = verdicts(rng, rng.normal(centre, spread, n), bias, ties)
    found = bootstrap_ci(list(table.mean(1)), RESAMPLES, draw_seed(rng))
    return (covers(found, true_rate(*setting)),)


def win_rate_cells(replicates: int, seed: int) -> Iterator[Cell]:
    for n in (100, 300, 805):
        for setting in (
            (0.0, 1.0, 0.0, 0.0),
            (1.0, 2.0, 1.5, 0.2),
            (-2.5, 1.0, 0.5, 0.1),
            (0.3, 0.5, 0.0, 0.6),
        ):
            (covered,) = shares(replicates, seed, partial(win_rate_once, n=n, setting=setting))
            yield f"n {n}, rate {true_rate(*setting):.2f}, bias {setting[2]}, ties {setting[3]}", covered


def difference_once(rng: Rng, n: int, centres: tuple[float, float]) -> tuple[bool, ...]:
    shared = rng.normal(0, 1.5, n)
    x, y = (verdicts(rng, shared + centre, 0.8, 0.1).mean(1) for centre in centres)
    truth = true_rate(centres[0], 1.5, 0.8, 0.1) - true_rate(centres[1], 1.5, 0.8, 0.1)
    return (covers(bootstrap_ci(list(x - y), RESAMPLES, draw_seed(rng)), truth),)


def difference_cells(replicates: int, seed: int) -> Iterator[Cell]:
    for n in (100, 300, 805):
        (covered,) = shares(replicates, seed, partial(difference_once, n=n, centres=(0.6, -0.2)))
        yield f"n {n}, two models", covered


def wilson_coverage(n: int, p: float) -> float:
    """The chance that the interval of a Binomial(n, p) holds p."""
    ways = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1))
    chances = [math.exp(way + k * math.log(p) + (n - k) * math.log(1 - p)) for k, way in enumerate(ways)]
    return sum(chance for k, chance in enumerate(chances) if covers(wilson(k, n), p))


def wilson_cells(replicates: int, seed: int) -> Iterator[Cell]:
    for n in (50, 100, 805):
        covered = [wilson_coverage(n, p) for p in np.linspace(0.05, 0.95, 61)]
        yield f"n {n}, mean over rates", sum(covered) / len(covered)
        yield f"{BESIDE}n {n}, lowest", min(covered)


def alpaca_rows(
    rng: Rng, n: int, model: float, wordy: float
) -> tuple[list[Row], dict[str, float], list[GamedRow]]:
    """Verdicts with soft labels around the length-controlled model's own curve, the difficulties, and a gamed
    baseline's rows."""
    difficulty, names = rng.normal(0, 1.5, n), [f"{i:06}" for i in range(n)]
    base = np.exp(rng.normal(7.0, 0.5, n)).astype(int)

    def judged(change: float, weights: tuple[float, float]) -> tuple[Array, Array, Array]:
        ours = np.maximum(1, base * np.exp(rng.normal(change, 0.4, n))).astype(int)
        delta = (base - ours) / (base - ours).std()
        mean = sigmoid(-1.5 * np.tanh(delta) + weights[0] * difficulty + weights[1])
        return ours, delta, rng.beta(0.5 * mean, 0.5 * (1 - mean))

    ours, _, p = judged(wordy, (0.9, model))
    rows = [
        Row(instruction=name, p=float(p[i]), length=int(ours[i]), baseline_length=int(base[i]))
        for i, name in enumerate(names)
    ]
    gamed = []
    for change in (-0.5, 0.3):
        _, delta, told = judged(change, (0.4, 0.0))
        gamed += [
            GamedRow(instruction=name, p=float(told[i]), delta=float(delta[i]))
            for i, name in enumerate(names)
        ]
    return rows, dict(zip(names, map(float, difficulty), strict=True)), gamed


def lc_once(
    rng: Rng, n: int, model: float, wordy: float, gaming: bool, penalty: float | None, truth: float
) -> tuple[bool, ...]:
    rows, difficulty, gamed = alpaca_rows(rng, n, model, wordy)
    told = gamed if gaming else ()
    found = length_controlled(
        rows, difficulty, told, penalty=penalty, resamples=RESAMPLES // 2, seed=draw_seed(rng)
    )
    return (covers(found.interval, truth),)


def lc_cells(replicates: int, seed: int) -> Iterator[Cell]:
    for n, model, wordy, gaming, penalty in (
        (100, -0.5, 0.3, False, WEAK),
        (300, -1.0, 0.2, True, WEAK),
        (805, 0.5, -0.2, True, None),
        (100, -0.5, 0.3, False, None),
    ):
        # Gamed rows pull on the weights, so what the score goes to is found from very many prompts.
        rows, difficulty, gamed = alpaca_rows(np.random.default_rng(seed), 200_000, model, wordy)
        far = length_controlled(rows, difficulty, gamed if gaming else (), resamples=1)
        once = partial(
            lc_once, n=n, model=model, wordy=wordy, gaming=gaming, penalty=penalty, truth=far.score
        )
        (covered,) = shares(replicates // 4, seed, once)
        how = f"{', gamed rows' if gaming else ''}{', C by cross-validation' if penalty is None else ''}"
        yield f"{BESIDE if penalty is None and n < 805 else ''}n {n}, score {far.score:.1f}{how}", covered


CUTS = np.array([-1.5, -0.4, 0.4, 1.5])
FIVE = ("B>>A", "B>A", "A=B", "A>B", "A>>B")
WORTH = np.array([(0.0, 3), (0.0, 1), (0.5, 1), (1.0, 1), (1.0, 3)])


def play(rng: Rng, n: int, centre: float, bias: float) -> tuple[Array, Array]:
    """The verdicts [n, 2] in both orders, from 0 (lost by far) to 4 (won by far), and the length of our
    answers [n]."""
    length = rng.integers(200, 2000, n)
    quality = rng.normal(centre, 1.2, n) + 0.8 * (length - 1000) / (length + 1001)
    seen = quality[:, None] + bias * np.array([1.0, -1.0]) + rng.logistic(0, 0.5, (n, 2))
    return np.searchsorted(CUTS, seen), length


def games_of(played: Array, lengths: Array) -> list[Game]:
    """The same as games against a baseline whose answers all have 1,000 characters."""
    return [
        Game(
            question=f"{i:06}",
            model="m",
            model_is_a=k == 0,
            verdict=FIVE[v if k == 0 else 4 - v],
            style=Style(int(lengths[i]), 0, 0, 0),
            baseline_style=Style(1000, 0, 0, 0),
        )
        for i, row in enumerate(played)
        for k, v in enumerate(row)
    ]


def arena_once(rng: Rng, n: int, centre: float, bias: float, truths: tuple[float, float]) -> tuple[bool, ...]:
    played, lengths = play(rng, n, centre, bias)
    games, flat = games_of(played, lengths), WORTH[played].reshape(-1, 2)
    won = list(np.repeat(100 * flat[:, 0], flat[:, 1].astype(int)))
    plain, styled = (
        arena_scores(games, controlled=controlled, resamples=RESAMPLES // 2, seed=draw_seed(rng))[
            "m"
        ].interval
        for controlled in (False, True)
    )
    by_game = bootstrap_ci(won, RESAMPLES // 2, draw_seed(rng))
    return covers(plain, truths[0]), covers(styled, truths[1]), covers(by_game, truths[0])


def arena_cells(replicates: int, seed: int) -> Iterator[Cell]:
    for n, centre, bias in ((250, 0.0, 0.0), (500, 0.7, 0.5)):
        many = games_of(*play(np.random.default_rng(seed), 100_000, centre, bias))
        truths = tuple(arena_scores(many, controlled=c, resamples=1)["m"].score for c in (False, True))
        once = partial(arena_once, n=n, centre=centre, bias=bias, truths=truths)
        plain, styled, by_game = shares(replicates // 4, seed, once)
        yield f"n {n}, score {truths[0]:.1f}, bias {bias}", plain
        yield f"n {n}, style-controlled score {truths[1]:.1f}, bias {bias}", styled
        yield f"{BESIDE}n {n}, games resampled, bias {bias}", by_game


def alarm_once(rng: Rng, n: int, bias: float) -> tuple[bool, ...]:
    table = verdicts(rng, rng.normal(0, 1.0, n), bias, 0.1)
    found = effect(points_of(table).values, 0.5, (0.0, 1.0), RESAMPLES, draw_seed(rng))
    return found.p <= 0.05, not covers(found.interval, 0.5)


def alarm_of_two_once(rng: Rng, n: int, bias: float) -> tuple[bool, ...]:
    shared = rng.normal(0, 1.0, n)
    x, y = paired(*(points_of(verdicts(rng, shared, bias, 0.1)) for _ in range(2)))
    found = effect(x - y, resamples=RESAMPLES, seed=draw_seed(rng))
    return found.p <= 0.05, not covers(found.interval, 0.0)


def alarm_cells(replicates: int, seed: int) -> Iterator[Cell]:
    for what, once in (("win rate", alarm_once), ("difference", alarm_of_two_once)):
        for n, bias in ((50, 2.0), (100, 0.5), (300, 3.0)):
            test, interval = shares(replicates, seed, partial(once, n=n, bias=bias))
            yield f"test, {what}, n {n}, bias {bias}", test
            yield f"interval, {what}, n {n}, bias {bias}", interval


KINDS: dict[str, Callable[[int, int], Iterator[Cell]]] = {
    "win_rate": win_rate_cells, "difference": difference_cells, "wilson": wilson_cells, "lc": lc_cells,
    "arena": arena_cells,
    "alarms": alarm_cells,
}  # fmt: skip


def is_fine(kind: str, cell: str, value: float) -> bool:
    """Whether a cell is where it must be."""
    if cell.startswith(BESIDE):
        return True
    return value <= MOST_ALARMS if kind == "alarms" else COVERAGE[0] <= value <= COVERAGE[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(KINDS), help="one kind")
    parser.add_argument(
        "--replicates",
        type=int,
        default=2000,
        help="simulated evaluations a cell; a quarter for lc and arena",
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    start = time.perf_counter()
    found: dict[str, dict[str, float]] = {}
    for kind, cells in KINDS.items():
        for cell, value in cells(args.replicates, args.seed) if args.only in (None, kind) else ():
            found.setdefault(kind, {})[cell] = round(value, 4)
            print(f"{kind}: {cell}: {100 * value:.1f} %", flush=True)
    outside = [
        f"{kind}: {cell}" for kind in found for cell, v in found[kind].items() if not is_fine(kind, cell, v)
    ]
    head = {
        "replicates": args.replicates,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps({**head, "outside": outside, **found}))
    return int(bool(outside))


if __name__ == "__main__":
    sys.exit(main())
