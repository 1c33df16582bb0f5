"""The forms of an export: what one row is for each tool, and what the tool must be told. Prompt and answers
in, a dict out.

Forms, and what reads them (from each tool's own code; scripts/check_exports.py runs that code on an export):

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

MessageDict = dict[str, str]
"""A message as a tool reads it."""


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
            raise DataError(
                f"{option} {name}: there is no such one; choose from {', '.join(known)}", key=option
            )


def rows_of(example: Example, form: str, view: str, system: str | None) -> list[dict[str, Any]]:
    """The rows of one prompt: the tool's own columns first, then those of `COLUMNS`.

    View kto leaves out an answer that is exactly as good as those it was paired with: it is neither desirable
    nor not.
    """
    messages = [{"role": turn.role, "content": clean(turn.content)} for turn in chat(example.prompt, system)]
    # In the form of SimPO the other columns hold the whole chat, and this one its last question.
    question = {"prompt": clean(example.prompt.text)} if form == "simpo" else {}
    if view == "pairs":
        return [
            question
            | _pair_columns(form, messages, _reply(chosen), _reply(rejected))
            | _beside_pair(example, pair)
            for pair, chosen, rejected in example.pairs
        ]
    ranked = standings(example)
    if view == "sft":
        ranked = [max(ranked, key=lambda s: (s.losses == 0, s.mean, -s.answer.index))]
    else:
        ranked = [standing for standing in ranked if abs(standing.total) > TINY]
    return [
        question
        | _answer_columns(form, view, messages, _reply(standing.answer))
        | ({"label": standing.total > 0} if view == "kto" else {})
        | _beside_answer(example, standing)
        for standing in ranked
    ]


def standings(example: Example) -> list[Standing]:
    """Wins, losses and margins of each answer that is in a kept pair, in the order of the answers.

    An answer may be chosen in one pair and rejected in another; the sign of its mean margin says whether it
    is better or worse than the answers it was paired with, and that is its label in view kto.
    """
    by_answer: dict[str, Standing] = {}
    for pair, chosen, rejected in example.pairs:
        for answer, sign in ((chosen, 1), (rejected, -1)):
            standing = by_answer.setdefault(answer.id, Standing(answer))
            standing.wins += sign > 0
            standing.losses += sign < 0
            standing.total += sign * (1.0 if pair.margin is None else pair.margin)
            standing.numbers &= pair.margin is not None
    return sorted(by_answer.values(), key=lambda s: s.answer.index)


def clean(text: str) -> str:
    """The text as valid Unicode: half a surrogate pair, which JSON can hold and files of text cannot, becomes
    U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _reply(answer: Response) -> MessageDict:
    return {"role": "assistant", "content": clean(answer.text)}


def _pair_columns(
    form: str, messages: list[MessageDict], chosen: MessageDict, rejected: MessageDict
) -> dict[str, Any]:
    """The columns of a pair that the tool reads."""
    match form:
        case "simpo":
            return {"chosen": [*messages, chosen], "rejected": [*messages, rejected]}
        case "llamafactory":
            better, worse = _sharegpt([chosen, rejected])
            return {"conversations": _sharegpt(messages), "chosen": better, "rejected": worse}
        case "axolotl":
            # It looks for the answer in what the chat template renders, and many templates strip it.
            better, worse = (reply | {"content": reply["content"].strip()} for reply in (chosen, rejected))
            return {"messages": messages, "chosen": better, "rejected": worse}
    return {"prompt": messages, "chosen": [chosen], "rejected": [rejected]}


def _answer_columns(form: str, view: str, messages: list[MessageDict], answer: MessageDict) -> dict[str, Any]:
    """The columns of one answer that the tool reads, but for its label."""
    conversation = [*messages, answer]
    match form:
        case "simpo" | "axolotl":
            return {"completion" if view == "kto" else "messages": conversation}
        case "llamafactory":
            return {"conversations": _sharegpt(conversation)}
    return {"prompt": messages, "completion": [answer]}


def _sharegpt(messages: list[MessageDict]) -> list[MessageDict]:
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
        "verdict_prob": judgment.verdict_prob,
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
    "null where it gives none",
    "margin": "log-odds (nats) that the chosen answer is the better one; of a single answer the mean over "
    "its pairs, negative where it is rejected",
    "margin_sd": "standard deviation of the margin, where more than two answers were ranked",
    "wins": "pairs in which this answer is chosen",
    "losses": "pairs in which it is rejected",
    "verdicts": "all verdicts on these answers, one for each judge and order: `judge`; `first_id` and "
    "`second_id` (the answers as shown); `verdict` (first, second, tie, or null: unparseable); `p_first` "
    "(probability of the first) and `verdict_prob` (of all verdict tokens), where read from "
    "log-probabilities; `text`, where read from text",
    "id": "id of the pair, or of the answer where a row holds one answer",
    "chosen_id": "id of the chosen answer",
    "rejected_id": "id of the rejected answer",
    "prompt_id": "id of the prompt",
    "persona_id": "id of the persona",
    "row": "place of the prompt in the run",
    "persona": "text of the persona who asks; empty where there is none",
}
"""What the columns mean."""


# What the tool must be told. `files` are the data files by split.


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
    has_test = "test" in files
    match form:
        case "trl":
            return _trl_usage(view, has_test)
        case "simpo":
            return _simpo_usage(view, has_test)
        case "llamafactory":
            return _llamafactory_usage(view, has_test)
        case "axolotl":
            return _axolotl_usage(view)
    return _code("sh", _openrlhf(view, has_test))


def _trl_usage(view: str, has_test: bool) -> str:
    trainer = {"pairs": "DPO", "kto": "KTO", "sft": "SFT"}[view]
    splits = 'train_dataset=data["train"]' + (', eval_dataset=data["test"]' if has_test else "")
    return _code("python", f"from trl import {trainer}Trainer", f"{trainer}Trainer(model, {splits})")


def _simpo_usage(view: str, has_test: bool) -> str:
    if view == "kto":
        return (
            "`completion` is the whole chat, the answer last, as in sets of the form of argilla/kto-mix-15k."
        )
    splits = "[train, test]" if has_test else "[train]"
    return _code("yaml", "dataset_mixer: {DIR: 1.0}", f"dataset_splits: {splits}")


def _llamafactory_usage(view: str, has_test: bool) -> str:
    stage = {"pairs": "dpo", "kto": "kto", "sft": "sft"}[view]
    options = {"stage": stage, "dataset_dir": "DIR", "dataset": _named("train")}
    if has_test:
        options["eval_dataset"] = _named("test")
    return _code("yaml", *(f"{key}: {value}" for key, value in options.items()))


def _axolotl_usage(view: str) -> str:
    usage = "`axolotl.yaml` is the part of the config that names the data."
    if view == "kto":
        usage += " It writes ChatML; for a model of Llama 3's template set `type: llama3.argilla_chat`."
    return usage


def _openrlhf(view: str, has_test: bool) -> str:
    """OpenRLHF's command."""
    if view == "kto":  # of the last version that has it, whose flags have no sections
        files = "--dataset DIR" + (" --eval_dataset DIR" if has_test else "")
        keys = "--input_key prompt --output_key completion --label_key label --apply_chat_template"
        versions = "OpenRLHF up to 0.9.5; later ones train no KTO"
        return f"python -m openrlhf.cli.train_kto {files} {keys}  # {versions}"
    files = "--data.dataset DIR" + (" --eval.dataset DIR --eval.split test" if has_test else "")
    command, keys = {
        "pairs": (
            "train_dpo",
            "--data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected",
        ),
        "sft": ("train_sft", "--data.input_key prompt --data.output_key completion"),
    }[view]
    return f"python -m openrlhf.cli.{command} {files} {keys} --data.apply_chat_template"


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
