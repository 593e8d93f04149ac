"""verify of adapters that change nothing, as a whole or in some modules."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge.algebra import presence
from tests.builders.samples import read_safetensors
from tests.builders.world import rewrite


def _without(run, source, target, share=1.0):
    """Write an adapter whose first modules are exactly zero; return their kohya stems."""
    arrays, _ = read_safetensors(run.folder / f"{source}.safetensors")
    ups = sorted(key for key in arrays if key.endswith(".lora_up.weight"))
    dead = ups[: max(1, round(share * len(ups)))]

    def change(tensors, metadata):
        for key in dead:
            tensors[key] = np.zeros_like(tensors[key])

    rewrite(run.folder / f"{source}.safetensors", run.folder / f"{target}.safetensors", change)


def _touched(run, path, number=0):
    """Add to a weight that an adapter touches; return the module's name."""
    found = run.ok("bake", "--base", "base", "a", "--dry-run", "--json").json["touched"]
    entry = found[number]

    def change(tensors, metadata):
        tensors[entry["tensor"]] = (tensors[entry["tensor"]] * 1.1).astype("float16")

    rewrite(path, path, change)
    return entry["module"]


@pytest.fixture
def dead(run):
    """An adapter that changes nothing, and a bake of it."""
    _without(run, "a", "dead")
    run.ok("bake", "--base", "base", "dead", "-o", "baked.safetensors")
    return run


def test_a_bake_of_nothing_holds_its_recipe(dead):
    found = dead.ok("verify", "baked.safetensors")
    assert "There is nothing to verify: it is the base, and should be." in found.out
    assert "dead changes nothing" in found.out and "tells its strength" not in found.out
    (entry,) = dead.ok("verify", "baked.safetensors", "--json").json["adapters"]
    assert entry["nothing"] is True and entry["strength"] is None and entry["modules"] > 0
    dead.ok("verify", "baked.safetensors", "--html", "page.html")


def test_a_change_where_nothing_should_be_is_found(dead):
    module = _touched(dead, dead.folder / "baked.safetensors")
    found = dead("verify", "baked.safetensors")
    assert found.code == 1 and module in found.out and "something else" in found.out
    assert "It does not hold what it should." in found.out


def test_not_looking_there_would_be_found(dead, monkeypatch):
    """As it was: modules that an adapter leaves alone were compared with nothing."""
    _touched(dead, dead.folder / "baked.safetensors")
    monkeypatch.setattr("loramerge.steps.claims.alien", lambda trace: None)
    assert dead("verify", "baked.safetensors").code == 0


def test_nothing_cannot_be_looked_for(dead):
    for more in ((), ("-l", "a")):
        dead.refused(
            5, "verify", "baked.safetensors", "--base", "base", "-l", "dead", *more,
            says=("dead.safetensors", "changes nothing", "exactly zero"),
        )  # fmt: skip


def test_nothing_hides_no_other_adapter(dead):
    dead.ok("bake", "--base", "base", "a:0.7", "dead", "-o", "both.safetensors")
    found = dead.ok("verify", "both.safetensors")
    assert "It holds what it should." in found.out and "a is in it at the weight 0.7" in found.out
    assert "dead changes nothing" in found.out
    wrong = dead("verify", "both.safetensors", "--base", "base", "-l", "a:0.35")
    assert wrong.code == 1 and "2 times the weight 0.35" in wrong.out


@pytest.mark.parametrize("share", [pytest.param(0.1, marks=pytest.mark.long_tail), 0.6])
def test_modules_of_nothing_beside_others(run, share):
    """An adapter that was not trained everywhere; another one changes them, too."""
    _without(run, "a", "part", share)
    run.ok("bake", "--base", "base", "part:0.5", "-o", "alone.safetensors")
    assert "part is in it at the weight 0.5." in run.ok("verify", "alone.safetensors").out
    run.ok("bake", "--base", "base", "part:0.5", "b:0.25", "-o", "both.safetensors")
    assert "It holds what it should." in run.ok("verify", "both.safetensors").out
    given = run.ok(
        "verify", "both.safetensors", "--base", "base", "-l", "part", "-l", "b", "--json"
    )
    assert [one["strength"] for one in given.json["adapters"]] == pytest.approx(
        [0.5, 0.25], rel=1e-2
    )
    module = _touched(run, run.folder / "alone.safetensors")
    found = run("verify", "alone.safetensors")
    assert found.code == 1 and module in found.out


@pytest.mark.parametrize("right", [True, False])
def test_a_lost_module_is_named_beside_nothing(dead, monkeypatch, right):
    """With the zero change still among the terms, no factor of a module can be told."""
    dead.ok("bake", "--base", "base", "a:0.7", "dead", "-o", "both.safetensors")
    base, _ = read_safetensors(dead.folder / "base.safetensors")
    entry = dead.ok("bake", "--base", "base", "a", "--dry-run", "--json").json["touched"][0]

    def lose(tensors, metadata):
        tensors[entry["tensor"]] = base[entry["tensor"]]

    rewrite(dead.folder / "both.safetensors", dead.folder / "both.safetensors", lose)
    if not right:
        monkeypatch.setattr(presence.Trace, "changing", lambda self: self)
    found = dead("verify", "both.safetensors")
    assert found.code == 1 and entry["module"] in found.out
    assert ("In 1 module the change is lost" in found.out) is right
