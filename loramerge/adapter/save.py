"""Adapter → file in a dialect."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta, Site
from loramerge.adapter.hashes import HASH_PLACEHOLDERS, kohya_hashes
from loramerge.adapter.low_rank import Factored
from loramerge.adapter.metadata import network_metadata, training_metadata
from loramerge.adapter.patterns import pattern_value
from loramerge.adapter.peft_lokr import lokr_config
from loramerge.adapter.sites import for_dialect, halves, spelled_before
from loramerge.adapter.source import CONFIG_NAME, WEIGHTS_NAME
from loramerge.dialects import DIALECTS, PROGRAMS, Dialect, dialect, stem_table
from loramerge.dialects.tables import PEFT_ALONE, positions
from loramerge.errors import (
    FamilyError,
    FormatError,
    LoramergeError,
    MissingExtra,
    NotExpressible,
    NumericsError,
    listed,
)
from loramerge.families import Family
from loramerge.families.levels import without_text_model
from loramerge.files.dtypes import DTYPES
from loramerge.files.reader import release
from loramerge.files.tensors import RawTensor, StoredTensor, Tensor
from loramerge.files.writer import (
    AtomicFile,
    AtomicFolder,
    check_target,
    write_bytes,
    write_tensors,
)

__all__ = ["Encoded", "choose_dialect", "encode", "save", "suffix_of"]

Check = Callable[[Path], None]

_SECTION_TITLES = {
    "unet": '["CrossAttention", "Attention", "GEGLU"]',
    "text_encoder": '["CLIPAttention"]',
}


@dataclass
class Encoded:
    """What will be written: tensors in order, the header's strings, PEFT configurations.

    Args:
        components: key → component, where a configuration of each component is written.
        late: give replacements for entries of `metadata`, of the same lengths, while the tensors are
            written: digests take as long as they do.
    """

    dialect: Dialect
    tensors: list[tuple[str, Tensor]]
    metadata: dict[str, str]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    components: dict[str, str] = field(default_factory=dict)
    late: list[Callable[[], Mapping[str, str]]] = field(default_factory=list)

    def late_entries(self) -> dict[str, str]:
        """Return the entries that take as long as the writing."""
        return {key: value for make in self.late for key, value in make().items()}


def choose_dialect(to: str | None, adapters: list[Adapter]) -> Dialect:
    """Return the dialect to write: the one named, else the inputs' if they agree, else the common.

    Args:
        to: a dialect, or a program (`comfyui`, `a1111`, …) whose best dialect is meant.
    """
    if to is not None:
        return dialect(_of_program(to, adapters) if to in PROGRAMS else to)
    found = {name for adapter in adapters for name in _own_dialects(adapter)}
    if len(found) == 1:
        return DIALECTS[found.pop()]
    families = {a.family.common_dialect for a in adapters if a.family is not None}
    return DIALECTS[families.pop()] if len(families) == 1 else DIALECTS["kohya"]


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
        expected=", ".join(f"--to {name}" for name in sorted(_own_dialects(adapter))),
        found=f"--to {target.name}",
        hint="keep the dialect of the file",
    )


def suffix_of(target: Dialect) -> str:
    """Return the file name suffix of a dialect's outputs: none for folders."""
    return "" if target.folder else ".safetensors"


def encode(adapter: Adapter, target: Dialect, dtype: str | None = None) -> Encoded:
    """Spell an adapter in a dialect.

    Sites that the file already spelled in this dialect keep their keys and bytes as far as they did
    not change.

    Args:
        dtype: safetensors name of the float type to write; None for the adapter's own, which for
            one that was just loaded means every tensor as it is stored.

    Raises:
        FamilyError: if the family is read-only, and the dialect not the file's own.
        NotExpressible: listing every module the dialect has no words for.
        NumericsError: if values do not fit the type.
    """
    _require_proven(adapter, target)
    adapter = for_dialect(adapter, target)
    dtype = dtype or adapter.info.dtype
    pairs: dict[str, Tensor] = {}
    order = {key: i for i, key in enumerate(adapter.info.order)}
    missing: list[str] = []
    written: dict[Site, Delta] = {}
    components: dict[str, str] = {}
    alphas = _plan_alphas(adapter, target) if target.alpha == "tensor" else {}
    kept = {site.component: _keeps_alpha(adapter, site, target) for site in _of_each(adapter)}
    stated: set[float] = set()
    words = target.roles()
    for site, delta in adapter.deltas.items():
        spelled = spelled_before(adapter, site, target)
        delta = delta if spelled else _conformed(adapter, site, delta)
        beside = adapter.deltas.get(Site(site.modules)) if site.parameter == "bias" else None
        delta = delta.respelled(words, beside)
        try:
            plan = alphas.get(site.component, _Alphas())
            had = _had_alpha(adapter, site, delta, spelled=spelled)
            kind = dtype or adapter.info.types.get(site)
            stored = _as_stored(adapter, site, delta, target)
            roles = _roles(stored, target, kind, kept[site.component], plan, had)
        except LoramergeError as error:
            error.module = f"{site.name} ({error.module})" if error.module else site.name
            error.file = error.file or adapter.info.path
            raise
        if delta.core is not None and delta.dim is not None:
            stated.add(roles["alpha"].item() if "alpha" in roles else float(delta.dim))
        for role, tensor in roles.items():
            key = _key(adapter, site, role, target)
            if key is None:
                missing.append(f"{site.name} ({role})")
            elif key in pairs:
                raise FormatError("two deltas would be written under one key", module=key)
            else:
                pairs[key] = tensor
                components[key] = site.component
        written[site] = delta
    if missing:
        raise NotExpressible(
            f"{len(missing)} tensors cannot be said in the dialect {target.name}",
            file=adapter.info.path,
            module=listed(missing, 8),
            expected=target.writable,
            hint=_way_out(adapter, target),
        )
    _add_embeddings(adapter, target, pairs)
    if target.name == "lora_diffusion":
        _fill_positions(adapter, pairs, dtype)
    encoded = Encoded(
        target, _ordered(pairs, order), _metadata(adapter, target, pairs, written, stated)
    )
    if target.alpha == "config":
        encoded.configs = {
            component: _peft_config(adapter, component, deltas)
            for component, deltas in _by_component(adapter, written).items()
        }
        encoded.components = components
    return encoded


def _had_alpha(adapter: Adapter, site: Site, delta: Delta, *, spelled: bool) -> bool:
    """Say whether an alpha is written even where it says no more than the rank."""
    if (site, "alpha") in adapter.info.spelling:
        return True
    naming = adapter.info.detection.naming
    if naming is None or naming.one_alpha or not isinstance(delta, Factored):
        return not spelled
    return delta.scale.weight != 1.0


def _as_stored(adapter: Adapter, site: Site, delta: Delta, target: Dialect) -> Delta:
    """Return a delta with its rows in the order in which the dialect stores them."""
    naming = adapter.info.detection.naming
    stem = target.stem(naming, site.modules) if naming is not None else None
    if stem is None or not stem.swapped:
        return delta
    return delta.rows(halves(delta.shape[0]))


@dataclass(frozen=True)
class _Alphas:
    """How alphas of a component are written where they stand beside the factors.

    Args:
        one: the alpha to state for every module; None where the file's own are kept.
        none: no module has one: alpha is the rank, as in the file.
    """

    one: float | None = None
    none: bool = False


def _plan_alphas(adapter: Adapter, target: Dialect) -> dict[str, _Alphas]:
    """Choose the alphas of each component.

    diffusers takes the alpha of one module for all of its component, so alphas that differ, or that
    only some modules have, load at a wrong strength there. A component that did not change is
    written as it came; of others, every module states the same alpha, or none does.
    """
    naming = adapter.info.detection.naming
    if naming is not None and not naming.one_alpha:
        return {}
    found: dict[str, dict[Site, Factored]] = {}
    for site, delta in adapter.deltas.items():
        if isinstance(delta, Factored) and delta.scale.value(delta.rank):
            found.setdefault(site.component, {})[site] = delta
    return {component: _component_alphas(adapter, target, d) for component, d in found.items()}


def _component_alphas(
    adapter: Adapter, target: Dialect, deltas: Mapping[Site, Factored]
) -> _Alphas:
    spelled = all(spelled_before(adapter, site, target) for site in deltas)
    stated = any((site, "alpha") in adapter.info.spelling for site in deltas)
    if spelled and not stated and all(d.scale.value(d.rank) == 1.0 for d in deltas.values()):
        return _Alphas(none=True)
    if spelled and all(d.scale.unchanged for d in deltas.values()):
        return _Alphas()
    alphas = {s: abs(d.scale.value(d.rank)) * d.rank for s, d in deltas.items()}
    # half types would be rounded once more, so theirs is kept if it can be
    narrow = [alphas[s] for s, d in deltas.items() if d.up.dtype in ("F16", "BF16")]
    counts = Counter(narrow or alphas.values())
    return _Alphas(one=max(counts, key=lambda alpha: (counts[alpha], alpha)))


def _conformed(adapter: Adapter, site: Site, delta: Delta) -> Delta:
    """Give a delta the axes its module has in the family (1×1 kernels only)."""
    naming = adapter.info.detection.naming
    module = naming.find(site.modules[0]) if naming and len(site.modules) == 1 else None
    return delta.conformed(module.shape) if module is not None else delta


def _keeps_alpha(adapter: Adapter, site: Site, target: Dialect) -> bool:
    """Say whether alpha is kept beside the factors, rather than folded into up.

    The header of a diffusers file can hold alphas, but programs other than diffusers ignore them;
    so they stay there only where a component is written again just as it came.
    """
    if target.alpha == "header":
        return site.component in adapter.info.configs and all(
            _as_loaded(adapter, other, delta, target)
            for other, delta in adapter.deltas.items()
            if other.component == site.component
        )
    return target.alpha in ("tensor", "config")


def _of_each(adapter: Adapter) -> list[Site]:
    """Return one site of each component."""
    return list({site.component: site for site in adapter.deltas}.values())


def _as_loaded(adapter: Adapter, site: Site, delta: Delta, target: Dialect) -> bool:
    """Say whether a delta is the one its file holds, in the target's spelling."""
    return (
        all(isinstance(tensor, StoredTensor) for tensor in delta.stored().values())
        and (delta.core is None or delta.core.scale.weight == 1.0)
        and spelled_before(adapter, site, target)
    )


def _roles(
    delta: Delta, target: Dialect, dtype: str | None, keeps: bool, alphas: _Alphas, had: bool
) -> dict[str, Tensor]:
    """Return the tensors of one site, by role.

    Args:
        keeps: alpha stays beside the factors, rather than in up.
        alphas: how the component's alphas are written.
        had: the file has an alpha for the site.
    """
    if keeps and target.alpha != "tensor" and delta.core is not None:
        # the scale goes into the configuration, its sign into the factors
        return delta.bare().encoded(dtype, alpha=False)
    if target.alpha == "tensor" and isinstance(delta, Factored) and alphas.one is not None:
        value = delta.scale.value(delta.rank)
        if value and abs(value) * delta.rank != alphas.one:
            return delta.stated(dtype, alphas.one)
        return delta.encoded(dtype, alpha=keeps)
    roles = delta.encoded(dtype, alpha=keeps)
    if isinstance(delta, Factored) and (
        alphas.none or (delta.scale.alpha is None and delta.scale.ratio is None and not had)
    ):
        roles.pop("alpha", None)  # the file had none, and it would say nothing
    return roles


def _key(adapter: Adapter, site: Site, role: str, target: Dialect) -> str | None:
    known = adapter.info.spelling.get((site, role))
    naming = adapter.info.detection.naming
    # what a file of another dialect spells as this one does may be that dialect's own variant:
    # `lora_te2_` is OneTrainer's word for the T5 of Flux, and kohya's for nothing there
    own = naming is None or adapter.info.dialect == target.name
    if own and known is not None and known[0] == target.name:
        return known[1]
    if naming is not None:
        return target.key(naming, site.modules, role)
    module = site.modules[0]
    if target.name not in adapter.info.dialects:
        return None
    suffixes = next((f.suffixes[role] for f in target.forms if role in f.suffixes), None)
    return target.opaque_stem(module) + suffixes[0] if suffixes else None


def _way_out(adapter: Adapter, target: Dialect) -> str:
    if adapter.info.detection.naming is None:
        return (
            "the family is unknown, so only the file's own dialect can be written: "
            f"--to {adapter.info.dialect}"
        )
    others = [d.name for d in DIALECTS.values() if d.name not in (target.name, "lora_diffusion")]
    return f"write another dialect: --to {others[0]}"


def _ordered(pairs: Mapping[str, Tensor], order: Mapping[str, int]) -> list[tuple[str, Tensor]]:
    """Lay tensors out as the source file did where it spelled all of them, else as safetensors does.

    The second order (wide types first, then by name) keeps every tensor aligned.
    """
    if pairs.keys() <= order.keys():
        return sorted(pairs.items(), key=lambda pair: order[pair[0]])
    return sorted(pairs.items(), key=lambda pair: (-DTYPES[pair[1].dtype].bits, pair[0]))


def _metadata(
    adapter: Adapter,
    target: Dialect,
    pairs: Mapping[str, Tensor],
    written: Mapping[Site, Delta],
    alphas: Set[float],
) -> dict[str, str]:
    metadata = training_metadata(adapter.info.metadata)
    if target.name == "kohya":
        metadata |= network_metadata(adapter, written, alphas) | HASH_PLACEHOLDERS
    if target.name == "diffusers":
        metadata |= {"lora_adapter_metadata": _header_config(adapter, target, written)}
        metadata.setdefault("format", "pt")
    if target.name == "lora_diffusion":
        for component, title in _SECTION_TITLES.items():
            ups = [k for k in pairs if k.startswith(f"{component}:") and k.endswith(":up")]
            if ups:
                metadata[component] = title
                metadata |= {f"{k[:-3]}:rank": str(pairs[k].shape[1]) for k in ups}
        metadata |= {key: "<embed>" for key in pairs if key.startswith("<")}
    return metadata


def _by_component(
    adapter: Adapter, deltas: Mapping[Site, Delta], heads: Collection[str] = ()
) -> dict[str, dict[str, Delta]]:
    """Group deltas by component and path; an unknown family has those of its folders, or just ''.

    Args:
        heads: that begin the names of components in the dialect, whatever the family.

    Configurations name modules, and PEFT matches the ends of names: without `text_model.` they fit
    the text encoders of every version of transformers.
    """
    opaque = adapter.info.detection.naming is None
    found: dict[str, dict[str, Delta]] = {}
    for site, delta in deltas.items():
        component, _, path = site.modules[0].partition(".")
        if opaque and component not in adapter.info.configs and f"{component}." not in heads:
            component, path = "", site.modules[0]
        here = found.setdefault(component, {})
        if site.parameter == "weight" or without_text_model(path) not in here:
            here[without_text_model(path)] = delta
    return found


def _patterns(deltas: Mapping[str, Delta], *, scaled: bool, alpha: str) -> dict[str, Any]:
    """Return r, alpha and the patterns that give every module its rank and scale.

    Args:
        alpha: what the configuration calls alpha.
    """
    cores = {path: (c, c.dim or 1) for path, d in deltas.items() if (c := d.core) is not None}
    ranks = {path: dim for path, (_, dim) in cores.items()}
    alphas = {
        path: abs(core.factor) * dim if scaled else float(dim)
        for path, (core, dim) in cores.items()
    }
    return _tables(ranks, alphas, alpha)


def _tables(ranks: Mapping[str, int], alphas: Mapping[str, float], alpha: str) -> dict[str, Any]:
    """Return the commonest rank and alpha, and patterns for the modules of others."""
    rank = _commonest(ranks.values(), 8)
    common = _commonest(alphas.values(), float(rank))
    return {
        "r": rank,
        alpha: _plain(common),
        "rank_pattern": {p: r for p, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {p: _plain(a) for p, a in sorted(alphas.items()) if a != common},
    }


def _commonest(found: Any, default: Any) -> Any:
    counts = Counter(found)
    return min(counts, key=lambda v: (-counts[v], v)) if counts else default


def _plain(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha


def _header_config(adapter: Adapter, target: Dialect, written: Mapping[Site, Delta]) -> str:
    """Return diffusers' `lora_adapter_metadata`: the configuration of every component, flattened.

    Ranks and alphas are stated for every module, so that files of mixed ranks load at the right
    strength also where a reader would guess one alpha for all.
    """
    flat: dict[str, Any] = {}
    for component, deltas in _by_component(adapter, written, target.prefixes).items():
        scaled = any(
            _keeps_alpha(adapter, site, target)
            for site in _of_each(adapter)
            if site.component == component
        )
        own = adapter.info.configs.get(component, {})
        config = own | _patterns(deltas, scaled=scaled, alpha="lora_alpha")
        config |= {"target_modules": sorted(deltas), "use_rslora": False, "peft_type": "LORA"}
        if any(delta.kind == "dora" for delta in deltas.values()):
            config["use_dora"] = True
        flat |= {f"{component}.{name}": value for name, value in config.items()}
    return json.dumps(flat, sort_keys=True)


def _peft_config(adapter: Adapter, component: str, deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """Return adapter_config.json of a component; what the source stated beside is kept."""
    configs = adapter.info.configs
    own = configs.get(component, configs.get("", {})) if adapter.info.dialect == "peft" else {}
    kind = _peft_type(adapter, component, deltas)
    config: dict[str, Any] = {"peft_type": kind, "inference_mode": True, **own}
    if kind == "LORA":
        dora = any(delta.kind == "dora" for delta in deltas.values())
        config = {"bias": "none", **config} | _patterns(deltas, scaled=True, alpha="lora_alpha")
        config |= {"use_rslora": False, "use_dora": dora}
        if any(site.parameter == "bias" and d.peft_type for site, d in adapter.deltas.items()):
            config["lora_bias"] = True
    elif kind == "LOHA":
        config |= _patterns(deltas, scaled=True, alpha="alpha")
        config["use_effective_conv2d"] = any("hada_t1" in d.stored() for d in deltas.values())
    elif kind == "LOKR" and own.get("peft_type") == "LOKR":
        config |= _patterns(deltas, scaled=True, alpha="alpha") | _lokr_ranks(deltas, own)
    elif kind == "LOKR":
        made = lokr_config(deltas)
        ranks, alphas = made.pop("ranks"), made.pop("alphas")
        config |= made | _tables(ranks, alphas, "alpha")
    targets = sorted(path for path, d in deltas.items() if d.peft_type is not None)
    kept = own.get("target_modules")
    covered = isinstance(kept, list) and all(
        any(path == t or path.endswith(f".{t}") for t in kept) for path in targets
    )
    config["target_modules"] = kept if covered else targets
    replaced = sorted(path for path, d in deltas.items() if d.kind == "set")
    if replaced or own.get("modules_to_save"):
        config["modules_to_save"] = own.get("modules_to_save") or replaced
    return config


def _peft_type(adapter: Adapter, component: str, deltas: Mapping[str, Delta]) -> str:
    """Return the one PEFT type of a component's deltas.

    Raises:
        NotExpressible: if there are several; if only some modules are DoRA, of which PEFT would
            make all; or if PEFT's kind of that name is another ((IA)³ and rotations can be written
            only if they came from PEFT).
    """
    found = {d.peft_type for d in deltas.values() if d.peft_type is not None} or {"LORA"}
    dora = {d.kind == "dora" for d in deltas.values() if d.peft_type == "LORA"}
    configs = adapter.info.configs
    own = configs.get(component, configs.get("", {})).get("peft_type", "LORA")
    unread = found - {"LORA", "LOHA", "LOKR", own}
    if len(found) == 1 and len(dora) < 2 and not unread:
        return found.pop()
    kinds = sorted({delta.kind for delta in deltas.values()})
    raise NotExpressible(
        f"a PEFT configuration cannot say {' beside '.join(kinds)}"
        if not unread
        else f"a PEFT configuration of {' and '.join(kinds)} cannot be made up",
        file=adapter.info.path,
        module=listed(list(deltas), 4),
        expected="one kind in all modules of a component",
        hint="write kohya (--to kohya), or give --base and a rank to make it plain LoRA",
    )


def _lokr_ranks(deltas: Mapping[str, Delta], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ranks and alphas of a LoKr configuration that was read: where no factor shows the rank,
    it is the configuration's, and the scale is alpha divided by it."""
    rank = own.get("r", 8)
    table = own.get("rank_pattern") or {}
    ranks = {p: pattern_value(table, p) or rank for p in deltas}
    cores = {path: core for path, d in deltas.items() if (core := d.core) is not None}
    alphas = {p: abs(core.factor) * (core.dim or ranks[p]) for p, core in cores.items()}
    common = _commonest(alphas.values(), float(rank))
    return {
        "r": rank,
        "rank_pattern": table,
        "alpha": _plain(common),
        "alpha_pattern": {p: _plain(a) for p, a in sorted(alphas.items()) if a != common},
    }


def _add_embeddings(adapter: Adapter, target: Dialect, pairs: dict[str, Tensor]) -> None:
    for key, tensor in adapter.embeddings.items():
        if target.folder or target.name in ("diffusers", "diffusers-legacy"):
            raise NotExpressible(
                f"the dialect {target.name} cannot carry the embeddings of this adapter",
                file=adapter.info.path,
                module=key,
                hint="write kohya (--to kohya), or leave them out: mix --embeddings none, or "
                "convert --drop embeddings",
            )
        spelled, shape = _embedding_spelling(key, tensor.shape, target)
        pairs[spelled] = tensor.reshaped(shape)


_BUNDLE, _BUNDLE_TAIL = "bundle_emb.", ".string_to_param.*"


def _embedding_spelling(
    key: str, shape: tuple[int, ...], target: Dialect
) -> tuple[str, tuple[int, ...]]:
    """Return key and shape of a carried embedding.

    lora_diffusion has `<token>` with one vector `(dim,)`; kohya files carry A1111's and LyCORIS'
    `bundle_emb.token.string_to_param.*` with `(vectors, dim)`.
    """
    if target.name == "kohya" and not key.startswith(_BUNDLE):
        return f"{_BUNDLE}{key.strip('<>')}{_BUNDLE_TAIL}", shape if len(shape) == 2 else (
            1,
            *shape,
        )
    if target.name == "lora_diffusion" and key.startswith(_BUNDLE):
        if key.endswith(_BUNDLE_TAIL) and len(shape) == 2 and shape[0] == 1:
            return f"<{key[len(_BUNDLE) : -len(_BUNDLE_TAIL)]}>", shape[1:]
        raise NotExpressible(
            "lora_diffusion holds one vector per embedding", module=key, found=list(shape)
        )
    return key, shape


def _fill_positions(adapter: Adapter, pairs: dict[str, Tensor], dtype: str | None) -> None:
    """Write zeros where a positional list has no delta: loaders count, so no place may be empty."""
    family = adapter.info.detection.naming
    assert family is not None  # unknown families are not expressible and were refused before
    kind = dtype or adapter.dtype
    for component in ("unet", "text_encoder"):
        stems = _positional_stems(family, component)
        if not any(f"{stem}:up" in pairs for stem in stems):
            continue
        for stem, module in stems.items():
            if f"{stem}:up" not in pairs:
                found = family.find(module)
                assert found is not None
                rows, columns = found.shape[0], math.prod(found.shape[1:])
                for role, shape in (("up", (rows, 1)), ("down", (1, columns))):
                    size = math.prod(shape) * DTYPES[kind].bits // 8
                    pairs[f"{stem}:{role}"] = RawTensor(bytes(size), kind, shape)


def _positional_stems(family: Family, component: str) -> dict[str, str]:
    count = len(positions(family, component))
    table = stem_table(DIALECTS["lora_diffusion"], family)
    return {f"{component}:{i}": table[f"{component}:{i}"].module for i in range(count)}


def save(
    adapter: Adapter,
    path: str | PathLike[str],
    *,
    to: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write an adapter atomically.

    Args:
        path: file, or folder for the dialect `peft`; `.pt` writes lora_diffusion's lists.
        to: dialect or program; None keeps the adapter's own.
        dtype: safetensors name of the float type, None for the adapter's.
        metadata: entries to add to the header.

    Returns:
        Bytes written.

    Raises:
        OutputExists: unless `force`.
        NotExpressible, NumericsError: see `encode`.
    """
    target = choose_dialect(to, [adapter])
    encoded = encode(adapter, target, dtype)
    encoded.metadata |= metadata or {}
    return write_encoded(encoded, path, force=force)


def write_encoded(
    encoded: Encoded,
    path: str | PathLike[str],
    *,
    force: bool = False,
    check: Check | None = None,
) -> int:
    """Write what `encode` gave; see `save`.

    Args:
        check: looks at the file or folder before it gets its name; what it raises leaves nothing.
    """
    place = Path(path)
    try:
        if encoded.dialect.folder:
            encoded.metadata |= encoded.late_entries()
            return _write_folder(encoded, place, force, check)
        if place.suffix == ".pt":
            return _write_lists(encoded, place, force, check)
        if encoded.dialect.name == "kohya":
            tensors, metadata = encoded.tensors, dict(encoded.metadata)  # no cycle through `late`
            encoded.late.append(lambda: kohya_hashes(tensors, metadata))
        return write_tensors(
            place, encoded.tensors, encoded.metadata, force=force, check=check, late=encoded.late
        )
    except NumericsError as error:
        error.file = error.file or str(place)
        raise


def _write_folder(encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
    if place.suffix in (".safetensors", ".pt", ".bin"):
        raise FormatError(
            "a PEFT adapter is a folder", file=place, hint=f"-o {place.with_suffix('')}"
        )
    total = 0
    single = len(encoded.configs) == 1 and {*encoded.configs} <= {"", *PEFT_ALONE}
    with AtomicFolder(place, force=force) as folder:
        for component, config in encoded.configs.items():
            part = folder if single else folder / component
            own = [
                (key.removeprefix(f"{component}/"), tensor)
                for key, tensor in encoded.tensors
                if single or encoded.components[key] == component
            ]
            total += write_tensors(part / WEIGHTS_NAME, own, encoded.metadata)
            raw = json.dumps(config, indent=2, sort_keys=True).encode()
            write_bytes(part / CONFIG_NAME, raw)
            total += len(raw)
        if check is not None:
            check(folder)
            for path in folder.rglob("*"):
                release(path)
    return total


def _write_lists(encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
    """Write lora_diffusion's pickled lists: UNet, text encoder and embeddings beside each other."""
    if encoded.dialect.name != "lora_diffusion":
        raise FormatError(
            "only lora_diffusion lists are written as .pt",
            file=place,
            hint="give -o a name that ends in .safetensors",
        )
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            "writing .pt files needs torch", file=place, hint="pip install 'loramerge[train]'"
        ) from None
    tensors = dict(encoded.tensors)
    outputs: dict[Path, Any] = {}
    for component, suffix in (("unet", ""), ("text_encoder", ".text_encoder")):
        count = sum(key.startswith(f"{component}:") for key in tensors) // 2
        if count:
            outputs[place.with_name(f"{place.stem}{suffix}.pt")] = [
                torch.from_numpy(tensors[f"{component}:{i}:{role}"].numpy().copy())
                for i in range(count)
                for role in ("up", "down")
            ]
    embeddings = {k: torch.from_numpy(t.numpy().copy()) for k, t in tensors.items() if k[0] == "<"}
    if embeddings:
        outputs[place.with_name(f"{place.stem}.ti.pt")] = embeddings
    for path in outputs:
        check_target(path, force=force)
    import io
    from tempfile import TemporaryDirectory

    if check is not None:
        with TemporaryDirectory(prefix=".loramerge-", dir=place.parent) as folder:
            for path, content in outputs.items():
                torch.save(content, Path(folder) / path.name)
            check(Path(folder) / place.name)
    total = 0
    for path, content in outputs.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with AtomicFile(path, force=force) as file:
            file.write(0, buffer.getbuffer())
        total += len(buffer.getbuffer())
    return total
