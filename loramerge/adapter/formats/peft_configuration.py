"""Configurations that PEFT reads: kinds, ranks and alphas of every module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.formats.peft_experts import with_parameters
from loramerge.adapter.formats.peft_fields import TRAINING
from loramerge.adapter.formats.peft_lokr import lokr_config
from loramerge.adapter.formats.peft_patterns import pattern_value
from loramerge.adapter.kinds.token_rows import TokenRows
from loramerge.adapter.site import Site
from loramerge.dialects import DIALECTS
from loramerge.errors import NotExpressible, Setting, listed
from loramerge.families.levels import without_text_model

__all__ = ["by_component", "common_configuration", "peft_config", "rank_patterns"]


def by_component(
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


def peft_config(adapter: Adapter, component: str, deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """Return adapter_config.json of a component; other fields of the source are kept."""
    configs = adapter.info.configs
    own = configs.get(component, configs.get("", {})) if _configured(adapter) else {}
    deltas, parameters = with_parameters(deltas)
    kind = _peft_type(adapter, component, deltas, own)
    if own.get("peft_type", "LORA") != kind:  # fields of another type say nothing of this one
        own = {name: value for name, value in own.items() if name in _OF_ALL_TYPES}
    own = {name: value for name, value in own.items() if name not in TRAINING}
    config: dict[str, Any] = {"peft_type": kind, **own, "inference_mode": True}
    if kind == "LORA":
        dora = any(delta.kind == "dora" for delta in deltas.values())
        config = {"bias": "none", **config} | rank_patterns(deltas, scaled=True, alpha="lora_alpha")
        config |= {"use_rslora": False, "use_dora": dora, "init_lora_weights": True}
        if any(
            site.parameter == "bias" and d.facts.peft_type for site, d in adapter.deltas.items()
        ):
            config["lora_bias"] = True
    elif kind == "LOHA":
        config |= rank_patterns(deltas, scaled=True, alpha="alpha")
        config["use_effective_conv2d"] = any("hada_t1" in d.stored() for d in deltas.values())
    elif kind == "LOKR" and own.get("peft_type") == "LOKR":
        config |= rank_patterns(deltas, scaled=True, alpha="alpha") | _lokr_ranks(deltas, own)
    elif kind == "LOKR":
        made = lokr_config(deltas)
        ranks, alphas = made.pop("ranks"), made.pop("alphas")
        config |= made | _tables(ranks, alphas, "alpha")
    targets = sorted(
        path for path, d in deltas.items() if d.facts.peft_type and path not in parameters
    )
    if not _chosen_as_before(adapter, component, own, targets):
        config = {name: value for name, value in config.items() if name not in _CHOICE}
        config["target_modules"] = targets
        if parameters or own.get("target_parameters"):
            config["target_parameters"] = sorted(parameters) or None
    return config | _beside_factors(adapter, component, own)


def _beside_factors(adapter: Adapter, component: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields for tensors beside the factors: whole modules, and rows of tokens."""
    found: dict[str, Any] = {}
    here = {
        without_text_model(
            site.modules[0].removeprefix(f"{component}.") if component else site.modules[0]
        ): d
        for site, d in adapter.deltas.items()
        if site.parameter == "weight" and (site.component == component or not component)
    }
    replaced = sorted(path for path, delta in here.items() if delta.kind == "set")
    if "modules_to_save" not in own and replaced:
        found["modules_to_save"] = replaced
    tokens = {path: list(d.tokens) for path, d in here.items() if isinstance(d, TokenRows)}
    if tokens or own.get("trainable_token_indices"):
        found["trainable_token_indices"] = tokens or None
    return found


_OF_ALL_TYPES = frozenset({
    "base_model_name_or_path", "revision", "task_type", "modules_to_save", "auto_mapping", "bias",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out",
})  # fmt: skip

# fields by which PEFT chooses modules; one says little without the others
_CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def _chosen_as_before(
    adapter: Adapter, component: str, own: Mapping[str, Any], targets: Collection[str]
) -> bool:
    """Return whether a configuration that was read chooses just the modules that are written.

    It does if they are those of the file; only lists of names are looked into.
    """
    kept = own.get("target_modules")
    if not isinstance(kept, list) or not all(
        any(path == t or path.endswith(f".{t}") for t in kept) for path in targets
    ):
        return False
    of_file = {s for s, _ in adapter.info.spelling if s.component == component or not component}
    here = {s for s in adapter.deltas if s.component == component or not component}
    return of_file == here


def common_configuration(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that all configurations agree on.

    Those that choose modules are kept only if all of them agree.
    """
    same = {
        name: value
        for name, value in configs[0].items()
        if all(name in config and config[name] == value for config in configs)
    }
    if all(config.get(name) == configs[0].get(name) for config in configs for name in _CHOICE):
        return same
    return {name: value for name, value in same.items() if name not in _CHOICE}


def _configured(adapter: Adapter) -> bool:
    """Return whether the adapter came with a configuration of its own."""
    dialect = adapter.info.dialect
    return dialect is not None and DIALECTS[dialect].alpha == "config"


def _peft_type(
    adapter: Adapter, component: str, deltas: Mapping[str, Delta], own: Mapping[str, Any]
) -> str:
    """Return the one PEFT type of a component's deltas.

    Raises:
        NotExpressible: if there are several; if only some modules are DoRA, of which PEFT would
            make all; or if PEFT's kind of that name is another ((IA)³ and rotations can be written
            only if they came from PEFT).
    """
    read = str(own.get("peft_type") or "LORA")
    found = {d.facts.peft_type for d in deltas.values() if d.facts.peft_type is not None} or {read}
    dora = {d.kind == "dora" for d in deltas.values() if d.facts.peft_type == "LORA"}
    unread = found - {"LORA", "LOHA", "LOKR", read}
    if len(found) == 1 and len(dora) < 2 and not unread:
        return found.pop()
    kinds = sorted({delta.kind for delta in deltas.values()})
    raise NotExpressible(
        f"a PEFT configuration cannot describe {' and '.join(kinds)} together"
        if not unread
        else f"a PEFT configuration of {' and '.join(kinds)} cannot be derived from the tensors",
        file=adapter.info.path,
        module=listed(list(deltas), 4),
        expected="one kind in all modules of a component",
        hint=(
            "write kohya: ",
            Setting("to", "kohya"),
            "; or make it plain LoRA with ",
            Setting("base", "B"),
            " and a rank",
        ),
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


def rank_patterns(deltas: Mapping[str, Delta], *, scaled: bool, alpha: str) -> dict[str, Any]:
    """Return r, alpha and the patterns that give every module its rank and scale.

    Args:
        alpha: the name of alpha in the configuration.
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
