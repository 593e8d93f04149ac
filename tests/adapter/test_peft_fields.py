"""Fields of PEFT configurations that change what the tensors mean are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.formats.peft_fields import FIELDS, configuration_problems
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import AdapterError, FormatError
from tests.builders.commands import Runner
from tests.builders.samples import read_safetensors, safetensors_bytes

STEM = "base_model.model.model.layers"


def folder(
    path: Path,
    config: dict[str, Any],
    modules: tuple[str, ...] = ("0.q_proj",),
    stem: str = STEM,
) -> Path:
    """A PEFT folder of a language model with small factors."""
    path.mkdir(parents=True)
    random = np.random.default_rng(0)
    tensors = {}
    for module in modules:
        tensors[f"{stem}.{module}.lora_A.weight"] = random.standard_normal((2, 4)).astype("f4")
        tensors[f"{stem}.{module}.lora_B.weight"] = random.standard_normal((4, 2)).astype("f4")
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config
    (path / "adapter_config.json").write_text(json.dumps(content), "utf-8")
    return path


REFUSED: dict[str, tuple[str, Any]] = {
    "pissa": ("init_lora_weights", "pissa"),
    "pissa-fast": ("init_lora_weights", "pissa_niter_16"),
    "olora": ("init_lora_weights", "OLoRA"),
    "corda": ("init_lora_weights", "corda"),
    "lora-ga": ("init_lora_weights", "lora_ga"),
    "loftq": ("init_lora_weights", "loftq"),
    "an unknown initialisation": ("init_lora_weights", "something_new"),
    "kasa": ("kasa_config", {"beta": 1e-4}),
    "alora": ("alora_invocation_tokens", [1, 2]),
    "arrow": ("arrow_config", {"top_k": 2}),
    "qalora": ("use_qalora", True),
    "bdlora": ("use_bdlora", {"nblocks": 2}),
    "replicated layers": ("layer_replication", [[0, 2], [1, 3]]),
    "an unknown field": ("new_in_the_next_peft", {"a": 1}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fields_that_change_the_meaning_are_refused_by_name(case: str, tmp_path: Path) -> None:
    name, value = REFUSED[case]
    adapter = load(folder(tmp_path / "a", {name: value}))
    with pytest.raises(AdapterError, match=name):
        adapter.require_sound()
    (found,) = configuration_problems({"peft_type": "LORA", name: value})
    assert found.remedy and name in found.message


HARMLESS = [True, False, None, "gaussian", "eva", "orthogonal", "mica"]


@pytest.mark.parametrize("value", HARMLESS)
def test_an_initialisation_that_keeps_the_base_is_read(value: Any, tmp_path: Path) -> None:
    load(folder(tmp_path / "a", {"init_lora_weights": value})).require_sound()


def test_an_empty_field_that_is_not_known_changes_nothing() -> None:
    assert not list(configuration_problems({"x": None, "y": False, "z": {}, "megatron_core": "m"}))


def test_every_refusal_gives_a_reason_and_a_way_out() -> None:
    for fields in FIELDS.values():
        for name, field in fields.items():
            if field.use == "refused":
                assert field.remedy and (field.reason or name == "init_lora_weights")


def test_commands_refuse_and_inspect_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runner(tmp_path, capsys)
    path = folder(tmp_path / "a", {"init_lora_weights": "pissa"})
    for command in (("mix", path), ("resize", path, "--rank", "1")):
        result = run(*command, "-o", tmp_path / "out")
        assert result.code == 5 and "path_initial_model_for_weight_conversion" in result.err
        assert not (tmp_path / "out").exists()
    found = run("inspect", path)
    assert found.code == 0 and "subtracts the largest singular values" in found.out


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PSOFT", "XLORA", "NEWER"])
def test_other_types_are_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runner(tmp_path, capsys)
    path = folder(tmp_path / "a", {"peft_type": kind})
    for command in ("inspect", "mix", "resize"):
        result = run(command, path, *(("--rank", "1") if command == "resize" else ()))
        assert result.code == 4 and f"a PEFT adapter of type {kind} cannot be read" in result.err


# type → the end of the one tensor that is left of a module
_CUT = {"VERA": "vera_lambda_b", "LOHA": "hada_w1_a", "BOFT": "boft_R", "LORA": "lora_A.weight"}


@pytest.mark.parametrize("kind", _CUT)
def test_the_type_is_named_where_tensors_are_missing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runner(tmp_path, capsys)
    path = folder(tmp_path / "a", {"peft_type": kind}, ())
    cut = {f"{STEM}.0.q_proj.{_CUT[kind]}": np.ones((2, 4), np.float32)}
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(cut))
    (found,) = run("inspect", path, "--json").json
    assert (found["what"], found["dialect"], found["modules"]) == ("adapter", "peft", 0)
    assert any(f"in a PEFT adapter of type {kind}" in p["message"] for p in found["findings"])
    mixed = run("mix", path)
    assert mixed.code == 5 and f"in a PEFT adapter of type {kind}" in mixed.err


@pytest.mark.parametrize("kind", ["VERA", "ADALORA", "HRA", "LOHA"])
def test_tensors_of_another_type_than_the_configuration_says_are_an_error(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runner(tmp_path, capsys)
    path = folder(tmp_path / "a", {"peft_type": kind})
    found = run("inspect", path)
    assert found.code == 0 and f"of type {kind}, and the tensors are those of LORA" in found.out
    assert run("mix", path).code == 5


def config_of(path: Path) -> dict[str, Any]:
    content = json.loads((path / "adapter_config.json").read_text("utf-8"))
    assert isinstance(content, dict)
    return content


CHOICE = {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"}


def test_fields_that_choose_modules_stay_while_the_modules_do(tmp_path: Path) -> None:
    adapter = load(folder(tmp_path / "a", CHOICE, ("0.q_proj", "1.q_proj")))
    save(adapter, tmp_path / "same")
    assert {k: config_of(tmp_path / "same")[k] for k in CHOICE} == CHOICE
    one = dict(list(adapter.deltas.items())[:1])
    save(adapter.with_deltas(one), tmp_path / "fewer")
    found = config_of(tmp_path / "fewer")
    assert found["target_modules"] == ["model.layers.0.q_proj"]
    assert not {"layers_to_transform", "layers_pattern"} & found.keys()


def test_a_mix_chooses_the_modules_of_both(tmp_path: Path) -> None:
    import loramerge as lm

    one = folder(tmp_path / "a", CHOICE | {"layers_to_transform": [0]}, ("0.q_proj",))
    two = folder(tmp_path / "b", CHOICE | {"layers_to_transform": [3]}, ("3.q_proj",))
    save(lm.mix([(load(one), 1.0), (load(two), 0.5)]), tmp_path / "out")
    found = config_of(tmp_path / "out")
    assert found["target_modules"] == ["model.layers.0.q_proj", "model.layers.3.q_proj"]
    assert "layers_to_transform" not in found


def test_adapters_of_different_bases_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runner(tmp_path, capsys)
    name = "base_model_name_or_path"
    one = folder(tmp_path / "a", {name: "org/Small-1B"})
    other = folder(tmp_path / "b", {name: "org/Small-3B"})
    copy = folder(tmp_path / "c", {name: "/models/small-1b-bnb-4bit/"})
    result = run("mix", one, other, "-o", tmp_path / "out")
    assert result.code == 4 and "org/Small-1B and org/Small-3B" in result.err
    assert "--base B" in result.err and name in result.err
    run.ok("mix", one, copy, "-o", tmp_path / "out")


def test_experts_are_read_apart_and_written_together(tmp_path: Path) -> None:
    """`A.reshape(E, r, in)[e]` and `B.reshape(out, r, E)[..., e]`, times alpha / r."""
    random = np.random.default_rng(0)
    stem, count, rank = f"{STEM}.0.mlp.experts", 3, 2
    shapes = {"gate_up_proj": (10, 4), "down_proj": (4, 5)}
    tensors, expected = {}, {}
    for name, layer in (("down_proj", stem), ("gate_up_proj", f"{stem}.base_layer")):
        out, inside = shapes[name]
        a = random.standard_normal((count * rank, inside)).astype("f4")
        b = random.standard_normal((out, rank * count)).astype("f4")
        tensors |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
        for e in range(count):
            factors = b.reshape(out, rank, count)[..., e], a.reshape(count, rank, inside)[e]
            expected[f"model.layers.0.mlp.experts.{name}.{e}"] = 1.5 * factors[0] @ factors[1]
    path = tmp_path / "a"
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 3,
        "target_parameters": ["mlp.experts.gate_up_proj", "experts.down_proj"],
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    adapter = load(path).require_sound()
    assert set(adapter) == set(expected)
    for module, delta in adapter.modules():
        assert np.allclose(delta.dense(), expected[module], atol=1e-6)
    save(adapter, tmp_path / "b")
    again, _ = read_safetensors(tmp_path / "b" / "adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[key], tensors[key]) for key in tensors)
    assert config_of(tmp_path / "b")["target_modules"] == []


@pytest.mark.parametrize("config", [{"r": 4}, {"target_parameters": ["experts.other"]}])
def test_experts_that_do_not_fit_their_configuration_are_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    named = {"target_parameters": ["experts.down_proj"]} | config
    place = folder(tmp_path / "a", named, ("0.mlp.experts",))
    with pytest.raises(FormatError, match="experts"):
        load(place)
