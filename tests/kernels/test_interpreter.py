"""The kernels without a GPU: the tests of test_twins.py under Triton's interpreter.

Whether kernels are interpreted is decided when Triton is imported, hence a process of their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_twins_equal_their_references() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "tests.kernels.interpreter"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "tests/kernels/test_twins.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE), done.stdout
