"""The card of a trained model, README.md of its folder, and the way of models and data sets to the hub.

A run's manifest and funnel in, Markdown out. A licence that forbids commercial use is said at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sao.config import TrainConfig
from sao.data.readers import hub_errors
from sao.errors import StoreError
from sao.stages.personas import non_commercial


def model_card(made: dict[str, Any], funnel: list[dict[str, Any]]) -> str:
    """Markdown with what the model was made from, by which recipe, and under which licences.

    `made` is the run's manifest, `funnel` what each stage took in and let through.
    """
    config = made["config"]
    train = config["train"]
    settings = TrainConfig(**train)
    scale = f"β {settings.scale:g}" + (f", γ {settings.target_margin:g}" if settings.loss == "simpo" else "")
    how, made_of = "with given preferences", "on a data set of preferences that others made"
    if not is_given(config):
        judge = other_judge(config)
        how = f"with {'its own' if judge is None else 'other'} preferences"
        wrote = ["answers"] if config["prompts"].get("source") else ["prompts", "answers"]
        *first, last = [*wrote, "verdicts"] if judge is None else wrote
        by = "" if judge is None else f",\nwith the verdicts of {judge}"
        made_of = f"on {' and '.join([', '.join(first), last] if first else [last])} that the base model itself wrote{by}"  # noqa: E501
    return f"""---
base_model: {config["model"]}
library_name: transformers
pipeline_tag: text-generation
tags: [sao, {train["loss"]}, self-alignment]
---

# {config["model"]}, aligned {how}
{warning(made["licences"], "model")}
Trained with SAO (Self-Alignment Optimization, arXiv 2510.06652) {made_of}.

| | |
|---|---|
| base model | {config["model"]} (weights, config and tokenizer: sha256 {made["model_identity"]}) |
| its licence | {made["licences"]["model"]} |
{origin_rows(made)}
| training | {train["method"]}, {train["loss"]}, {scale}, learning rate {train["lr"]}, {train["epochs"]} epoch(s) |
| batch | {train["batch_size"]} pairs |
| seed | {config["seed"]}{"" if settings.seed is None else f"; of the training {settings.seed}"} |
| packages | {packages(made)} |

The model keeps the licence of its base model; the data keep the licence of their source.

## What went in

{counts_table(funnel)}
"""  # noqa: E501


def push_model(folder: Path, repository: str) -> str:
    """Upload a model folder to the hub, into a private repository that is made if need be; its address.

    Raises StoreError where the hub does not take it; the folder is untouched.
    """
    return _push(folder, repository, "model", "train.push_to_hub", "Model trained with SAO")


def push_dataset(folder: Path, repository: str) -> str:
    """Upload an exported data set to the hub, into a private repository that is made if need be; its address.

    Only the files that an export writes go there. Raises StoreError where the hub does not take it; the
    folder is untouched.
    """
    return _push(folder, repository, "dataset", "--push-to-hub", "Data set made with SAO")


def _push(folder: Path, repository: str, kind: str, option: str, message: str) -> str:
    from huggingface_hub import HfApi

    data = kind == "dataset"
    more: dict[str, Any] = {"repo_type": "dataset"} if data else {}
    only = ["README.md", "train.*", "test.*", "dataset_info.json", "axolotl.yaml"]
    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True, **more)
        more |= {"allow_patterns": only} if data else {}
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, **more))
    except hub_errors() as error:
        raise StoreError(
            f"{option} {repository}: not uploaded ({type(error).__name__}: "
            f"{[*str(error).splitlines(), ''][0]}). The "
            f"{'data set' if data else 'model'} lies in {folder}; check HF_TOKEN and the network, then `hf "
            "upload "
            f"{repository} {folder}{' --repo-type dataset' if data else ''}`"
        ) from error


# What both cards say.


def is_given(config: dict[str, Any]) -> bool:
    """Whether others made the preferences."""
    return config["pairs"]["source"] is not None or config["pairs"].get("imported") is not None


def other_judge(config: dict[str, Any]) -> str | None:
    """What judged, None where the run's own model did."""
    judging = config["judging"]
    found: str | None = (judging["engine"] or {}).get("model")
    return found or (None if judging["method"] in ("logprob", "text") else f"the rule {judging['method']!r}")


def name_of(source: str) -> str:
    """A source without the folders in which it lies here."""
    try:
        return Path(source).name if Path(source).exists() else source
    except (OSError, ValueError):  # too long for a path, say
        return source


def origin_rows(made: dict[str, Any]) -> str:
    """Rows of a table: where prompts and verdicts come from."""
    config, licences = made["config"], made["licences"]
    if is_given(config):
        source = config["pairs"]["source"]
        name = "imported from a data set" if source is None else name_of(source)
        return f"| pairs | {name}; licence: {licences['pairs']} |"
    asked = config["prompts"].get("source")
    if asked is not None:
        first = f"| prompts | {name_of(asked)}; licence: {licences['prompts']} |"
    else:
        first = f"| personas | {name_of(config['personas']['source'])}; licence: {licences['personas']} |"
    judging = config["judging"]
    judge = f"{judging['method']}, orders: {judging['orders']}; {other_judge(config) or 'the model itself'}"
    panel = len(judging.get("panel") or [])
    return f"{first}\n| judge | {judge}{f', and a panel of {panel} more' if panel else ''} |"


def packages(made: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made["packages"].items() if version)


def counts_table(funnel: list[dict[str, Any]]) -> str:
    """What each stage let through, as a table."""
    rows = [
        f"| {row['stage']} | {row['records']} | {row['dropped']} | "
        + ", ".join(f"{reason}: {n}" for reason, n in row["reasons"].items())
        + " |"
        for row in funnel
    ]
    return "\n".join(["| stage | kept | dropped | reasons |", "|---|---|---|---|", *rows])


def warning(licences: Mapping[str, str], what: str) -> str:
    """A paragraph on those of the licences that forbid commercial use; "" where none does."""
    found = [f"the {key} ({licence})" for key, licence in licences.items() if non_commercial(licence)]
    if not found:
        return ""
    return f"\n**Non-commercial use only**: so says the licence of {' and of '.join(found)}, and it binds this {what}.\n"  # noqa: E501
