"""The length-controlled win rate with a known answer."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sao.errors import DataError
from sao.evaluation import alpaca_files
from sao.evaluation.alpaca_files import Annotation, Output
from sao.evaluation.arena import soft_logistic
from sao.evaluation.length_control import (
    ADJUSTED,
    BASELINE,
    LC,
    OFFICIAL_BASELINE,
    GamedRow,
    Row,
    Weights,
    difference,
    length_controlled,
    score_name,
    win_rate,
)
from support.errors import raises
from support.made_up import sigmoid
from support.repository import load_script

PLANTED = Weights(length=-1.5, difficulty=0.9, model=-0.7)


def planted(
    n: int = 300, weights: Weights = PLANTED, seed: int = 0
) -> tuple[list[Row], dict[str, float], list[GamedRow]]:
    """Rows whose preferences are exactly the model's own, so that a fit without a penalty must find the
    weights."""
    rng = np.random.default_rng(seed)
    names, difficulty = [f"instruction {i}" for i in range(n)], rng.normal(0.2, 1.5, n)
    base, ours = rng.integers(200, 3000, n), rng.integers(200, 3000, n)
    delta = base - ours
    p = sigmoid(
        weights.length * np.tanh(delta / delta.std(ddof=1)) + weights.difficulty * difficulty + weights.model
    )
    rows = [
        Row(instruction=names[i], p=float(p[i]), length=int(ours[i]), baseline_length=int(base[i]))
        for i in range(n)
    ]
    gamed = []
    for shift in (-1.0, 0.8):
        told = rng.normal(shift, 1, n)
        soft = sigmoid(weights.length * np.tanh(told) + weights.difficulty * difficulty)
        gamed += [GamedRow(instruction=names[i], p=float(soft[i]), delta=float(told[i])) for i in range(n)]
    return rows, dict(zip(names, map(float, difficulty), strict=True)), gamed


def turned(rows: list[Row]) -> list[Row]:
    """The same verdicts with the baseline and the model in each other's place."""
    return [
        replace(
            row,
            p=None if row.p is None else 1 - row.p,
            length=row.baseline_length,
            baseline_length=row.length,
        )
        for row in rows
    ]


@pytest.mark.parametrize("gaming", [False, True])
def test_planted_weights_are_found(gaming: bool) -> None:
    rows, difficulty, gamed = planted()
    found = length_controlled(rows, difficulty, gamed if gaming else (), penalty=1e8, resamples=2)
    for name in Weights.__slots__:
        assert getattr(found.weights, name) == pytest.approx(getattr(PLANTED, name), abs=1e-4)
    expected = 100 * sigmoid(0.9 * np.array(list(difficulty.values())) - 0.7).mean()
    assert found.score == pytest.approx(expected, abs=1e-3)
    assert found.score == pytest.approx(win_rate(found.weights, difficulty.values()), abs=1e-9)
    by_folds = length_controlled(rows, difficulty, gamed, penalty=None, resamples=2)
    assert by_folds.score == pytest.approx(expected, abs=0.2)


def test_length_alone_wins_nothing() -> None:
    """A judge that looks at the length only, and a model that is mostly longer: it wins, but not with the
    length taken out."""
    rows = [row for i, row in enumerate(planted()[0]) if row.length > row.baseline_length or i % 4 == 0]
    delta = np.array([row.baseline_length - row.length for row in rows])
    soft = sigmoid(-2 * np.tanh(delta / delta.std(ddof=1)))
    rows = [replace(row, p=float(p)) for row, p in zip(rows, soft, strict=True)]
    assert soft.mean() > 0.65
    assert length_controlled(rows, penalty=1e6, resamples=2).score == pytest.approx(50, abs=0.01)


def test_the_order_of_rows_plays_no_part() -> None:
    rows, difficulty, gamed = planted(120)
    rows[5] = replace(rows[5], p=None)
    first = length_controlled(rows, difficulty, gamed, penalty=None, resamples=40, seed=3)
    random.Random(1).shuffle(rows)
    random.Random(2).shuffle(gamed)
    second = length_controlled(
        rows, dict(reversed(difficulty.items())), gamed, penalty=None, resamples=40, seed=3
    )
    assert (first.score, first.interval, first.weights, first.penalty) == (
        second.score, second.interval, second.weights, second.penalty,
    )  # fmt: skip
    assert first.n == 119 and np.array_equal(first.samples, second.samples)


def test_a_win_over_b_is_one_less_b_over_a() -> None:
    rows, difficulty, gamed = planted(150)
    rows = [replace(row, p=round(row.p or 0, 2)) for row in rows]
    back = [replace(row, p=1 - row.p, delta=-row.delta) for row in gamed]
    ours = length_controlled(rows, difficulty, gamed, penalty=None, resamples=30)
    theirs = length_controlled(turned(rows), difficulty, back, penalty=None, resamples=30)
    assert ours.score + theirs.score == pytest.approx(100, abs=1e-6)
    assert np.allclose(ours.samples + theirs.samples, 100, atol=1e-6)
    assert ours.weights.length == pytest.approx(theirs.weights.length, abs=1e-7)
    a, b = PLANTED, Weights(length=-1.0, difficulty=0.4, model=0.3)
    d = list(difficulty.values())
    assert win_rate(a, d, b) + win_rate(b, d, a) == pytest.approx(100, abs=1e-12)


def test_the_baseline_against_itself_has_exactly_fifty() -> None:
    rows, difficulty, gamed = planted(40)
    same = [replace(row, p=0.5, length=row.baseline_length) for row in rows]
    found = length_controlled(same, difficulty, gamed, resamples=5)
    assert (found.score, found.interval, found.error) == (50.0, (50.0, 50.0), 0.0)
    assert win_rate(PLANTED, difficulty.values(), PLANTED) == 50.0
    assert win_rate(BASELINE, difficulty.values()) == 50.0


def test_difficulty_goes_by_the_instruction_and_folds_by_the_set_s_order() -> None:
    rows, difficulty, gamed = planted(100)
    wrong = dict(zip(difficulty, reversed(difficulty.values()), strict=True))
    found = [
        length_controlled(rows, known, penalty=1e6, resamples=2).weights for known in (difficulty, wrong)
    ]
    assert found[0].difficulty == pytest.approx(0.9, abs=1e-3) and abs(found[1].difficulty) < 0.4
    noisy = [
        replace(row, p=float(np.random.default_rng(i).random() < (row.p or 0))) for i, row in enumerate(rows)
    ]
    by_order = length_controlled(noisy, difficulty, gamed, order=list(difficulty), penalty=None, resamples=2)
    mixed = random.Random(0).sample(noisy, len(noisy))
    assert (
        length_controlled(mixed, difficulty, gamed, order=list(difficulty), penalty=None, resamples=2).score
        == by_order.score
    )


def test_two_models_are_compared_on_the_same_draws() -> None:
    base, difficulty, _ = planted(200)
    tuned = [replace(row, p=min(1.0, (row.p or 0) + 0.08)) for row in base]
    a, b = (length_controlled(rows, difficulty, resamples=400, seed=4) for rows in (tuned, base))
    found = difference(a, b)
    assert found.mean == pytest.approx(a.score - b.score) and found.mean > 4
    assert found.interval[1] - found.interval[0] < (b.interval[1] - b.interval[0]) / 2
    assert found.p == pytest.approx(2 / 401) and found.n == 200
    with raises(DataError, key="scores"):
        difference(a, length_controlled(base[1:], difficulty, resamples=400))


def test_what_cannot_be_fitted_is_an_error() -> None:
    rows, difficulty, _ = planted(10)
    with raises(DataError, key="--difficulty", match="2 of 10"):
        length_controlled(rows, {name: value for name, value in difficulty.items() if name[-1] not in "34"})
    with raises(DataError, key="verdicts"):
        length_controlled([replace(row, p=None) for row in rows], difficulty)


@pytest.mark.parametrize(("length", "p"), [(100, 0.25), (300, 1.0)])
def test_lengths_without_spread_and_wins_without_end(length: int, p: float) -> None:
    """All differences equal: no length effect can be found. All games won: the penalty keeps the weights
    finite."""
    rows = [Row(instruction=str(i), p=p, length=length, baseline_length=200) for i in range(30)]
    found = length_controlled(rows, resamples=20)
    assert found.weights.length == 0 and found.weights.difficulty == 0
    assert found.score == pytest.approx(100 * p, abs=2)


def test_the_name_lc_is_for_the_official_setting_only() -> None:
    official = [f"q{i}" for i in range(805)]
    difficulty = dict.fromkeys(official, 0.0)
    gamed = [GamedRow(instruction=text, p=0.5, delta=0.0) for text in official * 2]
    assert score_name(official, OFFICIAL_BASELINE, official, difficulty, gamed) == LC
    assert score_name(official[1:], OFFICIAL_BASELINE, official, difficulty, gamed) == ADJUSTED
    assert score_name(official, "my-baseline", official, difficulty, gamed) == ADJUSTED
    assert score_name(official, OFFICIAL_BASELINE, None, difficulty, gamed) == ADJUSTED
    assert score_name(official, OFFICIAL_BASELINE, official, None, gamed) == ADJUSTED
    assert score_name(official, OFFICIAL_BASELINE, official, difficulty, gamed[1:]) == ADJUSTED
    assert score_name(official[:9], OFFICIAL_BASELINE, official[:9], difficulty, gamed) == ADJUSTED


@pytest.mark.parametrize(("lasso", "ridge"), [(0.0, 1.0), (0.0, 20.0), (4.0, 0.0), (40.0, 0.0)])
def test_the_fit_is_scikit_learn_s(lasso: float, ridge: float) -> None:
    """Soft labels as two weighted rows each. saga takes the penalty as C = 1/strength, and the lasso as
    l1_ratio = 1."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, y, weights = rng.normal(0, 1, (200, 3)), rng.random(200), rng.random(200) * 2
    ours = soft_logistic(x[None], y, weights[None], lasso=lasso, ridge=ridge)[0]
    theirs = linear_model.LogisticRegression(
        C=1 / (lasso or ridge),
        l1_ratio=float(lasso > 0),
        solver="saga",
        fit_intercept=False,
        tol=1e-10,
        max_iter=100_000,
    )
    theirs.fit(
        np.concatenate([x, x]), np.repeat([1, 0], 200), np.concatenate([weights * y, weights * (1 - y)])
    )
    assert ours == pytest.approx(theirs.coef_[0], abs=1e-5)


def test_many_fits_at_once_are_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    x, y, weights = rng.normal(0, 1, (80, 2)), rng.random(80), rng.integers(0, 3, (5, 80)).astype(float)
    together = soft_logistic(x[None], y, weights, lasso=0.5)
    alone = [soft_logistic(x[None], y, row[None], lasso=0.5)[0] for row in weights]
    assert np.allclose(together, alone, atol=1e-6)
    separated = soft_logistic(x[None], (x[:, 0] > 0).astype(float), weights, ridge=0.01)
    assert np.isfinite(separated).all() and (separated[:, 0] > 5).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_few_prompts_are_fitted_to_the_minimum(n: int) -> None:
    """Few draws are often separated: the minimum then lies far out and coordinate descent creeps there. At a
    minimum the loss's slope is −strength · sign(β), and within ± strength where β is 0."""
    strength = 1e-4
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = np.stack([np.tanh(rng.normal(0, 1, n)), np.zeros(n), np.ones(n)], axis=1)
        y = rng.integers(0, 2, n).astype(float)
        weights = rng.multinomial(n, np.full(n, 1 / n), 40).astype(float)
        beta = soft_logistic(x[None], y, weights, lasso=strength)
        slope = ((0.5 + 0.5 * np.tanh(beta @ x.T / 2) - y) * weights) @ x
        off = np.where(beta == 0, np.abs(slope) - strength, np.abs(slope + strength * np.sign(beta)))
        assert off.max() < 1e-3 * strength


def test_ten_thousand_resamples_of_four_questions_take_seconds() -> None:
    """They took minutes. One of 16 draws holds lost questions only, so the interval is the whole span."""
    rows = [
        Row(instruction=str(i), p=float(i > 1), length=10 + 40 * i, baseline_length=100) for i in range(4)
    ]
    started = time.process_time()
    found = length_controlled(rows)
    assert time.process_time() - started < 20
    assert found.interval == pytest.approx((0, 100), abs=0.01)


# The benchmark on published files, on a made-up clone with a known answer


@pytest.fixture
def published() -> ModuleType:
    """benchmarks/alpaca_eval.py."""
    return load_script("benchmarks/alpaca_eval.py")


def write_clone(root: Path, module: ModuleType) -> None:
    """A clone of AlpacaEval's layout with one model of planted weights."""
    rows, difficulty, gamed = planted(200)
    order = list(difficulty)
    verdicts = [
        Annotation(instruction=r.instruction, output_1="b" * r.baseline_length, generator_1=OFFICIAL_BASELINE,
                   output_2="o" * r.length, generator_2="ours", annotator=module.ANNOTATOR, p=r.p)
        for r in reversed(rows)
    ]  # fmt: skip
    line = replace(
        alpaca_files.standing_of(verdicts), length_controlled_winrate=win_rate(PLANTED, difficulty.values())
    )
    texts = {
        f"results/ours/{module.ANNOTATOR}/annotations.json": alpaca_files.annotations_json(verdicts),
        module.OUTPUTS: alpaca_files.outputs_json(Output(instruction=t, output="",
        generator=OFFICIAL_BASELINE) for t in order),
        module.LEADERBOARD: alpaca_files.leaderboard_csv({"ours": line, "not in results": line}),
        module.WEIGHTS: f",{','.join(alpaca_files.WEIGHTS)}\nours,-1.5,0.9,-0.7\n",
        "instruction_difficulty.csv": "\n".join([",d", *(f"{i},{difficulty[t]!r}" for i,
        t in enumerate(order))]),
        "df_gamed.csv": "\n".join(
            ["model,index,std_delta_len,preference",
             *(f"x,{order.index(g.instruction)},{g.delta!r},{g.p!r}" for g in gamed)]
        ),
    }  # fmt: skip
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_benchmark_finds_the_planted_scores(
    published: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["alpaca_eval.py", str(tmp_path)])
    assert published.main() == 1
    assert "Give a clone of github.com/tatsu-lab/alpaca_eval" in capsys.readouterr().err
    write_clone(tmp_path, published)
    assert published.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["models"], found["of_leaderboard"], found["annotations_in_other_order"]) == (1, 2, 1)
    assert found["win_rate"]["largest_error"] < 1e-9 and found["from_weights"]["largest_error"] < 1e-9
    assert found["refit"]["checked"] == 1 and found["refit"]["largest_error"] < 0.2
