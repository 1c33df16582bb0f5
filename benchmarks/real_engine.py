"""The built-in engine on a real chat model, against plain padded `generate` and, beside it, vLLM.

    PYTHONPATH=src python benchmarks/real_engine.py MODEL --questions MT_BENCH.jsonl --threads 2
    PYTHONPATH=src build/vllm/bin/python benchmarks/real_engine.py MODEL --questions MT_BENCH.jsonl --vllm

MODEL is a folder, a .gguf file, or `toy` (the model that the package ships). The first turns of MT-Bench's 80
questions are answered twice each by at most 192 tokens (`80x2`), the first 16 of them twice (`16x2`), and the
first once (`1x1`); then the pairs of answers are judged in both orders by the default template. Plain is
`model.generate` and one forward pass with `logits_to_keep=1`, of the same model in memory: requests sorted by
length, padded on the left, by the best of the batch sizes tried. Tokens count up to the end of the reply.
All sides encode their chats and decode their texts inside the clock, and take turns in one process.

With `--vllm` the sides are our engine over vLLM (a child process) and one raw `LLM.generate` call (in this
one) with the same token ids; both keep what they know of prompts. The ratios are then `vllm_over_raw`. With
`--against KEY=VALUE` the sides are our built-in engine with and without these keys, such as dtype=bfloat16
(`with_over_without`). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, in which "vllm" would be the benchmark of that name
MAX_TOKENS, TEMPERATURE = 192, 0.8


class Recorder:
    """Takes the requests of a judge down."""

    name, identity, has_logprobs, has_prefill, usage = "recorder", "", True, True, None

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def choice_logprobs(self, requests: Iterable[Any]) -> Iterator[Any]:
        from sao.engines import Choices

        for request in requests:
            self.requests.append(request)
            yield Choices(request.id, (-1.0,) * len(request.choices))

    def generate(self, requests: Iterable[Any]) -> Iterator[Any]:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""


def questions(path: Path) -> list[str]:
    """The first turns of MT-Bench's questions."""
    return [json.loads(line)["turns"][0] for line in path.read_text("utf-8").splitlines()]


def writing(texts: list[str], n: int) -> list[Any]:
    """Requests to answer each of `texts` n times."""
    from sao.engines import Request, Sample, Sampling
    from sao.records import Message

    sampling = Sampling(MAX_TOKENS, TEMPERATURE)
    return [
        Request((Message("user", text),), tuple(Sample(f"{i}.{k}", 97 * i + k) for k in range(n)), sampling)
        for i, text in enumerate(texts)
    ]


def verdicts(texts: list[str], answers: dict[str, str]) -> list[Any]:
    """Requests to judge the two answers to each of `texts` in both orders."""
    from sao.config import JudgingConfig
    from sao.records import Response
    from sao.stages import judging

    def response(i: int, k: int) -> Response:
        text = answers[f"{i}.{k}"] or "No answer."
        return Response(
            id=f"{i}.{k}", row=2 * i + k, prompt_id=str(i), index=k, text=text, token_ids=None,
            finish_reason="stop",
        )  # fmt: skip

    groups = [(str(i), text, [response(i, k) for k in range(2)]) for i, text in enumerate(texts)]
    recorder = Recorder()
    list(judging.judge(judging.ordered_pairs(groups, 2, "key", 2), recorder, JudgingConfig(), set()))
    return recorder.requests


def write_ours(engine: Any, requests: list[Any]) -> int:
    """Tokens written by our engine, which knows none of the prompts."""
    forget(engine)
    return sum(len(done.token_ids or ()) for done in engine.generate(iter(requests)))


def judge_ours(engine: Any, requests: list[Any]) -> int:
    """Verdicts read by our engine, which knows none of the prompts."""
    forget(engine)
    return sum(1 for _ in engine.choice_logprobs(iter(requests)))


def forget(engine: Any) -> None:
    """Drop what our built-in engine kept of prompts. (vLLM keeps them, on both sides.)"""
    if hasattr(engine, "batches"):
        engine.batches.forget()


def padded(rows: list[list[int]], pad: int) -> dict[str, Any]:
    """Token ids and mask of `rows`, padded on the left."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def write_plain(chat: Any, model: Any, requests: list[Any], batch: int) -> int:
    """Tokens written by `model.generate` in batches of `batch`, sorted by the prompt's length."""
    import torch

    tokens = 0
    work = sorted((chat.prompt_ids(r.messages) for r in requests for _ in r.samples), key=len)
    for start in range(0, len(work), batch):
        inputs = padded(work[start : start + batch], chat.pad_id)
        with torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=MAX_TOKENS, do_sample=True, temperature=TEMPERATURE, top_k=0,
                eos_token_id=sorted(chat.end_ids), pad_token_id=chat.pad_id,
            )  # fmt: skip
        for row in out[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in chat.end_ids), len(row))
            chat.decode(row[:end])
            tokens += end
    return tokens


def write_continuous(chat: Any, model: Any, requests: list[Any]) -> int:
    """Tokens written by transformers' own continuous batching; without a limit its cache takes nearly all
    memory."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    rows = [chat.prompt_ids(r.messages) for r in requests for _ in r.samples]
    how = GenerationConfig(
        max_new_tokens=MAX_TOKENS, do_sample=True, temperature=TEMPERATURE, top_k=0,
        eos_token_id=sorted(chat.end_ids), pad_token_id=chat.pad_id,
    )  # fmt: skip
    cache = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=1024, max_memory_percent=0.3)
    out = model.generate_batch(rows, how, continuous_batching_config=cache, warmup=False)
    return sum(len(done.generated_tokens) for done in out.values())


def judge_plain(chat: Any, model: Any, requests: list[Any], batch: int) -> int:
    """Verdicts by one forward pass each, in batches of `batch`, sorted by length."""
    import torch

    work = sorted(
        (chat.choice_ids(r.messages, r.choices, r.prefill) for r in requests), key=lambda w: len(w[0])
    )
    for start in range(0, len(work), batch):
        part = work[start : start + batch]
        inputs = padded([ids for ids, _ in part], chat.pad_id)
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        with torch.inference_mode():
            logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1).logits
        logprobs = logits[:, -1].float().log_softmax(-1)
        for row, (_, choices) in zip(logprobs, part, strict=True):
            row[list(choices)].tolist()
    return len(work)


def write_raw(llm: Any, chat: Any, requests: list[Any]) -> int:
    """Tokens written by one call of vLLM's own `generate`, token ids made beforehand inside the clock."""
    from vllm import SamplingParams

    ids, params = [], []
    for request in requests:
        encoded = chat.prompt_ids(request.messages)
        for sample in request.samples:
            ids.append({"prompt_token_ids": encoded})
            params.append(
                SamplingParams(
                    seed=sample.seed, temperature=TEMPERATURE, max_tokens=MAX_TOKENS,
                    stop_token_ids=sorted(chat.end_ids),
                )
            )  # fmt: skip
    return sum(len(out.outputs[0].token_ids) for out in llm.generate(ids, params, use_tqdm=False))


def judge_raw(llm: Any, chat: Any, requests: list[Any]) -> int:
    """Verdicts by one call of vLLM's own `generate`."""
    from vllm import SamplingParams

    ids, params = [], []
    for request in requests:
        encoded, choices = chat.choice_ids(request.messages, request.choices, request.prefill)
        ids.append({"prompt_token_ids": encoded})
        params.append(SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=list(choices)))
    return len(llm.generate(ids, params, use_tqdm=False))


def speed(work: Callable[[], int]) -> float:
    """Items a second of one run."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def compare(name: str, sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, Any]:
    """Both sides in turn: the median of the ratios, the first side over the second, and the rates."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats):
        for side in sorted(sides, reverse=bool(turn % 2)):
            rates[side].append(speed(sides[side]))
        print(name, {side: round(values[-1], 2) for side, values in rates.items()}, flush=True)
    first, second = rates.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        **{side: round(statistics.median(values), 2) for side, values in rates.items()},
    }


def best_batch(run: Callable[[int], int], batches: list[int], rows: int) -> int:
    """The fastest of the batch sizes, as far as there are so many rows."""
    tried = {
        batch: speed(lambda b=batch: run(b)) for batch in batches if batch < max(2 * rows, batches[0] + 1)
    }
    print(f"  plain by batch size: { {batch: round(rate, 2) for batch, rate in tried.items()} }", flush=True)
    return max(tried, key=tried.__getitem__)


def against_plain(options: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """Our built-in engine over plain transformers."""
    from sao.config import EngineConfig
    from sao.engines.transformers import TransformersEngine
    from sao.models.load import load_model
    from sao.models.locate import WORLD_MODEL

    keys = dict(pair.split("=") for pair in options.set)
    config = EngineConfig(name="transformers", device="cpu", threads=options.threads, **keys)
    model = WORLD_MODEL if options.model == "toy" else options.model
    engine, plain = TransformersEngine(model, config), load_model(model, config)
    chat = engine.chat
    result: dict[str, Any] = {"parameters": plain.num_parameters()}
    answers = {done.id: done.text for done in engine.generate(writing(texts[: options.verdicts], 2))}
    for name, requests in workloads(options, texts).items():
        tried = requests[:32]
        batch = best_batch(lambda b, r=tried: write_plain(chat, plain, r, b), options.batches, size(tried))
        sides = {
            "ours": lambda r=requests: write_ours(engine, r),
            "plain": lambda r=requests, b=batch: write_plain(chat, plain, r, b),
        }
        result[name] = {**compare(name, sides, options.repeats), "batch": batch}
    if options.verdicts:
        requests = verdicts(texts[: options.verdicts], answers)
        tried = requests[:32]
        batch = best_batch(lambda b: judge_plain(chat, plain, tried, b), options.batches, len(tried))
        sides = {
            "ours": lambda: judge_ours(engine, requests),
            "plain": lambda: judge_plain(chat, plain, requests, batch),
        }
        result["verdicts"] = {**compare("verdicts", sides, options.repeats), "batch": batch}
    if options.continuous:  # last: it changes the model's attention
        for name, requests in workloads(options, texts).items():
            sides = {
                "ours": lambda r=requests: write_ours(engine, r),
                "generate_batch": lambda r=requests: write_continuous(chat, plain, r),
            }
            result[f"{name} generate_batch"] = compare(name, sides, options.repeats)
    return result


def against_itself(options: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """Our built-in engine with the keys of `--against` over the same without them."""
    from sao.config import EngineConfig
    from sao.engines.transformers import TransformersEngine
    from sao.models.locate import WORLD_MODEL

    base = {"name": "transformers", "device": "cpu", "threads": options.threads}
    base |= dict(pair.split("=") for pair in options.set)
    changed = {**base, **dict(pair.split("=") for pair in options.against)}
    model = WORLD_MODEL if options.model == "toy" else options.model
    engines = {
        name: TransformersEngine(model, EngineConfig(**keys))
        for name, keys in (("with", changed), ("without", base))
    }
    answers = {
        done.id: done.text for done in engines["without"].generate(writing(texts[: options.verdicts], 2))
    }
    result = {}
    for name, requests in workloads(options, texts).items():
        sides = {side: lambda e=e, r=requests: write_ours(e, r) for side, e in engines.items()}
        result[name] = compare(name, sides, options.repeats)
    if options.verdicts:
        requests = verdicts(texts[: options.verdicts], answers)
        sides = {side: lambda e=e: judge_ours(e, requests) for side, e in engines.items()}
        result["verdicts"] = compare("verdicts", sides, options.repeats)
    return result


def workloads(options: argparse.Namespace, texts: list[str]) -> dict[str, list[Any]]:
    """Requests by their name, prompts × samples."""
    found = {}
    for name in options.work:
        prompts, n = map(int, name.split("x"))
        found[name] = writing(texts[:prompts], n)
    return found


def size(requests: list[Any]) -> int:
    """Samples of `requests`."""
    return sum(len(request.samples) for request in requests)


def raw_vllm(model: str) -> Any:
    """vLLM in this process, with the settings that our engine gives to its child on a CPU."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from transformers import AutoConfig
    from vllm import LLM

    from sao.models.locate import find_model

    path = str(find_model(model))
    context = AutoConfig.from_pretrained(path).max_position_embeddings
    return LLM(
        model=path, dtype="float32", enforce_eager=True, gpu_memory_utilization=0.9, max_num_seqs=256,
        enable_chunked_prefill=False, max_num_batched_tokens=max(4096, context), enable_prefix_caching=True,
    )  # fmt: skip


def against_raw(options: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """Our engine over vLLM against one raw call of it, in the same process."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(options.threads)}
    from sao.config import EngineConfig
    from sao.engines.vllm import VllmEngine

    keys = dict(pair.split("=") for pair in options.set)
    start = time.perf_counter()
    engine = VllmEngine(options.model, EngineConfig(name="vllm", threads=options.threads, **keys))
    result: dict[str, Any] = {"start_s": round(time.perf_counter() - start, 1)}
    llm = raw_vllm(options.model)
    answers = {done.id: done.text for done in engine.generate(writing(texts[: options.verdicts], 2))}
    for name, requests in workloads(options, texts).items():
        sides = {
            "ours": lambda r=requests: write_ours(engine, r),
            "raw": lambda r=requests: write_raw(llm, engine.chat, r),
        }
        result[name] = compare(name, sides, options.repeats)
    if options.verdicts:
        requests = verdicts(texts[: options.verdicts], answers)
        sides = {
            "ours": lambda: judge_ours(engine, requests),
            "raw": lambda: judge_raw(llm, engine.chat, requests),
        }
        result["verdicts"] = compare("verdicts", sides, options.repeats)
    engine.close()
    return result


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--questions", type=Path, required=True, help="MT-Bench's question.jsonl")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--work", nargs="*", default=["80x2", "16x2", "1x1"], help="prompts x samples")
    parser.add_argument("--verdicts", type=int, default=40, help="pairs to judge in both orders")
    parser.add_argument("--set", nargs="*", default=[], help="keys of the engine, such as dtype=bfloat16")
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument("--continuous", action="store_true", help="also against generate_batch")
    sides.add_argument("--against", nargs="+", help="keys of the engine: with them against without them")
    sides.add_argument("--vllm", action="store_true", help="our engine over vLLM against raw vLLM")
    options = parser.parse_args()
    if any(pair.startswith("threads=") for pair in options.against or ()):
        parser.error("--against threads: the number of threads holds for the whole process")
    return options


def main() -> None:
    options = read_options()
    texts = questions(options.questions)
    sides = against_raw if options.vllm else against_itself if options.against else against_plain
    found = sides(options, texts)
    ratios = {name: found[name]["ratio"] for name in options.work}
    verdicts_ratio = found.get("verdicts", {}).get("ratio")
    print(
        json.dumps(
            {
                "benchmark": "real_engine",
                "model": Path(options.model).name,
                **(
                    {"vllm_over_raw": {**ratios, "verdicts": verdicts_ratio}}
                    if options.vllm
                    else {"with_over_without": {**ratios, "verdicts": verdicts_ratio}}
                    if options.against
                    else {"tokens_ratio": ratios, "verdicts_ratio": verdicts_ratio}
                ),
                **found,
                "set": options.set,
                "against": options.against,
                "threads": options.threads,
                "cpus": os.cpu_count(),
                "load_average": [round(value, 2) for value in os.getloadavg()],
                "versions": {
                    name: installed(name) for name in ("torch", "transformers", "vllm-cpu")
                } | {"python": platform.python_version()},
            }
        )
    )  # fmt: skip


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
