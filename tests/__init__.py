"""The tests. One thread of BLAS, said before numpy is imported: at these sizes two are slower."""

import os

from loramerge.algebra.workers import ONE_BLAS_THREAD

os.environ.update(ONE_BLAS_THREAD)
