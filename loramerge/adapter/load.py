"""File → Adapter: every tensor used, carried, or reported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.adapter.adapter import Adapter, Info, Problem
from loramerge.adapter.delta import Delta, identical
from loramerge.adapter.kinds import all_words, make_biases, make_weight
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.declaration import Stored
from loramerge.adapter.patterns import pattern_value
from loramerge.adapter.site import Site
from loramerge.adapter.sites import halves
from loramerge.adapter.source import Source, open_source
from loramerge.dialects import DIALECTS, Fused, stem_table
from loramerge.dialects.classify import Group, classify
from loramerge.dialects.detect import Detection, detect
from loramerge.errors import (
    FormatError,
    LoramergeError,
    ShapeError,
    UnsupportedKind,
    nearest,
    spelled,
)
from loramerge.files.tensors import Tensor, same_bytes

__all__ = ["load"]

_NEAREST_MOST = 20  # unknown keys for which the nearest known key is searched


def load(path: str | PathLike[str]) -> Adapter:
    """Read an adapter of any dialect. Only the header and alphas are read; factors are lazy.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: if the file cannot be read.
        FormatError: if it is positional and its count says nothing certain.
    """
    source = open_source(path)
    classified = classify(source.tensors, source.metadata)
    if classified.needs_words:
        classified = classify(source.tensors, source.metadata, all_words())
    shapes = {
        (group.dialect, group.stem): shape
        for group in classified.groups
        if (shape := _shape(group, source.tensors)) is not None
    }
    detection = detect(classified.groups, shapes, source.metadata)
    info = Info(
        path=source.path,
        files=tuple(source.files),
        size=source.size,
        detection=detection,
        metadata=source.metadata,
        configs=source.configs,
        order=tuple(source.tensors),
    )
    adapter = Adapter({}, {key: source.tensors[key] for key in classified.embeddings}, info)
    info.account.carried += classified.embeddings
    _check_positions(classified.groups, detection, source)
    unknown = list(classified.unknown)
    dialects: Counter[str] = Counter()
    covered: dict[tuple[str, str], str] = {}
    for group in classified.groups:
        target = _target(group, detection)
        if target is None:
            unknown += group.roles.values()
            continue
        module = Site(target.modules, "weight", target.spans).name
        try:
            sites = _sites(group, target, source, detection)
        except (ShapeError, UnsupportedKind) as error:
            says = error.problem if error.found is None else f"{error.problem}: {error.found}"
            sort, way = "shape", _EXPORT_AGAIN
            if isinstance(error, UnsupportedKind):
                sort, way = "kind", spelled(error.hint or "merge it with the program that made it")
            info.problems.append(Problem("error", sort, module, says, way))
            unknown += group.roles.values()
            continue
        taken = _place(adapter, group, sites, covered)
        if any(
            site in adapter.deltas and covered[site.modules[0], site.parameter] == group.stem
            for site in sites
        ):
            dialects[group.dialect] += 1
        left = [key for role, key in group.roles.items() if role not in taken]
        if left:
            unknown += left
            info.problems.append(_missing_partner(group, module, taken))
    info.dialects = dict(dialects)
    info.account.unknown = _with_nearest(unknown, detection, info.dialect)
    _report_doubled(adapter, classified.doubled, source)
    _check_alphas(adapter)
    _check_configs(adapter, source)
    return adapter.made_by(Path(source.path))


_EXPORT_AGAIN = "export or download the file again; it cannot be used as it is"


def _shape(group: Group, tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape of a group's weight, if its factors tell it, as `detect` takes it."""
    roles = group.roles
    if "up" in roles and "down" in roles:
        up, down = tensors[roles["up"]].shape, tensors[roles["down"]].shape
        mid = tensors[roles["mid"]].shape[2:] if "mid" in roles else ()
        return (*up[:1], *down[1:2], *(mid or down[2:]))
    parts = {role: tensors[key] for role, key in roles.items()}
    try:
        made = make_weight(Stored(parts, Scale, group.stem))
    except LoramergeError:
        return None
    shape = made.delta.shape if made is not None else ()
    if made is None or not shape or not all(shape):
        return None
    return (*shape, 0) if made.hides_kernel else shape


def _target(group: Group, detection: Detection) -> Fused | None:
    """Return the modules a group's stem stands for, or None if the family has none such."""
    dialect = DIALECTS[group.dialect]
    if detection.naming is None:
        return Fused((dialect.opaque_module(group.stem),))
    stem = stem_table(dialect, detection.naming).get(group.stem)
    return Fused(stem.modules, stem.spans, stem.swapped) if stem else None


def _sites(
    group: Group, target: Fused, source: Source, detection: Detection
) -> dict[Site, tuple[Delta, tuple[str, ...]]]:
    """Return the deltas a group holds, each with the roles it takes."""
    tensors = {role: source.tensors[key] for role, key in group.roles.items()}
    found: dict[Site, tuple[Delta, tuple[str, ...]]] = {}
    weight = Site(target.modules, "weight", target.spans)
    bias, module = weight._replace(parameter="bias"), weight.name
    config, path = _config_of(group, module, source)
    stored = Stored(
        tensors,
        lambda: _scale(group, module, tensors, source),
        module,
        _known_shape(target, detection),
        config or {},
        path,
    )
    made = make_weight(stored)
    if made is not None:
        found[weight] = made.delta, made.roles
    for beside in make_biases(stored, made):
        found[bias] = beside.delta, beside.roles
    for site, (delta, roles) in found.items():
        site.bounds(delta.shape[0])  # refuses rows that the modules cannot share
        if target.swapped:
            found[site] = (delta.rows(halves(delta.shape[0])), roles)
    return found


def _known_shape(target: Fused, detection: Detection) -> tuple[int, ...] | None:
    """Return the shape that the family has for a weight, rows of several modules together."""
    if detection.naming is None:
        return None
    modules = [detection.naming.find(module) for module in target.modules]
    shapes = [module.shape for module in modules if module is not None]
    if len(shapes) < len(modules) or len({shape[1:] for shape in shapes}) > 1:
        return None
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _config_of(group: Group, module: str, source: Source) -> tuple[Mapping[str, Any] | None, str]:
    """Return PEFT's configuration of a module, if there is one, and the name it goes by there."""
    component, _, path = module.partition(".")
    config = source.configs.get(component)
    return (source.configs.get(""), _peft_path(group.stem)) if config is None else (config, path)


def _scale(group: Group, module: str, tensors: Mapping[str, Tensor], source: Source) -> Scale:
    """Return the scale of a group's factors: from its tensors, or its configuration, or none."""
    stated = {role: tensors[role] for role in ("alpha", "scale") if role in tensors}
    for role, tensor in stated.items():
        if tensor.size != 1:
            raise ShapeError(
                f"{role} is not one number",
                module=module,
                found=f"{role} {list(tensor.shape)}",
            )
    if stated:
        alpha, ratio = stated.get("alpha"), stated.get("scale")
        return Scale(
            None if alpha is None else alpha.item(),
            alpha,
            ratio=None if ratio is None else ratio.item(),
            stated=ratio,
        )
    config, path = _config_of(group, module, source)
    if config is None:
        return Scale()
    word = "lora_alpha" if config.get("peft_type", "LORA") == "LORA" else "alpha"
    alpha_here = _configured(config, "alpha_pattern", word, path, module)
    if alpha_here is None:
        return Scale()
    if config.get("peft_type") == "LOKR" and {"lokr_w1", "lokr_w2"} <= tensors.keys():
        # PEFT divides by the rank it was given also where no factor shows it
        rank = _configured(config, "rank_pattern", "r", path, module)
        return Scale(alpha_here, ratio=alpha_here / (rank or 8))
    return Scale(alpha_here, root=bool(config.get("use_rslora")))


def _configured(
    config: Mapping[str, Any], patterns: str, word: str, path: str, module: str
) -> float | None:
    """Return a number of a PEFT configuration: that of the first pattern that matches, or of all."""
    table = config.get(patterns) or {}
    if not isinstance(table, Mapping):
        raise ShapeError(f"{patterns} is not a mapping", module=module, found=table)
    value = pattern_value(table, path)
    if value is None:
        value = config.get(word)
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        what = "alpha" if word.endswith("alpha") else word
        raise ShapeError(f"{what} is not a number", module=module, found=value)
    return float(value)


def _peft_path(stem: str) -> str:
    return stem.removeprefix("base_model.model.")


def _place(
    adapter: Adapter,
    group: Group,
    sites: Mapping[Site, tuple[Delta, tuple[str, ...]]],
    covered: dict[tuple[str, str], str],
) -> set[str]:
    """Put a group's deltas into the adapter; return the roles that were taken.

    A module that the file spells twice is an error, for which of the two is meant cannot be known;
    unless both say the same to the last bit.

    Args:
        covered: every module and parameter that has a delta → the stem it is spelled with; added to.
    """
    info, taken = adapter.info, set[str]()
    for site, (delta, roles) in sites.items():
        places = {(module, site.parameter) for module in site.modules}
        before = next((covered[place] for place in places if place in covered), None)
        here = [role for role in roles if role in group.roles]
        if before is not None and not (
            site in adapter.deltas and identical(adapter.deltas[site], delta)
        ):
            info.problems.append(
                Problem(
                    "error",
                    "spelled-twice",
                    site.name,
                    f"the module occurs twice, as {before} and as {group.stem}",
                    "remove one of the two spellings",
                )
            )
            continue
        taken.update(here)
        info.account.used += [group.roles[role] for role in here]
        if before is not None:
            info.problems.append(_copy(site.name))
            continue
        adapter.deltas[site] = delta
        covered |= dict.fromkeys(places, group.stem)
        for role in here:
            info.spelling[site, role] = (group.dialect, group.roles[role])
    return taken


def _copy(module: str) -> Problem:
    return Problem(
        "warning",
        "spelled-twice-alike",
        module,
        "the module is spelled twice with equal values; it is read, and written, once",
        "nothing needs to be done",
    )


def _report_doubled(adapter: Adapter, doubled: list[tuple[str, str]], source: Source) -> None:
    """Account for keys that say again what another key of their stem says."""
    used = set(adapter.info.account.used) if doubled else set()
    for key, before in doubled:
        if before not in used:
            adapter.info.account.unknown[key] = None
        elif same_bytes(source.tensors[key], source.tensors[before]):
            adapter.info.account.used.append(key)
            adapter.info.problems.append(_copy(key))
        else:
            adapter.info.account.unknown[key] = before
            says = f"the tensor occurs twice with different values, as {before} and as {key}"
            adapter.info.problems.append(
                Problem("error", "spelled-twice", key, says, "remove one of the two")
            )


def _missing_partner(group: Group, module: str, taken: set[str]) -> Problem:
    left = sorted(role for role in group.roles if role not in taken)
    return Problem(
        "error",
        "missing-partner",
        module,
        f"{', '.join(left)} without the tensors that belong to it",
        _EXPORT_AGAIN,
    )


def _with_nearest(
    unknown: list[str], detection: Detection, dialect: str | None
) -> dict[str, str | None]:
    """Map each unknown key to the nearest stem the dialect knows, for the first few."""
    family = detection.naming
    if family is None or dialect is None:
        return dict.fromkeys(unknown)
    stems = stem_table(DIALECTS[dialect], family) if unknown else {}
    return {
        key: nearest(key.partition(".lora")[0].partition(".alpha")[0], stems)
        if i < _NEAREST_MOST
        else None
        for i, key in enumerate(unknown)
    }


def _check_positions(groups: list[Group], detection: Detection, source: Source) -> None:
    """Refuse positional files whose count of modules fits no known list.

    Positions mean nothing by themselves: a file with extended targets shifts every one of them.
    """
    counts = Counter(
        (g.dialect, g.stem.partition(":")[0]) for g in groups if DIALECTS[g.dialect].positional
    )
    family = detection.naming
    for (name, component), count in counts.items():
        known = len(DIALECTS[name].stems_of(family, component)) if family else 0
        if count != known:
            raise FormatError(
                "the positions of this lora_diffusion file cannot be assigned to modules",
                file=source.path,
                module=component,
                expected="144 modules of the UNet, 48 (SD1) or 92 (SD2) of the text encoder",
                found=f"{count} modules; target classes {source.metadata.get(component, 'unknown')}",
                hint="files trained with extended targets cannot be read",
            )


def _check_alphas(adapter: Adapter) -> None:
    zeros = [
        site.name
        for site, delta in adapter.deltas.items()
        if delta.pair is not None and delta.alpha == 0
    ]
    for name in zeros:
        adapter.info.problems.append(
            Problem(
                "warning",
                "alpha-zero",
                name,
                "alpha is 0, which is read as no effect (kohya's trainer would read it as alpha = rank)",
                "if the module should act, set alpha to its rank",
            )
        )
    for site, delta in adapter.deltas.items():
        if delta.kind in ("oft", "boft") and delta.alpha == 0:
            adapter.info.problems.append(
                Problem(
                    "note",
                    "no-constraint",
                    site.name,
                    "alpha, the constraint of the rotation, is 0, which is read as none, as LyCORIS "
                    "does (kohya's oft would clamp the rotation to nothing)",
                    "if it was trained with kohya's oft, it changes nothing",
                )
            )
    odd = [
        site.name
        for site, delta in adapter.deltas.items()
        if delta.alpha is not None and not math.isfinite(delta.alpha)
    ]
    for name in odd:
        adapter.info.problems.append(
            Problem(
                "error", "alpha-not-finite", name, "alpha is not a finite number", _EXPORT_AGAIN
            )
        )


def _check_configs(adapter: Adapter, source: Source) -> None:
    info = adapter.info
    named = info.dialect is not None and DIALECTS[info.dialect].alpha == "config"
    if named and not source.configs:
        info.problems.append(
            Problem(
                "warning",
                "alpha-unknown",
                None,
                "PEFT keys without adapter_config.json: alpha is unknown and taken as the rank",
                "put adapter_config.json beside the file",
            )
        )
