"""The tiny model draws what it is asked for, and what its adapters add; live and baked agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

import loramerge as lm  # noqa: E402
from loramerge.errors import LoramergeError, UsageError  # noqa: E402
from loramerge.library.shipped import OUTLINED, TINY, shipped  # noqa: E402
from loramerge.tiny import score  # noqa: E402
from loramerge.tiny.pictures import applied, drawn, pipeline, sheet  # noqa: E402
from loramerge.tiny.trial import Trial, portraits, trial  # noqa: E402
from loramerge.train.lora.modules import tune_lora_scale  # noqa: E402
from loramerge.train.lora.saving import load_lora_weight  # noqa: E402
from tests.tail import tail  # noqa: E402

STEPS, COUNT = 10, 32
PROMPT = "a happy zuzu on a green background"


# its fixtures take long: one process runs them all
pytestmark = pytest.mark.xdist_group("tiny model")


@pytest.fixture(scope="module", autouse=True)
def _one_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """The second base is baked once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAMERGE_HOME", str(tmp_path_factory.mktemp("home")))
        yield patch


@pytest.fixture(scope="module")
def pipes(_one_home: Any) -> dict[str, Any]:
    return {name: pipeline(shipped(name)) for name in (TINY, OUTLINED)}


@pytest.fixture(scope="module")
def trial_of(pipes: dict[str, Any]) -> Callable[[str, str], Trial]:
    """Measures a base with an adapter, or with none; once for all tests here."""
    torch.set_num_threads(1)

    @cache
    def measured(base: str, name: str = "") -> Trial:
        with applied(pipes[base], [(lm.load(name), 1.0)] if name else []):
            return trial(pipes[base], COUNT, steps=STEPS)

    return measured


# the second base is the first with an adapter baked in
BASES = pytest.mark.parametrize("base", [TINY, tail(OUTLINED)])


@pytest.mark.long_tail
@BASES
def test_the_bases_draw_what_they_are_asked_for(base: str, trial_of: Any) -> None:
    follow = trial_of(base).follow
    assert follow["colour"] >= 0.9 and follow["background"] >= 0.9 and follow["size"] >= 0.9
    assert follow["all"] >= 0.7


@pytest.mark.long_tail
def test_the_second_base_draws_lines(trial_of: Any) -> None:
    assert trial_of(OUTLINED).ink > 2 * trial_of(TINY).ink


@pytest.mark.slow
@BASES
def test_the_character_is_learned_and_nothing_else_forgotten(base: str, trial_of: Any) -> None:
    before, after = trial_of(base), trial_of(base, "zuzu")
    assert after.seen - before.seen >= 0.15 and after.held - before.held >= 0.15
    assert before.teal < 0.02 and after.teal > 0.08
    assert after.follow["all"] >= 0.55


@pytest.mark.long_tail
@BASES
def test_the_style_is_learned_by_both_bases(base: str, trial_of: Any) -> None:
    assert trial_of(base, "polka").dots > 0.06 > 3 * trial_of(base).dots
    assert trial_of(base, "polka").teal < 0.02


@pytest.mark.long_tail
def test_both_together_show_in_one_picture(pipes: Any) -> None:
    """On the first base: outlines that reach the edge would count as dots."""
    asked = portraits(12, ("green", "blue", "purple"))
    prompts = [sprite.caption(("mood", "background")) for sprite in asked]
    found = {}
    for names in (("zuzu",), ("zuzu", "polka")):
        with applied(pipes[TINY], [(lm.load(name), 1.0) for name in names]):
            found[names] = drawn(pipes[TINY], prompts, range(12), steps=STEPS)
    alone, both = (
        [
            np.mean([measure(picture) for picture in pictures])
            for measure in (score.teal, score.dotted)
        ]
        for pictures in found.values()
    )
    assert both[0] > 0.08
    assert both[1] > 0.03 > 5 * alone[1]


# --- live, merged, and off ------------------------------------------------------------------------


@torch.no_grad()
def answers(pipe: Any) -> Any:
    """What the UNet says to fixed latents and a prompt, at three time steps."""
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = pipe.tokenizer(
        [PROMPT] * 3, padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    states = pipe.text_encoder(tokens).last_hidden_state
    return pipe.unet(latents, torch.tensor([20, 400, 999]), states).sample


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("names", [("zuzu",), ("polka",), ("zuzu", "polka")])
def test_merged_is_live(names: tuple[str, ...], pipes: Any, tmp_path: Path) -> None:
    pairs = [(lm.load(name), weight) for name, weight in zip(names, (0.8, 0.5), strict=False)]
    plain = answers(pipes[TINY])
    with applied(pipes[TINY], pairs):
        live = answers(pipes[TINY])
    lm.bake(TINY, pairs, tmp_path / "baked", dtype="float32")
    merged = answers(pipeline(tmp_path / "baked"))
    assert float((merged - live).abs().max()) < 1e-4
    assert float((live - plain).abs().max()) > 1e-2
    with applied(pipes[TINY], [(adapter, 2 * weight) for adapter, weight in pairs]):
        assert float((answers(pipes[TINY]) - live).abs().max()) > 1e-2  # twice the scale


@pytest.mark.long_tail
def test_a_bake_in_half_precision_draws_the_same_pictures(pipes: Any, tmp_path: Path) -> None:
    prompts, seeds = [PROMPT] * 4, range(4)
    with applied(pipes[TINY], [(lm.load("zuzu"), 1.0)]):
        live = np.array(drawn(pipes[TINY], prompts, seeds, steps=STEPS), dtype=float)
    lm.bake(TINY, [(lm.load("zuzu"), 1.0)], tmp_path / "baked")
    baked = np.array(drawn(pipeline(tmp_path / "baked"), prompts, seeds, steps=STEPS), dtype=float)
    plain = np.array(drawn(pipes[TINY], prompts, seeds, steps=STEPS), dtype=float)
    assert np.abs(baked - live).mean() < 2 < np.abs(plain - live).mean()


def test_a_scale_of_nothing_is_the_base_bit_for_bit(pipes: Any) -> None:
    pipe = pipes[TINY]
    before, picture = answers(pipe), drawn(pipe, [PROMPT], [3], steps=4)[0]
    load_lora_weight(pipe.unet, lm.load("zuzu"))
    try:
        tune_lora_scale(pipe.unet, 0.0)
        assert torch.equal(answers(pipe), before)
        assert np.array_equal(drawn(pipe, [PROMPT], [3], steps=4)[0], picture)
        tune_lora_scale(pipe.unet, 1e-3)
        assert not torch.equal(answers(pipe), before)
    finally:
        lm.remove_lora(pipe.unet)
    assert torch.equal(answers(pipe), before)
    with applied(pipe, [(lm.load("zuzu"), 0.0)]):
        assert torch.equal(answers(pipe), before)


def test_applied_adapters_are_removed_after_an_error_too(pipes: Any) -> None:
    before = answers(pipes[TINY])

    class Stopped(Exception):
        pass

    with pytest.raises(Stopped), applied(pipes[TINY], [(lm.load("zuzu"), 1.0)]):
        raise Stopped
    assert torch.equal(answers(pipes[TINY]), before)


def test_an_adapter_of_something_else_is_refused(pipes: Any, tmp_path: Path) -> None:
    other = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(4, 8, 3)})
    lm.inject_trainable_lora(other, 2, preset="full")
    lm.save_lora_weight({"unet": other}, tmp_path / "other.safetensors")
    adapter = lm.load(tmp_path / "other.safetensors")
    with pytest.raises(LoramergeError), applied(pipes[TINY], [(adapter, 1.0)]):
        pass


# --- pictures -------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_picture_whatever_stands_beside_it(pipes: Any) -> None:
    prompts = ["a red cat", "a blue fish", "a green box"]
    together = drawn(pipes[TINY], prompts, [5, 6, 7], steps=4)
    alone = drawn(pipes[TINY], prompts[1:2], [6], steps=4)[0]
    other = drawn(pipes[TINY], prompts[1:2], [7], steps=4)[0]
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    assert np.abs(other.astype(int) - alone).max() > 20
    with pytest.raises(UsageError):
        drawn(pipes[TINY], prompts, [1])


def test_a_sheet_holds_the_pictures_in_rows() -> None:
    pictures = [np.full((32, 32, 3), 40 * i, dtype=np.uint8) for i in range(5)]
    image = np.asarray(sheet(pictures, columns=3, enlarged=2))
    assert image.shape == (128, 192, 3)
    assert image[0, 64, 0] == 40 and image[64, 0, 0] == 120 and image[127, 191, 0] == 255


@pytest.mark.long_tail
def test_the_page_about_it_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "tiny.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block.replace("trial(pipe)", "trial(pipe, 4, steps=2)"), {})
    assert (tmp_path / "zuzu.png").stat().st_size > 1000
