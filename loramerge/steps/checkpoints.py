"""Parts of verbs that write checkpoints: output names, headers with late digests, warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.checkpoint import Checkpoint
from loramerge.errors import AdapterError, Setting, UsageError, listed, suggestion
from loramerge.events import Warn
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.digest import PLACEHOLDER
from loramerge.steps.inside import inputs_in, inside, total_of
from loramerge.steps.outputs import checkpoint_output, default_name
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import (
    FileInput,
    Made,
    header_entries,
    length_is_known,
    recipe_in,
)

__all__ = [
    "bytes_of",
    "check_output",
    "components_of",
    "default_checkpoint",
    "header_of_bases",
    "label_of",
    "left_out",
    "require_once",
]

Late = Future[Mapping[str, str]] | None  # entries of a header that follow while data is written


def default_checkpoint(reference: str, suffix: str, added: str) -> Path:
    """Return the default name of the output: `BASE+ADAPTER`, or `BASE-TYPE`.

    Args:
        reference: the base as the user named it.
        suffix: of the file, `''` for a folder.
        added: text after the base's name, its sign included.
    """
    return default_name(label_of(reference) + added, suffix)


def check_output(checkpoint: Checkpoint, output: Path, *, force: bool, suffix: str) -> None:
    """Refuse an output that a checkpoint made of another may not be written to.

    Args:
        suffix: of the file, `''` for a folder.

    Raises:
        LoramergeError: see `outputs.checkpoint_output`.
    """
    contents = None if checkpoint.files.root is None else checkpoint.files.contents()
    checkpoint_output(output, contents, force=force, suffix=suffix or ".safetensors")


def label_of(reference: str) -> str:
    """Return the name of a base without folders and ending, for names of outputs."""
    name = Path(reference.replace("\\", "/"))
    return name.stem if name.suffix in (".safetensors", ".ckpt", ".gguf") else name.name or "base"


def bytes_of(output: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if output.is_file():
        return output.stat().st_size
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


@contextmanager
def header_of_bases(
    made: Made | None, bases: Sequence[FileInput], *, strip: bool
) -> Iterator[tuple[Mapping[str, str], Late]]:
    """Provide the entries of a header, and those that replace them once the bases' digests are known.

    The digest of a base takes as long as the rest of a bake, so they are computed in a thread meanwhile
    and their places in the header are kept.
    """
    later = not strip and length_is_known(made)

    def digest(one: FileInput) -> str:
        return PLACEHOLDER if later and any(one is base for base in bases) else one.digest()

    with ThreadPoolExecutor(1) as pool:
        entries = {} if strip else header_entries(made, {}, digest)
        yield entries, pool.submit(lambda: header_entries(made, {})) if later else None


def left_out(adapters: Iterable[Adapter]) -> Iterator[str]:
    """Yield what adapters hold that a checkpoint cannot, in words."""
    for adapter in adapters:
        if adapter.embeddings:
            names = listed(list(adapter.embeddings), 4)
            yield f"{adapter.label}: a checkpoint cannot hold embeddings, left out: {names}"


def require_once(base: FileInput, made: Made | None, context: Context, *, again: bool) -> None:
    """Refuse an adapter that the base holds already, according to its header.

    Args:
        again: whether it may be added once more.

    Raises:
        AdapterError: naming it.
    """
    for name, alone in _already_inside(base, made):
        text = f"{name} is baked into this base already"
        if not alone:
            text = f"{name} is a part of what is baked into this base already"
        elif not (again or context.allow_again):
            raise AdapterError(
                text,
                file=base.path,
                found="the recipe in its header",
                hint=(
                    "give the base without it, as `loramerge unbake` makes it; or add it once more: ",
                    Setting("allow_again", True),
                ),
            )
        context.notify(Warn(text))


def _already_inside(base: FileInput, made: Made | None) -> Iterator[tuple[str, bool]]:
    """Yield the adapters that are in the base already, according to its header: name, whether alone.

    One that was baked and taken out again is not in it. One that is only a part of what was baked, such
    as of a mix, is not there alone.
    """
    before = recipe_in({RECIPE_KEY: base.recipe or ""})
    if before is None or made is None:
        return
    those = inside(before)
    alone = {one.sha256 for one in those if total_of(those, one.sha256) != 0.0}
    out = {one.sha256 for one in those} - alone
    parts = {entry["sha256"] for entry in inputs_in(before)} - out
    for part in made.content.get("adapters", ()):
        node = part["adapter"]
        if isinstance(node, FileInput) and (digest := node.digest()) in parts | alone:
            yield node.name, digest in alone


def components_of(words: Sequence[str]) -> list[str]:
    """Return the components that may lack modules.

    Raises:
        UsageError: if a word is not a component.
    """
    found: list[str] = []
    for word in words:
        if word != "all" and word not in COMPONENT_WORDS:
            raise UsageError(
                f"{word!r} is not a component; only modules of components can be skipped",
                expected=", ".join(("all", *COMPONENT_WORDS)),
                hint=suggestion(word, COMPONENT_WORDS),
            )
        found += COMPONENT_WORDS.get(word, (word,))
    return found
