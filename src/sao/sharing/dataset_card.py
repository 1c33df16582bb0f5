"""The card of an exported data set, README.md of its folder: a run's manifest and funnel in, Markdown with
YAML for the hub out.

What the YAML may hold: https://huggingface.co/docs/hub/datasets-cards. Try: sao export RUN --out DIR
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from sao.config import Config
from sao.results.audit import Audit
from sao.results.base import Rate, StageCounts
from sao.store.manifest import Manifest
from sao.tables import Column, markdown_table, percent
from sao.training.cards import counts_table, is_given, name_of, origin_rows, other_judge, packages, warning

MARK = "<!-- written by sao export -->"
"""Stands in the card of an exported data set, so that its folder is known again."""
HUB_LICENCES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "c-uda", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "gemma",
    "gfdl",
    "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "mit", "mpl-2.0", "odbl", "odc-by", "openrail", "pddl", "unlicense", "wtfpl",
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
    "accuracy": "accuracy", "first_slot_rate": "the first slot wins", "flip_rate": "flips when swapped",
    "unparseable_rate": "unparseable", "tie_rate": "ties", "longer_wins_rate": "the longer answer wins",
    "intransitive_rate": "intransitive",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was exported: data files and rows by split, a digest of the files, how many answers view kto left
    out, the meaning of the columns, how the tool reads the folder, and the options that repeat it."""

    view: str
    files: Mapping[str, str]
    rows: Mapping[str, int]
    digest: str
    left_out: int
    columns: Mapping[str, str]
    usage: str
    options: str


def data_card(
    made: Manifest,
    funnel: list[StageCounts],
    done: Exported,
    audit: Audit | None = None,
    round_number: int = 1,
) -> str:
    """Markdown with YAML for the hub: what the data are, how to load them, what made them, and under which
    licences.

    `made` is the run's manifest, `funnel` what each stage took in and let through, `audit` the result of
    `sao.analysis.audit.audit`, `round_number` the round whose pairs these are.
    """
    config = made.recipe()
    return f"""{_what_they_are(made, config, done)}
## Load it

DIR is this folder, or its name on the hub.

```python
from datasets import load_dataset
data = load_dataset("DIR")
```

{done.usage}

{_how(made, config, done, round_number)}
## What went in and what was dropped

{counts_table(row for row in funnel if row.stage != "train")}
{_held_out(config)}{_audited(audit)}
## Columns

{_columns(done)}

## Licences

{_licence_lines(made, config)}

## Citation

{CITATION}
"""


def _what_they_are(made: Manifest, config: Config, done: Exported) -> str:
    """The YAML, the title, and what the data are."""
    title, licences = _title(config), _licences(made, config)
    out = (
        f"\n{done.left_out:,} answers are as good as those that they were paired with, and are left out.\n"
        * (done.left_out > 0)
    )  # fmt: skip
    return f"""{_front_matter(licences, done, title)}
{MARK}

# {title[0].upper()}{title[1:]}
{warning(licences, "data set")}
{_rows(done)}, {_made_by(config)}, with SAO (Self-Alignment Optimization,
[arXiv 2510.06652](https://arxiv.org/abs/2510.06652)).{_split(done)}
{out}"""


def _title(config: Config) -> str:
    return "given preferences" if is_given(config) else f"preferences of {name_of(config.model)}"


def _rows(done: Exported) -> str:
    """How many rows there are of which kind."""
    what = {
        "pairs": "pairs of a better and a worse answer",
        "kto": "answers with a label",
        "sft": "prompts with an answer",
    }
    rows = ", ".join(
        f"{n:,} for {'training' if split == 'train' else 'testing'}" for split, n in done.rows.items()
    )
    return f"{sum(done.rows.values()):,} {what[done.view]} ({rows})"


def _made_by(config: Config) -> str:
    """Who wrote and judged."""
    if is_given(config):
        return "from a data set of preferences that others made, imported"
    to = "given prompts" if config.prompts.source else "its own prompts"
    return f"that {name_of(config.model)} wrote to {to}, judged by {other_judge(config) or 'itself'}"


def _split(done: Exported) -> str:
    if len(done.files) < 2:
        return ""
    return " No persona and no question stands in both the training and the test data."


def _columns(done: Exported) -> str:
    heads = ["| column | meaning |", "|---|---|"]
    return "\n".join([*heads, *(f"| `{name}` | {meaning} |" for name, meaning in done.columns.items())])


def _front_matter(licences: Mapping[str, str], done: Exported, name: str) -> str:
    tags = ["sao", "self-alignment", "synthetic", {"pairs": "dpo", "kto": "kto", "sft": "sft"}[done.view]]
    splits = [{"split": split, "path": file} for split, file in done.files.items()]
    # `datasets` keeps what it loaded from a folder under a hash of these settings, whatever the files hold by
    # then.
    loaded = {"config_name": "default", "description": f"sha256 {done.digest}", "data_files": splits}
    facts = _hub_licence(licences) | {
        "pretty_name": f"{name[0].upper()}{name[1:]}",
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
    found = list(dict.fromkeys(names)) or ["unknown"]
    return {"license": found[0] if len(found) == 1 else found} | (
        {"license_name": "; ".join(others)} if others else {}
    )


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


def _how(made: Manifest, config: Config, done: Exported, round_number: int) -> str:
    """The section that says how the data can be made again."""
    pairs = config.pairs
    later = f" --round {round_number}" if round_number > 1 else ""
    making = "import DATASET" if is_given(config) else f"pairs recipe.yaml --seed {config.seed}{later}"
    wrote = (
        f"\n| round | {round_number}: by the model that round {round_number - 1} trained |" if later else ""
    )
    return f"""## How it was made

| | |
|---|---|
{_model_row(made, config)}{origin_rows(made, config)}
| pairs | rule {pairs.rule}, keep {pairs.keep}, p of at least {pairs.min_p:g} |
| seed | {config.seed} |{wrote}
| packages | {packages(made)} |

The commands, where recipe.yaml holds the recipe below and RUN is any folder:

```sh
sao {making} --out RUN
sao export RUN {done.options}
```

```yaml
{_recipe(config, round_number)}```
"""


def _model_row(made: Manifest, config: Config) -> str:
    if is_given(config):
        return ""
    identity = f"weights, config and tokenizer: sha256 {made.model_identity}"
    return f"| model | {name_of(config.model)} ({identity}) |\n"


def _recipe(config: Config, round_number: int) -> str:
    """What of the recipe differs from the defaults and bears on the data, without what belongs to this place
    only. Data of a later round hang on the training before it."""
    aside = {"seed"} if round_number > 1 else {"train", "evaluation", "rounds", "seed"}
    found = config.model_dump(mode="json", exclude_defaults=True, exclude=aside)
    return yaml.safe_dump(_public({"model": config.model, **found}), sort_keys=False, allow_unicode=True)


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


def _licences(made: Manifest, config: Config) -> dict[str, str]:
    """The licences of what went into the data, by what it is: no model here wrote pairs that were given."""
    given = is_given(config)
    return {what: licence for what, licence in made.licences.items() if not (given and what == "model")}


def _licence_lines(made: Manifest, config: Config) -> str:
    lines = [f"- {what}: {licence}" for what, licence in _licences(made, config).items()]
    if not is_given(config):
        lines.append(
            "\nThe answers are the model's: its licence says what may be done with them, for training too."
        )
    return "\n".join(lines)


def _held_out(config: Config) -> str:
    n = config.personas.held_out
    return (
        f"\n{n:,} of the prompts are held out for the run's evaluation and are not in these data.\n"
        if n
        else ""
    )


def _audited(audit: Audit | None) -> str:
    """The audit's figures as a section; nothing where there are none."""
    if audit is None:
        return ""
    kept = audit.kept
    rows = [_rate_row(text, getattr(audit.judge, field)) for field, text in JUDGE_RATES.items()]
    rows += [
        ["pairs kept, of the possible ones", percent(kept.share), ""] if kept.share is not None else [],
        _rate_row("their label accuracy", kept.label_accuracy),
        _rate_row("the chosen answer is the longer one", kept.longer_chosen_rate),
    ]
    columns = [Column(), Column("rate"), Column("95 % interval")]
    table = "\n".join(markdown_table(columns, filter(None, rows)))
    verdict = f"{audit.verdict[0].upper()}{audit.verdict[1:]}"
    return f"\n## What the judge is worth (`sao audit`)\n\n{verdict}.\n\n{table}\n"


def _rate_row(text: str, rate: Rate) -> list[str]:
    """A row of the table; no cells where the rate is not known."""
    if rate.rate is None:
        return []
    low, high = rate.ci95
    return [text, percent(rate.rate), f"{100 * low:.1f} to {100 * high:.1f} %"]
