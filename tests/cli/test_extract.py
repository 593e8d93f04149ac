"""The command `extract`: its report, its refusals, and that nothing is written where it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from tests.builders.samples import read_safetensors
from tests.builders.world import rewrite, tune
from tests.tail import first

TUNED = ("extract", "--tuned", "tuned.safetensors", "--base", "base.safetensors")


@pytest.fixture
def tuned(run):
    tune(run.folder / "base.safetensors", run.folder / "tuned.safetensors")
    return run


def test_the_report_says_what_is_kept_and_what_is_not(tuned) -> None:
    shown = tuned.ok(*TUNED, "--rank", "3").out
    assert "tuned-r3.safetensors" in shown and "sd21" in shown
    assert "of the squared norm of the difference" in shown
    assert "biases (6): " in shown and "unchanged" in shown
    found = tuned.ok(*TUNED, "--rank", "3", "-o", "again.safetensors", "--json").json
    assert found["outputs"] == ["again.safetensors"] and found["modules"] == 5
    assert 0 < found["captured"] < 1 and 0 < found["relative_error"] < 1
    assert found["not_kept"]["biases"]["count"] == 6
    assert found["rounding"] == [] and found["left_out"] == []
    assert found["dtype"] == "float16" and found["dialect"] == "kohya"
    one, two = (Path(f"{n}.safetensors").read_bytes() for n in ("tuned-r3", "again"))
    assert one == two


def test_python_gives_what_the_command_writes(tuned) -> None:
    tuned.ok(*TUNED, "--rank", "3", "-o", "out.safetensors")
    adapter = lm.extract("tuned.safetensors", "base.safetensors", rank=3)
    lm.save(adapter, "python.safetensors")
    assert Path("python.safetensors").read_bytes() == Path("out.safetensors").read_bytes()


@pytest.mark.parametrize(
    "words", first(1, [("--to", "peft"), ("--to", "diffusers"), ("--for", "comfyui")])
)
def test_any_dialect_says_the_same(tuned, words: tuple[str, str]) -> None:
    tuned.ok(*TUNED, "--rank", "3", "--dtype", "float32", "-o", "plain.safetensors")
    output = "out" if "peft" in words else "out.safetensors"
    tuned.ok(*TUNED, "--rank", "3", "--dtype", "float32", *words, "-o", output)
    total = tuned.ok("diff", "plain.safetensors", output, "--json").json["total"]
    assert total["relative_distance"] < 1e-6


def test_a_size_is_kept(tuned) -> None:
    found = tuned.ok(*TUNED, "--max-size", "9KB", "-o", "small.safetensors", "--json").json
    assert 8_000 < Path("small.safetensors").stat().st_size == found["size"] <= 9_000


def test_the_whole_difference_bakes_to_the_tuned_checkpoint(tuned) -> None:
    assert "exact differences" in tuned.ok(*TUNED, "--full").out
    tuned.ok("bake", "-b", "base.safetensors", "tuned-full.safetensors", "-o", "back.safetensors")
    ours, theirs = (read_safetensors(Path(f"{n}.safetensors"))[0] for n in ("back", "tuned"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long_tail
def test_a_rounded_copy_says_so(run) -> None:
    run.ok("bake", "-b", "base.safetensors", "--dtype", "bfloat16", "-o", "tuned.safetensors")
    says = ("nothing to extract", "rounding to bfloat16", "--keep-rounding")
    run.refused(5, *TUNED, "--rank", "8", says=says)
    run.refused(5, "extract", "-t", "base.safetensors", "-b", "base.safetensors", "--rank", "8",
                says=("nothing to extract", "are equal"))  # fmt: skip
    found = run.ok(*TUNED, "--rank", "2", "--keep-rounding", "--json").json
    assert found["modules"] > 200


def test_changes_of_biases_alone_say_what_keeps_them(run) -> None:
    def change(arrays, _):
        name = next(n for n in arrays if n.endswith("to_out.0.bias"))
        arrays[name] = 2 * arrays[name]

    rewrite(Path("base.safetensors"), Path("tuned.safetensors"), change)
    run.refused(5, *TUNED, "--rank", "8", says=("biases (1)", "--vectors"))
    assert run.ok(*TUNED, "--rank", "8", "--vectors", "--json").json["modules"] == 1


BAD = {
    "no criterion": (2, (), "--rank 64"),
    "full and a rank": (2, ("--full", "--rank", "4"), "no rank to choose"),
    "a strange component": (2, ("--rank", "4", "--skip-missing", "unit"), "did you mean unet"),
    "a strange dialect": (2, ("--rank", "4", "--to", "koyha"), "did you mean kohya"),
    "too small": (5, ("--max-size", "1001"), "no module keeps a direction"),
    "an error that rank 1 exceeds": (7, ("--rank", "1", "--max-error", "0.001"), "max_error"),
    "a dialect without differences": (
        4, ("--rank", "1", "--vectors", "--to", "diffusers"), "cannot store",
    ),
}  # fmt: skip


def test_an_adapter_is_no_tuned_checkpoint(run) -> None:
    says = ("a.safetensors: this is an adapter", "--tuned")
    run.refused(4, "extract", "--tuned", "a.safetensors", "--base", "base.safetensors", "--rank", "4",
                says=says)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_options_write_nothing(name: str, tuned) -> None:
    code, words, says = BAD[name]
    tuned.refused(code, *TUNED, *words, says=says)


def test_bad_files_write_nothing(tuned) -> None:
    rank = ("--rank", "4")
    tuned.refused(3, "extract", "-t", "nowhere", "-b", "base.safetensors", *rank, says="nowhere")
    tuned.refused(4, "extract", "-t", "a.safetensors", "-b", "base.safetensors", *rank,
                  says="adapter")  # fmt: skip
    whole = Path("tuned.safetensors").read_bytes()
    Path("tuned.safetensors").write_bytes(whole[:-1000])
    tuned.refused(3, *TUNED, *rank, says="tuned.safetensors")

    def spoil(arrays, _):
        arrays[next(n for n in arrays if n.endswith("to_k.weight"))].reshape(-1)[0] = np.nan

    rewrite(Path("base.safetensors"), Path("tuned.safetensors"), spoil)
    tuned.refused(7, *TUNED, *rank, says=("NaN or infinity", "tuned.safetensors", "to_k"))


def test_an_output_is_not_replaced(tuned) -> None:
    tuned.refused(3, *TUNED, "--rank", "4", "-o", "a.safetensors", says="--force")
