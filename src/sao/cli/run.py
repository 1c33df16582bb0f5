"""The commands that run the method or compare two models: run, prompts, respond, judge, pairs, train,
eval."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao import __version__
from sao.cli.arguments import add_json, quiet_libraries, read_overrides, read_target
from sao.cli.progress import Progress
from sao.errors import ConfigError

if TYPE_CHECKING:
    from sao.analysis.evaluate import Asked, TaskOptions
    from sao.cli.arguments import Commands
    from sao.config import Config
    from sao.pipeline.players import Player

STAGE_HELP = {
    "run": "everything: prompts, answers, verdicts, pairs, training, evaluation",
    "prompts": "personas write prompts",
    "respond": "… and the model answers them",
    "judge": "… and judges its answers",
    "pairs": "… and the verdicts become preference pairs",
    "train": "… and the model is trained on them",
    "eval": "… and compared with its base on held-out prompts",
}
OUTSIDE_A_RUN = (
    "base", "tuned", "reference", "references", "suite", "questions", "template", "headline", "difficulty",
    "gamed", "limit", "data_dir", "include_path", "tasks_template", "answers_only",
)  # fmt: skip
"""The options of `sao eval` that belong to two models outside a run."""
EPILOG = """\
TARGET is a shipped recipe (default: demo), a recipe file, or a model: a folder, a .gguf file or a hub id.
Any key of a recipe can be set: --train.beta 2.0 --judging.method random --personas.n 500
`sao run --help-config` lists them all. The same command again goes on where it stopped."""


def add(commands: Commands) -> None:
    """The parsers of this group."""
    for name, text in STAGE_HELP.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        _add_options(command)
        command.set_defaults(call=_run)
        if name == "eval":
            _add_two_models(command)
            command.set_defaults(call=_evaluate)


def _add_options(command: argparse.ArgumentParser) -> None:
    add_option = command.add_argument
    add_option("target", nargs="?", metavar="TARGET", help="recipe, recipe file or model (default: demo)")
    add_option(
        "--pairs",
        metavar="FILE|HUB",
        help="train on this preference data set instead of the model's own answers",
    )
    add_option("--out", type=Path, help="run folder (default: runs/<target>)")
    add_option("--seed", type=int, help="the run's seed (default: the recipe's)")
    add_option(
        "--round",
        type=int,
        metavar="K",
        help="end in round K of a recipe with several (default: run and eval end after the last, others in "
        "the first); with --tuned RUN, the round whose model is meant",
    )
    add_json(command)
    add_option("--quiet", action="store_true", help="no progress")
    add_option("--help-config", action="store_true", help="list every key of a recipe and stop")


def _add_two_models(command: argparse.ArgumentParser) -> None:
    """The options of an evaluation outside a run."""
    add_option = command.add_argument_group(
        "two models outside a run (TARGET is then the recipe for engine, sampling and judge)"
    ).add_argument
    add_option("--base", metavar="MODEL", help="the untrained model: a folder, ID@REVISION, or a run folder")
    add_option("--tuned", metavar="MODEL", help="the trained one, likewise")
    add_option("--reference", metavar="MODEL|FILE", help="a third whose answers both are compared with")
    add_option(
        "--suite",
        nargs="+",
        action="extend",
        metavar="SUITE",
        help="judged: heldout (default), alpaca, arena, mtbench, mtbench-pairs; checked by a program: "
        "ifeval, hellaswag, gsm8k, refusals, tasks",
    )
    for option, value, text in (
        ("--questions", "SUITE=SET", "questions in place of a suite's own"),
        ("--template", "SUITE=FILE", "what a suite's judge is shown"),
        ("--references", "SUITE=FILE", "right answers that the judge is shown"),
    ):
        add_option(option, nargs="+", action="extend", default=[], metavar=value, help=text)
    add_option(
        "--answers-only",
        action="store_true",
        help="write the answers to answers-SUITE.md to be read, and judge nothing",
    )
    add_option("--headline", action="store_true", help="show figures of a circular judge too")
    add_option(
        "--difficulty", metavar="FILE", help="AlpacaEval's difficulty by instruction, for its LC win rate"
    )
    add_option("--gamed", metavar="FILE", help="AlpacaEval's rows of the gamed baseline, for the same")
    add_option("--limit", type=int, help="questions of each suite (documents of each task) at most")
    add_option(
        "--data-dir",
        type=Path,
        help="files of ifeval, hellaswag, gsm8k, mtbench; local copies of the tasks' data",
    )
    _add_tasks(add_option)


def _add_tasks(add_option: Callable[..., argparse.Action]) -> None:
    """The options of the suite `tasks`."""
    add_option(
        "--tasks", nargs="+", default=["leaderboard"], metavar="TASK", help="lm-eval's NAME or NAME:SHOTS"
    )
    add_option("--tasks-template", action="store_true", help="ask the tasks by the models' chat template")
    add_option("--batch-size", type=int, default=8, help="of the tasks (default: 8)")
    add_option("--include-path", type=Path, help="folder of further lm-eval tasks")


def _run(args: argparse.Namespace, extra: list[str]) -> int:
    if args.help_config:
        return _help_config()
    overrides = _overrides(args, extra)
    if args.pairs is not None:
        overrides["pairs.source"] = args.pairs
    # The demo's settings are the tiny model's; another model by --model starts from the defaults.
    model = overrides.get("model", "builtin:world")
    recipe = args.target or ("demo" if model == "builtin:world" else "default")
    target = args.target or overrides.get("model", "demo")
    config = read_target(recipe, overrides)
    out = args.out or Path("runs") / re.sub(r"\.(ya?ml|gguf)$", "", Path(target).name).replace(":", "-")
    quiet_libraries()
    from sao.engines.auto import settle
    from sao.method import run
    from sao.report.summary import show_summary

    speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one does
    config, engine = settle(config)
    if speaks:
        settings = f"recipe {target}, seed {config.seed}; engine {engine}"
        print(f"sao {__version__}: {config.model} → {out} ({settings})", file=sys.stderr)
    bar = Progress(speaks and not args.quiet)
    until = "eval" if args.command == "run" else args.command
    try:
        summary = run(config, out, until=until, number=args.round, progress=bar, notify=bar.say)
    finally:
        bar.close()
    if speaks:
        print(show_summary(summary))
        if args.json:
            print(summary.model_dump_json())
    return 0


def _overrides(args: argparse.Namespace, extra: list[str]) -> dict[str, str]:
    """The recipe keys that are given, the seed among them."""
    seed = {} if args.seed is None else {"seed": str(args.seed)}
    return {**read_overrides(extra), **seed}


def _evaluate(args: argparse.Namespace, extra: list[str]) -> int:
    """Two models outside a run, where one of their options is given; else the run itself."""
    if args.help_config or not any(getattr(args, name) for name in OUTSIDE_A_RUN):
        return _run(args, extra)
    from sao.analysis.evaluate import evaluate
    from sao.pipeline.two_models import TwoModels
    from sao.report.evaluation import show_evaluation
    from sao.store.files import write_atomic

    if not (args.base and args.tuned):
        raise ConfigError(
            "sao eval with suites compares two models: give both --base and --tuned", key="--base"
        )
    overrides, asked = _overrides(args, extra), _asked(args)
    config = _config_of_two(args.target, asked.base, asked.tuned, overrides)
    quiet_libraries()
    bar = Progress(not args.quiet)
    two = TwoModels(config, args.out or Path("runs/eval"), notify=bar.say, progress=bar)
    try:
        evaluation = evaluate(two, asked, args.suite or ["heldout"], _task_options(args))
    finally:
        bar.close()
    table = show_evaluation(evaluation)
    write_atomic(two.root / "table.md", table + "\n")
    print(table)
    print(
        f"\nfiles in {two.root}: results.json, table.md, items-SUITE.jsonl, answers-SUITE.md, .eval_results/"
    )
    if args.json:
        print(evaluation.model_dump_json())
    return 0


def _asked(args: argparse.Namespace) -> Asked:
    """Models, suites and sets that are asked for."""
    from sao.analysis.evaluate import Asked
    from sao.pipeline.players import player

    return Asked(
        base=player("base", args.base),
        tuned=player("tuned", args.tuned, args.round),
        reference=player("reference", args.reference) if args.reference else None,
        questions=dict(_assigned(args.questions, "--questions")),
        templates=dict(_assigned(args.template, "--template")),
        references=dict(_assigned(args.references, "--references")),
        difficulty=args.difficulty,
        gamed=args.gamed,
        headline=args.headline,
        limit=args.limit,
        data_dir=args.data_dir,
        answers_only=args.answers_only,
    )


def _task_options(args: argparse.Namespace) -> TaskOptions:
    """How the suite `tasks` is run."""
    from sao.analysis.evaluate import TaskOptions

    return TaskOptions(
        tasks=args.tasks,
        template=args.tasks_template,
        limit=args.limit,
        batch_size=args.batch_size,
        data_dir=args.data_dir,
        include_path=args.include_path,
    )


def _config_of_two(target: str | None, base: Player, tuned: Player, overrides: dict[str, str]) -> Config:
    """The recipe of an evaluation: TARGET, else that of the run which one of the models comes from."""
    from sao.config import make_config, overridden
    from sao.pipeline.players import recipe_of

    given = {"model": base.model, "revision": base.revision or "null", **overrides}
    run = tuned.run or base.run
    if target is None and run is not None:
        recipe = recipe_of(run).model_dump(mode="json")
        return make_config(overridden(recipe, given), f"{run}/manifest.json")
    return read_target(target or ("demo" if base.model == "builtin:world" else "default"), given)


def _assigned(given: list[str], option: str) -> Iterator[tuple[str, str]]:
    """("heldout", "FILE") from "heldout=FILE"."""
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"{option} {word}: write it as SUITE=VALUE", key=option)
        yield name, value


def _help_config() -> int:
    from sao.config import Config

    _show_keys(Config, "")
    return 0


def _show_keys(section: Any, prefix: str) -> None:
    from sao.config import section_of

    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            print(f"\n{prefix}{name}: {field.description}")
            _show_keys(inner, f"{prefix}{name}.")
        else:
            text = " ".join((field.description or "").split())
            print(f"  --{prefix}{name} (default: {field.default!r})\n      {text}")
