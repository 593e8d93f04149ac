"""Adapter → tensors under the keys of a dialect, and the header."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from os import PathLike
from pathlib import Path

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.alphas import (
    Alphas,
    had_alpha,
    keeps_alpha,
    of_each,
    plan_alphas,
    roles_of,
    states_alpha,
)
from loramerge.adapter.delta import Delta
from loramerge.adapter.embeddings import add_embeddings
from loramerge.adapter.encoded import Encoded
from loramerge.adapter.formats import container_of
from loramerge.adapter.formats.container import Unwritten
from loramerge.adapter.kinds import words_for
from loramerge.adapter.kinds.lora_bias import beside_factors
from loramerge.adapter.kinds.lora_embedding import as_embedding
from loramerge.adapter.metadata import training_metadata
from loramerge.adapter.networks import as_written, both_networks
from loramerge.adapter.opaque import is_opaque, opaque_key, speaking_for
from loramerge.adapter.row_order import halves
from loramerge.adapter.site import Site
from loramerge.adapter.sites import for_dialect, spelled_before
from loramerge.dialects import DIALECTS, PROGRAMS, Dialect, dialect, usual_dialect
from loramerge.dialects.words import Words
from loramerge.errors import (
    FamilyError,
    FormatError,
    LoramergeError,
    Message,
    NotExpressible,
    Setting,
    listed,
)
from loramerge.families import Component
from loramerge.files.dtypes import DTYPES
from loramerge.files.spool import Keep, in_memory
from loramerge.files.tensors import Tensor

__all__ = ["Encoded", "called", "choose_dialect", "encode", "suffix_of"]


_SUFFIX = ".safetensors"
_GGUF, _PROGRAM = ".gguf", "llama.cpp"


def choose_dialect(
    to: str | None, adapters: list[Adapter], path: str | PathLike[str] | None = None
) -> Dialect:
    """Return the dialect to write: the one named, else the inputs' if they agree, else the common.

    Args:
        to: a dialect, or a program (`comfyui`, `a1111`, …), which means its best dialect.
        path: the output, where it has a name: lone files with the keys of a folder may be written as
            a lone file again.
    """
    chosen = _chosen_dialect(to, adapters)
    if chosen.in_gguf is not None and _is_for_llama_cpp(to, adapters, path):
        return chosen.in_gguf
    named_so = path is not None and Path(path).suffix.lower() == _SUFFIX
    if chosen.one_file is None or not named_so or not all(_is_lone(a, chosen) for a in adapters):
        return chosen
    return chosen.one_file


def _is_for_llama_cpp(
    to: str | None, adapters: list[Adapter], path: str | PathLike[str] | None
) -> bool:
    """Return whether the output is named as a GGUF file, or nothing is said and all inputs are."""
    if path is not None:
        return Path(path).suffix.lower() == _GGUF
    return to is None and bool(adapters) and all(a.info.translated == _PROGRAM for a in adapters)


def _is_lone(adapter: Adapter, folder: Dialect) -> bool:
    """Return whether an adapter came as a file, with the keys of a dialect that writes folders."""
    return _own_dialects(adapter) == {folder.name} and not adapter.info.configs


def _chosen_dialect(to: str | None, adapters: list[Adapter]) -> Dialect:
    if to is not None:
        return dialect(_of_program(to, adapters) if to in PROGRAMS else to)
    found = {name for adapter in adapters for name in _own_dialects(adapter)}
    if len(found) == 1:
        own = DIALECTS[found.pop()]
        second = both_networks(own, *adapters)
        return own if second is None else next(_with_words(adapters, second), own)
    families = {a.family.common_dialect for a in adapters if a.family is not None}
    usual = DIALECTS[families.pop()] if len(families) == 1 else usual_dialect()
    return speaking_for(adapters, usual, [DIALECTS[name] for name in DIALECTS if name in found])


def _with_words(adapters: Sequence[Adapter], second: Component) -> Iterator[Dialect]:
    """Yield the dialects that have words for both networks, and for all else in the adapters."""
    naming = next(f for a in adapters if (f := a.info.detection.naming) and second in f.components)
    used = {component for adapter in adapters for component in adapter.components()}
    for one in DIALECTS.values():
        if not one.positional and all(one.stems_of(naming, component) for component in used):
            yield one


def _of_program(program: str, adapters: list[Adapter]) -> str:
    """Return the dialect that a program reads best of the adapters' family.

    `comfyui` is both a program and the dialect it reads best of some families.
    """
    namings = {f.name: f for a in adapters if (f := a.info.detection.naming) is not None}
    if not namings and program in DIALECTS:
        return program
    own = {family.programs.get(program) for family in namings.values()}
    return (own.pop() if len(own) == 1 else None) or PROGRAMS[program]


def _own_dialects(adapter: Adapter) -> Set[str]:
    """Return a file's dialect; of a computed adapter those of everything it was made from."""
    if adapter.info.path is None:
        return adapter.info.dialects.keys()
    return {adapter.info.dialect} if adapter.info.dialect else set()


def _require_proven(adapter: Adapter, target: Dialect) -> None:
    """Refuse to translate names of a family that is verified against no reference."""
    naming = adapter.info.detection.naming
    if naming is None or naming.proven or _own_dialects(adapter) <= {target.name}:
        return
    raise FamilyError(
        f"the family {naming.name} is read-only: its names in other dialects are not verified",
        file=adapter.info.path,
        expected=", ".join(sorted(_own_dialects(adapter))),
        found=target.name,
        hint="keep the dialect of the file",
    )


def called(target: Dialect) -> str:
    """Return what a written file is called, as `inspect` calls it: a dialect, or a program."""
    return _PROGRAM if target.container == "gguf" else target.name


def suffix_of(target: Dialect) -> str:
    """Return the file name suffix of a dialect's outputs: none for folders."""
    if target.container == "gguf":
        return _GGUF
    return "" if target.folder else _SUFFIX


def encode(
    adapter: Adapter, target: Dialect, dtype: str | None = None, *, keep: Keep = in_memory
) -> Encoded:
    """Spell an adapter in a dialect.

    Sites that the file already spelled in this dialect keep their keys and bytes as far as they did
    not change.

    Args:
        dtype: safetensors name of the float type to write; None for the adapter's own, which for
            one that was just loaded means every tensor as it is stored.
        keep: holds tensors that are computed until they are written.

    Raises:
        FamilyError: if the family is read-only, and the dialect not the file's own.
        NotExpressible: listing every module the dialect has no words for.
        NumericsError: if values do not fit the type.
    """
    _require_proven(adapter, target)
    adapter, network = as_written(adapter, target)
    adapter = for_dialect(adapter, target)
    dtype = dtype or adapter.info.dtype
    pairs: dict[str, Tensor] = {}
    order = {key: i for i, key in enumerate(adapter.info.order)}
    missing: list[str] = []
    second = both_networks(target, adapter)
    written: dict[Site, Delta] = {}
    components: dict[str, str] = {}
    alphas = plan_alphas(adapter, target) if target.alpha == "tensor" else {}
    kept = {site.component: keeps_alpha(adapter, site, target) for site in of_each(adapter)}
    always = states_alpha(adapter, target)
    stated: set[float] = set()
    for site, delta in adapter.deltas.items():
        spelled = spelled_before(adapter, site, target)
        delta = delta if spelled else _conformed(adapter, site, delta)
        if (site, "embedding_up") in adapter.info.spelling:
            delta = as_embedding(delta)  # a sum of several is computed as that of matrices
        weight = site._replace(parameter="weight")
        beside = adapter.deltas.get(weight) if site.parameter == "bias" else None
        roles_there = target.roles(words_for(delta.stored().keys()))
        delta = delta.respelled(roles_there, beside)
        # a sum of several biases is computed as a difference
        if "diff_b" in delta.stored() and _says_with_factors(adapter, site, target, roles_there):
            delta = beside_factors(delta, beside)
        try:
            plan = alphas.get(site.component, Alphas())
            had = had_alpha(adapter, site, delta, target, spelled=spelled)
            kind = dtype or adapter.info.types.get(site)
            stored = _as_stored(adapter, site, delta, target)
            roles = roles_of(stored, target, kind, kept[site.component], plan, had, always)
        except LoramergeError as error:
            error.module = f"{site.name} ({error.module})" if error.module else site.name
            error.file = error.file or adapter.info.path
            raise
        if delta.core is not None and delta.core.dim is not None:
            stated.add(roles["alpha"].item() if "alpha" in roles else float(delta.core.dim))
        words = words_for(roles.keys())
        for role, tensor in roles.items():
            unsaid = second is not None and site.component == second.name
            key = None if unsaid else _key(adapter, site, role, target, words, roles.keys())
            if key is None:
                missing.append(f"{site.name} ({role})")
            elif key in pairs:
                raise FormatError("two deltas would be written under one key", module=key)
            else:
                pairs[key] = keep(tensor)
                components[key] = site.component
        written[site] = delta
    if missing:
        raise NotExpressible(
            f"{target.name} files cannot store {len(missing)} of these tensors",
            file=adapter.info.path,
            expected=target.writable,
            found=listed(missing, 4),
            hint=_way_out(adapter, target),
        )
    add_embeddings(adapter, target, pairs)
    container = container_of(target)
    content = Unwritten(adapter, target, pairs, written, stated, dtype, components)
    container.complete(content)
    stays = training_metadata(adapter.info.metadata)
    metadata = stays | network | container.metadata(content, stays)
    return Encoded(
        target,
        _ordered(pairs, order),
        metadata,
        container.configurations(content),
        components,
    )


def _says_with_factors(adapter: Adapter, site: Site, target: Dialect, roles: Set[str]) -> bool:
    """Return whether a bias is written as that of the second factor: as the file had it, or has to.

    Args:
        roles: those that the dialect can write.
    """
    if target.alpha == "config":
        return True
    had = (site, "up_bias") in adapter.info.spelling
    return (had or "diff_b" not in roles) and "up_bias" in target.roles(words_for({"up_bias"}))


def _as_stored(adapter: Adapter, site: Site, delta: Delta, target: Dialect) -> Delta:
    """Return a delta with its rows in the order in which the dialect stores them."""
    naming = adapter.info.detection.naming
    stem = target.stem(naming, site.modules) if naming is not None else None
    if stem is None or not stem.swapped:
        return delta
    return delta.rows(halves(delta.shape[0]))


def _conformed(adapter: Adapter, site: Site, delta: Delta) -> Delta:
    """Give a delta the axes its module has in the family (1×1 kernels only)."""
    naming = adapter.info.detection.naming
    module = naming.find(site.modules[0]) if naming and len(site.modules) == 1 else None
    return delta.conformed(module.shape) if module is not None else delta


def _key(
    adapter: Adapter, site: Site, role: str, target: Dialect, words: Words, roles: Iterable[str]
) -> str | None:
    """Return the key of a role of a site, or None if the dialect has none.

    Args:
        roles: all that are written of the site.
    """
    known = adapter.info.spelling.get((site, role))
    naming = adapter.info.detection.naming
    if naming is None or is_opaque(site, naming):
        return opaque_key(adapter, site, role, target, words)
    # what a file of another dialect spells as this one does may be that dialect's own variant:
    # `lora_te2_` is OneTrainer's word for the T5 of Flux, and kohya's for nothing there
    if adapter.info.dialect == target.name:
        if known is not None and known[0] == target.name:
            return known[1]
        # an alpha that the file lacks has the stem of its factors, which may have several spellings
        for other in roles:
            name, key = adapter.info.spelling.get((site, other), ("", ""))
            beside = target.beside(key, other, role, words) if name == target.name else None
            if beside is not None:
                return beside
    return target.key(naming, site.modules, role, words)


def _way_out(adapter: Adapter, target: Dialect) -> Message:
    naming = adapter.info.detection.naming
    opaque = any(is_opaque(site, naming) for site in adapter.deltas)
    if opaque and adapter.info.dialect in (None, target.name):
        return "leave these modules out, or bake the adapter"
    if naming is None:
        return (
            "the family is unknown, so the result must stay in the dialect of the file: ",
            Setting("to", adapter.info.dialect),
        )
    if opaque:
        return (
            (
                f"{naming.name} has no modules of some of these names, so they can only be written "
                "in the dialect of the file: "
            ),
            Setting("to", adapter.info.dialect),
        )
    second = both_networks(target, adapter)
    each: tuple[str | Setting, ...] = ()
    if second is not None:
        each = (
            f"; a {target.name} file is for one network, and convert writes each by ",
            *(Setting("keep", second.second_of), " or ", Setting("keep", second.name)),
        )
    others = [d for d in DIALECTS.values() if d.name != target.name and not d.positional]
    named = [d for d in others if all(d.stems_of(naming, c) for c in adapter.components())]
    able = [d for d in named if _has_words(d, adapter)]
    if not able:
        return ("no dialect has words for all of them; leave some out, or bake the adapter", *each)
    return ("write another dialect: ", Setting("to", able[0].name), *each)


def _has_words(target: Dialect, adapter: Adapter) -> bool:
    """Return whether a dialect has words for all tensors of an adapter, whatever its modules."""
    found: dict[frozenset[str], Delta] = {}
    for delta in adapter.deltas.values():
        found.setdefault(frozenset(delta.stored()), delta)
    stored = (d.respelled(target.roles(words_for(d.stored().keys()))) for d in found.values())
    return all(d.stored().keys() <= target.roles(words_for(d.stored().keys())) for d in stored)


def _ordered(pairs: Mapping[str, Tensor], order: Mapping[str, int]) -> list[tuple[str, Tensor]]:
    """Lay tensors out as the source file did where it spelled all of them, else as safetensors does.

    The second order (wide types first, then by name) keeps every tensor aligned.
    """
    if pairs.keys() <= order.keys():
        return sorted(pairs.items(), key=lambda pair: order[pair[0]])
    return sorted(pairs.items(), key=lambda pair: (-DTYPES[pair[1].dtype].bits, pair[0]))
