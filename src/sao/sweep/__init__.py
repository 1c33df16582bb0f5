"""Several recipes that differ in a few keys, run in shared run folders and compared on held-out prompts.

    plan = make_plan(load_recipe("demo"), ["judging.method=logprob,random", "train.seed=0,1"], Path("sweep"))
    run_cells(plan)                 # one line of cells.jsonl for each cell; goes on where it stopped
    table = make_table(plan)        # sao.results.Sweep

What the cells have in common is made once: they share a run folder, which keeps the stages of different
settings side by side. `plan` says which cells there are, `loop` runs them, `scores` measures a finished one,
`estimate` has the intervals and `table` the choice.
"""

from sao.sweep.cells import Cells
from sao.sweep.loop import run_cells
from sao.sweep.plan import Factor, Plan, Planned, make_plan, read_factors, split_values
from sao.sweep.table import check_measure, make_table, table_path

__all__ = [
    "Cells",
    "Factor",
    "Plan",
    "Planned",
    "check_measure",
    "make_plan",
    "make_table",
    "read_factors",
    "run_cells",
    "split_values",
    "table_path",
]
