"""Broken answers of a server: what comes of them.

    PYTHONPATH=src .venv/bin/python benchmarks/fuzz_server.py --n 500 --seed 0

A scripted server answers chats and verdicts honestly; of each answer one thing is broken before it is sent:
the JSON cut, emptied or followed by something, bytes that are no UTF-8, a key dropped or renamed, a value of
another type, a list doubled, an error page with status 200. Each must end in one of

    same      the text, or the log-probabilities, of the honest answer
    failure   a Failure with a reason (it becomes a Drop)
    error     an error of SAO that ends the run
    FAULT     anything else: another text without a word, a traceback, nothing at all

Faults are printed as they are found. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sao.engines import ChoiceRequest, Choices, Completion, Failure
from sao.errors import SAOError
from sao.records import Message
from support.odd_servers import Body, Odd, asked, last, opened

Change = Callable[[Body, random.Random], Any]
AT_ONCE = 25
"""Broken answers in one run of an engine."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [path] if path else []
    for key in keys:
        found += places(value[key], (*path, key))
    return found


def holder_of(body: Body, path: tuple[Any, ...]) -> Any:
    """What holds the value at a path."""
    for key in path[:-1]:
        body = body[key]
    return body


def read_places(body: Body) -> list[tuple[Any, ...]]:
    """The values that an answer is read from: not its id, date, model and usage."""
    return [path for path in places(body) if path[0] == "choices"]


def cut(body: Body, rng: random.Random) -> bytes:
    """The JSON ends early."""
    text = json.dumps(body).encode()
    return text[: rng.randrange(len(text))]


def followed(body: Body, rng: random.Random) -> bytes:
    """Something follows the JSON."""
    return json.dumps(body).encode() + rng.choice([b"}", b"{}", b"<html>", b"\0", b"]"])


def page(body: Body, rng: random.Random) -> bytes:
    """No JSON at all."""
    return rng.choice([b"", b"<html><body>504</body></html>", b"null", b"[]", b"0", b'"ok"', b"{}"])


def no_text(body: Body, rng: random.Random) -> bytes:
    """Bytes that are no UTF-8 in the middle of the JSON."""
    text = bytearray(json.dumps(body).encode())
    at = rng.randrange(len(text))
    text[at : at + 3] = b"\xff\xfe\xff"
    return bytes(text)


def drop_key(body: Body, rng: random.Random) -> Body:
    """A key is missing, or a list has lost its only item. (One alternative fewer is an honest answer.)"""
    path = rng.choice(
        [p for p in read_places(body) if isinstance(p[-1], str) or len(holder_of(body, p)) == 1]
    )
    del holder_of(body, path)[path[-1]]
    return body


def rename_key(body: Body, rng: random.Random) -> Body:
    """A key has another name."""
    path = rng.choice([path for path in read_places(body) if isinstance(path[-1], str)])
    holder = holder_of(body, path)
    holder[f"x_{path[-1]}"] = holder.pop(path[-1])
    return body


def change_type(body: Body, rng: random.Random) -> Body:
    """A value is of another type. (Text for text would be another answer, not a broken one.)"""
    path = rng.choice(read_places(body))
    holder = holder_of(body, path)
    before = holder[path[-1]]
    others: list[Any] = [7, -0.5, [], {}, [7], {"a": 1}, True, None, float("nan")]
    numbers = (int, float)
    holder[path[-1]] = rng.choice(
        [
            x
            for x in others
            if type(x) is not type(before) and not (type(x) in numbers and type(before) in numbers)
        ]
    )
    return body


def double_list(body: Body, rng: random.Random) -> Body:
    """A list has its items twice."""
    path = rng.choice(
        [path for path in read_places(body) if isinstance(holder_of(body, path)[path[-1]], list)]
    )
    holder = holder_of(body, path)
    holder[path[-1]] = holder[path[-1]] * 2
    return body


CHANGES: tuple[Change, ...] = (
    cut, followed, page, no_text, drop_key, drop_key, rename_key, change_type, change_type, double_list,
)  # fmt: skip


def twist(seed: int, used: dict[str, str]) -> Callable[[Body, Body], Any]:
    """Breaks the answer to every request whose text begins with "break"; `used` gets how, by that text."""

    def change(body: Body, answer: Body) -> Any:
        text = last(body)
        if not text.startswith("break"):
            return answer
        rng = random.Random(f"{seed} {text}")  # the same at each try
        broken = rng.choice(CHANGES)
        used[text] = broken.__name__
        return broken(copy.deepcopy(answer), rng)

    return change


def honest(numbers: range) -> dict[str, Any]:
    """What an honest server answers, by the text of the request."""
    with Odd() as server, opened(server) as engine:
        found: dict[str, Any] = {}
        for done in engine.generate(iter(asked(*(f"break {n}" for n in numbers)))):
            found[done.id.partition("#")[0]] = done
        for choices in engine.choice_logprobs(iter(verdicts(numbers))):
            found[choices.id] = choices
    return found


def verdicts(numbers: range) -> list[ChoiceRequest]:
    """A verdict to be asked for, for each number."""
    return [
        ChoiceRequest(f"break verdict {n}", (Message("user", f"break verdict {n}"),), ("1", "2"))
        for n in numbers
    ]


def outcome(found: Any, expected: Any) -> tuple[str, str]:
    """What became of one broken answer, in a word and in words."""
    if isinstance(found, Failure):
        return ("failure", found.reason) if found.reason else ("FAULT", "a failure without a reason")
    if isinstance(found, Completion):
        if found.text == expected.text:
            return "same", ""
        short = found.finish_reason == "length" and expected.text.startswith(found.text)
        return ("same", "cut") if short else ("FAULT", f"{found.text!r} instead of {expected.text!r}")
    if isinstance(found, Choices):
        unread = all(value != value for value in found.logprobs)
        return ("failure", "no log-probability") if unread else closeness(found, expected)
    return "FAULT", "nothing came"


def closeness(found: Choices, expected: Choices) -> tuple[str, str]:
    """Whether the log-probabilities that could be read are the honest ones."""
    known = [(a, b) for a, b in zip(found.logprobs, expected.logprobs, strict=True) if a == a]
    if all(abs(a - b) < 1e-6 or a == float("-inf") for a, b in known):
        return "same", ""
    return "FAULT", f"{found.logprobs} instead of {expected.logprobs}"


def run(numbers: range, seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """What came for each request of these numbers, and how each answer was broken."""
    used: dict[str, str] = {}
    found: dict[str, Any] = {}
    with Odd(twist=twist(seed, used)) as server, opened(server, retries=1, patience=20.0) as engine:
        for done in engine.generate(iter(asked(*(f"break {n}" for n in numbers)))):
            found[done.id.partition("#")[0]] = done
        for choices in engine.choice_logprobs(iter(verdicts(numbers))):
            found[choices.id] = choices
    return found, used


def main(words: list[str] | None = None) -> int:
    """Break answers and count what comes of them; the number of faults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=500, help="broken answers, half of them verdicts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    started, faults = time.perf_counter(), 0
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for start in range(0, options.n // 2, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, options.n // 2))
        expected = honest(numbers)
        try:
            found, used = run(numbers, options.seed)
        except SAOError as error:
            counts["whole run"]["error"] += 1
            print(f"{numbers}: {error}"[:300], flush=True)
            continue
        for text, honestly in expected.items():
            word, why = outcome(found.get(text), honestly)
            how = used.get(text, "never asked")
            counts[how][word] += 1
            if word == "FAULT":
                faults += 1
                print(f"{text}, {how}: {why}"[:500], flush=True)
    line = {
        "benchmark": "fuzz_server", "n": options.n, "seed": options.seed, "faults": faults,
        "changes": {name: dict(count) for name, count in sorted(counts.items())},
        "seconds": round(time.perf_counter() - started),
    }  # fmt: skip
    print(json.dumps(line))
    return faults


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
