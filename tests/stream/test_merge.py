"""Merges of checkpoints are what their definition says, in the layout of the first input."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.algebra import gathering
from loramerge.algebra.method import Method
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.files import find_files
from loramerge.errors import (
    CorruptFile,
    FamilyError,
    FormatError,
    NumericsError,
    OutputExists,
    ShapeError,
    UsageError,
)
from loramerge.files.positioned import PositionedFile
from loramerge.stream import blend
from loramerge.stream.ingredients import Blended
from loramerge.stream.merge import merge
from loramerge.stream.merge_plan import plan_merge
from tests.builders import small_models
from tests.builders.bases import (
    Base,
    folder,
    read_safetensors,
    sharded,
    single,
    ulp,
    unet_alone,
    write_safetensors,
)
from tests.stream import dense_merges as dense
from tests.tail import crossed

Array = np.ndarray[Any, Any]


def merged(output: Path, *models: tuple[Path, float | Weight], **options: Any) -> list[Blended]:
    """Merge checkpoints at paths into a new one."""
    base = options.pop("base", None)
    planned = {key: options.pop(key) for key in ("union", "dtype") if key in options}
    if "text_encoder" in options:
        planned["text_encoder"] = open_checkpoint(options.pop("text_encoder"))
    if "vae" in options:
        planned["vae"] = find_files(options.pop("vae"))
    name, settings = options.pop("method", "linear"), options.pop("settings", {})
    method = Method.of(find_operator(name), settings, options.pop("scale", None))
    opened = [
        (open_checkpoint(path), weight if isinstance(weight, Weight) else Weight(weight))
        for path, weight in models
    ]
    plan = plan_merge(opened, method, base=base and open_checkpoint(base), **planned)
    options.setdefault("threads", 1)
    return merge(plan, output, **options)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A base and two models that were trained from it, in float16."""
    base = small_models.weights(0, "F16")
    paths = [small_models.write(tmp_path / "base", base)]
    common = small_models.weights(3, "F32", 0.1)  # so that their changes are alike
    for number in (1, 2):
        own = small_models.weights(number, "F32", 0.1)
        tuned = {n: (v + common[n] + own[n]).astype("float16") for n, v in base.items()}
        paths.append(small_models.write(tmp_path / f"tuned-{number}", tuned))
    return paths


def wide(path: Path) -> dict[str, Array]:
    return {name: value.astype("float64") for name, value in small_models.read(path).items()}


def as_row(value: Array) -> Array:
    return value.reshape(1, -1) if value.ndim == 1 else value.reshape(len(value), -1)


# --- the weighted sum -----------------------------------------------------------------------------


def test_a_weighted_sum(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merged(tmp_path / "out", (a, 0.3), (b, 0.7), dtype="F32")
    x, y = wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        np.testing.assert_allclose(value, 0.3 * x[name] + 0.7 * y[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(value, 0.7 * x[name] + 0.3 * y[name], rtol=1e-5, atol=1e-6)


def test_the_first_has_what_the_others_leave(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merged(tmp_path / "one", (a, 1.0), (b, 0.25))
    merged(tmp_path / "other", (a, 0.75), (b, 0.25))
    assert small_bytes(tmp_path / "one") == small_bytes(tmp_path / "other")


def small_bytes(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in small_models.read(path).items()}


def test_add_difference(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    found = merged(tmp_path / "out", (a, 1.0), (b, 0.5), base=base, dtype="F64")
    c, x, y = wide(base), wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        want = x[name] + 0.5 * (y[name] - c[name])
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-14)
        assert not np.allclose(value, c[name] + 0.5 * (x[name] + y[name] - 2 * c[name]))
    moved = {one.survival.module: one.survival for one in found}
    change = x["lm_head.weight"] - c["lm_head.weight"]
    other = y["lm_head.weight"] - c["lm_head.weight"]
    assert moved["lm_head"].asked == pytest.approx(float(((change + 0.5 * other) ** 2).sum()))
    (products,) = (one.products for one in found if one.survival.module == "lm_head")
    assert products[0, 1] == pytest.approx(float((change * other).sum()), rel=1e-6)


def test_one_rounding_to_half_precision(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    merged(tmp_path / "out", (a, 1.0), (b, 0.5), base=base)
    c, x, y = wide(base), wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        assert value.dtype == np.float16
        want = x[name] + 0.5 * (y[name] - c[name])
        assert (np.abs(value - want) <= 0.5001 * ulp(want, "F16")).all()


def test_a_model_alone_is_copied_to_the_bit(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    found = merged(tmp_path / "out", (a, 1.0), (b, Weight(0.0)))
    assert small_bytes(tmp_path / "out") == small_bytes(a)
    assert found == []  # nothing was computed


def test_a_change_is_measured_from_the_first_input(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    found = merged(tmp_path / "out", (a, 0.0), (b, 1.0))
    x, y = wide(a)["lm_head.weight"], wide(b)["lm_head.weight"]
    (one,) = (one.survival for one in found if one.survival.module == "lm_head")
    assert one.asked == pytest.approx(float(((y - x) ** 2).sum()), rel=1e-5)
    assert one.base == pytest.approx(float((x**2).sum()), rel=1e-5)


# --- operators ------------------------------------------------------------------------------------

# method → (its definition, one that is wrong as people have been wrong)
METHODS: dict[str, tuple[Any, Any]] = {
    "linear": (dense.linear, lambda c, w, name: dense.linear(c, [x / sum(w) for x in w])),
    "ties": (dense.ties, partial(dense.ties, density=0.8)),
    "magnitude-prune": (dense.magnitude_prune, dense.linear),
    "breadcrumbs": (dense.breadcrumbs, partial(dense.breadcrumbs, gamma=0.0)),
    "dare": (dense.dare, lambda c, w, name: dense.dare(c[::-1], w[::-1], name)),
    "dare-ties": (dense.dare_ties, dense.dare),
    "della": (dense.della, dense.dare_ties),
    "sce": (
        dense.sce,
        lambda c, w, name: dense.elected([x * y for x, y in zip(w, c, strict=True)]),
    ),
    "slerp": (dense.slerp, dense.linear),
    "nuslerp": (dense.nuslerp, dense.slerp),
    "karcher": (dense.karcher, dense.linear),
    "model-stock": (dense.model_stock, lambda c, w, name: dense.linear(c, w) / len(c)),
}


def check(
    path: Path, paths: list[Path], definition: Any, weights: list[float], scale: str
) -> float:
    """Return the largest distance of a merge from a definition, relative to the changes."""
    base, *models = map(wide, paths)
    worst = 0.0
    for name, value in wide(path).items():
        changes = [as_row(model[name] - base[name]) for model in models]
        module = name.removesuffix(".weight")
        want = definition(changes, weights, module)
        if scale == "norm-match":
            want = dense.norm_matched(want, changes, weights)
        far = as_row(value - base[name]) - want
        worst = max(worst, float(np.linalg.norm(far) / np.linalg.norm(want)))
    return worst


@pytest.mark.parametrize(("method", "scale"), crossed(METHODS, ["literal", "norm-match"]))
def test_a_method_is_its_definition(
    three: list[Path], tmp_path: Path, method: str, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend, "BLOCK_ELEMENTS", 40)  # several blocks for each tensor
    monkeypatch.setattr(gathering, "_HELD", 8)
    base, a, b = three
    right, wrong = METHODS[method]
    merged(tmp_path / "out", (a, 0.9), (b, 0.4), base=base, method=method, scale=scale, dtype="F64")
    assert check(tmp_path / "out", three, right, [0.9, 0.4], scale) < 1e-9
    if scale == "literal" or method not in ("linear", "model-stock"):  # wrong in their norm alone
        assert check(tmp_path / "out", three, wrong, [0.9, 0.4], scale) > 1e-3


def test_every_method_that_needs_no_factors_is_compared_here() -> None:
    able = {one.name for one in OPERATORS.shipped() if not one.needs_factors}
    assert able - set(METHODS) == {"norm-equalised", "subtract"}


@pytest.mark.parametrize("method", ["ties", "sce"])
def test_settings_of_a_method(three: list[Path], tmp_path: Path, method: str) -> None:
    base, a, b = three
    settings = {"ties": {"density": 0.6}, "sce": {"select": 0.3}}[method]
    merged(tmp_path / "out", (a, 1.0), (b, 1.0), base=base, method=method, settings=settings,
           scale="literal", dtype="F64")  # fmt: skip
    definition = partial(METHODS[method][0], **settings)
    assert check(tmp_path / "out", three, definition, [1.0, 1.0], "literal") < 1e-9


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "karcher"])
def test_weights_themselves_without_a_base(three: list[Path], tmp_path: Path, method: str) -> None:
    _, a, b = three
    merged(tmp_path / "out", (a, 0.6), (b, 0.4), method=method, dtype="F64")
    x, y = wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        want = METHODS[method][0]([as_row(x[name]), as_row(y[name])], [0.6, 0.4], name)
        np.testing.assert_allclose(as_row(value), want, rtol=0, atol=1e-12)


# --- how it is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "della"])
def test_the_same_bytes_on_any_number_of_threads(
    three: list[Path], tmp_path: Path, method: str
) -> None:
    base, a, b = three
    for threads in (1, 2):
        merged(tmp_path / f"{threads}", (a, 0.6), (b, 0.4), base=base, method=method,
               threads=threads)  # fmt: skip
    files = [(tmp_path / f"{n}" / small_models.FILE).read_bytes() for n in (1, 2)]
    assert files[0] == files[1]


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "sce"])
def test_no_tensor_is_read_as_a_whole(
    three: list[Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    read = PositionedFile.read_into

    def counted(self: PositionedFile, offset: int, out: Any) -> None:
        nonlocal most
        most = max(most, memoryview(out).nbytes)
        read(self, offset, out)

    monkeypatch.setattr(blend, "BLOCK_ELEMENTS", 40)
    monkeypatch.setattr(gathering, "_HELD", 8)
    base, a, b = three
    monkeypatch.setattr(PositionedFile, "read_into", counted)
    settings = {"select": 0.5} if method == "sce" else {}
    merged(tmp_path / "out", (a, 0.6), (b, 0.4), base=base, method=method, settings=settings)
    assert 0 < most <= 40 * 2  # bytes of a block in float16; the largest tensor has 592


def test_what_is_interrupted_leaves_nothing(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(tmp_path / "out", (a, 0.6), (b, 0.4), base=base, notify=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "tuned-1", "tuned-2"]


# --- layouts --------------------------------------------------------------------------------------


def same_as(base: Base, output: Path, want: dict[str, Array], dtype: str) -> None:
    """Compare every weight of a result with what it must be, to one rounding."""
    for name, expected in base.tensors(want).items():
        got, _ = read_safetensors(base.file(output, name))
        for tensor, value in expected.items():
            if tensor.startswith("model_ema."):
                assert tensor not in got
                continue
            wanted = value.astype("float64")
            if value.dtype.kind in "iu" or not value.size:
                assert np.array_equal(got[tensor], value)
                continue
            near = np.abs(got[tensor].astype("float64") - wanted) <= 0.51 * ulp(wanted, dtype)
            assert near.all(), tensor


@pytest.mark.parametrize("first", ["single", "sharded"])
def test_layouts_may_differ(tmp_path: Path, first: str) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F16", seed=1)
    b = sharded(tmp_path / "b", "sd15", "F16")
    order = [a, b] if first == "single" else [b, a]
    output = tmp_path / ("out.safetensors" if first == "single" else "out")
    merged(output, (order[0].path, 0.7), (order[1].path, 0.3))
    x, y = (one.weights for one in order)
    want = {k: 0.7 * x[k].astype("float64") + 0.3 * y[k].astype("float64") for k in x}
    same_as(order[0], output, want, "F16")
    if first == "sharded":
        index = json.loads(next((output / "unet").glob("*.index.json")).read_text())
        assert index["weight_map"] and (output / "model_index.json").is_file()


def test_weights_by_block_component_and_pattern(tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F32", seed=1)
    b = folder(tmp_path / "b", "sd15", "F32", seed=2)
    vector = [0.0] * 17
    vector[8] = 0.5  # OUT03
    weight = Weight(blocks=tuple(vector), components={"text_encoder": 1.0},
                    match=(("*attn2.to_q", 0.25),))  # fmt: skip
    merged(tmp_path / "out.safetensors", (a.path, 1.0), (b.path, weight))
    want = {}
    for key, value in a.weights.items():
        share = 0.0
        if key.startswith("text_encoder"):
            share = 1.0
        if key.startswith(("unet.up_blocks.1.resnets.0.", "unet.up_blocks.1.attentions.0.")):
            share = 0.5
        if "attn2.to_q" in key:
            share = 0.25
        want[key] = ((1 - share) * value.astype("float64") + share * b.weights[key]).astype("f4")
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    for name, value in a.tensors(want)[""].items():
        if not name.startswith(("model_ema", "first_stage")):
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_shards_and_names_of_language_models(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    parts = small_models.write(tmp_path / "parts", small_models.read(a), shards=3)
    merged(tmp_path / "one", (a, 1.0), (b, 0.5), base=base)
    merged(tmp_path / "out", (parts, 1.0), (b, 0.5), base=base)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    assert small_bytes(tmp_path / "out") == small_bytes(tmp_path / "one")


def test_text_encoders_and_vae_of_others(tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F32", seed=1)
    b = folder(tmp_path / "b", "sd15", "F32", seed=2)
    vae = {
        "decoder.conv_in.weight": np.ones((4, 3, 3, 3), "f4"),
        "decoder.conv_in.bias": np.ones(4, "f4"),
    }
    write_safetensors(tmp_path / "vae.safetensors", vae)
    merged(tmp_path / "out.safetensors", (a.path, 0.5), (b.path, 0.5), text_encoder=b.path,
           vae=tmp_path / "vae.safetensors")  # fmt: skip
    want = {
        k: b.weights[k] if k.startswith("text") else 0.5 * (v + b.weights[k])
        for k, v in a.weights.items()
    }
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    for name, value in a.tensors(want)[""].items():
        if name.startswith("first_stage_model."):
            assert np.array_equal(got[name], vae[name.removeprefix("first_stage_model.")])
        elif not name.startswith("model_ema"):
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    refused(FormatError, "stored in another layout", tmp_path / "out2.safetensors",
            (a.path, 0.5), (b.path, 0.5), vae=b.path)  # fmt: skip
    unet = unet_alone(tmp_path / "unet.safetensors", "sd15", "model.diffusion_model.")
    refused(FormatError, "lacks text encoders", tmp_path / "out3.safetensors",
            (a.path, 0.5), (b.path, 0.5), text_encoder=unet.path)  # fmt: skip


# --- tensors that some lack -----------------------------------------------------------------------


@pytest.fixture
def uneven(three: list[Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """The base, a model without a bias, and one with a norm more."""
    base, a, b = three
    lacks = {n: v for n, v in small_models.read(a).items() if not n.endswith(".bias")}
    more = small_models.read(b) | {"model.norm.weight": np.ones(8, "float16")}
    return (
        base,
        small_models.write(tmp_path / "lacks", lacks),
        small_models.write(tmp_path / "more", more),
    )


def test_missing_and_extra_tensors_are_listed(
    uneven: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, lacks, more = uneven
    with pytest.raises(FormatError) as caught:
        merged(tmp_path / "out", (base, 0.5), (lacks, 0.25), (more, 0.25))
    text = str(caught.value.found)
    assert "lacks model.layers.0.attn.q_proj.bias" in text.replace("lacks lacks", "lacks")
    assert "more has model.norm.weight" in text
    assert not (tmp_path / "out").exists()


def test_union_first(uneven: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, lacks, more = uneven
    merged(tmp_path / "out", (base, 0.5), (lacks, 0.25), (more, 0.25), union="first")
    got, here = small_models.read(tmp_path / "out"), small_models.read(base)
    bias = "model.layers.0.attn.q_proj.bias"
    assert got[bias].tobytes() == here[bias].tobytes()
    assert np.array_equal(got["model.norm.weight"], np.ones(8, "float16"))
    assert got.keys() == here.keys() | {"model.norm.weight"}


def test_union_zero(uneven: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, lacks, more = uneven
    merged(tmp_path / "out", (base, 0.5), (lacks, 0.25), (more, 0.25), union="zero", dtype="F64")
    got, bias = small_models.read(tmp_path / "out"), "model.layers.0.attn.q_proj.bias"
    want = 0.5 * wide(base)[bias] + 0.25 * wide(more)[bias]
    np.testing.assert_allclose(got[bias], want, atol=1e-12)
    assert np.array_equal(got["model.norm.weight"], 0.25 * np.ones(8))
    merged(tmp_path / "based", (lacks, 0.5), (base, 0.0), base=base, union="zero", dtype="F64")
    np.testing.assert_allclose(small_models.read(tmp_path / "based")[bias], wide(base)[bias])


def test_tied_embeddings(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    tensors = small_models.read(b)
    del tensors["lm_head.weight"]
    tied = small_models.write(tmp_path / "tied", tensors, tie_word_embeddings=True)
    merged(tmp_path / "out", (a, 0.5), (tied, 0.5), dtype="F64")
    want = 0.5 * (wide(a)["lm_head.weight"] + wide(tied)["model.embed_tokens.weight"])
    np.testing.assert_allclose(small_models.read(tmp_path / "out")["lm_head.weight"], want)
    with pytest.raises(FormatError, match="shares the weight of its output layer"):
        merged(tmp_path / "other", (tied, 0.5), (a, 0.5), union="first")


# --- types ----------------------------------------------------------------------------------------


def test_float8_with_scales(tmp_path: Path) -> None:
    e4m3 = ml_dtypes.float8_e4m3fn
    name = "model.layers.0.q_proj.weight"
    values = np.random.default_rng(0).standard_normal((6, 8)).astype("float32")
    scale = np.array([0.01], "float32")
    stored = {name: (values / scale).astype(e4m3), name.replace("weight", "weight_scale"): scale}
    a = small_models.write(tmp_path / "a", stored)
    b = small_models.write(tmp_path / "b", {name: (2 * values).astype("float32")})
    merged(tmp_path / "out", (a, 0.5), (b, 0.5))
    got = small_models.read(tmp_path / "out")
    assert got[name].dtype == e4m3 and set(got) == set(stored)
    known = stored[name].astype("float32") * scale
    now = got[name].astype("float32") * got[name.replace("weight", "weight_scale")]
    want = 0.5 * known + values
    assert np.abs(now - want).max() <= np.abs(want).max() / 16  # a step of the type
    merged(tmp_path / "wide", (b, 0.5), (a, 0.5))
    np.testing.assert_allclose(small_models.read(tmp_path / "wide")[name], want, atol=1e-6)


def test_a_type_for_all(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merged(tmp_path / "out", (a, 1.0), (b, Weight(0.0)), dtype="F32")
    assert all(
        np.array_equal(value, wide(a)[name]) and value.dtype == np.float32
        for name, value in small_models.read(tmp_path / "out").items()
    )


# --- what is refused ------------------------------------------------------------------------------


def refused(error: type[Exception], match: str, output: Path, *models: Any, **options: Any) -> None:
    with pytest.raises(error, match=match):
        merged(output, *models, **options)
    assert not output.exists() and not list(output.parent.glob(f"{output.stem}*"))


def test_other_inputs_are_refused(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    output = tmp_path / "out"
    refused(UsageError, "must sum to 1", output, (a, 0.5), (b, 0.6))
    refused(UsageError, "must sum to 1", output, (a, 1.0), (b, 1.0))
    refused(UsageError, "works on low-rank factors", output, (a, 1.0), (b, 1.0), base=base,
            method="tsv-m")  # fmt: skip
    refused(UsageError, "combines changes of a base", output, (a, 0.5), (b, 0.5), method="ties")
    refused(UsageError, "not defined for this number", output, (a, 0.4), (b, 0.3), (base, 0.3),
            method="slerp")  # fmt: skip
    with pytest.raises(OutputExists):
        merged(a, (a, 0.5), (b, 0.5))


def test_a_model_with_nan_is_named(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    broken = small_models.read(b)
    broken["lm_head.weight"] = broken["lm_head.weight"].copy()
    broken["lm_head.weight"][3, 3] = np.nan
    path = small_models.write(tmp_path / "broken", broken)
    for method in ("linear", "ties", "slerp"):  # TIES would drop it
        with pytest.raises(NumericsError) as caught:
            merged(tmp_path / "out", (a, 0.5), (path, 0.5), base=base, method=method)
        assert caught.value.module == "lm_head.weight" and "broken" in str(caught.value.file)
        assert not (tmp_path / "out").exists()


def test_nan_in_a_tensor_that_is_copied(tmp_path: Path) -> None:
    a = unet_alone(tmp_path / "a.safetensors", "sd15", "model.diffusion_model.")
    tensors, _ = read_safetensors(a.path)
    tensors["first_stage_model.decoder.bias"] = np.array([np.nan], "float32")
    write_safetensors(tmp_path / "b.safetensors", tensors)
    two = ((tmp_path / "b.safetensors", 0.5), (a.path, 0.5))
    refused(NumericsError, "nothing is added", tmp_path / "out.safetensors", *two)
    merged(tmp_path / "out.safetensors", *two, allow_nonfinite=True)
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    assert np.isnan(got["first_stage_model.decoder.bias"]).all()


def test_what_does_not_fit_the_type(three: list[Path], tmp_path: Path) -> None:
    base, a, _ = three
    refused(NumericsError, "do not fit float16", tmp_path / "out", (a, 1.0), (a, 1e7), base=base)


def test_a_shard_that_is_cut(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    whole = (b / small_models.FILE).read_bytes()
    (b / small_models.FILE).write_bytes(whole[:-10])
    refused(CorruptFile, "shorter|cut|truncated|ends|bytes", tmp_path / "out", (a, 0.5), (b, 0.5))


def test_another_family_and_other_shapes(three: list[Path], tmp_path: Path) -> None:
    _, a, _ = three
    unet = unet_alone(tmp_path / "unet.safetensors", "sd15", "model.diffusion_model.")
    refused(FamilyError, "different families", tmp_path / "out", (a, 0.5), (unet.path, 0.5))
    other = small_models.read(a)
    other["lm_head.weight"] = other["lm_head.weight"][:30]
    path = small_models.write(tmp_path / "cut", other)
    refused(ShapeError, "differ in shape", tmp_path / "out", (a, 0.5), (path, 0.5))


def test_quantised_weights_are_refused(three: list[Path], tmp_path: Path) -> None:
    _, a, _ = three
    other = small_models.read(a)
    other["lm_head.weight"] = np.zeros(other["lm_head.weight"].shape, "int8")
    path = small_models.write(tmp_path / "whole", other)
    refused(FormatError, "are quantised", tmp_path / "out", (a, 0.5), (path, 0.5))


def test_averages_are_left_out_and_constants_kept(tmp_path: Path) -> None:
    a = unet_alone(tmp_path / "a.safetensors", "sd15", "model.diffusion_model.")
    tensors, _ = read_safetensors(a.path)
    beside = {
        "model_ema.decay": np.array(0.5, "float32"),
        "alphas_cumprod": np.linspace(1, 0, 5).astype("float32"),
        "first_stage_model.decoder.bias": np.ones(3, "float32"),
        "extra.weight": np.ones((2, 2), "float32"),
    }
    write_safetensors(tmp_path / "b.safetensors", tensors | beside)
    write_safetensors(tmp_path / "c.safetensors", tensors | {k: 3 * v for k, v in beside.items()})
    merged(tmp_path / "out.safetensors", (tmp_path / "b.safetensors", 0.5),
           (tmp_path / "c.safetensors", 0.5))  # fmt: skip
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    assert "model_ema.decay" not in got
    for name in ("alphas_cumprod", "first_stage_model.decoder.bias"):
        assert np.array_equal(got[name], beside[name])
    assert np.array_equal(got["extra.weight"], 2 * beside["extra.weight"])
