"""The commands that look at a run and at this machine: status, stats, contamination, audit, label, env."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sao.cli.arguments import Renamed, add_json, add_round, no_more, own_pairs, quiet_libraries, run_folder
from sao.errors import ConfigError

if TYPE_CHECKING:
    from sao.cli.arguments import Commands


def add(commands: Commands) -> None:
    """The parsers of this group."""
    status = commands.add_parser("status", help="what a run is doing now, or why it ended")
    status.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_json(status)
    status.set_defaults(call=_status)
    _add_stats(commands)
    _add_contamination(commands)
    _add_audit(commands)
    _add_label(commands)
    env = commands.add_parser("env", help="versions, devices and threads, for a bug report")
    add_json(env)
    env.set_defaults(call=_env)


def _add_stats(commands: Commands) -> None:
    command = commands.add_parser(
        "stats", help="how varied a run's prompts and answers are; two runs side by side"
    )
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="one run folder, or two")
    command.add_argument("--seed", type=int, default=0, help="another seed draws other samples")
    add_round(command)
    add_json(command)
    command.set_defaults(call=_stats)


def _add_contamination(commands: Commands) -> None:
    command = commands.add_parser(
        "contamination", help="which evaluation items stand in a run's prompts and answers"
    )
    add_option = command.add_argument
    add_option("run", type=Path, metavar="RUN", help="run folder")
    add_option(
        "--sets",
        nargs="+",
        required=True,
        metavar="SET",
        help="evaluation sets: presets, files or hub ids, as in filters.decontaminate",
    )
    add_option("--against", action=Renamed, to="--sets")
    add_option("--max-overlap", type=float, default=0.7, help="share of an item's n-grams (default: 0.7)")
    add_option(
        "--out", type=Path, help="write the report with the pairs side by side into this Markdown file"
    )
    add_round(command)
    add_json(command)
    command.set_defaults(call=_contamination)


def _add_audit(commands: Commands) -> None:
    command = commands.add_parser(
        "audit", help="what a run's judge is worth: accuracy, biases, calibration, what to keep"
    )
    add_option = command.add_argument
    add_option("run", type=Path, metavar="RUN", help="run folder")
    add_option("--labels", type=Path, help="people's verdicts (default: RUN/labels.jsonl, where it is there)")
    add_option(
        "--self-tests", type=int, default=0, metavar="N", help="also ask the judge about N made-up pairs"
    )
    add_round(command)
    add_json(command)
    command.set_defaults(call=_audit)


def _add_label(commands: Commands) -> None:
    command = commands.add_parser(
        "label", help="label a blind sample of a run's pairs by hand; the audit compares"
    )
    add_option = command.add_argument
    add_option("run", type=Path, metavar="RUN", help="run folder")
    add_option("--n", type=int, default=100, help="pairs to label (default: 100)")
    add_option("--by", default="me", help="who labels (default: me)")
    add_option("--seed", type=int, default=0, help="another seed draws other pairs")
    add_round(command)
    command.set_defaults(call=_label)


def _status(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.execution.status import read_status
    from sao.report.status import show_status

    no_more(extra)
    status = read_status(args.run)
    print(show_status(status, args.run, time.time()))
    if args.json:
        print(status.model_dump_json())
    return 0


def _stats(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.analysis.stats import stats
    from sao.report.statistics import show_statistics
    from sao.results.statistics import RunStatistics

    no_more(extra)
    if len(args.runs) > 2:
        raise ConfigError("sao stats shows one run, or two side by side", key="run folder")
    runs = RunStatistics(
        runs={str(root): stats(run_folder(root, args.round), args.seed) for root in args.runs}
    )
    print(show_statistics(runs))
    if args.json:
        print(runs.model_dump_json())
    return 0


def _contamination(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.analysis.contamination import contamination_report
    from sao.data.contamination_sets import load_benchmarks
    from sao.report.contamination import counts_lines, show_contamination
    from sao.store.files import write_atomic

    no_more(extra)
    report = contamination_report(
        run_folder(args.run, args.round).texts, load_benchmarks(args.sets), args.max_overlap
    )
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


def _audit(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.analysis.audit import audit, self_tests
    from sao.report.audit import show_audit

    no_more(extra)
    run = own_pairs(args.run, args.round)
    judge = audit(run, args.labels)
    if args.self_tests:
        quiet_libraries()
        judge = judge.model_copy(update={"self_tests": self_tests(run, args.self_tests)})
    print(show_audit(judge))
    if args.json:
        print(judge.model_dump_json())
    return 0


def _label(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.analysis.label import label

    no_more(extra)
    label(own_pairs(args.run, args.round), args.n, args.by, args.seed)
    return 0


def _env(args: argparse.Namespace, extra: list[str]) -> int:
    from sao.results.environment import Environment
    from sao.store.manifest import git_revision, package_versions

    no_more(extra)
    threads, gpus = None, list[str]()
    try:
        import torch

        threads = torch.get_num_threads()
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    except ImportError:
        pass  # SAO works without torch where a server is asked
    found = Environment(
        packages=package_versions(), git=git_revision(), cpus=os.cpu_count(), threads=threads, gpus=gpus
    )
    print(f"packages   {', '.join(f'{name} {version}' for name, version in found.packages.items())}")
    print(f"git        {found.git}\ncpus       {found.cpus}\nthreads    {found.threads}")
    print(f"gpus       {', '.join(found.gpus) or 'none'}")
    if args.json:
        print(found.model_dump_json())
    return 0
