"""What Ray and the pool cost: replicas of an engine that only waits, so that all the work is theirs.

    python benchmarks/pool.py [--replicas 1 4 16 64] [--seconds 15] [--turns 3] [--many 1000000]

Each answer takes 0.2 s, 32 are under way at each replica, so `replicas` of them give 160 a second each at
best. `efficiency` is what comes of that in the middle of the work (without the first and last two fillings of
all slots); `cpu` says how busy the machine was then: from 80 % on the figure is the machine's. `driver_ms` is
the processor time of this process for each answer at 4 replicas. `overhead` is the time of a pool of one
replica over that of the same engine in this process, less one. `memory` is this process's memory after a
tenth and after all of --many requests, in MB. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil

from sao.config import EngineConfig, RayConfig
from sao.engines import Engine, Request, Sample, Sampling, cluster
from sao.engines.pool import PoolEngine
from sao.engines.scripted import ScriptedEngine
from sao.records import Message
from sao.store.manifest import package_versions

SLOTS, DELAY = 32, 0.2


def open_one(notify: Callable[[str], None], delay: float) -> Engine:
    """An engine whose answers take `delay` seconds, 32 at once."""
    return ScriptedEngine(
        "waiting", reply=lambda *given: "An answer of some words.", delay=delay, slots=SLOTS
    )


def pool_of(replicas: int, delay: float) -> PoolEngine:
    """A pool of such engines, all at work."""
    config = EngineConfig(name="scripted", slots=SLOTS, threads=1, replicas=replicas)
    pool = PoolEngine(partial(open_one, delay=delay), config, None)
    warm = pool.generate(requests(10**9))
    while sum(one.phase == "working" for one in pool.replicas()) < replicas:
        next(warm)
    warm.close()
    return pool


def requests(n: int) -> Iterator[Request]:
    """Requests of a usual size."""
    text = "Tell me, in a few words, why the sky is blue, and what a painter would say of it. " * 3
    for number in range(n):
        name = f"{number:032x}"
        yield Request((Message("user", text),), (Sample(name, number),), Sampling(max_tokens=64))


def efficiency(pool: PoolEngine, replicas: int, seconds: float) -> dict[str, float]:
    """Answers a second over those that are possible, how busy the machine was, and this process's time."""
    filling = 2 * replicas * SLOTS
    n = int(replicas * SLOTS / DELAY * seconds) + 2 * filling
    psutil.cpu_percent()
    began = spent = ended = over = 0.0
    for number, _ in enumerate(pool.generate(requests(n))):
        if number == filling:
            began, spent = time.monotonic(), time.process_time()
        if number == n - filling:
            ended, over = time.monotonic(), time.process_time()
    busy = psutil.cpu_percent()
    rate = (n - 2 * filling) / (ended - began)
    return {
        "efficiency": rate / (replicas * SLOTS / DELAY),
        "cpu": busy,
        "driver_ms": 1000 * (over - spent) / (n - 2 * filling),
    }


def overhead(n: int) -> float:
    """The time of a pool of one replica over that of the engine here, less one."""
    engine = open_one(print, DELAY)
    pool = pool_of(1, DELAY)
    times = []
    for one in (engine, pool):
        began = time.monotonic()
        assert sum(1 for _ in one.generate(requests(n))) == n
        times.append(time.monotonic() - began)
    pool.close()
    return times[1] / times[0] - 1


def memory(n: int) -> tuple[float, float]:
    """This process's memory in MB after a tenth and after all of `n` requests that take no time."""
    process, pool = psutil.Process(), pool_of(2, 0.0)
    early = 0.0
    for number, _ in enumerate(pool.generate(requests(n))):
        if number == n // 10:
            early = process.memory_info().rss / 1e6
    late = process.memory_info().rss / 1e6
    pool.close()
    return round(early, 1), round(late, 1)


def middle(values: list[float]) -> float:
    """The median."""
    return round(statistics.median(values), 4)


def spread(values: list[float]) -> list[float]:
    """The smallest and the largest."""
    return [round(min(values), 4), round(max(values), 4)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=15, help="of work at each number of replicas")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--many", type=int, default=1_000_000, help="requests for the memory; 0 for none")
    options = parser.parse_args()
    cluster.connect(RayConfig(address="local"), cpus=max(options.replicas))
    found: dict[int, list[dict[str, float]]] = {}
    for replicas in options.replicas:
        pool = pool_of(replicas, DELAY)
        found[replicas] = [efficiency(pool, replicas, options.seconds) for _ in range(options.turns)]
        pool.close()
        print(replicas, found[replicas], flush=True)
    extra = [overhead(3200) for _ in range(options.turns)]
    print("overhead", extra, flush=True)
    mb = memory(options.many) if options.many else None
    driver = found.get(4) or next(iter(found.values()))
    ratios = {str(n): [one["efficiency"] for one in turns] for n, turns in found.items()}
    cpu = {str(n): round(max(one["cpu"] for one in turns), 1) for n, turns in found.items()}
    costs = [one["driver_ms"] for one in driver]
    sizes = {"slots": SLOTS, "delay": DELAY, "seconds": options.seconds, "many": options.many}
    result: dict[str, Any] = {
        "benchmark": "pool",
        "efficiency": {n: middle(values) for n, values in ratios.items()},
        "driver_ms": middle(costs),
        "overhead": middle(extra),
        "spread": {
            "efficiency": {n: spread(values) for n, values in ratios.items()},
            "driver_ms": spread(costs),
            "overhead": spread(extra),
        },
        "cpu": cpu,
        "memory": mb,
        "sizes": sizes,
        "versions": package_versions(),
    }
    print(json.dumps(result))
    cluster.leave()


if __name__ == "__main__":
    main()
