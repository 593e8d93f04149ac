"""Mix adapters: combine them site by site, and keep their other tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from loramerge.adapter import Adapter, Info, Site, widest
from loramerge.adapter.formats.peft_configuration import common_configuration
from loramerge.adapter.metadata import combined as combined_metadata
from loramerge.adapter.opaque import common_stems, commonly_named
from loramerge.algebra.budget import Cut
from loramerge.algebra.combine import SUM, combine_each
from loramerge.algebra.fair import combine_fairly
from loramerge.algebra.method import Method
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.algebra.ranks import RankRule, check_errors
from loramerge.algebra.terms import Term, require_base_free, terms_of
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.dialects.detection import Detection
from loramerge.errors import AdapterError, FamilyError, Setting, ShapeError, UsageError
from loramerge.events import Note, Notify, Warn, ignore
from loramerge.files.spool import Keep, in_memory
from loramerge.files.tensors import Tensor

__all__ = [
    "EMBEDDING_CHOICES",
    "common_detection",
    "frame_of",
    "method_on",
    "mix",
    "require_one_base",
]

EMBEDDING_CHOICES = ("all", "first", "none")


def mix(
    inputs: Sequence[tuple[Adapter, Weight]],
    rule: RankRule = RankRule(),
    *,
    method: Method = SUM,
    embeddings: str = "all",
    fair: bool = False,
    sizes: SizeModel | None = None,
    target: Dialect | None = None,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    keep: Keep = in_memory,
    notify: Notify = ignore,
) -> tuple[Adapter, Combined]:
    """Return the adapters combined site by site, by default to the exact sum `Σ wᵢ ΔWᵢ`.

    Ranks may differ, an adapter may lack sites, weights may be negative; a weight of 0 removes the
    adapter from the site. Sites that only one adapter has keep its factors. Ranks are lowered only
    by the rule, or if the method works on dense matrices.

    Args:
        inputs: adapters with weights, at least one.
        method: a merge operator with its parameters.
        fair: cut so that the adapter that loses most loses little; see `algebra.fair`.
        embeddings: `all` carries all and refuses a clash of names, `first` lets the first adapter
            win, `none` leaves them out.
        target: the dialect to write; ranks are counted per site that it stores.
        precise: for float64 output, see `svd.decompose`.
        keep: holds the tensors of the result until they are written.

    Raises:
        FamilyError: if two adapters belong to different families.
        AdapterError: if names of embeddings clash, or content is broken.
        ShapeError: if two deltas of a site differ in shape.
    """
    if not inputs:
        raise UsageError("mix needs at least one adapter")
    for adapter, _ in inputs:
        adapter.require_sound()
    named = commonly_named([adapter for adapter, _ in inputs])
    inputs = [(one, weight) for one, (_, weight) in zip(named, inputs, strict=True)]
    require_base_free(inputs, rule)
    method.require_count(len(inputs))
    terms = terms_of(inputs, target, one_weight=not method.is_sum)
    frame = frame_of([adapter for adapter, _ in inputs], embeddings, notify)
    used = {term.position for found in terms.values() for term in found}
    counting = [adapter for place, (adapter, _) in enumerate(inputs) if place in used]
    if not terms:
        raise UsageError("all weights are 0, so nothing is left to write")
    method = method_on(frame, terms, method)
    for text in method.described(terms):
        notify(Note(text))
    try:
        work: Any = partial(combine_fairly, ingredients=terms) if fair else combine_each
        (result,) = work(
            terms,
            cuts=[Cut(rule, sizes)],
            method=method,
            device=device,
            precise=precise or any(adapter.dtype == "F64" for adapter in counting),
            threads=threads,
            task="mixing",
            keep=keep,
            notify=notify,
        )
    except ShapeError as error:
        error.file = error.file or " and ".join(adapter.label for adapter, _ in inputs)
        raise
    check_errors(rule, result.error_under(rule), result.worst)
    return frame.with_deltas(result.deltas), result


def method_on(frame: Adapter, terms: Mapping[Site, Sequence[Term]], method: Method) -> Method:
    """Return a method for the modules of a mix; see `Method.on`."""
    if not method.rules:
        return method
    return method.on(frame.with_deltas({site: found[0].delta for site, found in terms.items()}))


def require_one_base(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters whose configurations name different bases.

    A name counts without its folder or owner, in any case, and without the words for a quantised copy.

    Raises:
        FamilyError: naming two of them.
    """
    named: dict[str, tuple[str, Adapter]] = {}
    for adapter in adapters:
        for config in adapter.info.configs.values():
            base = config.get("base_model_name_or_path")
            if isinstance(base, str) and base:
                named.setdefault(_model_name(base), (base, adapter))
    if len(named) > 1:
        (one, first), (other, second) = list(named.values())[:2]
        raise FamilyError(
            "the adapters were trained on different bases, so their changes cannot be added",
            file=f"{first.label} and {second.label}",
            found=f"{one} and {other}",
            hint=(
                "if both are the same weights, name them: ",
                Setting("base", "B"),
                "; or write one name as base_model_name_or_path into both adapter_config.json",
            ),
        )


def _model_name(base: str) -> str:
    name = base.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return name.removesuffix("-bnb-4bit").removesuffix("-unsloth")


def frame_of(adapters: Sequence[Adapter], embeddings: str, notify: Notify = ignore) -> Adapter:
    """Return a mix of adapters without its deltas: embeddings, configurations, spelling."""
    networks = {adapter.info.network for adapter in adapters}
    info = Info(
        dialects=dict(sum((Counter(a.info.dialects) for a in adapters), Counter())),
        detection=common_detection(adapters, notify),
        metadata=combined_metadata(a.info.metadata for a in adapters)
        if len(adapters) > 1
        else dict(adapters[0].info.metadata),
        configs=adapters[0].info.configs if len(adapters) == 1 else _common_configs(adapters),
        spelling=_common_spelling(adapters),
        stems=common_stems(adapters),
        llama_cpp=_common_llama_cpp(adapters),
        dtype=widest({adapter.dtype for adapter in adapters}),
        network=next(iter(networks)) if len(networks) == 1 else "",
    )
    return Adapter({}, _united_embeddings(adapters, embeddings), info)


def common_detection(adapters: Sequence[Adapter], notify: Notify = ignore) -> Detection:
    """Return the families that all adapters can belong to.

    Raises:
        FamilyError: if there is no such family.
    """
    detections = [adapter.info.detection for adapter in adapters]
    first = detections[0]
    for adapter, detection in zip(adapters, detections, strict=True):
        if bool(detection.candidates) != bool(first.candidates):
            raise FamilyError(
                "only one of the adapters belongs to a known family",
                file=f"{adapters[0].label} and {adapter.label}",
                expected=first.name or "an unknown family",
                found=detection.name or "an unknown family",
                hint="inspect both files to see their modules",
            )
    if not first.candidates:
        shared = set.intersection(*(set(a.deltas) for a in adapters))
        if len(adapters) > 1 and not shared:
            notify(Warn("the adapters have no module in common; were they trained on one base?"))
        return first
    common = [f for f in first.candidates if all(f in d.candidates for d in detections)]
    if not common:
        raise FamilyError(
            "the adapters belong to different families and cannot be mixed",
            file=" and ".join(adapter.label for adapter in adapters),
            found=" and ".join(dict.fromkeys(d.name or "?" for d in detections)),
            hint="an adapter works only with bases of its own family",
        )
    return Detection(tuple(common), "; ".join(dict.fromkeys(d.reason for d in detections)))


def _common_spelling(
    adapters: Sequence[Adapter],
) -> dict[tuple[Site, str], tuple[str, str]]:
    """Return spellings on which no two adapters disagree, independent of their order."""
    found: dict[tuple[Site, str], tuple[str, str]] = {}
    contradicted: set[tuple[Site, str]] = set()
    for adapter in adapters:
        for place, spelled in adapter.info.spelling.items():
            if found.setdefault(place, spelled) != spelled:
                contradicted.add(place)
    return {place: spelled for place, spelled in found.items() if place not in contradicted}


def _common_llama_cpp(adapters: Sequence[Adapter]) -> Mapping[str, str | int]:
    """Return what all adapters that tell it say of the model in llama.cpp, nothing if they disagree."""
    told = [adapter.info.llama_cpp for adapter in adapters if adapter.info.llama_cpp]
    found = {key: value for one in told for key, value in one.items()}
    return found if all(found[k] == v for one in told for k, v in one.items()) else {}


def _common_configs(adapters: Sequence[Adapter]) -> dict[str, dict[str, Any]]:
    """Return the fields that all configurations of a component agree on."""
    return {
        component: common_configuration([a.info.configs.get(component, {}) for a in adapters])
        for component in adapters[0].info.configs
    }


def _united_embeddings(adapters: Sequence[Adapter], choice: str) -> dict[str, Tensor]:
    if choice == "none":
        return {}
    united: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    for adapter in adapters:
        for key, tensor in adapter.embeddings.items():
            if key not in united:
                united[key], owner[key] = tensor, adapter.label
            elif choice != "first" and bytes(united[key].raw()) != bytes(tensor.raw()):
                raise AdapterError(
                    "two adapters have different embeddings of one name",
                    file=f"{owner[key]} and {adapter.label}",
                    module=key,
                    hint=(
                        Setting("embeddings", "first"),
                        " keeps the first adapter's, ",
                        Setting("embeddings", "none"),
                        " leaves both out",
                    ),
                )
    return united
