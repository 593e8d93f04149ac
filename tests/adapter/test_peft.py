"""PEFT folders and the configuration in diffusers' headers: what they say counts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, Info
from loramerge.adapter.formats.peft_patterns import pattern_value
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import AdapterError, CorruptFile, FormatError, MissingFile, NotExpressible
from loramerge.files.tensors import ArrayTensor
from loramerge.files.writer import write_tensors
from tests.builders.samples import (
    Array,
    Factors,
    Sample,
    adaptable,
    data_section,
    factors_for,
    make,
    oracle,
    read_safetensors,
    relative,
    safetensors_bytes,
    spell,
    write,
)

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
Q, K, OUT = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn1.to_out.0"
TE = "text_encoder.text_model.encoder.layers.2.self_attn.q_proj"


def factors(*names: str, rank: int = 4) -> dict[str, Factors]:
    return factors_for({name: adaptable("sd15")[name] for name in names}, rank=rank)


def folder(
    path: Path, config: Mapping[str, Any], *names: str, rank: int = 4
) -> tuple[Sample, Path]:
    """A folder of UNet modules with the configuration given."""
    sample = spell(factors(*names, rank=rank), "sd15", "peft")
    sample.configs = {"unet": {"peft_type": "LORA", "r": rank, "lora_alpha": rank} | dict(config)}
    return sample, write(sample, path)


def meant(path: Path) -> dict[str, Array]:
    return {site.name: d.dense() for site, d in load(path).require_sound().deltas.items()}


def config_of(path: Path) -> dict[str, Any]:
    content = json.loads((path / "adapter_config.json").read_text("utf-8"))
    assert isinstance(content, dict)
    return content


# configuration → scale of Q, K and OUT at rank 4
CONFIGS: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {
    "one alpha for all": ({"lora_alpha": 6}, (1.5, 1.5, 1.5)),
    "rank-stabilised": ({"lora_alpha": 6, "use_rslora": True}, (3.0, 3.0, 3.0)),
    "a pattern by the end": ({"lora_alpha": 4, "alpha_pattern": {"to_q": 2}}, (0.5, 1.0, 1.0)),
    "a pattern with dots": ({"lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 2}}, (0.5, 1.0, 1.0)),
    "a whole path": (
        {"lora_alpha": 4, "alpha_pattern": {K.removeprefix("unet."): 1}},
        (1.0, 0.25, 1.0),
    ),
    "an anchored path": (
        {"lora_alpha": 4, "alpha_pattern": {f"^{K.removeprefix('unet.')}": 1}},
        (1.0, 0.25, 1.0),
    ),
    "an expression": ({"lora_alpha": 4, "alpha_pattern": {r"attn\d\.to_[qk]": 8}}, (2.0, 2.0, 1.0)),
    "the first pattern counts": (
        {"lora_alpha": 4, "alpha_pattern": {"to_q": 2, "attn1.to_q": 8}},
        (0.5, 1.0, 1.0),
    ),
    "half a name is no match": ({"lora_alpha": 4, "alpha_pattern": {"o_q": 2}}, (1.0, 1.0, 1.0)),
    "the middle of a path is no match": (
        {"lora_alpha": 4, "alpha_pattern": {"attn1": 2}},
        (1.0, 1.0, 1.0),
    ),
    "rank-stabilised pattern": (
        {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"to_k": 1}},
        (2.0, 0.5, 2.0),
    ),
    "the rank stated is not the rank stored": ({"r": 64, "lora_alpha": 4}, (1.0, 1.0, 1.0)),
    "a rank pattern changes nothing": (
        {"lora_alpha": 4, "rank_pattern": {"to_q": 99}},
        (1.0, 1.0, 1.0),
    ),
    "no expression": ({"lora_alpha": 4, "alpha_pattern": {"(to_q": 2}}, (1.0, 1.0, 1.0)),
    "no alpha at all": ({"lora_alpha": None}, (1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_configuration_scales(case: str, tmp_path: Path) -> None:
    config, scales = CONFIGS[case]
    sample, path = folder(tmp_path / "a", config, Q, K, OUT)
    found = meant(path)
    plain = oracle(Sample("sd15", "peft", sample.tensors), (Q, K, OUT))
    for name, scale in zip((Q, K, OUT), scales, strict=True):
        assert relative(found[name], scale * plain[name]) < 1e-12
    for target in ("kohya", "diffusers", "peft"):
        again = tmp_path / target
        save(load(path), again, to=target)
        written = meant(again)
        assert all(relative(written[n], found[n]) < 1e-6 for n in found)


def test_patterns_agree_with_peft(tmp_path: Path) -> None:
    other = pytest.importorskip("peft.utils.other")
    for case, (config, _) in CONFIGS.items():
        if case == "no expression":
            continue  # PEFT raises
        patterns = config.get("alpha_pattern", {})
        for name in (Q, K, OUT):
            path = name.removeprefix("unet.")
            key = other.get_pattern_key(patterns.keys(), path)
            assert pattern_value(patterns, path) == patterns.get(key)


def test_a_wrong_rule_would_be_seen(tmp_path: Path) -> None:
    """Looking for the pattern anywhere in the path takes another alpha."""
    patterns = {"attn1": 2}
    assert any(pattern in Q for pattern in patterns)
    _, path = folder(tmp_path / "a", {"lora_alpha": 4, "alpha_pattern": patterns}, Q)
    plain = oracle(Sample("sd15", "peft", folder(tmp_path / "b", {}, Q)[0].tensors), [Q])
    assert relative(meant(path)[Q], 0.5 * plain[Q]) > 0.1


def test_rows_of_a_are_the_rank_and_the_scale_its_root(tmp_path: Path) -> None:
    sample, path = folder(tmp_path / "a", {"lora_alpha": 5, "use_rslora": True}, Q, rank=7)
    plain = oracle(Sample("sd15", "peft", sample.tensors), [Q])[Q]
    assert relative(meant(path)[Q], 5 / math.sqrt(7) * plain) < 1e-12
    assert relative(meant(path)[Q], 5 / 7 * plain) > 0.1


def test_the_adapter_file_in_a_folder_finds_its_configuration(tmp_path: Path) -> None:
    _, path = folder(tmp_path / "a", {"lora_alpha": 2}, Q)
    inside = meant(path / "adapter_model.safetensors")
    assert np.array_equal(inside[Q], meant(path)[Q])


def test_without_a_configuration_alpha_is_unknown_and_said(tmp_path: Path) -> None:
    _, path = folder(tmp_path / "a", {"lora_alpha": 2}, Q)
    (path / "adapter_config.json").unlink()
    adapter = load(path / "adapter_model.safetensors").require_sound()
    (problem,) = adapter.info.problems
    assert (problem.severity, problem.code) == ("warning", "alpha-unknown")
    assert "adapter_config.json" in problem.remedy
    assert adapter.alphas() == {}


def test_infixes_of_live_models_are_read_and_kept(tmp_path: Path) -> None:
    sample, path = folder(tmp_path / "a", {"lora_alpha": 2}, Q)
    file = path / "adapter_model.safetensors"
    arrays, metadata = read_safetensors(file)
    arrays = {k.replace(".weight", ".default.weight"): v for k, v in arrays.items()}
    file.write_bytes(safetensors_bytes(arrays, metadata))
    assert relative(meant(path)[Q], oracle(sample, [Q])[Q]) < 1e-12
    save(load(path), tmp_path / "b")
    assert set(read_safetensors(tmp_path / "b" / "adapter_model.safetensors")[0]) == set(arrays)


def test_modules_to_save_replace(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    head = "base_model.model."
    arrays = {
        f"{head}encoder.q_lin.lora_A.weight": np.ones((2, 6), np.float32),
        f"{head}encoder.q_lin.lora_B.weight": np.ones((6, 2), np.float32),
        f"{head}classifier.weight": np.full((3, 6), 2.0, np.float32),
        f"{head}classifier.bias": np.full(3, 4.0, np.float32),
    }
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "modules_to_save": ["classifier", "score"],
    }
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(arrays))
    (path / "adapter_config.json").write_text(json.dumps(config))
    adapter = load(path).require_sound()
    assert adapter.kinds() == {"lora": 1, "set": 2}
    found = {site.name: delta for site, delta in adapter.deltas.items()}
    base = np.ones((3, 6))
    assert found["classifier"].needs_base
    assert np.array_equal(
        base + found["classifier"].dense(base), arrays[f"{head}classifier.weight"]
    )
    assert found["classifier.bias"].shape == (3,)
    save(adapter, tmp_path / "b")
    file = "adapter_model.safetensors"
    assert data_section(tmp_path / "b" / file) == data_section(path / file)
    assert config_of(tmp_path / "b")["modules_to_save"] == ["classifier", "score"]


# --- writing -----------------------------------------------------------------------------------


def test_a_folder_for_each_component_where_there_are_several(tmp_path: Path) -> None:
    sample = spell(factors(Q, TE), "sd15", "kohya")
    save(load(write(sample, tmp_path / "k")), tmp_path / "p", to="peft")
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"unet", "text_encoder"}
    names = config_of(tmp_path / "p" / "text_encoder")["target_modules"]
    assert names == ["encoder.layers.2.self_attn.q_proj"]  # fits text_model.encoder… by its end
    keys = read_safetensors(tmp_path / "p" / "text_encoder" / "adapter_model.safetensors")[0]
    assert all(key.startswith("base_model.model.encoder.layers.2.") for key in keys)


def test_a_folder_alone_where_there_is_one(tmp_path: Path) -> None:
    save(load(write(spell(factors(Q), "sd15", "kohya"), tmp_path / "k")), tmp_path / "p", to="peft")
    assert (tmp_path / "p" / "adapter_config.json").is_file()


@pytest.mark.parametrize("family", ["sdxl", "sdxl-refiner"])
def test_the_second_text_encoder_alone_is_read_back_as_such(family: str, tmp_path: Path) -> None:
    name = "text_encoder_2.text_model.encoder.layers.20.mlp.fc1"
    sample = make(family, "kohya", {name: adaptable(family)[name]}, alpha=1.0)
    save(load(write(sample, tmp_path / "k")), tmp_path / "p", to="peft")
    found = meant(tmp_path / "p")
    assert list(found) == [name]
    assert relative(found[name], oracle(sample, [name])[name]) < 1e-6


def test_two_folders_put_together_lose_no_tensor(tmp_path: Path) -> None:
    """Each wrote its keys without a folder for the component; together they need two."""
    expected: dict[str, Array] = {}
    parts = []
    for i, name in enumerate((Q, TE)):
        sample = make("sd15", "peft", {name: adaptable("sd15")[name]}, alpha=1.0)
        parts.append(load(write(sample, tmp_path / str(i))))
        expected |= oracle(sample, [name])
    info = Info(
        dialects={"peft": 2},
        detection=parts[0].info.detection,
        spelling=parts[0].info.spelling | parts[1].info.spelling,
    )
    both = Adapter({**parts[0].deltas, **parts[1].deltas}, info=info)
    save(both, tmp_path / "both", to="peft")
    found = meant(tmp_path / "both")
    assert found.keys() == expected.keys()
    assert all(relative(found[n], expected[n]) < 1e-6 for n in found)


def test_folders_of_an_unknown_family_stay_apart(tmp_path: Path) -> None:
    for i, component in enumerate(("transformer", "text_encoder_3"), 1):
        path = tmp_path / "a" / component
        path.mkdir(parents=True)
        stem = "base_model.model.blocks.0.attn.to_q"
        arrays = {
            f"{stem}.lora_A.weight": np.full((2, 5), i, np.float32),
            f"{stem}.lora_B.weight": np.ones((4, 2), np.float32),
        }
        (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(arrays))
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": i}
        (path / "adapter_config.json").write_text(json.dumps(config))
    adapter = load(tmp_path / "a").require_sound()
    assert adapter.family is None
    assert {site.name: d.dense()[0, 0] for site, d in adapter.deltas.items()} == {
        "transformer.blocks.0.attn.to_q": 1.0,
        "text_encoder_3.blocks.0.attn.to_q": 4.0,
    }
    save(adapter, tmp_path / "b")
    for component in ("transformer", "text_encoder_3"):
        first, second = (tmp_path / n / component / "adapter_model.safetensors" for n in "ab")
        assert read_safetensors(first)[0].keys() == read_safetensors(second)[0].keys()
    assert meant(tmp_path / "b").keys() == meant(tmp_path / "a").keys()


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    adapter = load(write(spell(factors(Q), "sd15", "kohya"), tmp_path / "k"))
    with pytest.raises(FormatError, match="a PEFT adapter is a folder"):
        save(adapter, tmp_path / "a.safetensors", to="peft")


# --- broken folders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("{", CorruptFile, "cannot be read"),
        ("[]", CorruptFile, "not a JSON object"),
        ('{"peft_type": "PSOFT"}', FormatError, "type PSOFT"),
    ],
)
def test_a_broken_configuration_is_said(
    content: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    _, path = folder(tmp_path / "a", {}, Q)
    (path / "adapter_config.json").write_text(content)
    with pytest.raises(error, match=words):
        load(path)


@pytest.mark.parametrize(
    "config", [{"lora_alpha": "much"}, {"lora_alpha": [1]}, {"alpha_pattern": [1]}]
)
def test_an_alpha_that_is_no_number_is_a_problem(config: dict[str, Any], tmp_path: Path) -> None:
    _, path = folder(tmp_path / "a", config, Q)
    adapter = load(path)
    assert [p.severity for p in adapter.info.problems] == ["error"]
    with pytest.raises(AdapterError, match="is not a"):
        adapter.require_sound()


def test_a_folder_without_an_adapter_is_said(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no adapter"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingFile, match=r"no adapter_model\.safetensors"):
        load(tmp_path)


# --- the header of diffusers' files ------------------------------------------------------------


def with_header(flat: object, *names: str) -> Sample:
    sample = spell(factors(*names), "sd15", "diffusers")
    raw = flat if isinstance(flat, str) else json.dumps(flat)
    sample.metadata["lora_adapter_metadata"] = raw
    return sample


HEADER = {
    "unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 2},
    "text_encoder.r": 4, "text_encoder.lora_alpha": 1, "text_encoder.use_rslora": True,
}  # fmt: skip


def test_the_header_of_a_diffusers_file_scales(tmp_path: Path) -> None:
    sample = with_header(HEADER, Q, K, TE)
    path = write(sample, tmp_path / "a.safetensors")
    found = meant(path)
    plain = oracle(Sample("sd15", "diffusers", sample.tensors), (Q, K, TE))
    for name, scale in {Q: 2.0, K: 0.5, TE: 0.5}.items():
        assert relative(found[name], scale * plain[name]) < 1e-12


def test_a_file_that_came_with_a_header_keeps_its_bytes_and_says_the_same(tmp_path: Path) -> None:
    path = write(with_header(HEADER, Q, K, TE), tmp_path / "a.safetensors")
    save(load(path), tmp_path / "b.safetensors")
    assert data_section(tmp_path / "b.safetensors") == data_section(path)
    first, second = meant(path), meant(tmp_path / "b.safetensors")
    assert all(relative(second[n], first[n]) < 1e-12 for n in first)


def test_a_file_written_anew_means_the_same_to_readers_that_ignore_the_header(
    tmp_path: Path,
) -> None:
    modules = {name: adaptable("sd15")[name] for name in (Q, K, TE)}
    sample = spell(factors_for(modules, rank=[2, 3, 4], alpha=[1.0, 3.7, -2.0]), "sd15", "kohya")
    save(load(write(sample, tmp_path / "k")), tmp_path / "d", to="diffusers")
    arrays, metadata = read_safetensors(tmp_path / "d")
    expected = oracle(sample, modules)
    for known in (metadata, {}):
        found = oracle(Sample("sd15", "diffusers", arrays, known), modules)
        assert all(relative(found[n], expected[n]) < 1e-6 for n in modules)
    flat = json.loads(metadata["lora_adapter_metadata"])
    assert flat["text_encoder.target_modules"] == ["encoder.layers.2.self_attn.q_proj"]
    assert sorted([flat["unet.r"], *flat["unet.rank_pattern"].values()]) == [2, 3]


@pytest.mark.parametrize("broken", ["{", "[]", "3"])
def test_a_broken_header_entry_is_said(broken: str, tmp_path: Path) -> None:
    path = write(with_header(broken, Q), tmp_path / "a.safetensors")
    with pytest.raises(CorruptFile, match="lora_adapter_metadata in the header is not"):
        load(path)


@pytest.mark.parametrize("component", ["{elsewhere}", "a/b", "a\\b", "C:"])
def test_a_component_of_the_header_is_never_a_path(tmp_path: Path, component: str) -> None:
    """Names in headers are others' words: none leads out of the output's folder."""
    name = component.replace("{elsewhere}", str(tmp_path / "elsewhere"))
    factors = {}
    for module in ("unet.foo.bar", f"{name}.foo.bar"):
        factors[f"base_model.model.{module}.lora_A.weight"] = np.ones((2, 4), np.float32)
        factors[f"base_model.model.{module}.lora_B.weight"] = np.ones((4, 2), np.float32)
    config = json.dumps({f"{one}.r": 2 for one in ("unet", name)})
    tensors = [(key, ArrayTensor(value)) for key, value in factors.items()]
    write_tensors(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": config})
    with pytest.raises(NotExpressible, match="cannot be the name of a component's folder"):
        save(load(tmp_path / "a.safetensors"), tmp_path / "out", to="peft")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


EXPRESSIONS = (
    "to_q", "attn1.to_q", r"attn\d\.to_[qk]", ".*attn.*to_q.*", "(to_q|to_k)", "to_q|to_k", "^a.*",
    "attn[^2].+", "a{2,3}b?", "(?:x|y)*to_q", "(a|ab)(c|bcd)(d*)", "a)|(b", "", "()*", "(^a|b)+$",
    "a{,2}", r"x(1|2)\.",
    r"blocks\.(1|2[0-9])\.", "a{1}c", r"\w+\.b", "[]a]+", "(?P<n>to)_q", "a$|b", "{a}", "a*?b", r"\.a",
)  # fmt: skip
PATHS = ("to_q", "x.to_q", "x.attn1.to_q", "attn2.to_k", "attn1_to_q", "a", "ab", "aab", "b.a", "abcd",
         "blocks.1.", "blocks.23.", "u.blocks.2", "", "ac", "a.b", "x.]a", "xyxto_q", "{a}", "a.bc",
)  # fmt: skip


def test_patterns_mean_what_they_mean_to_python() -> None:
    for pattern in EXPRESSIONS:
        expression = re.compile(rf"(.*\.)?({pattern})$")
        for path in PATHS:
            found = pattern_value({pattern: 1}, path)
            assert (found == 1) == (expression.match(path) is not None), (pattern, path)


@pytest.mark.parametrize("pattern", [
    "(a+)+b", "(a|a)*b", "(a|aa)+b", "a?" * 60 + "a" * 60, "(.*)*x", ".*" * 40 + "x", "((a*)*)*b",
    "(" * 240 + ")" * 240, "(a{0,30}){0,30}b",
])  # fmt: skip
def test_patterns_that_would_be_tried_without_end_are_quick(pattern: str) -> None:
    """Python's own engine does not end in a lifetime with any of these."""
    assert pattern_value({pattern: 1}, "a" * 59 + "!") is None
    assert pattern_value({pattern: 1}, "x." + "a" * 59 + "!") is None


@pytest.mark.parametrize("pattern", [
    "a*" * 250, "(a{99}){99}", "a{99999999999999999999}", r"(a)\1", "(?=a)a",
    "(?i:a)", r"a\b", "a++",
])  # fmt: skip
def test_patterns_beyond_bounds_are_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="pattern of the configuration is refused"):
        pattern_value({pattern: 1}, "a")
    _, path = folder(tmp_path / "a", {"lora_alpha": 4, "alpha_pattern": {pattern: 2}}, Q)
    with pytest.raises(FormatError, match="refused"):
        load(path)


@pytest.mark.parametrize(
    ("model", "library", "family"),
    [
        ("CLIPTextModel", "transformers.models.clip.modeling_clip", True),
        ("CLIPModel", "transformers.models.clip.modeling_clip", False),
        ("CLIPModel", "somebody.elses", True),
    ],
)
def test_the_class_of_the_base_decides_over_names(
    model: str, library: str, family: bool, tmp_path: Path
) -> None:
    """The text half of CLIP is a text encoder of Stable Diffusion by names and shapes."""
    sample = spell(factors(TE), "sd15", "peft")
    mapping = {"base_model_class": model, "parent_library": library}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "auto_mapping": mapping}
    sample.configs = {"text_encoder": config}
    found = load(write(sample, tmp_path / "a")).info.detection
    assert bool(found.candidates) == family
    assert family or "CLIPModel" in found.reason
