"""File → Adapter: every tensor used, carried, or reported."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.adapter.adapter import Adapter, Info, Problem
from loramerge.adapter.delta import Delta, Site
from loramerge.adapter.dense import Full, Replacement
from loramerge.adapter.foreign import Foreign
from loramerge.adapter.low_rank import Factored, LowRank, Scale, Tucker
from loramerge.adapter.sites import halves
from loramerge.adapter.source import Source, open_source
from loramerge.dialects import DIALECTS, Fused, stem_table
from loramerge.dialects.classify import Group, classify
from loramerge.dialects.detect import Detection, detect
from loramerge.dialects.roles import kind_of
from loramerge.dialects.tables import positions
from loramerge.errors import FormatError, ShapeError, nearest
from loramerge.files.tensors import Tensor

__all__ = ["load"]

_NEAREST_MOST = 20  # unknown keys for which the nearest known key is searched
_BIASES = {"diff_b": "bias", "b_norm": "bias", "set_bias": "bias"}
_WHOLE = ("diff", "w_norm", "set_weight", "diff_b", "b_norm", "set_bias")


def load(path: str | PathLike[str]) -> Adapter:
    """Read an adapter of any dialect. Only the header and alphas are read; factors are lazy.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: if the file cannot be read.
        FormatError: if it is positional and its count says nothing certain.
    """
    source = open_source(path)
    classified = classify(source.tensors, source.metadata)
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
    covered: set[tuple[str, str]] = set()
    for group in classified.groups:
        target = _target(group, detection)
        if target is None:
            unknown += group.roles.values()
            continue
        module = Site(target.modules, "weight", target.spans).name
        try:
            sites = _sites(group, target, source)
        except ShapeError as error:
            info.problems.append(
                Problem("error", "shape", module, f"{error.problem}: {error.found}", _EXPORT_AGAIN)
            )
            unknown += group.roles.values()
            continue
        taken = _place(adapter, group, sites, covered)
        dialects[group.dialect] += 1
        left = [key for role, key in group.roles.items() if role not in taken]
        if left:
            unknown += left
            info.problems.append(_missing_partner(group, module, taken))
    info.dialects = dict(dialects)
    info.account.unknown = _with_nearest(unknown, detection, info.dialect)
    _check_alphas(adapter)
    _check_configs(adapter, source)
    return adapter.made_by(Path(source.path))


_EXPORT_AGAIN = "export or download the file again; it cannot be used as it is"


def _shape(group: Group, tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape of a group's weight, if its factors tell it."""
    roles = group.roles
    if "up" in roles and "down" in roles:
        up, down = tensors[roles["up"]].shape, tensors[roles["down"]].shape
        mid = tensors[roles["mid"]].shape[2:] if "mid" in roles else ()
        return (*up[:1], *down[1:2], *(mid or down[2:]))
    for role in ("diff", "w_norm", "set_weight"):
        if role in roles:
            return tensors[roles[role]].shape
    return None


def _target(group: Group, detection: Detection) -> Fused | None:
    """Return the modules a group's stem stands for, or None if the family has none such."""
    dialect = DIALECTS[group.dialect]
    if detection.naming is None:
        return Fused((dialect.opaque_module(group.stem),))
    stem = stem_table(dialect, detection.naming).get(group.stem)
    return Fused(stem.modules, stem.spans, stem.swapped) if stem else None


def _sites(
    group: Group, target: Fused, source: Source
) -> dict[Site, tuple[Delta, tuple[str, ...]]]:
    """Return the deltas a group holds, each with the roles it takes."""
    tensors = {role: source.tensors[key] for role, key in group.roles.items()}
    found: dict[Site, tuple[Delta, tuple[str, ...]]] = {}
    kind = kind_of(tensors.keys())
    weight = Site(target.modules, "weight", target.spans)
    if kind in ("lora", "tucker"):
        module = weight.name
        scale = _scale(group, module, tensors, source)
        delta: Delta
        if kind == "tucker":
            delta = Tucker.of(tensors["up"], tensors["down"], tensors["mid"], scale, module)
        else:
            delta = LowRank.of(tensors["up"], tensors["down"], scale, module)
        found[weight] = (delta, ("up", "down", "mid", "alpha"))
    elif kind is not None and kind not in ("full", "bias", "norm", "set"):
        apart = {role: t for role, t in tensors.items() if role not in _BIASES}
        shape = _shape(group, source.tensors) or (0, 0)
        found[weight] = (Foreign(apart, kind, shape), tuple(apart))
    for role in _WHOLE:
        if role not in tensors or (weight in found and role not in _BIASES):
            continue
        site = weight._replace(parameter="bias" if role in _BIASES else "weight")
        make = Replacement.of if role.startswith("set") else Full.of
        found[site] = (make(tensors[role], role), (role,))
    for site, (delta, roles) in found.items():
        site.bounds(delta.shape[0])  # refuses rows that the modules cannot share
        if target.swapped:
            found[site] = (delta.rows(halves(delta.shape[0])), roles)
    return found


def _scale(group: Group, module: str, tensors: Mapping[str, Tensor], source: Source) -> Scale:
    """Return the scale of a low-rank group: from its alpha, or its configuration, or none."""
    if "alpha" in tensors:
        stored = tensors["alpha"]
        if stored.size != 1:
            raise ShapeError(
                "alpha is not one number", module=module, found=f"alpha {list(stored.shape)}"
            )
        return Scale(stored.item(), stored)
    component, _, path = module.partition(".")
    config = source.configs.get(component)
    if config is None:
        config, path = source.configs.get(""), _peft_path(group.stem)
    if config is None:
        return Scale()
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ShapeError("alpha_pattern is not a mapping", module=module, found=patterns)
    alpha = _pattern_value(patterns, path)
    if alpha is None:
        alpha = config.get("lora_alpha")
    if alpha is None:
        return Scale()
    if not isinstance(alpha, (int, float)):
        raise ShapeError("alpha is not a number", module=module, found=alpha)
    return Scale(float(alpha), root=bool(config.get("use_rslora")))


def _peft_path(stem: str) -> str:
    return stem.removeprefix("base_model.model.")


def _pattern_value(patterns: Mapping[str, Any], path: str) -> Any:
    """Return the value of the first PEFT pattern that matches a module's path.

    PEFT matches each key as a regular expression on the path or on its end after a dot.
    """
    for pattern, value in patterns.items():
        if _matches(pattern, path):
            return value
    return None


_PLAIN = re.compile(r"[\w.]*\.(\w+)")


@cache
def _pattern(pattern: str) -> tuple[str, re.Pattern[str] | None]:
    """Return what a path must end with, and the expression; None if it is not one."""
    plain = _PLAIN.fullmatch(pattern)
    try:
        return plain[1] if plain else "", re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return pattern, None


def _matches(pattern: str, path: str) -> bool:
    end, expression = _pattern(pattern)
    return path.endswith(end) and (expression is None or expression.match(path) is not None)


def _place(
    adapter: Adapter,
    group: Group,
    sites: Mapping[Site, tuple[Delta, tuple[str, ...]]],
    covered: set[tuple[str, str]],
) -> set[str]:
    """Put a group's deltas into the adapter; return the roles that were taken.

    A module that the file spells twice is an error: which of the two is meant cannot be known.

    Args:
        covered: every module and parameter that has a delta; added to.
    """
    info, taken = adapter.info, set[str]()
    for site, (delta, roles) in sites.items():
        places = {(module, site.parameter) for module in site.modules}
        if not covered.isdisjoint(places):
            info.problems.append(
                Problem(
                    "error",
                    "spelled-twice",
                    site.name,
                    f"the module occurs twice, once as {group.stem}",
                    "remove one of the two spellings",
                )
            )
            continue
        adapter.deltas[site] = delta
        covered |= places
        for role in roles:
            if role in group.roles:
                taken.add(role)
                info.spelling[site, role] = (group.dialect, group.roles[role])
                info.account.used.append(group.roles[role])
    return taken


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
    counts = Counter(g.stem.partition(":")[0] for g in groups if g.dialect == "lora_diffusion")
    family = detection.naming
    for component, count in counts.items():
        known = len(positions(family, component)) if family else 0
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
        if isinstance(delta, Factored) and delta.alpha == 0
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
    if info.dialect == "peft" and not source.configs:
        info.problems.append(
            Problem(
                "warning",
                "alpha-unknown",
                None,
                "PEFT keys without adapter_config.json: alpha is unknown and taken as the rank",
                "put adapter_config.json beside the file",
            )
        )
