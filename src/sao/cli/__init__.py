"""The command line: `sao COMMAND …`. `app` calls and shows errors; `preview`, `run`, `sweep`, `plan`,
`inspect` and `data` hold one group of commands each."""

from sao.cli.app import build_parser, main
from sao.cli.arguments import TOP_KEYS, join_overrides, read_overrides, read_target

__all__ = ["TOP_KEYS", "build_parser", "join_overrides", "main", "read_overrides", "read_target"]
