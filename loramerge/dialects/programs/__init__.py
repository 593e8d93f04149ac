"""Programs that load adapters, one file each, and what tests have seen them read; see `spec`."""

from __future__ import annotations

from loramerge.dialects.programs.spec import Program, Reads
from loramerge.discovery import Registry

__all__ = ["READERS", "Program", "Reads", "readers_of"]

READERS: Registry[Program] = Registry(
    "loramerge.programs", "PROGRAM", {f"{__name__}.known": f"{__path__[0]}/known"}
)


def readers_of(dialect: str) -> list[Program]:
    """Return the programs that tests have seen read a dialect, at least of some families."""
    return [
        program
        for program in READERS.known()
        if any(dialect in reads.dialects and reads.forms for reads in program.reads)
    ]
