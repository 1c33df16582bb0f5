"""What needs no torch does not load it, and the command line starts quickly. (That imports point down: `make
check`.)"""

import subprocess
import sys
import time


def test_torch_stays_out() -> None:
    code = (
        "import sys, sao, sao.method, sao.cli, sao.analysis.audit, sao.analysis.label; "
        "sao.load_recipe('demo');sao.cli.build_parser().format_help();print([m for m in ('torch', "
        "'transformers', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_start_is_quick() -> None:
    """`sao --help` in under 0.3 s (the best of several, since the machine may be busy; 0.6 allows for a slow
    one)."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sao", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.6
