"""OneTrainer's keys of diffusion transformers: diffusers' names, split; or the original's names, whose
fused tensors are numbered by parts. Families state which of both they have.
"""

from __future__ import annotations

from loramerge.dialects.native import spell_native, spell_parts
from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import Prefixes, both, ending, flat, path, prefixes, spell
from loramerge.dialects.suffixes import KOHYA
from loramerge.families import Family

__all__ = ["DIALECT"]

_NETWORK = "transformer"
_FLAT = "lora_transformer_"
_PREFIXES = prefixes("onetrainer", {_NETWORK: (_FLAT,)})
_DOTTED = ending(_PREFIXES, ".")


def _of(*, network: bool) -> Prefixes:
    """Return the dotted prefixes, of the network or of the text encoders alone."""

    def of(family: Family, component: str) -> tuple[str, ...]:
        return _DOTTED(family, component) if (component == _NETWORK) == network else ()

    return of


DIALECT = Dialect(
    name="onetrainer",
    title="OneTrainer: diffusers' names, split (or the original's names with numbered parts)",
    example="lora_transformer_single_transformer_blocks_0_attn_to_k.lora_down.weight",
    order=6,
    forms=(
        Form(spell(ending(_PREFIXES, "_"), flat), KOHYA, ("lycoris",)),
        Form(
            both(
                spell_parts(_of(network=True)),
                spell_native(_of(network=True), aliases={"img_in": "img_in.proj"}),
                spell(_of(network=False), path),
            ),
            KOHYA,
            ("lycoris",),
        ),
    ),
    alpha="tensor",
    prefixes={_FLAT: _NETWORK},
    marked_after=("", f"{_NETWORK}."),
    writable="any module of a known diffusion transformer",
)
