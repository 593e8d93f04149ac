"""A merge in the layout of another checkpoint than the first input."""

from __future__ import annotations

from dataclasses import replace

from loramerge.checkpoint import Checkpoint, CheckpointFile
from loramerge.errors import FormatError, Setting
from loramerge.families.beside import vae_name
from loramerge.files.tensors import Tensor
from loramerge.stream.counterparts import Counterparts, PairedTensors
from loramerge.stream.vae import vae_of

__all__ = ["laid_out", "vae_in"]


def laid_out(found: PairedTensors) -> PairedTensors:
    """Return paired tensors of which the first checkpoint gives the layout, and nothing else.

    Its places are the targets; the checkpoints that are left count from the second on.
    """
    layout, *checkpoints = found.checkpoints
    del layout

    def shifted(one: Counterparts) -> Counterparts:
        return replace(one, places=one.places[1:], held=one.target)

    return PairedTensors(
        checkpoints,
        {
            file: {name: list(map(shifted, parts)) for name, parts in tensors.items()}
            for file, tensors in found.parts.items()
        },
        found.averages,
        found.copied,
        {number - 1: names for number, names in found.missing.items()},
        {number - 1: files for number, files in found.extra.items() if number},
    )


def vae_in(layout: Checkpoint, first: Checkpoint) -> dict[CheckpointFile, dict[str, Tensor]]:
    """Return the VAE of the first input under the names of a layout, by its files.

    Raises:
        FormatError: if only one of them has a VAE, or they store it in different ways: the tables of
            families do not describe it.
    """
    there, here = _vae_names(layout), _vae_names(first)
    if not here and not there:
        return {}
    if here == there:
        return vae_of(first.files, layout)
    if not there:
        raise FormatError(
            "the first input has a VAE, and the layout has none",
            file=layout.path,
            hint=("give a checkpoint with one as ", Setting("layout")),
        )
    if not here:
        raise FormatError(
            "the layout has a VAE, and the first input has none",
            file=first.path,
            hint=("name one: ", Setting("vae", str(layout.path))),
        )
    raise FormatError(
        "the VAE cannot be brought into this layout: the tables of families do not describe it",
        file=first.path,
        expected=f"a VAE stored as in {layout.path.name}",
        hint=("name one that is, such as that of the layout: ", Setting("vae", str(layout.path))),
    )


def _vae_names(checkpoint: Checkpoint) -> set[str]:
    """Return the names of the tensors of a VAE, without prefix."""
    names = (
        vae_name(name, file.component)
        for file in checkpoint.files.weights
        for name in file.open()[0]
    )
    return {name for name in names if name is not None}
