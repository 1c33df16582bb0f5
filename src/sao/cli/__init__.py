"""The command line: parses, calls, prints. The only place that shows errors."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao import __version__
from sao.errors import ConfigError, SAOError, Terminated

if TYPE_CHECKING:
    from sao.config import Config
    from sao.pipeline.reader import Reader

STAGE_HELP = {
    "run": "everything: prompts, answers, verdicts, pairs, training, evaluation",
    "prompts": "personas write prompts",
    "respond": "… and the model answers them",
    "judge": "… and judges its answers",
    "pairs": "… and the verdicts become preference pairs",
    "train": "… and the model is trained on them",
    "eval": "… and compared with its base on held-out prompts",
}
TOP_KEYS = ("model", "revision", "max_drop_share")
"""The keys of a recipe that stand in no section (`seed` is an option of its own)."""
OUTSIDE_A_RUN = (
    "base", "tuned", "reference", "references", "suite", "questions", "template", "headline", "difficulty",
    "gamed", "limit",
    "data_dir", "include_path", "tasks_template",
)  # fmt: skip
"""The options of `sao eval` that belong to two models outside a run."""
EPILOG = """TARGET is a shipped recipe (default: demo), a recipe file, or a model: a folder, a .gguf file or a hub id.
Any key of a recipe can be set: --train.beta 2.0 --judging.method random --personas.n 500
`sao run --help-config` lists them all. The same command again goes on where it stopped."""  # noqa: E501


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 for success, 1 for an error of SAO's, 2 for a wrong command line, 130 after Ctrl-C,
    143 after SIGTERM."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except SAOError as error:
        if os.environ.get("RANK", "0") == "0":  # torchrun's other processes meet the same error
            print(f"\nsao: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except Terminated as error:
        print(f"\nsao: {error}; the same command goes on from here", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(
            "\nsao: stopped; what is finished is kept, and the same command goes on from here",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"\nsao: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="sao",
        description="A chat model aligns itself: it writes, answers and judges its own prompts, and learns "
        "from them.",
    )
    parser.add_argument("--version", action="version", version=f"sao {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGE_HELP.items():
        command = commands.add_parser(
            name, help=text, description=text, epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )  # fmt: skip
        command.add_argument(
            "target", nargs="?", metavar="TARGET", help="recipe, recipe file or model (default: demo)"
        )
        command.add_argument(
            "--pairs",
            metavar="FILE|HUB",
            help="train on this preference data set instead of the model's own answers",
        )
        command.add_argument("--out", type=Path, help="run folder (default: runs/<target>)")
        command.add_argument("--seed", type=int, help="the run's seed (default: the recipe's)")
        command.add_argument("--json", action="store_true", help="print the result as one JSON line last")
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument("--help-config", action="store_true", help="list every key of a recipe and stop")
        if name == "eval":
            _add_suites(command)
    export = commands.add_parser(
        "export", help="a run's pairs as a data set for TRL or another tool, with a card"
    )
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--out", type=Path, help="folder of the data set (default: RUN/export)")
    export.add_argument(
        "--format",
        default="trl",
        help="trl (default), simpo, llamafactory, axolotl or openrlhf: what will read it",
    )
    export.add_argument(
        "--view", default="pairs", help="pairs (default), kto (answers with a label) or sft (best answers)"
    )
    export.add_argument(
        "--test-share",
        type=float,
        default=0.05,
        help="share of the prompts that become test data (default: 0.05)",
    )
    export.add_argument(
        "--no-audit", action="store_true", help="leave the judge's figures out of the card (quicker)"
    )
    export.add_argument(
        "--push-to-hub", metavar="ID", help="upload the folder as a private data set (HF_TOKEN)"
    )
    export.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    give = commands.add_parser(
        "import", help="a preference data set that others made, as a run: for training, audit, labels, "
                       "statistics, export",
        epilog="Any key of a recipe can be set too: --model MODEL --pairs.revision COMMIT --pairs.licence "
               "NAME",
        allow_abbrev=False,
    )  # fmt: skip
    give.add_argument(
        "source", metavar="FILE|HUB", help="a file, a folder of Parquet files, or a hub data set's id"
    )
    give.add_argument("--out", type=Path, required=True, help="run folder")
    give.add_argument("--recipe", default="default", help="recipe to go on with (default: default)")
    give.add_argument(
        "--held-out", type=int, default=0, help="prompts that only the evaluation sees (default: 0)"
    )
    give.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    stats = commands.add_parser(
        "stats", help="how varied a run's prompts and answers are; two runs side by side"
    )
    stats.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="one run folder, or two")
    stats.add_argument("--seed", type=int, default=0, help="another seed draws other samples")
    stats.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    contamination = commands.add_parser(
        "contamination", help="which evaluation items stand in a run's prompts and answers"
    )
    contamination.add_argument("run", type=Path, metavar="RUN", help="run folder")
    contamination.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="SET",
        help="presets, files or hub ids, as in filters.decontaminate",
    )
    contamination.add_argument(
        "--max-overlap", type=float, default=0.7, help="share of an item's n-grams (default: 0.7)"
    )
    contamination.add_argument(
        "--out", type=Path, help="write the report with the pairs side by side into this Markdown file"
    )
    contamination.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    audit = commands.add_parser(
        "audit", help="what a run's judge is worth: accuracy, biases, calibration, what to keep"
    )
    audit.add_argument("run", type=Path, metavar="RUN", help="run folder")
    audit.add_argument(
        "--labels", type=Path, help="people's verdicts (default: RUN/labels.jsonl, where it is there)"
    )
    audit.add_argument(
        "--self-tests", type=int, default=0, metavar="N", help="also ask the judge about N made-up pairs"
    )
    audit.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    label = commands.add_parser(
        "label", help="label a blind sample of a run's pairs by hand; the audit compares"
    )
    label.add_argument("run", type=Path, metavar="RUN", help="run folder")
    label.add_argument("--n", type=int, default=100, help="pairs to label (default: 100)")
    label.add_argument("--by", default="me", help="who labels (default: me)")
    label.add_argument("--seed", type=int, default=0, help="another seed draws other pairs")
    plan = commands.add_parser(
        "plan", help="memory and hours of a recipe before anything starts, and which way of training fits",
        epilog="Any key of a recipe can be set too: --train.method lora --train.micro_batch_size 4",
        allow_abbrev=False,
    )  # fmt: skip
    plan.add_argument(
        "target", nargs="?", default="demo", metavar="TARGET", help="recipe, recipe file or model"
    )
    plan.add_argument("--gpu", default="H100-80", help="the card to plan for (default: H100-80)")
    plan.add_argument("--gpus", type=int, help="how many (default: train.processes)")
    plan.add_argument(
        "--prompt-tokens", type=int, default=60, help="assumed mean length of a prompt (default: 60)"
    )
    plan.add_argument("--response-tokens", type=int, default=400, help="… of an answer (default: 400)")
    plan.add_argument(
        "--mfu", type=float, default=0.40, help="assumed share of the GPU's peak rate (default: 0.40)"
    )
    plan.add_argument("--probe", action="store_true", help="also time a few optimiser steps on this machine")
    plan.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    env = commands.add_parser("env", help="versions, devices and threads, for a bug report")
    env.add_argument("--json", action="store_true", help="print the result as one JSON line last")
    return parser


def _add_suites(command: argparse.ArgumentParser) -> None:
    """The options of an evaluation outside a run."""
    group = command.add_argument_group(
        "two models outside a run (TARGET is then the recipe for engine, sampling and judge)"
    )
    group.add_argument(
        "--base", metavar="MODEL", help="the untrained model: a folder, ID@REVISION, or a run folder"
    )
    group.add_argument("--tuned", metavar="MODEL", help="the trained one, likewise")
    group.add_argument(
        "--reference", metavar="MODEL|FILE", help="a third whose answers both are compared with"
    )
    group.add_argument(
        "--suite",
        nargs="+",
        metavar="SUITE",
        help="heldout (default), alpaca, arena, mtbench, mtbench-pairs, tasks",
    )
    group.add_argument(
        "--questions", nargs="+", default=[], metavar="SUITE=SET", help="questions in place of a suite's own"
    )
    group.add_argument(
        "--template", nargs="+", default=[], metavar="SUITE=FILE", help="what a suite's judge is shown"
    )
    group.add_argument(
        "--references",
        nargs="+",
        default=[],
        metavar="SUITE=FILE",
        help="right answers that the judge is shown",
    )
    group.add_argument("--headline", action="store_true", help="show figures of a circular judge too")
    group.add_argument(
        "--difficulty", metavar="FILE", help="AlpacaEval's difficulty by instruction, for its LC win rate"
    )
    group.add_argument(
        "--gamed", metavar="FILE", help="AlpacaEval's rows of the gamed baseline, for the same"
    )
    group.add_argument(
        "--tasks", nargs="+", default=["leaderboard"], metavar="TASK", help="lm-eval's NAME or NAME:SHOTS"
    )
    group.add_argument(
        "--tasks-template", action="store_true", help="ask the tasks by the models' chat template"
    )
    group.add_argument("--limit", type=int, help="documents of each task at most")
    group.add_argument("--batch-size", type=int, default=8, help="of the tasks (default: 8)")
    group.add_argument("--data-dir", type=Path, help="local copies of the tasks' data")
    group.add_argument("--include-path", type=Path, help="folder of further lm-eval tasks")


def _dispatch(argv: list[str]) -> int:
    args, extra = build_parser().parse_known_args(join_overrides(argv))
    if args.command == "env":
        _no_more(extra)
        return _env(args.json)
    if args.command == "import":
        return _import(args, read_overrides(extra))
    others = {
        "export": _export,
        "audit": _audit,
        "label": _label,
        "stats": _stats,
        "contamination": _contamination,
    }
    for name, command in others.items():
        if args.command == name:
            _no_more(extra)
            return command(args)
    if args.command == "plan":
        return _plan(args, read_overrides(extra))
    if args.help_config:
        return _help_config()
    if args.command == "eval" and any(getattr(args, name) for name in OUTSIDE_A_RUN):
        return _evaluate(args, read_overrides(extra))
    return _run(args, read_overrides(extra))


def _no_more(extra: list[str]) -> None:
    if extra:
        raise ConfigError(f"unknown argument {extra[0]}", key=extra[0])


def join_overrides(argv: list[str]) -> list[str]:
    """`--train.beta 2` as `--train.beta=2`, so that the value is never taken for TARGET."""
    joined: list[str] = []
    words = iter(argv)
    for word in words:
        key = word.removeprefix("--")
        is_key = "." in key or key in TOP_KEYS
        if word.startswith("--") and "=" not in word and is_key:
            value = next(words, None)  # an empty text is a value
            if value is None or value.startswith("--"):
                raise ConfigError(f"--{key}: no value given", key=f"--{key}")
            word = f"{word}={value}"
        joined.append(word)
    return joined


def read_overrides(extra: list[str]) -> dict[str, str]:
    """{"train.beta": "2.0"} from ["--train.beta", "2.0"] or ["--train.beta=2.0"]."""
    found: dict[str, str] = {}
    words = iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(
                f"unexpected argument {word!r}; recipe keys are given as --section.key value", key=word
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            given = next(words, None)  # an empty text is a value
            if given is None or given.startswith("--"):
                raise ConfigError(f"--{key}: no value given", key=f"--{key}")
            value = given
        found[key] = value
    return found


def read_target(target: str, overrides: dict[str, str]) -> Config:
    """The config of a recipe, a recipe file or a model (with the recipe `default`)."""
    from sao.config import load_recipe, recipe_names

    if target in recipe_names() or target.endswith((".yaml", ".yml")):
        return load_recipe(target, overrides)
    if (
        Path(target).is_dir()
        or "/" in target
        or target.startswith("builtin:")
        or target.lower().endswith(".gguf")
    ):
        recipe = "demo" if target == "builtin:world" else "default"
        return load_recipe(recipe, {"model": target, **overrides})
    return load_recipe(target, overrides)  # raises, naming the nearest recipe


def _run(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    if args.seed is not None:
        overrides["seed"] = str(args.seed)
    if args.pairs is not None:
        overrides["pairs.source"] = args.pairs
    # The demo's settings are the tiny model's; another model by --model starts from the defaults.
    target = args.target or (overrides.get("model", "demo") if "model" in overrides else "demo")
    config = read_target(target, overrides)
    out = args.out or Path("runs") / re.sub(r"\.(ya?ml|gguf)$", "", Path(target).name).replace(":", "-")
    _quiet_libraries()
    from sao.engines.auto import settle
    from sao.method import run

    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one speaks
    config, engine = settle(config)
    if first:
        line = f"sao {__version__}: {config.model} → {out} (recipe {target}, seed {config.seed}; engine {engine})"  # noqa: E501
        print(line, file=sys.stderr)
    bar = Progress(first and not args.quiet)
    until = "eval" if args.command == "run" else args.command
    try:
        summary = run(config, out, until=until, progress=bar, notify=bar.say)
    finally:
        bar.close()
    if first:
        from sao.report.summary import show_summary

        print(show_summary(summary))
    if first and args.json:
        print(summary.model_dump_json())
    return 0


def _evaluate(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from sao.analysis.evaluate import Asked, TaskOptions, evaluate
    from sao.config import make_config, overridden
    from sao.pipeline.players import player, recipe_of
    from sao.pipeline.two_models import TwoModels
    from sao.report.evaluation import show_evaluation
    from sao.store.files import write_atomic

    if not (args.base and args.tuned):
        raise ConfigError(
            "sao eval with suites compares two models: give both --base and --tuned", key="--base"
        )
    if args.seed is not None:
        overrides["seed"] = str(args.seed)
    base, tuned = player("base", args.base), player("tuned", args.tuned)
    given = {"model": base.model, "revision": base.revision or "null", **overrides}
    run = tuned.run or base.run
    if args.target is None and run is not None:  # as the run's own recipe has it
        config = make_config(
            overridden(recipe_of(run).model_dump(mode="json"), given), f"{run}/manifest.json"
        )
    else:
        config = read_target(args.target or ("demo" if base.model == "builtin:world" else "default"), given)
    asked = Asked(
        base=base,
        tuned=tuned,
        reference=player("reference", args.reference) if args.reference else None,
        questions=dict(_assigned(args.questions, "--questions")),
        templates=dict(_assigned(args.template, "--template")),
        references=dict(_assigned(args.references, "--references")),
        difficulty=args.difficulty,
        gamed=args.gamed,
        headline=args.headline,
    )
    tasks = TaskOptions(
        tasks=args.tasks, template=args.tasks_template, limit=args.limit, batch_size=args.batch_size,
        data_dir=args.data_dir,
        include_path=args.include_path,
    )  # fmt: skip
    _quiet_libraries()
    bar = Progress(not args.quiet)
    bench = TwoModels(config, args.out or Path("runs/eval"), notify=bar.say, progress=bar)
    try:
        evaluation = evaluate(bench, asked, args.suite or ["heldout"], tasks)
    finally:
        bar.close()
    table = show_evaluation(evaluation)
    write_atomic(bench.root / "table.md", table + "\n")
    print(table)
    print(f"\nfiles in {bench.root}: results.json, table.md, items-SUITE.jsonl, .eval_results/")
    if args.json:
        print(evaluation.model_dump_json())
    return 0


def _assigned(given: list[str], option: str) -> Iterator[tuple[str, str]]:
    """("heldout", "FILE") from "heldout=FILE"."""
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"{option} {word}: write it as SUITE=VALUE", key=option)
        yield name, value


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _run_folder(root: Path) -> Reader:
    """A run folder with the recipe it was last used with, read as its manifest has it."""
    from sao.pipeline.folder import recorded

    return recorded(root)


def _own_pairs(root: Path) -> Reader:
    """The same. Raises ConfigError where the run made no pairs of its own."""
    run = _run_folder(root)
    if run.config.pairs.source is not None:
        raise ConfigError(
            f"{root}: trained on given pairs ({run.config.pairs.source}); it made none of its own. `sao "
            "import` makes a run of "
            "them",
            key="pairs.source",
        )
    return run


def _audit(args: argparse.Namespace) -> int:
    from sao.analysis.audit import audit, self_tests
    from sao.report.audit import show_audit

    run = _own_pairs(args.run)
    found = audit(run, args.labels)
    if args.self_tests:
        _quiet_libraries()
        found = found.model_copy(update={"self_tests": self_tests(run, args.self_tests)})
    print(show_audit(found))
    if args.json:
        print(found.model_dump_json())
    return 0


def _label(args: argparse.Namespace) -> int:
    from sao.analysis.label import label

    label(_own_pairs(args.run), args.n, args.by, args.seed)
    return 0


def _import(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from sao.sharing.import_pairs import import_pairs
    from sao.stages.personas import non_commercial

    config = read_target(args.recipe, {**overrides, "pairs.source": args.source})
    done = import_pairs(config, args.out, args.held_out)
    reasons = ", ".join(f"{reason} {n}" for reason, n in done["reasons"].items())
    print(
        f"{done['pairs']} pairs, {done['held_out']} held-out prompts, {done['dropped']} rows dropped "
        f"({reasons or '–'})"
    )
    if non_commercial(done["licence"]):
        print(f"NON-COMMERCIAL: the licence of the pairs is {done['licence']}")
    print(f"go on:  sao train {done['recipe']} --out {args.out} --model MODEL\n        sao audit {args.out}")
    if args.json:
        print(json.dumps(done))
    return 0


def _contamination(args: argparse.Namespace) -> int:
    from sao.analysis.contamination import leak_report
    from sao.data.contamination_sets import load_benchmarks
    from sao.report.contamination import counts_lines, show_contamination
    from sao.store.files import write_atomic

    report = leak_report(_run_folder(args.run).texts, load_benchmarks(args.against), args.max_overlap)
    text = show_contamination(report)
    if args.out:
        write_atomic(args.out, text + "\n")
        print("\n".join(counts_lines(report)))
        print(f"\nthe pairs side by side: {args.out}")
    else:
        print(text)
    if args.json:
        print(report.model_dump_json())
    return 0


def _stats(args: argparse.Namespace) -> int:
    from sao.analysis.stats import stats
    from sao.report.statistics import show_statistics
    from sao.results.statistics import RunStatistics

    if len(args.runs) > 2:
        raise ConfigError("sao stats shows one run, or two side by side", key="run folder")
    found = RunStatistics(runs={str(root): stats(_run_folder(root), args.seed) for root in args.runs})
    print(show_statistics(found))
    if args.json:
        print(found.model_dump_json())
    return 0


def _export(args: argparse.Namespace) -> int:
    from sao.analysis.audit import audit
    from sao.sharing.export import export
    from sao.training.cards import push_dataset

    run = _own_pairs(args.run)
    out = args.out or args.run / "export"
    found = None if args.no_audit else audit(run)
    done = export(run, out, args.format, args.view, args.test_share, found)
    print(
        f"{done['train']} rows for training, {done['test']} for testing ({args.format}, {args.view}) in {out}"
    )
    if args.push_to_hub:
        print(f"uploaded: {push_dataset(out, args.push_to_hub)}")
    if args.json:
        print(json.dumps(done))
    return 0


def _plan(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    from sao.analysis.plan import Lengths, make_plan
    from sao.models.shapes import find_gpu
    from sao.report.plan import show_measurement, show_plan

    config = read_target(args.target, overrides)
    lengths = Lengths(prompt=args.prompt_tokens, response=args.response_tokens, mfu=args.mfu)
    plan = make_plan(config, find_gpu(args.gpu), args.gpus, lengths)
    print(show_plan(plan))
    if args.probe:
        _quiet_libraries()
        from sao.analysis.probe import probe

        measured = probe(config, plan)
        print(f"\n{show_measurement(measured)}")
        plan = plan.model_copy(update={"measured": measured})
    if args.json:
        print(plan.model_dump_json())
    return 0


def _env(as_json: bool) -> int:
    from sao.store.manifest import git_revision, package_versions

    found: dict[str, Any] = {"packages": package_versions(), "git": git_revision(), "cpus": os.cpu_count()}
    try:
        import torch

        cards = range(torch.cuda.device_count())
        found |= {"threads": torch.get_num_threads(), "gpus": [torch.cuda.get_device_name(i) for i in cards]}
    except ImportError:
        found |= {"threads": None, "gpus": []}
    for key, value in found.items():
        print(
            f"{key:10} {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}"  # noqa: E501
        )
    if as_json:
        print(json.dumps(found))
    return 0


def _help_config() -> int:
    from sao.config import Config, section_of

    def show(section: Any, prefix: str) -> None:
        for name, field in section.model_fields.items():
            if inner := section_of(field.annotation):
                print(f"\n{prefix}{name}: {field.description}")
                show(inner, f"{prefix}{name}.")
            else:
                print(
                    f"  --{prefix}{name} (default: {field.default!r})\n      "
                    f"{' '.join((field.description or '').split())}"
                )

    show(Config, "")
    return 0


class Progress:
    """Progress bars on stderr: one for each stage, with rate and time left; lines every 10 s where stderr is
    no terminal."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of `stage` are finished."""
        if not self.shown:
            return
        if stage != self._stage:
            self.close()
            from tqdm import tqdm

            slow = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=f"{stage:13}",
                mininterval=slow,
                file=sys.stderr,
                dynamic_ncols=True,
            )
            self._stage = stage
        self._bar.update(done - self._bar.n)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.close()
        if self.shown:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)

    def close(self) -> None:
        """End the present bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


if __name__ == "__main__":
    sys.exit(main())
