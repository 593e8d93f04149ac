"""convert: dialects, types, kinds and modules, each proven; and proofs that fail leave nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import LowRank
from loramerge.adapter.load import load
from loramerge.algebra import proof as proofs
from loramerge.checkpoint import open_checkpoint
from loramerge.steps import proving
from loramerge.steps.references import Reference
from loramerge.verbs import convert as verb
from tests.builders.deltas import adapter, full, low_rank, site, tensor
from tests.builders.samples import data_section, read_safetensors, relative, safetensors_bytes
from tests.builders.world import rewrite, weights
from tests.stream.test_kinds_at_a_base import KINDS

FILE_DIALECTS = ("kohya", "diffusers", "diffusers-legacy")


def _header(path):
    return read_safetensors(path)[1]


def _total(found, expected):
    assert found.keys() == expected.keys()
    stems = sorted(expected)
    return relative(*(np.concatenate([d[s].ravel() for s in stems]) for d in (found, expected)))


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_same_dialect_and_type_is_the_same_data(run, name):
    found = run.ok("convert", name, "-o", "out.safetensors", "--json").json
    out = run.folder / "out.safetensors"
    assert data_section(out) == data_section(run.folder / f"{name}.safetensors")
    proof = found["files"][0]["proof"]
    assert proof["identical"] == proof["modules"] > 0 and proof["largest_difference"] == 0
    assert "same file" in run.ok("run", "out.safetensors").out


@pytest.mark.parametrize("to", FILE_DIALECTS)
def test_there_and_back(run, to):
    found = run.ok("convert", "a", "--to", to, "-o", "there.safetensors", "--json").json
    assert found["files"][0]["dialect"] == to
    run.ok("convert", "there.safetensors", "--to", "kohya", "-o", "back.safetensors")
    there, back = (load(run.folder / f"{n}.safetensors") for n in ("there", "back"))
    proofs.prove(load(run.folder / "a.safetensors"), there)
    proofs.prove(load(run.folder / "a.safetensors"), back)


@pytest.mark.parametrize("program", ["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai"])
def test_for_a_program(run, program):
    found = run.ok("convert", "b", "--for", program, "-o", "o.safetensors", "--json").json
    shown = run.ok("inspect", "o.safetensors", "--json").json[0]
    assert program in shown["loads_in"] or found["files"][0]["dialect"] == shown["dialect"]


def test_peft_folders(run):
    run.ok("convert", "a", "--for", "peft", "-o", "folder")
    assert (run.folder / "folder" / "adapter_config.json").is_file()
    found = run.ok("convert", "folder", "--to", "kohya", "-o", "o.safetensors", "--json").json
    assert found["files"][0]["proof"]["largest_difference"] < 2e-3
    assert (
        _total(weights(run.folder / "o.safetensors"), weights(run.folder / "a.safetensors")) < 2e-3
    )


def test_lists(run, shared_data):
    pytest.importorskip("torch")
    shutil.copy(shared_data / "adapters" / "lora_disney.safetensors", run.folder / "d.safetensors")
    run.ok("convert", "d", "--to", "lora_diffusion", "-o", "d.pt")
    found = run.ok("convert", "d.pt", "--to", "kohya", "-o", "k.safetensors", "--json").json
    proof = found["files"][0]["proof"]
    assert proof["identical"] == proof["modules"] == 192
    assert not [p for p in run.folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-8), ("float32", 2**-24)])
def test_types(run, dtype, unit):
    found = run.ok("convert", "b", "--dtype", dtype, "-o", "o.safetensors", "--json").json
    file = found["files"][0]
    assert file["dtype"] == dtype and file["relative_error"] == 0
    assert file["proof"]["largest_difference"] <= 2 * unit
    error = _total(weights(run.folder / "o.safetensors"), weights(run.folder / "b.safetensors"))
    assert error <= 2 * unit and (error > 0) == (dtype == "bfloat16")


def test_without_a_type_each_tensor_keeps_its_own(run):
    def mixed(arrays, _):
        for key in [k for k in arrays if "down_blocks" in k and "lora" in k]:
            arrays[key] = arrays[key].astype(np.float32)

    rewrite(run.folder / "a.safetensors", run.folder / "m.safetensors", mixed)
    run.ok("convert", "m", "-o", "same.safetensors")
    assert data_section(run.folder / "same.safetensors") == data_section(
        run.folder / "m.safetensors"
    )
    assert "same file" in run.ok("run", "same.safetensors").out
    run.ok("convert", "m", "--to", "diffusers", "-o", "d.safetensors")
    kinds = {a.dtype.name for a in read_safetensors(run.folder / "d.safetensors")[0].values()}
    assert kinds == {"float16", "float32"}
    assert "same file" in run.ok("run", "d.safetensors").out


@pytest.mark.parametrize("w", ["0.5", "-0.3", "1.7"])
@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_rescale(run, w, to):
    run.ok("convert", "b", "--to", to, "--rescale", w, "-o", "o.safetensors")
    found, before = load(run.folder / "o.safetensors"), load(run.folder / "b.safetensors")
    for s, delta in before.deltas.items():
        assert relative(found.deltas[s].dense(), float(w) * delta.dense()) < 2e-3


def test_keep_and_drop(run):
    run.ok("convert", "b", "--drop", "text_encoder", "-o", "u.safetensors")
    assert load(run.folder / "u.safetensors").components().keys() == {"unet"}
    found = run.ok("convert", "b", "--keep", "te", "-o", "t.safetensors", "--json").json
    assert load(run.folder / "t.safetensors").components().keys() == {"text_encoder"}
    assert (
        len(found["files"][0]["dropped"]) == load(run.folder / "u.safetensors").components()["unet"]
    )
    run.ok(
        "convert",
        "b",
        "--keep",
        "*attn2*",
        "--drop",
        "*to_k",
        "--keep",
        "te",
        "-o",
        "p.safetensors",
    )
    names = [s.name for s in load(run.folder / "p.safetensors").deltas]
    assert names and all(
        ("attn2" in n and not n.endswith("to_k")) or "text_enc" in n for n in names
    )
    whole = dict(read_safetensors(run.folder / "b.safetensors")[0])
    for key, array in read_safetensors(run.folder / "p.safetensors")[0].items():
        assert array.tobytes() == whole[key].tobytes()
    result = run.ok("convert", "b", "--drop", "*Attn2*", "-o", "q.safetensors")
    assert "no module is named *Attn2*" in result.err
    run.refused(2, "convert", "a", "--keep", "text_encoder", says=("no module", "unet"))
    run.refused(2, "convert", "a", "--drop", "*", says="no module would be left")


def test_several_files(run):
    (run.folder / "in" / "sub").mkdir(parents=True)
    for name, place in (("a", "in"), ("b", "in/sub")):
        shutil.copy(run.folder / f"{name}.safetensors", run.folder / place)
    (run.folder / "in" / "broken.safetensors").write_bytes(b"no")
    result = run(
        "convert", "in", "--to", "kohya", "--out-dir", "out", "--results", "r.csv", "--json"
    )
    assert result.code == 3
    found = {f["path"].rpartition("/")[2]: f["status"] for f in result.json["files"]}
    assert found == {
        "a.safetensors": "done",
        "b.safetensors": "done",
        "broken.safetensors": "failed",
    }
    assert (run.folder / "out" / "sub" / "b.safetensors").is_file()
    assert (run.folder / "r.csv").read_text().startswith("file,output,status")
    again = run("convert", "in", "--to", "kohya", "--out-dir", "out", "--json").json
    assert sorted(f["status"] for f in again["files"]) == ["failed", "kept", "kept"]


def _write(run, deltas, name="k.safetensors"):
    lm.save(adapter(deltas, families=["sd21"]), run.folder / name, dialect="kohya")


def test_to_lora_needs_a_rank_only_where_none_is(run):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    _write(run, {name: full((20, 30)), name[:-1] + "k": low_rank((20, 30), 3)})
    run.refused(2, "convert", "k", "--to-lora", says=("to_q", "--rank"))
    run.refused(2, "convert", "k", "--rank", "4", says="--to-lora")
    found = run.ok("convert", "k", "--to-lora", "--rank", "5", "-o", "o.safetensors", "--json").json
    file = found["files"][0]
    assert file["kinds_after"] == {"lora": 2} and 0 < file["relative_error"] < 1
    before, after = load(run.folder / "k.safetensors"), load(run.folder / "o.safetensors")
    dense = before.deltas[site(name)].dense()
    s = np.linalg.svd(dense, compute_uv=False)
    error = relative(after.deltas[site(name)].dense(), dense)
    assert error == pytest.approx(np.sqrt((s[5:] ** 2).sum() / (s**2).sum()), abs=1e-4)
    assert file["worst"]["relative_error"] == pytest.approx(error, abs=1e-3)
    assert "same file" in run.ok("run", "o.safetensors").out


NEEDY = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": "dora-in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k": "dora-out",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v": "oft",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": "ia3-in",
}


def test_to_lora_against_a_base(run):
    """Kinds that depend on the base are cut optimally of what they change there, and proven."""
    checkpoint = open_checkpoint(run.folder / "base.safetensors")
    weights = {}
    for name in NEEDY:
        (place,) = checkpoint.slots[name, "weight"]
        weights[name] = place.tensor.numpy().astype(np.float64).reshape(place.shape)
    deltas = {name: KINDS[kind](weights[name].shape) for name, kind in NEEDY.items()}
    _write(run, deltas)
    ask = ("convert", "k", "--to-lora", "--rank", "3")
    run.refused(5, *ask, says=("depends on the base", "to_q (dora)", "--base B"))
    run.refused(2, "convert", "k", "--to-lora", "--base", "base.safetensors", says="--rank 32")
    ask = (*ask, "--base", "base.safetensors", "-o", "o.safetensors")
    (file,) = run.ok(*ask, "--json").json["files"]
    assert file["kinds_after"] == {"lora": 4} and 0 < file["relative_error"] < 1
    folder = run.folder
    asked = {"to_lora": True, "rank": 3, "base": str(folder / "base.safetensors")}
    predicted = verb.predict(
        verb.Convert(adapter=Reference(str(folder / "k.safetensors")), **asked)
    )
    assert predicted.size >= (folder / "o.safetensors").stat().st_size and predicted.ranks == {3: 4}
    after = load(run.folder / "o.safetensors")
    lost = whole = 0.0
    for name, delta in deltas.items():
        dense = delta.dense(weights[name]).reshape(len(weights[name]), -1)
        s = np.linalg.svd(dense, compute_uv=False)
        found = after.deltas[site(name)].dense().reshape(dense.shape)
        tail, energy = (s[3:] ** 2).sum(), (s**2).sum()
        assert relative(found, dense) == pytest.approx(np.sqrt(tail / energy), abs=1e-4)
        # wrong: taken at weights that were changed before
        assert relative(found, delta.dense(2 * weights[name]).reshape(dense.shape)) > 0.1
        lost, whole = lost + tail, whole + energy
    assert file["relative_error"] == pytest.approx(np.sqrt(lost / whole), abs=1e-4)
    assert "same file" in run.ok("run", "o.safetensors").out
    _, metadata = read_safetensors(run.folder / "o.safetensors")
    recipe = json.loads(metadata["loramerge.recipe"])
    assert {e["path"] for e in recipe["inputs"].values()} == {"k.safetensors", "base.safetensors"}
    # without --to-lora they become whole differences
    run.ok("convert", "k", "--base", "base.safetensors", "-o", "w.safetensors")
    whole_file = load(run.folder / "w.safetensors")
    assert whole_file.kinds() == {"full": 4}
    for name, delta in deltas.items():
        assert relative(whole_file.deltas[site(name)].dense(), delta.dense(weights[name])) < 1e-6


def test_to_lora_is_exact_where_it_can_be(run):
    from loramerge.adapter import Scale
    from loramerge.adapter.kinds.tucker import Tucker
    from loramerge.files.tensors import ArrayTensor

    r = np.random.default_rng(0)
    arrays = [
        r.standard_normal(s).astype("float16") for s in ((8, 3, 1, 1), (3, 6, 1, 1), (3, 3, 3, 3))
    ]
    delta = Tucker.of(*(ArrayTensor(a) for a in arrays), Scale(2.0))
    name = "unet.mid_block.resnets.0.conv1"
    _write(run, {name: delta})
    found = run.ok("convert", "k", "--to-lora", "-o", "o.safetensors", "--json").json["files"][0]
    assert found["kinds_before"] == {"tucker": 1} and found["kinds_after"] == {"lora": 1}
    assert (
        found["relative_error"] == 0 and found["ranks"] == {"3": 1} and found["dtype"] == "float16"
    )
    after = load(run.folder / "o.safetensors").deltas[site(name)]
    assert relative(after.dense(), delta.dense()) < 2e-3


def test_modules_that_a_dialect_cannot_store_are_refused(run):
    _write(run, {"unet.conv_norm_out": full((8,), role="w_norm")})
    run.refused(4, "convert", "k", "--to", "diffusers", says=("conv_norm_out", "hint"))

    def embedded(arrays, _):
        arrays["bundle_emb.zuzu.string_to_param.*"] = np.ones((1, 20), np.float16)

    rewrite(run.folder / "a.safetensors", run.folder / "e.safetensors", embedded)
    run.refused(4, "convert", "e", "--to", "diffusers", says="--drop embeddings")
    run.ok("convert", "e", "--to", "diffusers", "--drop", "embeddings", "-o", "o.safetensors")
    run.ok("convert", "e", "-o", "e2.safetensors")
    assert load(run.folder / "e2.safetensors").embeddings


@pytest.mark.parametrize(
    "options",
    [("--to", "kohia"), ("--to", "kohya", "--for", "peft"), ("--dtype", "int8"), ("--rescale", "0"),
     ("--rescale", "nan"), ("--energy", "0.9")],
    ids=" ".join,
)  # fmt: skip
def test_options_that_cannot_be_meant(run, options):
    run.refused(2, "convert", "a", *options)


def test_recipes_say_it_too(run):
    recipe = {
        "version": 1,
        "inputs": {"b": "b.safetensors"},
        "steps": {
            "part": {"convert": {"adapter": "b", "drop": ["text_encoder"], "rescale": 0.5}},
            "file": {"convert": {"adapter": "part", "to": "kohya"}, "save": "r.safetensors"},
        },
    }
    (run.folder / "r.json").write_text(json.dumps(recipe))
    run.ok("run", "r.json")
    run.ok("convert", "b", "--drop", "text_encoder", "--rescale", "0.5", "--to", "kohya", "-o",
           "c.safetensors", "--save-recipe", "c.yaml")  # fmt: skip
    assert data_section(run.folder / "r.safetensors") == data_section(run.folder / "c.safetensors")
    before = (run.folder / "c.safetensors").read_bytes()
    (run.folder / "c.safetensors").unlink()
    run.ok("run", "c.yaml")
    assert (run.folder / "c.safetensors").read_bytes() == before
    size = len(before)
    plan = run.ok("plan", "c.yaml", "--json").json
    assert size <= max(task["size"] for task in plan["tasks"].values())


def test_a_file_that_was_only_loaded_and_saved_says_so(run):
    lm.save(lm.load("b.safetensors"), "s.safetensors", dialect="kohya")
    assert '"convert"' in _header(run.folder / "s.safetensors")["loramerge.recipe"]
    assert "same file" in run.ok("run", "s.safetensors").out
    lm.save(lm.load("b.safetensors"), "n.safetensors", strip=True)
    assert "loramerge.recipe" not in _header(run.folder / "n.safetensors")


def test_in_python(run):
    b = lm.load("b.safetensors")
    half = lm.convert(b, drop="text_encoder", rescale=0.5)
    assert half.components().keys() == {"unet"}
    assert lm.convert(b, to_lora=True, rank=2).ranks() == {2: len(b.deltas)}


# --- the proof itself ----------------------------------------------------------------------------


def _doubled(d, s):
    return d.scaled(2.0)


def _swapped(d, s):
    return replace(d, up=tensor(d.up.numpy()[::-1].copy()))


def _nudged(d, s):
    up = d.up.numpy().copy()
    up.reshape(-1)[0] *= 1.5
    return replace(d, up=tensor(up))


@pytest.mark.parametrize("wrong", [_doubled, _swapped, _nudged, None])
def test_a_file_that_is_not_what_was_asked_is_not_kept(run, monkeypatch, wrong):
    real = proving.load

    def read(path):
        found = real(path)
        victim = next(s for s, d in found.deltas.items() if isinstance(d, LowRank))
        deltas = dict(found.deltas)
        changed = deltas.pop(victim)
        if wrong is not None:
            deltas[victim] = wrong(changed, victim)
        return found.with_deltas(deltas)

    monkeypatch.setattr(proving, "load", read)
    for to in ("kohya", "diffusers", "peft"):
        run.refused(7, "convert", "b", "--to", to, "-o", "o" if to == "peft" else "o.safetensors",
                    says=("not kept", "expected", "hint"))  # fmt: skip
    run.refused(7, "convert", "a", "--dtype", "bfloat16", "-o", "o.safetensors", says="not kept")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ranks", [(4, 4), (4, 7)])
def test_the_difference_is_that_of_the_dense_oracle(dtype, ranks):
    r = np.random.default_rng(1)
    up, down = r.standard_normal((30, ranks[0])), r.standard_normal((ranks[0], 40))
    if ranks[0] == ranks[1]:
        new_up, new_down = (up / 3).astype(dtype), (down * 3).astype(dtype)
    else:
        extra = ranks[1] - ranks[0]
        new_up = np.hstack([up, 0.1 * r.standard_normal((30, extra))]).astype(dtype)
        new_down = np.vstack([down, r.standard_normal((extra, 40))]).astype(dtype)
    new = new_up.astype("float64"), new_down.astype("float64")
    found, size = proofs.factored_difference((up, down), new)
    assert found == pytest.approx(relative(new[0] @ new[1], up @ down), rel=1e-6)
    assert size == pytest.approx(np.linalg.norm(up @ down))


def test_kinds_that_are_not_computed_with_stay_as_they_are(run):
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    r = np.random.default_rng(0)
    shapes = {
        "hada_w1_a": (20, 2),
        "hada_w1_b": (2, 20),
        "hada_w2_a": (20, 2),
        "hada_w2_b": (2, 20),
    }
    arrays = {f"{stem}.{k}": r.standard_normal(s).astype("float16") for k, s in shapes.items()}
    arrays[f"{stem}.alpha"] = np.array(1.0, "float16")
    (run.folder / "h.safetensors").write_bytes(safetensors_bytes(arrays))
    run.ok("convert", "h", "-o", "same.safetensors")
    assert data_section(run.folder / "same.safetensors") == data_section(
        run.folder / "h.safetensors"
    )
    run.refused(4, "convert", "h", "--to", "diffusers", says="hint")


def test_both_reads_of_the_proof_are_of_the_file_that_is_kept(run, monkeypatch):
    """What lands under the name is what was looked at, but for entries that came late."""
    seen = {}
    real = proving.load

    def read(path):
        seen[str(path)] = data_section(path)
        return real(path)

    monkeypatch.setattr(proving, "load", read)
    run.ok("convert", "b", "--to", "kohya", "-o", "o.safetensors")
    ((path, data),) = seen.items()
    assert path.endswith(".partial") and data == data_section(run.folder / "o.safetensors")
    metadata = _header(run.folder / "o.safetensors")
    assert len(set(metadata["sshs_model_hash"])) > 1 and '"sha256":"000000' not in str(metadata)
