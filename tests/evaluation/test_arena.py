"""Arena-Hard's scores with a known answer, and style control."""

import random
from dataclasses import replace

import numpy as np
import pytest

from sao.errors import DataError
from sao.evaluation import arena
from sao.evaluation.arena import Game, Style, arena_scores, style_of
from support.errors import raises
from support.made_up import sigmoid

# Arena-Hard


def game(question: str, verdict: str | None, model_is_a: bool = True, model: str = "m") -> Game:
    return Game(question=question, model=model, model_is_a=model_is_a, verdict=verdict)


def test_arena_by_hand() -> None:
    """Won by far and lost: 3 of 4 games. A tie and a loss by far: half of 4 … in all (3 + ½) of 8."""
    games = [game("1", "A>>B"), game("1", "A>B", False), game("2", "A=B"), game("2", "A>>B", False)]
    found = arena_scores(games, resamples=500)["m"]
    assert found.score == pytest.approx(100 * 3.5 / 8)
    assert (found.questions, found.games, found.unparseable) == (2, 4, 0)
    assert found.bounds == (found.score, found.score)
    # A resample holds question 1 twice (3/4), question 2 twice (0.5/4), or both.
    assert set(np.round(found.samples, 6)) == {75.0, 43.75, 12.5}


def test_arena_s_unparseable_games_are_counted_and_bounded() -> None:
    found = arena_scores([game("1", "A>B"), game("1", None, False), game("2", "B>A")], resamples=5)["m"]
    assert found.score == 50.0 and found.unparseable == 1
    assert found.bounds == pytest.approx((100 * 1 / 5, 100 * 4 / 5))


def test_arena_turned_round_and_against_itself() -> None:
    rng = random.Random(0)
    games = [game(str(i // 2), rng.choice(list(arena.WORTH)), i % 2 == 0) for i in range(60)]
    ours = arena_scores(games, resamples=50)["m"]
    theirs = arena_scores([replace(g, model_is_a=not g.model_is_a) for g in games], resamples=50)["m"]
    assert ours.score + theirs.score == pytest.approx(100, abs=1e-12)
    assert np.allclose(ours.samples + theirs.samples, 100)
    same = arena_scores([replace(g, verdict="A=B") for g in games], resamples=20)["m"]
    assert (same.score, same.interval) == (50.0, (50.0, 50.0))
    shuffled = arena_scores(rng.sample(games, len(games)), resamples=50)["m"]
    assert shuffled.score == ours.score and np.array_equal(shuffled.samples, ours.samples)


def test_a_judge_of_slots_gives_arena_fifty() -> None:
    found = arena_scores([game(str(i // 2), "A>>B", i % 2 == 0) for i in range(40)], resamples=50)["m"]
    assert (found.score, found.interval) == (50.0, (50.0, 50.0))


def styled(n: int, strength: dict[str, float], length_weight: float) -> list[Game]:
    """Games in which a longer answer wins more often, by how much the answers differ, whatever the model's
    strength."""
    rng, games = np.random.default_rng(5), []
    for model, centre in strength.items():
        for i in range(n):
            ours, theirs = (
                Style(int(rng.integers(500, 3000)), 3, 5, 2),
                Style(int(rng.integers(300, 1500)), 0, 1, 0),
            )
            z = (ours.length - theirs.length) / (ours.length + theirs.length)
            won = rng.random() < sigmoid(np.array(centre + length_weight * z))
            games.append(Game(question=str(i), model=model, model_is_a=True, verdict="A>B" if won else "B>A",
            style=ours,
                              baseline_style=theirs))  # fmt: skip
    return games


def test_style_control_takes_out_what_length_won() -> None:
    games = styled(1500, {"even": 0.0, "strong": 1.0}, 3.0)
    raw, controlled = arena_scores(games, resamples=2), arena_scores(games, controlled=True, resamples=200)
    assert raw["even"].score > 65
    # Headers, items and bold text differ by the same in all games: they have no spread, hence no weight of
    # their own.
    assert controlled["even"].score == pytest.approx(50, abs=3.5)
    assert controlled["strong"].score == pytest.approx(100 * sigmoid(np.array(1.0)), abs=3.5)
    gain = arena.difference(controlled["strong"], controlled["even"])
    assert gain.interval[0] > 10 and gain.n == 1500 and gain.p < 0.02


def test_arena_s_errors() -> None:
    with raises(DataError, key="verdicts", match="none of Arena-Hard's verdicts"):
        arena_scores([game("1", "A<B")])
    with raises(DataError, key="verdicts"):
        arena_scores([game("1", None), game("1", "A=B", model="other")])
    with raises(DataError, key="games"):
        arena_scores([])
    with raises(DataError, key="style"):
        arena_scores([game("1", "A=B")], controlled=True)


def test_style_by_hand() -> None:
    text = "# Title\n\n- one\n* two **bold** and __bold__\n2. three\n\n###### deep\n#no header\n```\n# code\n- code\n```\n**open"  # noqa: E501
    assert style_of(text) == Style(len(text), headers=2, items=3, bold=2)
    assert style_of("plain", length=1) == Style(1, 0, 0, 0)
