"""Tests of kernels run where Triton is; elsewhere they are left out."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["test_compile.py", "test_interpreter.py", "test_twins.py"]
