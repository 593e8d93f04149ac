"""Messages of steps in the words of recipes: `rank: 8` where the command line has `--rank 8`.

The reader has a recipe at hand, whether it is run from the command line or from Python. Options of the
run itself (`--force`, `--device`) stay settings; they are spelled where the message is shown.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from loramerge.errors import LoramergeError, Message, Setting, in_recipe
from loramerge.events import Event, Note, Notify, Warn
from loramerge.parameters import parameters_of
from loramerge.steps.parameters import Verb

__all__ = ["spelling_events", "with_recipe_words"]

_OTHERWISE = {"output": "save"}  # an option → the word of a recipe for it


def with_recipe_words(error: LoramergeError, verb: Verb) -> LoramergeError:
    """Return the error of a step, the parameters of its verb spelled as in a recipe."""
    if error.hint is not None:
        error.hint = _spelled(error.hint, _words(verb))
    return error


def spelling_events(notify: Notify, verb: Verb) -> Notify:
    """Return a listener that passes the events of a step on, spelled as in a recipe."""

    def tell(event: Event) -> None:
        if isinstance(event, (Note, Warn)) and not isinstance(event.text, str):
            event = replace(event, text=_spelled(event.text, _words(verb)))
        notify(event)

    return tell


def _words(verb: Verb) -> Set[str]:
    """Return the words of a verb's parameters in recipes."""
    return {one.word for one in parameters_of(verb.parameters) if one.doc.recipe}


def _spelled(message: Message, words: Set[str]) -> Message:
    if isinstance(message, str):
        return message
    return tuple(_part(part, words) for part in message)


def _part(part: str | Setting, words: Set[str]) -> str | Setting:
    if isinstance(part, str):
        return part
    named = part._replace(name=_OTHERWISE.get(part.name, part.name))
    return in_recipe(named) if part.name in _OTHERWISE or part.name in words else part
