"""Running verbs in nodes: adapters in memory as inputs, progress in the interface, figures as text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import UsageError, in_python, listed, sized, spelled
from loramerge.events import Event, Note, Notify, Progress, Warn
from loramerge.files.yaml_values import yaml_values
from loramerge.recipe.made import recipe_of_made
from loramerge.steps import engine
from loramerge.steps.given import references_to
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import Made
from loramerge.steps.references import Reference, parse_reference
from loramerge.steps.shown import Shown
from loramerge.verbs import verb_named

__all__ = [
    "Stack",
    "listener",
    "recipe_text_of",
    "references",
    "report_of",
    "require_adapters",
    "result_of",
    "weight_from",
]

Stack = Sequence[tuple[Adapter, Weight]]
_LOG = logging.getLogger("loramerge")


def require_adapters(stack: Stack | None) -> Stack:
    """Return a stack that has adapters.

    Raises:
        UsageError: if it has none.
    """
    if not stack:
        raise UsageError("the stack has no adapters", hint="choose one in Load LoRA stack")
    return stack


def weight_from(text: str) -> Weight:
    """Return the weight that a text says, in the words of the command line or of recipes.

    Args:
        text: what stands behind the name there: `0.8`, `unet=0.8:te=0`, `OUTALL`, `1,0,0,…`; or a
            mapping such as `{default: 1, match: {"*attn2*": 0.5}}`.

    Raises:
        UsageError: if it is not a weight.
    """
    text = text.strip().strip(":")
    if not text:
        return Weight()
    if text.startswith("{") or ": " in text:
        return weight_of(_mapping(text), "weights")
    found = parse_reference(f"adapter:{text}")
    if found.name != "adapter":
        raise UsageError(
            f"{text!r} is not a weight",
            expected="0.8, unet=0.8:te=0, a preset such as OUTALL, or numbers: 1,0,0,…",
        )
    return found.weight


def _mapping(text: str) -> Any:
    try:
        found = yaml_values(text)
    except ValueError as error:
        found = str(error)
    if not isinstance(found, Mapping):
        raise UsageError(
            "the weights cannot be read",
            expected='a mapping such as {default: 1, match: {"*attn2*": 0.5}}',
            found=found,
        )
    return found


def references(adapters: Sequence[object]) -> tuple[tuple[Reference, ...], Context]:
    """Return references to adapters in memory, paths, or pairs of these with weights, and a context."""
    return references_to(adapters, Context(notify=listener()))


def result_of(
    verb: str, values: Mapping[str, Any], context: Context, *, save: bool = False
) -> tuple[Any, Any]:
    """Run a verb, and return its parameters and its result.

    Args:
        save: whether it writes where its parameters say.

    Raises:
        LoramergeError: of the verb.
    """
    found = verb_named(verb)
    assert found is not None
    parameters = engine.parameters_from(found.parameters, values)
    return parameters, engine.perform(found, parameters, context, save=save)


def report_of(result: Shown, leave_out: Sequence[str] = ()) -> str:
    """Return the figures of a result, one a line; paths, and what is empty, are left out.

    Args:
        leave_out: names of further figures that are not shown.
    """
    hidden = {name.replace("_", " ") for name in (*_HIDDEN, *leave_out)}
    known = {name.replace("_", " "): value for name, value in result.json().items()}
    lines = []
    for name, said in (tuple(row) for row in result.table_rows()):
        form = _FORMS.get(name)
        if name not in hidden:
            lines.append(f"{name}: {said if form is None else form(known[name])}")
    return "\n".join(lines)


def _share(value: float) -> str:
    return f"{100 * value:.4g} %"


def _ranks(found: Mapping[int, int]) -> str:
    """Return `4 (71 modules), 8 (2 modules)`."""
    counts = [f"{rank} ({n} module{'s' if n != 1 else ''})" for rank, n in found.items()]
    return listed(counts, 8)


def _worst(found: Mapping[str, Any]) -> str:
    return f"{found['module']}, relative error {_share(found['relative_error'])}"


def _scale(found: Any) -> str:
    """Return the rule of the final scale, and the factors if they are known and not 1."""
    if not isinstance(found, Mapping):
        return str(found)
    least, most = found["least"], found["most"]
    factors = f"×{least:.3g}" if least == most else f"×{least:.3g} to ×{most:.3g}"
    return str(found["rule"]) if least == most == 1 else f"{found['rule']}, {factors}"


_HIDDEN = ("outputs", "inputs", "scale_applied", "path", "trigger_words_kept", "touched")
_FORMS: Mapping[str, Callable[[Any], str]] = {
    "relative error": _share,
    "norm kept": _share,
    "size": sized,
    "size before": sized,
    "scale": _scale,
    "worst": _worst,
    "ranks": _ranks,
    "ranks before": _ranks,
    "ranks after": _ranks,
}


def recipe_text_of(made: Made | None, save: Path) -> str:
    """Return the recipe that writes a file again, to be kept beside it.

    Raises:
        UsageError: if the origin of an adapter is not known.
    """
    if made is None:
        raise UsageError(
            "there is no recipe: an adapter was not read from a file, nor made by these nodes",
            hint="save it, and load the file",
        )
    return recipe_of_made(made, save, save.parent)


def listener() -> Notify:
    """Return a function that shows progress on the running node, and writes notes to ComfyUI's log.

    Through it a run also ends when the user cancels.
    """
    shown: dict[str, Any] = {}

    def notify(event: Event) -> None:
        if isinstance(event, Progress):
            _stop_if_cancelled()
            if event.task not in shown:
                shown[event.task] = _bar(event.total)
            shown[event.task].update_absolute(event.done, event.total)
        elif isinstance(event, (Note, Warn)):
            level = logging.WARNING if isinstance(event, Warn) else logging.INFO
            _LOG.log(level, "loramerge: %s", spelled(event.text, in_python))

    return notify


def _bar(total: int) -> Any:
    from comfy.utils import ProgressBar

    return ProgressBar(total)


def _stop_if_cancelled() -> None:
    import_module("comfy.model_management").throw_exception_if_processing_interrupted()
