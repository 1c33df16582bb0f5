"""Each export loaded by the tool that it is for: python scripts/check_exports.py RUN [--tools build/exports]
[--out DIR]

Exports the run's pairs in every form and view, lets each tool's own code read the folder in a process of its
own, and compares what it understood with what was written: rows in train and test, each row's answers in
their order, labels.

    trl           DPOTrainer, KTOTrainer and SFTTrainer train the tiny model for two steps
    simpo         alignment-handbook's get_datasets and apply_chat_template; CPOTrainer (SimPO's loss) trains
    for two steps; the
                  view kto is read by axolotl's strategy for that form
    llamafactory  get_dataset: dataset_info.json, converter, template, tokens
    axolotl       the config's schema, then prepare_preference_datasets or prepare_datasets by axolotl.yaml
    openrlhf      blending_datasets, then RewardDataset or SFTDataset (view kto: UnpairedPreferenceDataset of
    0.9.5, the last
                  version that has one), by the options that the card names

The tools are installed into --tools without their dependencies (about 250 MB, mostly numba for axolotl); what
they import for sound alone is replaced by an empty module. Progress goes to stderr; the last line is JSON:
{"equal_counts", "counts": {form: {view: [train, test]}}, "checked": {form-view: what ran}, "failed":
{form-view: why}}. Exit status 1 where anything failed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sao.config import make_config
from sao.pipeline.folder import reader
from sao.sharing.export import export
from sao.sharing.formats import FORMS, VIEWS, usage
from sao.store.manifest import read_manifest

TOOLS = {
    "llamafactory": ["llamafactory==0.9.5", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3"],
    "axolotl": ["axolotl==0.19.0", "addict", "posthog", "distro", "numba", "llvmlite", "pillow"],
    "openrlhf": ["openrlhf==0.11.2", "pylatexenc"],
    "openrlhf-kto": ["openrlhf==0.9.5", "pylatexenc"],
    "handbook": ["alignment-handbook==0.3.0"],
}
QUIET = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "DISABLE_VERSION_CHECK": "1", "AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
SCRATCH = os.environ.get("SAO_CHECK_SCRATCH", "")
LENGTH = 512
"""Longest chat, in tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Load each export with the tool that it is for.")
    parser.add_argument("run", type=Path, help="run folder (with --one: the folder with the exports)")
    parser.add_argument(
        "--tools", type=Path, default=Path("build/exports"), help="where the tools are or will be"
    )
    parser.add_argument("--out", type=Path, help="keep the exports here")
    parser.add_argument("--one", metavar="FORM-VIEW", help="check one export only, in this process")
    args = parser.parse_args()
    if args.one:
        form, view = args.one.split("-")
        load_by_card(args.run, form, view)
        print(json.dumps({"ran": CHECKS[form](args.run, view)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = (args.out or Path(folder)).resolve()
        counts = export_all(args.run, out)
        install(args.tools.resolve())
        checked, failed = check_all(out, args.tools.resolve(), Path(folder))
    equal = all(counts[form] == counts[FORMS[0]] for form in FORMS)
    print(json.dumps({"equal_counts": equal, "counts": counts, "checked": checked, "failed": failed}))
    sys.exit(0 if equal and not failed else 1)


def export_all(root: Path, out: Path) -> dict[str, dict[str, list[int]]]:
    """Every form and view in a folder of its own; rows in train and test."""
    run = reader(make_config(read_manifest(root).config, f"{root}/manifest.json"), root)
    counts: dict[str, dict[str, list[int]]] = {form: {} for form in FORMS}
    for form in FORMS:
        for view in VIEWS:
            done = export(run, out / f"{form}-{view}", form, view, 0.1)
            counts[form][view] = [done.train, done.test]
    return counts


def install(tools: Path) -> None:
    """Each tool that is not there yet, into a folder of its own."""
    for name, packages in TOOLS.items():
        if not (tools / name).is_dir():
            print(f"installing {packages[0]} into {tools / name}", file=sys.stderr)
            part = tools / f".{name}.part"
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--upgrade",
                "--target",
                str(part),
            ]
            subprocess.run([*pip, *packages], check=True)
            part.rename(tools / name)


def check_all(out: Path, tools: Path, scratch: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What ran on each export, and what went wrong."""
    checked, failed = {}, {}
    for form in FORMS:
        for view in VIEWS:
            name = f"{form}-{view}"
            tool = "openrlhf-kto" if name == "openrlhf-kto" else "axolotl" if name == "simpo-kto" else form
            env = (
                os.environ
                | QUIET
                | {"HF_DATASETS_CACHE": str(scratch / "cache"), "SAO_CHECK_SCRATCH": str(scratch)}
            )
            paths = [str(tools / ("handbook" if tool == "simpo" else tool)), os.environ.get("PYTHONPATH", "")]
            command = [sys.executable, __file__, str(out), "--one", name]
            env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            result = subprocess.run(command, env=env, capture_output=True, text=True)
            lines = result.stdout.splitlines() or [""]
            if result.returncode == 0:
                checked[name] = json.loads(lines[-1])["ran"]
            else:
                failed[name] = ([line for line in result.stderr.splitlines() if line.strip()] or ["?"])[-1]
                print(result.stderr[-4000:], file=sys.stderr)
            print(f"{name}: {checked.get(name) or 'FAILED: ' + failed[name]}", file=sys.stderr)
    return checked, failed


# What was written, and what a tool made of it.

Row = tuple[str, ...]
"""The text before the answer, the answers, and "True" or "False" where there is a label."""


def expected(out: Path, view: str, split: str) -> list[tuple[list[str], list[str]]]:
    """The turns before the answer, and the answers and label, of each row of the export for TRL: all forms
    hold the same."""
    import pyarrow.parquet

    path = out / f"trl-{view}" / f"{split}.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []
    names = ("chosen", "rejected") if view == "pairs" else ("completion",)
    return [
        (
            [turn["content"] for turn in row["prompt"]],
            [row[name][0]["content"] for name in names] + ([str(row["label"])] if view == "kto" else []),
        )
        for row in rows
    ]


def compare(out: Path, view: str, found: dict[str, Iterable[Row]]) -> None:
    """Raise unless each row that the tool read holds the turns and answers that were written; spaces may
    differ."""

    def holds(text: str, part: str) -> bool:
        return "".join(part.split()) in "".join(text.split())

    for split in ("train", "test"):
        rows, wanted = list(found.get(split, [])), expected(out, view, split)
        assert len(rows) == len(wanted), f"{split}: {len(rows)} rows read, {len(wanted)} written"
        for number, ((asked, *got), (turns, answers)) in enumerate(zip(rows, wanted, strict=True)):
            same = (
                len(got) == len(answers)
                and all(map(holds, got, answers))
                and all(holds(asked, t) for t in turns)
            )
            assert same, f"{split} row {number}: read {asked, got}, written {turns, answers}"


def load_by_card(out: Path, form: str, view: str) -> None:
    """Raise unless `datasets` loads the folder by its card, all rows and columns."""
    from datasets import load_dataset

    data = load_dataset(str(out / f"{form}-{view}"))
    assert {split: len(rows) for split, rows in data.items()} == {
        s: len(expected(out, view, s)) for s in data
    }
    assert {"verdicts", "margin", "id", "prompt_id", "persona_id", "persona", "row"} <= set(
        data["train"].column_names
    )


def tiny_model() -> str:
    from sao.models.locate import find_model

    return str(find_model("builtin:world"))


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model())


def named(package: str) -> str:
    return f"{package} {version(package)}"


# The tools.


def check_trl(out: Path, view: str) -> str:
    """Two steps of the trainer that the view is for, on the folder as `datasets` loads it."""
    import trl
    from datasets import load_dataset

    name = {"pairs": "DPO", "kto": "KTO", "sft": "SFT"}[view]
    data = load_dataset(str(out / f"trl-{view}"))
    return two_steps(getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config"), data, {})


def two_steps(trainer_type: Any, config_type: Any, data: Any, more: dict[str, Any]) -> str:
    """Train the tiny model for two steps; what was done."""
    import math

    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "output_dir": SCRATCH, "max_steps": 2, "per_device_train_batch_size": 4, "max_length": LENGTH,
        "logging_steps": 1,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "bf16": False,
        **more,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model())
    before = [p.detach().clone() for p in model.parameters()]
    trainer = trainer_type(
        model, args=config_type(**settings), train_dataset=data["train"], processing_class=tokenizer()
    )
    assert len(trainer.train_dataset) == len(data["train"]), "TRL dropped rows"
    done = trainer.train()
    assert done.global_step == 2
    assert math.isfinite(done.training_loss)
    assert any((a != b).any() for a, b in zip(before, model.parameters(), strict=True)), "no weight moved"
    rows, loss = len(data["train"]), done.training_loss
    return f"{trainer_type.__name__} of {named('trl')}: 2 steps on {rows} rows, loss {loss:.3f}"


def check_simpo(out: Path, view: str) -> str:
    """The alignment-handbook's own loading and templates, and for pairs SimPO's loss; view kto by axolotl's
    strategy."""
    from datasets import load_dataset

    folder = str(out / f"simpo-{view}")
    if view == "kto":
        from axolotl.prompt_strategies.kto.chatml import argilla_chat

        read, data = argilla_chat({}), load_dataset(folder)
        sets = {split: map(read, rows) for split, rows in data.items()}
        compare(
            out,
            view,
            {s: [(r["prompt"], r["completion"], str(r["label"])) for r in rows] for s, rows in sets.items()},
        )
        return f"{named('axolotl')}: chatml.argilla_chat"
    import trl.experimental.cpo

    handbook = types.ModuleType("alignment")  # its __init__ would load an evaluation set from the hub
    handbook.__path__ = [
        str(Path(path, "alignment")) for path in sys.path if Path(path, "alignment").is_dir()
    ]
    sys.modules["alignment"] = handbook
    from alignment.data import apply_chat_template, get_datasets

    keep = ["prompt", "chosen", "rejected", "messages"]
    data = get_datasets({folder: 1.0}, splits=["train", "test"], columns_to_keep=keep, shuffle=False)
    task = "dpo" if view == "pairs" else "sft"
    options = {"tokenizer": tokenizer(), "task": task, "auto_insert_empty_system_msg": False}
    texts = data.map(apply_chat_template, fn_kwargs=options)
    names = ("text_prompt", "text_chosen", "text_rejected") if view == "pairs" else ("text", "text")
    compare(out, view, {s: [tuple(row[name] for name in names) for row in texts[s]] for s in texts})
    ran = f"{named('alignment-handbook')}: get_datasets, apply_chat_template"
    if view == "pairs":
        cpo = trl.experimental.cpo
        more = {"loss_type": "simpo", "cpo_alpha": 0.0, "remove_unused_columns": False}
        ran += "; " + two_steps(cpo.CPOTrainer, cpo.CPOConfig, data.remove_columns("prompt"), more)
    return ran


def check_llamafactory(out: Path, view: str) -> str:
    """LLaMA-Factory's whole way from dataset_info.json to tokens."""
    sound = types.ModuleType("torchaudio")  # imported for sound in prompts, which there is none of
    sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sound
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    model, tok, folder = tiny_model(), tokenizer(), str(out / f"llamafactory-{view}")
    data = DataArguments(
        dataset="sao", eval_dataset="sao_test", dataset_dir=folder, template="chatml", cutoff_len=LENGTH
    )
    training = Seq2SeqTrainingArguments(output_dir=SCRATCH, report_to="none", use_cpu=True)
    template = get_template_and_fix_tokenizer(tok, data)
    stage = {"pairs": "rm", "kto": "kto", "sft": "sft"}[view]
    found = get_dataset(template, ModelArguments(model_name_or_path=model), data, training, stage, tok)

    def row_of(row: dict[str, Any]) -> Row:
        names = ("chosen_labels", "rejected_labels") if view == "pairs" else ("labels",)
        asked = tok.decode(row["chosen_input_ids" if view == "pairs" else "input_ids"])
        answers = [tok.decode([i for i in row[name] if i >= 0]) for name in names]
        return (asked, *answers, *([str(row["kto_tags"])] if view == "kto" else []))

    sets = {"train": found["train_dataset"], "test": found["eval_dataset"]}
    compare(out, view, {split: map(row_of, rows) for split, rows in sets.items()})
    return f"{named('llamafactory')}: get_dataset, stage {stage}"


def check_axolotl(out: Path, view: str) -> str:
    """Axolotl's schema and loaders, by the exported part of a config."""
    import yaml
    from axolotl.utils.data.rl import prepare_preference_datasets
    from axolotl.utils.data.sft import prepare_datasets
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.config import AxolotlInputConfig

    os.chdir(out / f"axolotl-{view}")
    rest = {
        "base_model": tiny_model(), "tokenizer_config": tiny_model(), "sequence_len": LENGTH,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1, "num_epochs": 1, "learning_rate": 1e-5,
        "shuffle_merged_datasets": False,
        "dataset_prepared_path": str(Path(SCRATCH, f"axolotl-{view}")), "dataset_num_proc": 1,
    }  # fmt: skip
    given = yaml.safe_load(Path("axolotl.yaml").read_text("utf-8")) | rest
    cfg = DictDefault(AxolotlInputConfig(**given).model_dump(exclude_none=True)) | {"batch_size": 1}
    tok = tokenizer()
    sets = (prepare_datasets if view == "sft" else prepare_preference_datasets)(cfg, tok)

    def row_of(row: dict[str, Any]) -> Row:
        if view == "sft":
            return tok.decode(row["input_ids"]), tok.decode([i for i in row["labels"] if i >= 0])
        answers = (
            (row["chosen"], row["rejected"]) if view == "pairs" else (row["completion"], str(row["label"]))
        )
        return (row["prompt"], *answers)

    compare(
        out, view, {split: map(row_of, rows) for split, rows in zip(("train", "test"), sets, strict=False)}
    )
    loader = "prepare_datasets" if view == "sft" else "prepare_preference_datasets"
    return f"{named('axolotl')}: AxolotlInputConfig, {loader}"


def check_openrlhf(out: Path, view: str) -> str:
    """OpenRLHF's data sets, by the options that the card names."""
    import openrlhf
    from openrlhf.datasets.utils import blending_datasets

    command = usage("openrlhf", view, {"train": "", "test": ""})
    program = Path(openrlhf.__path__[0], "cli", f"{command.split()[3].rsplit('.', 1)[1]}.py").read_text(
        "utf-8"
    )
    unknown = [word for word in command.split() if word.startswith("--") and f'"{word}"' not in program]
    assert not unknown, f"the command has no {unknown}"

    keys, module, name, columns = {
        "pairs": ({"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"},
                  "reward_dataset", "RewardDataset", ("prompts", "chosens", "rejects")),
        "kto": ({"input_key": "prompt", "output_key": "completion", "label_key": "label"},
                "unpaired_preference_dataset", "UnpairedPreferenceDataset", ("prompts", "responses",
                "labels")),
        "sft": ({"input_key": "prompt", "output_key": "completion"}, "sft_dataset", "SFTDataset", ("prompts",
        "responses")),
    }[view]  # fmt: skip
    options = types.SimpleNamespace(**keys, apply_chat_template=True)
    # flat ones for the older version
    args = types.SimpleNamespace(data=options, use_ms=False, **vars(options))
    strategy = types.SimpleNamespace(args=args, print=lambda *words: None, is_rank_0=lambda: False)
    kind = getattr(importlib.import_module(f"openrlhf.datasets.{module}"), name)
    more = {"is_dpo": True} if view == "pairs" else {}
    found: dict[str, Iterable[Row]] = {}
    for split in ("train", "test"):
        rows = blending_datasets(str(out / f"openrlhf-{view}"), None, strategy, dataset_split=split)
        data = kind(rows, tokenizer(), LENGTH, strategy, num_processors=1, **more)
        data.collate_fn([data[0], data[1]])
        found[split] = list(zip(*(map(str, getattr(data, column)) for column in columns), strict=True))
    compare(out, view, found)
    return f"{named('openrlhf')}: blending_datasets, {name}"


CHECKS = dict(
    zip(FORMS, (check_trl, check_simpo, check_llamafactory, check_axolotl, check_openrlhf), strict=True)
)

if __name__ == "__main__":
    main()
