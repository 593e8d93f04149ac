"""Weights per block and from files, as typed."""

import numpy as np
import pytest

from tests.builders.world import weights


@pytest.fixture
def doubled(run):
    """A weight file that doubles the middle block and leaves the rest out."""
    (run.folder / "middle.yaml").write_text("default: 0\nmatch: {'*mid_block*': 2}\n")
    return run


def changed(run, *words):
    run.ok("mix", *words, "-o", "out.safetensors", "--force", "--dtype", "float32")
    before, after = weights(run.folder / "a.safetensors"), weights(run.folder / "out.safetensors")
    return {
        stem: float((after[stem] * value).sum() / (value**2).sum()) if stem in after else 0.0
        for stem, value in before.items()
    }


def test_a_preset_keeps_the_blocks_it_names(run):
    found = changed(run, "a:OUTALL")
    ups = {stem: value for stem, value in found.items() if "up_blocks" in stem}
    assert ups and all(value == pytest.approx(1) for value in ups.values())
    assert all(value == 0 for stem, value in found.items() if stem not in ups)


def test_a_vector_and_its_preset_are_one(run):
    vector = "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
    run.ok("mix", "a:OUTALL", "-o", "one.safetensors")
    run.ok("mix", f"a:{vector}", "-o", "two.safetensors")
    one, two = ((run.folder / f"{n}.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_negative_block_weights_keep_their_sign(run):
    found = changed(run, "a:1,1,1,1,1,1,1,-0.5,1,1,1,1,1,1,1,1,1")
    middle = [value for stem, value in found.items() if "mid_block" in stem]
    assert middle and np.allclose(middle, -0.5, atol=1e-6)


def test_weights_from_a_file(doubled):
    found = changed(doubled, "a", "--weights", "a=middle.yaml")
    for stem, value in found.items():
        assert value == pytest.approx(2 if "mid_block" in stem else 0, abs=1e-6)
    doubled.ok("bake", "-b", "base", "a", "--weights", "a=middle.yaml", "--dry-run")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("a:0.5:OUTALL",), 2, "does not multiply them"),
        (("a:1,0,0",), 2, "cannot have 3 values"),
        (("a:0.5", "--weights", "a=middle.yaml"), 2, "has a weight already: 0.5"),
        (("a", "--weights", "z=middle.yaml"), 2, "is not an adapter"),
        (("a", "--weights", "middle.yaml"), 2, "NAME=FILE"),
        (("a", "--weights", "a=none.yaml"), 3, "none.yaml"),
        (("a", "--weights", "a=twice.yaml"), 3, "twice.yaml"),
    ],
)
def test_mistakes(doubled, words, code, says):
    (doubled.folder / "twice.yaml").write_text("default: 1\ndefault: 2\n")
    doubled.refused(code, "mix", *words, "-o", "out.safetensors", says=says)
