"""The card of a trained model, README.md of its folder, and the way of models and data sets to the hub.

A run's manifest and funnel in, Markdown out. A licence that forbids commercial use is said at the top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sao.config import Config
from sao.config.judging import READERS
from sao.data.readers import hub_errors
from sao.errors import StoreError
from sao.results.base import StageCounts
from sao.stages.personas import non_commercial
from sao.store.manifest import Manifest
from sao.tables import Column, markdown_table

REASONING = {
    "learn": "in the answers; it counted in the loss",
    "keep": "before the answers; it did not count in the loss",
    "drop": "left out of the answers that were learnt",
}
"""What a card says of train.reasoning, for a model that was asked to think."""
Fact = tuple[str, str]
"""What a thing is called, and what it is."""


def model_card(made: Manifest, funnel: list[StageCounts], round_number: int = 1) -> str:
    """Markdown with what the model was made from, by which recipe, and under which licences.

    `made` is the run's manifest, `funnel` what each stage took in and let through, `round_number` the round
    that trained it.
    """
    config = made.recipe()
    return f"""---
base_model: {config.model}
library_name: transformers
pipeline_tag: text-generation
tags: [sao, {config.train.loss}, self-alignment]
---

# {config.model}, aligned with {_whose_preferences(config)} preferences
{warning(made.licences, "model")}
Trained with SAO (Self-Alignment Optimization, arXiv 2510.06652) {_made_of(config, round_number)}.

{facts_table(_facts(made, config) + _round_facts(config, round_number))}

The model keeps the licence of its base model; the data keep the licence of their source.

## What went in

{counts_table(funnel)}
"""


def _whose_preferences(config: Config) -> str:
    if is_given(config):
        return "given"
    return "its own" if other_judge(config) is None else "other"


def _made_of(config: Config, round_number: int) -> str:
    """What the model was trained on."""
    if is_given(config):
        return "on a data set of preferences that others made"
    judge, is_later = other_judge(config), round_number > 1
    if judge is None and is_later and config.rounds.judge != "current":
        judge = "the base model" if config.rounds.judge == "initial" else "the base model and its own"
    wrote = ["answers"] if config.prompts.source else ["prompts", "answers"]
    *first, last = [*wrote, "verdicts"] if judge is None else wrote
    listed = " and ".join([", ".join(first), last] if first else [last])
    by = "" if judge is None else f",\nwith the verdicts of {judge}"
    who = f"round {round_number - 1}'s model" if is_later else "the base model itself"
    if is_later and config.rounds.rejected == "initial":
        who = f"{who} and the base model"
    if is_later and config.rounds.data == "all":
        who = "the base model and the models of the rounds before it"
    return f"on {listed} that {who} wrote{by}"


def _facts(made: Manifest, config: Config) -> list[Fact]:
    settings = config.train
    margin = f", γ {settings.target_margin:g}" if settings.loss == "simpo" else ""
    training_seed = "" if settings.seed is None else f"; of the training {settings.seed}"
    return [
        ("base model", f"{config.model} (weights, config and tokenizer: sha256 {made.model_identity})"),
        ("its licence", made.licences["model"]),
        *origin_facts(made, config),
        (
            "training",
            f"{settings.method}, {settings.loss}, β {settings.scale:g}{margin}, learning rate {settings.lr}, "
            f"{settings.epochs} epoch(s)",
        ),
        *([("reasoning", REASONING[settings.reasoning])] if config.chat.thinks else []),
        ("batch", f"{settings.batch_size} pairs"),
        ("seed", f"{config.seed}{training_seed}"),
        ("packages", packages(made)),
    ]


def _round_facts(config: Config, number: int) -> list[Fact]:
    """What a card says of a model that is not the first round's."""
    if number == 1:
        return []
    rounds = config.rounds
    start = f"round {number - 1}'s model" if rounds.train_from == "current" else "the base model"
    merged = "; each round's adapter is merged into the model before the next"
    adapter = "" if config.train.method == "full" else merged
    judge = {"initial": "the base model", "current": f"round {number - 1}'s model", "both": "both models"}
    told = "on its own pairs" if rounds.data == "newest" else "on the pairs of all rounds so far"
    told += ", of which the base model wrote the rejected answers" if rounds.rejected == "initial" else ""
    if config.train.needs_reference and rounds.reference == "initial":
        told += "; the reference is the base model"
    return [
        ("round", f"{number}; training started from {start} {told}{adapter}"),
        ("its judge", judge[rounds.judge] if other_judge(config) is None else str(other_judge(config))),
    ]


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
        reason = f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"
        what, flag = ("data set", " --repo-type dataset") if data else ("model", "")
        raise StoreError(
            f"{option} {repository}: not uploaded ({reason}). The {what} lies in {folder}; check HF_TOKEN "
            f"and the network, then `hf upload {repository} {folder}{flag}`",
            key=option,
        ) from error


# What both cards say.


def is_given(config: Config) -> bool:
    """Whether others made the preferences."""
    return config.pairs.source is not None or config.pairs.imported is not None


def other_judge(config: Config) -> str | None:
    """What judged, None where the run's own model did."""
    judging = config.judging
    found = None if judging.engine is None else judging.engine.model
    return found or (None if judging.method in READERS else f"the rule {judging.method!r}")


def name_of(source: str) -> str:
    """A source without the folders in which it lies here."""
    try:
        return Path(source).name if Path(source).exists() else source
    except (OSError, ValueError):  # too long for a path, say
        return source


def facts_table(facts: Iterable[Fact]) -> str:
    """A table without heads: what a thing is called, and what it is."""
    return "\n".join(markdown_table([Column(), Column()], facts))


def origin_rows(made: Manifest, config: Config) -> str:
    """Rows of a table: where prompts and verdicts come from."""
    return "\n".join(f"| {name} | {fact} |" for name, fact in origin_facts(made, config))


def origin_facts(made: Manifest, config: Config) -> list[Fact]:
    """Where prompts and verdicts come from."""
    licences, given = made.licences, config.pairs.source
    if is_given(config):
        name = "imported from a data set" if given is None else name_of(given)
        return [("pairs", f"{name}; licence: {licences['pairs']}")]
    what, source = "prompts", config.prompts.source
    if source is None:
        what, source = "personas", config.personas.source
    judging = config.judging
    members = len(judging.panel)
    panel = f", and a panel of {members} more" if members else ""
    judge = other_judge(config) or "the model itself"
    return [
        (what, f"{name_of(source)}; licence: {licences[what]}"),
        ("judge", f"{judging.method}, orders: {judging.orders}; {judge}{panel}"),
    ]


def packages(made: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in made.packages.items() if version)


def counts_table(funnel: Iterable[StageCounts]) -> str:
    """What each stage let through, as a table."""
    columns = [Column(head) for head in ("stage", "kept", "dropped", "reasons")]
    rows = [
        [
            row.stage,
            str(row.records),
            str(row.dropped),
            ", ".join(f"{why}: {n}" for why, n in row.reasons.items()),
        ]
        for row in funnel
    ]
    return "\n".join(markdown_table(columns, rows))


def warning(licences: Mapping[str, str], what: str) -> str:
    """A paragraph on those of the licences that forbid commercial use; "" where none does."""
    forbidding = [f"the {key} ({licence})" for key, licence in licences.items() if non_commercial(licence)]
    if not forbidding:
        return ""
    return (
        f"\n**Non-commercial use only**: so says the licence of {' and of '.join(forbidding)}, and it binds "
        f"this {what}.\n"
    )
