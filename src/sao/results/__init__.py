"""What SAO finds out, as typed records: read them, print them as JSON, validate them against docs/schemas.

Every result names its `kind` and the `version` of its schema. A field's docstring says meaning and unit.

    from sao.results import Summary
    Summary.model_validate_json(Path("runs/demo/summary.json").read_text())
"""

from sao.results.audit import Audit
from sao.results.base import Rate, Result, StageCounts
from sao.results.contamination import Contamination
from sao.results.data import Export, Import
from sao.results.environment import Environment
from sao.results.evaluation import Evaluation
from sao.results.plan import Plan
from sao.results.preview import Preview
from sao.results.statistics import RunStatistics, Statistics
from sao.results.status import Status
from sao.results.summary import Summary
from sao.results.sweep import Cell, Sweep

RESULTS: tuple[type[Result], ...] = (
    Summary, Audit, RunStatistics, Contamination, Evaluation, Plan, Preview, Status, Export, Import,
    Environment, Sweep, Cell,
)  # fmt: skip
"""The results that a command prints with --json or keeps line by line, each with a schema of its own."""

__all__ = [
    "RESULTS",
    "Audit",
    "Cell",
    "Contamination",
    "Environment",
    "Evaluation",
    "Export",
    "Import",
    "Plan",
    "Preview",
    "Rate",
    "Result",
    "RunStatistics",
    "StageCounts",
    "Statistics",
    "Status",
    "Summary",
    "Sweep",
]
