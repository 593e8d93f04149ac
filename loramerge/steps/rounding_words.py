"""The warning that rounding takes much of a change, or has an error larger than the change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loramerge.errors import Message

__all__ = ["LEAST", "NOISE", "rounding_words"]

LEAST = 0.9  # share of the change that must be kept
NOISE = 1.0  # relative error above which rounding changes more than was asked for


def rounding_words(
    kept: float, relative_error: float, types: Sequence[str], remedies: Message
) -> Iterator[Message]:
    """Yield one warning where less than `LEAST` is kept or the error is above `NOISE`, else nothing.

    Args:
        kept: ⟨ΔW_written, ΔW_asked⟩ / ‖ΔW_asked‖².
        relative_error: ‖ΔW_written − ΔW_asked‖ / ‖ΔW_asked‖.
        types: those that are written, in words.
        remedies: what to do, as the end of a sentence.
    """
    said = ", ".join(types)
    parts = []
    if kept < LEAST:
        parts.append(f"only {_percent(kept)} of the change is kept after rounding to {said}")
    if relative_error > NOISE:
        times = f"{relative_error:,.0f}" if relative_error >= 100 else f"{relative_error:.3g}"
        what = "its error" if parts else f"the error of rounding to {said}"
        parts.append(f"{what} is {times} times as large as the whole change")
    if parts:
        rest = (remedies,) if isinstance(remedies, str) else remedies
        yield (", and ".join(parts), "; ", *rest)


def _percent(share: float) -> str:
    """Return a share in whole percents; one below the limit never reads as the limit."""
    return f"{min(100 * share, 100 * LEAST - 1):.0f} %"
