"""Where tasks run changes nothing: threads, processes, a Dask cluster give the bytes of one thread."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
import loramerge.recipe.run as engine
from loramerge.errors import AdapterError, LoramergeError, RecipeError
from loramerge.events import Event, Warn
from loramerge.recipe.executors import Processes, workers
from loramerge.recipe.recipe import load_recipe
from loramerge.steps.parameters import Context
from tests.builders.world import rewrite

SWEEP = """
version: 1
sweep: {w: [0.2, 0.4, 0.6]}
steps:
  blend: {mix: {adapters: ["a.safetensors:${w}", b.safetensors]}}
  small: {resize: {adapter: blend, rank: 2}, save: "DIR/${w}.safetensors"}
  model: {bake: {base: base.safetensors, adapters: [all], dtype: float16}, save: DIR/model.safetensors}
  all: {mix: {adapters: [{each: small}]}}
  look: {inspect: {files: [all, small], deep: true}, save: "DIR/look-${w}.json"}
  far: {diff: {a: blend, b: small}}
"""
BAD = """
version: 1
steps:
  x: {mix: {adapters: [a.safetensors], embeddings: all}, save: x.safetensors}
  y: {resize: {adapter: broken.safetensors, rank: 1}, save: y.safetensors}
"""


@pytest.fixture
def one_by_one(recipe) -> dict[str, Any]:
    """The files and figures of a run of one task at a time."""
    result = lm.run(recipe(SWEEP.replace("DIR", "one"), "one.yaml"), threads=1)
    return {"files": _files("one"), "figures": _figures(result)}


def _files(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.safetensors"))}


def _figures(result: Any) -> dict[str, Any]:
    return {
        name: {k: v for k, v in o.figures.items() if not isinstance(v, str)}
        for name, o in result.outcomes.items()
    }


def _same(result: Any, folder: str, one_by_one: dict[str, Any]) -> None:
    assert {o.status for o in result.outcomes.values()} == {"done"}
    assert _files(folder) == one_by_one["files"]
    assert len(one_by_one["files"]) == 4
    assert _figures(result) == one_by_one["figures"]


def test_threads(one_by_one, recipe) -> None:
    with ThreadPoolExecutor(2) as executor:
        path = recipe(SWEEP.replace("DIR", "two"), "two.yaml")
        _same(lm.run(path, executor=executor, threads=1), "two", one_by_one)
        assert executor.submit(int, "3").result() == 3  # it is not shut down


@pytest.fixture
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def test_processes(one_by_one, recipe, processes, tmp_path) -> None:
    """Results handed on in memory, errors and events travel between processes."""
    path = recipe(SWEEP.replace("DIR", "two"), "two.yaml")
    _same(lm.run(path, executor=processes, threads=1), "two", one_by_one)
    Path("broken.safetensors").write_bytes(Path("base.safetensors").read_bytes())
    with pytest.raises(LoramergeError) as caught:
        lm.run(recipe(BAD), executor=processes)
    assert caught.value.step == "y"
    assert "this is a checkpoint" in str(caught.value)
    assert caught.value.exit_code == 4


LEFT = """
import os, sys, time
from loramerge.recipe.executors import Processes

if __name__ == "__main__":
    print(Processes(1).submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_processes_end_when_who_started_them_is_killed(tmp_path) -> None:
    script = tmp_path / "left.py"
    script.write_text(LEFT, "utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


masks = pytest.mark.skipif(
    not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held back"
)


DEAF = """
from signal import SIG_BLOCK, SIGHUP, SIGINT, SIGTERM, pthread_sigmask
from loramerge.recipe.executors import Processes

before = pthread_sigmask(SIG_BLOCK, ())
with Processes(1) as processes:
    asked = processes.submit(pthread_sigmask, SIG_BLOCK, ())
    assert pthread_sigmask(SIG_BLOCK, ()) == before
    assert {SIGINT, SIGHUP} <= asked.result()
    assert SIGTERM not in asked.result()  # by which they are stopped
"""


@pytest.mark.slow
@masks
def test_processes_are_deaf_to_interruption_from_their_start() -> None:
    """Ctrl-C reaches them, too; while they imported, it ended them with a traceback of each.

    In a process of its own: the first one to start is that of Python's tracker of resources.
    """
    subprocess.run([sys.executable, "-c", DEAF], check=True)


@masks
def test_an_interruption_while_signals_are_held_back_leaves_none_of_them_held(monkeypatch) -> None:
    """A page's process, whose next jobs are stopped by such a signal, would be deaf to it."""
    before, mask = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.pthread_sigmask

    def interrupted(how: int, which: Any) -> Any:
        found = mask(how, which)
        if how == signal.SIG_BLOCK and which:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
    with pytest.raises(KeyboardInterrupt), Processes(1) as processes:
        processes.submit(os.getpid)
    assert mask(signal.SIG_BLOCK, ()) == before


@pytest.mark.slow
def test_processes_that_are_stopped_end_at_once() -> None:
    with Processes(2) as processes:
        first = processes.submit(os.getpid).result()
        processes.submit(time.sleep, 30)
        processes.stop()
        assert not _runs(first)


STARTED = """
import os
from loramerge.recipe.executors import Processes

with Processes(1) as processes:
    print(processes.submit(os.getpid).result() != os.getpid(), __name__)
"""


@pytest.mark.slow
def test_processes_run_nothing_but_our_modules(tmp_path) -> None:
    """Python would run what it imports first from the current folder, and the script once more."""
    script, folder = tmp_path / "started.py", tmp_path / "folder"
    script.write_text(STARTED, "utf-8")
    folder.mkdir()
    for name in ("multiprocessing", "random", "loramerge"):
        (folder / f"{name}.py").write_text("raise SystemExit('this is not to be run')", "utf-8")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=folder, check=False
    )
    assert (done.stdout, done.stderr) == ("True __main__\n", "")
    assert "PYTHONSAFEPATH" not in os.environ


def test_no_process_starts_where_there_is_nothing_to_do() -> None:
    """Queues alone start one: a bake of a small file would pay for it."""
    with Processes(2) as processes:
        assert processes._pool is None


def test_one_process_more_is_none(monkeypatch) -> None:
    with workers(None, None, threads=1, least=100) as one:
        assert one is None
    monkeypatch.setattr("loramerge.recipe.executors.available_cpus", lambda: 1)
    with workers(None, None, least=100) as one:
        assert one is None


def test_processes_start_for_large_files_alone() -> None:
    with workers(None, None) as none, workers(1, None) as one:
        assert none is None
        assert one is None
    with workers(None, None, threads=3, least=100) as several, workers(2, None, least=100) as two:
        assert isinstance(several, Processes)
        assert (several.least, several.count) == (100, 3)
        assert isinstance(two, Processes)
        assert (two.least, two.count) == (0, 2)


class Inline(Executor):
    """Pickles everything, there and back, and works in another folder, as another process may."""

    def __init__(self) -> None:
        self.submitted: list[str] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        function, args, kwargs = pickle.loads(pickle.dumps((function, args, kwargs)))
        self.submitted.append(args[0].name)
        future: Future[Any] = Future()
        here = Path.cwd()
        os.chdir(tempfile.gettempdir())
        try:
            future.set_result(pickle.loads(pickle.dumps(function(*args, **kwargs))))
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        finally:
            os.chdir(here)
        return future


def test_everything_can_be_pickled(one_by_one, recipe) -> None:
    executor = Inline()
    path = recipe(SWEEP.replace("DIR", "two"), "two.yaml")
    _same(lm.run(path, executor=executor), "two", one_by_one)
    assert len(executor.submitted) == len(set(executor.submitted)) == 14


def test_warnings_of_other_processes_are_told(recipe, work) -> None:
    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        arrays["mystery.weight"] = arrays[next(iter(arrays))]

    rewrite(Path("a.safetensors"), Path("odd.safetensors"), change)
    events: list[Event] = []
    resize = "{adapter: odd.safetensors, rank: 1, skip_unknown: true}"
    text = f"version: 1\nsteps: {{x: {{resize: {resize}, save: x.safetensors}}}}\n"
    lm.run(recipe(text), executor=Inline(), notify=events.append)
    assert any(isinstance(e, Warn) and "mystery.weight" in e.text for e in events)


ERRORS = [
    RecipeError("p", mistakes=["a", "b"], file="f"),
    AdapterError("p", file="f", module="m", expected=1, found=2, hint="h"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_survive_pickling_whole(error: LoramergeError) -> None:
    error.step = "s"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_tasks_and_adapters_survive_pickling(recipe, work) -> None:
    for task in load_recipe(recipe(SWEEP)).tasks.values():
        copy = pickle.loads(pickle.dumps(task))
        assert copy == task
    mixed = lm.mix([(lm.load("a.safetensors"), 0.5), (lm.load("b.safetensors"), 1.0)])
    copy = pickle.loads(pickle.dumps(mixed))
    lm.save(mixed, "x.safetensors")
    lm.save(copy, "y.safetensors")
    assert Path("x.safetensors").read_bytes() == Path("y.safetensors").read_bytes()
    assert "loramerge.recipe" in lm.load("y.safetensors").info.metadata


@pytest.mark.parametrize("jobs", [2, 3])
def test_no_more_tasks_than_jobs_at_a_time(jobs: int, recipe, work, monkeypatch) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    plain = engine.perform

    def counted(*args: Any, **kwargs: Any) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        try:
            return plain(*args, **kwargs)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(engine, "perform", counted)
    lm.run(recipe(SWEEP.replace("DIR", "out")), jobs=jobs, threads=1)
    assert 1 < most[0] <= jobs


def test_a_failure_in_a_pool_stops_the_rest_and_names_its_step(recipe, run) -> None:
    Path("broken.safetensors").write_bytes(Path("base.safetensors").read_bytes())
    recipe(BAD)
    result = run("run", "recipe.yaml", "--jobs", "2")
    assert result.code == 4
    assert "step y: " in result.err
    if Path("x.safetensors").exists():
        lm.load("x.safetensors").require_sound()


def test_a_context_is_what_tasks_are_given() -> None:
    assert pickle.loads(pickle.dumps(Context(threads=2))).threads == 2


# ---- Dask


@pytest.fixture
def cluster() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed = pytest.importorskip("distributed", reason="Dask is not installed")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as found:
            yield found


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster(one_by_one, recipe, run, cluster) -> None:
    from distributed import Client

    with Client(cluster) as client:
        path = recipe(SWEEP.replace("DIR", "two"), "two.yaml")
        executor = client.get_executor(pure=False)
        _same(lm.run(path, executor=executor, threads=1), "two", one_by_one)
    recipe(SWEEP.replace("DIR", "three"), "three.yaml")
    address = cluster.scheduler_address
    found = run.ok("run", "three.yaml", "--dask", address, "--threads", "1", "--json").json
    assert {t["status"] for t in found["tasks"].values()} == {"done"}
    assert _files("three") == one_by_one["files"]
    again = run.ok("run", "three.yaml", "--dask", address, "--json").json
    assert {t["status"] for t in again["tasks"].values()} <= {"up to date", "not needed"}


@pytest.mark.filterwarnings("ignore")
def test_no_cluster_at_the_address(recipe, run, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")

    def fails(address: str, **_: Any) -> None:
        raise OSError(f"Timed out trying to connect to {address}")

    monkeypatch.setattr(distributed, "Client", fails)
    recipe(SWEEP.replace("DIR", "out"))
    run.refused(
        2, "run", "recipe.yaml", "--dask", "tcp://127.0.0.1:1", says="no Dask scheduler answers"
    )


def test_without_dask_the_extra_is_named(recipe, run, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    recipe(SWEEP.replace("DIR", "out"))
    run.refused(
        2, "run", "recipe.yaml", "--dask", "tcp://x:1", says="pip install 'loramerge[dask]'"
    )
