"""Runs that end before their last step: Ctrl-C gives a result, an exhausted memory a helpful error."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import OutOfMemory, OutputExists, UsageError, spelled  # noqa: E402
from loramerge.events import Note, Progress, Warn  # noqa: E402
from loramerge.interruption import deferred  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.device.exhaustion import naming_exhaustion  # noqa: E402
from loramerge.train.run import loop  # noqa: E402
from loramerge.verbs.train.run import train, trained  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402
from tests.tail import tail  # noqa: E402
from tests.train.test_verb import asked, run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
HOW: dict[str, Any] = {"targets": "attn-only", "steps": 6, "state_every": 100}


def interrupting(at: int, seen: list[Any] | None = None) -> Context:
    """Return a context in which Ctrl-C comes while the event of a step is told."""

    def notify(event: Any) -> None:
        if seen is not None:
            seen.append(event)
        if isinstance(event, Progress) and event.task == "train" and event.done == at:
            raise KeyboardInterrupt

    return Context(device="cpu", notify=notify)


def test_ctrl_c_in_a_step_ends_it_first() -> None:
    order = []
    with pytest.raises(KeyboardInterrupt), deferred() as asked_for:
        os.kill(os.getpid(), signal.SIGINT)
        order.append(asked_for())
    assert order == [True] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with deferred() as asked_for:
        assert not asked_for()
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a second one is obeyed at once
        order.append(False)
    assert order == [True]


def test_ctrl_c_gives_the_adapter_so_far_and_a_run_that_goes_on(tmp_path: Path) -> None:
    said: list[Any] = []
    result = train(asked(tmp_path, **HOW), interrupting(3, said))
    path = tmp_path / "out.safetensors"
    assert (result.exit_code, result.done, result.json()["unfinished"]) == (130, 3, True)
    assert any(isinstance(e, Warn) and "--resume" not in e.text and "so far" in spelled(e.text)
               for e in said)  # fmt: skip
    metadata = read_safetensors(path)[1]
    assert metadata["loramerge.unfinished"] == "step 3 of 6" and metadata["ss_steps"] == "3"
    assert "loramerge.recipe" not in metadata and len(lm.load(path).deltas) > 10
    assert "stopped after step 3" in (tmp_path / "out-run" / "report.html").read_text("utf-8")
    with pytest.raises(OutputExists):
        run(tmp_path, **HOW)
    again = run(tmp_path, **HOW, resume=True)  # the unfinished adapter is replaced
    assert (again.resumed, again.exit_code) == (3, 0)
    whole = run(tmp_path / "b", **HOW, images=str(tmp_path / "pictures"))
    assert whole.output is not None and path.read_bytes() == Path(whole.output).read_bytes()
    assert "loramerge.unfinished" not in read_safetensors(path)[1]


@pytest.mark.parametrize("at", [tail(step) for step in range(1, 6)])
def test_ctrl_c_at_any_step_leaves_an_adapter_that_loads(at: int, tmp_path: Path) -> None:
    result = train(asked(tmp_path, **HOW), interrupting(at))
    assert (result.exit_code, result.done) == (130, at)
    adapter = lm.load(tmp_path / "out.safetensors").require_sound()
    assert len(adapter.deltas) > 10 and not adapter.info.account.unknown
    assert adapter.info.metadata["loramerge.unfinished"] == f"step {at} of 6"


def test_before_the_first_step_there_is_nothing_to_keep(tmp_path: Path) -> None:
    def notify(event: Any) -> None:
        if isinstance(event, Progress) and event.task != "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked(tmp_path, **HOW), Context(device="cpu", notify=notify))
    assert not (tmp_path / "out.safetensors").exists()


def test_in_a_recipe_or_python_the_adapter_so_far_is_in_the_runs_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(asked(tmp_path, **HOW), interrupting(2))
    assert lm.load(tmp_path / "out-run" / "out-000002.safetensors").deltas
    assert not (tmp_path / "out.safetensors").exists()


def test_more_steps_continue_a_run(tmp_path: Path) -> None:
    run(tmp_path, **HOW)
    said: list[Any] = []
    how = HOW | {"steps": 9}
    result = train(
        asked(tmp_path, **how, resume=True, force=True), Context(device="cpu", notify=said.append)
    )
    assert (result.resumed, result.done) == (6, 9)
    assert any(isinstance(e, Note) and "schedule of 9" in spelled(e.text) for e in said)
    metadata = read_safetensors(tmp_path / "out.safetensors")[1]
    assert metadata["loramerge.continued"] == "6, 9" and "loramerge.recipe" not in metadata
    with pytest.raises(UsageError, match="another steps"):
        run(tmp_path, **(HOW | {"steps": 8}), resume=True, output=str(tmp_path / "x.safetensors"),
            folder=str(tmp_path / "out-run"))  # fmt: skip


@pytest.mark.parametrize("text", [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB",
    "MPS backend out of memory (MPS allocated: 8.00 GB). Tried to allocate 256 bytes on private pool.",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
])  # fmt: skip
def test_an_exhausted_memory_is_named(text: str) -> None:
    with (
        pytest.raises(OutOfMemory, match="ran out of memory while encoding images") as caught,
        naming_exhaustion(torch.device("cpu"), "encoding images", lambda: "a hint"),
    ):
        raise RuntimeError(text)
    assert caught.value.exit_code == 8 and caught.value.hint == "a hint"
    if "2.00 GiB" in text:
        assert caught.value.expected == "2.15 GB more"
    with (
        pytest.raises(RuntimeError, match="shapes"),
        naming_exhaustion(torch.device("cpu"), "x", lambda: ""),
    ):
        raise RuntimeError("shapes do not match")


def test_out_of_memory_in_a_step_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = loop._loss

    def failing(run: Any, number: int, batch: Any) -> Any:
        if number == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return inner(run, number, batch)

    monkeypatch.setattr(loop, "_loss", failing)
    with pytest.raises(OutOfMemory, match="while training, in step 4") as caught:
        run(tmp_path, **HOW)
    text = str(caught.value)
    assert "resume=True continues after step 3" in text and "checkpointing='on'" in text
    monkeypatch.setattr(loop, "_loss", inner)
    assert run(tmp_path, **HOW, resume=True, checkpointing="on").resumed == 3


@pytest.mark.long_tail
def test_samples_of_an_earlier_run_are_not_shown(tmp_path: Path) -> None:
    folder_of_samples = tmp_path / "out-run" / "samples"
    run(tmp_path, **HOW, sample_every=2, sample_steps=1)
    assert {p.name[:6] for p in folder_of_samples.iterdir()} == {
        "000000", "000002", "000004", "000006",
    }  # fmt: skip
    run(tmp_path, **HOW, sample_every=5, sample_steps=1, force=True)
    assert {p.name[:6] for p in folder_of_samples.iterdir()} == {"000000", "000005", "000006"}
    run(tmp_path, **HOW, force=True)
    assert not (tmp_path / "out-run" / "samples.png").exists()
    assert "alt=" not in (tmp_path / "out-run" / "report.html").read_text("utf-8")


def test_a_sheet_never_mixes_prompts(tmp_path: Path) -> None:
    from loramerge.report.pictures import png_bytes
    from loramerge.train.drawing.samples import sheet
    from tests.builders.pictures import picture

    (tmp_path / "samples").mkdir()
    for step, prompt in ((0, "old"), (5, "new")):
        data = png_bytes(picture(step), {"prompt": prompt, "seed": "0"})
        (tmp_path / "samples" / f"{step:06}-0.png").write_bytes(data)
    one, both = sheet(tmp_path, ["new"], 0, 5), sheet(tmp_path, ["new", "more"], 0, 5)
    assert one.height < 2 * 96 + 96 and both.width > one.width


def test_a_base_that_exceeds_the_memory_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    from loramerge.verbs.preview import Preview, compute_preview

    def full(*args: Any, **options: Any) -> Any:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes."
        )

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", full)
    how = asked(tmp_path, **HOW)
    with pytest.raises(OutOfMemory, match="ran out of memory while loading the base"):
        train(how, Context(device="cpu"))
    with pytest.raises(OutOfMemory, match="ran out of memory while loading") as caught:
        compute_preview(Preview(base=(how.base,)), Context(device="cpu"))
    assert caught.value.exit_code == 8 and caught.value.expected == "400 bytes more"


def test_drawing_that_exceeds_the_memory_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loramerge.train.drawing import preview as drawing
    from loramerge.verbs.preview import Preview, compute_preview

    threads = []

    def full(*args: Any) -> Any:
        threads.append(torch.get_num_threads())
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(drawing, "draw", full)
    before = torch.get_num_threads()
    for given in (None, 3):
        with pytest.raises(OutOfMemory, match=r"(?s)while generating images.*smaller size"):
            compute_preview(
                Preview(base=(asked(tmp_path).base,)), Context(threads=given, device="cpu")
            )
    assert threads == [1, 3] and torch.get_num_threads() == before


def test_threads_of_torch_are_not_the_share_of_a_task() -> None:
    assert [c.torch_threads for c in (Context(), Context(4), Context(4, model_threads=1))] == [
        1,
        4,
        1,
    ]
