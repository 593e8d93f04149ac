"""The roles a tensor of an adapter can play, and the kinds that sets of roles make.

A role is our word for what a suffix says. Kinds whose roles are listed in `FOREIGN` are recognised
and named, but not computed with yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

__all__ = ["FOREIGN", "LYCORIS_ROLES", "kind_of"]

# kind → the roles any of which betrays it; checked in this order
FOREIGN: Mapping[str, frozenset[str]] = {
    "loha": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
    "lokr": frozenset(
        {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
    ),
    "oft": frozenset({"oft_blocks", "oft_diag", "rescale"}),
    "ia3": frozenset({"on_input", "ia3_weight"}),
    "glora": frozenset({"a1", "a2", "b1", "b2", "bm"}),
    "dora": frozenset({"dora_scale"}),
    "lora-embedding": frozenset({"embedding_down", "embedding_up"}),
    "lora-bias": frozenset({"up_bias"}),
    "sparse-bias": frozenset({"bias_indices", "bias_values", "bias_size"}),
    "scaled": frozenset({"scale"}),
}

LYCORIS_ROLES: Mapping[str, tuple[str, ...]] = {
    **{
        role: (f".{role}",)
        for kind in ("loha", "lokr", "oft", "sparse-bias")
        for role in sorted(FOREIGN[kind])
    },
    **{role: (f".{role}.weight",) for role in sorted(FOREIGN["glora"])},
    "on_input": (".on_input",),
    "ia3_weight": (".weight",),
    "dora_scale": (".dora_scale", ".magnitude"),
    "scale": (".scale",),
}


def kind_of(roles: Set[str]) -> str | None:
    """Return the kind a module's roles make, or None if partners are missing.

    `lora` and `tucker` need both halves; `full`, `bias` and `norm` stand alone; `set` replaces.
    """
    for kind, betraying in FOREIGN.items():
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
