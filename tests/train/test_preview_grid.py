"""The columns of a preview, and its samplers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

from loramerge.errors import UsageError  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.steps.references import Reference  # noqa: E402
from loramerge.train.drawing.sampling import SAMPLERS, sampler_of  # noqa: E402
from loramerge.train.models.architectures import flux, sd  # noqa: E402
from loramerge.train.models.tiles import TILE, in_tiles  # noqa: E402
from loramerge.verbs.preview import Preview, columns, compute_preview  # noqa: E402
from tests.train.test_objective import scheduler  # noqa: E402


def test_weights_stand_together_for_each_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "weighted", lambda adapter, weight: (adapter, weight))
    adapters: Any = [(Reference(name), name) for name in ("a", "b")]
    asked = Preview(base=("x",), weight=("0.5,1", "1.5"))
    assert asked.weights() == (0.5, 1.0, 1.5)
    assert [column.label for column in columns.columns(asked, adapters)] == [
        "base", "a at 0.5", "a", "a at 1.5", "b at 0.5", "b", "b at 1.5",
    ]  # fmt: skip
    together = Preview(base=("x",), weight=("0.5", "1"), together=True, no_base=True)
    assert [column.label for column in columns.columns(together, adapters)] == [
        "a at 0.5 + b at 0.5", "a + b",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="is not a weight"):
        Preview(base=("x",), weight=("0.5;1",)).check()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("sampler", ["ddim", "heun"])  # heun takes two for each step but the last
def test_progress_counts_the_steps_of_all_images(sampler: str) -> None:
    told: list[Any] = []
    asked = Preview(base=("tiny",), adapters=(Reference("zuzu"),), prompt=("a", "b"), steps=3, size=16,
                    sampler=sampler)  # fmt: skip
    context = Context(notify=told.append, models={})
    compute_preview(asked, context)
    assert [(one.task, one.done) for one in told[:2]] == [("loading", 0), ("loading", 1)]
    steps = [one.done for one in told[2:]]
    assert {one.total for one in told[2:]} == {2 * 2 * 3}
    assert steps == sorted(steps) and steps[-1] == 12 and set(steps) >= {3, 6, 9}


def test_headings_are_distinct() -> None:
    assert columns.distinct_labels(["a", "b"], ["x/a", "x/b"]) == ["a", "b"]
    assert columns.distinct_labels(["a", "a", "b"], ["x/a", "y/a", "y/b"]) == ["x/a", "y/a", "b"]
    assert columns.distinct_labels(["a", "a"], ["x/a", "x/a"]) == ["a", "a"]  # at other weights
    assert columns.distinct_labels(["a", "a"], ["p/x/a", "q/x/a"]) == ["a (1)", "a (2)"]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_follow_the_bases_schedule(name: str) -> None:
    loaded: Any = SimpleNamespace(
        architecture=sd.ARCHITECTURE, scheduler=scheduler("v_prediction"), path=Path("x")
    )
    found = sampler_of(loaded, name)
    assert found.config.prediction_type == "v_prediction"
    found.set_timesteps(3)
    assert torch.equal(found.alphas_cumprod, loaded.scheduler.alphas_cumprod)
    loaded.architecture = flux.ARCHITECTURE
    with pytest.raises(UsageError, match="learns a flow"):
        sampler_of(loaded, name)


def test_tiles_are_undone() -> None:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    before = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    with in_tiles(vae, 8):
        assert (vae.use_tiling, vae.tile_latent_min_size) == (True, TILE // 8)
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == before


def test_letters_that_no_font_has_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from loramerge.report import fonts

    monkeypatch.setattr(fonts, "_FALLBACKS", ("there-is-no-such-font.ttf",))
    font = fonts.font_for(["zuzu", "零 ·"], 14)
    assert fonts.legible("zuzu · 1", font) == "zuzu · 1"
    assert fonts.legible("零, 𝕏", font).startswith("\\u96f6, ")
