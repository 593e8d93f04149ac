"""The files that hold a checkpoint in another storage, and refusals of those that cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loramerge.checkpoint.checkpoint import Checkpoint
from loramerge.checkpoint.quantisable import denoisers_in, modules_of
from loramerge.checkpoint.storage import Encoding
from loramerge.errors import FormatError, Setting, listed
from loramerge.families import Family
from loramerge.files.forms import GGUF
from loramerge.files.gguf_heads import ALIGNMENT, build_gguf
from loramerge.files.header import TensorInfo

__all__ = ["NewGguf", "fields_of", "require_container"]

_SAFETENSORS = (
    "give a storage of safetensors files, such as ",
    Setting("storage", "float8-scaled"),
)
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")
_RESHAPED = ("sd1", "sdxl")  # architectures whose convolutions are stored as matrices
_QUANTISATION = 2  # version of ggml's quantised types
_FILE_TYPES = {  # of llama.cpp, for files that are mostly of one type
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "BF16": 32,
}  # fmt: skip


def fields_of(main: Encoding | None) -> dict[str, str]:
    """Return the fields of a GGUF file that say which type most of its tensors have."""
    kind = None if main is None else _FILE_TYPES.get(main.dtype or main.name)
    return {} if kind is None else {"general.file_type": str(kind)}


def require_container(checkpoint: Checkpoint, suffix: str, *, shares: bool) -> None:
    """Refuse a file format that cannot hold a checkpoint, or whose programs could not read it.

    Args:
        suffix: of the files to write.
        shares: whether those programs expect single files in the names of the original model.

    Raises:
        FormatError: with the reason.
    """
    files = checkpoint.files
    if files.root is not None and (shares or suffix == GGUF):
        raise FormatError(
            "this storage is read by ComfyUI, from single files; a folder of diffusers or transformers "
            "cannot have it",
            file=checkpoint.path,
            hint=("bake a single file, or give ", Setting("storage", "bfloat16")),
        )
    if files.root is not None:
        return
    (file,) = files.weights
    language = checkpoint.layouts.get("model") == "llama.cpp"
    if file.gguf and suffix != GGUF and language:
        raise FormatError(
            "a language model in llama.cpp's names can only be written as GGUF",
            file=checkpoint.path,
            hint=("give a storage of GGUF files, or an ", Setting("output"), " that ends in .gguf"),
        )
    if suffix == GGUF and not file.gguf and checkpoint.is_unknown:
        raise FormatError(
            "ComfyUI-GGUF reads GGUF files of families that it has a name for; this one is unknown",
            file=checkpoint.path,
            hint=_SAFETENSORS,
        )
    if suffix == GGUF and not file.gguf and not checkpoint.candidates:
        raise FormatError(
            "a GGUF file of a language model needs its vocabulary, which this file does not hold",
            file=checkpoint.path,
            hint="make one by convert_hf_to_gguf.py of llama.cpp, and bake that",
        )
    if not shares or not checkpoint.candidates:
        return
    for component in denoisers_in(modules_of(checkpoint, file)):
        if checkpoint.layouts.get(component) == "diffusers" and not _has_own_names(
            checkpoint.candidates[0], component
        ):
            raise FormatError(
                "ComfyUI reads this storage in the names of the original model, and the file has those "
                "of diffusers",
                file=checkpoint.path,
                hint="bring it into the original layout by `loramerge merge`, "
                "with a file that has it as the layout",
            )


def _has_own_names(family: Family, component: str) -> bool:
    """Return whether the original model names a network as diffusers does."""
    (network,) = (one for one in family.components if one.name == component)
    names: dict[bool, list[set[str]]] = {True: [], False: []}
    for spelling in family.spellings[component]:
        found = {n.removeprefix(spelling.prefix) for n in spelling.tensors(network)}
        names[spelling.layout == "diffusers"].append(found)
    return any(one in names[False] for one in names[True])


@dataclass(frozen=True)
class NewGguf:
    """A GGUF file of a denoiser, made of a file of another format.

    Args:
        architecture: see `Family.gguf`.
        prefix: of the names in that file, which GGUF files lack.
        main: name of the storage of most of its weights.
    """

    architecture: str
    prefix: str
    main: str

    alignment = ALIGNMENT

    @classmethod
    def of(cls, checkpoint: Checkpoint, main: Encoding | None) -> NewGguf:
        """Return the file that a checkpoint becomes.

        Raises:
            FormatError: if ComfyUI-GGUF has no name for its family, or the file holds more than the
                denoiser.
        """
        family = checkpoint.candidates[0]
        (file,) = checkpoint.files.weights
        if not family.gguf:
            raise FormatError(
                f"GGUF files of the family {family.name} are not read by ComfyUI-GGUF, which has no "
                "name for it",
                file=checkpoint.path,
                hint=_SAFETENSORS,
            )
        names = list(file.open()[0])
        prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in names)), "")
        others = [name for name in names if not name.startswith(prefix)]
        modules = modules_of(checkpoint, file)
        denoisers = denoisers_in(modules)
        others += [
            name
            for name, held in modules.items()
            if name.startswith(prefix) and held[0][0].partition(".")[0] not in denoisers
        ]
        if others or not denoisers:
            raise FormatError(
                "GGUF files hold the denoiser alone, and this file holds more, or something else",
                file=checkpoint.path,
                found=listed(others or names, 3),
                hint="take a file of the denoiser, such as one that ComfyUI's node ModelSave writes",
            )
        kind = "" if main is None else main.dtype or main.name
        return cls(family.gguf, prefix, kind)

    @property
    def reshapes(self) -> bool:
        """True if convolutions are stored as matrices."""
        return self.architecture in _RESHAPED

    def build(
        self, entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> tuple[bytes, dict[str, TensorInfo]]:
        """Build the head of the file; see `build_header`."""
        fields: dict[str, str | int] = {
            "general.architecture": self.architecture,
            "general.quantization_version": _QUANTISATION,
        }
        if self.main in _FILE_TYPES:
            fields["general.file_type"] = _FILE_TYPES[self.main]
        return build_gguf(entries, metadata, fields=fields, reshapes=self.reshapes)
