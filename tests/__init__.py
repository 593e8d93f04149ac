"""The tests. What is said here holds before numpy is imported, and in all processes that tests start."""

import os
import sys

from loramerge.algebra.workers import ONE_BLAS_THREAD

os.environ.update(ONE_BLAS_THREAD)  # at these sizes two threads are slower
# hundreds of processes would compile the package again, each for itself, and each worker and each run
# would rewrite the assertions of all tests; tests/conftest.py ends this here before the first test
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
