"""The audit finds what was planted: judges with known accuracy, slot bias, taste for length and
overconfidence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sao.analysis.audit import audit, read_labels, self_tests, verdict_on
from sao.analysis.audit.tally import RateSums, Tally
from sao.analysis.label import label, sample
from sao.analysis.summary import worth_of_judge
from sao.cli import main
from sao.config import Config, make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError, StoreError
from sao.method import run
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from sao.records import Response
from sao.report.audit import show_audit
from sao.report.summary import show_summary
from sao.results.audit import Agreement, Audit, Coverage, LogOdds, SelfTest
from sao.results.base import Rate
from sao.results.summary import Gain, OracleOutcome, OracleWins, Summary
from sao.stages.calibration import Calibration
from sao.statistics import ratio_ci, wilson
from support import planted
from support.checks import known
from support.errors import raises

SIZE = 600
MINUS_ZERO = re.compile(r"-0(?:\.0*)?(?![\d.])")
"""A zero with a sign, such as -0.0."""


def recipe(**sections: Any) -> Config:
    base: dict[str, Any] = {
        "engine": {"name": "scripted"},
        "personas": {"source": "none", "n": SIZE, "held_out": 0},
        "pairs": {"min_p": 0.8},
    }
    return make_config({**base, **sections})


def audited(
    root: Path, p_first: Callable[[str, str], float], known: bool = True, **sections: Any
) -> tuple[Reader, Audit]:
    """A run judged by a planted judge, and what the audit says of it."""
    engine = ScriptedEngine(reply=planted.reply, choose=planted.judge(p_first))
    config = recipe(**sections)
    run(config, root, until="pairs", engine=engine)
    folder = reader(config, root, engine)
    folder.gold = planted.gold if known else None
    return folder, audit(folder)


def covers(interval: Sequence[float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9])
def test_accuracy_is_recovered(tmp_path: Path, accuracy: float) -> None:
    """A 95 % interval misses the truth in one of twenty runs: of eight runs at most two may (a chance of 0.6
    %)."""
    misses = 0
    for seed in range(8):
        _, found = audited(tmp_path / str(seed), planted.noisy(accuracy), seed=seed)
        judge = found.judge
        misses += not covers(judge.accuracy.ci95, accuracy)
        assert judge.accuracy.rate == pytest.approx(accuracy, abs=0.08)
        assert judge.accuracy.ci95[1] - judge.accuracy.ci95[0] < 0.09
        assert judge.flip_rate.rate == 0.0
        assert covers(judge.first_slot_rate.ci95, 0.5)
        assert {0.6: "weak judge", 0.75: "", 0.9: ""}[accuracy] in found.verdict
    assert misses <= 2


@pytest.mark.parametrize("bias", [-1.5, 0.4, 2.0])
def test_slot_bias_is_recovered_and_taken_away(tmp_path: Path, bias: float) -> None:
    _, found = audited(tmp_path, planted.noisy(0.8, bias=bias))
    judge = found.judge
    assert judge.position_bias_nats == pytest.approx(bias, abs=1e-6)
    assert judge.order_agreement == 1.0  # once the bias is gone
    flips = abs(bias) > math.log(0.8 / 0.2)
    assert judge.flip_rate.rate == float(flips)
    assert (known(judge.first_slot_rate.rate) > 0.99) == (bias > math.log(4))
    assert found.kept.label_accuracy.rate == pytest.approx(0.8, abs=0.05)
    assert known(found.kept.share) > 0.99  # log-odds of ±ln 4 reach min_p 0.8
    slot = known(judge.effects).slot
    if not flips:
        assert abs(slot.log_odds) < 3 * slot.se


def test_overconfidence_shows_in_the_temperature(tmp_path: Path) -> None:
    """Each order is right 80 % of the time, alone, but claims far more: two agree in 0.8² + 0.2² = 68 % of
    the cases."""
    claims = planted.noisy(0.8, temperature=0.25, shared=False)
    agreed, said = [], []
    for seed in range(6):
        _, found = audited(tmp_path / str(seed), claims, seed=seed, pairs={"min_p": 0.5})
        agreed.append(known(found.judge.order_agreement))
        assert found.judge.temperature == pytest.approx(4.0, rel=0.35)
        said += [row.p for row in known(found.calibration).bins]
    pairs_in_all = 6 * SIZE
    assert covers(list(wilson(sum(agreed) / 6 * pairs_in_all, pairs_in_all)), 0.68)
    # Where the orders agree: 0.68 · (p² + (1 − p)²) + 0.32 · ½ = 0.68, so p = 0.865, and not the 0.996 that
    # is claimed.
    assert len(said) == 6
    assert sum(said) / 6 == pytest.approx(0.865, abs=0.015)
    _, raw = audited(
        tmp_path, planted.noisy(0.8, temperature=0.25, shared=False), pairs={"min_p": 0.5, "calibrate": False}
    )
    assert [row.p for row in known(raw.calibration).bins] == [pytest.approx(0.996, abs=0.001)]


def test_labels_that_cannot_be_read_take_no_result_away(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    (folder.root / "labels.jsonl").write_text("no label\n{}\n")
    with raises(DataError, key="labels", match=r"labels\.jsonl, line 1"):
        audit(folder)
    assert worth_of_judge(folder).startswith("not known: ")


def test_a_judge_that_always_says_first_is_none(tmp_path: Path) -> None:
    folder, found = audited(tmp_path, planted.always_first)
    assert found.judge.first_slot_rate.rate == 1.0
    assert found.judge.flip_rate.rate == 1.0
    assert found.kept.pairs == 0
    assert found.verdict.startswith("no judge: position bias decides its verdicts")
    assert folder.stage("pairs").counts.records == 0


def test_a_judge_whose_orders_agree_by_chance_is_none() -> None:
    """As SmolLM2's is after a prefill: no taste for one slot alone, but the swap turns most of its
    verdicts."""

    def said(flips: float, expected: float, share: float = 0.08) -> str:
        rates = {"first_slot_rate": 0.31, "flip_rate": flips, "longer_wins_rate": 0.5}
        update = {name: Rate(rate=rate, ci95=(0.0, 1.0), n=100) for name, rate in rates.items()}
        judge = Tally(Calibration()).figures().model_copy(update=update)
        unknown = Rate(rate=None, ci95=(0.0, 1.0), n=0)
        coverage = [Coverage(min_p=0.5, share=share, accuracy=unknown, expected=expected)]
        return verdict_on(judge, coverage)

    assert said(0.85, 0.501).startswith("no judge: swapped answers flip 85 %")
    assert said(0.85, 0.501, share=0.0).startswith("no judge: swapped answers flip 85 %")
    assert said(0.45, 0.501).startswith("judge that flips 45 %")
    assert said(0.6, 0.7).startswith("judge that flips 60 %")


def test_a_taste_for_length_is_told_from_one_for_quality(tmp_path: Path) -> None:
    _, found = audited(tmp_path / "long", planted.always_longer)
    assert found.judge.longer_wins_rate.rate == 1.0
    assert "it takes the longer answer" in found.verdict
    assert covers(found.judge.accuracy.ci95, 0.5)
    assert not known(found.judge.effects).converged
    _, fair = audited(tmp_path / "fair", planted.noisy(0.9))
    length = known(known(fair.judge.effects).length)
    assert abs(length.log_odds) < 2.6 * length.se
    assert known(known(fair.judge.effects).quality).log_odds > 3

    def both(first: str, second: str) -> float:
        """Log-odds of 1 for each doubling of the length, and the rest by quality."""
        gap = math.log2(len(first) / len(second)) + 3 * (planted.quality(first) - planted.quality(second))
        return float(planted.unit("coin", first, second) < 1 / (1 + math.exp(-gap)))

    _, mixed = audited(tmp_path / "mixed", both)
    effects = mixed.judge.effects
    for name, truth in (("length", 1.0), ("quality", 3.0), ("slot", 0.0)):
        assert abs(getattr(effects, name).log_odds - truth) < 2.6 * getattr(effects, name).se


def test_the_curve_knows_what_the_filter_is_worth(tmp_path: Path) -> None:
    """A judge who is the surer the larger the gap: keeping what it is sure of raises accuracy, and p says by
    how much."""

    def soft(first: str, second: str) -> float:
        gap = 8 * (planted.quality(first) - planted.quality(second))
        noise = 4 * (planted.unit("n", *sorted((first, second))) - 0.5)
        return 1 / (1 + math.exp(-(gap + (noise if first < second else -noise))))

    _, found = audited(tmp_path, soft, pairs={"min_p": 0.9})
    shares = [row.share for row in found.coverage]
    assert shares == sorted(shares, reverse=True)
    at = {row.min_p: row for row in found.coverage}
    assert known(at[0.9].accuracy.rate) > known(at[0.5].accuracy.rate) + 0.03
    assert at[0.9].share == pytest.approx(found.kept.share, abs=1e-9)
    assert covers(at[0.9].accuracy.ci95, known(found.kept.label_accuracy.rate))


def test_some_prompts_without_gold_do_not_hide_what_decides(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    folder.gold = lambda prompt, answer: None if planted.unit(prompt) < 0.2 else planted.gold(prompt, answer)
    effects = known(audit(folder).judge.effects)
    assert known(effects.quality).log_odds > 3
    assert effects.n < 0.9 * 2 * SIZE


def test_the_audit_shows_a_bias_that_the_run_does_not_take_away(tmp_path: Path) -> None:
    _, found = audited(tmp_path, planted.noisy(0.8, bias=1.0), pairs={"calibrate": False, "min_p": 0.5})
    assert found.judge.position_bias_nats == pytest.approx(1.0)


def test_circles_are_counted(tmp_path: Path) -> None:
    """Answers by their place on a ring of three: each beats the next."""

    def ring(first: str, second: str) -> float:
        a, b = (int(3 * planted.quality(text)) for text in (first, second))
        return 0.5 if a == b else 0.9 if (b - a) % 3 == 1 else 0.1

    _, found = audited(
        tmp_path / "ring", ring, responses={"n": 3}, personas={"source": "none", "n": 200, "held_out": 0}
    )
    assert known(found.judge.intransitive_rate.rate) > 0.9  # where all three are on different places
    _, straight = audited(
        tmp_path / "line",
        planted.noisy(0.999),
        responses={"n": 3},
        personas={"source": "none", "n": 200, "held_out": 0},
    )
    assert known(straight.judge.intransitive_rate.rate) < 0.02


def test_same_answers_are_counted(tmp_path: Path) -> None:
    def reply(messages: Any, seed: int, sampling: Any) -> str:
        text = planted.reply(messages, seed, sampling)
        return (
            text
            if text.startswith("Prompt") or planted.unit(messages[-1].content) > 0.25
            else "quality 0.5 same"
        )

    engine = ScriptedEngine(reply=reply, choose=planted.judge(planted.noisy(0.9)))
    run(recipe(), tmp_path, until="pairs", engine=engine)
    rate = audit(reader(recipe(), tmp_path, engine)).same_answers
    assert covers(rate.ci95, 0.25)


def test_other_judges_and_people_are_compared(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    control = recipe(judging={"method": "longer"})
    run(control, tmp_path, until="pairs", engine=ScriptedEngine(reply=planted.reply))
    pairs = sample(folder, 200)
    assert len({shown.prompt.id for shown in pairs}) == 200

    def word(shown: Any) -> str:
        return "1" if planted.quality(shown.first.text) > planted.quality(shown.second.text) else "2"

    said = iter([word(shown) for shown in pairs])
    assert label(folder, 200, "me", ask=lambda prompt: next(said), say=lambda line: None) == 200
    found = audit(folder)
    people = found.agreement["people"]
    assert people.pairs == 200
    assert covers(people.ci95, 0.9)
    assert people.kappa == pytest.approx(2 * known(people.agreement) - 1, abs=0.02)
    assert covers(known(found.kept.by_people).ci95, 0.9)
    (longer,) = [row for name, row in found.agreement.items() if name.startswith("longer")]
    assert covers(longer.ci95, 0.5)
    assert "agrees with people" in show_audit(found)
    unknown = reader(recipe(), tmp_path, folder.round.given)  # without the oracle people are the gold
    by_people = audit(unknown)
    assert by_people.judge.accuracy.rate is None
    assert known(by_people.calibration).n == 200
    assert covers(by_people.coverage[0].accuracy.ci95, 0.9)
    assert by_people.verdict.startswith("good judge") or by_people.verdict.startswith("fair judge")


def test_labels_of_several_people_and_from_other_files(tmp_path: Path) -> None:
    rows = [
        {"first_id": "a", "second_id": "b", "verdict": "first", "by": "x"},
        {"first_id": "b", "second_id": "a", "verdict": "second", "by": "y"},
        {"first_id": "a", "second_id": "b", "verdict": "second", "by": "z"},
        {"first_id": "c", "second_id": "d", "verdict": "first", "by": "x", "prompt_id": "p"},
        {"prompt_id": "p", "verdict": None, "by": "x"},
        {"first_id": "f", "second_id": "e", "verdict": "first"},
    ]
    path = tmp_path / "labels"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))  # blank lines, and no end of the last one
    assert read_labels(path, must=True) == {("a", "b"): 1, ("e", "f"): -1}


def test_labels_whose_ids_are_numbers_or_nothing(tmp_path: Path) -> None:
    path, good = tmp_path / "labels", {"first_id": "a", "second_id": "b", "verdict": "first"}

    def read(*rows: Any) -> dict[tuple[str, str], int]:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_labels(path, must=True)

    numbers = [
        {"first_id": 81, "second_id": 82.0, "by": "x"},
        {"first_id": "82", "second_id": 81.0, "by": "y"},
    ]
    assert read(*(row | {"verdict": "first"} for row in numbers)) == {("81", "82"): 0}
    nobody = good | {"by": None, "prompt_id": None, "verdict": "second"}
    assert read(good, nobody) == {("a", "b"): -1}  # one person without a name, whose last word counts
    for key in ("first_id", "second_id", "by", "prompt_id"):
        for value, kind in ((math.nan, "NaN"), (True, "true"), (["a"], "a list")):
            with raises(DataError, key="labels", match=f"line 1: not a label .under {key} stands {kind}"):
                read(good | {key: value})
    for row in (
        {"verdict": "first", "first_id": "a"},
        good | {"first_id": None},
        good | {"verdict": math.nan},
        [good],
        3,
    ):
        with raises(DataError, key="labels", match="line 2: not a label"):
            read(good, row)


def test_a_line_that_is_no_label_stops_labelling(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    for line in ('{"prompt_id": "p", "by": "me", "verdict": NaN}', '{"prompt_id": "p", "by": "me"}', "[]"):
        (tmp_path / "labels.jsonl").write_text(line + "\n")
        with raises(DataError, key="labels", match=r"labels\.jsonl, line 1"):
            label(folder, 5, "me", ask=lambda prompt: "q", say=lambda text: None)


def test_labelling_can_be_stopped_taken_back_and_gone_on_with(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    said: list[str] = []

    def labels(words: list[str], by: str = "me") -> int:
        answers = iter(words)
        return label(folder, 5, by, ask=lambda prompt: next(answers), say=said.append)

    assert labels(["1", "x", "2", "q"]) == 2
    with (tmp_path / "labels.jsonl").open("a") as file:
        file.write('{"prompt_id": "torn')  # a kill
    assert labels(["u", "q"]) == 1
    assert audit(folder).agreement["people"].pairs == 1  # what was taken back does not count
    assert labels(["t", "s", "1", "2", "1"]) == 4  # one was skipped
    assert labels(["2"]) == 5
    assert labels([]) == 5
    assert labels(["q"], by="another") == 0
    assert not any("judge" in line and "%" in line for line in said)  # blind
    first = sample(folder, 5)
    assert [shown.first.id for shown in first] == [shown.first.id for shown in sample(folder, 5)]
    assert {shown.first.index for shown in sample(folder, 200)} == {0, 1}
    assert [shown.prompt.id for shown in sample(folder, 5, seed=1)] != [shown.prompt.id for shown in first]


def test_hostile_answers_cannot_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    evil = [(prompt, [_evil(answer) for answer in answers]) for prompt, answers in folder.answered()]
    monkeypatch.setattr(folder, "answered", lambda: iter(evil))
    said: list[str] = []
    label(folder, 1, "me", ask=lambda prompt: "q", say=said.append)
    assert "\x1b" not in "".join(said)
    assert "".join(said).isascii() or "─" in "".join(said)


def _evil(response: Response) -> Response:
    from dataclasses import replace

    return replace(response, text=f"\x1b[2J\x07 {response.text} \udce4")


def test_a_score_of_one_answer_hangs_on_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two orders agree by construction: that is no sign that the judge is worth anything."""
    folder, before = audited(tmp_path, planted.noisy(0.9))
    monkeypatch.setattr(Reader, "scores_alone", True)
    judge = audit(folder).judge
    assert (judge.flip_rate.rate, judge.first_slot_rate.rate, judge.order_agreement) == (None, None, None)
    assert judge.accuracy == before.judge.accuracy


def test_self_tests(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))

    def shortest(first: str, second: str) -> float:
        return 0.9 if len(first) < len(second) else 0.1 if len(first) > len(second) else 0.7

    found = self_tests(folder, 80, ScriptedEngine(choose=planted.judge(shortest)))
    assert found["identical"].rate == 1.0  # 0.7 for the first slot
    assert found["padded"].rate == 1.0
    assert found["truncated"].rate == 0.0
    assert found["padded"].n == 160
    control = reader(recipe(judging={"method": "longer"}), tmp_path, folder.round.given)
    with raises(ConfigError, key="--self-tests"):
        self_tests(control, 5)


def test_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    small = [
        "--engine.name",
        "scripted",
        "--personas.source",
        "builtin:world",
        "--personas.n",
        "40",
        "--personas.held_out",
        "0",
    ]
    assert main(["judge", "default", *small, "--out", str(root)]) == 0
    assert main(["audit", str(root)]) == 1  # no pairs yet
    assert "not finished" in capsys.readouterr().err
    assert main(["pairs", "default", *small, "--out", str(root)]) == 0
    words = iter(["1", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(words))
    assert main(["label", str(root), "--n", "3"]) == 0
    capsys.readouterr()
    assert main(["audit", str(root), "--json", "--self-tests", "4"]) == 0
    out = capsys.readouterr().out.splitlines()
    found = Audit.model_validate_json(out[-1])
    assert out[0] == found.verdict
    assert found.agreement["people"].pairs == 1
    assert found.self_tests is not None
    assert found.self_tests.keys() == {"identical", "padded", "truncated", "shuffled"}
    (tmp_path / "labels").write_text('{"first_id": "a"}\n')
    assert main(["audit", str(root), "--labels", str(tmp_path / "labels")]) == 1
    assert "line 1: not a label" in capsys.readouterr().err
    assert main(["audit", str(tmp_path)]) == 1


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    folder, _ = audited(tmp_path, planted.noisy(0.9))
    with raises(DataError, key="labels file", match="sao label"):
        audit(folder, tmp_path / "nowhere")
    with raises(StoreError, key="stage"):
        audit(reader(recipe(responses={"n": 3}), tmp_path, folder.round.given))


# Zeros


def test_no_interval_of_a_rate_leaves_0_to_1() -> None:
    """By rounding Wilson's formula ends at −1.7e-17 for 0 of 7, say, and at 1 + 2.2e-16 for 20 of 20: the
    ends are exact there."""
    assert all((wilson(0, n)[0], wilson(n, n)[1]) == (0.0, 1.0) for n in range(1, 500))
    for n in range(1, 500):
        none, every = RateSums(), RateSums()
        for _ in range(n):
            none.add(0, 1)
            every.add(1, 1)
        (low, _), (_, high) = none.rate().ci95, every.rate().ci95
        assert 0 <= low < 1e-15
        assert math.copysign(1, low) == 1
        assert 1 - 1e-15 < high <= 1


def test_no_zero_has_a_minus(tmp_path: Path) -> None:
    """Figures that round to zero from below, in the audit's text and in the run's summary."""
    _, found = audited(tmp_path, planted.noisy(0.9))
    assert found.judge.effects is not None
    judge = found.judge.model_copy(
        update={
            "position_bias_nats": -0.001,
            "flip_rate": Rate(rate=0.1, ci95=(-1e-17, 0.215), n=9),
            "effects": found.judge.effects.model_copy(update={"slot": LogOdds(log_odds=-0.001, se=0.1)}),
        }
    )
    people = Agreement(pairs=9, agreement=0.5, ci95=(-1e-17, 1.0), kappa=-0.001)
    padded = SelfTest(rate=0.0, ci95=(-1e-17, 0.3), n=9)
    changes = {"judge": judge, "agreement": {"people": people}, "self_tests": {"padded": padded}}
    text = show_audit(found.model_copy(update=changes))
    assert "[0.0, 21.5]" in text
    assert "slot +0.00 ±" in text
    assert MINUS_ZERO.findall(text) == []
    gain = Gain(before=0.5, after=0.5, gain=-1e-5, ci95=(-1e-4, 2e-4), n=9, not_of_this_world=0)
    oracle = OracleOutcome(**dict(gain), verdict=OracleWins(n=0), unseen=gain)
    summary = Summary(model="m", seed=0, judging="logprob", worked=True, funnel=[], oracle=oracle, paths={})
    text = show_summary(summary)
    assert "gain +0.000 [+0.000, +0.000]" in text
    assert MINUS_ZERO.findall(text) == []
    assert MINUS_ZERO.findall("[-0.0, 21.5]") == ["-0.0"]
    assert MINUS_ZERO.findall("-0.05 and 1.0-0.3 and -0.5") == []


def test_the_interval_of_a_rate_covers_although_verdicts_of_a_prompt_hang_together() -> None:
    """Prompts of 1 to 6 verdicts with a rate of their own each (Beta(2, 3)): the truth is 0.4."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        sizes = rng.integers(1, 7, 150)
        counts = rng.binomial(sizes, rng.beta(2, 3, 150))
        _, (low, high) = ratio_ci(counts.tolist(), sizes.tolist())
        hits += low <= 0.4 <= high
    assert 0.92 <= hits / 400 <= 0.98
