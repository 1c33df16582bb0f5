"""The trained model's card: README.md of its folder."""

from __future__ import annotations

from typing import Any

from sao.config import TrainConfig


def model_card(made: dict[str, Any], funnel: list[dict[str, Any]]) -> str:
    """Markdown with what the model was made from, by which recipe, and under which licences.

    `made` is the run's manifest, `funnel` what each stage took in and let through.
    """
    config = made["config"]
    train = config["train"]
    counts = "\n".join(
        f"| {row['stage']} | {row['records']} | {row['dropped']} | "
        + ", ".join(f"{reason}: {n}" for reason, n in row["reasons"].items())
        + " |"
        for row in funnel
    )
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items() if version)
    gamma = TrainConfig(**train).target_margin
    return f"""---
base_model: {config["model"]}
library_name: transformers
pipeline_tag: text-generation
tags: [sao, simpo, self-alignment]
---

# {config["model"]}, aligned with its own preferences

Trained with SAO (Self-Alignment Optimization, arXiv 2510.06652) on prompts, answers and verdicts that the base model
itself wrote.

| | |
|---|---|
| base model | {config["model"]} (weights, config and tokenizer: sha256 {made["model_identity"]}) |
| personas | {config["personas"]["source"]}; licence: {made["persona_licence"]} |
| judge | {config["judging"]["method"]}, orders: {config["judging"]["orders"]} |
| training | {train["loss"]}, β {train["beta"]}, γ {gamma}, learning rate {train["lr"]}, {train["epochs"]} epoch(s) |
| batch | {train["batch_size"]} pairs |
| seed | {config["seed"]} |
| packages | {packages} |

The model keeps the licence of its base model; the data keep the licence of the personas.

## What went in

| stage | kept | dropped | reasons |
|---|---|---|---|
{counts}
"""
