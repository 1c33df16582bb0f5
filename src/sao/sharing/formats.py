"""The forms of an export: what one row is for each tool, and what the tool has to be told. Prompt and answers
in, a dict out.

Forms (what reads them, looked up in the tool's own code; scripts/check_exports.py runs that code on an
export):

    trl           TRL's conversational types: https://huggingface.co/docs/trl/dataset_formats
    simpo         alignment-handbook and SimPO, `apply_chat_template`: the messages repeat the prompt
    llamafactory  LLaMA-Factory, data/README.md and `SharegptDatasetConverter`, with the entry of
    dataset_info.json
    axolotl       axolotl, prompt_strategies/: dpo/chat_template.py, kto/chatml.py, chat_template.py; with
    YAML for its config
    openrlhf      OpenRLHF, datasets/reward_dataset.py and sft_dataset.py, with the flags of its commands

Views: `pairs` (a row for each pair), `kto` (a row for each answer, with a label), `sft` (each prompt with its
best answer).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sao.data.messages import chat
from sao.errors import DataError
from sao.records import Judgment, PreferencePair, Prompt, Response

FORMS = ("trl", "simpo", "llamafactory", "axolotl", "openrlhf")
VIEWS = ("pairs", "kto", "sft")
SUFFIX = {
    "trl": "parquet",
    "simpo": "parquet",
    "llamafactory": "jsonl",
    "axolotl": "jsonl",
    "openrlhf": "jsonl",
}
TINY = 1e-9
"""Nats below which a sum of margins is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """All that is known of one prompt: its persona's text ("" for nobody), its kept pairs as (pair, chosen,
    rejected), and all verdicts on its answers."""

    prompt: Prompt
    persona: str
    pairs: Sequence[tuple[PreferencePair, Response, Response]]
    judgments: Sequence[Judgment]


@dataclass(slots=True)
class Standing:
    """An answer over the kept pairs of its prompt: in how many it is chosen and rejected, and the sum of its
    margins (nats, for a judge without numbers 1 each; negative where it is rejected)."""

    answer: Response
    wins: int = 0
    losses: int = 0
    total: float = 0.0
    numbers: bool = True

    @property
    def mean(self) -> float:
        """Mean margin against the answers it was paired with."""
        return self.total / (self.wins + self.losses)


def check_names(form: str, view: str) -> None:
    """Raise DataError for a form or view that there is not."""
    for name, option, known in ((form, "--format", FORMS), (view, "--view", VIEWS)):
        if name not in known:
            raise DataError(f"{option} {name}: there is no such one; choose from {', '.join(known)}")


def rows_of(example: Example, form: str, view: str, system: str | None) -> list[dict[str, Any]]:
    """The rows of one prompt: the tool's own columns first, then those of `COLUMNS`.

    View kto leaves out an answer that is exactly as good as those it was paired with: it is neither desirable
    nor not.
    """
    if view == "pairs":
        return [
            _shape(form, view, example.prompt, system, [chosen.text, rejected.text], None)
            | _beside_pair(example, pair)
            for pair, chosen, rejected in example.pairs
        ]
    found = standings(example)
    if view == "sft":
        best = max(found, key=lambda s: (s.losses == 0, s.mean, -s.answer.index))
        return [
            _shape(form, view, example.prompt, system, [best.answer.text], None)
            | _beside_answer(example, best)
        ]
    return [
        _shape(form, view, example.prompt, system, [s.answer.text], s.total > 0) | _beside_answer(example, s)
        for s in found
        if abs(s.total) > TINY
    ]


def standings(example: Example) -> list[Standing]:
    """How each answer that stands in a kept pair did, in the order of the answers.

    An answer may be chosen in one pair and rejected in another; the sign of its mean margin says whether it
    is better or worse than the answers it was paired with, and that is its label in view kto.
    """
    found: dict[str, Standing] = {}
    for pair, chosen, rejected in example.pairs:
        for answer, sign in ((chosen, 1), (rejected, -1)):
            standing = found.setdefault(answer.id, Standing(answer))
            standing.wins += sign > 0
            standing.losses += sign < 0
            standing.total += sign * (1.0 if pair.margin is None else pair.margin)
            standing.numbers &= pair.margin is not None
    return sorted(found.values(), key=lambda s: s.answer.index)


def clean(text: str) -> str:
    """The text as valid Unicode: half a surrogate pair, which JSON can hold and files of text cannot, becomes
    U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _shape(
    form: str, view: str, prompt: Prompt, system: str | None, answers: list[str], label: bool | None
) -> dict[str, Any]:
    """The columns that the tool reads. `answers`: chosen and rejected, or the only one."""
    said = [{"role": turn.role, "content": clean(turn.content)} for turn in chat(prompt, system)]
    replies = [{"role": "assistant", "content": clean(text)} for text in answers]
    first, last = replies[0], replies[-1]
    labelled = {} if label is None else {"label": label}
    match form, view:
        case "simpo", "pairs":
            return {"prompt": clean(prompt.text), "chosen": [*said, first], "rejected": [*said, last]}
        case "simpo", "kto":
            return {"prompt": clean(prompt.text), "completion": [*said, first], **labelled}
        case "simpo", _:
            return {"prompt": clean(prompt.text), "messages": [*said, first]}
        case "llamafactory", "pairs":
            chosen, rejected = _sharegpt(replies)
            return {"conversations": _sharegpt(said), "chosen": chosen, "rejected": rejected}
        case "llamafactory", _:
            return {"conversations": _sharegpt([*said, first]), **labelled}
        case "axolotl", "pairs":
            # It looks for the answer in what the chat template renders, and many templates strip it.
            one, other = (reply | {"content": reply["content"].strip()} for reply in replies)
            return {"messages": said, "chosen": one, "rejected": other}
        case "axolotl", "kto":
            return {"completion": [*said, first], **labelled}
        case "axolotl", _:
            return {"messages": [*said, first]}
        case _, "pairs":
            return {"prompt": said, "chosen": [first], "rejected": [last]}
    return {"prompt": said, "completion": [first], **labelled}


def _sharegpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


def _beside_pair(example: Example, pair: PreferencePair) -> dict[str, Any]:
    two = {pair.chosen_id, pair.rejected_id}
    return {
        "p_chosen": pair.p_chosen,
        "margin": pair.margin,
        "margin_sd": pair.margin_sd,
        "verdicts": [_verdict(j) for j in example.judgments if {j.first_id, j.second_id} == two],
        "id": pair.id,
        "chosen_id": pair.chosen_id,
        "rejected_id": pair.rejected_id,
    } | _origin(example)


def _beside_answer(example: Example, standing: Standing) -> dict[str, Any]:
    answer = standing.answer.id
    return {
        "margin": standing.mean if standing.numbers else None,
        "wins": standing.wins,
        "losses": standing.losses,
        "verdicts": [_verdict(j) for j in example.judgments if answer in (j.first_id, j.second_id)],
        "id": answer,
    } | _origin(example)


def _origin(example: Example) -> dict[str, Any]:
    prompt = example.prompt
    return {
        "prompt_id": prompt.id,
        "persona_id": prompt.persona_id,
        "row": prompt.row,
        "persona": clean(example.persona),
    }


def _verdict(judgment: Judgment) -> dict[str, Any]:
    return {
        "judge": judgment.judge,
        "first_id": judgment.first_id,
        "second_id": judgment.second_id,
        "verdict": judgment.verdict,
        "p_first": judgment.p_first,
        "mass": judgment.mass,
        "text": None if judgment.text is None else clean(judgment.text),
    }


COLUMNS = {
    "prompt": "the chat before the answer; where the other columns repeat that chat, its last question",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "completion": "the answer",
    "messages": "the chat",
    "conversations": "the chat",
    "label": "whether the answer is better than the mean of those it was paired with",
    "p_chosen": "the judge's probability that the chosen answer is the better one, calibrated over the run; "
    "null where it gives "
    "none",
    "margin": "log-odds (nats) that the chosen answer is the better one; of a single answer the mean over "
    "its pairs, "
    "negative where it is rejected",
    "margin_sd": "standard deviation of the margin, where more than two answers were ranked",
    "wins": "pairs in which this answer is chosen",
    "losses": "pairs in which it is rejected",
    "verdicts": "all verdicts on these answers, one for each judge and order: `judge`; `first_id` and "
    "`second_id` (the answers "
    "as shown); `verdict` (first, second, tie, or null: unreadable); `p_first` (probability of the first) "
    "and `mass` (of "
    "all verdict tokens), where read from log-probabilities; `text`, where read from text",
    "id": "id of the pair, or of the answer where a row holds one answer",
    "chosen_id": "id of the chosen answer",
    "rejected_id": "id of the rejected answer",
    "prompt_id": "id of the prompt",
    "persona_id": "id of the persona",
    "row": "place of the prompt in the run",
    "persona": "text of the persona who asks; empty where there is none",
}
"""What the columns mean."""


# What the tool has to be told. `files` are the data files by split.


def side_files(form: str, view: str, files: Mapping[str, str]) -> dict[str, str]:
    """The files beside the data that the tool reads, by name."""
    if form == "llamafactory":
        return {"dataset_info.json": json.dumps(_dataset_info(view, files), indent=1) + "\n"}
    if form == "axolotl":
        opening = "# Part of an axolotl config. The paths hold where this folder is the working directory.\n"
        return {"axolotl.yaml": opening + yaml.safe_dump(_axolotl(view, files), sort_keys=False)}
    return {}


def _dataset_info(view: str, files: Mapping[str, str]) -> dict[str, Any]:
    columns = {"messages": "conversations"}
    if view == "pairs":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    elif view == "kto":
        columns |= {"kto_tag": "label"}
    ranking = {"ranking": True} if view == "pairs" else {}
    entry = {"formatting": "sharegpt", **ranking, "columns": columns}
    return {_named(split): {"file_name": file, **entry} for split, file in files.items()}


def _named(split: str) -> str:
    return "sao" if split == "train" else f"sao_{split}"


def _axolotl(view: str, files: Mapping[str, str]) -> dict[str, Any]:
    template = {"chat_template": "tokenizer_default"}
    mapping = {"role": "role", "content": "content"}
    message = {"field_messages": "messages", "message_property_mappings": mapping}
    match view:
        case "pairs":
            head: dict[str, Any] = {"rl": "dpo", **template}
            answers = {"field_chosen": "chosen", "field_rejected": "rejected"}
            reads: dict[str, Any] = {"type": "chat_template.default", **message, **answers}
        case "kto":
            head = {"rl": "kto", "remove_unused_columns": False}
            reads = {"type": "chatml.argilla_chat"}
        case _:
            head, reads = template, {"type": "chat_template", **message}
    sets = {"train": "datasets", "test": "test_datasets"}
    return head | {
        sets[split]: [{"path": file, "ds_type": "json", "split": "train", **reads}]
        for split, file in files.items()
    }


def usage(form: str, view: str, files: Mapping[str, str]) -> str:
    """Markdown: how the tool reads the folder DIR."""
    tests = "test" in files
    match form:
        case "trl":
            trainer = {"pairs": "DPO", "kto": "KTO", "sft": "SFT"}[view]
            given = 'train_dataset=data["train"]' + (', eval_dataset=data["test"]' if tests else "")
            return _code("python", f"from trl import {trainer}Trainer", f"{trainer}Trainer(model, {given})")
        case "simpo":
            if view == "kto":
                return "`completion` is the whole chat, the answer last, as in sets of the form of argilla/kto-mix-15k."  # noqa: E501
            splits = "[train, test]" if tests else "[train]"
            return _code("yaml", "dataset_mixer: {DIR: 1.0}", f"dataset_splits: {splits}")
        case "llamafactory":
            stage = {"pairs": "dpo", "kto": "kto", "sft": "sft"}[view]
            more = {"eval_dataset": _named("test")} if tests else {}
            options = {"stage": stage, "dataset_dir": "DIR", "dataset": _named("train"), **more}
            return _code("yaml", *(f"{key}: {value}" for key, value in options.items()))
        case "axolotl":
            template = (
                " It writes ChatML; for a model of Llama 3's template set `type: llama3.argilla_chat`."
                * (view == "kto")
            )
            return f"`axolotl.yaml` is the part of the config that names the data.{template}"
    return _code("sh", _openrlhf(view, tests))


def _openrlhf(view: str, tests: bool) -> str:
    if view == "kto":  # of the last version that has it, whose flags have no sections
        given = "--dataset DIR" + (" --eval_dataset DIR" if tests else "")
        keys = "--input_key prompt --output_key completion --label_key label --apply_chat_template"
        return f"python -m openrlhf.cli.train_kto {given} {keys}  # OpenRLHF up to 0.9.5; later ones train no KTO"  # noqa: E501
    given = "--data.dataset DIR" + (" --eval.dataset DIR --eval.split test" if tests else "")
    keys = {
        "pairs": "--data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected",
        "sft": "--data.input_key prompt --data.output_key completion",
    }[view]
    return f"python -m openrlhf.cli.train_{'dpo' if view == 'pairs' else 'sft'} {given} {keys} --data.apply_chat_template"  # noqa: E501


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
