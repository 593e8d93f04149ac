"""A base: its family, and for every module the tensors (and rows) that hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from loramerge.checkpoint.candidates import Found, Match, matching
from loramerge.checkpoint.files import CheckpointFiles, find_files
from loramerge.checkpoint.generic import model_class, named_tensors, network_tensors
from loramerge.checkpoint.language import gguf_modules
from loramerge.checkpoint.naming import NETWORK
from loramerge.checkpoint.place import Place
from loramerge.errors import FamilyError
from loramerge.families import FAMILIES, Family, Parameter

__all__ = ["Checkpoint", "Place", "open_checkpoint"]


@dataclass
class Checkpoint:
    """A base checkpoint, opened: headers only.

    Args:
        layouts: layout name of each component found.
        slots: (module, parameter) → places; a folder with several variants of a component has
            several.
        candidates: families that fit; more than one where nothing tells them apart, none for models of
            no known family, whose modules are matched by name.
        parts: what each candidate has of it.
    """

    path: Path
    files: CheckpointFiles
    candidates: tuple[Family, ...]
    reason: str
    layouts: dict[str, str]
    slots: dict[tuple[str, Parameter], list[Place]]
    parts: tuple[Match, ...] = ()

    def among(self, families: Iterable[Family]) -> Checkpoint:
        """Return it as of the first of its candidates that is one of these, itself if there is none.

        A text encoder alone is of every family that has it, each with another name for it.
        """
        known = set(families)
        chosen = next((n for n, one in enumerate(self.candidates) if one in known), 0)
        if not chosen or not self.parts:
            return self
        part = self.parts[chosen]
        first = self.candidates[chosen]
        rest = tuple(one for one in self.candidates if one is not first)
        return replace(
            self, candidates=(first, *rest), layouts=part.layouts, slots=part.slots, parts=()
        )

    @property
    def family_name(self) -> str:
        """`sd21`, or `sd15 or sd21`, `transformers`, or `unknown`."""
        named = " or ".join(family.name for family in self.candidates)
        return named or ("unknown" if self.is_unknown else "transformers")

    @property
    def is_unknown(self) -> bool:
        """True if it is a model of no known family, and none of transformers."""
        return not self.candidates and self.layouts.keys() != {"model"}

    def require_known(self) -> Checkpoint:
        """Return it, or refuse it where the tables of a family are needed.

        Raises:
            FamilyError: if no known family fits.
        """
        if self.is_unknown:
            raise FamilyError(
                "the checkpoint belongs to no known family",
                file=self.path,
                expected=", ".join(FAMILIES),
                found=_first_names(self.files),
                hint="`loramerge families` lists the known ones",
            )
        return self

    @property
    def size(self) -> int:
        """Bytes of all files: weights and what a result has as well, such as configurations."""
        root = self.files.root
        others = [] if root is None else [root / one for one in self.files.others]
        paths = (*(file.path for file in self.files.weights), *others)
        return sum(path.stat().st_size for path in paths)


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Open a base of any known layout.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: as the files are.
        FamilyError: if the names are those of an adapter, or of nothing that can be baked into.
    """
    files = find_files(Path(path))
    model = model_class(Path(path))
    found = _matching(files, model)
    if not found and model is not None:
        named = named_tensors(files)
        slots = {key: [Place(*where)] for key, where in named.items()}
        reason = "a model of transformers, by the names of its modules"
        return Checkpoint(Path(path), files, (), reason, {"model": "transformers"}, slots)
    if not found and (modules := gguf_modules(files)):
        slots = {key: [Place(*where[:3], heads=where[3])] for key, where in modules.items()}
        reason = "a language model in llama.cpp's names"
        return Checkpoint(Path(path), files, (), reason, {"model": "llama.cpp"}, slots)
    if not found and (places := network_tensors(files)):
        slots = {key: [Place(*where) for where in found] for key, found in places.items()}
        reason = "no known family has its modules, which are matched by name"
        layouts = {file.component or NETWORK: "by name" for file in files.weights}
        return Checkpoint(Path(path), files, (), reason, layouts, slots)
    if not found:
        raise FamilyError(
            "these are not the weights of a model",
            file=path,
            expected="tensors that end in .weight, and none of an adapter",
            found=_first_names(files),
            hint="`loramerge families` lists the families whose layouts are known",
        )
    best = max(score for score, _, _ in found)
    tied = [(family, match) for score, family, match in found if score == best]
    match = tied[0][1]
    reason = f"{match.matched} parameters match by name, {match.exact} by shape too"
    families, parts = zip(*tied, strict=True)
    return Checkpoint(Path(path), files, families, reason, match.layouts, match.slots, parts)


def _matching(files: CheckpointFiles, model: str | None) -> list[Found]:
    """Return the families that a checkpoint may be of.

    Args:
        model: the class of transformers that its configuration names. It decides, except where a
            family's text encoder, or its network, is of this class.
    """
    if model is None or model in _encoder_classes():
        return matching(files)
    if not any(_is_network(model, family) for family in FAMILIES.values()):
        return []
    return [found for found in matching(files) if _is_network(model, found[1])]


def _is_network(model: str, family: Family) -> bool:
    return family.classes.get("transformer") == model


def _encoder_classes() -> set[str]:
    """Return the classes of transformers that are text encoders of families, and nothing else."""
    return {
        name
        for family in FAMILIES.values()
        for component, name in family.classes.items()
        if component.startswith("text_encoder") and "For" not in name
    }


def _first_names(files: CheckpointFiles) -> str:
    first = files.weights[0]
    tensors, _ = first.open()
    empty = "a GGUF file without tensors" if first.gguf else "no tensors"
    return ", ".join(list(tensors)[:3]) or empty
