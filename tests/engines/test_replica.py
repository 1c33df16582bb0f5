"""One replica without Ray: a thread that is fed by exchanges."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sao.engines import ChoiceRequest, Completion, ContinuationRequest, Request, Sample, Sampling
from sao.engines.replica import About, Answer, AnyRequest, Broken, Feed, Kind, Replica
from sao.engines.samples import taken
from sao.engines.scripted import ScriptedEngine
from sao.records import Message
from support.pool_engines import quick, refusing


def request(name: str, samples: int = 1) -> Request:
    """A request for some samples."""
    wanted = tuple(Sample(f"{name}-{n}", n) for n in range(samples))
    return Request((Message("user", name),), wanted, Sampling(max_tokens=8))


def all_of(replica: Replica, number: int, kind: Kind, requests: list[AnyRequest]) -> list[Answer]:
    """What comes of requests in some exchanges."""
    wanted = sum(len(one.samples) if isinstance(one, Request) else 1 for one in requests)
    found = replica.exchange(number, kind, requests).answers
    while len(found) < wanted:
        found += replica.exchange(number, kind, []).answers
    return found


def test_what_is_put_in_comes_out() -> None:
    replica = Replica(quick, 4)
    about = replica.load()
    assert isinstance(about, About)
    assert (about.identity, about.said, about.has_continuations) == ("quick", ("opened",), True)
    answers = all_of(replica, 1, "generate", [request("a", 3), request("b", 2)])
    assert sorted(one.id for one in answers) == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert {one.text for one in answers if isinstance(one, Completion)} == {"a 0", "a 1", "a 2", "b 0", "b 1"}
    choice = ChoiceRequest("c", (Message("user", "1 or 2"),), ("1", "2"))
    assert [one.id for one in all_of(replica, 2, "choices", [choice])] == ["c"]
    texts = ContinuationRequest("d", "Two and two", (" is four", " is five"))
    assert [one.id for one in all_of(replica, 3, "continuations", [texts])] == ["d"]
    replica.close()


def test_an_earlier_round_is_dropped() -> None:
    replica = Replica(lambda notify: ScriptedEngine(delay=0.05), 4)
    replica.load()
    replica.exchange(1, "generate", [request(f"old {n}") for n in range(50)])
    found = all_of(replica, 2, "generate", [request("new")])
    assert [one.id for one in found] == ["new-0"]
    assert replica.exchange(2, "generate", []).answers == []
    replica.close()


def test_requests_may_come_while_others_are_under_way() -> None:
    """The engine is never at a standstill: four at a time, of which each takes 0.2 s, need 0.4 s for eight
    that come one by one in the meantime."""
    replica = Replica(lambda notify: ScriptedEngine(delay=0.2, slots=4), 4)
    replica.load()
    began = time.monotonic()
    found = replica.exchange(1, "generate", [request(str(n)) for n in range(4)]).answers
    found += all_of(replica, 1, "generate", [request(str(n)) for n in range(4, 8)])
    assert len(found) == 8
    assert time.monotonic() - began < 8 * 0.2
    replica.close()


def test_an_engine_that_fails_says_why() -> None:
    replica = Replica(refusing, 4)
    found = replica.load()
    assert isinstance(found, Broken)
    assert (found.key, found.is_ours) == ("model", True)
    assert "no such model here" in found.reason

    def fails(*given: object) -> str:
        raise ZeroDivisionError("division by zero")

    replica = Replica(lambda notify: ScriptedEngine(reply=fails), 4)
    replica.load()
    broken = replica.exchange(1, "generate", [request("a")]).broken
    assert broken is not None
    assert not broken.is_ours
    assert "ZeroDivisionError: division by zero" in broken.reason


def test_a_feed_says_when_there_is_nothing_for_now() -> None:
    feed = Feed("generate")
    feed.put([request("a", 2), request("b")])
    fed = feed.fed()
    assert [next(fed), next(fed), next(fed)] == [request("a", 2), request("b"), None]
    assert feed.rest == 3
    feed.put([request("c")])
    assert next(fed) == request("c")
    feed.end()
    assert list(fed) == []


def test_taken_stops_at_a_pause_and_at_the_end() -> None:
    source: Iterator[int | None] = iter([1, 2, None, 3])
    assert taken(source, 1) == ([1], True)
    assert taken(source, 5) == ([2], True)
    assert taken(source, 5) == ([3], False)
