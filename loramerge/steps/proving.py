"""Proof of a written adapter: it is read back before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.adapter.load import load
from loramerge.algebra.proof import prove
from loramerge.errors import LoramergeError
from loramerge.steps.outputs import Output
from loramerge.steps.parameters import Context

__all__ = ["prove_written"]


def prove_written(result: Any, path: Path, output: Output, context: Context) -> None:
    """Read a written file back, compare it with the result's adapter, and note the `proof` there.

    Raises:
        NumericsError: if it changes the weights in another way; see `algebra.proof.prove`.
    """
    try:
        back = load(path)
        result.proof = prove(result.adapter, back, threads=context.threads, notify=context.notify)
    except LoramergeError as error:
        error.file = str(output.path)
        raise
