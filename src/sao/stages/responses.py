"""Responses: n answers to each prompt. Prompts in, `Response` records or Drops out (arXiv 2510.06652: y_1 …
y_n ~ M(·|x_i)).

All answers to a prompt are samples of one request. A truncated or empty answer is dropped and never becomes a
response.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from sao.config import ResponsesConfig
from sao.data.messages import chat
from sao.engines import Completion, Engine, Failure, Request, Sample, Sampling, dropped
from sao.records import Drop, Prompt, Response, make_id, seed_of
from sao.stages.rows import answer_row


def answer_prompts(
    prompts: Iterable[Prompt],
    engine: Engine,
    config: ResponsesConfig,
    key: str,
    done: Container[str],
    keep_cut: bool = False,
    reasoning_tokens: int = 0,
    numbers: Sequence[int] | None = None,
) -> Iterator[Response | Drop]:
    """Answers (or Drops) that are not `done`, in order of finishing; ids derive from `key`. Of the n answers
    to a prompt those of these `numbers` are made (None: all).

    `reasoning_tokens` are for what the model thinks before an answer, beside the answer's own. `keep_cut`:
    keep truncated and empty answers (in an evaluation, where dropping them would flatter a model).
    """
    most = config.max_tokens + reasoning_tokens
    sampling = Sampling(most, config.temperature, config.top_p)
    waiting: dict[str, tuple[Prompt, int]] = {}
    wanted = range(config.n) if numbers is None else numbers

    def requests() -> Iterator[Request]:
        for prompt in prompts:
            answer_ids = {make_id(key, prompt.id, index): index for index in wanted}
            missing = {i: index for i, index in answer_ids.items() if i not in done}
            if missing:
                waiting.update({i: (prompt, index) for i, index in missing.items()})
                samples = tuple(Sample(i, seed_of(i)) for i in missing)
                yield Request(chat(prompt, config.system), samples, sampling)

    for completion in engine.generate(requests()):
        prompt, index = waiting.pop(completion.id)
        yield read_response(completion, prompt, index, config.n, keep_cut)


def read_response(
    completion: Completion | Failure, prompt: Prompt, index: int, n: int, keep_cut: bool = False
) -> Response | Drop:
    """A completion as a record."""
    row = answer_row(prompt, n, index)
    if isinstance(completion, Failure):
        return dropped(completion, row, "responses", completion.reason)
    if not keep_cut and (completion.finish_reason == "length" or not completion.text.strip()):
        reason = "cut off at max_tokens" if completion.finish_reason == "length" else "empty"
        if not completion.text.strip() and completion.reasoning:
            reason = "nothing but reasoning"
        return dropped(completion, row, "responses", reason)
    return Response(
        id=completion.id,
        row=row,
        prompt_id=prompt.id,
        index=index,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        reasoning=completion.reasoning,
    )
