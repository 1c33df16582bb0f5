"""The trained model's card, README.md of its folder, and its way to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sao.config import TrainConfig
from sao.errors import StoreError


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
    settings = TrainConfig(**train)
    scale = f"β {settings.scale:g}" + (f", γ {settings.target_margin:g}" if settings.loss == "simpo" else "")
    source = config["pairs"]["source"]
    if source is None:
        judge = (config["judging"]["engine"] or {}).get("model")
        how = "with another judge's preferences" if judge else "with its own preferences"
        made_of = "on prompts, answers and verdicts that the base model itself\nwrote"
        if judge:
            made_of = f"on prompts and answers that the base model itself wrote, with\nthe verdicts of {judge}"
        origin = (
            f"| personas | {config['personas']['source']}; licence: {made['licences']['personas']} |\n"
            f"| judge | {config['judging']['method']}, orders: {config['judging']['orders']}; {judge or 'the model itself'} |"
        )
    else:
        how = "with given preferences"
        made_of = "on a data set of preferences that others made"
        origin = f"| pairs | {Path(source).name if Path(source).exists() else source}; licence: {made['licences']['pairs']} |"
    return f"""---
base_model: {config["model"]}
library_name: transformers
pipeline_tag: text-generation
tags: [sao, {train["loss"]}, self-alignment]
---

# {config["model"]}, aligned {how}

Trained with SAO (Self-Alignment Optimization, arXiv 2510.06652) {made_of}.

| | |
|---|---|
| base model | {config["model"]} (weights, config and tokenizer: sha256 {made["model_identity"]}) |
| its licence | {made["licences"]["model"]} |
{origin}
| training | {train["method"]}, {train["loss"]}, {scale}, learning rate {train["lr"]}, {train["epochs"]} epoch(s) |
| batch | {train["batch_size"]} pairs |
| seed | {config["seed"]} |
| packages | {packages} |

The model keeps the licence of its base model; the data keep the licence of their source.

## What went in

| stage | kept | dropped | reasons |
|---|---|---|---|
{counts}
"""


def push_model(folder: Path, repository: str) -> str:
    """Upload a model folder to the hub, into a private repository that is made if need be; its address.

    Raises StoreError where the hub does not take it; the folder is untouched.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model trained with SAO"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StoreError(
            f"train.push_to_hub {repository}: not uploaded ({type(error).__name__}: {str(error).splitlines()[0]}). The model "
            f"lies in {folder}; check HF_TOKEN and the network, then `hf upload {repository} {folder}`"
        ) from error
