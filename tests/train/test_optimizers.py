"""Every optimizer that has a name: it learns, goes on bit for bit, and gets rates of its own scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.errors import MissingExtra, UsageError  # noqa: E402
from loramerge.events import Warn  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.models.objective import Noising  # noqa: E402
from loramerge.train.run.loop import advance, begin  # noqa: E402
from loramerge.train.run.resume import load_state, save_state  # noqa: E402
from loramerge.train.spec.optimizers import NAMES, check_import, make_optimizer, ready, slow  # noqa: E402
from loramerge.train.spec.settings import Settings  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402
from tests.tail import first  # noqa: E402
from tests.train.test_loop import examples, fresh, shuffled  # noqa: E402
from tests.train.test_objective import scheduler  # noqa: E402
from tests.train.test_verb import asked, run  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
# the small model of the tests learns at a hundred times the usual rates; where a rate is a factor of
# something found, it is 1 for every model
RATES = {
    "adamw": 2e-2,
    "adamw8bit": 2e-2,
    "adafactor": 2e-2,
    "lion": 5e-3,
    "prodigy": 1.0,
    "sgd": 1.0,
}
# 8 bits are for large tensors only; here for all
OPTIONS = {"adamw8bit": (("min_8bit_size", 1),), "prodigy": (("d0", 1e-4),)}


def settings(name: str, **how: Any) -> Settings:
    """Settings for an optimizer, or a skip where its package is absent."""
    package = NAMES[name].package
    if package not in ("torch", "transformers"):
        pytest.importorskip(
            NAMES[name].path.partition(".")[0], reason=f"{package} is not installed"
        )
    usual: dict[str, Any] = {"optimizer_options": OPTIONS.get(name, ()), "schedule": "constant"}
    return Settings(optimizer=name, lr=RATES[name], **(usual | how))


@pytest.mark.long_tail
@pytest.mark.parametrize(
    "name", [n if n == "adamw" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_it_learns(name: str) -> None:
    """With a rate of another optimizer's scale it does not: Prodigy at 1e-4 stays where it is."""
    losses: list[float] = []
    learning = fresh(settings(name, steps=40), preset="full", include=())
    advance(learning, on_step=lambda step: losses.append(step.loss))
    first, last = sum(losses[:8]), sum(losses[-8:])
    assert last < 0.8 * first
    if name == "prodigy":
        losses.clear()
        stays = fresh(Settings(optimizer=name, lr=1e-4, steps=40), preset="full", include=())
        advance(stays, on_step=lambda step: losses.append(step.loss))
        assert sum(losses[-8:]) > 0.95 * first


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", first(3, NAMES))
def test_a_resumed_run_is_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    """A state without the optimizer's own (moments, Prodigy's d, counts) ends elsewhere."""
    how = settings(name, steps=8, warmup_steps=2)
    whole, half = advance(fresh(how)), advance(fresh(how), 5)
    save_state(half, tmp_path / "state.pt")
    again = advance(load_state(fresh(how), tmp_path / "state.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, again.parameters, strict=True))
    forgetful = load_state(fresh(how), tmp_path / "state.pt")
    forgetful.optimizer = make_optimizer(how, forgetful.trainee.groups(how))
    advance(forgetful)
    same = (torch.equal(a, b) for a, b in zip(whole.parameters, forgetful.parameters, strict=True))
    assert name == "sgd" or not all(same)


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("name", NAMES)
def test_groups_have_rates_of_their_own(name: str, tmp_path: Path) -> None:
    how = settings(name, steps=4, lora_plus=4.0)
    if NAMES[name].one_rate:
        with pytest.raises(UsageError, match="one learning rate for all"):
            fresh(how)
        with pytest.raises(UsageError, match="one learning rate for all"):
            ready(settings(name, text_lr=0.1), text=True)
        ready(settings(name, text_lr=0.1))
        # before anything costs time; and without --text-lr it is the same for all
        with pytest.raises(UsageError, match="one learning rate for all"):
            run(tmp_path, optimizer=name, lr=None, lora_plus=2.0)
        assert not (tmp_path / "out-run").exists()
        run(tmp_path, optimizer=name, lr=None, text_encoder=True)
        return
    both, plain = fresh(how), fresh(settings(name, steps=4))
    for one in (both, plain):
        advance(one, 1)
    rates = {id(p): group["lr"] for group in both.optimizer.param_groups for p in group["params"]}
    ups = [layer.lora.up for layer in both.denoiser.modules() if hasattr(layer, "lora")]
    assert {rates[id(up)] for up in ups} == {4 * RATES[name]}
    assert len(set(rates.values())) == 2
    # up is zero at first, so the first step moves it four times as far
    others = [layer.lora.up for layer in plain.denoiser.modules() if hasattr(layer, "lora")]
    for up, other in zip(ups, others, strict=True):
        assert torch.allclose(up, 4 * other, rtol=1e-2, atol=1e-6)


@pytest.mark.long_tail
def test_rates_are_judged_on_the_optimizers_own_scale(tmp_path: Path) -> None:
    """Prodigy at 1 is as usual, at AdamW's rate it stands still; of a stranger nothing is known."""
    for name, one in NAMES.items():
        for called in (name, one.path):
            assert slow(Settings(optimizer=called)) is None or name in ("prodigy", "sgd")
            assert slow(Settings(optimizer=called, lr=one.rate)) is None
            assert f"{one.rate:g} is usual" in str(slow(Settings(optimizer=called, lr=1e-6)))
    assert "hardly moves at a learning rate of 0.0001 with prodigy; 1 is" in str(
        slow(Settings(optimizer="prodigy"))
    )
    assert slow(Settings(optimizer="lion", lr=1e-5)) is None
    assert slow(Settings(optimizer="torch.optim.RAdam", lr=1e-9)) is None
    said: list[Any] = []
    how = {"optimizer": "sgd", "dry_run": True}
    for rate, count in ((None, 0), (1e-4, 1)):
        said.clear()
        train(asked(tmp_path, lr=rate, **how), Context(device="cpu", notify=said.append))
        assert len([e for e in said if isinstance(e, Warn)]) == count


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(("name", "rate"), [("adamw", "0.0001"), ("sgd", "1.0")])
def test_the_rate_follows_the_optimizer_where_none_is_given(
    name: str, rate: str, tmp_path: Path
) -> None:
    run(tmp_path, optimizer=name, lr=None)
    metadata = read_safetensors(tmp_path / "out.safetensors")[1]
    assert metadata["ss_learning_rate"] == rate and '"lr"' not in metadata["loramerge.recipe"]


@pytest.mark.long_tail
def test_the_rate_that_prodigy_found_is_told_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = settings("prodigy", steps=20)
    rates: list[float] = []
    found = fresh(how, preset="full", include=())
    advance(found, on_step=lambda step: rates.append(step.rate))
    assert rates[0] == 1e-4 < rates[-1] and rates == sorted(rates)
    assert capsys.readouterr().out == ""


@pytest.mark.long_tail
def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    for dry_run in (False, True):
        with pytest.raises(MissingExtra) as caught:
            run(tmp_path, optimizer="prodigy", dry_run=dry_run)
        assert caught.value.hint == "pip install prodigyopt"
    assert not (tmp_path / "out-run").exists()


def test_paths_outside_the_known_packages_are_imported_on_request_only() -> None:
    for name in (None, *NAMES, "adamv", "torch.optim.RAdam", *(one.path for one in NAMES.values())):
        check_import(name, allowed=False)
    for name in ("os.system", "evil.Optimizer", "torch.optim.evil.X", "torch.hub.load", ".x"):
        check_import(name, allowed=True)
        with pytest.raises(UsageError, match="runs its code") as caught:
            check_import(name, allowed=False)
        assert caught.value.found == name


def test_an_optimizers_assertion_is_a_usage_error() -> None:
    how = settings("lion", optimizer_options=(("betas", (2.0, 0.9)),))
    with pytest.raises(UsageError, match="refuses its options"):
        begin(fresh().denoiser, Noising.of(scheduler("epsilon")), shuffled(examples(), 3), how)
