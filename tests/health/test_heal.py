"""heal repairs what it names, leaves the rest of ΔW as it was, and its output passes `--check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter, LowRank, Site
from loramerge.adapter.load import load
from loramerge.algebra.health import examine, repairs
from loramerge.algebra.health.healing import heal_adapter
from loramerge.errors import AdapterError, UsageError
from loramerge.files.tensors import ArrayTensor
from loramerge.steps.references import Reference
from loramerge.verbs.heal import Heal, HealResult
from loramerge.verbs.heal import heal as run_heal
from tests.builders.samples import read_safetensors
from tests.health.faults import FAULTS, dense_of
from tests.health.patients import Patient, patient, written
from tests.tail import first

Array = np.ndarray[Any, Any]
# fault → the repair that mends it
MENDED = {
    "an untrained module": "untrained",
    "an untrained block": "untrained",
    "a spike": "spike",
    "alpha 0": "untrained",
    "a wrong alpha": "alpha",
    "an alpha lost": "alpha",
    "negative alphas": "alpha",
    "a dead rank": "dead-ranks",
    "unequal factors": "float16",
}
NAMES = ("zuzu", "generated", "hf_catundchat")
ROUNDING = 2e-3  # of float16 factors, twice; of float32 ones it is far smaller


def _sick(fault: str, name: str, seed: int, folder: Path, real: Path) -> tuple[Patient, str | None]:
    one = patient(name, real, folder)
    _, module = FAULTS[fault](one, np.random.default_rng(seed))
    return one, module


def _healed(one: Patient, folder: Path, **options: Any) -> tuple[HealResult, dict[str, Array]]:
    """Heal a file through the verb; return the result, and ΔW by stem from the raw tensors."""
    path, output = written(one, folder / "sick.safetensors"), folder / "healed.safetensors"
    found = run_heal(Heal(adapter=Reference(str(path)), output=str(output), **options))
    return found, dense_of(read_safetensors(output)[0])


def check(one: Patient, found: HealResult, after: Mapping[str, Array]) -> None:
    """Assert that ΔW is what the repairs say, against dense float64 matrices."""
    before = dense_of(one.arrays)
    by_module = {one.names[stem]: stem for stem in before}
    repaired = {by_module[r.module]: r for r in found.repairs}
    for stem, old in before.items():
        repair = repaired.get(stem)
        scale = float(np.linalg.norm(old))
        if repair is None or (repair.exact and repair.repair != "untrained"):
            assert np.linalg.norm(after[stem] - old) <= 1e-6 * scale, (stem, repair)
        elif repair.repair == "untrained":
            assert stem not in after and scale == 0.0, stem
        elif repair.repair == "alpha":
            ratio = float((after[stem] * old).sum()) / scale**2
            assert np.linalg.norm(after[stem] - ratio * old) <= 1e-6 * scale * abs(ratio)
            assert ratio > 0 and not 0.9 < ratio < 1.1
        else:
            _check_spike(old, after[stem])
    assert set(after) == {
        s for s in before if repaired.get(s) is None or repaired[s].repair != "untrained"
    }


def _check_spike(old: Array, new: Array) -> None:
    """The largest singular value is lower, and not below the second; all else is the same."""
    u, s, vt = np.linalg.svd(old, full_matrices=False)
    lowered = float(u[:, 0] @ new @ vt[0])
    assert s[1] * (1 - ROUNDING) <= lowered < s[0] / 5
    expected = old - (s[0] - lowered) * np.outer(u[:, 0], vt[0])
    assert np.linalg.norm(new - expected) <= ROUNDING * np.linalg.norm(expected)


@pytest.mark.parametrize("fault", MENDED)
@pytest.mark.parametrize("name", first(1, NAMES))
def test_a_repair_changes_nothing_else(fault, name, tmp_path, tmp_path_factory, request):
    real = request.getfixturevalue("shared_data") if name.startswith("hf") else tmp_path
    for seed in range(1 if name.startswith("hf") else 2):
        one, module = _sick(fault, name, seed, tmp_path_factory.getbasetemp(), real / "adapters")
        found, after = _healed(one, tmp_path, force=True)
        assert {r.repair for r in found.repairs} == {MENDED[fault]}
        assert module in {r.module for r in found.repairs}
        check(one, found, after)
        healed = load(tmp_path / "healed.safetensors")
        codes = {p.code for p in [*healed.info.problems, *examine(healed).problems]}
        assert codes - {"qkv-imbalance", "faint-module"} == set()
        again, done = heal_adapter(healed)
        assert done == [] and again.deltas == healed.deltas


def test_a_sound_adapter_stays_as_it_is(tmp_path):
    one = patient("zuzu", tmp_path, tmp_path)
    found, after = _healed(one, tmp_path)
    assert found.repairs == [] and found.proof is not None and found.proof.site is None
    check(one, found, after)


def test_several_faults_at_once(tmp_path):
    one = patient("zuzu", tmp_path, tmp_path)
    for seed, fault in enumerate(("a spike", "an untrained module", "a dead rank", "alpha 0")):
        FAULTS[fault](one, np.random.default_rng(seed))
    found, after = _healed(one, tmp_path)
    assert found.counts == {"untrained": 2, "dead-ranks": 1, "spike": 1}
    check(one, found, after)


# --- wrong implementations, each of which the law must catch


def _clamped(adapter: Adapter, measures: Any) -> Any:
    """All of the module gets fainter, not the spike alone."""
    changes = SOUND["spike"](adapter, measures)
    return {
        site: change._replace(delta=adapter.deltas[site].scaled(0.05))
        for site, change in changes.items()
    }


def _without_alpha(adapter: Adapter, measures: Any) -> Any:
    """The rank is lowered and alpha stays, so that the module gets louder."""
    changes = SOUND["dead-ranks"](adapter, measures)

    def wrong(site: Site, delta: LowRank) -> LowRank:
        old: Any = adapter.deltas[site]
        return replace(delta, scale=old.scale)

    return {s: c._replace(delta=wrong(s, c.delta)) for s, c in changes.items()}


def _a_rank_too_many(adapter: Adapter, measures: Any) -> Any:
    changes = SOUND["dead-ranks"](adapter, measures)

    def wrong(delta: LowRank) -> LowRank:
        kept = delta.rank - 1
        return replace(
            delta,
            up=ArrayTensor(delta.up.numpy()[:, :kept]),
            down=ArrayTensor(delta.down.numpy()[:kept]),
            scale=delta.scale.moved(delta.rank, kept),
        )

    return {s: c._replace(delta=wrong(c.delta)) for s, c in changes.items()}


def _neighbour_too(adapter: Adapter, measures: Any) -> Any:
    """The module after it is left out as well."""
    changes = dict(SOUND["untrained"](adapter, measures))
    sites = list(adapter.deltas)
    (site, change), *_ = changes.items()
    changes[sites[(sites.index(site) + 1) % len(sites)]] = change
    return changes


def _sign_lost(adapter: Adapter, measures: Any) -> Any:
    """Alpha gets positive, and up keeps its sign."""
    changes = SOUND["alpha"](adapter, measures)

    def wrong(site: Site, delta: LowRank) -> LowRank:
        old: Any = adapter.deltas[site]
        return replace(delta, up=old.up)

    return {s: c._replace(delta=wrong(s, c.delta)) for s, c in changes.items()}


def _one_factor(adapter: Adapter, measures: Any) -> Any:
    """Only up is balanced."""
    changes = SOUND["float16"](adapter, measures)

    def wrong(site: Site, delta: LowRank) -> LowRank:
        old: Any = adapter.deltas[site]
        return replace(delta, down=old.down)

    return {s: c._replace(delta=wrong(s, c.delta)) for s, c in changes.items()}


SOUND: dict[str, Callable[..., Any]] = {n: r.find for n, r in repairs.REPAIRS.items()}
WRONG = {
    "a spike": ("spike", _clamped),
    "a dead rank": ("dead-ranks", _without_alpha),
    "a dead rank, again": ("dead-ranks", _a_rank_too_many),
    "an untrained module": ("untrained", _neighbour_too),
    "negative alphas": ("alpha", _sign_lost),
    "unequal factors": ("float16", _one_factor),
}


@pytest.mark.parametrize("fault", WRONG)
def test_the_law_catches_wrong_repairs(fault, tmp_path, monkeypatch):
    name, wrong = WRONG[fault]
    sound = repairs.REPAIRS[name]
    monkeypatch.setitem(repairs.REPAIRS, name, sound._replace(find=wrong))
    one, _ = _sick(fault.partition(",")[0], "zuzu", 0, tmp_path, tmp_path)
    found, after = _healed(one, tmp_path)
    with pytest.raises((AssertionError, KeyError)):
        check(one, found, after)


# --- what cannot be repaired


@pytest.mark.parametrize("fault", ["NaN", "infinity", "a missing partner", "ranks that differ"])
def test_damage_is_refused_with_its_modules_and_left_out_on_demand(fault, tmp_path):
    one, module = _sick(fault, "zuzu", 1, tmp_path, tmp_path)
    with pytest.raises(AdapterError, match="cannot be repaired") as caught:
        _healed(one, tmp_path)
    assert module in str(caught.value) and "drop_damaged" in str(caught.value)
    assert not (tmp_path / "healed.safetensors").exists()
    found, after = _healed(one, tmp_path, drop_damaged=True)
    assert module in {r.module for r in found.repairs if r.repair == "damaged"}
    before = dense_of({k: v for k, v in one.arrays.items() if _stem(one, module) not in k})
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[stem], before[stem]) for stem in before)
    arrays, _ = read_safetensors(tmp_path / "healed.safetensors")
    assert not any(_stem(one, module) in key for key in arrays)
    assert lm.inspect(tmp_path / "healed.safetensors", deep=True).findings == []


def _stem(one: Patient, module: str | None) -> str:
    return next(stem for stem, name in one.names.items() if name == module) + "."


def test_nothing_is_left_of_what_never_trained(tmp_path):
    one, _ = _sick("never trained", "zuzu", 0, tmp_path, tmp_path)
    with pytest.raises(AdapterError, match="nothing would be left"):
        _healed(one, tmp_path)


def test_an_overflow_is_refused(tmp_path):
    one, module = _sick("float16 overflow", "generated", 0, tmp_path, tmp_path)
    with pytest.raises(AdapterError, match="this cannot be repaired") as caught:
        _healed(one, tmp_path, only=("dead-ranks",))
    assert str(module) in str(caught.value)


def test_unknown_tensors_are_not_lost(tmp_path):
    one = patient("zuzu", tmp_path, tmp_path)
    one.arrays["something.else"] = np.zeros(3, "float32")
    with pytest.raises(AdapterError, match=r"something\.else"):
        _healed(one, tmp_path)


# --- options and faces


def test_alpha_zero_can_be_read_as_the_rank(tmp_path):
    one, module = _sick("alpha 0", "zuzu", 0, tmp_path, tmp_path)
    stem = _stem(one, module)[:-1]
    found, after = _healed(one, tmp_path, alpha_zero="rank")
    assert [r.repair for r in found.repairs] == ["alpha"]
    one.put_alpha(stem, one.rank(stem))
    assert np.allclose(after[stem], dense_of(one.arrays)[stem], rtol=1e-6)


def test_only_some_repairs(tmp_path):
    one, _ = _sick("a spike", "zuzu", 0, tmp_path, tmp_path)
    FAULTS["an untrained module"](one, np.random.default_rng(5))
    found, _ = _healed(one, tmp_path, only=("untrained",))
    assert found.counts == {"untrained": 1} and "spike" in {p.code for p in found.findings}
    with pytest.raises(UsageError, match=r"(?s)'spikes' is not a repair.*did you mean spike"):
        _healed(one, tmp_path, only=("spikes",), force=True)


def test_python_gives_the_adapter_and_the_repairs(tmp_path):
    one, module = _sick("a dead rank", "zuzu", 0, tmp_path, tmp_path)
    found = lm.heal(written(one, tmp_path / "sick.safetensors"))
    assert [r.module for r in found.repairs] == [module]
    assert found.adapter is not None and found.adapter.ranks() == {6: 1, 7: 83}
    assert lm.heal(found.adapter).repairs == []


def test_the_command(run):
    one, module = _sick("a spike", "zuzu", 0, run.folder, run.folder)
    written(one, run.folder / "s.safetensors")
    assert run("inspect", "s", "--check").code == 0
    shown = run.ok("heal", "s").out
    assert "singular value was lowered" in shown and module in shown
    run.ok("inspect", "s-healed.safetensors", "--check")
    one, module = _sick("NaN", "zuzu", 0, run.folder, run.folder)
    written(one, run.folder / "n.safetensors")
    assert run("inspect", "n", "--check").code == 5
    run.refused(5, "heal", "n", "-o", "x.safetensors", says="--drop-damaged")
    result = run("heal", "s", "n", "a", "--out-dir", "out", "--json")
    assert result.code == 5
    files = {Path(f["path"]).name: f for f in result.json["files"]}
    assert files["s.safetensors"]["repairs"][0]["repair"] == "spike"
    assert files["a.safetensors"]["repairs"] == [] and files["n.safetensors"]["status"] == "failed"
    assert run.ok("heal", "n", "--drop-damaged", "--out-dir", "out").out
    run.ok("inspect", "out", "--check")


def test_a_recipe_heals_and_repeats(run):
    one, _ = _sick("a spike", "zuzu", 0, run.folder, run.folder)
    written(one, run.folder / "s.safetensors")
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {s: s.safetensors}\nsteps:\n"
        "  h: {heal: {adapter: s}}\n  m: {mix: {adapters: ['h:0.5']}, save: m.safetensors}\n"
    )
    run.ok("run", "r.yaml")
    assert "same file" in run.ok("run", "m.safetensors").out


# ---- nothing to repair


def _require_untouched(run, *options):
    """Require that `heal` of a sound adapter says that there is nothing to do, and writes nothing."""
    before = run.state()
    shown = run.ok("heal", "zuzu", *options).out
    assert "no file: there is nothing to repair" in shown
    found = run.ok("heal", "zuzu", *options, "--json").json
    assert found["outputs"] == [] and found["files"][0]["repairs"] == []
    assert found["files"][0]["status"] == "skipped"
    assert found["files"][0]["reason"] == "there is nothing to repair"
    assert run.state() == before


@pytest.mark.parametrize("options", [(), ("--out-dir", "out"), ("--force",)])
def test_nothing_is_written_where_nothing_is_repaired(run, options):
    _require_untouched(run, *options)


@pytest.mark.parametrize("wrong", ["_asks_for_file", "is_needless"])
def test_a_heal_that_always_writes_is_found(run, monkeypatch, wrong):
    from loramerge.verbs import heal as module

    if wrong == "_asks_for_file":
        monkeypatch.setattr(module, wrong, lambda parameters: True)
    else:
        monkeypatch.setattr(module.HealResult, wrong, False)
    with pytest.raises(AssertionError):
        _require_untouched(run)


@pytest.mark.parametrize(
    "options", [("-o", "x.safetensors"), ("--dtype", "float32"), ("--to", "diffusers")]
)
def test_a_file_that_is_asked_for_is_written(run, options):
    result = run.ok("heal", "zuzu", *options)
    assert "There was nothing to repair." in result.out
    (output,) = run.ok("heal", "zuzu", *options, "--json", "--force").json["outputs"]
    assert "the same" in run.ok("diff", "zuzu", output).out


def test_an_old_result_is_no_error_where_nothing_is_written(run):
    Path("zuzu-healed.safetensors").write_bytes(b"old")
    _require_untouched(run)
    run.refused(3, "heal", "zuzu", "-o", "zuzu-healed.safetensors", says="the output exists")


def test_sound_files_are_copied_on_demand(run):
    one, _ = _sick("a spike", "zuzu", 0, run.folder, run.folder)
    written(one, run.folder / "s.safetensors")
    command = ("heal", "s", "a", "--out-dir", "out", "--json")
    statuses = {Path(f["path"]).stem: f["status"] for f in run.ok(*command).json["files"]}
    assert statuses == {"s": "done", "a": "skipped"}
    statuses = [f["status"] for f in run.ok(*command, "--copy-rest").json["files"]]
    assert statuses == ["kept", "copied"]
    assert Path("out/a.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    run.refused(2, "heal", "a", "--copy-rest", says="--out-dir FOLDER")


def test_a_step_that_repairs_nothing_still_has_a_result(run):
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {a: a.safetensors}\nsteps:\n"
        "  well: {heal: {adapter: a}, save: w.safetensors}\n"
        "  small: {resize: {adapter: well, rank: 2}, save: small.safetensors}\n",
        "utf-8",
    )
    run.ok("run", "r.yaml")
    assert "the same" in run.ok("diff", "a", "w.safetensors").out
    assert Path("small.safetensors").exists()


def test_no_recipe_repeats_what_wrote_nothing(run):
    result = run.ok("heal", "zuzu", "--save-recipe", "r.yaml")
    assert "no recipe that repeats it" in result.err and not Path("r.yaml").exists()
