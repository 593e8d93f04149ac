"""Programs that load adapters, one file each, and what tests have seen them read; see `spec`."""

from __future__ import annotations

from loramerge.dialects.programs.spec import Program, Reads
from loramerge.discovery import Registry

__all__ = ["READERS", "Program", "Reads"]

READERS: Registry[Program] = Registry(
    "loramerge.programs", "PROGRAM", {f"{__name__}.known": f"{__path__[0]}/known"}
)
