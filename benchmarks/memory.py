"""Peak memory of many requests over that of few: does it grow with their number?

    PYTHONPATH=src python benchmarks/memory.py

Each run has a process of its own. `scripted`: all of `sao pairs` with the scripted engine (half as many
personas as requests, two answers each, both orders judged). `server`: a stage of responses through the openai
engine from a loopback server (tests/support/misbehaving_server.py) in another process. `personas`: as many
personas as requests, drawn from a file, each of which writes a prompt (scripted engine); the run breaks off
at the last one, and `resume_seconds` is the time from calling it again to its next request. Peak is the
process's greatest resident set, after sealing and reading the records again. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parents[1] / "tests" / "support" / "misbehaving_server.py"


def scripted(requests: int, root: Path) -> int:
    """The pipeline up to the pairs; the number of pairs, and of the items that were dropped on the way: each
    persona ends as one of them."""
    from sao.config import make_config
    from sao.method import run

    people = root / "people.txt"
    with people.open("w") as out:
        out.writelines(f"a person who collects stamps of the year {i}\n" for i in range(requests // 2))
    personas = {"source": str(people), "n": requests // 2, "held_out": 0, "licence": "CC0-1.0"}
    config = make_config({"engine": {"name": "scripted"}, "personas": personas, "pairs": {"keep": "all"}})
    summary = run(config, root / "run", until="pairs")
    return summary.funnel[-1].records + sum(stage.dropped for stage in summary.funnel)


def server(requests: int, root: Path) -> int:
    """A stage of responses from the loopback server; the number of records."""
    from sao.config import EngineConfig, ResponsesConfig
    from sao.engines.openai import OpenAIEngine
    from sao.records import Prompt, Response, make_id
    from sao.stages.responses import answer_prompts
    from sao.store.stage import Stage

    config = ResponsesConfig(n=2, max_tokens=64)
    prompts = (
        Prompt(id=make_id(i), row=2 * i, persona_id="", text=f"question {i}") for i in range(requests // 2)
    )
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        openai: Any = {"base_url": process.stdout.readline().strip(), "max_concurrency": 64}
        engine = OpenAIEngine("scripted", EngineConfig(name="openai", openai=openai))
        stage = Stage(root, "responses", {}).open()
        with stage.writer() as out:
            for record in answer_prompts(prompts, engine, config, stage.fingerprint, stage.done):
                out.write(record)
        engine.close()
        process.terminate()
    stage.seal(Response)
    return sum(1 for _ in stage.records(Response))


def personas(requests: int, root: Path) -> tuple[int, float]:
    """The pipeline up to the filtered prompts, broken off once; the number of prompts, and the seconds that
    going on takes."""
    from sao.config import make_config
    from sao.engines.scripted import ScriptedEngine, default_reply
    from sao.method import run

    people = root / "people.jsonl"
    with people.open("w") as out:
        out.writelines(
            json.dumps(
                {"persona": f"person {i} who collects stamps of {i % 977} lands and reads {i % 89} papers"}
            )
            + "\n"
            for i in range(requests)
        )
    source = {"source": str(people), "n": requests, "held_out": 0, "licence": "CC0-1.0"}
    config = make_config(
        {"engine": {"name": "scripted"}, "personas": source, "filters": {"duplicates": "near"}}
    )
    asked, started, first = 0, 0.0, 0.0

    def reply(messages: Any, seed: int, sampling: Any) -> str:
        nonlocal asked, first
        asked += 1
        if asked == requests:
            raise KeyboardInterrupt
        if asked > requests and not first:
            first = time.perf_counter()
        return default_reply(messages, seed, sampling)

    engine = ScriptedEngine(reply=reply)
    try:
        run(config, root / "run", until="prompts", engine=engine)
    except KeyboardInterrupt:
        started = time.perf_counter()
    summary = run(config, root / "run", until="prompts", engine=engine)
    return summary.funnel[-1].records, first - started


SIDES: dict[str, Any] = {"scripted": scripted, "server": server, "personas": personas}


def child(side: str, requests: int) -> None:
    """One run; prints what it took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        records = SIDES[side](requests, Path(folder))
    records, *resume = records if isinstance(records, tuple) else (records,)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"requests": requests, "records": records, "peak_mb": round(peak, 1),
                      "seconds": round(time.perf_counter() - start, 1),
                      **({"resume_seconds": round(resume[0], 1)} if resume else {})}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--few", type=int, default=20_000)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["scripted", "server"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]))
        return
    found: dict[str, Any] = {"benchmark": "memory"}
    for side in args.sides:
        runs = []
        for requests in (args.few, args.requests):
            command = [sys.executable, __file__, "--child", side, str(requests)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(said.splitlines()[-1]))
            print(side, runs[-1], flush=True)
        found[side] = {"ratio": round(runs[1]["peak_mb"] / runs[0]["peak_mb"], 3), "runs": runs}
    print(
        json.dumps(found | {"versions": {"python": platform.python_version(), "httpx2": version("httpx2")}})
    )


if __name__ == "__main__":
    main()
