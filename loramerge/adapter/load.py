"""File → Adapter: every tensor used, carried, or reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.collected import Collected
from loramerge.adapter.groups import (
    configuration_of,
    deltas_of,
    head_rows,
    read_numbers,
    shape_of,
    target_of,
)
from loramerge.adapter.info import Info, Problem
from loramerge.adapter.kinds import all_words
from loramerge.adapter.networks import as_read
from loramerge.adapter.problems import (
    alpha_problems,
    in_other_names,
    missing_partner,
    not_made,
    of_no_known_name,
    of_other_programs,
    third_of_strength,
    too_large,
    without_configuration,
    without_heads,
)
from loramerge.adapter.source import AdapterSource, open_source
from loramerge.dialects import DIALECTS
from loramerge.dialects.classify import Classified, Group, classify
from loramerge.dialects.detect import detect
from loramerge.dialects.detection import Detection
from loramerge.dialects.fit import Shapes
from loramerge.dialects.owners import with_owners
from loramerge.errors import FormatError, ShapeError, UnsupportedKind, listed

__all__ = ["load"]


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
    _split(source)
    classified = _classified(source)
    shapes = {
        (group.dialect, group.stem): shape
        for group in classified.groups
        if (shape := shape_of(group, source.tensors)) is not None
    }
    detection = _detection(classified.groups, shapes, source, by_name=by_name)
    if any(DIALECTS[name].positional for name in {group.dialect for group in classified.groups}):
        from loramerge.adapter.formats.lora_diffusion import check_positions

        check_positions(classified.groups, detection, source)
    found = Collected()
    groups = _in_usual_names(classified.groups, detection, found)
    found.account.carried.extend(classified.embeddings)
    found.unknown += _still_unknown(classified.unknown, found, source)
    head = head_rows(detection, keys)
    read_numbers(groups, source)
    for group in with_owners(groups, detection.naming):
        _read_group(found, group, source, detection, head)
    info = Info(
        path=source.path,
        files=tuple(source.files),
        size=source.size,
        dialects=dict(found.dialects),
        detection=detection,
        metadata=source.metadata,
        configs=source.configs,
        translated=source.translated,
        llama_cpp=source.llama_cpp,
        account=found.account,
        problems=found.problems,
        spelling=found.spelling,
        stems=found.stems,
        aside=found.aside,
        order=tuple(dict.fromkeys((*keys, *source.tensors))),
    )
    found.account_for_unknown(detection, info.dialect)
    found.account_for_doubled(classified.doubled, source.tensors)
    found.problems.extend(_problems(found, source, info.dialect))
    embeddings = {key: source.tensors[key] for key in classified.embeddings}
    adapter = as_read(Adapter(found.deltas, embeddings, info))
    return adapter.with_deltas(adapter.deltas, made=Path(source.path))


def _in_usual_names(
    groups: Sequence[Group], detection: Detection, found: Collected
) -> Sequence[Group]:
    """Return the groups of a file by the names that their family has, and tell of others."""
    if not detection.respelled:
        return groups
    renamed = []
    for group in groups:
        dialect, stem = detection.respelled.get((group.dialect, group.stem), group[:2])
        renamed.append(Group(dialect, stem, group.roles))
        if stem != group.stem:
            ends = {key: key.removeprefix(group.stem) for key in group.roles.values()}
            found.usual |= {key: f"{stem}{end}" for key, end in ends.items() if end != key}
    found.aside = True
    found.problems.append(in_other_names(detection))
    return renamed


def _split(source: AdapterSource) -> None:
    """Give every module tensors of its own where a file stores those of several as one."""
    if any(config.get("target_parameters") for config in source.configs.values()):
        from loramerge.adapter.formats.peft_experts import split_experts

        split_experts(source)
    if source.configs:
        from loramerge.adapter.formats.peft_shared import shares, spread_shared

        if any(map(shares, source.configs.values())):
            spread_shared(source)
    if _are_numbered(source.tensors):
        from loramerge.adapter.formats.numbered import join_numbered

        join_numbered(source.tensors)


def _are_numbered(keys: Iterable[str]) -> bool:
    """Return whether any key ends with a number, as those of factors in parts do."""
    weight = ".weight"
    place = -1 - len(weight)
    lasts = {key[place : place + 1] if key.endswith(weight) else key[-1:] for key in keys}
    return any(last.isdigit() for last in lasts)


def _classified(source: AdapterSource) -> Classified:
    """Sort the keys of a file.

    Raises:
        FormatError: if the file holds several adapters, of which none was chosen.
    """
    classified = classify(source.tensors, source.metadata)
    if classified.needs_words:
        classified = classify(source.tensors, source.metadata, all_words())
    if classified.doubled:
        from loramerge.adapter.formats.named import names_in

        names = names_in(source.tensors)
        if len(names) > 1:
            raise FormatError(
                f"the file holds {len(names)} adapters; their names are in its keys",
                file=source.path,
                found=listed(names, 12),
                hint=f"choose one: {source.path}#{names[0]}",
            )
    return classified


def _detection(
    groups: Sequence[Group], shapes: Shapes, source: AdapterSource, *, by_name: bool
) -> Detection:
    """Return the family of an adapter, and why."""
    if by_name:
        return Detection((), "its modules are taken by the names that they have in the file")
    if source.model is not None:
        return Detection((), f"the file names {source.model}, which no known family has")
    if source.configs:
        from loramerge.adapter.formats.peft_bases import model_of_transformers

        model = model_of_transformers(source.configs.values())
        if model is not None:
            return Detection((), f"its configuration names {model}, which no known family has")
    return detect(groups, shapes, source.metadata)


def _still_unknown(keys: Sequence[str], found: Collected, source: AdapterSource) -> Sequence[str]:
    """Return keys without those of tensors that PEFT reads in training alone, which are noted."""
    if not keys or not source.configs:
        return keys
    from loramerge.adapter.formats.peft_fields import of_training, training_problem

    spare = of_training(keys)
    if spare:
        found.account.used.extend(spare)
        found.problems.append(training_problem(spare))
    return [key for key in keys if key not in set(spare)]


def _read_group(
    found: Collected, group: Group, source: AdapterSource, detection: Detection, head: int
) -> None:
    """Add the deltas of a group, or report why there are none."""
    target = target_of(group, detection)
    try:
        sites = deltas_of(group, target, source, head)
    except (ShapeError, UnsupportedKind) as error:
        found.problems.append(not_made(error, target.site.name))
        found.unknown += group.roles.values()
        return
    if target.opaque and sites:
        found.stems.setdefault(target.site.modules[0], {}).setdefault(group.dialect, group.stem)
    found.aside |= target.aside
    taken = found.add(group, sites)
    if len(taken) < len(group.roles):
        found.unknown += [key for role, key in group.roles.items() if role not in taken]
        if detection.naming is None or not target.opaque:
            module = target.site.name
            config, _ = configuration_of(group, module, source)
            peft_type = (config or {}).get("peft_type")
            found.problems.append(missing_partner(module, group.roles.keys() - taken, peft_type))
    elif target.opaque and detection.naming is not None:
        found.problems.append(of_no_known_name(target.site.name, detection.naming))


def _problems(found: Collected, source: AdapterSource, dialect: str | None) -> Iterator[Problem]:
    """Yield the problems of the file as a whole, and those that every delta is examined for."""
    if source.configs:
        from loramerge.adapter.formats.peft_fields import configuration_problems, type_problems

        for component, config in source.configs.items():
            yield from configuration_problems(config)
            types = (  # a lone file may hold others beside those that its header speaks of
                found.deltas[site].facts.peft_type
                for (site, _), (name, _) in found.spelling.items()
                if DIALECTS[name].folder and (site.component == component or not component)
            )
            yield from type_problems(config, {t for t in types if t is not None})
    if source.translated is None:
        yield from of_other_programs(found.unknown)
    if found.stems:  # no family has modules of llama.cpp's names
        yield from without_heads(found.deltas)
    yield from alpha_problems(found.deltas)
    yield from too_large(found.deltas)
    yield from third_of_strength(source.metadata)
    if dialect is not None and not source.configs:
        yield from without_configuration(DIALECTS[dialect])
