"""A plan as text: whether it fits, memory by part, tokens and hours by stage, and other ways to train."""

from __future__ import annotations

from sao.results.plan import MemoryParts, Plan
from sao.tables import Column, plain_table

AUTO = (
    "Engine: the built-in one is assumed. Where vLLM is installed engine.name auto takes that: plan it by "
    "--engine.name vllm."
)


def show_plan(plan: Plan) -> str:
    """The plan as text."""
    checkpointing = ", gradient checkpointing" if plan.gradient_checkpointing else ""
    lines = [
        f"{plan.model}: {plan.parameters:,} weights; {plan.gpus} × {plan.gpu} ({plan.gpu_gib:g} GiB each)"
        f"{f' in {plan.nodes} machines' if plan.nodes > 1 else ''}: {_fit(plan)}",
        _assumptions(plan),
        *([AUTO] if plan.engine == "auto" else []),
        "",
        *_memory_table(plan),
        f"training: {plan.method}, weights {plan.weights}, {plan.optimizer}, {plan.parallel}{checkpointing}; "
        f"longest micro-batch: {plan.micro_batch_size} pairs, {plan.micro_batch_tokens:,} tokens",
        "",
        *_stage_table(plan),
        "training on all GPUs, the rest on "
        + ("one" if plan.replicas == 1 else f"{plan.replicas} engines side by side"),
        "",
        *_ways_table(plan),
    ]
    if plan.generation_gib.total > plan.gpu_gib:
        vllm = plan.engine == "vllm"
        way = "more --engine.vllm.tensor_parallel_size" if vllm else "fewer --engine.slots"
        lines.append(f"Generation needs less memory with {way} or a smaller --responses.max_tokens.")
    return "\n".join(lines)


def _fit(plan: Plan) -> str:
    needs = {"training": plan.training_gib.total, "generation": plan.generation_gib.total}
    too_large = [name for name, gib in needs.items() if gib > plan.gpu_gib]
    return f"{' and '.join(too_large)} DO NOT FIT" if too_large else "fits"


def _assumptions(plan: Plan) -> str:
    assumed = plan.assumed
    return (
        f"Computed, not measured. Assumed: prompts of {assumed.prompt} tokens, answers of "
        f"{assumed.response}, {100 * assumed.mfu:.0f} % of the GPU's peak rate, the longest pairs "
        f"{assumed.longest_pair:g} times the mean, {100 * assumed.kept:.0f} % of the pairs kept."
    )


def _memory_table(plan: Plan) -> list[str]:
    columns = [
        Column("GiB on each GPU", width=18),
        Column("training", "right", width=9),
        Column("generation", "right", width=11),
    ]
    parts = [
        (name, getattr(plan.training_gib, name), getattr(plan.generation_gib, name))
        for name in MemoryParts.model_fields
    ]
    return plain_table(columns, [[name, f"{a:.1f}", f"{b:.1f}"] for name, a, b in parts])


def _stage_table(plan: Plan) -> list[str]:
    columns = [
        Column("stage", width=18),
        Column("items", "right", width=9),
        Column("M tokens read", "right", width=14),
        Column("written", "right", width=9),
        Column("hours", "right", width=7),
    ]
    rows = [
        [s.name, f"{s.items:,}", f"{s.read / 1e6:.2f}", f"{s.written / 1e6:.2f}", f"{s.hours:.1f}"]
        for s in plan.stages
    ]
    if plan.rounds > 1:
        rows += [[f"round {n}", "", "", "", f"{hours:.1f}"] for n, hours in enumerate(plan.hours_by_round, 1)]
    all_ = "all" if plan.rounds == 1 else f"all {plan.rounds} rounds"
    return plain_table(columns, [*rows, [all_, "", "", "", f"{plan.hours:.1f}"]])


def _ways_table(plan: Plan) -> list[str]:
    columns = [
        Column("other ways to train", width=28),
        Column("processes", "right", width=9),
        Column("1 pair", "right", width=8),
        Column("as here", "right", width=8),
        Column("largest micro-batch that fits", "right", width=30),
    ]
    rows = [
        [way.name, way.parallel, f"{way.one_pair_gib:.1f}", f"{way.micro_batch_gib:.1f}",
         f"{way.largest_micro_batch} pairs" if way.largest_micro_batch else "none"]
        for way in plan.ways
    ]  # fmt: skip
    return plain_table(columns, rows)
