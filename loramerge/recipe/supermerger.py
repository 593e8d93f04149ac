"""The recipe of a LoRA merged by sd-webui-supermerger, from the metadata it writes.

With metadata set to "merge" or "save all", supermerger writes `sshs_cp0`, `sshs_cp1`, … into the
header: each a JSON object, the metadata of one input in the order of the merge, and in it

- `ss_output_name`: the input's file name without its ending;
- `sshs_ratio`: the ratio as typed;
- `sshs_blocks`: the ratio of each block, as used: 26 numbers, BASE, IN00 … IN11, MID, OUT00 … OUT11
  (shorter vectors were widened with 0), or the 61 of Flux. In July 2023 they were 17.

It records none of its settings. Its default merge is kohya's factor sum, except that a ratio goes
into up and down with its sign, so that the sign is lost; modules in no block take the ratio of BASE,
which in a merge of Flux LoRAs are all modules. "same to Strength" takes the root of each ratio, with
the sign on down only, which makes PEFT's linear combination.

Source: `lmerge`, `merge_lora_models`, `blockfromkey`, `prepare_merge_metadata` and
`create_merge_metadata` in scripts/mergers/pluslora.py at 0b1c491 (2025-11-28); the metadata is the
same since d16a115 (2023-07-19).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loramerge.errors import CorruptFile, listed
from loramerge.files.json_values import values_in

__all__ = ["recipe_of"]

_PART = re.compile(r"sshs_cp(0|[1-9][0-9]{0,3})")
_LENGTHS = (17, 26, 61)
_FLUX_LENGTH = 61
_STEP = "merge"


@dataclass(frozen=True)
class _Input:
    """One input, as the metadata describes it.

    Args:
        ratios: of each block, as used.
        flux: whether it is an adapter of Flux.
        rank: as its training metadata states it, if it does.
    """

    name: str
    ratios: tuple[float, ...]
    flux: bool
    rank: int | None

    @property
    def used(self) -> tuple[float, ...]:
        """The ratios that had an effect."""
        return self.ratios[:1] if self.flux or len(set(self.ratios)) == 1 else self.ratios


def recipe_of(metadata: Mapping[str, str]) -> tuple[dict[str, Any], list[str]] | None:
    """Return the recipe of a merged LoRA and notes on missing information, or None.

    The recipe's adapters are `NAME.safetensors`; their folder is not recorded.

    Args:
        metadata: the strings of the file's header.

    Returns:
        None where the metadata names no inputs of supermerger.

    Raises:
        CorruptFile: if its metadata cannot be read.
    """
    try:
        parts = _parts(metadata)
        if not parts:
            return None
        parts, notes = _taking_part(parts)
        inputs = [_input(index, part) for index, part in enumerate(parts)]
    except RecursionError:
        raise CorruptFile("supermerger's metadata is nested too deeply") from None
    ranks = {one.rank for one in inputs if one.rank is not None}
    by_factors = len(ranks) < 2
    mix: dict[str, Any] = {"adapters": []}
    recipe: dict[str, Any] = {"version": 1, "inputs": {}, "steps": {_STEP: {"mix": mix}}}
    taken = {_STEP}
    for one in inputs:
        word = _word(one.name, taken)
        recipe["inputs"][word] = {"path": f"{one.name}.safetensors"}
        mix["adapters"].append({"adapter": word, "weight": _weight(one.used, by_factors)})
    if by_factors:
        mix["compat"] = "kohya"
    return recipe, notes + _notes(inputs, ranks)


def _parts(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the objects of `sshs_cp0`, `sshs_cp1`, … in order."""
    found = {int(m[1]): value for key, value in metadata.items() if (m := _PART.fullmatch(key))}
    for index in range(len(found)):
        if index not in found:
            raise CorruptFile(
                "supermerger's metadata is incomplete",
                expected=f"sshs_cp{index}",
                found=listed([f"sshs_cp{i}" for i in sorted(found)]),
            )
    return [_object(f"sshs_cp{index}", found[index]) for index in range(len(found))]


def _object(where: str, raw: object) -> dict[str, Any]:
    """Return a JSON object."""
    try:
        content = values_in(raw) if isinstance(raw, str) else raw
    except ValueError as error:
        raise CorruptFile(f"{where} in the header is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CorruptFile(
            f"{where} in the header is not a JSON object", found=type(content).__name__
        )
    return content


def _earlier(first: Mapping[str, Any], index: int) -> dict[str, Any] | None:
    """Return input `index` in the first input's own metadata, or None."""
    try:
        return _object("", first.get(f"sshs_cp{index}"))
    except CorruptFile:
        return None


def _taking_part(parts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Leave out the inputs of an earlier merge, which the file has from its first input.

    supermerger writes into the first input's metadata. If that is a merged file itself, or was merged
    before in the same session, its older `sshs_cp` stay beyond those written now.
    """
    first, count = parts[0], len(parts)
    while count > 1 and _earlier(first, count - 1) == parts[count - 1]:
        count -= 1
    if count == len(parts):
        return parts, []
    older = listed([str(part.get("ss_output_name")) for part in parts[count:]])
    before = _earlier(first, 0)
    # in one session the first input's metadata names itself as the first of the earlier merge, and
    # the same merge done again looks like its leftovers
    if before is not None and before.get("ss_output_name") == first.get("ss_output_name"):
        return parts, [
            f"{older} may be left over from an earlier merge with the same first adapter"
        ]
    return parts[:count], [f"{older} went into the first adapter earlier, and is left out here"]


def _input(index: int, part: Mapping[str, Any]) -> _Input:
    where = f"sshs_cp{index}"
    name = part.get("ss_output_name")
    if not isinstance(name, str) or not name.strip() or re.search(r"[/\\\0]", name):
        raise CorruptFile(f"{where} has no file name", expected="ss_output_name", found=repr(name))
    blocks = part.get("sshs_blocks", part.get("sshs_ratio"))
    ratios = tuple(_number(where, text) for text in str(blocks).split(","))
    if len(ratios) != 1 and len(ratios) not in _LENGTHS:
        raise CorruptFile(
            f"{where} has an unknown number of ratios",
            expected=", ".join(map(str, _LENGTHS)),
            found=len(ratios),
        )
    base = str(part.get("ss_base_model_version", ""))
    rank = str(part.get("ss_network_dim", ""))
    return _Input(
        name,
        ratios,
        len(ratios) == _FLUX_LENGTH or base.startswith("flux"),
        int(rank) if re.fullmatch(r"[0-9]{1,6}", rank) else None,
    )


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorruptFile(f"{where} has a ratio that is not a number", found=text)
    return value


def _weight(ratios: Sequence[float], by_factors: bool) -> float | dict[str, Any]:
    """Return the weight of an input in our terms.

    Args:
        by_factors: the ratio went into both factors, so that its sign was lost.
    """
    values = [abs(ratio) if by_factors else ratio for ratio in ratios]
    if len(values) == 1:
        return values[0]
    if len(values) == 26:
        return {"blocks": values, "default": values[0]}
    return {"blocks": values}


def _word(name: str, taken: set[str]) -> str:
    """Return a short name that is not taken yet, and take it."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "lora"
    word, count = plain, 1
    while word in taken:
        count += 1
        word = f"{plain}-{count}"
    taken.add(word)
    return word


def _notes(inputs: Sequence[_Input], ranks: set[int]) -> list[str]:
    """Return notes on settings that the recipe cannot repeat or does not know."""
    checks = (
        (
            len(ranks) < 2,
            "supermerger records no settings, and this is its default merge; if 'same to Strength' was "
            "ticked, write compat: peft-linear"
            + (" and the ratios with their signs" if _negative(inputs) else "")
            + "; if a dimension was chosen, it cut by a clamped SVD, which cannot be repeated",
        ),
        (
            len(ranks) > 1,
            f"the adapters' ranks differ ({listed([str(r) for r in sorted(ranks)])}), so supermerger "
            "cut the sum by a clamped SVD to a rank it does not record; the exact mix takes its place "
            "(and the ratios are roots of these if 'same to Strength' was ticked)",
        ),
        (
            len(inputs) == 2,
            (
                "'Extract from two LoRAs' writes the same metadata as a merge, and cannot be "
                "repeated"
            ),
        ),
        (
            len(ranks) < 2 and _negative(inputs),
            "a negative ratio loses its sign in the default merge: it stands here as its absolute value"
            + (
                ", and the products with adapters of positive ratios, which are negative, differ"
                if _mixed(inputs)
                else ""
            ),
        ),
        (
            len({one.name for one in inputs}) < len(inputs),
            "an adapter is there more than once, for which supermerger records only its last ratio",
        ),
        (
            any(one.flux and len(set(one.ratios)) > 1 for one in inputs),
            "in a merge of Flux adapters supermerger takes the first value of the vector for all blocks",
        ),
        (
            any(len(one.used) == 17 for one in inputs),
            "17 ratios are from a version of July 2023, which gave other blocks weight 1",
        ),
    )
    return [text for holds, text in checks if holds]


def _negative(inputs: Sequence[_Input]) -> bool:
    return any(ratio < 0 for one in inputs for ratio in one.used)


def _mixed(inputs: Sequence[_Input]) -> bool:
    """Return whether ratios of opposite signs meet in a block."""
    most = max(len(one.used) for one in inputs)
    per_block = zip(*(one.used * (most // len(one.used)) for one in inputs), strict=False)
    return any(min(ratios) < 0 < max(ratios) for ratios in per_block)
