"""Show the dialect, family, kinds, ranks, training metadata and problems of files."""

from __future__ import annotations

from loramerge.verbs.inspect.adapters import inspect_adapter
from loramerge.verbs.inspect.facts import Inspect, Inspected, InspectResult
from loramerge.verbs.inspect.run import VERB, inspect

__all__ = ["VERB", "Inspect", "InspectResult", "Inspected", "inspect", "inspect_adapter"]
