"""A plan has the size of the file to the byte, and names the same worst module as the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramerge.events import ignore
from loramerge.page.doing import plan
from loramerge.steps import engine, loss
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named
from tests.builders.samples import read_safetensors, safetensors_bytes
from tests.builders.world import write_folder

BAKED: dict[str, Any] = {"base": "folder", "adapters": ["a:0.8"]}
MIXED: dict[str, Any] = {"adapters": ["zuzu:0.5", "polka:0.3"]}


def bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def planned(verb: str, values: dict[str, Any]) -> dict[str, Any]:
    """The plan of the page, with what the weights say."""
    found = plan.do({"verb": verb, "values": values, "relations": True}, ignore)
    assert found["refused"] is None
    return found


def done(verb: str, values: dict[str, Any]) -> Any:
    known = verb_named(verb)
    assert known is not None
    return engine.perform(known, engine.parameters_from(known.parameters, values), Context()).json()


def check(verb: str, values: dict[str, Any]) -> None:
    """The law: what a plan says is what comes out."""
    before = planned(verb, values)
    after = done(verb, values)
    (output,) = after["outputs"]
    assert before["at_most"] is False
    assert before["size"] == after["size"] == bytes_of(Path(output))
    if after.get("ranks"):
        assert before["ranks"] == after["ranks"]
    measured = before.get("survival") or before.get("losses") or {}
    for name in ("worst", "relative_error"):
        if name in measured:
            assert measured[name] == after[name]
    if verb == "bake":
        assert measured["kept"] == after["survived"]


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("mix", MIXED | {"rank": 4}),
        ("mix", MIXED | {"max_size": "150kB"}),
        ("mix", MIXED | {"method": "ties"}),
        ("mix", {"adapters": ["zuzu:0.5"], "to": "peft"}),
        ("resize", {"adapter": "zuzu", "energy": 0.9}),
        ("resize", {"adapter": "polka", "max_size": "100kB"}),
        ("convert", {"adapter": "zuzu", "to": "diffusers"}),
        ("convert", {"adapter": "zuzu", "to": "peft", "keep": ["*attn2*"]}),
        ("convert", {"adapter": "zuzu", "to_lora": True, "rank": 3}),
        ("heal", {"adapter": "zuzu"}),
        ("heal", {"adapter": "a.safetensors", "dtype": "float32"}),
        ("bake", {"base": "tiny", "adapters": ["zuzu"]}),
        ("merge", {"models": ["tiny:0.5", "tiny-outlined:0.5"]}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("work")
def test_what_a_plan_says_comes_out(verb: str, values: dict[str, Any]) -> None:
    folder = verb in ("bake", "merge") or values.get("to") == "peft"
    check(verb, values | {"output": "o" if folder else "o.safetensors"})


@pytest.fixture
def folder(work: Path) -> Path:
    """A base as a folder, in two shards with an index, and files that are copied."""
    place = work / "folder"
    write_folder(work / "base.safetensors", place)
    (place / "tokenizer").mkdir()
    (place / "tokenizer" / "vocab.json").write_text(json.dumps({"猫": 1}), "utf-8")
    return place


def sharded(place: Path) -> None:
    """Split the weights in two files with an index."""
    unet = place / "unet"
    arrays, _ = read_safetensors(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names, index = sorted(arrays), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        (unet / name).write_bytes(safetensors_bytes({one: arrays[one] for one in part}))
        index |= dict.fromkeys(part, name)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("shards", [False, True], ids=["one", "shards"])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_folders_with_all_their_files(folder: Path, shards: bool, dtype: str | None) -> None:
    if shards:
        sharded(folder)
    check("bake", BAKED | {"output": "o"} | ({"dtype": dtype} if dtype else {}))
    if shards:
        name = "unet/diffusion_pytorch_model.safetensors.index.json"
        index = json.loads((Path("o") / name).read_text("utf-8"))
        assert (index["metadata"]["total_size"] > 1) == (dtype is not None)


def weights_alone(folder: Path, *_: Any) -> int:
    """Wrong, and what was predicted: the bytes of the files with weights."""
    return 0


def test_a_plan_without_the_other_files_fails_the_law(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramerge.stream.bake.bytes_of_others", weights_alone)
    with pytest.raises(AssertionError):
        check("bake", BAKED | {"output": "o"})


# ---- forecasts


def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a base whose changed tensors have gigabytes."""
    monkeypatch.setattr(loss, "WHOLE", 0)


def test_a_few_tensors_fail_the_law(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled(monkeypatch)
    with pytest.raises(AssertionError):
        check("bake", {"base": "tiny", "adapters": ["zuzu"], "output": "o"})


def test_an_estimate_says_that_it_is_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"base": "tiny", "adapters": ["zuzu"]}
    command = ("bake", "-b", "tiny", "zuzu", "--dry-run")
    assert planned("bake", values)["survival"]["estimated"] is None
    assert "estimated" not in run.ok(*command).out
    sampled(monkeypatch)
    words = "from 32 of 84 tensors"
    assert planned("bake", values)["survival"]["estimated"] == words
    assert run.ok(*command, "--json").json["estimated"] == words
    assert f"estimated       {words}; a bake measures all" in run.ok(*command).out


def test_a_dry_run_shows_what_the_bake_reports(run: Any) -> None:
    def lines(*options: str) -> list[str]:
        out = run.ok("bake", "-b", "base", "a", *options).out
        words = ("size ", "accuracy", "worst module", "size of change")
        return [" ".join(line.split()) for line in out.splitlines() if line.startswith(words)]

    dry = lines("--dry-run")
    assert len(dry) == 4 and dry == lines()


def test_the_size_of_a_computed_adapter_needs_no_file(work: Path) -> None:
    before = set(work.iterdir())
    planned("resize", {"adapter": "zuzu", "energy": 0.5})
    assert set(work.iterdir()) == before
