"""The built-in engine's other way: texts of equal length side by side, by the model's own `generate`.

It is for models whose layers keep more than keys and values of their own (linear attention, convolutions,
state spaces, compressed or shared caches), which `sao.engines.caches` cannot cut by text. Prompts of as many
tokens each are written together, so nothing is padded and every cache is the model's own. Samples draw their
tokens as they do in the other way. It is slower: a prompt is read once for each of its samples, a batch goes
on until its longest sample ends, and a prompt of a rare length has few beside it.

With `exact` every batch has the same number of rows, so that a row's numbers do not follow from how many
there are.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sao.engines import ChoiceRequest, Choices, ContinuationRequest, Continuations, Failure, Request
from sao.engines.network import context_length, float32_head, head_input, plain_forward
from sao.engines.samples import SampleState, TokenPrompt, samples_of, taken
from sao.engines.sampling import draw_for
from sao.errors import ModelError
from sao.models.linear import quicken

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sao.models.chat import ChatTokenizer

EXACT_ROWS = 8
"""Rows of each batch where numbers must be exact."""
_READ_AHEAD = 8
"""Batches of texts that are looked at to find some of equal length."""
_CHECKED_TOKENS, _CHECKED_STEPS = 40, 3

Item = TypeVar("Item")


class Lockstep:
    """A causal language model that writes and reads texts of equal length together."""

    def __init__(self, model: PreTrainedModel, chat: ChatTokenizer, slots: int, exact: bool) -> None:
        """Raises ModelError where the model's own `generate` does not work on it, or gives other logits than
        a plain forward pass."""
        self.model, self.chat = model, chat
        self.rows = min(slots, EXACT_ROWS) if exact else slots
        self.exact = exact
        self.context = context_length(model.config.get_text_config())
        self.cached = True
        plain = self._plain_logits()
        quicken(model)
        try:
            self._check(*plain)
        except ModelError:
            # transformers gets the cache wrong: each token is then written from the whole text.
            self.cached = False
            self._check(*plain)

    def forget(self) -> None:
        """Nothing is kept of prompts."""

    # Writing

    def generate(self, prompts: Iterable[TokenPrompt[Request] | None]) -> Iterator[list[SampleState]]:
        """The samples of the prompts, a batch at a time, all of them ended; those of a prompt as long as the
        model's context have no tokens. None: no prompt for now."""
        for batch in equal_lengths(
            self._texts(prompts), lambda text: len(text[0]), self.rows, self.rows * _READ_AHEAD
        ):
            samples = [sample for _, sample in batch]
            if samples[0].limit > 0:
                self._write([ids for ids, _ in batch], _Drawing(self.chat, samples))
            yield samples

    def _texts(
        self, prompts: Iterable[TokenPrompt[Request] | None]
    ) -> Iterator[tuple[list[int], SampleState] | None]:
        """Each sample, with its prompt's ids."""
        for prompt in prompts:
            if prompt is None:
                yield None
                continue
            for sample in samples_of(prompt, self.chat, self.context):
                yield prompt.ids, sample

    @torch.inference_mode()
    def _write(self, texts: list[list[int]], chooser: _Chooser) -> None:
        """Go on with each text until all its samples have ended."""
        ids = self._tensor(texts)
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=chooser.most, pad_token_id=self.chat.pad_id, use_cache=self.cached
        )
        before, self.model.generation_config = self.model.generation_config, copy.deepcopy(settings)
        generate: Any = self.model.generate
        try:
            generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([_AllOver(chooser)]),
            )
        finally:
            self.model.generation_config = before

    # Reading

    def choice_logprobs(self, prompts: Iterable[TokenPrompt[ChoiceRequest] | None]) -> Iterator[Choices]:
        """The choices' log-probabilities as the next token of each prompt."""
        ahead = self.rows * _READ_AHEAD
        for batch in equal_lengths(prompts, lambda prompt: len(prompt.ids), self.rows, ahead):
            if len(batch[0].ids) > self.context:
                yield from (prompt.choices_of(None) for prompt in batch)
                continue
            texts = self._tensor([prompt.ids for prompt in batch])
            logits = self.logits(texts, [len(batch[0].ids) - 1])[:, 0]
            logprobs = logits.float().log_softmax(-1).cpu()
            for prompt, row in zip(batch, logprobs[: len(batch)], strict=True):
                yield prompt.choices_of(row)

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """The summed log-probabilities of each request's endings, each read with its context."""
        for request in requests:
            context, endings = self.chat.continuation_ids(request.context, request.continuations)
            if len(context) + max(map(len, endings)) > self.context:
                yield Failure(request.id, "longer than the model's context")
            elif not all(endings):
                yield Failure(request.id, "a continuation without tokens")
            else:
                sums = tuple(self._sum(context, ending) for ending in endings)
                yield Continuations(request.id, sums, tuple(map(len, endings)))

    def _sum(self, context: list[int], ending: list[int]) -> float:
        places = list(range(len(context) - 1, len(context) + len(ending) - 1))
        logits = self.logits(torch.tensor([[*context, *ending]]), places)[0]  # always alone: no fillers
        logprobs = logits.float().log_softmax(-1).cpu()
        return float(logprobs[range(len(ending)), ending].double().sum())

    @torch.inference_mode()
    def logits(self, texts: torch.Tensor, places: list[int]) -> torch.Tensor:
        """Logits [rows, places, vocabulary] after these places of the texts [rows, tokens]."""
        chosen = torch.tensor(places, device=self.model.device)
        with float32_head(self.model), head_input(self.model, lambda hidden: hidden[:, chosen]):
            logits: torch.Tensor = self.model(input_ids=texts.to(self.model.device), use_cache=False).logits
        return logits

    def _tensor(self, texts: list[list[int]]) -> torch.Tensor:
        """[rows, tokens]; where numbers must be exact, filled up with copies of the first text."""
        fillers = [texts[0]] * (self.rows - len(texts) if self.exact else 0)
        return torch.tensor([*texts, *fillers], device=self.model.device)

    # The check at the start

    @torch.inference_mode()
    def _plain_logits(self) -> tuple[list[int], torch.Tensor]:
        """A text, and the logits after its last tokens by a plain forward pass."""
        last = int(self.model.config.get_text_config().vocab_size) - 1
        length = min(_CHECKED_TOKENS, self.context - 1)
        ids = torch.linspace(0, last, length).long()
        logits = plain_forward(self.model, ids[None])[0]
        return ids.tolist(), logits[-_CHECKED_STEPS:].float()

    def _check(self, ids: list[int], plain: torch.Tensor) -> None:
        """Compare with the logits of a plain forward pass: the text's last tokens are written, one by one."""
        drawing = _Forced(ids[1 - _CHECKED_STEPS :])
        name = type(self.model).__name__
        try:
            self._write([ids[: 1 - _CHECKED_STEPS]] * 2, drawing)
        except torch.OutOfMemoryError:
            raise
        except (
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ModelError(
                f"{name}: its own `generate` does not work here ({type(error).__name__}: {error}). Take "
                "engine.name vllm, or another version of transformers",
                key="architecture",
            ) from error
        ours = torch.stack([logits[0] for logits in drawing.seen]).float()
        if not bool(torch.isfinite(plain).all()):  # its files are checked elsewhere
            return
        apart = float((plain - ours).abs().max())
        if apart > (1e-3 if self.model.dtype == torch.float32 else 0.1) * float(plain.abs().max()):
            raise ModelError(
                f"{name}: what its own `generate` reads from its cache differs from a plain forward pass by "
                f"{apart:.3g}: texts would be wrong. Take engine.name vllm, or another version of "
                "transformers",
                key="architecture",
            )


class _Chooser(LogitsProcessor):
    """Says which tokens `generate` takes, until all samples are `over`; at most `most` of each."""

    most: int
    over: list[bool]


class _Drawing(_Chooser):
    """Draws each sample's next token, and leaves `generate` no other one to take."""

    def __init__(self, chat: ChatTokenizer, samples: list[SampleState]) -> None:
        self.chat, self.samples = chat, samples
        self.most = max(sample.limit for sample in samples)
        self.over = [False] * len(samples)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] that are 0 for the token drawn and -inf for the others."""
        going = [row for row, over in enumerate(self.over) if not over]
        rows = [self.samples[row] for row in going]
        tokens = scores.argmax(-1)
        drawn = draw_for(scores[torch.tensor(going, device=scores.device)], rows)
        for row, sample, token in zip(going, rows, drawn, strict=True):
            tokens[row] = token
            sample.tokens.append(token)
            self.over[row] = sample.is_over(self.chat)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _Forced(_Chooser):
    """Makes `generate` write given tokens, and keeps the logits that it had for them."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.most = len(tokens) + 1
        self.over = [False]
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] that leave the next of the tokens."""
        token = self.tokens[min(len(self.seen), len(self.tokens) - 1)]
        self.seen.append(scores.clone())
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


class _AllOver(StoppingCriteria):
    """Ends `generate` once every sample has ended."""

    def __init__(self, chooser: _Chooser) -> None:
        self.chooser = chooser

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """The same for all rows, [rows]: a row that `generate` held for finished would be padded."""
        over = all(self.chooser.over)
        return torch.full((len(input_ids),), over, dtype=torch.bool, device=input_ids.device)


def equal_lengths(
    items: Iterable[Item | None], length: Callable[[Item], int], most: int, ahead: int
) -> Iterator[list[Item]]:
    """Lists of at most `most` items of the same length. Always `ahead` items are looked at, where there are
    so many, and the length that most of them have is taken. None: no item for now."""
    waiting: dict[int, deque[Item]] = {}
    source, n_waiting, has_more = iter(items), 0, True
    while waiting or has_more:
        if has_more:
            new, has_more = taken(source, ahead - n_waiting)
            n_waiting += len(new)
            for item in new:
                waiting.setdefault(length(item), deque()).append(item)
        if not waiting:
            continue
        commonest = max(waiting, key=lambda n: (len(waiting[n]), -n))
        batch = [waiting[commonest].popleft() for _ in range(min(most, len(waiting[commonest])))]
        n_waiting -= len(batch)
        if not waiting[commonest]:
            del waiting[commonest]
        yield batch
