"""Tokens and seconds of each stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from sao.analysis.plan.lengths import Lengths
from sao.analysis.plan.memory import group_size, vllm_room
from sao.config import Config, JudgingConfig, TrainConfig
from sao.models.shapes import GPU, Shape
from sao.pipeline.roles import judges_itself
from sao.pipeline.settings import own_pairs
from sao.pipeline.verdicts import REJUDGED, judges_anew
from sao.results.plan import PlannedStage
from sao.stages.by_model import CONTENT_FREE
from sao.stages.judging import compared_pairs, orders_of, reading_judge

PERSONA_FRAME = 150
"""Tokens around the persona and of it, in the request for a prompt (assumed)."""
PERSONA, DRAFTS_EACH = 60, 1.3
"""Tokens of a persona that the model writes itself, and how many it writes for one that is kept (assumed)."""
JUDGE_FRAME = 140
"""Tokens of the judge's template (assumed)."""
VERDICT = 5
"""Tokens of a ranking line."""
KEPT = {"all": 1.0, "confident": 0.5}
"""Share of the pairs that pass the filter (assumed: flips are reported for 18 to 56 % of pairs, arXiv
2309.00267)."""
LAUNCH = 0.0007
"""Seconds that the built-in engine takes at least for a layer of a decoding step (assumed: Python starts its
kernels)."""
VLLM_STEP = 0.008
"""Seconds that a step of vLLM takes at least (assumed: its scheduler; kernels are started by a graph)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Requests to a model in one stage, and the mean tokens read and written for each."""

    name: str
    items: int
    read: float
    written: int


def stages(
    config: Config, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths, replicas: int = 1, number: int = 1
) -> list[PlannedStage]:
    """Tokens and seconds by stage of round `number`. Training runs on all GPUs, the rest on `replicas`
    engines, which share the work evenly. Of a given data set (pairs.source), whose size is not known here,
    personas.n pairs are assumed."""
    before = _asked_before_training(config, lengths, number)
    after = _asked_for_evaluation(config, lengths, number)
    return [
        *(_asked_stage(asked, config, shape, gpu, lengths, replicas) for asked in before),
        _training_stage(config, shape, gpu, gpus, lengths, number),
        *(_asked_stage(asked, config, shape, gpu, lengths, replicas) for asked in after),
    ]


def together(rounds: Iterable[list[PlannedStage]]) -> list[PlannedStage]:
    """The stages of all rounds, each summed over them."""
    found: dict[str, PlannedStage] = {}
    for stage in chain.from_iterable(rounds):
        one = found.get(stage.name)
        if one is not None:
            read, written = one.read + stage.read, one.written + stage.written
            stage = _planned(stage.name, one.items + stage.items, read, written, one.seconds + stage.seconds)
        found[stage.name] = stage
    return list(found.values())


# What the stages ask of a model.


def _people(config: Config) -> int:
    """Personas whose prompts are trained on; none where pairs are given."""
    return 0 if config.pairs.source is not None else config.personas.n


def _asked_before_training(config: Config, lengths: Lengths, number: int) -> list[_Asked]:
    """The held-out prompts are those of the first round."""
    people, n, is_later = _people(config), config.responses.n, number > 1
    writers = people + (0 if is_later else config.personas.held_out) if config.prompts.source is None else 0
    has_new = config.personas.source == "self" and not (is_later and config.rounds.personas == "same")
    drafts = int(DRAFTS_EACH * writers) if has_new else 0
    both = is_later and config.rounds.judge == "both" and judges_itself(config.judging)
    asked = [
        _Asked(name="personas", items=drafts, read=PERSONA_FRAME, written=PERSONA),
        _Asked(name="prompts", items=writers, read=PERSONA_FRAME, written=lengths.prompt),
        # A prompt is read once for all its answers.
        _Asked(name="responses", items=people * n, read=lengths.prompt / n, written=lengths.response),
        _asked_of_judges("verdicts", config.judging, people, n, lengths, models=2 if both else 1),
    ]
    return asked if drafts else asked[1:]


def _asked_of_judges(
    name: str, how: JudgingConfig, prompts: int, n: int, lengths: Lengths, models: int = 1
) -> _Asked:
    """The requests to all judges about n answers to each prompt; none by a rule that asks no model. Each
    judge is run by `models` models."""
    wordings, judges = len(how.templates), models * (1 + len(how.panel))
    frame = JUDGE_FRAME + lengths.prompt
    if how.method == "pointwise":  # each answer once, in however many pairs and orders it stands
        items = prompts * n * wordings * judges
        return _Asked(name=name, items=items, read=frame + lengths.response, written=0)
    pairs = len(compared_pairs(n, how.comparisons_per_answer))
    verdicts = prompts * pairs * orders_of(how) * wordings * judges
    without_content = prompts * len(CONTENT_FREE) * wordings * judges if how.content_free and pairs else 0
    items = verdicts + without_content
    read = frame + 2 * lengths.response * verdicts / max(1, items)
    return _Asked(
        name=name, items=items, read=read, written=VERDICT * how.samples if how.method == "text" else 0
    )


def _asked_for_evaluation(config: Config, lengths: Lengths, number: int) -> list[_Asked]:
    """Held-out answers are those of the first round's base and of each round's model, which from the second
    round on is compared with the base and with the model before. A judge that changes with the rounds is
    then checked by the one before."""
    prompts, how, is_later = config.personas.held_out, reading_judge(config.judging), number > 1
    answers = prompts if is_later else 2 * prompts
    compared = 2 * prompts if is_later and own_pairs(config) else prompts
    again = is_later and judges_anew(config)
    checked = min(REJUDGED, config.personas.n) if again else 0
    asked = [
        _Asked(name="held-out answers", items=answers, read=lengths.prompt, written=lengths.response),
        _asked_of_judges("held-out verdicts", how, compared, 2, lengths),
        _asked_of_judges("verdicts of the judge before", config.judging, checked, 2, lengths),
    ]
    return asked if again else asked[:-1]


def _asked_stage(
    asked: _Asked, config: Config, shape: Shape, gpu: GPU, lengths: Lengths, replicas: int
) -> PlannedStage:
    written = asked.items * asked.written
    reading = 2 * asked.items * (asked.read * shape.used + shape.head) / _rate(gpu, lengths)
    length = int(max(asked.read, lengths.prompt)) + asked.written
    if config.engine.name == "vllm":
        writing = vllm_seconds(shape, config, written, length, gpu)
    else:
        writing = writing_seconds(shape, config.engine.slots, written, length, gpu)
    is_elsewhere = "verdicts" in asked.name and config.judging.engine is not None  # another model's work
    seconds = 0.0 if is_elsewhere else (reading + writing) / replicas
    return _planned(asked.name, asked.items, int(asked.items * asked.read), written, seconds)


def writing_seconds(shape: Shape, slots: int, tokens: int, length: int, gpu: GPU) -> float:
    """Seconds to write `tokens` tokens, `slots` samples at once: each step reads all weights, and the keys
    and values of all positions of its group."""
    read = 2 * shape.parameters + slots * group_size(length) * shape.kv_bytes
    return tokens / slots * max(read / (gpu.bandwidth * 1e9), shape.layers * LAUNCH)


def vllm_seconds(shape: Shape, config: Config, tokens: int, length: int, gpu: GPU) -> float:
    """The same for vLLM: as many samples at once as its pages hold at their full mean length, half of which a
    step reads."""
    vllm = config.engine.vllm
    _, room = vllm_room(shape, config, gpu)
    held = room * vllm.tensor_parallel_size / (length * shape.kv_bytes)
    at_once = max(1.0, min(vllm.max_num_seqs, held))
    read = (2 * shape.parameters + at_once * length / 2 * shape.kv_bytes) / vllm.tensor_parallel_size
    return tokens / at_once * max(read / (gpu.bandwidth * 1e9), VLLM_STEP)


# Training.


def _training_stage(
    config: Config, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths, number: int
) -> PlannedStage:
    train, pairs = config.train, _pairs(config, number)
    tokens = pairs * lengths.pair(train) * train.epochs
    seconds = training_seconds(shape, train, tokens, lengths, _rate(gpu, lengths) * gpus)
    return _planned("training", pairs, tokens, 0, seconds)


def _pairs(config: Config, number: int) -> int:
    """Pairs to train on; with rounds.data all those of the rounds before too."""
    if config.pairs.source is not None:
        return config.personas.n
    people, n = config.personas.n, config.responses.n
    by_rule = {"all": people * n * (n - 1) // 2, "adjacent": people * (n - 1)}
    rounds = number if config.rounds.data == "all" else 1
    kept = rounds * int(by_rule.get(config.pairs.rule, people) * KEPT[config.pairs.keep])
    return kept if config.train.max_pairs is None else min(kept, config.train.max_pairs)


def training_seconds(shape: Shape, train: TrainConfig, tokens: int, lengths: Lengths, rate: float) -> float:
    """Seconds for so many tokens at `rate` FLOP/s; losses with a reference need one more forward pass."""
    context = lengths.prompt + lengths.response / 2
    flops = flops_per_token(shape, train, context)
    if train.needs_reference:
        flops += 2 * (shape.used + shape.head) / train.epochs
    return tokens * flops / rate


def flops_per_token(shape: Shape, train: TrainConfig, context: float) -> float:
    """FLOP to train on one token with `context` tokens before it on average: 6 for each weight, 8 with
    checkpointing, 4 and 6 with an adapter; the tiled head is made again in the backward pass, unless it is
    frozen."""
    full = 2 if train.method == "full" else 0
    again = 2 if train.gradient_checkpointing else 0
    attention = 4 * context * shape.heads * shape.head_dim * shape.layers  # forward: scores and their use
    return shape.used * (4 + full + again) + shape.head * (4 + 2 * full) + attention * (3 + again / 2)


def _rate(gpu: GPU, lengths: Lengths) -> float:
    """FLOP/s that one GPU reaches."""
    return gpu.tflops * 1e12 * lengths.mfu


def _planned(name: str, items: int, read: int, written: int, seconds: float) -> PlannedStage:
    return PlannedStage(
        name=name, items=items, read=read, written=written, seconds=seconds, hours=seconds / 3600
    )
