"""The distribution of the times that training draws, where it is not the architecture's own.

    Timesteps.of("200..800, sigmoid, shift=3")

Times count from 0, without noise, to the length of the schedule, mostly 1000.

Source: Esser et al. (arXiv:2403.03206), section 3.1 for the logit-normal distribution, 5.3.2 for the
shift.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from loramerge.errors import UsageError

__all__ = ["Timesteps"]

_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")
_EXPECTED = "uniform or sigmoid, a range such as 200..800, shift=3; several with commas"


@dataclass(frozen=True)
class Timesteps:
    """A distribution of times.

    Args:
        low, high: the first time, and the one behind the last; None: all.
        normal: deviation of the normal number whose logistic function is drawn; None: uniform.
        shift: s of `s t / (1 + (s − 1) t)`, for times between 0 and 1; above 1 there is more noise.
    """

    low: int = 0
    high: int | None = None
    normal: float | None = None
    shift: float = 1.0

    @classmethod
    def of(cls, text: str) -> Timesteps:
        """Read it from text.

        Raises:
            UsageError: naming the part that says nothing.
        """
        found: dict[str, Any] = {}
        for part in (one.strip().lower() for one in text.split(",")):
            name, _, value = part.partition("=")
            if match := _RANGE.fullmatch(part):
                found |= {"low": int(match[1]), "high": int(match[2])}
            elif name == "sigmoid":
                found["normal"] = _positive(value or "1", part)
            elif name == "shift":
                found["shift"] = _positive(value, part)
            elif part != "uniform":
                raise _refusal(part)
        made = cls(**found)
        if made.high is not None and made.high <= made.low:
            raise _refusal(text)
        return made

    def drawn(self, count: int, length: int, generator: Any) -> Any:
        """Return random times, `(count,)` int64, on the CPU.

        Args:
            length: of the schedule.

        Raises:
            UsageError: if the range is not in it.
        """
        high = length if self.high is None else self.high
        if high > length:
            raise UsageError(
                "the range of time steps is larger than the schedule",
                expected=f"at most {length}",
                found=high,
            )
        if self.normal is None:
            share = torch.rand(count, generator=generator)
        else:
            share = torch.sigmoid(self.normal * torch.randn(count, generator=generator))
        share = self.shift * share / (1 + (self.shift - 1) * share)
        return (self.low + (share * (high - self.low)).long()).clamp(max=high - 1)


def _positive(text: str, part: str) -> float:
    try:
        found = float(text)
    except ValueError:
        raise _refusal(part) from None
    if not 0 < found < math.inf:
        raise _refusal(part)
    return found


def _refusal(text: str) -> UsageError:
    return UsageError(f"{text!r} says nothing about time steps", expected=_EXPECTED)
