"""diff: a verdict in words, figures, and an exit code."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.world import ADAPTED, rewrite

KEYS = {
    "outputs", "a", "b", "verdict", "differs", "modules", "only_a", "only_b", "not_compared", "total",
    "shared", "blocks", "facts", "metadata",
}  # fmt: skip
FIGURES = {"cosine", "relative_distance", "best_fit", "norm_a", "norm_b"}


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
