"""The rules of `resize` on each adapter alone and on the sum of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import loramerge as lm

__all__ = ["OF_RANKS", "RULES", "resized"]

# rule → values that make an adapter smaller and smaller
RULES: dict[str, tuple[Any, ...]] = {
    "rank": (4, 3, 2, 1),
    "energy": (0.99, 0.95, 0.9, 0.7),
    "ratio": (3.0, 2.0, 1.5, 1.2),
    "cumulative": (0.95, 0.9, 0.7, 0.5),
    "max_error": (0.1, 0.2, 0.3, 0.5),
    "max_size": (4, 3, 2, 1),  # as large as this uniform rank
}
OF_RANKS = ("rank", "max_size")  # their values are ranks, and they can be fair to each adapter


def resized(
    adapters: Mapping[str, Any],
    kept: Callable[[Any, Sequence[str]], Sequence[float]],
    saved_as: str = "adapter.safetensors",
) -> Iterator[dict[str, Any]]:
    """Yield the scores of every rule with every value.

    Args:
        adapters: by name.
        kept: the retention of some names in an adapter.
        saved_as: the name of a file or folder that their dialect has.
    """

    def smaller(adapter: Any, rule: str, value: Any, fair: bool = False) -> Any:
        if rule == "max_size":
            value = _file_size(lm.resize(adapter, rank=value, threads=1), saved_as)
        return lm.resize(adapter, threads=1, fair=fair, **{rule: value})

    everything = lm.mix(list(adapters.values()), scale="norm-match", threads=1)
    whole = sum(map(_numbers, adapters.values()))
    for rule, values in RULES.items():
        for value in values:
            small = {name: smaller(a, rule, value) for name, a in adapters.items()}
            found = [kept(one, [name])[0] for name, one in small.items()]
            size = sum(map(_numbers, small.values())) / whole
            yield _row("one", rule, value, size, found)
            more = 4 * value if rule in OF_RANKS else value  # the sum has more ranks to lose
            for fair in (False, True) if rule in OF_RANKS else (False,):
                one = smaller(everything, rule, more, fair)
                size = _numbers(one) / _numbers(everything)
                name = f"{rule} fair" if fair else rule
                yield _row("mix", name, more, size, kept(one, list(adapters)))


def _row(of: str, rule: str, value: Any, size: float, found: Sequence[float]) -> dict[str, Any]:
    return {
        "of": of,
        "rule": rule,
        "value": value,
        "size": size,
        "mean": sum(found) / len(found),
        "worst": min(found),
    }


def _file_size(adapter: Any, name: str) -> int:
    """Return the bytes of an adapter as it is saved."""
    with TemporaryDirectory() as folder:
        return lm.save(adapter, Path(folder) / name)


def _numbers(adapter: Any) -> int:
    """Return how many numbers the factors of an adapter have."""
    return sum(sum(f.size for f in delta.factors()) for _, delta in adapter.modules())
