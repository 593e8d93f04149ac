"""Parts of a checkpoint that other processes compute: the bytes of one process, or nothing at all."""

from __future__ import annotations

import copyreg
import pickle
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
import loramerge.stream.parts as parts
from loramerge.adapter import Adapter
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.errors import FileError, LoramergeError, UsageError
from loramerge.files.tensors import ArrayTensor
from tests.builders import small_models
from tests.builders.commands import Runner
from tests.stream.merges import merged, small_bytes


class Elsewhere(Executor):
    """Pickles everything, there and back, as if the work were done in another process.

    Args:
        lost: number of the part whose worker is lost.
    """

    def __init__(self, lost: int | None = None) -> None:
        self.lost, self.sent, self.returned = lost, 0, 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        function, args = pickle.loads(pickle.dumps((function, args)))
        future: Future[Any] = Future()
        self.sent += 1
        try:
            if self.sent - 1 == self.lost:
                raise BrokenProcessPool("a process was killed")
            found = pickle.dumps(function(*args, **kwargs))
            self.returned += len(found)
            future.set_result(pickle.loads(found))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three models in two shards each, of which a part holds some tensors."""
    paths = [tmp_path / name for name in ("base", "one", "two")]
    for seed, path in enumerate(paths):
        small_models.write(path, small_models.weights(seed), shards=2)
    monkeypatch.setattr(parts, "_LEAST", 64)
    return paths


OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {},
    "ties": {"method": "ties", "settings": {"density": 0.5}},
    "float16": {"dtype": "F16"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_bytes_as_one_process(name: str, three: list[Path], tmp_path: Path) -> None:
    base, one, two = three
    options = OPTIONS[name] | {"base": base}
    here = merged(tmp_path / "here", (one, 0.7), (two, 0.3), **options)
    executor = Elsewhere()
    there = merged(tmp_path / "there", (one, 0.7), (two, 0.3), executor=executor, **options)
    assert there == here
    for path in sorted((tmp_path / "here").iterdir()):
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()
    assert executor.sent > 4
    assert small_bytes(tmp_path / "there") != small_bytes(one)


@pytest.mark.parametrize(("least", "sent"), [(1, True), (1 << 30, False)])
def test_processes_that_start_by_themselves_do_so_for_large_files(
    least: int, sent: bool, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one, two = three
    executor: Any = Elsewhere()
    executor.least = least
    merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=executor)
    assert (executor.sent > 0) == sent
    monkeypatch.setattr(parts, "_pickled", lambda *_: (_ for _ in ()).throw(UsageError("a pickle")))
    merged(tmp_path / "here", (one, 0.5), (two, 0.5), executor=executor)  # not refused: made here
    assert small_bytes(tmp_path / "here") == small_bytes(tmp_path / "out")


@pytest.mark.parametrize(("least", "sent"), [(1 << 18, True), (1 << 21, False)])
def test_what_is_copied_does_not_make_a_file_large(least: int, sent: bool, tmp_path: Path) -> None:
    """Of the denoiser's file, 5 MB, an adapter of attention changes one or two."""
    executor: Any = Elsewhere()
    executor.least = least
    lm.bake("tiny", "zuzu", tmp_path / "out", executor=executor)
    assert (executor.sent > 0) == sent
    assert max(p.stat().st_size for p in (tmp_path / "out").rglob("*.safetensors")) > 1 << 22


@pytest.mark.slow
def test_one_adapter_that_lives_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it changes few tensors, all are then computed here. The bake does not fail half-way."""
    import safetensors.torch
    import torch

    monkeypatch.setattr(parts, "_LEAST", 1 << 16)
    lm.save(lm.load("zuzu"), tmp_path / "zuzu.safetensors")
    held = safetensors.torch.load_file(tmp_path / "zuzu.safetensors")
    last = sorted(held)[-1].partition(".")[0]
    torch.save({k: v for k, v in held.items() if k.startswith(last)}, tmp_path / "last.pt")
    executor: Any = Elsewhere()
    executor.least = 1
    adapters = ["zuzu", tmp_path / "last.pt"]
    lm.bake("tiny", adapters, tmp_path / "sent", executor=executor)
    sent = executor.sent
    assert sent > 0
    with monkeypatch.context() as room:
        room.setitem(copyreg.dispatch_table, ArrayTensor, _stays)
        lm.bake("tiny", adapters, tmp_path / "stays", executor=executor)
    monkeypatch.setattr(parts, "_SENT", 1 << 10)
    lm.bake("tiny", adapters, tmp_path / "large", executor=executor)
    assert executor.sent == sent
    file = "unet/diffusion_pytorch_model.safetensors"
    unets = [(tmp_path / name / file).read_bytes() for name in ("sent", "stays", "large")]
    assert unets[0] == unets[1] == unets[2]


def _stays(_: Any) -> Any:
    raise TypeError("this lives here")


def test_weights_do_not_travel_back(tmp_path: Path) -> None:
    sizes = {"a.weight": (256, 256), "b.weight": (256, 256)}
    import numpy as np

    for name in ("one", "two"):
        held = {key: np.full(shape, len(name), "float32") for key, shape in sizes.items()}
        small_models.write(tmp_path / name, held)
    executor = Elsewhere()
    merged(tmp_path / "out", (tmp_path / "one", 0.5), (tmp_path / "two", 0.5), executor=executor)
    assert 0 < executor.returned < 4096 < 2 * 256 * 256 * 4


def test_a_lost_worker_leaves_nothing(three: list[Path], tmp_path: Path) -> None:
    _, one, two = three
    for lost in (0, 3):
        with pytest.raises(FileError, match="lost") as caught:
            merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=Elsewhere(lost))
        assert Path(caught.value.file or "").parent == tmp_path / "out"  # no temporary name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_parts_of_a_broken_pool_are_left_to_it(three: list[Path], tmp_path: Path) -> None:
    """The pool itself ends them, in a thread that stops with a traceback at one that is cancelled."""
    _, one, two = three
    futures: list[Future[Any]] = []

    class Broken(Executor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_exception(BrokenProcessPool("killed"))
            return futures[-1]

    with pytest.raises(FileError, match="lost"):
        merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=Broken())
    assert len(futures) > 1 and not any(future.cancelled() for future in futures)


def test_an_error_in_a_part_is_that_error(three: list[Path], tmp_path: Path) -> None:
    one = three[1]
    held = small_models.weights(1)
    next(iter(held.values())).reshape(-1)[0] = float("nan")
    small_models.write(tmp_path / "bad", held, shards=2)
    errors = []
    for executor in (None, Elsewhere()):
        with pytest.raises(LoramergeError) as caught:
            merged(tmp_path / "out", (one, 0.5), (tmp_path / "bad", 0.5), executor=executor)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    assert not (tmp_path / "out").exists()


def test_an_input_that_changes_meanwhile_is_refused(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one, two = three
    pickled = parts._pickled

    def edited(*args: Any) -> bytes:
        data = pickled(*args)
        for path in two.glob("*.safetensors"):
            path.write_bytes(path.read_bytes())
        return data

    monkeypatch.setattr(parts, "_pickled", edited)
    with pytest.raises(FileError, match="changed"):
        merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=Elsewhere())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_sent_is_refused(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one, two = three

    def fails(*_: Any) -> bytes:
        raise TypeError("cannot pickle a lock")

    monkeypatch.setattr(parts.pickle, "dumps", fails)
    with pytest.raises(UsageError, match="other processes"):
        merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=Elsewhere())
    assert not (tmp_path / "out").exists()


def test_what_this_process_alone_has_keeps_the_work_here(three: list[Path], tmp_path: Path) -> None:
    """Operators of a file that the command line names: a large merge failed half-way for them."""
    base, one, two = three
    executor: Any = Elsewhere()
    executor.least = 1

    with OPERATORS.adding():

        @lm.operator(space="elements", source="definition")
        def halved(terms: Any, parameters: Any) -> Any:
            return sum(terms.values) / 2

        for name, sent in (("halved", False), ("ties", True)):
            merged(tmp_path / name, (one, 1), (two, 1), base=base, method=name, executor=executor)
            assert (executor.sent > 0) == sent
        assert OPERATORS.is_installed(find_operator("ties"))
        assert not OPERATORS.is_installed(halved)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no numbered files on this system")
def test_a_file_that_is_open_here_alone_keeps_the_work_here(
    three: list[Path], tmp_path: Path
) -> None:
    """`bake --base /dev/stdin < base.safetensors`: in another process that is another file."""
    executor: Any = Elsewhere()
    executor.least = 1
    stored = next(three[1].glob("*.safetensors"))
    with stored.open("rb") as file:
        for path, sent in ((f"/dev/fd/{file.fileno()}", False), (str(stored), True)):
            opened = Path(path)
            merged(
                tmp_path / f"{sent}.safetensors", (opened, 0.5), (opened, 0.5), executor=executor
            )
            assert (executor.sent > 0) == sent
    assert len({path.read_bytes() for path in tmp_path.glob("*.safetensors")}) == 1


def test_an_operator_that_workers_do_not_have_is_named(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, one, two = three
    options: dict[str, Any] = {"base": base, "method": "ties", "executor": Elsewhere()}
    loads = pickle.loads

    def unknown(name: str) -> Any:
        raise UsageError(f"{name!r} is not a known method")

    def elsewhere(data: bytes) -> Any:
        with monkeypatch.context() as room:
            room.setattr(parts, "find_operator", unknown)
            return loads(data)

    monkeypatch.setattr(parts.pickle, "loads", elsewhere)
    with pytest.raises(UsageError, match="the same operator 'ties'"):
        merged(tmp_path / "out", (one, 0.7), (two, 0.3), **options)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_client_cancels_the_rest(three: list[Path], tmp_path: Path) -> None:
    _, one, two = three
    waiting: list[Future[Any]] = []

    class Interrupted(Executor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if not waiting:
                future.set_exception(KeyboardInterrupt())
            waiting.append(future)
            return future

    with pytest.raises(KeyboardInterrupt):
        merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=Interrupted())
    assert len(waiting) > 1 and all(future.cancelled() for future in waiting[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_processes_that_can_be_stopped_are_not_waited_for(
    three: list[Path], tmp_path: Path
) -> None:
    """They are stopped, and no part is cancelled: the pool would print a traceback for one."""
    _, one, two = three
    futures: list[Future[Any]] = []

    class Stopped(Executor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            futures.append(Future())
            futures[-1].set_running_or_notify_cancel()
            if len(futures) == 1:
                futures[0].set_exception(KeyboardInterrupt())
            return futures[-1]

        def stop(self) -> None:
            for future in futures[1:]:
                future.set_exception(BrokenProcessPool("ended"))

    with pytest.raises(KeyboardInterrupt):
        merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=Stopped())
    assert len(futures) > 1 and all(future.done() for future in futures)


def test_parts_that_run_end_before_their_file_is_removed(three: list[Path], tmp_path: Path) -> None:
    """Windows does not remove what another process has open."""
    _, one, two = three
    runs, seen = threading.Event(), list[bool]()

    def fails() -> Any:
        runs.wait()
        raise FileError("the first part is bad")

    def takes() -> Any:
        runs.set()
        time.sleep(0.1)
        seen.append(any(tmp_path.rglob("*.partial")))

    class Busy(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            works.append(fails if not works else takes)
            return super().submit(works[-1])

    works: list[Any] = []
    with Busy(2) as executor, pytest.raises(FileError, match="first"):
        merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=executor)
    assert seen and all(seen)


# ---- the commands


@pytest.mark.long_tail
@pytest.mark.filterwarnings("ignore")
def test_commands_on_a_dask_cluster(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    run = Runner(tmp_path, capsys)
    monkeypatch.chdir(tmp_path)
    words = ("merge", "one:0.5", "two", "--base", "base", "--method", "ties")
    run.ok(*words, "-o", "here")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        run.ok(*words, "-o", "there", "--dask", cluster.scheduler_address)
        run.refused(
            2, *words, "-o", "x", "--dask", "tcp://x", "--jobs", "2", says="number of workers"
        )
    for path in sorted((tmp_path / "here").iterdir()):
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["merge", "bake"])
def test_processes_of_this_machine(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_LEAST", 1 << 16)
    run = Runner(tmp_path, capsys)
    inputs = ("tiny", "zuzu:0.5") if verb == "merge" else ("zuzu:0.5",)
    more = ("tiny-outlined:0.5",) if verb == "merge" else ("--base", "tiny")
    run.ok(verb, *inputs, *more, "-o", "here")
    run.ok(verb, *inputs, *more, "-o", "there", "--jobs", "2")
    for path in sorted((tmp_path / "here").rglob("*.safetensors")):
        again = tmp_path / "there" / path.relative_to(tmp_path / "here")
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_killed_process(three: list[Path], tmp_path: Path) -> None:
    """A worker that is killed while it computes: the error says so, and nothing is left."""
    _, one, two = three
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        executor.submit(int, "3").result()
        (process,) = executor._processes.values()
        executor.submit(time.sleep, 60)
        threading.Timer(0.5, process.kill).start()
        with pytest.raises(FileError, match="lost"):
            merged(tmp_path / "out", (one, 0.5), (two, 0.5), executor=executor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


@pytest.mark.slow
def test_adapters_among_the_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is computed from the merged weight travels with what that is made of."""
    monkeypatch.setattr(parts, "_LEAST", 1 << 16)
    adapter: Adapter = lm.load("zuzu")
    models = ["tiny", "tiny-outlined:0.5", (adapter, 0.5)]
    lm.merge(models, tmp_path / "here", threads=1)
    lm.merge(models, tmp_path / "there", threads=1, executor=Elsewhere())
    for path in sorted((tmp_path / "here").rglob("*.safetensors")):
        again = tmp_path / "there" / path.relative_to(tmp_path / "here")
        assert again.read_bytes() == path.read_bytes()
