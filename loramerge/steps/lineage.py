"""The merge that made a checkpoint, as other programs write it into its header.

- A1111's checkpoint merger and sd-webui-supermerger: `sd_merge_recipe`, a JSON object with the method
  and the digests of the inputs, and `sd_merge_models`, digest → name and the recipe of that input.
- sd-mecha: `mecha_recipe`, a text with one instruction a line, in which `&n` is the result of line n.

Source: `run_modelmerger` in modules/extras.py of AUTOMATIC1111/stable-diffusion-webui (1.10),
`smerge` in scripts/mergers/mergers.py of hako-mikan/sd-webui-supermerger at 0b1c491,
`serialization.py` of ljleb/sd-mecha at 1e7a2bc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.algebra.weights import shown_number
from loramerge.errors import CorruptFile, listed
from loramerge.files.json_values import values_in
from loramerge.steps.mecha import models_of, sum_of

__all__ = ["Lineage", "lineage_of"]

Weight = float | tuple[float, ...]  # of a model; several: one for each block


@dataclass(frozen=True)
class Lineage:
    """A merge that another program recorded.

    Args:
        program: its name.
        method: in its own words.
        models: what it merged, by the names that the program had for them.
        weights: of these in our terms; empty where they cannot be expressed.
        base: what the changes are taken from, None if weights themselves are combined.
        half: whether the result is in float16.
        problems: what has no counterpart, in words.
        notes: what differs.
    """

    program: str
    method: str
    models: tuple[str, ...]
    weights: tuple[Weight | None, ...] = ()
    base: str | None = None
    half: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def words(self) -> str:
        """The merge in one sentence."""
        inputs = [
            f"{model} × {_shown(weight)}" if weight is not None else model
            for model, weight in zip(
                self.models, self.weights or [None] * len(self.models), strict=True
            )
        ]
        base = f", changes from {self.base}" if self.base else ""
        return f"{self.program}, {self.method}: {listed(inputs, 8)}{base}"


def _shown(weight: Weight) -> str:
    return shown_number(weight) if isinstance(weight, float) else f"{len(weight)} block weights"


def lineage_of(metadata: Mapping[str, str]) -> Lineage | None:
    """Return the merge in the strings of a header, None if there is none.

    Raises:
        CorruptFile: if it cannot be read.
    """
    if "mecha_recipe" in metadata:
        return _mecha(metadata["mecha_recipe"])
    if "sd_merge_recipe" not in metadata:
        return None
    recipe = _object("sd_merge_recipe", metadata["sd_merge_recipe"])
    names = {
        digest: str(entry.get("name") or digest)
        for digest, entry in _object(
            "sd_merge_models", metadata.get("sd_merge_models", "{}")
        ).items()
        if isinstance(entry, Mapping)
    }
    program = str(recipe.get("type"))
    read = {"webui": _webui, "sd-webui-supermerger": _supermerger}.get(program)
    if read is None:
        return Lineage(program, "a merge", tuple(names.values()), problems=(f"type: {program}",))
    return read(recipe, names)


def _object(where: str, raw: str) -> dict[str, Any]:
    try:
        content = values_in(raw)
    except ValueError as error:
        raise CorruptFile(f"{where} in the header is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{where} in the header is not an object", found=type(content).__name__)
    return content


def _mecha(text: str) -> Lineage:
    models = models_of(text)
    weights, problem = sum_of(text)
    if problem is not None:
        return Lineage("sd-mecha", "a merge", tuple(models), problems=(problem,))
    return Lineage("sd-mecha", "a weighted sum", tuple(weights), tuple(weights.values()))


# --- A1111's checkpoint merger ---------------------------------------------------------------------

_VAE_NOTE = "the program merges the VAE as the rest; here it is that of the first model"


def _webui(recipe: Mapping[str, Any], names: Mapping[str, str]) -> Lineage:
    keys = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
    found = _models([recipe.get(key) for key in keys], names)
    method = str(recipe.get("interp_method", "")).lower()
    share = _number("multiplier", recipe.get("multiplier"))
    problems, notes = [], [_VAE_NOTE]
    for key, text in (
        ("discard_weights", "a pattern of left out tensors"),
        ("is_inpainting", "an inpainting model"),
        ("is_instruct_pix2pix", "an instruct-pix2pix model"),
    ):
        if recipe.get(key):
            problems.append(f"{key}: {text}")
    vae = recipe.get("bake_in_vae")
    if vae and vae != "None":
        notes = [f"it has the VAE {vae}: give its file as `vae`"]
    weights: tuple[Weight | None, ...] = ()
    base, models = None, found[:2]
    if method == "weighted sum" and len(models) == 2:
        weights = (1 - share, share)
    elif method == "add difference" and len(found) == 3:
        weights, base = (1.0, share), found[2]
    else:
        problems.append(f"interp_method: {method or 'none'} of {len(found)} models")
        models = found
    return Lineage(
        "A1111's checkpoint merger", method, tuple(models), weights, base,
        bool(recipe.get("save_as_half")), tuple(problems), tuple(notes),
    )  # fmt: skip


def _models(digests: Sequence[Any], names: Mapping[str, str]) -> list[str]:
    return [names.get(str(one), str(one)) for one in digests if one]


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CorruptFile(f"{where} in the header is not a number", found=value)
    return float(value)


# --- supermerger -----------------------------------------------------------------------------------


def _supermerger(recipe: Mapping[str, Any], names: Mapping[str, str]) -> Lineage:
    found = _models([recipe.get(f"model_{letter}") for letter in "abc"], names)
    mode, calculation = str(recipe.get("mode", "")), str(recipe.get("calcmode", ""))
    problems = [] if calculation == "normal" else [f"calcmode: {calculation}"]
    if recipe.get("elemental_merge"):
        problems.append(f"elemental_merge: {recipe['elemental_merge']}")
    if recipe.get("Include") or recipe.get("Exclude"):
        problems.append("Include or Exclude: blocks that are left out")
    blocks = bool(recipe.get("mbw"))
    alpha = _blocks(recipe, "alpha", blocks)
    beta = _blocks(recipe, "beta", blocks)
    weights: tuple[Weight | None, ...] = ()
    models, base = found, None
    match re.sub(r"[^a-z]", "", mode.lower()):
        case "weightsum" if len(found) >= 2:
            models, weights = found[:2], (None, alpha)
        case "adddifference" if len(found) == 3:
            models, base, weights = found[:2], found[2], (1.0, alpha)
        case "triplesum" if len(found) == 3:
            weights = (None, alpha, beta)
        case "sumtwice" if len(found) == 3:
            weights = (None, _each(lambda a, b: a * (1 - b), alpha, beta), beta)
        case _:
            problems.append(f"mode: {mode} of {len(found)} models")
    return Lineage(
        "supermerger", mode, tuple(models), weights, base, False, tuple(problems), (_VAE_NOTE,)
    )  # fmt: skip


def _blocks(recipe: Mapping[str, Any], name: str, blocks: bool) -> Weight:
    """Return a ratio: one number, or those of BASE and the blocks."""
    base = recipe.get(f"base_{name}", 0.0)
    if not blocks:
        return _number(f"base_{name}", base)
    values = recipe.get(f"weights_{name}") or []
    numbers = values.split(",") if isinstance(values, str) else values
    try:
        return tuple(float(one) for one in (base, *numbers))
    except (TypeError, ValueError):
        raise CorruptFile(f"weights_{name} in the header are not numbers", found=values) from None


def _each(combine: Any, one: Weight, other: Weight) -> Weight:
    """Return a function of two ratios, block by block."""
    if isinstance(one, float) and isinstance(other, float):
        return float(combine(one, other))
    count = max(len(w) for w in (one, other) if not isinstance(w, float))
    wide = [w if isinstance(w, tuple) else (w,) * count for w in (one, other)]
    return tuple(float(combine(a, b)) for a, b in zip(*wide, strict=False))
