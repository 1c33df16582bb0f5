"""Seconds that a stage adds to a server's own: our HTTP engine and store against a bare sliding window, and
against a peer.

    PYTHONPATH=src python benchmarks/orchestration.py --repeats 3

A loopback server takes 0.2 s for an answer and 2 s for every tenth question, whoever asks and in whatever
order, and works on at most 50 at once (more may be sent and queue). The floor is the leanest client: 50
connections, raw HTTP/1.1, each sending the next request the moment its last is answered, the texts kept in a
list. Ours is a whole stage: prompts in, records durable, the stage sealed. Both send the same 400 chats in
the same order and take turns in one process. The peer (distilabel, in an environment of its own that this
script makes) sends them too, once at its default and at other settings; its span is what the server saw, from
the first request's arrival to the last answer, so its start-up is not counted; its wall time is. The last
line printed is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

DELAY, SLOW_DELAY, SLOW_EVERY = 0.2, 2.0, 10
SAMPLES = 2
MAX_TOKENS, TEMPERATURE = 256, 0.6
SERVER = Path(__file__).parents[1] / "tests" / "support" / "misbehaving_server.py"
MEMORY_SECONDS = 1.5
PEER = "distilabel[openai]==1.5.3"
PEER_SETTINGS: tuple[tuple[int, int, int], ...] = (
    (50, 50, 1),
    (400, 10, 5),
    (400, 5, 10),
    (400, 2, 25),
    (400, 400, 1),
)
"""(rows that its loader hands on, rows in a batch of requests, processes that send them): its default first;
then smaller batches in more processes, 50 in flight altogether; then all rows in one batch, which writes
nothing before the last answer."""


def question(number: int) -> str:
    """What is asked; the number decides whether it is a slow one."""
    return f"question {number}"


@contextlib.contextmanager
def serving(slots: int) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    rule = ["--delay", DELAY, "--slow-delay", SLOW_DELAY, "--slow-every", SLOW_EVERY, "--slots", slots]
    process = subprocess.Popen([sys.executable, SERVER, *map(str, rule)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def server_stats(url: str) -> dict[str, Any]:
    """What the server counted since this was last asked."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats?reset=1", timeout=10) as answer:
        return dict(json.load(answer))


async def window(url: str, chats: list[str], in_flight: int) -> list[str]:
    """The floor: the texts of the answers."""
    host, port = url.split("/")[2].split(":")
    waiting = iter(enumerate(chats))
    texts = [""] * len(chats)

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for index, chat in waiting:
            messages = [{"role": "user", "content": chat}]
            sampling = {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "seed": index}
            body = json.dumps({"model": "scripted", "messages": messages, **sampling}).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            texts[index] = json.loads(await reader.readexactly(length))["choices"][0]["message"]["content"]
        writer.close()

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return texts


def our_stage(engine: Any, root: Path, turn: int, questions: int) -> int:
    """A whole stage of responses; the number of records."""
    from sao.config import ResponsesConfig
    from sao.records import Prompt, Response, make_id
    from sao.stages.responses import answer_prompts
    from sao.store.stage import Stage

    config = ResponsesConfig(n=SAMPLES, max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
    prompts = (Prompt(id=make_id(i), row=2 * i, persona_id="", text=question(i)) for i in range(questions))
    stage = Stage(root, "responses", {"turn": turn}).open()
    with stage.writer() as out:
        for record in answer_prompts(prompts, engine, config, stage.fingerprint, stage.done):
            out.write(record)
    stage.seal(Response)
    return stage.counts.records


def timed(work: Callable[[], int], wanted: int, url: str) -> dict[str, float]:
    """Seconds, CPU milliseconds a request, and the server's own count of one run."""
    server_stats(url)
    start, cpu = time.perf_counter(), time.process_time()
    got = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    stats = server_stats(url)
    if got != wanted or stats["requests"] != wanted:
        raise SystemExit(f"{got} answers to {stats['requests']} requests; {wanted} were wanted")
    cpu_ms = 1000 * cpu / wanted
    return {
        "s": seconds,
        "cpu_ms": cpu_ms,
        "mean_in_flight": stats["mean_in_flight"],
        "peak": stats["peak_in_flight"],
    }


def compare(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Floor and ours in turns."""
    from sao.config import EngineConfig, OpenAIConfig
    from sao.engines.openai import OpenAIEngine

    questions = options.requests // SAMPLES
    chats = [question(i) for i in range(questions) for _ in range(SAMPLES)]
    start = time.perf_counter()
    settings = OpenAIConfig(base_url=url, max_concurrency=options.in_flight)
    engine = OpenAIEngine("scripted", EngineConfig(name="openai", openai=settings))
    open_s = time.perf_counter() - start
    runs: dict[str, list[dict[str, float]]] = {"floor": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            sides: dict[str, Callable[[], int]] = {
                "floor": lambda: len([t for t in asyncio.run(window(url, chats, options.in_flight)) if t]),
                "ours": lambda turn=turn: our_stage(engine, Path(folder), turn, questions),
                # type: ignore[misc]
            }
            for side in sorted(sides, reverse=bool(turn % 2)):
                runs[side].append(timed(sides[side], len(chats), url))
            print({side: round(values[-1]["s"], 3) for side, values in runs.items()}, flush=True)
    engine.close()
    ratios = [ours["s"] / floor["s"] for ours, floor in zip(runs["ours"], runs["floor"])]

    def middle(side: str, what: str) -> float:
        return round(statistics.median(run[what] for run in runs[side]), 3)

    slow = sum(int(chat.split()[1]) % SLOW_EVERY == 0 for chat in chats)
    return {
        "ratio_to_floor": round(statistics.median(ratios), 4),
        "ratio_spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "floor_s": middle("floor", "s"),
        "ours_s": middle("ours", "s"),
        "ideal_s": round((slow * SLOW_DELAY + (len(chats) - slow) * DELAY) / options.in_flight, 3),
        "open_s": round(open_s, 3),
        "cpu_ms_per_request": {side: middle(side, "cpu_ms") for side in runs},
        "mean_in_flight": {side: middle(side, "mean_in_flight") for side in runs},
        "peak_in_flight": {side: max(run["peak"] for run in values) for side, values in runs.items()},
    }


def peer_python(folder: Path) -> Path:
    """The interpreter of the peer's environment, made where it is not there."""
    python = folder / "bin" / "python"
    known = python.exists() and subprocess.run(
        [python, "-c", "import distilabel"], capture_output=True, check=False
    )
    if not known or known.returncode:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", PEER, "requests"], check=True)
    return python


def peer_main(url: str, load_rows: int, batch_rows: int, replicas: int, questions: int, folder: str) -> None:
    """Run distilabel's pipeline once; this is executed in its own environment."""
    import distilabel
    import openai
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts, StepResources
    from distilabel.steps.tasks import TextGeneration

    rows = [{"instruction": question(i)} for i in range(questions) for _ in range(SAMPLES)]
    sampling = {"max_new_tokens": MAX_TOKENS, "temperature": TEMPERATURE}
    with Pipeline(name="orchestration", cache_dir=folder) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=load_rows)
        write = TextGeneration(
            llm=OpenAILLM(base_url=url, api_key="none", model="scripted", generation_kwargs=sampling),
            input_batch_size=batch_rows,
            resources=StepResources(replicas=replicas),
        )
        load >> write
    start = time.perf_counter()
    found = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - start
    answers = sum(bool(row["generation"]) for row in found["default"]["train"])
    versions = {"distilabel": distilabel.__version__, "openai": openai.__version__}
    print(json.dumps({"pipeline_s": round(seconds, 2), "answers": answers, "versions": versions}))


def peer_run(
    python: Path, url: str, settings: tuple[int, int, int], options: argparse.Namespace
) -> dict[str, Any]:
    """One run of the peer in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server_stats(url)
        job = json.dumps([url, *settings, options.requests // SAMPLES, folder])
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder, "PYTHONWARNINGS": "ignore"}
        log, peak = Path(folder, "log"), 0.0
        start = time.perf_counter()
        with log.open("w+") as out:
            call = [str(python), str(Path(__file__).resolve()), "--peer-job", job]
            process = subprocess.Popen(call, env=env, stdout=out, stderr=subprocess.STDOUT)
            while (status := wait(process, MEMORY_SECONDS)) is None:
                peak = max(peak, memory_mb(process.pid))
        wall = time.perf_counter() - start
        said = log.read_text().strip()
    stats = server_stats(url)
    if status:
        raise SystemExit(f"the peer failed with {settings}:\n{said[-4000:]}")
    names = ("load_rows", "batch_rows", "processes")
    return {
        **dict(zip(names, settings)),
        "span_s": round(stats["span_s"], 2),
        "wall_s": round(wall, 1),
        **json.loads(said[said.rindex('{"pipeline_s') :].splitlines()[0]),
        "peak_mb": round(peak),
        "requests": stats["requests"],
        "mean_in_flight": round(stats["mean_in_flight"], 1),
        "peak_in_flight": stats["peak_in_flight"],
    }


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit status, None where it runs on."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def memory_mb(pid: int) -> float:
    """What a process and its descendants hold now, shared pages shared out among them."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / 1e6


def peer_runs(url: str, options: argparse.Namespace, floor_s: float) -> dict[str, Any]:
    """The peer once at each of its settings, the default first."""
    python = peer_python(options.peers_env)
    tried: list[dict[str, Any]] = []
    for settings in PEER_SETTINGS:
        run = peer_run(python, url, settings, options)
        if run["answers"] != options.requests:
            raise SystemExit(f"the peer had {run['answers']} answers of {options.requests} with {settings}")
        tried.append({"ratio_to_floor": round(run["span_s"] / floor_s, 2), **run})
        print(tried[-1], flush=True)
    within = [run for run in tried if run["peak_in_flight"] <= options.in_flight]

    def best(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
        return min(runs, key=lambda run: run["span_s"], default=None)

    return {
        "default": tried[0],
        "best": best(tried),
        "best_within_in_flight": best(within),
        "tried": tried,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument(
        "--peers-env", type=Path, default=Path("build/peers"), help="where the peer is installed"
    )
    parser.add_argument("--peer-job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_job:
        peer_main(*json.loads(options.peer_job))
        return
    with serving(options.in_flight) as url:
        result = compare(url, options)
        peers = {"distilabel": peer_runs(url, options, result["floor_s"])} if options.peers else {}
    facts = {
        "requests": options.requests,
        "in_flight": options.in_flight,
        "repeats": options.repeats,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "httpx2": version("httpx2"), "sao": version("sao")},
    }
    print(json.dumps({"benchmark": "orchestration", **result, **facts, "peers": peers}))


if __name__ == "__main__":
    main()
