"""Arena-Hard's score: verdicts on two games a question in, each model's Bradley–Terry score against the
baseline in % out.

A game is one verdict on a model's answer and the baseline's; the two games of a question have the answers in
both orders. A strong verdict (>>) counts as three games, a tie as half a game for each side (arena-hard-auto
v0.1, show_result.py; Li et al., arXiv 2406.11939). With one baseline for all, the Bradley–Terry fit is the
weighted share of games won: each model meets it alone.

Style control (LMArena, https://blog.lmarena.ai/blog/2024/style-control/; utils_math.py of arena-hard-auto)
adds what a difference in length, headers, lists and bold text is worth, the same for all models, and scores
each as if both answers were of one style:

    logit P(model wins) = strength + Σ_k w_k · z_k,  z_k = (x_k − x_k') / (x_k + x_k' + 1) / sd_k,  score =
    100 · σ(strength)

z is not centred, as it is in the original, where the score then is that of the average style and not of equal
styles. Intervals resample questions with all their games; Arena-Hard resamples games, as if the two orders of
a question, and the three copies of a strong verdict, had nothing to do with each other, and its intervals are
too narrow for it.

    PYTHONPATH=src python benchmarks/coverage.py --only arena
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sao.errors import DataError
from sao.statistics import RESAMPLES, Array, Effect, effect_of_samples, percentiles, resample

WORTH = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
"""The points of A, and as how many games a verdict counts."""
RIDGE_STRENGTH, RIDGE_STYLE = 0.1, 0.5
"""Penalties on squares: scikit-learn's 1 halved, since the original's games stand in twice; a strength's also
over (ln 10)²."""
SWEEPS = 20
"""Rounds of coordinate descent before all signs are tried."""
_CODE = re.compile(r"```.*?```", re.DOTALL)
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.)\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer looks: its length (tokens or characters, the same for both sides), headers, list items,
    bold spans."""

    length: int
    headers: int
    items: int
    bold: int


def style_of(text: str, length: int | None = None) -> Style:
    """The style of a text, code blocks left out of the counts. `length` in tokens; the number of characters
    where None."""
    plain = _CODE.sub("", text)
    counts = (len(pattern.findall(plain)) for pattern in (_HEADER, _ITEM, _BOLD))
    return Style(len(text) if length is None else length, *counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """One verdict (see sao.evaluation.verdicts.parse_arena; None: unparseable) on a model and the baseline,
    and their styles."""

    question: str
    model: str
    model_is_a: bool
    verdict: str | None
    style: Style | None = None
    baseline_style: Style | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaScore:
    """A model's score in %, its 95 % interval by question, and the scores in the resamples, the same draws
    for all models.

    `bounds` are the uncontrolled score if every unparseable game had been lost by far, and won by far.
    """

    model: str
    score: float
    interval: tuple[float, float]
    questions: int
    games: int
    unparseable: int
    bounds: tuple[float, float]
    samples: Array


def arena_scores(
    games: Iterable[Game], *, controlled: bool = False, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, ArenaScore]:
    """Each model's score against the baseline, by name.

    Args:
        games: In any order.
        controlled: Style control; each game must have both styles.
        resamples: Of the questions.
        seed: Of the resamples.

    Raises:
        DataError: For a verdict that is none of the five, a model without a readable game, a game without
            styles to control.

    """
    data = _Games.of(sorted(games, key=_sort_key), controlled)
    whole = np.ones((1, len(data.questions)))
    if controlled:
        start = data.fit(whole)
        scores = _percent(start[0, : len(data.models)])
        samples = resample(
            lambda counts: _percent(data.fit(counts, start)[:, : len(data.models)]),
            len(data.questions),
            resamples,
            seed,
        )
    else:
        scores, samples = data.shares(whole)[0], resample(data.shares, len(data.questions), resamples, seed)
    return {
        name: ArenaScore(
            model=name,
            score=float(scores[i]),
            interval=percentiles(samples[:, i]),
            questions=len({g.question for g in data.of_model(name)}),
            games=len(data.of_model(name)),
            unparseable=sum(g.verdict is None for g in data.of_model(name)),
            bounds=(data.bound(name, 0.0), data.bound(name, 1.0)),
            samples=samples[:, i],
        )
        for i, name in enumerate(data.models)
    }


def difference(tuned: ArenaScore, base: ArenaScore) -> Effect:
    """Tuned's score less base's in points of %, both from one call of `arena_scores`: the same draws of
    questions."""
    return effect_of_samples(
        tuned.score - base.score, tuned.samples - base.samples, min(tuned.questions, base.questions)
    )


def _sort_key(game: Game) -> tuple[str, str, bool, str]:
    return game.question, game.model, game.model_is_a, game.verdict or ""


def _percent(strength: Array) -> Array:
    """100 · σ(strength)."""
    return np.asarray(50 + 50 * np.tanh(strength / 2))


def worth_of(game: Game) -> tuple[float, int] | None:
    """The model's points, and as how many games they count; None where the verdict is unparseable."""
    if game.verdict is None:
        return None
    if game.verdict not in WORTH:
        raise DataError(
            f"question {game.question!r}: {game.verdict!r} is none of Arena-Hard's verdicts: "
            f"{', '.join(WORTH)}",
            key="verdicts",
        )
    points, times = WORTH[game.verdict]
    return (points if game.model_is_a else 1 - points), times


@dataclass(frozen=True, slots=True)
class _Games:
    """The games, and as arrays [g] the readable ones: numbers of model and question, points, times, style
    differences [g, 4]."""

    games: list[Game]
    models: list[str]
    questions: list[str]
    model: NDArray[np.int64]
    question: NDArray[np.int64]
    points: Array
    times: Array
    style: Array

    @classmethod
    def of(cls, games: list[Game], controlled: bool) -> _Games:
        read = [(game, worth) for game in games if (worth := worth_of(game)) is not None]
        models, questions = sorted({g.model for g in games}), sorted({g.question for g, _ in read})
        if unread := set(models) - {g.model for g, _ in read}:
            raise DataError(
                f"no readable verdict on {', '.join(sorted(unread))}. Look at the judge's answers",
                key="verdicts",
            )
        if not models:
            raise DataError("no games, so there are no scores. Judge some answers first", key="games")
        model_number = {name: i for i, name in enumerate(models)}
        question_number = {name: i for i, name in enumerate(questions)}
        style = np.array([_difference(g) for g, _ in read]) if controlled else np.zeros((len(read), 4))
        return cls(
            games=games,
            models=models,
            questions=questions,
            model=np.array([model_number[g.model] for g, _ in read]),
            question=np.array([question_number[g.question] for g, _ in read]),
            points=np.array([points for _, (points, _) in read]),
            times=np.array([times for _, (_, times) in read], dtype=np.float64),
            style=_in_standard_deviations(style),
        )

    def of_model(self, name: str) -> list[Game]:
        """The games of one model, unparseable ones too."""
        return [game for game in self.games if game.model == name]

    def bound(self, name: str, points: float) -> float:
        """The share won in % if every unparseable game of the model had been worth so many points, thrice."""
        worth = [worth_of(game) or (points, 3) for game in self.of_model(name)]
        return 100 * sum(p * times for p, times in worth) / sum(times for _, times in worth)

    def shares(self, counts: Array) -> Array:
        """The share of games won in % [b, models], the questions drawn `counts` [b, questions] times; ½ where
        none was drawn."""
        won, played = np.zeros((2, len(self.questions), len(self.models)))
        np.add.at(won, (self.question, self.model), self.times * (self.points - 0.5))
        np.add.at(played, (self.question, self.model), self.times)
        total = counts @ played
        return np.asarray(
            50 + 100 * np.divide(counts @ won, total, out=np.zeros_like(total), where=total > 0)
        )

    def fit(self, counts: Array, start: Array | None = None) -> Array:
        """Strengths and style weights [b, models + 4]."""
        x = np.concatenate([np.eye(len(self.models))[self.model], self.style], axis=1)
        ridge = [RIDGE_STRENGTH] * len(self.models) + [RIDGE_STYLE] * self.style.shape[1]
        return soft_logistic(
            x[None], self.points, counts[:, self.question] * self.times, ridge=ridge, start=start
        )


def _in_standard_deviations(style: Array) -> Array:
    """Each column over its standard deviation; 0 where all have one value, which tells nothing."""
    deviation = style.std(axis=0)
    return np.asarray(np.divide(style, deviation, out=np.zeros_like(style), where=deviation > 1e-9))


def _difference(game: Game) -> list[float]:
    """(x − x') / (x + x' + 1) of each part of the style."""
    if game.style is None or game.baseline_style is None:
        raise DataError(
            f"question {game.question!r}: a game without both styles. Give them, or score without style "
            "control",
            key="style",
        )
    ours, theirs = game.style, game.baseline_style
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in Style.__slots__]
    return [(x - y) / (x + y + 1) for x, y in pairs]


def soft_logistic(
    x: Array,
    y: Array,
    weights: Array,
    *,
    lasso: float = 0.0,
    ridge: float | Sequence[float] = 0.0,
    start: Array | None = None,
) -> Array:
    """Logistic regression for labels from 0 to 1, many problems at once, by Newton's method with halved
    steps.

    Minimises Σ w_i [log(1 + e^η_i) − y_i η_i] + lasso · Σ|β_j| + ½ Σ ridge_j β_j², η = xβ. Labels turned
    round (1 − y, and x with the other sign in some columns) turn the weights round.

    Args:
        x: [b, n, k], or [1, n, k] for the same rows in all problems.
        y: [n] labels.
        weights: [b, n], not negative.
        lasso: Strength of the penalty on |β|.
        ridge: Strength of that on β², one number or [k].
        start: [b, k] or [1, k], where the search starts; 0 if None.

    Returns:
        β [b, k].

    """
    b, k = len(weights), x.shape[2]
    beta = np.zeros((b, k)) if start is None else np.broadcast_to(start, (b, k)).copy()
    pull = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (k,))

    def objective(at: Array) -> Array:
        penalty = lasso * np.abs(at).sum(1) + 0.5 * (pull * at**2).sum(1)
        return np.asarray((log_losses(x, y, at) * weights).sum(1) + penalty)

    now = objective(beta)
    for _ in range(100):
        half = np.tanh(np.matmul(x, beta[:, :, None])[:, :, 0] / 2)  # σ(η) = ½ + ½ tanh(η/2)
        gradient = np.matmul(((y - 0.5 - 0.5 * half) * weights)[:, None, :], x)[:, 0]
        curved = x * (0.25 * (1 - half**2) * weights)[:, :, None]
        information = np.matmul(curved.transpose(0, 2, 1), x) + 1e-9 * np.eye(k)
        linear = np.matmul(information, beta[:, :, None])[:, :, 0] + gradient
        step = _lasso(information + np.diag(pull), linear, lasso, beta) - beta
        for _ in range(40):
            then = objective(beta + step)
            worse = then > now + 1e-12 * np.abs(now)
            if not worse.any():
                break
            step[worse] /= 2
        beta, now = beta + step, then
        if np.abs(step).max() < 1e-8:
            break
    return beta


def log_losses(x: Array, y: Array, beta: Array) -> Array:
    """log(1 + e^η) − yη [b, n], written so that it is symmetric in the two labels."""
    eta = np.matmul(x, beta[:, :, None])[:, :, 0]
    size = np.abs(eta)
    return np.asarray(size / 2 + np.log1p(np.exp(-size)) - (y - 0.5) * eta)


def _lasso(a: Array, linear: Array, strength: float, start: Array) -> Array:
    """The z [b, k] that minimises ½ z'Az − linear'z + strength · Σ|z|, by coordinate descent where there is a
    strength, and by trying all signs where that is slow (few or separated prompts)."""
    if not strength:
        return np.asarray(np.linalg.solve(a, linear[:, :, None])[:, :, 0])
    z = start.copy()
    moved = np.zeros(len(z))
    for _ in range(SWEEPS):
        moved = np.zeros(len(z))
        for j in range(z.shape[1]):
            rest = linear[:, j] - (a[:, j] * z).sum(1) + a[:, j, j] * z[:, j]
            new = np.sign(rest) * np.maximum(np.abs(rest) - strength, 0) / a[:, j, j]
            moved = np.maximum(moved, np.abs(new - z[:, j]))
            z[:, j] = new
        if moved.max() < 1e-10:
            return z
    slow = moved >= 1e-10
    z[slow] = _lasso_by_signs(a[slow], linear[slow], strength)
    return z


def _lasso_by_signs(a: Array, linear: Array, strength: float) -> Array:
    """The same z [b, k] for a small k: the best of 3ᵏ points, one for each choice of signs (+, −, 0).

    With the signs of the minimum known, the minimum is the solution of linear equations.
    """
    signs = np.array(list(product((-1.0, 0.0, 1.0), repeat=linear.shape[1])))[:, None, :]
    free = np.abs(signs)
    equations = a * free[..., None] * free[..., None, :] + np.eye(linear.shape[1]) * (1 - free)[..., None]
    z = np.linalg.solve(equations, ((linear - strength * signs) * free)[..., None])[..., 0]
    size = 0.5 * (np.matmul(a, z[..., None])[..., 0] * z).sum(-1) - (linear * z).sum(-1)
    best = np.argmin(size + strength * np.abs(z).sum(-1), axis=0)
    return np.asarray(z[best, np.arange(len(a))])
