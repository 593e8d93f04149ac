"""File → Adapter: every tensor used, carried, or reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta, identical
from loramerge.adapter.formats.numbered import join_numbered
from loramerge.adapter.formats.peft_bases import model_of_transformers
from loramerge.adapter.info import Account, Info, Problem
from loramerge.adapter.kinds import all_words, make_biases, make_weight
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.declaration import Stored
from loramerge.adapter.networks import as_read
from loramerge.adapter.problems import (
    alpha_problems,
    missing_partner,
    not_made,
    of_no_known_name,
    of_other_programs,
    said_twice,
    spelled_alike,
    spelled_twice,
    third_of_strength,
    too_large,
    without_configuration,
    without_heads,
)
from loramerge.adapter.site import Site
from loramerge.adapter.sites import halves, stacked
from loramerge.adapter.source import AdapterSource, open_source
from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group, classify
from loramerge.dialects.detect import detect
from loramerge.dialects.detection import Detection
from loramerge.dialects.fit import Shapes
from loramerge.dialects.owners import with_owners
from loramerge.errors import (
    FormatError,
    LoramergeError,
    ShapeError,
    UnsupportedKind,
    listed,
    nearest,
)
from loramerge.files.tensors import Tensor, same_bytes

__all__ = ["load"]

_NEAREST_MOST = 20  # unknown keys for which the nearest known key is searched


class _Reading:
    """The parts of an adapter, collected group by group.

    Args:
        covered: every module and parameter that has a delta → the stem it is spelled with.
        aside: whether a group is spelled as its dialect is read but never written.
        head: rows of a head in fused tensors that are interleaved by heads; 0 where none is.
    """

    def __init__(self, head: int) -> None:
        self.head = head
        self.deltas: dict[Site, Delta] = {}
        self.account = Account()
        self.problems: list[Problem] = []
        self.spelling: dict[tuple[Site, str], tuple[str, str]] = {}
        self.stems: dict[str, dict[str, str]] = {}
        self.covered: dict[tuple[str, str], str] = {}
        self.dialects = Counter[str]()
        self.unknown: list[str] = []
        self.aside = False


def load(path: str | PathLike[str], *, by_name: bool = False) -> Adapter:
    """Read an adapter of any dialect. Only the header and alphas are read; factors are lazy.

    Args:
        by_name: take the modules by the names that the file has, of whatever family they seem to be.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: if the file cannot be read. FormatError: if it is
        positional and its count is ambiguous.
    """
    source = open_source(path)
    keys = tuple(source.tensors)
    if any(config.get("target_parameters") for config in source.configs.values()):
        from loramerge.adapter.formats.peft_experts import split_experts

        split_experts(source)
    if source.configs:
        from loramerge.adapter.formats.peft_shared import shares, spread_shared

        if any(map(shares, source.configs.values())):
            spread_shared(source)
    join_numbered(source.tensors)
    classified = classify(source.tensors, source.metadata)
    if classified.needs_words:
        classified = classify(source.tensors, source.metadata, all_words())
    if classified.doubled:
        _require_one(source)
    shapes = {
        (group.dialect, group.stem): shape
        for group in classified.groups
        if (shape := _shape(group, source.tensors)) is not None
    }
    detection = _detection(classified.groups, shapes, source, by_name=by_name)
    if any(DIALECTS[name].positional for name in {group.dialect for group in classified.groups}):
        from loramerge.adapter.formats.lora_diffusion import check_positions

        check_positions(classified.groups, detection, source)
    reading = _Reading(_head(detection, keys))
    reading.account.carried.extend(classified.embeddings)
    reading.unknown += _still_unknown(classified.unknown, reading, source)
    for group in with_owners(classified.groups, detection.naming):
        _read_group(reading, group, source, detection)
    info = Info(
        path=source.path,
        files=tuple(source.files),
        size=source.size,
        dialects=dict(reading.dialects),
        detection=detection,
        metadata=source.metadata,
        configs=source.configs,
        translated=source.translated,
        llama_cpp=source.llama_cpp,
        account=reading.account,
        problems=reading.problems,
        spelling=reading.spelling,
        stems=reading.stems,
        aside=reading.aside,
        order=tuple(dict.fromkeys((*keys, *source.tensors))),
    )
    reading.account.unknown.update(_with_nearest(reading.unknown, detection, info.dialect))
    _report_doubled(reading, classified.doubled, source)
    if source.configs:
        from loramerge.adapter.formats.peft_fields import configuration_problems, type_problems

        for component, config in source.configs.items():
            reading.problems += configuration_problems(config)
            types = (  # a lone file may hold others beside those that its header speaks of
                reading.deltas[site].facts.peft_type
                for (site, _), (dialect, _) in reading.spelling.items()
                if DIALECTS[dialect].folder and (site.component == component or not component)
            )
            reading.problems += type_problems(config, {t for t in types if t is not None})
    if source.translated is None:
        reading.problems += of_other_programs(reading.unknown)
    reading.problems += without_heads(reading.deltas)
    reading.problems += alpha_problems(reading.deltas)
    reading.problems += too_large(reading.deltas)
    reading.problems += third_of_strength(source.metadata)
    if info.dialect is not None and not source.configs:
        reading.problems += without_configuration(DIALECTS[info.dialect])
    embeddings = {key: source.tensors[key] for key in classified.embeddings}
    adapter = as_read(Adapter(reading.deltas, embeddings, info))
    return adapter.with_deltas(adapter.deltas, made=Path(source.path))


def _detection(
    groups: Sequence[Group], shapes: Shapes, source: AdapterSource, *, by_name: bool
) -> Detection:
    """Return the family of an adapter, and why."""
    if by_name:
        return Detection((), "its modules are taken by the names that they have in the file")
    if source.model is not None:
        return Detection((), f"the file names {source.model}, which no known family has")
    model = model_of_transformers(source.configs.values())
    if model is not None:
        return Detection((), f"its configuration names {model}, which no known family has")
    return detect(groups, shapes, source.metadata)


def _still_unknown(keys: Sequence[str], reading: _Reading, source: AdapterSource) -> Sequence[str]:
    """Return keys without those of tensors that PEFT reads in training alone, which are noted."""
    if not keys or not source.configs:
        return keys
    from loramerge.adapter.formats.peft_fields import of_training, training_problem

    spare = of_training(keys)
    if spare:
        reading.account.used.extend(spare)
        reading.problems.append(training_problem(spare))
    return [key for key in keys if key not in set(spare)]


def _require_one(source: AdapterSource) -> None:
    """Refuse a file of several adapters, of which none was chosen."""
    from loramerge.adapter.formats.named import names_in

    names = names_in(source.tensors)
    if len(names) > 1:
        raise FormatError(
            f"the file holds {len(names)} adapters, told by names inside its keys",
            file=source.path,
            found=listed(names, 12),
            hint=f"choose one: {source.path}#{names[0]}",
        )


def _read_group(
    reading: _Reading, group: Group, source: AdapterSource, detection: Detection
) -> None:
    """Add the deltas of a group, or report why there are none."""
    target = _target(group, detection)
    weight = Site(target.modules, "weight", target.spans)
    module = weight.name
    try:
        sites = _sites(group, target, weight, module, source, reading.head)
    except (ShapeError, UnsupportedKind) as error:
        reading.problems.append(not_made(error, module))
        reading.unknown += group.roles.values()
        return
    if target.opaque and sites:
        reading.stems.setdefault(target.modules[0], {}).setdefault(group.dialect, group.stem)
    reading.aside |= target.aside
    taken = _place(reading, group, sites)
    if any(
        site in reading.deltas and reading.covered[site.modules[0], site.parameter] == group.stem
        for site in sites
    ):
        reading.dialects[group.dialect] += 1
    left = [key for role, key in group.roles.items() if role not in taken]
    if left:
        reading.unknown += left
        if detection.naming is None or not target.opaque:
            config, _ = _config_of(group, module, source)
            peft_type = (config or {}).get("peft_type")
            reading.problems.append(missing_partner(module, group.roles.keys() - taken, peft_type))
    elif target.opaque and detection.naming is not None:
        reading.problems.append(of_no_known_name(module, detection.naming))


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


class _Named(NamedTuple):
    """The modules that a group's stem names.

    Args:
        modules, spans, swapped: see `Fused`.
        shape: of the weights of all of them together in the family, None if that is not known.
        opaque: the family knows nothing of it.
        aside: the dialect never writes it so.
    """

    modules: tuple[str, ...]
    spans: tuple[int, ...] = ()
    swapped: bool = False
    shape: tuple[int, ...] | None = None
    opaque: bool = False
    aside: bool = False


def _target(group: Group, detection: Detection) -> _Named:
    """Return the modules of a group.

    What the family does not know is a module all the same, named as the file spells it.
    """
    dialect, family = DIALECTS[group.dialect], detection.naming
    stem = None if family is None else stem_table(dialect, family).get(group.stem)
    if stem is not None:
        aside = not dialect.forms[stem.form].written
        return _Named(stem.modules, stem.spans, stem.swapped, stem.shape, aside=aside)
    named = dialect.opaque_module(group.stem)
    known = None if family is None else family.find(named)
    return _Named((named,), shape=known and known.shape, opaque=known is None)


def _head(detection: Detection, keys: Sequence[str]) -> int:
    """Return the rows of a head in fused tensors, if the file's keys tell that heads interleave."""
    family = detection.naming
    if family is None or family.interleaved is None:
        return 0
    words, width = family.interleaved
    return width if any(word in key for key in keys for word in words) else 0


def _sites(
    group: Group, target: _Named, weight: Site, module: str, source: AdapterSource, head: int
) -> dict[Site, tuple[Delta, tuple[str, ...]]]:
    """Return the deltas a group holds, each with the roles it takes."""
    tensors = {role: source.tensors[key] for role, key in group.roles.items()}
    found: dict[Site, tuple[Delta, tuple[str, ...]]] = {}
    config, path = _config_of(group, module, source)
    stored = Stored(
        tensors,
        lambda: _scale(group, module, tensors, source),
        module,
        target.shape,
        config or {},
        path,
    )
    made = make_weight(stored)
    if made is not None:
        found[weight] = made.delta, made.roles
    for beside in make_biases(stored, made):
        found[weight._replace(parameter=beside.parameter)] = beside.delta, beside.roles
    for site, (delta, roles) in found.items() if target.spans or target.swapped else ():
        site.bounds(delta.shape[0])  # refuses rows that the modules cannot share
        if target.swapped:
            found[site] = (delta.rows(halves(delta.shape[0])), roles)
        elif head:
            found[site] = (delta.rows(stacked(delta.shape[0], len(target.spans), head)), roles)
    return found


def _config_of(
    group: Group, module: str, source: AdapterSource
) -> tuple[Mapping[str, Any] | None, str]:
    """Return PEFT's configuration of a module, if there is one, and its name there."""
    if not source.configs:
        return None, group.stem
    component, _, path = module.partition(".")
    config = source.configs.get(component)
    if config is None:
        config, path = source.configs.get(""), _peft_path(group.stem)
    return config, source.paths.get(group.stem, path)


def _scale(
    group: Group, module: str, tensors: Mapping[str, Tensor], source: AdapterSource
) -> Scale:
    """Return the scale of a group's factors: from its tensors, or its configuration, or none."""
    alpha, ratio = tensors.get("alpha"), tensors.get("scale")
    for role, tensor in (("alpha", alpha), ("scale", ratio)):
        if tensor is not None and tensor.size != 1:
            raise ShapeError(
                f"{role} is not one number",
                module=module,
                found=f"{role} {list(tensor.shape)}",
            )
    if alpha is not None or ratio is not None:
        return Scale(
            None if alpha is None else alpha.item(),
            alpha,
            ratio=None if ratio is None else ratio.item(),
            stated=ratio,
        )
    config, path = _config_of(group, module, source)
    if config is None:
        return Scale()
    from loramerge.adapter.formats.peft import scale_of

    return scale_of(config, path, module, tensors)


def _peft_path(stem: str) -> str:
    return stem.removeprefix("base_model.model.")


def _place(
    reading: _Reading, group: Group, sites: Mapping[Site, tuple[Delta, tuple[str, ...]]]
) -> set[str]:
    """Add a group's deltas to those read; return the roles that were taken.

    A module that the file spells twice is an error, because either could be meant, unless both are
    equal to the last bit.
    """
    taken, covered = set[str](), reading.covered
    for site, (delta, roles) in sites.items():
        places = [(module, site.parameter) for module in site.modules]
        before = next((covered[place] for place in places if place in covered), None)
        here = [role for role in roles if role in group.roles]
        if before is not None and not (
            site in reading.deltas and identical(reading.deltas[site], delta)
        ):
            reading.problems.append(spelled_twice(site.name, before, group.stem))
            continue
        taken.update(here)
        reading.account.used.extend(group.roles[role] for role in here)
        if before is not None:
            reading.problems.append(spelled_alike(site.name))
            continue
        reading.deltas[site] = delta
        covered.update(dict.fromkeys(places, group.stem))
        for role in here:
            reading.spelling[site, role] = (group.dialect, group.roles[role])
    return taken


def _report_doubled(
    reading: _Reading, doubled: list[tuple[str, str]], source: AdapterSource
) -> None:
    """Account for keys that repeat another key of their stem."""
    used = set(reading.account.used) if doubled else set()
    for key, before in doubled:
        if before not in used:
            reading.account.unknown[key] = None
        elif same_bytes(source.tensors[key], source.tensors[before]):
            reading.account.used.append(key)
            reading.problems.append(spelled_alike(key))
        else:
            reading.account.unknown[key] = before
            reading.problems.append(said_twice(key, before))


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
