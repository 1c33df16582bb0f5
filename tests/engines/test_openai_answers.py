"""What the engine for a server makes of refusals and hostile answers, of keys and addresses, and how
verdicts' log-probabilities are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sao.config import JudgingConfig, ResponsesConfig, make_config
from sao.engines import ChoiceRequest, Choices, Completion, Engine, Failure
from sao.engines.openai_answers import logprobs_by_text
from sao.engines.scripted import default_choice
from sao.errors import EngineError
from sao.method import run
from sao.records import Judgment, Message, Prompt, Response
from sao.stages.judging import judge, ordered_pairs
from sao.stages.responses import answer_prompts
from sao.store.files import read_jsonl
from sao.store.stage import Stage
from support.checks import known
from support.errors import raises
from support.misbehaving_server import RefusalError, Server
from support.odd_servers import Body, Odd, answers, asked, last, opened, recipe, stage

pytestmark = pytest.mark.usefixtures("short_pauses")


# Keys, models, addresses


def test_the_key_opens_the_door_and_stays_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, said = "sk-3f9a1c77e0", list[str]()
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with Server(key=secret) as server:
        run(recipe(server), tmp_path, until="pairs", notify=said.append)
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) > 15
    assert not [p for p in written if secret.encode() in p.read_bytes()]
    assert said
    assert not [line for line in said if secret in line]


@pytest.mark.parametrize("given", [None, "", "sk-wrong-51"])
def test_a_missing_or_wrong_key_names_the_variable(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if given is not None:
        monkeypatch.setenv("MY_KEY", given)
    with (
        Server(key="sk-right") as server,
        raises(EngineError, key="server", match=r"HTTP 401.*variable MY_KEY") as caught,
        opened(server, api_key_env="MY_KEY"),
    ):
        pass
    assert "sk-" not in str(caught.value)


def test_a_key_that_the_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-3f9a1c77e0")
    said: list[str] = []

    def twist(body: Body, answer: Body) -> Body:
        if last(body) in ("refused", "forbidden"):
            raise RefusalError(400 if last(body) == "refused" else 403, "not for the key sk-3f9a1c77e0")
        return answer

    with Odd(twist=twist) as server, opened(server, said.append) as engine:
        assert answers(engine, asked("refused"))["refused#0"] == Failure(
            "refused#0", "refused by the server (HTTP 400)"
        )
        with raises(EngineError, key="server", match="HTTP 403.*…") as caught:
            answers(engine, asked("forbidden"))
    assert any("not for the key …" in line for line in said)
    assert not [line for line in [*said, str(caught.value)] if "3f9a" in line]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nope"}, r"serves no 'nope'. Set engine.openai.model to one of what it serves: scripted"),
        (
            {"base_url": "/v2"},
            r"/v2/chat/completions: HTTP 404: .*Check engine.openai.base_url \(it ends in /v1",
        ),
        ({"base_url": ""}, r"/chat/completions: HTTP 404: .*Check engine.openai.base_url"),
        (
            {"base_url": "http://127.0.0.1:99999/v1"},
            r"127.0.0.1:99999/v1: not a URL .*Set engine.openai.base_url",
        ),
        ({"base_url": "http://[::1/v1"}, r"not a URL .*Set engine.openai.base_url"),
    ],
)
def test_a_wrong_name_or_address_is_told_at_once(change: dict[str, str], message: str) -> None:
    with Server() as server:
        url = change.get("base_url", "/v1")
        address = url if url.startswith("http") else server.url.removesuffix("/v1") + url
        with pytest.raises(EngineError, match=message), opened(server, **change | {"base_url": address}):
            pass


def test_the_only_model_served_is_taken_whatever_it_is_called() -> None:
    with Server(model="some/model") as server, opened(server) as engine:
        assert engine.model == "some/model"
        assert isinstance(answers(engine, asked("a"))["a#0"], Completion)


# What is refused, or never answered


def test_a_refused_request_is_a_failure_and_others_go_on(tmp_path: Path) -> None:
    def twist(body: Body, answer: Body) -> Body:
        if "forbidden" in last(body):
            raise RefusalError(422, f"policy 7 against {last(body)}")
        return answer

    said: list[str] = []
    with Odd(twist=twist) as server, opened(server, said.append) as engine:
        done = answers(
            engine, asked("forbidden a", "forbidden b", *(f"question {i}" for i in range(30)), samples=2)
        )
        choices = list(
            engine.choice_logprobs([ChoiceRequest("v", (Message("user", "forbidden c"),), ("1", "2"))])
        )
    reason = "refused by the server (HTTP 422)"
    failed = {key: c.reason for key, c in done.items() if isinstance(c, Failure)}
    assert failed == {f"forbidden {x}#{k}": reason for x in "ab" for k in (0, 1)}
    assert len(done) == 64
    assert choices == [Failure("v", reason)]
    assert server.counts["422"] == 5  # none was sent again
    assert sum("policy 7" in line for line in said) == 1


def test_a_chat_without_room_is_cut_off_and_one_with_little_gets_what_there_is() -> None:
    """As vLLM: prompt and max_tokens together must fit; without max_tokens the answer takes what is left."""

    def twist(body: Body, answer: Body) -> Body:
        if len(last(body).split()) + body.get("max_tokens", 0) > 100:
            raise RefusalError(
                400, "This model's maximum context length is 100 tokens. However, you requested more."
            )
        return answer

    tight, long = "word " * 50, "word " * 120
    with Odd(twist=twist, context=100) as server, opened(server) as engine:
        done = answers(engine, asked("short", tight, long))
        verdict = ChoiceRequest("v", (Message("user", long),), ("1", "2"))
        (choices,) = engine.choice_logprobs([verdict])
        assert [c for c in done.values() if isinstance(c, Failure)] == []
    assert done[f"{long}#0"] == Completion(f"{long}#0", "", None, "length")
    assert {done["short#0"].text[:6], done[f"{tight}#0"].text[:6]} == {"Answer"}  # type: ignore[union-attr]
    assert ["max_tokens" in body for body in server.bodies if last(body) == tight] == [True, False]
    assert isinstance(choices, Choices)
    assert all(math.isnan(value) for value in choices.logprobs)


@pytest.mark.parametrize("others", [50, 0])
def test_a_request_that_always_fails_is_given_up(others: int) -> None:
    """Alone too: a short request then shows that the server lives. The reason is the same for all, whatever
    was said."""

    def twist(body: Body, answer: Body) -> Body:
        if "cursed" in last(body):
            raise RefusalError(500, f"assertion failed: trace {len(server.bodies)}")
        return answer

    told: list[str] = []
    server = Odd(twist=twist)
    with server, opened(server, told.append, retries=3) as engine:
        done = answers(engine, asked("cursed", "cursed too", *(f"question {i}" for i in range(others))))
    lost = [f"{text}#0" for text in ("cursed", "cursed too")]
    assert [done[i] for i in lost] == [Failure(i, "no usable answer (HTTP 500)") for i in lost]
    assert sum(isinstance(c, Completion) for c in done.values()) == others
    assert sum(last(body) == "cursed" for body in server.bodies) == 4
    assert sum("no usable answer (HTTP 500): assertion failed: trace" in line for line in told) == 1


# Hostile answers


def changed(**changes: Any) -> Callable[[Body], Body]:
    """The answer with another first choice."""

    def change(answer: Body) -> Body:
        choice = {**answer["choices"][0], **changes}
        return {**answer, "choices": [choice]}

    return change


def said(text: Any, finish: Any = "stop", **more: Any) -> Callable[[Body], Body]:
    return changed(message={"role": "assistant", "content": text, **more}, finish_reason=finish)


def with_usage(**usage: Any) -> Callable[[Body], Body]:
    return lambda answer: {**said("fine")(answer), "usage": usage}


GOOD: dict[str, tuple[Callable[[Body], Any], str, str]] = {
    "only thought": (said(None, reasoning_content="hm"), "", "stop"),
    "only thought, by another name": (said(None, reasoning="hm"), "", "stop"),
    "still thinking": (said(None, "length"), "", "length"),
    "blocks": (
        said(
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "a"},
                {"type": "output_text", "text": " b"},
                {"type": "text", "text": {"value": " c"}},
                {"type": "tool_use", "name": "f"},
                " d",
            ]
        ),
        "a b c d",
        "stop",
    ),
    "blocks of thought": (said([{"type": "thinking", "thinking": "hm"}]), "", "stop"),
    "blocks without a type": (said([{"text": "a"}]), "a", "stop"),
    "one block": (said({"type": "text", "text": "a"}), "a", "stop"),
    "a refusal": (said(None, refusal="I cannot help with that."), "I cannot help with that.", "stop"),
    "thought in the text": (said("<think>\nfour\n</think>\n\n4"), "4", "stop"),
    "the end of a thought": (said("so it is four\n</think>\n\n4"), "4", "stop"),
    "thought to no end": (said("<think>\nlet me", "length"), "", "length"),
    "gpt-oss's channels": (
        said("<|channel|>analysis<|message|>four<|end|><|start|>assistant<|channel|>final<|message|>4"),
        "4",
        "stop",
    ),
    "an end by another name": (said("4", "eos_token"), "4", "stop"),
    "a limit by another name": (said("4", "MAX_TOKENS"), "4", "length"),
    "two of the same index": (
        lambda a: {**a, "choices": said("one")(a)["choices"] + said("two")(a)["choices"]},
        "one",
        "stop",
    ),
    "no index": (
        lambda a: {"choices": [{"message": {"content": "bare"}, "finish_reason": "stop"}]},
        "bare",
        "stop",
    ),
    "an error beside choices": (lambda a: {**said("fine")(a), "error": {"code": 0}}, "fine", "stop"),
    "usage of another kind": (lambda a: {**said("fine")(a), "usage": ["many"]}, "fine", "stop"),
    "usage without bounds": (with_usage(prompt_tokens=10**40, completion_tokens=-7), "fine", "stop"),
    "usage that is no number": (with_usage(prompt_tokens=math.inf, completion_tokens="9"), "fine", "stop"),
    "NULs and half a surrogate pair": (said("a\x00b\ud83d\u2028"), "a\x00b\ud83d\u2028", "stop"),
}
BAD: dict[str, tuple[Callable[[Body], Any], str]] = {
    "a tool call": (
        said(None, "tool_calls", tool_calls=[{"function": {"name": "f"}}]),
        "finish_reason 'tool_calls'",
    ),
    "a tool call that stops": (
        said(None, tool_calls=[{"function": {"name": "f"}}]),
        "an answer without text",
    ),
    "blocks of other kinds": (said([{"type": "image_url", "image_url": {}}]), "an answer without text"),
    "no blocks": (said([]), "an answer without text"),
    "a number": (said(7), "an answer without text"),
    "no message": (changed(message=None), "an answer of another shape"),
    "choices of another kind": (
        lambda a: {**a, "choices": {"0": a["choices"][0]}},
        "an answer of another shape",
    ),
    "deep brackets": (
        lambda a: b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "an answer that is no JSON",
    ),
    "a list": (lambda a: b"[1]", "an answer that is no JSON object"),
    "nothing": (lambda a: b"", "an answer that is no JSON"),
    "broken UTF-8": (lambda a: b'{"choices": "\xff\xfe"}', "an answer that is no JSON"),
    "a number of 5,000 digits": (lambda a: b'{"choices": ' + b"9" * 5000 + b"}", "an answer that is no JSON"),
}


def test_hostile_answers_are_read_as_far_as_they_hold_and_else_given_up() -> None:
    changes: dict[str, Callable[[Body], Any]] = {name: case[0] for name, case in GOOD.items()}
    changes |= {name: case[0] for name, case in BAD.items()}

    def twist(body: Body, answer: Body) -> Any:
        change = changes.get(last(body))
        return change(answer) if change else answer

    with Odd(twist=twist) as server, opened(server, retries=1) as engine:
        assert engine.usage is not None
        before = engine.usage.completion_tokens
        done = answers(engine, asked(*GOOD, *BAD, "plain"))
        assert 0 < engine.usage.completion_tokens - before < 1000
    for name, (_, text, finish) in GOOD.items():
        found = done[f"{name}#0"]
        assert isinstance(found, Completion)
        assert (found.text, found.token_ids, found.finish_reason) == (text, None, finish), name
    assert "hm" in {one.reasoning for one in done.values() if isinstance(one, Completion)}
    for name, (_, reason) in BAD.items():
        assert done[f"{name}#0"] == Failure(f"{name}#0", f"no usable answer ({reason})"), name
    assert isinstance(done["plain#0"], Completion)
    assert len(done) == len(GOOD) + len(BAD) + 1


def test_a_filtered_answer_is_a_failure_without_another_try() -> None:
    with (
        Odd(twist=lambda b, a: said("", "content_filter")(a) if last(b) == "x" else a) as server,
        opened(server) as engine,
    ):
        assert answers(engine, asked("x")) == {
            "x#0": Failure("x#0", "held back by the server's content filter")
        }
        assert sum(last(body) == "x" for body in server.bodies) == 1


def test_hostile_texts_pass_through_server_and_file_as_they_are(tmp_path: Path) -> None:
    texts = [
        "\x00",
        "half \ud800 pair",
        "line\u2028line\u2029",
        "\x1b[31mred",
        '"}]}\\',
        "\u202ereversed",
        "\r\n\t",
        "🙂é",
    ]
    prompts = [Prompt(id=f"{i:016x}", row=2 * i, persona_id="", text=text) for i, text in enumerate(texts)]
    with Server(reply=lambda m, s, p: f"<{m[-1].content}>") as server, opened(server) as engine:
        config = ResponsesConfig(n=2)
        stage(
            tmp_path,
            "responses",
            Response,
            lambda key, done: answer_prompts(prompts, engine, config, key, done),
        )
    rows = list(Stage(tmp_path, "responses", {}).records(Response))
    assert [r.text for r in rows] == [f"<{text}>" for text in texts for _ in (0, 1)]


# Log-probabilities


def verdicts(engine: Engine, n: int = 20) -> list[tuple[float, ...]]:
    requests = [ChoiceRequest(f"{i:02}", (Message("user", f"duel {i}"),), ("1", "2")) for i in range(n)]
    found = {c.id: c for c in engine.choice_logprobs(iter(requests))}
    return [choices.logprobs for _, choices in sorted(found.items()) if isinstance(choices, Choices)]


EXPECTED = [default_choice((Message("user", f"duel {i}"),), ("1", "2")) for i in range(20)]


@pytest.mark.parametrize(
    "server",
    [Server(), Server(tokenizes=True), Server(choices=(" 1", "  2"))],
    ids=["plain", "by id", "with spaces"],
)
def test_choices_are_found_among_the_alternatives(server: Server) -> None:
    server.mass = 0.6  # the rest is other words', some of them likelier than a choice
    with server, opened(server) as engine:
        found = verdicts(engine)
    assert found == [pytest.approx([math.log(0.6) + value for value in pair]) for pair in EXPECTED]


def test_a_choice_that_is_missing_gets_the_most_that_it_can_have() -> None:
    with Server(choices=("1", "Neither "), mass=0.9) as server, opened(server) as engine:
        found = verdicts(engine)
    for (first, second), (expected, _) in zip(found, EXPECTED, strict=True):
        assert first == pytest.approx(math.log(0.9) + expected)
        assert second < first
        assert second <= math.log(0.1)
        assert math.isfinite(second)


def test_choices_among_the_alternatives_worked_by_hand() -> None:
    log = math.log
    tops = [("A", log(0.5)), (" B", log(0.3)), ("Answer", log(0.1)), ("", log(0.05))]
    assert logprobs_by_text(tops, ("A", "B")) == (log(0.5), log(0.3))
    # which one is meant?
    assert logprobs_by_text(tops, ("Answer A", "Answer B")) == pytest.approx([math.nan] * 2, nan_ok=True)
    assert logprobs_by_text(tops, ("B", "C")) == pytest.approx(
        [log(0.3), log(0.05)]
    )  # at most what is left over
    # at most the least shown
    assert logprobs_by_text([("A", log(0.6)), ("x", log(0.01))], ("A", "B"))[1] == pytest.approx(log(0.01))
    assert logprobs_by_text([("Bet", log(0.2)), ("B", log(0.7))], ("Better", "A")) == pytest.approx(
        [log(0.2), log(0.1)]
    )


def test_verdicts_that_are_none_of_the_choices_are_unparseable(tmp_path: Path) -> None:
    answer = [
        Response(
            id=f"{i}" * 16,
            row=i,
            prompt_id="p",
            index=i,
            text=f"answer {i}",
            token_ids=None,
            finish_reason="stop",
        )
        for i in (0, 1)
    ]
    with Server(choices=("x", "y")) as server, opened(server) as engine:
        found = list(
            judge(ordered_pairs([("p", "question", answer)], 2, "key", 2), engine, JudgingConfig(), set())
        )
    assert [(j.verdict, j.p_first, j.verdict_prob) for j in found if isinstance(j, Judgment)] == [
        (None, None, None)
    ] * 2


def test_choices_that_begin_alike_are_refused_where_that_can_be_seen() -> None:
    alike = ChoiceRequest("v", (Message("user", "which?"),), ("Answer A", "Answer B"))
    with Server(tokenizes=True) as server, opened(server) as engine:
        with raises(EngineError, key="judging.choices"):
            list(engine.choice_logprobs([alike]))
        assert verdicts(engine) == EXPECTED  # and the engine goes on


def test_log_probabilities_that_are_none_are_asked_for_again() -> None:
    kinds = ("nan_logprobs", "positive_logprobs", "missing_logprobs")
    with Server() as server, opened(server) as engine:
        server.kinds, server.faults = kinds, 0.5
        assert verdicts(engine) == EXPECTED
        assert sum(server.counts[kind] for kind in kinds) > 5


def test_the_judge_may_be_a_server_while_the_policy_is_not(tmp_path: Path) -> None:
    """The server's judge prefers the other of two answers than the policy would."""

    def choose(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        first, second = default_choice(messages, choices)
        return second, first

    base: dict[str, Any] = {
        "engine": {"name": "scripted"},
        "model": "policy",
        "personas": {"source": "builtin:world", "n": 30, "held_out": 0},
    }
    with Server(choose=choose, model="wise") as server:
        other = {"name": "openai", "model": "wise", "openai": {"base_url": server.url}}
        summary = run(make_config(base | {"judging": {"engine": other}}), tmp_path, until="pairs")
        assert (
            run(make_config(base | {"judging": {"engine": other}}), tmp_path, until="pairs").worked is False
        )
    run(make_config(base), tmp_path, until="pairs")
    found: dict[str, dict[tuple[str, str], Any]] = {}
    for folder in tmp_path.glob("round-1/judgments-*"):
        for judgment in read_jsonl(folder / "records.jsonl"):
            found.setdefault(judgment["judge"], {})[judgment["first_id"], judgment["second_id"]] = judgment[
                "p_first"
            ]
    assert found.keys() == {"wise", "self"}
    assert len(found["wise"]) > 50
    assert found["wise"] == pytest.approx({key: 1 - p for key, p in found["self"].items()})
    assert len(list(tmp_path.glob("round-1/responses-*"))) == 1
    assert known(summary.usage).requests >= len(found["wise"])
    assert server.requests < len(found["wise"]) + 20  # it judged, and wrote nothing
