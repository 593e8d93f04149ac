from __future__ import annotations

import threading
import time

import pytest

from loramerge.algebra import workers
from loramerge.algebra.workers import ordered
from loramerge.events import Progress


@pytest.mark.parametrize("threads", [1, 2, 4, None])
def test_results_come_in_order(threads: int | None) -> None:
    def work(i: int) -> int:
        time.sleep(0.002 * ((7 * i) % 5))
        return i * i

    assert list(ordered(work, range(40), threads=threads)) == [i * i for i in range(40)]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_tasks_give_no_results(threads: int) -> None:
    assert list(ordered(lambda i: i, [], threads=threads)) == []


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_error_stops_the_rest(threads: int) -> None:
    started: list[int] = []

    def work(i: int) -> int:
        started.append(i)
        if i in (5, 7):
            raise ValueError(f"item {i}")
        time.sleep(0.001)
        return i

    got: list[int] = []
    with pytest.raises(ValueError, match="item 5"):
        got.extend(ordered(work, range(1000), threads=threads))
    assert got == list(range(5))
    assert len(started) < 5 + 5 * threads + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_closing_the_iterator_stops_the_work(threads: int) -> None:
    done: list[int] = []

    def work(i: int) -> int:
        time.sleep(0.001)
        done.append(i)
        return i

    results = ordered(work, range(1000), threads=threads)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    count = len(done)
    time.sleep(0.02)
    assert len(done) == count < 30
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_an_interruption_in_the_middle_leaves_no_thread() -> None:
    def notify(event: object) -> None:
        if isinstance(event, Progress) and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ordered(lambda i: i, range(100), threads=3, notify=notify))
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_few_results_wait() -> None:
    alive, most = set[int](), 0

    class Held:
        def __init__(self, i: int) -> None:
            nonlocal most
            self.i = i
            alive.add(i)
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.discard(self.i)

    for result in ordered(Held, range(200), threads=2):
        del result
    assert most <= 4 * 2 + 2


@pytest.mark.parametrize("threads", [1, 3])
def test_progress(threads: int) -> None:
    events: list[object] = []
    list(ordered(lambda i: i, range(5), threads=threads, task="t", notify=events.append))
    assert events == [Progress("t", done, 5) for done in range(1, 6)]


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_is_held_to_one_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    for name in workers.ONE_BLAS_THREAD:
        monkeypatch.delenv(name, raising=False)

    def counts() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2):
        before = counts()
        inside = list(ordered(lambda _: counts(), range(3), threads=threads))
        after = counts()
    assert all(found == {1} for found in inside)
    assert after == before


def test_blas_is_not_asked_where_the_environment_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import threadpoolctl

    for name, value in workers.ONE_BLAS_THREAD.items():
        monkeypatch.setenv(name, value)

    def never(*_: object) -> None:
        raise AssertionError("the libraries were searched")

    monkeypatch.setattr(threadpoolctl, "threadpool_limits", never)
    assert list(ordered(lambda i: i, range(3), threads=1)) == [0, 1, 2]


def test_cpus() -> None:
    assert workers.available_cpus() >= 1
