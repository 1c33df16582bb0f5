"""The built-in engine: any chat model of transformers, on a CPU or a GPU.

Requests come in lazily, completions leave as they finish. Models whose caches are keys and values are batched
continuously (`sao.engines.continuous`), others in batches of equal length (`sao.engines.lockstep`).

On a CPU (`engine.exact`) a sample is bitwise the same alone, beside any others and after a restart: its
attention has shapes that follow from its own text alone, and the matrix products get a number of rows for
which they round each row alike (`sao.engines.network.rows_multiple`). Another number of `threads` may round
otherwise. On a GPU the same code runs, but its kernels promise no such thing: samples there agree up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sao.config import ChatConfig, EngineConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationRequest,
    Continuations,
    Failure,
    Request,
    Usage,
    completed,
)
from sao.engines.continuous import Continuous
from sao.engines.lockstep import Lockstep
from sao.engines.samples import SampleState, TokenPrompt
from sao.errors import EngineError, ModelError
from sao.models.chat import ChatTokenizer
from sao.models.folder import notices
from sao.models.load import load_model
from sao.models.locate import chat_identity, find_model, weights_identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersEngine:
    """See the module's docstring and `sao.engines.Engine`."""

    name = "transformers"
    has_logprobs = True
    has_prefill = True
    is_fed = True
    usage: Usage | None = None

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        revision: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
        chat: ChatConfig | None = None,
    ) -> None:
        """Load `model` (a hub id or a folder); `notify` gets what its user should know. Raises ModelError
        where it is no chat model that this engine can run."""
        self.identity = weights_identity(model, revision) + chat_identity(chat)
        self.chat = ChatTokenizer.load(model, config, revision, chat)
        self.slots = config.slots
        for line in notices(find_model(model, revision)):
            notify(line)
        self.model: PreTrainedModel = load_model(model, config, revision)
        exact = self.model.device.type == "cpu" if config.exact is None else config.exact
        with self._enough_memory():
            self.batches = self._batches(exact, notify)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether requests that begin like one of the last requests are read from there on only."""
        return isinstance(self.batches, Continuous)

    def _batches(self, exact: bool, notify: Callable[[str], None]) -> Continuous | Lockstep:
        """The usual way where it serves, else the other one."""
        try:
            return Continuous(self.model, self.chat, self.slots, exact)
        except ModelError as error:
            if error.key != "architecture":
                raise
            batches = Lockstep(self.model, self.chat, self.slots, exact)
            how = "slower" if batches.cached else "far slower, since no cache of it can be used"
            notify(f"{error}. So texts of equal length are written together, which is {how}")
            return batches

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions in order of finishing. None: no request for now (see `FedEngine`).

        A prompt that leaves no room in the model's context gives an empty completion without tokens that
        finished by length; one that leaves little room gets fewer tokens than `max_tokens`.
        """
        with self._enough_memory():
            prompts = (None if request is None else self._prompt(request) for request in requests)
            for ended in self.batches.generate(prompts):
                yield from map(self._completion, ended)

    def choice_logprobs(self, requests: Iterable[ChoiceRequest | None]) -> Iterator[Choices]:
        """Each prompt is read once, many to a forward pass. A prompt longer than the model's context gives
        NaN."""
        with self._enough_memory():
            prompts = (None if request is None else self._choice_prompt(request) for request in requests)
            yield from self.batches.choice_logprobs(prompts)

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """The summed log-probabilities of texts after other texts; a Failure where one does not fit into the
        model's context."""
        with self._enough_memory("engine.device", "free what other programs hold, or take engine.device cpu"):
            yield from self.batches.continuation_logprobs(requests)

    def close(self) -> None:
        """Give back the model's memory."""
        del self.batches, self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _enough_memory(self, key: str = "engine.slots", advice: str = "") -> Iterator[None]:
        """Turns a full GPU into an EngineError that says what to do: `advice`, or to take fewer slots."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            fewer = f"engine.slots is {self.slots}, try engine.slots={max(1, self.slots // 2)}"
            raise EngineError(
                f"the GPU's memory does not suffice: {advice or fewer} ({error})", key=key
            ) from error

    def _prompt(self, request: Request) -> TokenPrompt[Request]:
        if request.as_user:
            return TokenPrompt(request, self.chat.user_turn_ids(request.messages))
        return TokenPrompt(request, self.chat.prompt_ids(request.messages, request.prefill))

    def _choice_prompt(self, request: ChoiceRequest) -> TokenPrompt[ChoiceRequest]:
        return TokenPrompt(request, *self.chat.choice_ids(request.messages, request.choices, request.prefill))

    def _completion(self, state: SampleState) -> Completion:
        return completed(
            self.chat, state.sample.id, state.tokens, state.as_user, state.sampling.stop, stopped=False
        )
