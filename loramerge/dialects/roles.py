"""The roles a tensor of an adapter can play, and the kinds that sets of roles make.

A role is our word for what a suffix says. Kinds whose roles are listed in `FOREIGN` are recognised
and named, but not computed with.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

__all__ = ["BETRAYING", "FOREIGN", "LYCORIS_ROLES", "PEFT_ROLES", "kind_of"]

# `.oft_diag` of early LyCORIS: what it meant changed between versions, and none reads it today
FOREIGN: Mapping[str, frozenset[str]] = {"oft-diag": frozenset({"oft_diag"})}

# kind → the roles any of which betrays it; checked in this order, so that what changes another
# kind's meaning (a magnitude, a sparse rest) comes before it
BETRAYING: Mapping[str, frozenset[str]] = {
    **FOREIGN,
    "dora": frozenset({"dora_scale", "magnitude"}),
    "sparse-bias": frozenset({"bias_indices", "bias_values", "bias_size"}),
    "loha": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
    "lokr": frozenset(
        {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
    ),
    "oft": frozenset({"oft_blocks", "rescale"}),
    "ia3": frozenset({"on_input", "ia3_weight"}),
    "glora": frozenset({"a1", "a2", "b1", "b2", "bm"}),
    "peft-oft": frozenset({"oft_r"}),
    "peft-boft": frozenset({"boft_r", "boft_s"}),
    "peft-ia3": frozenset({"ia3_l"}),
    "lora-embedding": frozenset({"embedding_down", "embedding_up"}),
}

LYCORIS_ROLES: Mapping[str, tuple[str, ...]] = {
    **{
        role: (f".{role}",)
        for kind in ("loha", "lokr", "oft", "oft-diag", "sparse-bias")
        for role in sorted(BETRAYING[kind])
    },
    **{role: (f".{role}.weight",) for role in sorted(BETRAYING["glora"])},
    "on_input": (".on_input",),
    "ia3_weight": (".weight",),
    "dora_scale": (".dora_scale", ".magnitude"),
    "scale": (".scale",),
}

# those of PEFT's other types of adapters; the name of the adapter is left out of saved keys
PEFT_ROLES: Mapping[str, tuple[str, ...]] = {
    **{role: (f".{role}",) for kind in ("loha", "lokr") for role in sorted(BETRAYING[kind])},
    "oft_r": (".oft_R.weight", ".oft_R.default.weight"),
    "boft_r": (".boft_R", ".boft_R.default"),
    "boft_s": (".boft_s", ".boft_s.default"),
    "ia3_l": (".ia3_l", ".ia3_l.default"),
}


def kind_of(roles: Set[str]) -> str | None:
    """Return the kind a module's roles make, or None if partners are missing.

    `lora` and `tucker` need both halves; `full`, `bias` and `norm` stand alone; `set` replaces. A
    bias of the second factor and a `.scale` beside change nothing about the kind.
    """
    for kind, betraying in BETRAYING.items():
        if roles & betraying:
            return kind
    if {"up", "down"} <= roles:
        return "tucker" if "mid" in roles else "lora"
    if roles & {"up", "down", "mid"}:
        return None
    if roles & {"w_norm", "b_norm"}:
        return "norm"
    if "diff" in roles:
        return "full"
    if "diff_b" in roles:
        return "bias"
    if roles & {"set_weight", "set_bias"}:
        return "set"
    return None
