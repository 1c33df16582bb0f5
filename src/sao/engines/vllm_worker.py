"""The child process of `sao.engines.vllm`: vLLM's engine between two ends of a pipe.

In: the engine's arguments, then (round, [(number, Question)]) at any time, or (round, None) to drop a round.
Out: the context in tokens when the model is loaded, then (round, [(number, Answer)]) as requests end; a
string is an error and the last message.
Requests are added while others run: there is no barrier between batches. The process ends when the pipe
closes.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from copy import copy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of a prompt, the keyword arguments of vLLM's SamplingParams, and the tokens whose
    log-probability is wanted."""

    ids: list[int]
    params: dict[str, Any]
    wanted: list[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens sampled, whether they ended by themselves (not by length), and the log-probabilities (nats)
    that were wanted."""

    token_ids: list[int]
    stopped: bool
    logprobs: list[float]


def main(descriptor: int) -> None:
    """Serve the pipe of this number."""
    pipe = Connection(descriptor)
    try:
        arguments = pipe.recv()
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        loaded = threading.Event()
        threading.Thread(target=_read, args=(pipe, inbox, loaded), daemon=True).start()
        engine, lora = load(arguments)
        loaded.set()
        pipe.send(engine.model_config.max_model_len)
        serve(engine, lora, pipe, inbox)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the other side is gone
    except BaseException as error:  # whatever it is, the other side must hear of it
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[-1500:]}")
        raise


def _read(pipe: Connection, inbox: queue.SimpleQueue[Any], loaded: threading.Event) -> None:
    """Take messages off the pipe, so that the sender never waits for a step to end; None when it is
    closed."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        if not loaded.is_set():
            os.killpg(0, signal.SIGKILL)  # nobody waits for the model any more, nor for its processes
        inbox.put(None)


def load(arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The LLMEngine of vLLM, and its LoRARequest where an adapter is given."""
    lora = arguments.pop("lora")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # In one process and without compiled graphs it starts in seconds instead of half a minute.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        arguments["enforce_eager"] = True
        # vLLM 0.32 stops with "CPU Generator does not use offset" where the prompt of a request with a seed
        # is split.
        arguments.setdefault("enable_chunked_prefill", False)
        model = EngineArgs(**arguments | {"dtype": "float32"}).create_model_config()
        arguments.setdefault("max_num_batched_tokens", max(4096, model.max_model_len))
        if model.is_hybrid and not arguments["enable_chunked_prefill"]:
            arguments["enable_prefix_caching"] = False  # vLLM keeps such states only where prompts are split
        arguments["dtype"] = arguments["dtype"] or "float32"
    arguments["dtype"] = arguments["dtype"] or "auto"
    _widen_head(arguments, EngineArgs(**arguments).create_model_config())
    arguments.setdefault("disable_log_stats", True)  # nobody reads them, and every step would make them
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine

    if lora is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(lora)}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    return engine, None if lora is None else LoRARequest("adapter", 1, lora)


def _widen_head(arguments: dict[str, Any], model: Any) -> None:
    """Have the logits of a model in half precision made in float32 (`Network.float32_head` says why). A
    quantised model keeps its head: vLLM refuses to start where the head is quantised, too."""
    if model.quantization is None and model.dtype.itemsize < 4:
        arguments["hf_overrides"] = {"head_dtype": "float32"} | (arguments.get("hf_overrides") or {})


def _rank(folder: str) -> int:
    """The least of the ranks that vLLM takes which holds the adapter's."""
    import json
    from pathlib import Path

    rank = int(json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))["r"])
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)


def serve(engine: Any, lora: Any, pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Add what comes, step, send what ended; until the pipe closes."""
    requests = _Running(engine, lora)
    while True:
        while requests.is_idle or not inbox.empty():
            message = inbox.get()
            if message is None:
                return
            requests.take(*message)
        if ended := requests.step():
            pipe.send((requests.in_round, ended))


class _Running:
    """The requests that the engine works on, all of one round."""

    def __init__(self, engine: Any, lora: Any) -> None:
        self.engine, self.lora = engine, lora
        self.in_round = 0
        self._requests: dict[str, tuple[int, list[int]]] = {}
        """By vLLM's name for a request: its number, and the tokens whose log-probability is wanted."""
        self._sampling_params: dict[str, Any] = {}
        """By settings: checking them takes longer than the rest of adding a request."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._requests

    def take(self, in_round: int, questions: list[tuple[int, Question]] | None) -> None:
        """Add the questions of a round; None drops all that runs."""
        self.in_round = in_round
        if questions is None:
            self.engine.abort_request(list(self._requests))
            self._requests.clear()
            return
        for number, question in questions:
            name = f"{in_round}-{number}"
            self._requests[name] = (number, question.wanted)
            prompt = {"prompt_token_ids": question.ids}
            params = self._params(question.params)
            self.engine.add_request(name, prompt, params, lora_request=self.lora)

    def step(self) -> list[tuple[int, Answer]]:
        """One step of the engine; the numbers and answers of the requests that ended in it."""
        ended = []
        for output in self.engine.step():
            if output.finished and output.request_id in self._requests:
                number, wanted = self._requests.pop(output.request_id)
                ended.append((number, _answer(output.outputs[0], wanted)))
        return ended

    def _params(self, settings: dict[str, Any]) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        key = repr({name: value for name, value in settings.items() if name != "seed"})
        if key not in self._sampling_params:
            checked = SamplingParams(**settings, output_kind=RequestOutputKind.FINAL_ONLY)
            self._sampling_params[key] = checked
        params = copy(self._sampling_params[key])
        params.seed = settings.get("seed")
        return params


def _answer(output: Any, wanted: list[int]) -> Answer:
    logprobs = output.logprobs[0] if wanted else {}
    return Answer(
        list(output.token_ids),
        output.finish_reason == "stop",
        [float(logprobs[token_id].logprob) for token_id in wanted],
    )
