"""Weights in a text: a number, weights of components, a block vector, weights by depth."""

from __future__ import annotations

import re

from loramerge.algebra.blocks import LENGTHS, PRESETS
from loramerge.algebra.weights import Weight, shown_number
from loramerge.errors import Message, Setting, UsageError, suggestion
from loramerge.families.components import COMPONENT_WORDS

__all__ = [
    "BLOCKS", "BY_PATTERN", "DEPTH", "component_in", "depth_in", "number_in", "refuse_decimal_comma",
    "vector_in", "weight_in_words", "weight_words",
]  # fmt: skip

BLOCKS = "lbw"  # of LoRA Block Weight for A1111: `<lora:A:1:lbw=OUTALL>`
DEPTH = "depth"  # weights at equal steps from the first block of the UNet to the last
BY_PATTERN: Message = (
    "modules of other names, such as vae.* or *attn2*, get a weight by `match` in the file of ",
    Setting("weights", "NAME=FILE.yaml"),
)
_VECTOR = re.compile(r"[-+0-9.eE]+(,[-+0-9.eE]+)+")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_NUMBER = re.compile(r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf)", re.IGNORECASE)


def number_in(text: str) -> float | None:
    """Return the number that a text is, or None."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def vector_in(tail: str, text: str) -> tuple[float, ...]:
    """Return the block vector in a part of a reference, empty if it is not one.

    Raises:
        UsageError: for `lbw=` with anything else.
    """
    named, _, vector = tail.rpartition("=")
    if named in ("", BLOCKS) and (_VECTOR.fullmatch(vector) or vector in PRESETS):
        return tuple(map(float, PRESETS.get(vector) or vector.split(",")))
    if named == BLOCKS:
        raise UsageError(
            f"{text!r}: {vector!r} is not a weight per block",
            expected=f"numbers with commas between, or one of {', '.join(PRESETS)}",
        )
    return ()


def refuse_decimal_comma(tail: str, head: str) -> None:
    """Refuse `0,7` behind a name, which could be a block vector of two values.

    Raises:
        UsageError: with the number that was probably meant.
    """
    if _DECIMAL_COMMA.fullmatch(tail):
        raise UsageError(
            "a block vector cannot have 2 values",
            expected=LENGTHS,
            hint=f"did you mean {head}:{tail.replace(',', '.')}?",
        )


def depth_in(values: str, text: str) -> tuple[float, ...]:
    """Return the numbers of `depth=0,1,0.5`.

    Raises:
        UsageError: if they are none.
    """
    if not _VECTOR.fullmatch(values) or None in map(number_in, values.split(",")):
        raise UsageError(
            f"{text!r}: {values!r} is not a weight per depth",
            expected="two numbers or more with commas between, as in depth=0,1,0.5",
        )
    return tuple(map(float, values.split(",")))


def weight_in_words(weight: Weight, written: str) -> str:
    """Return a weight for reports: as it was written, and what parts that it does not name have.

    Weights per block or by depth name all of a network, and a number in front is that of the rest.
    """
    named = weight.components or weight.match
    if not named or weight.blocks or weight.depth or weight.states_default:
        return written
    whole = {name for word in ("unet", "te") for name in COMPONENT_WORDS[word]}
    if whole <= weight.components.keys():
        return written
    return f"{written}, the rest {shown_number(weight.default)}"


def weight_words(weight: Weight) -> list[str]:
    """Return the parts of a text that state a weight: a number, components, blocks or depths."""
    found = [] if weight.default == 1.0 else [shown_number(weight.default)]
    left = dict(weight.components)
    for word, names in sorted(COMPONENT_WORDS.items(), key=lambda one: -len(one[1])):
        values = {left.get(name) for name in names}
        if len(values) == 1 and (value := values.pop()) is not None:
            found.append(f"{word}={shown_number(value)}")
            left = {name: one for name, one in left.items() if name not in names}
    if weight.blocks:
        named = next((name for name, one in PRESETS.items() if weight.blocks == one), None)
        found.append(named or ",".join(map(shown_number, weight.blocks)))
    if weight.depth:
        found.append(f"{DEPTH}=" + ",".join(map(shown_number, weight.depth)))
    return found


def component_in(word: str, value: str, text: str) -> dict[str, float]:
    """Return component weights for one `word=value`.

    Raises:
        UsageError: if it is not a component or not a number.
    """
    number = number_in(value)
    if word not in COMPONENT_WORDS:
        raise UsageError(
            f"{text!r}: {word!r} is not a component",
            expected=", ".join(COMPONENT_WORDS),
            hint=suggestion(word, COMPONENT_WORDS) or BY_PATTERN,
        )
    if number is None:
        raise UsageError(f"{text!r}: {value!r} is not a number")
    return dict.fromkeys(COMPONENT_WORDS[word], number)
