"""train --vram: what is chosen stands in the file, is repeated and resumed, and is refused in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.errors import FormatError, UsageError, on_command_line, spelled  # noqa: E402
from loramerge.events import Note, Warn  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from loramerge.steps.amounts import memory_in_bytes  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.device import free  # noqa: E402
from loramerge.train.run.log import read_chosen  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.result import TrainResult  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.bases import single  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.measured,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
QUIET = {"sample_every": 0, "lr": 1e-2, "steps": 4, "rank": 2, "trigger": "zuzu"}
LADDER = ["as usual", "checkpointing", "bf16", "adafactor"]


def run(place: Path, notes: list[Any] | None = None, **how: Any) -> TrainResult:
    pictures = place / "pictures"
    if not pictures.exists():
        folder_of(pictures, 3)
    usual = {"images": str(pictures), "output": str(place / "out.safetensors")}
    asked = Train(base=str(pipeline_folder()), **(usual | QUIET | how))
    return train(asked, Context(device="cpu", notify=(notes if notes is not None else []).append))


def ladder_of(place: Path, **how: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run(place, dry_run=True, **how).json()["ladder"]
    return found


def written(place: Path) -> tuple[dict[str, str], dict[str, Any]]:
    metadata = read_safetensors(place / "out.safetensors")[1]
    step = json.loads(metadata["loramerge.recipe"])["steps"]["result"]["train"]
    return metadata, step


@pytest.mark.slow
def test_the_chosen_settings_are_reported_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loramerge.cli.main import main

    ladder = ladder_of(tmp_path)
    assert [rung["saving"] for rung in ladder][:4] == LADDER and len(ladder) > 5
    wanted = ladder[5]
    given = f"{wanted['memory']}B"
    notes: list[Any] = []
    result = run(tmp_path, notes, vram=given)
    said = [note.text for note in notes if isinstance(note, Note) and "of memory" in note.text]
    assert len(said) == 1 and f"{wanted['resolution']} pixels" in said[0]
    assert result.json()["chosen"] == {"given": wanted["memory"], **wanted}
    metadata, step = written(tmp_path)
    assert step["optimizer"] == "adafactor" and step["precision"] == "bf16"
    assert step["resolution"] == wanted["resolution"] and "vram" not in step
    assert metadata["ss_resolution"] == f"({wanted['resolution']}, {wanted['resolution']})"
    assert "Adafactor" in metadata["ss_optimizer"] and metadata["ss_mixed_precision"] == "bf16"
    page = (tmp_path / "out-run" / "report.html").read_text("utf-8")
    assert said[0] in page
    log = tmp_path / "out-run" / "log.jsonl"
    chosen = read_chosen(log)
    assert chosen is not None and chosen["saving"] == wanted["saving"]
    assert [entry["step"] for entry in read_log(log)] == [0, 1, 2, 3]
    # said outright it is the same file, and so it is from its own recipe, whatever memory is free
    before = (tmp_path / "out.safetensors").read_bytes()
    run(
        tmp_path, resolution=wanted["resolution"], precision="bf16", optimizer="adafactor",
        force=True, folder=str(tmp_path / "other"),
    )  # fmt: skip
    assert (tmp_path / "out.safetensors").read_bytes() == before
    monkeypatch.setattr(free, "free_memory", lambda device: None)
    (tmp_path / pipeline_folder().name).symlink_to(pipeline_folder(), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "out.safetensors", "--device", "cpu"]) == 0
    assert "same file" in capsys.readouterr().out


@pytest.mark.long_tail
def test_enough_memory_changes_nothing_but_says_it(tmp_path: Path) -> None:
    run(tmp_path)
    plain = read_safetensors(tmp_path / "out.safetensors")[0]
    run(tmp_path, vram="8GB", force=True)
    assert all((v == read_safetensors(tmp_path / "out.safetensors")[0][n]).all()
               for n, v in plain.items())  # fmt: skip
    _, step = written(tmp_path)
    assert (step["resolution"], step["optimizer"], step["precision"]) == (32, "adamw", "no")


@pytest.mark.long_tail
def test_given_settings_are_kept(tmp_path: Path) -> None:
    for how in ({"optimizer": "adamw"}, {"precision": "no"}, {"resolution": 32},
                {"checkpointing": "off"}, {"optimizer_option": ("eps=1e-7",)}):  # fmt: skip
        name, value = next(iter(how.items()))
        rungs = ladder_of(tmp_path, vram="1GB", **how)
        if name == "checkpointing":
            assert not any(rung["checkpointing"] for rung in rungs)
        elif name == "optimizer_option":
            assert {rung["optimizer"] for rung in rungs} == {"adamw"}
        else:
            assert {rung[name] for rung in rungs} == {value}


@pytest.mark.long_tail
def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    least = ladder_of(tmp_path)[-1]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"needs .* with 16 pixels, checkpointing") as caught:
        run(tmp_path, vram=f"{least['memory'] - 1}B")
    assert "are given" in str(caught.value) and "vram=" in spelled(caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        run(tmp_path, vram="1KB", shuffle_tags=True, batch=4, resolution=32, method="full", ema=0.9)
    hint = spelled(caught.value.hint or "", on_command_line)
    for remedy in ("--shuffle-tags", "--batch 1", "--resolution", "--method lora", "--ema"):
        assert remedy in hint
    for text in ("much", "50%", "-1GB", "0"):
        with pytest.raises(UsageError, match="is not a size"):
            run(tmp_path, vram=text)
    assert sorted(tmp_path.rglob("*")) == before
    # a dry run shows the same, and refuses nothing
    notes: list[Any] = []
    found = run(tmp_path, notes, vram="1KB", dry_run=True).json()
    assert found["chosen"] is None and found["memory_given"] == 1000 and found["ladder"]
    assert any(isinstance(note, Warn) and "needs" in spelled(note.text) for note in notes)


@pytest.mark.long_tail
def test_free_memory_alone_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    before = (tmp_path / "out.safetensors").read_bytes()
    usual, frugal = ladder_of(tmp_path)[:2]
    monkeypatch.setattr(free, "free_memory", lambda device: frugal["memory"])
    notes: list[Any] = []
    run(tmp_path, notes, force=True)
    assert any("checkpointing" in note.text for note in notes if isinstance(note, Note))
    assert (tmp_path / "out.safetensors").read_bytes() == before
    assert usual["memory"] > frugal["memory"]
    monkeypatch.setattr(free, "free_memory", lambda device: frugal["memory"] - 1)
    with pytest.raises(UsageError, match="are free") as caught:
        run(tmp_path, force=True)
    assert "settings that change the result" in spelled(caught.value.hint or "")
    monkeypatch.setattr(free, "free_memory", lambda device: None)
    run(tmp_path, force=True)  # what is not known refuses nothing
    assert (tmp_path / "out.safetensors").read_bytes() == before


@pytest.mark.long_tail
def test_going_on_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramerge.train import session

    ladder = ladder_of(tmp_path)
    given, less = ladder[4]["memory"], ladder[6]["memory"]
    run(tmp_path, vram=f"{given}B", folder=str(tmp_path / "whole"))
    whole = (tmp_path / "out.safetensors").read_bytes()
    (tmp_path / "out.safetensors").unlink()
    stopped = session.save_state

    def stop(run: Any, *rest: Any) -> None:
        stopped(run, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(session, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, vram=f"{given}B", state_every=2)
    how: dict[str, Any] = {"resume": True, "state_every": 2}
    with pytest.raises(UsageError, match="the run was started with"):
        run(tmp_path, vram=f"{less}B", **how)
    assert not (tmp_path / "out.safetensors").exists()
    # neither what is free now nor a larger memory changes it
    monkeypatch.setattr(free, "free_memory", lambda device: 1)
    assert run(tmp_path, vram="8GB", **how).resumed == 2
    assert (tmp_path / "out.safetensors").read_bytes() == whole
    (tmp_path / "out.safetensors").unlink()
    assert run(tmp_path, **how).resumed == 4
    assert (tmp_path / "out.safetensors").read_bytes() == whole


def test_a_base_without_configurations_is_not_guessed_at(tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures", 3)
    single(tmp_path / "single.safetensors", "sd15")  # and its VAE lacks layers
    asked = {
        "base": str(tmp_path / "single.safetensors"), "images": str(tmp_path / "pictures"), **QUIET
    }  # fmt: skip
    with pytest.raises(FormatError, match="cannot be predicted") as caught:
        train(Train(**asked, vram="8GB", output=str(tmp_path / "o.safetensors")), Context())
    assert "config" in spelled(caught.value.hint or "")
    notes: list[Any] = []
    with pytest.raises(FormatError, match="lacks a layer of its model"):
        train(
            Train(**asked, output=str(tmp_path / "o.safetensors")),
            Context(device="cpu", notify=notes.append),
        )
    assert any(
        "cannot be predicted" in spelled(note.text) for note in notes if isinstance(note, Note)
    )


@pytest.mark.parametrize("text", ["50%", "lots", "0", "-8GB", "8TB"])
def test_an_invalid_amount_of_memory_is_refused_with_an_example(text: str) -> None:
    """The words for sizes of files, which may be parts of the input, would send people astray."""
    with pytest.raises(UsageError) as caught:
        memory_in_bytes(text)
    assert caught.value.expected == "8GB, 7500MB or 8GiB"
