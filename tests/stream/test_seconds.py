"""Pipelines with two transformers (Wan 2.2): each adapter goes where it belongs, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.adapter.metadata import NETWORK
from loramerge.adapter.readers import readings
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.cli.main import main
from loramerge.errors import AdapterError, NotExpressible
from loramerge.families import FAMILIES
from loramerge.families.spec import plain_slot
from loramerge.steps.references import parse_reference
from loramerge.stream.plan import plan_bake
from loramerge.verbs.inspect import inspect_adapter
from tests.adapter.test_no_module_is_lost import tensors_of, write
from tests.builders.bases import read_safetensors, write_safetensors
from tests.builders.samples import Array, relative
from tests.families.test_modulation import WIDTH, wan_base

FIRST, SECOND = "transformer", "transformer_2"
_NAME = "diffusion_pytorch_model.safetensors"
_KEY = "blocks.1.attn1.to_q.weight"
_SAYS_NOTHING = "nothing says"


def _network(seed: int) -> dict[str, Array]:
    """A narrow Wan with diffusers' names."""
    (component,) = (c for c in FAMILIES["wan"].components if c.name == FIRST)
    sizes, random = wan_base(), np.random.default_rng(seed)
    spelling = FAMILIES["wan"].spellings[FIRST][0]
    return {
        plain_slot(module, parameter).tensor: random.standard_normal(
            sizes[slot.tensor].shape
        ).astype("float32")
        for module, parameter, slot in spelling.slots(component)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of both."""
    root = tmp_path_factory.mktemp("wan22") / "base"
    for number, network in enumerate((FIRST, SECOND)):
        (root / network).mkdir(parents=True)
        write_safetensors(root / network / _NAME, _network(number))
    (root / "model_index.json").write_text("{}")
    return root


def _adapter(path: Path, *networks: str) -> Path:
    """An adapter of diffusers' keys of networks, or of ComfyUI's."""
    heads = {network: ("attn1.to_q", (f"{network}.",)) for network in networks}
    found = heads or {"": ("self_attn.q", ("diffusion_model.",))}
    stems = {
        f"{head}blocks.{i}.{leaf}": (WIDTH, WIDTH)
        for leaf, those in found.values()
        for head in those
        for i in range(2)
    }
    return write(path, tensors_of(stems))


def _planned(base: Checkpoint, text: Path | str) -> tuple[dict[str, Array], list[str]]:
    """Plan the bake of `PATH:weight`; return component → the change of one module, and the notes."""
    reference = parse_reference(str(text))
    plan = plan_bake(base, [(load(reference.name), reference.weight)])
    changes = {
        file.component or "lone": edit.deltas[0].dense()
        for file, name, edit in plan.all_edits()
        if name == _KEY and len(edit.deltas) == 1
    }
    return changes, plan.notes


def _change(path: Path, component: str = FIRST) -> Array:
    return load(path)[f"{component}.blocks.1.attn1.to_q"].dense()


@pytest.fixture(scope="module")
def base(folder: Path) -> Checkpoint:
    """The pipeline, opened."""
    return open_checkpoint(folder)


def test_both_networks_are_found_in_a_folder_and_one_outside(
    folder: Path, base: Checkpoint
) -> None:
    assert base.layouts == {FIRST: "diffusers", SECOND: "diffusers"}
    assert open_checkpoint(folder / SECOND).layouts == {FIRST: "diffusers"}


def test_an_adapter_of_both_goes_into_both_with_a_weight_for_each(
    folder: Path, tmp_path: Path
) -> None:
    path, out = _adapter(tmp_path / "both.safetensors", FIRST, SECOND), tmp_path / "out"
    result = lm.bake(folder, [f"{path}:{FIRST}=1:{SECOND}=0.5"], out)
    for network, weight in ((FIRST, 1.0), (SECOND, 0.5)):
        before, after = (read_safetensors(root / network / _NAME)[0] for root in (folder, out))
        change = weight * _change(path, network)
        assert relative(after[_KEY] - before[_KEY], change) < 1e-5
        assert sum(not np.array_equal(after[name], before[name]) for name in before) == 2
    assert result.notes == []


@pytest.mark.parametrize(
    ("name", "networks", "into"),
    [
        ("a_high_noise", (), FIRST),
        ("a.LowNoise", (), SECOND),
        ("plain", (FIRST,), FIRST),
        ("plain", (SECOND,), SECOND),
        ("low noise", (SECOND,), SECOND),
    ],
)
def test_an_adapter_of_one_goes_where_its_keys_or_its_name_say(
    base: Checkpoint, tmp_path: Path, name: str, networks: tuple[str, ...], into: str
) -> None:
    path = _adapter(tmp_path / f"{name}.safetensors", *networks)
    changes, notes = _planned(base, f"{path}:0.5")
    assert set(changes) == {into}
    assert relative(changes[into], 0.5 * _change(path, *networks)) < 1e-6
    other = SECOND if into == FIRST else FIRST
    assert notes[-1] == f"{other} of this base is copied unchanged"
    assert networks == (SECOND,) or notes[0] == f"{path} is for {into}"


@pytest.mark.parametrize(
    ("name", "networks", "says"),
    [
        ("style", (), _SAYS_NOTHING),
        ("low_light", (), _SAYS_NOTHING),
        ("high_noise_and_low_noise", (), _SAYS_NOTHING),
        ("low_noise", (FIRST,), f"its keys say {FIRST}, and its name {SECOND}"),
    ],
)
def test_what_is_not_said_is_refused_until_weights_say_it(
    base: Checkpoint, tmp_path: Path, name: str, networks: tuple[str, ...], says: str
) -> None:
    path = _adapter(tmp_path / f"{name}.safetensors", *networks)
    with pytest.raises(AdapterError, match=says):
        _planned(base, path)
    changes, _ = _planned(base, f"{path}:{FIRST}=0.25:{SECOND}=0.5")
    assert relative(changes[FIRST], 0.25 * _change(path)) < 1e-6
    assert relative(changes[SECOND], 0.5 * _change(path)) < 1e-6
    assert set(_planned(base, f"{path}:{FIRST}=0:{SECOND}=1")[0]) == {SECOND}


def test_the_header_says_what_the_file_was_called(base: Checkpoint, tmp_path: Path) -> None:
    path = _adapter(tmp_path / "x.safetensors")
    write_safetensors(path, read_safetensors(path)[0], {"ss_output_name": "me_low_noise"})
    assert set(_planned(base, path)[0]) == {SECOND}


@pytest.mark.parametrize("network", [FIRST, SECOND])
def test_the_header_of_a_half_names_its_network(
    base: Checkpoint, tmp_path: Path, network: str
) -> None:
    """Whatever the file is called."""
    path = _adapter(tmp_path / "x.safetensors")
    write_safetensors(path, read_safetensors(path)[0], {NETWORK: network})
    assert set(_planned(base, f"{path}:0.5")[0]) == {network}


@pytest.mark.parametrize("dialect", ["diffusers", "comfyui"])
@pytest.mark.parametrize("verb", ["convert", "resize", "mix"])
def test_what_a_name_says_is_kept_under_another_name(
    verb: str, dialect: str, base: Checkpoint, tmp_path: Path
) -> None:
    path, plain = (_adapter(tmp_path / f"{name}.safetensors") for name in ("me_low_noise", "plain"))
    words = {"convert": (), "resize": ("--rank", "1"), "mix": ()}[verb]
    for source, name in ((path, "x"), (plain, "y")):
        out = tmp_path / f"{name}.safetensors"
        assert main([verb, str(source), *words, "--to", dialect, "-o", str(out), "-q"]) == 0
    found = load(tmp_path / "x.safetensors")
    assert list(found.components()) == [SECOND]
    assert (NETWORK in found.info.metadata) == (dialect == "comfyui")
    assert set(_planned(base, tmp_path / "x.safetensors")[0]) == {SECOND}
    unknown = load(tmp_path / "y.safetensors")
    assert list(unknown.components()) == [FIRST] and NETWORK not in unknown.info.metadata


def test_keys_and_name_that_contradict_each_other_go_on_doing_so(
    base: Checkpoint, tmp_path: Path
) -> None:
    path = _adapter(tmp_path / "low_noise.safetensors", FIRST)
    out = tmp_path / "new_low_noise.safetensors"
    assert main(["resize", str(path), "--rank", "1", "-o", str(out), "-q"]) == 0
    assert NETWORK not in load(out).info.metadata
    with pytest.raises(AdapterError, match="its keys say"):
        plan_bake(base, [(load(out), Weight())])


def test_the_weight_of_its_keys_follows_it(base: Checkpoint, tmp_path: Path) -> None:
    path = _adapter(tmp_path / "low_noise.safetensors")
    changes, _ = _planned(base, f"{path}:{FIRST}=0.5")
    assert relative(changes[SECOND], 0.5 * _change(path)) < 1e-6


def test_a_base_of_one_network_takes_its_half_of_both(folder: Path, tmp_path: Path) -> None:
    path = _adapter(tmp_path / "both.safetensors", FIRST, SECOND)
    changes, notes = _planned(open_checkpoint(folder / SECOND / _NAME), path)
    assert relative(changes["lone"], _change(path, SECOND)) < 1e-6
    assert notes == [f"the base is {SECOND}; 2 modules of {FIRST} in {path} are not for it"]
    lone = tmp_path / "base.safetensors"
    lone.write_bytes((folder / SECOND / _NAME).read_bytes())
    base = open_checkpoint(lone)
    with pytest.raises(AdapterError, match="nothing says which of the two the base is"):
        _planned(base, path)
    for network, zero in ((FIRST, SECOND), (SECOND, FIRST)):
        changes, _ = _planned(base, f"{path}:{zero}=0")
        assert relative(changes["lone"], _change(path, network)) < 1e-6


@pytest.mark.long_tail
def test_a_merge_of_folders_merges_both(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for number, network in enumerate((FIRST, SECOND)):
        (other / network).mkdir(parents=True)
        write_safetensors(other / network / _NAME, _network(7 + number))
    (other / "model_index.json").write_text("{}")
    lm.merge([(folder, 0.5), (other, 0.5)], tmp_path / "out")
    for number, network in enumerate((FIRST, SECOND)):
        merged = read_safetensors(tmp_path / "out" / network / _NAME)[0]
        for name, value in merged.items():
            mean = 0.5 * (_network(number)[name] + _network(7 + number)[name])
            assert relative(value, mean) < 1e-5


def test_what_a_folder_has_learnt_is_extracted_from_both(folder: Path, tmp_path: Path) -> None:
    path = _adapter(tmp_path / "both.safetensors", FIRST, SECOND)
    lm.bake(folder, [path], tmp_path / "baked")
    lm.save(lm.extract(tmp_path / "baked", folder, rank=2), tmp_path / "found.safetensors")
    found, expected = load(tmp_path / "found.safetensors"), load(path)
    assert found.info.dialect == "diffusers" and set(found) == set(expected)
    for module, delta in expected.items():
        assert relative(found[module].dense(), delta.dense()) < 1e-3


def test_other_dialects_refuse_both_and_no_program_is_said_to_load_them(tmp_path: Path) -> None:
    adapter = load(_adapter(tmp_path / "both.safetensors", FIRST, SECOND))
    with pytest.raises(NotExpressible, match="diffusers"):
        lm.save(adapter, tmp_path / "c.safetensors", dialect="comfyui")
    assert [found.program.name for found in readings(adapter)] == []


def test_a_reference_gives_each_a_weight() -> None:
    weight = parse_reference(f"a:{FIRST}=1:{SECOND}=0.6").weight
    assert weight == Weight(1.0, {"transformer": 1.0, "unet": 1.0, SECOND: 0.6})


# --- files of one network each, mixed -----------------------------------------------------------------


def test_a_pair_of_files_is_mixed_into_one_adapter_of_both(tmp_path: Path) -> None:
    high, low = (_adapter(tmp_path / f"w_{name}_noise.safetensors") for name in ("high", "low"))
    out = tmp_path / "out.safetensors"
    mixed = lm.mix([f"{high}:0.5", f"{low}:{FIRST}=0.25"])  # a weight goes by the names in the file
    lm.save(mixed, out)
    for found in (mixed, load(out)):
        assert set(found.components()) == {FIRST, SECOND}
        for network, path, weight in ((FIRST, high, 0.5), (SECOND, low, 0.25)):
            change = found[f"{network}.blocks.1.attn1.to_q"].dense()
            assert relative(change, weight * _change(path)) < 1e-3


def test_two_files_of_one_network_are_added(tmp_path: Path) -> None:
    one, other = (_adapter(tmp_path / f"{name}_high_noise.safetensors") for name in "ab")
    mixed = lm.mix([one, other])
    assert set(mixed.components()) == {FIRST}
    total = _change(one) + _change(other)
    assert relative(mixed[f"{FIRST}.blocks.1.attn1.to_q"].dense(), total) < 1e-3


def test_what_does_not_say_its_network_is_not_added_to_a_pair(tmp_path: Path) -> None:
    low, plain = (_adapter(tmp_path / f"{name}.safetensors") for name in ("w_low_noise", "plain"))
    with pytest.raises(AdapterError, match=_SAYS_NOTHING):
        lm.mix([low, plain])
    mixed = lm.mix([low, f"{plain}:{FIRST}=0:{SECOND}=0.5"])
    assert set(mixed.components()) == {SECOND}
    total = _change(low) + 0.5 * _change(plain)
    assert relative(mixed[f"{SECOND}.blocks.1.attn1.to_q"].dense(), total) < 1e-3


def test_inspect_says_which_network_a_name_tells(tmp_path: Path) -> None:
    low, plain = (_adapter(tmp_path / f"{name}.safetensors") for name in ("w_low_noise", "plain"))
    said = [[f.message for f in inspect_adapter(load(path)).findings] for path in (low, plain)]
    assert any("is for transformer_2" in text for text in said[0])
    assert not any("transformer_2" in text for text in said[1])
