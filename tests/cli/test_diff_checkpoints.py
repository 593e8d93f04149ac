"""diff of checkpoints: a verdict in words, figures per part and block, and an exit code."""

from __future__ import annotations

import numpy as np

from tests.builders.world import rewrite, tune, write_base, write_folder

KEYS = {
    "outputs", "a", "b", "verdict", "differs", "total", "parts", "blocks", "largest", "only_a", "only_b",
    "other_shapes", "not_compared", "constants", "facts", "metadata",
}  # fmt: skip


def test_the_same_weights_in_other_forms(run):
    same = run.ok("diff", "base.safetensors", "base.safetensors", "--exit-code")
    assert "The same weights, bit by bit." in same.out
    write_folder(run.folder / "base.safetensors", run.folder / "folder")
    found = run("diff", "base.safetensors", "folder", "--exit-code")
    assert found.code == 1  # the folder has the UNet alone
    assert "The same weights, another layout. Only A has the part text_encoder." in found.out
    run.ok("bake", "-b", "base.safetensors", "--dtype", "bfloat16", "-o", "bf16.safetensors")
    rounded = run.ok("diff", "base.safetensors", "bf16.safetensors", "--exit-code")
    assert "another type: they differ by rounding alone" in rounded.out
    assert run("diff", "base.safetensors", "bf16.safetensors", "--exit-code",
               "--tolerance", "0").code == 1  # fmt: skip


def test_changes_are_told_by_part_and_block(run):
    tune(run.folder / "base.safetensors", run.folder / "tuned.safetensors")
    shown = run("diff", "base.safetensors", "tuned.safetensors", "--exit-code")
    assert shown.code == 1 and "B is A with changes in unet (11 of 686 tensors" in shown.out
    assert "Equal: text_encoder." in shown.out and "unet.mid_block" in shown.out
    found = run.ok("diff", "base.safetensors", "tuned.safetensors", "--json").json
    assert set(found) == KEYS and found["differs"] is True
    assert abs(found["parts"]["unet"]["relative_distance"] - 0.2) < 1e-3
    assert found["parts"]["text_encoder"]["differing"] == 0
    assert sum(one["differing"] for one in found["blocks"].values()) == 11
    assert found["largest"]["tensor"].startswith("unet.")
    assert run("diff", "base.safetensors", "tuned.safetensors", "--exit-code",
               "--tolerance", "0.3").code == 0  # fmt: skip


def test_unrelated_models(run):
    write_base(run.folder / "other.safetensors", seed=1)
    assert "The two are unrelated" in run.ok("diff", "base.safetensors", "other.safetensors").out


def test_the_headers_are_compared(run):
    def entitle(arrays, metadata):
        metadata["modelspec.title"] = "Another"

    rewrite(run.folder / "base.safetensors", run.folder / "titled.safetensors", entitle)
    found = run.ok("diff", "base.safetensors", "titled.safetensors")
    assert "bit by bit" in found.out and "Another" in found.out


def test_one_number_among_all(run):
    def change(arrays, _):
        name = next(n for n in arrays if n.endswith("attn2.to_k.weight"))
        arrays[name] = np.array(arrays[name])
        arrays[name][0, 0] += np.float16(0.001)

    rewrite(run.folder / "base.safetensors", run.folder / "one.safetensors", change)
    found = run.ok("diff", "base.safetensors", "one.safetensors", "--json").json
    assert found["total"]["differing"] == 1 and found["differs"] is False
    assert "within the tolerance: 1 of 1058 tensors differs" in found["verdict"]


def test_names_and_refusals(run):
    run.ok("base", "add", "mine", "base.safetensors")
    assert "bit by bit" in run.ok("diff", "mine", "base.safetensors").out
    run.refused(4, "diff", "base.safetensors", "a", says="cannot be compared with an adapter")
    run.refused(2, "diff", "base.safetensors:0.5", "base.safetensors", says="no weight here")
    run.refused(3, "diff", "base.safetensors", "nothing", says="nothing")


def test_it_is_a_step(run):
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {base: base.safetensors, style: a.safetensors}\nsteps:\n"
        "  model: {bake: {base: base, adapters: ['style:0.5']}, save: m.safetensors}\n"
        "  change: {diff: {a: base, b: model}, save: change.json}\n",
        "utf-8",
    )
    assert run.ok("plan", "r.yaml").code == 0
    run.ok("run", "r.yaml")
    assert "B is A with changes" in (run.folder / "change.json").read_text("utf-8")
