"""The rules of the repository that no other tool holds."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["ruff", "typos"])
def test_commits_are_checked_by_the_versions_that_the_checks_run_with(name: str) -> None:
    pinned = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert pinned is not None
    assert [hook["rev"] for hook in hooks if name in hook["repo"]] == [f"v{pinned[1]}"]
