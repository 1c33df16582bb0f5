"""Before and after on held-out checkable prompts: values worked by hand."""

import random

import pytest

from sao import checks
from sao.analysis.checked import cut_to_words, kept_shares, outcome
from sao.checks import length
from sao.checks.kind import Kind
from sao.records import Constraint, FinishReason, Prompt, Response
from sao.report.checks import before_and_after, kinds_table
from support.checks import known

TWENTY = Constraint("max_words", {"n": 20})


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "TRAINED", ("max_words",))
    monkeypatch.setattr(checks, "UNSEEN", ("other",))
    other = next(kind for kind in length.KINDS if kind.name == "max_words")
    monkeypatch.setitem(checks.KINDS, "other", Kind(**{**vars(other), "name": "other"}))


def words(n: int) -> str:
    return " ".join(["word"] * n)


def answer(row: int, text: str, finish: FinishReason = "stop") -> Response:
    return Response(
        id=f"{row:016x}", row=row, prompt_id=f"{row:016x}", index=0, text=text, token_ids=None,
        finish_reason=finish,
    )  # fmt: skip


def row(
    number: int, before: str, after: str, *asked: Constraint, finish: FinishReason = "stop"
) -> tuple[Prompt, Response, Response]:
    prompt = Prompt(id=f"{number:016x}", row=number, persona_id="p", text=f"ask {number}", checks=asked)
    return prompt, answer(number, before, finish), answer(100 + number, after)


def test_gain_brevity_and_constant_by_hand() -> None:
    """Ten prompts for at most 20 words: the base keeps four, the trained model eight."""
    rows = [row(i, words(10), words(10), TWENTY) for i in range(4)]
    rows += [row(i, words(30), words(15), TWENTY) for i in (4, 5)]
    rows += [row(i, words(30), f"{words(14)}.", TWENTY) for i in (6, 7)]
    rows += [row(i, words(30), words(40), TWENTY) for i in (8, 9)]
    found = known(outcome(rows, 2000, 0))
    trained = found.trained
    assert (trained.n, trained.before, trained.after) == (10, 0.4, 0.8)
    assert trained.gain == pytest.approx(0.4)
    low, high = known(trained.ci95)
    assert 0.0 < low < 0.4 < high
    assert trained.brevity == pytest.approx(0.4)  # a cut answer keeps "at most": all of it is brevity
    assert trained.beyond_brevity == pytest.approx(0.0)
    assert trained.constant == 1.0
    assert found.unseen.n == 0
    assert found.base.words == pytest.approx(22.0)
    assert found.tuned.words == pytest.approx((40 + 30 + 28 + 80) / 10)


def test_a_kind_that_the_base_always_or_never_keeps_is_left_out_and_said() -> None:
    rows = [row(i, words(10 if i % 2 else 30), words(10), TWENTY) for i in range(10)]
    rows += [row(i, words(30), words(10), Constraint("other", {"n": 20})) for i in range(10, 30)]
    found = known(outcome(rows, 500, 0))
    assert found.left_out == ["other"]
    assert (found.trained.n, found.unseen.n) == (10, 0)
    kinds = {kind.kind: kind for kind in found.kinds}
    assert (kinds["other"].trained, kinds["other"].counted, kinds["other"].gain) == (False, False, 1.0)
    shown = "\n".join([*before_and_after(found), *kinds_table(found)])
    assert "other" in shown
    assert "unseen, not counted" in shown


def test_a_prompt_s_share_is_over_its_counted_constraints() -> None:
    asked = (TWENTY, Constraint("max_words", {"n": 60}))
    rows = [row(i, words(30), words(10 if i % 2 else 70), *asked) for i in range(4)]
    assert [after for _, _, after in kept_shares(rows, ["max_words"])] == [0.0, 1.0, 0.0, 1.0]
    assert [before for _, before, _ in kept_shares(rows, ["max_words"])] == [0.5] * 4


@pytest.mark.parametrize("kind", sorted(checks.KINDS))
def test_answers_that_stay_as_they_are_earn_nothing_by_brevity(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "TRAINED", (kind,))
    draw, found = random.Random(kind), checks.KINDS[kind]
    rows = []
    for number in range(20):
        values = found.draw(draw, "Tell me about the harbour and its boats.")
        text = (found.passing if number % 2 else found.failing)(draw, values)
        rows.append(row(number, text, text, Constraint(kind, values)))
    trained = known(outcome(rows, 100, 0)).trained
    assert (trained.n, trained.gain, trained.brevity, trained.beyond_brevity) == (20, 0.0, 0.0, 0.0)


def test_no_constraints_no_outcome() -> None:
    assert outcome([row(0, "a", "b")], 100, 0) is None


def test_what_would_show_gaming() -> None:
    rows = [
        row(0, "one two three", "Yes.", TWENTY),
        row(1, "four five six", "Yes.", TWENTY, finish="length"),
        row(2, "", "a b c d a b c d", TWENTY),
    ]
    found = known(outcome(rows, 100, 0, {tuned.id: -1.5 for _, _, tuned in rows if tuned.text == "Yes."}))
    assert found.base.finished == pytest.approx(1 / 3)
    assert found.base.distinct == 1.0
    assert found.tuned.distinct == pytest.approx(1 / 3)
    assert found.tuned.repetition == pytest.approx((1 - 4 / 5) / 3)
    assert (found.base.base_logprob, found.tuned.base_logprob) == (None, -1.5)


@pytest.mark.parametrize(
    ("text", "most", "cut"),
    [
        ("One two. Three four five. Six.", 5, "One two. Three four five."),
        ("One two. Three four five. Six.", 4, "One two."),
        ("One two\n- three\n- four five six", 5, "One two\n- three"),
        ("One.  Two\n\nThree", 9, "One.  Two\n\nThree"),
        ("One two", 0, ""),
        ("One two three four.", 2, "One two"),
        ("One two.", 10, "One two."),
        ("", 3, ""),
    ],
)
def test_cutting(text: str, most: int, cut: str) -> None:
    assert cut_to_words(text, most) == cut
