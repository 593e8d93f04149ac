"""diff: a verdict in words, figures, and an exit code."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.world import ADAPTED, rewrite

KEYS = {
    "outputs", "a", "b", "verdict", "differs", "modules", "only_a", "only_b", "not_compared", "total",
    "shared", "blocks", "facts", "metadata", "relation",
}  # fmt: skip
FIGURES = {"cosine", "relative_distance", "best_fit", "norm_a", "norm_b", "norm_ratio"}


def test_json_says_everything(run):
    found = run.ok("diff", "a", "b", "--json").json
    assert set(found) == KEYS and set(found["total"]) == FIGURES
    assert (
        found["differs"] is True
        and len(found["only_b"]) == ADAPTED["text"]
        and found["outputs"] == []
    )
    assert {"family", "dialect", "ranks", "dtypes", "modules"} <= set(found["facts"])
    assert "unet.mid_block" in found["blocks"]


@pytest.mark.parametrize(
    ("other", "code", "words"),
    [("a", 0, "same way"), ("a:1.0", 0, "same way"), ("a:0.7", 1, "times 0.7"), ("b", 1, "")],
)
def test_exit_codes(run, other, code, words):
    result = run("diff", "a", other, "--exit-code")
    assert result.code == code and words in result.out and result.err == ""
    assert run("diff", "a", other).code == 0


def test_rank_and_dialect_make_no_difference(run):
    run.ok("mix", "a", "--to", "diffusers", "-o", "other.safetensors")
    result = run.ok("diff", "a", "other", "--exit-code")
    assert "kohya" in result.out and "diffusers" in result.out
    run.ok("resize", "--rank", "1", "a", "-o", "small.safetensors")
    assert run("diff", "a", "small", "--exit-code").code == 1


def test_tiny_weights_count(run):
    assert run("diff", "a", "a:1.0000001", "--json").json["total"]["best_fit"] != 1.0


def test_refusals(run):
    def spoil(arrays, metadata):
        arrays[next(k for k in arrays if "lora_up" in k)][0, 0] = np.inf

    rewrite(run.folder / "a.safetensors", run.folder / "inf.safetensors", spoil)
    run.refused(2, "diff", "a", says="Missing argument")
    run.refused(3, "diff", "a", "nothing", says="'nothing'")
    run.refused(7, "diff", "a", "inf", says="inf.safetensors")


def test_a_truncation_is_told(run):
    run.ok("resize", "--rank", "1", "a", "-o", "small.safetensors")
    found = run.ok("diff", "a:0.5", "small", "--json").json
    assert found["verdict"].startswith("B is A times 2 and resized to rank 1: ")
    assert found["relation"]["kind"] == "resized" and found["relation"]["smaller"] == "B"
    assert 0 < found["shared"]["output_alignment"] < 1
    assert set(found["blocks"]["unet.mid_block"]) == {
        *FIGURES,
        "output_alignment",
        "input_alignment",
    }


def test_modules_of_one_count_in_a_row_of_their_own(run):
    assert "all modules" not in run.ok("diff", "a", "a:0.5").out
    run.ok("convert", "a", "--drop", "unet.mid_block.*", "-o", "less.safetensors")
    out = run.ok("diff", "a", "less").out
    rows = {name: out.split(name)[1].split()[1] for name in ("all shared modules", "all modules")}
    found = run.ok("diff", "a", "less", "--json").json
    assert rows["all shared modules"] == f"{found['shared']['relative_distance']:.4f}" == "0.0000"
    assert rows["all modules"] == f"{found['total']['relative_distance']:.4f}" != "0.0000"


def test_the_tolerance_decides(run):
    distance = run.ok("diff", "a", "a:0.7", "--json").json["total"]["relative_distance"]
    assert run("diff", "a", "a:0.7", "--exit-code", "--tolerance", str(distance + 0.01)).code == 0
    assert run("diff", "a", "a:0.7", "--exit-code", "--tolerance", str(distance - 0.01)).code == 1
    run.refused(2, "diff", "a", "b", "--tolerance", "-1", says="tolerance")
