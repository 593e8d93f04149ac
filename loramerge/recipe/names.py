"""Names in the parameters of steps: the inputs, files, bases and library entries they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loramerge.errors import LoramergeError, NotFound, suggestion
from loramerge.library.lookup import find
from loramerge.library.patterns import files_of
from loramerge.recipe.inputs import Input
from loramerge.recipe.mistakes import Mistakes
from loramerge.recipe.step import Step
from loramerge.steps.parameters import Parameter
from loramerge.steps.references import Reference

__all__ = ["Names"]

# what a parameter names → what a step must give to stand there
_ACCEPTED = {
    "adapters": ("adapter",),
    "bases": ("checkpoint",),
    "models": ("checkpoint", "adapter"),
    "files": ("adapter", "checkpoint"),
    "folders": (),
}
_ARTICLE = {"adapter": "an adapter", "checkpoint": "a checkpoint", "picture": "an image",
            "document": "a document",
            "report": "a report"}  # fmt: skip


class Names:
    """A lookup of names, each once, that notes unknown ones.

    Args:
        root: folder that relative paths start from.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
        inputs: Mapping[str, Input],
        root: Path,
        mistakes: Mistakes,
    ) -> None:
        self._steps, self._inputs, self._root, self._mistakes = steps, inputs, root, mistakes
        self._found: dict[tuple[str, str], list[tuple[str, Path]]] = {}

    def check_step(self, step: Step, parameter: Parameter, name: str) -> None:
        """Note a reference to a step whose result the parameter does not take.

        Args:
            step: the one that refers.
            name: of the step that is referred to.
        """
        gives = self._steps[name].verb.gives
        accepted = _ACCEPTED[parameter.doc.completes or ""]
        if gives in accepted:
            return
        wanted = " or ".join(_ARTICLE[one] for one in accepted) or "a folder"
        problem = f"{parameter.word} takes {wanted}, but the step {name!r} gives {_ARTICLE[gives]}"
        self._mistakes.add(step.at(parameter), problem)

    def files(
        self, step: Step, parameter: Parameter, reference: Reference
    ) -> list[tuple[str, Path]]:
        """Return (name, file) of the files of a name: an input, a path, a base, a library entry.

        A folder or pattern stands for several files where the parameter takes files of any sort.
        """
        name = reference.name
        if name in self._inputs:
            return [(name, self._inputs[name].path)]
        key = reference.holds(str(parameter.doc.completes)), name
        if key not in self._found:
            self._found[key] = self._look_up(step, parameter, *key)
        return self._found[key]

    def _look_up(
        self, step: Step, parameter: Parameter, sort: str, name: str
    ) -> list[tuple[str, Path]]:
        try:
            if sort != "files":
                return [(name, find(name, sort, root=self._root))]
            paths = files_of(name, self._root)
        except NotFound as error:
            hint = suggestion(name, (*self._steps, *self._inputs)) or error.hint
            problem = f"{name!r} is not a step, an input or a file"
            self._mistakes.add(step.at(parameter), problem, hint)
            return []
        except LoramergeError as error:
            self._mistakes.caught(step.at(parameter), error)
            return []
        return [(name, paths[0])] if len(paths) == 1 else [(str(path), path) for path in paths]
