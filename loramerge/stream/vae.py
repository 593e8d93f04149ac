"""The VAE of a checkpoint in the place of another's."""

from __future__ import annotations

from loramerge.checkpoint import Checkpoint, CheckpointFile
from loramerge.checkpoint.files import CheckpointFiles
from loramerge.errors import FormatError, Setting, listed
from loramerge.families.beside import vae_name
from loramerge.files.tensors import Tensor

__all__ = ["vae_of"]


def vae_of(source: CheckpointFiles, first: Checkpoint) -> dict[CheckpointFile, dict[str, Tensor]]:
    """Return the tensors of one VAE under the names of another checkpoint's, by its files.

    Args:
        source: files of a checkpoint, or of a VAE alone.
        first: the checkpoint whose VAE is replaced.

    Raises:
        FormatError: if either has no VAE, or they store it in different ways.
    """
    place = source.root or source.weights[0].path
    here = _tensors(first.files, alone=False)
    if not here:
        raise FormatError(
            "the first checkpoint has no VAE, and the result has its layout",
            file=first.path,
            hint=("leave out ", Setting("vae")),
        )
    there = {bare: tensor for bare, _, _, tensor in _tensors(source, alone=True)}
    if not there:
        raise FormatError(
            "there is no VAE in it", file=place, hint=("give another ", Setting("vae"))
        )
    wrong = [
        bare
        for bare, _, _, tensor in here
        if bare not in there or there[bare].shape != tensor.shape
    ]
    if wrong:
        raise FormatError(
            "this VAE is stored in another layout than the first checkpoint's, or is another network",
            file=place,
            module=listed(wrong, 4),
            hint="give one of the same kind: a single file for a single file, a folder for a folder",
        )
    found: dict[CheckpointFile, dict[str, Tensor]] = {}
    for bare, file, name, _ in here:
        found.setdefault(file, {})[name] = there[bare]
    return found


def _tensors(
    files: CheckpointFiles, *, alone: bool
) -> list[tuple[str, CheckpointFile, str, Tensor]]:
    """Return the tensors of a VAE: name without prefix, file, name, tensor.

    Args:
        alone: take all tensors of a file that holds nothing else.
    """
    everything = [
        (name, file, tensor) for file in files.weights for name, tensor in file.open()[0].items()
    ]
    found = [
        (bare, file, name, tensor)
        for name, file, tensor in everything
        if (bare := vae_name(name, file.component)) is not None
    ]
    if found or not alone:
        return found
    return [(name, file, name, tensor) for name, file, tensor in everything]
