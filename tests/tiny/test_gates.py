"""The trainer on the tiny model: gates of a LoRA of the character, over three seeds, on both bases.

That scale 0 is the base bit for bit is in `test_model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

import loramerge as lm  # noqa: E402
from loramerge.library.shipped import OUTLINED, TINY, shipped  # noqa: E402
from loramerge.tiny.folders import write_folders  # noqa: E402
from loramerge.tiny.pictures import applied, pipeline  # noqa: E402
from loramerge.tiny.trial import trial  # noqa: E402
from tests.tiny.test_model import answers  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.peers]
COUNT, STEPS = 32, 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gates(seed: int, tmp_path: Path, record_property: Any) -> None:
    """The character is learned, on both bases; the rest is kept; merged is live."""
    subject, regular = write_folders(tmp_path / "pictures", seed=seed)
    adapter = lm.train(
        TINY, subject, regularisation=str(regular),
        trigger="zuzu", seed=seed, folder=str(tmp_path / "run"), sample_every=0,
        rank=8, steps=500, lr=3e-3, batch=16,
    )  # fmt: skip
    for base in (TINY, OUTLINED):
        pipe = pipeline(shipped(base))
        before = trial(pipe, COUNT, steps=STEPS)
        with applied(pipe, [(adapter, 1.0)]):
            after, live = trial(pipe, COUNT, steps=STEPS), answers(pipe)
        found = {
            "seen": after.seen - before.seen, "held": after.held - before.held,
            "teal": after.teal, "follow": after.follow["all"],
        }  # fmt: skip
        lm.bake(base, [(adapter, 1.0)], tmp_path / base, dtype="float32")
        found["merged"] = float((answers(pipeline(tmp_path / base)) - live).abs().max())
        record_property(base, {name: round(value, 6) for name, value in found.items()})
        assert min(found["seen"], found["held"]) >= 0.15 and before.teal < 0.08
        assert found["follow"] >= 0.55
        assert found["merged"] < 1e-4
        assert found["teal"] > 0.08
