"""Run a verb as its command does: the file it writes is the command line's, to the byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.events import Notify
from loramerge.page.actions import check_paths
from loramerge.page.places import Places
from loramerge.recipe.executors import workers
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> Any:
    """Run `verb` with `values`; return the verb's JSON.

    Raises:
        UsageError: if a path leads elsewhere by now: links may have been made while the job waited.
        LoramergeError: of the verb.
    """
    verb = verb_named(request["verb"])
    assert verb is not None
    parameters = engine.parameters_from(verb.parameters, request["values"])
    check_paths(parameters, Places(Path.cwd(), tuple(map(Path, request["opened"]))))
    large = verb.large if verb.distributes else None
    if large is None:
        return engine.perform(verb, parameters, Context(notify=notify)).json()
    with workers(None, None, threads=None, least=large) as executor:
        context = Context(notify=notify, executor=executor)
        return engine.perform(verb, parameters, context).json()
