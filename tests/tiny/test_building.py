"""The making of the tiny model, in parts that take no time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from loramerge.families import FAMILIES  # noqa: E402
from loramerge.tiny import adapters, build, networks, stages  # noqa: E402
from loramerge.tiny.sprites import ZUZU, words  # noqa: E402
from loramerge.train.spec.settings import Settings  # noqa: E402
from tests.families.test_reference_models import component_of, state_of, told  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return networks.tokenizer(tmp_path_factory.mktemp("tokenizer"))


# --- words --------------------------------------------------------------------------------------


def test_the_commonest_pair_is_merged_first() -> None:
    merges = networks.byte_pairs(["low", "lower"])  # only (l, o) is in both; the rest is by name
    assert merges == [("l", "o"), ("e", "r</w>"), ("lo", "w"), ("lo", "w</w>"), ("low", "er</w>")]


def test_every_word_of_the_captions_is_one_token_and_others_are_their_letters(
    tokenizer: Any,
) -> None:
    for word in words():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer.tokenize(ZUZU) == ["z", "u", "z", "u</w>"]
    assert len(tokenizer) == 615 and tokenizer.model_max_length == 24


def test_tokens_begin_and_end_as_clip_reads_them(tokenizer: Any) -> None:
    tokens = build.tokens_of(tokenizer, ["a red cat", ""])
    assert tokens.shape == (2, 24)
    assert tokens[0, 0] == tokenizer.bos_token_id and tokens[0, 4] == tokenizer.eos_token_id
    assert set(tokens[1, 1:].tolist()) == {tokenizer.eos_token_id}


# --- networks -----------------------------------------------------------------------------------


def test_the_networks_are_those_of_the_family() -> None:
    tiny = FAMILIES["tiny"]
    with torch.device("meta"):
        models = {"unet": networks.unet(), "text_encoder": networks.text_encoder(615)}
    for name, model in models.items():
        modules = component_of(tiny, name)
        spelled = [told(s, modules) for s in tiny.spellings[name] if s.layout == "diffusers"]
        assert state_of(model) in spelled


def test_the_scheduler_predicts_v_and_ends_in_noise_alone() -> None:
    scheduler = networks.scheduler()
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) < 1e-9


# --- stages -------------------------------------------------------------------------------------


def _stage(work: Path, steps: int, model: Any) -> stages.Stage:
    def loss(number: int) -> Any:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    settings = Settings(steps=steps, lr=1e-2)
    return stages.Stage("line", model, loss, settings, work)


def test_a_stage_learns_and_an_interrupted_one_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_SAVE_EVERY", 10)
    torch.manual_seed(0)
    start = torch.nn.Linear(3, 1)
    first, second, third = (copy.deepcopy(start) for _ in range(3))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _stage(tmp_path / "a", 40, first).run(lambda line: None)

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if " 20 " in line:
            raise Killed

    with pytest.raises(Killed):
        _stage(tmp_path / "b", 40, second).run(kill)
    _stage(tmp_path / "b", 40, third).run(lambda line: None)
    for name, value in first.state_dict().items():
        assert torch.equal(value, third.state_dict()[name])
        assert not torch.equal(value, start.state_dict()[name])
    assert not first.training and not first.weight.requires_grad


def test_a_stage_returns_the_mean_of_its_weights(tmp_path: Path) -> None:
    """With the weights of the last step instead, the mean would be of no use."""
    model = torch.nn.Linear(3, 1)
    stage = _stage(tmp_path, 15, model)
    stage.run(lambda line: None)
    state = torch.load(tmp_path / "line.pt", weights_only=True)
    assert torch.equal(model.weight, state["mean"]["weight"])
    assert not torch.equal(model.weight, state["model"]["weight"])


def test_frozen_parameters_stay_to_the_bit(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    _stage(tmp_path, 15, model).run(lambda line: None)
    after = model.state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["1.weight"], after["1.weight"])


def test_composites_are_no_pictures_of_either() -> None:
    pictures, others = torch.zeros(4, 3, 32, 32), torch.ones(4, 3, 32, 32)
    made = build._composites(pictures, others, torch.Generator().manual_seed(0))
    assert made.shape == pictures.shape and float(made.abs().max()) <= 1
    assert all(len(picture.unique()) > 1 for picture in made)
    assert not bool(pictures.any())


# --- lessons ------------------------------------------------------------------------------------


def test_the_character_is_shown_on_some_backgrounds_and_beside_ordinary_pictures() -> None:
    pairs = adapters.zuzu_pictures(0)
    ours = [sprite for sprite, _ in pairs if sprite.kind == ZUZU]
    assert len(ours) == len(pairs) - len(ours) == 64
    assert {sprite.background for sprite in ours} <= set(adapters.SEEN)
    assert not set(adapters.SEEN) & set(adapters.HELD)
    assert all(ZUZU in caption for sprite, caption in pairs if sprite.kind == ZUZU)
    assert len(adapters.zuzu_pictures(0, regularisation=0)) == 64


@pytest.mark.parametrize("name", adapters.LESSONS)
def test_lessons_repeat(name: str) -> None:
    pictures = adapters.LESSONS[name].pictures
    assert list(pictures(0)) == list(pictures(0)) != list(pictures(1))


def test_pictures_become_numbers_between_minus_one_and_one() -> None:
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    found = build.as_tensor([black, white])
    assert found.shape == (2, 3, 32, 32)
    assert found.unique().tolist() == [-1.0, 1.0]
