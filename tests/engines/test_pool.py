"""A pool of engines on real Ray: every answer comes once, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from sao.config import EngineConfig, RayConfig
from sao.engines import Completion, Failure, Request, Sample, Sampling, cluster
from sao.engines.pool import ALONE, MOST_TOGETHER, PoolEngine
from sao.engines.scripted import ScriptedEngine
from sao.errors import EngineError
from sao.records import Message
from support.errors import raises
from support.pool_engines import (
    POISON,
    Numbered,
    Sparing,
    by_value,
    dying,
    end_ray,
    quick,
    refusing,
    slow,
    without_continuations,
)

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
CONFIG = EngineConfig(name="scripted", slots=4, threads=1, replicas=2)


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[None]:
    """Ray on this machine, with room for four replicas."""
    cluster.connect(RayConfig(address="local"), cpus=4)
    by_value()
    yield
    end_ray()


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[PoolEngine]:
    """A pool of two of the engines that the test names."""
    engine = PoolEngine(request.param, CONFIG, None)
    yield engine
    engine.close()


def requests(n: int, samples: int = 2) -> list[Request]:
    """`n` requests for some samples each."""
    return [
        Request(
            (Message("user", f"text {i}"),),
            tuple(Sample(f"{i}-{j}", 100 * i + j) for j in range(samples)),
            Sampling(max_tokens=8),
        )
        for i in range(n)
    ]


def texts(answers: list[Completion | Failure]) -> dict[str, str]:
    """The texts by id; each id comes once."""
    found = {one.id: one.text for one in answers if isinstance(one, Completion)}
    assert len(found) == len(answers)
    return found


EXPECTED = {f"{i}-{j}": f"text {i} {100 * i + j}" for i in range(60) for j in range(2)}


@pytest.mark.parametrize("pool", [quick], indirect=True)
def test_a_pool_is_an_engine(pool: PoolEngine) -> None:
    assert (pool.name, pool.identity, pool.has_prefill) == ("scripted", "quick", True)
    assert texts(list(pool.generate(requests(60)))) == EXPECTED
    assert {state.phase for state in pool.replicas()} <= {"working", "loading", "waiting"}
    assert sum(state.done for state in pool.replicas()) == 120


@pytest.mark.parametrize("pool", [without_continuations], indirect=True)
def test_replicas_that_cannot_say_how_probable_a_text_is(pool: PoolEngine) -> None:
    with raises(EngineError, key="engine.name"):
        pool.continuation_logprobs([])


@pytest.mark.parametrize("pool", [quick], indirect=True)
def test_what_nobody_reads_on_is_dropped(pool: PoolEngine) -> None:
    begun = pool.generate(requests(60))
    next(begun)
    assert texts(list(pool.generate(requests(60)))) == EXPECTED


@pytest.mark.parametrize("pool", [slow], indirect=True)
def test_a_replica_that_is_killed_costs_nothing(pool: PoolEngine) -> None:
    answers = []
    for number, answer in enumerate(pool.generate(requests(60))):
        answers.append(answer)
        if number in (10, 50):
            pids = [state.pid for state in pool.replicas() if state.pid]
            os.kill(pids[number % len(pids)], signal.SIGKILL)
    assert texts(answers) == EXPECTED


@pytest.mark.parametrize("pool", [quick], indirect=True)
def test_a_request_that_kills_is_given_up(pool: PoolEngine) -> None:
    poison = Request((Message("user", POISON),), (Sample("poison", 1),), Sampling(max_tokens=8))
    asked = requests(60)
    asked.insert(20, poison)
    answers = list(pool.generate(asked))
    (failed,) = [one for one in answers if isinstance(one, Failure)]
    assert failed.id == "poison"
    assert failed.reason.startswith(ALONE)
    assert texts([one for one in answers if one is not failed]) == EXPECTED


def test_four_machines_that_go_away_cost_the_last_request_nothing(tmp_path: Path) -> None:
    """At two deaths it is one of the last requests, at two more nothing else is asked of the replica."""
    engine = PoolEngine(Sparing(tmp_path, 4), CONFIG, None)
    poison = Request((Message("user", POISON),), (Sample("poison", 1),), Sampling(max_tokens=8))
    assert texts(list(engine.generate([*requests(60), poison]))) == EXPECTED | {"poison": "spared"}
    engine.close()


def test_an_error_of_the_first_replica_is_the_pools() -> None:
    with raises(EngineError, key="model") as caught:
        PoolEngine(refusing, CONFIG, None)
    assert "no such model here" in str(caught.value)


def test_replicas_that_die_of_everything_end_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    engine = PoolEngine(dying, CONFIG.model_copy(update={"replicas": 1}), None, said.append)
    with raises(EngineError, key="ray") as caught:
        for answer in engine.generate(requests(40, samples=1)):
            assert isinstance(answer, Failure)
    assert "one after the other" in str(caught.value)
    assert sum("ended" in line for line in said) <= 2 * MOST_TOGETHER
    assert capfd.readouterr().out == ""  # where `--json` prints


def test_replicas_with_another_model_are_refused(tmp_path: Path) -> None:
    with raises(EngineError, key="engine.replicas") as caught:
        engine = PoolEngine(Numbered(tmp_path), CONFIG, None)
        list(engine.generate(requests(60)))
    assert "model 0" in str(caught.value)
    assert "model 1" in str(caught.value)
    with raises(EngineError, key="engine.replicas") as caught:
        PoolEngine(lambda notify: ScriptedEngine("another"), CONFIG, "this")
    assert "than this machine" in str(caught.value)


def test_more_replicas_than_there_is_room_for() -> None:
    said: list[str] = []
    engine = PoolEngine(quick, CONFIG.model_copy(update={"replicas": 9}), None, said.append)
    assert texts(list(engine.generate(requests(60)))) == EXPECTED
    engine.close()


def test_nobody_else_can_reach_it() -> None:
    """Ray that is started here listens on the loopback device only, and asks for a token."""
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert [node.address for node in cluster.nodes(cluster.connect(None))] == ["127.0.0.1"]
    ours = [
        one for one in psutil.Process().children(recursive=True) if one.name() in ("raylet", "gcs_server")
    ]
    places = {
        connection.laddr.ip
        for process in ours
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert places
    assert places <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_one_engine_needs_no_ray() -> None:
    code = (
        "import sys; from sao.config import load_recipe; from sao.method import run; import tempfile;"
        "run(load_recipe('demo', {'engine.name': 'scripted', 'personas.n': '4', 'personas.held_out': '2'}),"
        "tempfile.mkdtemp(), until='judge'); print('ray' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split()[-1] == "False"
