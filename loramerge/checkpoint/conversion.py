"""The forms that the tensors of a checkpoint get where it is stored in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from loramerge.checkpoint.checkpoint import Checkpoint
from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.containers import NewGguf, fields_of, require_container
from loramerge.checkpoint.files import CheckpointFile
from loramerge.checkpoint.quantisable import (
    denoisers_in,
    is_quantisable,
    modules_of,
    of_llama_cpp,
)
from loramerge.checkpoint.storage import Encoding
from loramerge.checkpoint.storages import encodings, held
from loramerge.errors import FormatError, UsageError, listed, suggestion
from loramerge.files.dtypes import DTYPES, PLAIN_FLOATS, is_float
from loramerge.files.forms import GGUF
from loramerge.files.gguf_heads import rows_of
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.tensors import Tensor

__all__ = ["Conversion", "Storing", "conversion_of", "storing_of"]

_APART = "="  # between a pattern and a form
_SMALL = 1024  # numbers of a tensor that GGUF files keep in float32
_FALLBACK = {  # of llama.cpp, for rows that hold no whole blocks
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_LARGE, _LARGER = "Q6_K", "Q8_0"  # of llama.cpp, for the last layer of a language model
_WORDS, _LAST = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Storing:
    """The forms that a user asks for: one for the weights that can have it, and others by patterns.

    Args:
        main: None leaves all that no pattern names as it is.
        patterns: (pattern of names, form), of which the last that matches counts.
    """

    main: Encoding | None
    patterns: tuple[tuple[str, Encoding], ...] = ()

    def suffix_of(self, own: str, named: str) -> str:
        """Return the ending of the file to write.

        Args:
            own: that of the base, `''` for a folder; named: that of the output, `''` if it has none.

        Raises:
            UsageError: if no file holds all forms.
        """
        if not own:
            return self._suffix()
        return self._suffix() or (named if named in (GGUF, ".safetensors") else own)

    def _suffix(self) -> str:
        every = [encoding for _, encoding in self.patterns]
        every += [self.main] if self.main is not None else []
        found = {encoding.suffix for encoding in every} - {""}
        if len(found) > 1:
            raise UsageError(
                "no file holds all these storages", found=listed([one.name for one in every])
            )
        return next(iter(found), "")

    @property
    def shares(self) -> bool:
        """True if the programs that read it expect single files in the names of the original model."""
        return any(one.shares for _, one in self.patterns) or bool(self.main and self.main.shares)

    @property
    def label(self) -> str:
        """A word for the names of outputs."""
        return self.main.name if self.main is not None else "mixed"


def storing_of(words: Sequence[str]) -> Storing | None:
    """Return what words ask for: `TYPE`, and `PATTERN=TYPE`; None for no words.

    Raises:
        UsageError: if there is no such form, or two are given for all weights.
    """
    if not words:
        return None
    main: Encoding | None = None
    patterns = []
    for word in words:
        pattern, apart, kind = word.rpartition(_APART)
        encoding = _encoding(kind)
        if apart:
            patterns.append((pattern, encoding))
        elif main is not None:
            raise UsageError("two storages for all weights", found=f"{main.name}, {kind}")
        else:
            main = encoding
    return Storing(main, tuple(patterns))


def _encoding(word: str) -> Encoding:
    """Return a form by its name, in any case.

    Raises:
        UsageError: if there is none.
    """
    known = encodings()
    short = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32",
             "f32": "float32", "fp8": "float8_e4m3", "fp8-scaled": "float8-scaled"}  # fmt: skip
    lower = {name.lower(): name for name in known} | short
    name = lower.get(word.strip().lower())
    if name is None:
        raise UsageError(
            f"{word!r} is not a storage that can be written",
            expected=listed(list(known), 30),
            hint=suggestion(word, known),
        )
    return known[name]


@dataclass(frozen=True)
class Conversion:
    """The storage of a checkpoint in other forms.

    Args:
        suffix: of its files, `''` where they keep theirs.
        forms: of the tensors that get another one, by file; all others are copied.
        gguf: the new GGUF file, where the base is none.
        label: for reports.
    """

    suffix: str
    forms: Mapping[CheckpointFile, Mapping[str, Encoding]]
    gguf: NewGguf | None = None
    label: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, name: str) -> str:
        """Return the name that a tensor gets."""
        return name if self.gguf is None else name.removeprefix(self.gguf.prefix)

    def rebuilt(
        self, file: CheckpointFile
    ) -> Callable[..., tuple[bytes, Mapping[str, TensorInfo]]]:
        """Return the function that builds the head of a file; see `build_header`."""
        if self.gguf is not None:
            return self.gguf.build
        return build_header if self.suffix and self.suffix != file.suffix else file.rebuilt

    def alignment(self, file: CheckpointFile) -> int:
        """Return the number of which the size of a file is a multiple."""
        if self.gguf is not None:
            return self.gguf.alignment
        return 1 if self.suffix and self.suffix != file.suffix else file.alignment

    def entries_of(self, file: CheckpointFile, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the entries of a header that a file keeps in its new form."""
        if file.gguf and self.suffix and self.suffix != file.suffix:
            fields = ("general.", "comfy.gguf.", "tokenizer.")
            return {k: v for k, v in metadata.items() if not k.startswith(fields)}
        return {**metadata, **self.metadata} if file.gguf else dict(metadata)


def conversion_of(
    checkpoint: Checkpoint, storing: Storing, *, dtype: str | None, suffix: str
) -> Conversion:
    """Choose the form of every tensor.

    Args:
        dtype: type of the floats that are stored as such; None leaves theirs.
        suffix: of the output as it is named, `''` if it has none.

    Raises:
        FormatError: if the files or their programs cannot hold the forms.
        UsageError: if a pattern matches nothing.
    """
    own = checkpoint.files.suffix
    for file in checkpoint.files.weights:
        if any(isinstance(tensor, Composed) for tensor in file.weights().values()):
            raise FormatError(
                "a checkpoint whose weights are put together of several tensors cannot be stored anew",
                file=file.path,
                hint="take the checkpoint that it was made from",
            )
    wanted = storing.suffix_of(own, suffix)
    require_container(checkpoint, wanted, shares=storing.shares)
    new = NewGguf.of(checkpoint, storing.main) if wanted == GGUF != own else None
    choose = _Chooser(checkpoint, storing, dtype, wanted, new)
    forms = {file: dict(choose.forms(file)) for file in checkpoint.files.weights}
    if unused := choose.unused():
        raise UsageError("no tensor has such a name", found=listed(unused, 3))
    fields = fields_of(storing.main) if own == GGUF == wanted else {}
    return Conversion(wanted, forms, new, storing.label, fields)


class _Chooser:
    """Chooses the forms of the tensors of one checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        storing: Storing,
        dtype: str | None,
        suffix: str,
        new: NewGguf | None,
    ) -> None:
        self._checkpoint, self._storing, self._dtype = checkpoint, storing, dtype
        self._gguf, self._new = suffix == GGUF, new
        self._known = encodings()
        self._used: set[str] = set()
        self._language = checkpoint.layouts.get("model") == "llama.cpp"

    def unused(self) -> list[str]:
        """Return the patterns that matched nothing."""
        return [p for p, _ in self._storing.patterns if p not in self._used]

    def forms(self, file: CheckpointFile) -> Iterator[tuple[str, Encoding]]:
        """Yield the tensors of a file that get another form.

        Raises:
            FormatError: if the storage of one is not understood.
        """
        tensors, weights = file.open()[0], file.weights()
        found = {name: one for name in tensors if (one := held(tensors, name)) is not None}
        parts = {name for one in found.values() for name in (*one.beside, *one.marks)}
        modules = modules_of(self._checkpoint, file)
        components = denoisers_in(modules)
        for name, one in found.items():
            if name in parts:
                continue
            tensor, inside = weights[name], modules.get(name, [])
            plain = is_float(tensor.dtype) and not one.beside
            form = self._named(name, tensor, inside)
            if form is None:
                form = self._chosen(name, tensor, inside, components, plain=plain)
            kept = not one.beside and form and form.entries(name, (1, 1))[0][1] == tensor.dtype
            if form is not None and not kept:
                yield name, form

    def _named(
        self, name: str, tensor: Tensor, inside: Sequence[tuple[str, str]]
    ) -> Encoding | None:
        """Return the form that a pattern gives a tensor, None if none matches.

        Raises:
            FormatError: if the tensor cannot have it.
        """
        words = {name, *(f"{module}.{word}" for module, word in inside)}
        words |= {module for module, word in inside if word == "weight"}
        for pattern, encoding in reversed(self._storing.patterns):
            if not any(fnmatchcase(word, pattern) for word in words):
                continue
            fits = encoding.holds(self._shape(tensor))
            if not fits and len(tensor.shape) < 2:
                continue  # biases and norms beside a matrix that is meant
            self._used.add(pattern)
            if not fits:
                raise FormatError(
                    f"a tensor of this shape cannot be stored as {encoding.name}",
                    module=name,
                    found=str(list(tensor.shape)),
                )
            return encoding
        return None

    def _chosen(
        self,
        name: str,
        tensor: Tensor,
        inside: Sequence[tuple[str, str]],
        components: Sequence[str],
        *,
        plain: bool,
    ) -> Encoding | None:
        """Return the form of a tensor by the rule, None if it stays as it is."""
        main = self._storing.main
        if main is None or (main.dtype in PLAIN_FLOATS and not self._gguf):
            return main
        if self._language and self._gguf:
            return self._of_language(name, tensor, main)
        if main.dtype in PLAIN_FLOATS:
            small = len(tensor.shape) < 2 and not self._new
            return None if small else self._of_floats(tensor, inside, main)
        convolutions = self._new is not None and self._new.reshapes
        if main.holds(self._shape(tensor)) and is_quantisable(
            self._checkpoint, inside, components, convolutions=convolutions
        ):
            return main
        wide = self._wide(tensor, inside, plain=plain)
        return None if wide is None else self._known[DTYPES[wide].word]

    def _wide(
        self, tensor: Tensor, inside: Sequence[tuple[str, str]], *, plain: bool
    ) -> str | None:
        """Return the type of floats of a tensor that stays wide, None to leave it as it is."""
        if self._new is None:
            if self._gguf and not plain:
                return self._dtype
            return self._dtype or (None if plain else "BF16")
        table = any(word == "weight" and _is_table(self._checkpoint, m) for m, word in inside)
        if len(tensor.shape) < 2 or len(tensor.shape) > 4 or tensor.size <= _SMALL or table:
            return "F32"
        return self._dtype or ("BF16" if tensor.dtype == "BF16" else "F16")

    def _of_floats(
        self, tensor: Tensor, inside: Sequence[tuple[str, str]], main: Encoding
    ) -> Encoding:
        """Return the type of a tensor of a GGUF file of plain floats; programs need some in float32."""
        if self._new is not None and self._wide(tensor, inside, plain=True) == "F32":
            return self._known[DTYPES["F32"].word]
        return main

    def _of_language(self, name: str, tensor: Tensor, main: Encoding) -> Encoding | None:
        """Return the form of a tensor of a language model by llama.cpp's rule."""
        if len(tensor.shape) < 2 or not of_llama_cpp(name):
            return None
        if main.dtype in PLAIN_FLOATS:
            return main
        tied = _LAST not in self._checkpoint.files.weights[0].open()[0]
        last = name == _LAST or (tied and name == _WORDS)
        if last and main.name != _LARGER:
            main = self._known[_LARGE if self._known[_LARGE].holds(tensor.shape) else _LARGER]
        if not main.holds(tensor.shape):
            main = self._known[_FALLBACK.get(main.name, main.name)]
        return main if main.holds(tensor.shape) else self._known["float16"]

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the shape in which a tensor is stored."""
        return (
            rows_of(tensor.shape) if self._new is not None and self._new.reshapes else tensor.shape
        )


def _is_table(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a module is a bare parameter, which ComfyUI-GGUF needs in float32."""
    module = checkpoint.candidates[0].find(name) if checkpoint.candidates else None
    return module is not None and module.layer == "matrix"
