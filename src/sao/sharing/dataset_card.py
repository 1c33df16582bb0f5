"""The card of an exported data set (README.md in its folder): a run's manifest and funnel in, Markdown with
YAML for the hub out.

What the YAML may hold: https://huggingface.co/docs/hub/datasets-cards. Try: sao export RUN --out DIR
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sao.config import Config
from sao.training.cards import counts_table, is_given, name_of, origin_rows, other_judge, packages, warning

MARK = "<!-- written by sao export -->"
"""Marks the card of an exported data set, so that a later export may replace its folder."""
HUB_LICENCES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "c-uda",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "gemma", "gfdl", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "mit", "mpl-2.0", "odbl", "odc-by", "openrail", "pddl",
    "unlicense", "wtfpl",
))  # fmt: skip
"""Names that the hub knows: https://huggingface.co/docs/hub/repositories-licenses"""
CITATION = """```bibtex
@article{yin2025aligning,
  title   = {Aligning Large Language Models via Fully Self-Synthetic Data},
  author  = {Yin, Shangjian and Wei, Zhepei and Zhu, Xinyu and Chen, Wei-Lin and Meng, Yu},
  journal = {arXiv preprint arXiv:2510.06652},
  year    = {2025}
}
```"""
JUDGE_RATES = {
    "accuracy": "right", "first_slot_rate": "the first slot wins", "flip_rate": "flips when swapped",
    "unreadable_rate": "unreadable", "tie_rate": "ties", "longer_wins_rate": "the longer answer wins",
    "intransitive_rate": "goes in circles",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote, for its card."""

    view: str
    files: Mapping[str, str]
    """The data file of each split."""
    rows: Mapping[str, int]
    """The rows of each split."""
    digest: str
    """SHA-256 of the files."""
    left_out: int
    """Answers that view kto has no label for."""
    columns: Mapping[str, str]
    """What each column means."""
    usage: str
    """How the tool reads the folder, Markdown."""
    options: str
    """The options of `sao export` that repeat it."""


def data_card(
    made: dict[str, Any], funnel: list[dict[str, Any]], done: Exported, audit: Mapping[str, Any] | None = None
) -> str:
    """Markdown with YAML for the hub: what the data are, how to load them, what made them, and under which
    licences.

    `made` is the run's manifest, `funnel` the records and drops of each stage, `audit` what
    `sao.analysis.audit.audit` found.
    """
    title = _title(made["config"])
    columns = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in done.columns.items())
    return f"""{_front_matter(made, done, title)}
{MARK}

# {title}
{warning(_licences(made), "data set")}
{_summary(made["config"], done)}
{_left_out(done.left_out)}
## Load it

DIR is this folder, or its name on the hub.

```python
from datasets import load_dataset
data = load_dataset("DIR")
```

{done.usage}

{_how(made, done)}
## What went in and what was dropped

{counts_table([row for row in funnel if row["stage"] != "train"])}
{_held_out(made["config"])}{_audited(audit)}
## Columns

| column | meaning |
|---|---|
{columns}

## Licences

{_licence_lines(made)}

## Citation

{CITATION}
"""


def _title(config: dict[str, Any]) -> str:
    return "Given preferences" if is_given(config) else f"Preferences of {name_of(config['model'])}"


def _summary(config: dict[str, Any], done: Exported) -> str:
    """How many rows of what there are, and where they come from."""
    contents = {
        "pairs": "pairs of a better and a worse answer",
        "kto": "answers with a label",
        "sft": "prompts with an answer",
    }[done.view]
    uses = {"train": "training"}
    rows = ", ".join(f"{n:,} for {uses.get(split, 'testing')}" for split, n in done.rows.items())
    what = f"{sum(done.rows.values()):,} {contents} ({rows}), {_origin(config)}"
    return f"""{what}, with SAO (Self-Alignment Optimization,
[arXiv 2510.06652](https://arxiv.org/abs/2510.06652)).{_splits_are_apart(done)}"""


def _origin(config: dict[str, Any]) -> str:
    """Who wrote and judged the answers."""
    if is_given(config):
        return "from a data set of preferences that others made, imported"
    prompts = "given prompts" if config["prompts"].get("source") else "its own prompts"
    judge = other_judge(config) or "itself"
    return f"that {name_of(config['model'])} wrote to {prompts}, judged by {judge}"


def _splits_are_apart(done: Exported) -> str:
    if len(done.files) < 2:
        return ""
    return " No persona and no question stands in both the training and the test data."


def _left_out(answers: int) -> str:
    if not answers:
        return ""
    return f"\n{answers:,} answers are as good as those that they were paired with, and are left out.\n"


def _front_matter(made: dict[str, Any], done: Exported, title: str) -> str:
    """The YAML that the hub and `datasets` read."""
    tags = ["sao", "self-alignment", "synthetic", {"pairs": "dpo", "kto": "kto", "sft": "sft"}[done.view]]
    splits = [{"split": split, "path": file} for split, file in done.files.items()]
    # `datasets` caches what it loads from a folder under a hash of these settings, even where the files have
    # changed since.
    loaded = {"config_name": "default", "description": f"sha256 {done.digest}", "data_files": splits}
    facts = _hub_licence(_licences(made)) | {
        "pretty_name": title,
        "task_categories": ["text-generation"],
        "tags": tags,
        "size_categories": [_size(sum(done.rows.values()))],
        "configs": [loaded],
    }
    return "---\n" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True) + "---"


def _hub_licence(licences: Mapping[str, str]) -> dict[str, Any]:
    """The hub's names for the licences; "other" with the text for one that it has no name for."""
    names, others = [], []
    for licence in licences.values():
        name = re.sub(r"[\s_]+", "-", licence.strip().lower())
        if name in HUB_LICENCES:
            names.append(name)
        elif licence.startswith("unknown"):
            names.append("unknown")
        elif not licence.startswith(("none", "written by the model itself")):
            names.append("other")
            others.append(licence)
    distinct = list(dict.fromkeys(names)) or ["unknown"]
    facts: dict[str, Any] = {"license": distinct[0] if len(distinct) == 1 else distinct}
    return facts | {"license_name": "; ".join(others)} if others else facts


def _size(rows: int) -> str:
    """The hub's name for so many rows."""
    bounds = [
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
    ]
    return next((name for bound, name in bounds if rows < bound), "10M<n<100M")


def _how(made: dict[str, Any], done: Exported) -> str:
    """The section that says how the data can be made again."""
    config = made["config"]
    making = "import DATASET" if is_given(config) else f"pairs recipe.yaml --seed {config['seed']}"
    return f"""## How it was made

| | |
|---|---|
{_model_row(made)}{origin_rows(made)}
{_pairs_row(config["pairs"])}
| seed | {config["seed"]} |
| packages | {packages(made)} |

The commands, where recipe.yaml holds the recipe below and RUN is any folder:

```sh
sao {making} --out RUN
sao export RUN {done.options}
```

```yaml
{_recipe(config)}```
"""


def _model_row(made: dict[str, Any]) -> str:
    config = made["config"]
    if is_given(config):
        return ""
    identity = f"weights, config and tokenizer: sha256 {made['model_identity']}"
    return f"| model | {name_of(config['model'])} ({identity}) |\n"


def _pairs_row(pairs: dict[str, Any]) -> str:
    return f"| pairs | rule {pairs['rule']}, keep {pairs['keep']}, p of at least {pairs['min_p']:g} |"


def _recipe(config: dict[str, Any]) -> str:
    """The settings that differ from the defaults and affect the data, without this machine's addresses and
    folders."""
    without = {"train", "eval", "seed"}
    settings = Config(**config).model_dump(mode="json", exclude_defaults=True, exclude=without)
    return yaml.safe_dump(
        _public({"model": config["model"], **settings}), sort_keys=False, allow_unicode=True
    )


def _public(value: Any) -> Any:
    """Part of a recipe without addresses of servers and folders of files."""
    match value:
        case dict():
            return {key: _public(inner) for key, inner in value.items() if key != "base_url"}
        case list():
            return [_public(inner) for inner in value]
        case str() if value.startswith(("/", ".")):
            return name_of(value)
    return value


def _licences(made: dict[str, Any]) -> dict[str, str]:
    """The licences of what went into the data, by what it is. Given pairs were written by no model of this
    run."""
    given = is_given(made["config"])
    return {what: licence for what, licence in made["licences"].items() if not (given and what == "model")}


def _licence_lines(made: dict[str, Any]) -> str:
    lines = [f"- {what}: {licence}" for what, licence in _licences(made).items()]
    if not is_given(made["config"]):
        lines.append(
            "\nThe answers are the model's: its licence says what may be done with them, for training too."
        )
    return "\n".join(lines)


def _held_out(config: dict[str, Any]) -> str:
    n = config["personas"]["held_out"]
    if not n:
        return ""
    return f"\n{n:,} of the prompts are held out for the run's evaluation and are not in these data.\n"


def _audited(audit: Mapping[str, Any] | None) -> str:
    """The audit's figures as a section, "" where there are none."""
    if audit is None:
        return ""
    judge, kept = audit["judge"], audit["kept"]
    rows = [(text, judge[key], judge["ci95"].get(key)) for key, text in JUDGE_RATES.items()]
    rows += [
        ("pairs kept, of the possible ones", kept["share"], None),
        ("their labels are right", kept["label_accuracy"], kept["ci95"]),
        ("the chosen answer is the longer one", kept["longer_chosen_rate"], None),
    ]
    lines = [_rate_row(text, rate, interval) for text, rate, interval in rows if rate is not None]
    table = "\n".join(["| | rate | 95 % interval |", "|---|---|---|", *lines])
    verdict = f"{audit['verdict'][0].upper()}{audit['verdict'][1:]}."
    return f"\n## What the judge is worth (`sao audit`)\n\n{verdict}\n\n{table}\n"


def _rate_row(text: str, rate: float, interval: Sequence[float] | None) -> str:
    bounds = f" {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %" if interval else ""
    return f"| {text} | {100 * rate:.1f} % |{bounds} |"
