"""The engine for a server, against one that misbehaves on purpose (support.misbehaving_server): nothing lost,
nothing doubled, nothing mislabelled; what a server can do is found out; one that is gone is
told clearly, and the work goes on later."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sao.config import JudgingConfig, ResponsesConfig
from sao.engines import ChoiceRequest, Choices, Completion, Engine, Sampling, client
from sao.engines.openai_requests import SEED_BITS
from sao.engines.openai_skills import Skills
from sao.engines.scripted import default_choice, default_reply
from sao.errors import EngineError
from sao.method import run
from sao.records import Judgment, Message, Prompt, Response, make_id
from sao.stages.judging import judge, ordered_pairs
from sao.stages.responses import answer_prompts
from sao.store.stage import Stage
from support import misbehaving_server
from support.checks import known
from support.errors import raises
from support.misbehaving_server import KNOWS, RefusalError, Server
from support.odd_servers import FAULTY, Body, Odd, answers, asked, opened, recipe, scripted, stage
from support.run_files import files

QUICK: dict[str, Any] = {"timeout": 0.4, "patience": 20.0}
"""For servers with faults: a hang costs little, and no storm is taken for the end."""
PROBES = 7
"""Chat requests by which an engine finds out what an honest `Server()` can do."""


pytestmark = pytest.mark.usefixtures("short_pauses")


def two_stages(engine: Engine, root: Path, judging: JudgingConfig, prompts: int = 80) -> tuple[bytes, bytes]:
    """Two answers to each prompt, and both orders of verdicts on them."""
    rows = [
        Prompt(id=make_id("p", i), row=2 * i, persona_id=f"{i}", text=f"question {i}") for i in range(prompts)
    ]
    config = ResponsesConfig(n=2, max_tokens=64)
    responses = stage(
        root, "responses", Response, lambda key, done: answer_prompts(rows, engine, config, key, done)
    )
    found = {r.id: r for r in Stage(root, "responses", {}).records(Response)}
    groups = [(p.id, p.text, [r for r in found.values() if r.prompt_id == p.id]) for p in rows]
    assert all(len(group) == 2 for _, _, group in groups)
    judgments = stage(
        root,
        "judgments",
        Judgment,
        lambda key, done: judge(ordered_pairs(groups, 2, key, 2), engine, judging, done),
    )
    return responses, judgments


# Faults change nothing


@pytest.mark.parametrize("tokenizes", [False, True], ids=["by text", "by token id"])
def test_with_faults_every_row_comes_once_and_as_from_an_honest_rule(tmp_path: Path, tokenizes: bool) -> None:
    """And the log-probabilities read by token id are those read by text: both are the rule's own."""
    expected = two_stages(scripted(), tmp_path / "rule", JudgingConfig())
    with Server(**FAULTY, seed=3, tokenizes=tokenizes) as server, opened(server, **QUICK) as engine:
        assert engine.skills.logprob_token_ids is tokenizes
        before = replace(engine.usage or pytest.fail("nothing is counted"))
        found = two_stages(engine, tmp_path / "server", JudgingConfig())
        after = engine.usage
    assert found == expected
    assert after is not None
    requests, retries = after.requests - before.requests, after.retries - before.retries
    assert requests - retries == 2 * 80 + 2 * 80
    assert retries > 50
    assert len(server.counts) > 10  # many kinds of faults were met


def test_an_honest_server_is_asked_no_more_often_than_needed(tmp_path: Path) -> None:
    with Server() as server, opened(server) as engine:
        found = two_stages(engine, tmp_path / "server", JudgingConfig(), prompts=20)
    assert found == two_stages(scripted(), tmp_path / "rule", JudgingConfig(), prompts=20)
    usage = engine.usage
    assert usage is not None
    addresses = 1 + 2 * 2  # the list of models; /tokenize, which is not there, for two choices
    assert (usage.retries, usage.requests) == (0, server.requests + addresses)
    words = sum(len(r.text.split()) for r in Stage(tmp_path / "server", "responses", {}).records(Response))
    assert 0 < usage.completion_tokens - words - 80 // 2 < 100  # the rest are the verdicts' and the probes'


def test_a_server_that_knows_n_and_no_seed_gives_each_sample_once(tmp_path: Path) -> None:
    """Samples of a prompt share a request; one that is missing among them is asked for alone."""

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        return f"{messages[-1].content}, answered {seed}"

    knows = [skill for skill in KNOWS if skill != "seed"]
    with (
        Odd(**FAULTY, kinds=("wrong_n", "empty_choices", "500"), knows=knows, reply=reply) as server,
        opened(server, **QUICK) as engine,
    ):
        assert engine.skills.n and not engine.skills.seed
        probes = len(server.bodies)
        texts = [f"question {i}" for i in range(60)]
        done = answers(engine, asked(*texts, samples=4))
    assert set(done) == {f"{text}#{k}" for text in texts for k in range(4)}
    for key, completion in done.items():
        assert isinstance(completion, Completion)
        assert completion.text.startswith(f"{key.split('#')[0]}, answered ")
    assert len({c.text for c in done.values() if isinstance(c, Completion)}) == 240  # no sample stands twice
    sizes = Counter(body.get("n", 1) for body in server.bodies[probes:])
    assert sizes[4] >= 60
    assert sizes[1] > 0
    assert set(sizes) == {1, 4}
    assert server.counts["wrong_n"] > 5


def test_without_logprobs_verdicts_are_read_from_text_and_that_is_said(tmp_path: Path) -> None:
    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        text = default_reply(messages, seed % 2**SEED_BITS, sampling)
        return text if "ranking" not in messages[-1].content else "1 > 2" if text[7] < "8" else "2 > 1"

    said: list[str] = []
    with (
        Server(**FAULTY, seed=2, knows=("n", "seed"), reply=reply) as server,
        opened(server, said.append, **QUICK) as engine,
    ):
        assert not engine.has_logprobs
        found = two_stages(engine, tmp_path / "server", JudgingConfig())
    rule = scripted(reply=reply, has_logprobs=False)
    assert found == two_stages(rule, tmp_path / "rule", JudgingConfig())
    assert sum("no log-probabilities: verdicts are read from text" in line for line in said) == 1
    verdicts = Counter(j.verdict for j in Stage(tmp_path / "server", "judgments", {}).records(Judgment))
    assert min(verdicts["first"], verdicts["second"]) > 30


mortal = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The test server leaves sockets behind when it dies: those that it had accepted, but not begun to serve."""


def rows_asked_for(root: Path) -> int:
    """Rows on disk, finished or not, for each of which the server was asked once."""
    parts = [
        p for kind in ("prompts", "responses", "judgments") for p in root.glob(f"round-1/{kind}-*/*.jsonl")
    ]
    return sum(len(part.read_bytes().splitlines()) for part in parts)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the recipe comes to with a server that does as it is told."""
    root = tmp_path_factory.mktemp("honest")
    with Server() as server:
        run(recipe(server), root, until="pairs")
    assert len(files(root)) == 18
    return files(root)


def test_the_whole_chain_comes_to_the_same_with_faults(tmp_path: Path, honest: dict[str, bytes]) -> None:
    with Server(**FAULTY, seed=2) as server:
        summary = run(
            recipe(server, **QUICK, price_prompt=2.0, price_completion=3.0), tmp_path, until="pairs"
        )
    assert files(tmp_path) == honest
    usage = known(summary.usage)
    assert usage.requests >= usage.retries + 65 + 120 + 120
    assert usage.retries > 40
    assert usage.completion_tokens > 65 + 120 + 120
    assert usage.cost == pytest.approx((2 * usage.prompt_tokens + 3 * usage.completion_tokens) / 1e6)


@mortal
@pytest.mark.parametrize("answered", [40, 150, 260])
def test_a_server_that_dies_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, honest: dict[str, bytes], answered: int
) -> None:
    with Server(delay=0.002) as server:
        config = recipe(server, patience=1.0, max_concurrency=8)
        server.kill_after(answered)
        begun = time.monotonic()
        with raises(
            EngineError,
            key="engine.openai.patience",
            match="patience = 1 s",
        ):
            run(config, tmp_path, until="pairs")
        assert time.monotonic() - begun < 30
        kept = rows_asked_for(tmp_path)
        assert 0 <= answered - PROBES - kept <= 8  # all but what was on its way when it died
        server.start()
        server.reset()
        run(config, tmp_path, until="pairs")
    assert files(tmp_path) == honest
    assert server.counts["ok"] == rows_asked_for(tmp_path) - kept + PROBES  # nothing is asked twice
    assert not list(tmp_path.rglob("part-*"))
    gc.collect()  # so that what `mortal` is about shows here


@mortal
def test_a_server_that_comes_back_in_time_costs_nothing_but_time(
    tmp_path: Path, honest: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "OUTAGE_SECONDS", 0.5)  # a busy machine is silent for less
    said: list[str] = []
    server = Server(delay=0.002)

    def revive() -> None:
        server.died.wait(30)
        time.sleep(2)
        server.start()

    with server:
        server.kill_after(130)
        helper = threading.Thread(target=revive)
        server.died.clear()
        helper.start()
        # A connection that was made while the server ended may stay silent: its request is given up after
        # `timeout`.
        run(recipe(server, patience=10.0, timeout=5.0), tmp_path, until="pairs", notify=said.append)
        helper.join()
    assert files(tmp_path) == honest
    assert sum("no good answer for" in line and "trying on for 10 s" in line for line in said) == 1
    gc.collect()


def test_nobody_listens_at_the_start(tmp_path: Path) -> None:
    with Server() as server:
        config = recipe(server, patience=0.5)
    begun = time.monotonic()
    with raises(
        EngineError,
        key="engine.openai.patience",
        match=rf"127.0.0.1:{server.port}/v1: no good answer .*patience = 0.5 s.*same command again",
    ):
        run(config, tmp_path, until="pairs")
    assert 0.5 <= time.monotonic() - begun < 10


# What the server can do


TABLE = [
    (KNOWS, False, Skills(n=True, seed=True, logprobs=True, top_logprobs=20, structured_choice=True)),
    (
        KNOWS,
        True,
        Skills(
            n=True, seed=True, logprobs=True, top_logprobs=20, logprob_token_ids=True, structured_choice=True
        ),
    ),
    ((), False, Skills()),
    ((), True, Skills()),
    (("seed",), False, Skills(seed=True)),
    (("n",), False, Skills(n=True)),
    (("logprobs",), True, Skills(logprobs=True)),
    (("top_logprobs",), False, Skills()),
    (("seed", "logprobs", "top_logprobs"), False, Skills(seed=True, logprobs=True, top_logprobs=20)),
    (("n", "structured"), False, Skills(n=True, structured_choice=True)),
]


@pytest.mark.parametrize("faults", [0.0, 0.3])
@pytest.mark.parametrize(("knows", "tokenizes", "skills"), TABLE)
def test_the_probe_believes_what_it_sees(
    knows: tuple[str, ...], tokenizes: bool, skills: Skills, faults: float
) -> None:
    """This server answers HTTP 200 to whatever it does not know."""
    said: list[str] = []
    server = Server(faults=faults, storm=3, seed=5, knows=knows, tokenizes=tokenizes)
    with server, opened(server, said.append, timeout=0.2, patience=20.0) as engine:
        assert engine.skills == skills
        assert engine.has_logprobs is (skills.top_logprobs > 0)
    (line,) = [line for line in said if "it can do" in line]
    assert line.endswith(str(skills))
    assert str(Skills(n=True, top_logprobs=5)) == (
        "n, top_logprobs 5 (not: seed, logprobs, logprob_token_ids, structured_choice, token_ids)"
    )


def test_fewer_top_logprobs_are_taken_where_twenty_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misbehaving_server, "MOST_TOP_LOGPROBS", 5)
    with Server() as server, opened(server) as engine:
        assert engine.skills.top_logprobs == 5
        (choices,) = engine.choice_logprobs([ChoiceRequest("a", (Message("user", "which?"),), ("1", "2"))])
    assert isinstance(choices, Choices)
    assert choices.logprobs == default_choice((Message("user", "which?"),), ("1", "2"))


def test_a_skill_that_makes_the_server_fail_is_one_that_it_lacks() -> None:
    """Some answer HTTP 500 to a parameter that they do not know."""

    def twist(body: Body, answer: Body) -> Body:
        if "n" in body or "top_logprobs" in body:
            raise RefusalError(500, "unsupported parameter")
        return answer

    begun = time.monotonic()
    with Odd(twist=twist) as server, opened(server) as engine:
        assert engine.skills == Skills(seed=True, logprobs=True, structured_choice=True)
    assert time.monotonic() - begun < 20
