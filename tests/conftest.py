"""What every test gets: an empty home of its own, commands to run, and where real files lie."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.builders.commands import run, work, world
from tests.tail import SEED, SHARE, drawn, seed_of_today

__all__ = ["run", "work", "world"]

_HERE = Path(__file__).resolve().parent
_SHARED = _HERE.parents[1] / "shared" / "data"


def pytest_configure() -> None:
    """Fix the seed before there are workers, which inherit it; set no limits of time; let signals work.

    What a shell starts in the background ignores Ctrl-C, and what `nohup` starts a lost terminal; so
    would the processes of the tests.
    """
    os.environ[SEED] = seed_of_today()
    # a busy machine draws and tests slowly; what takes long is for benchmarks/ to say
    settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")
    for name, action in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say how a failure can be repeated; there is no header with `-q`."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    drawing = os.environ.get(SHARE) and not hasattr(session.config, "workerinput")
    if reporter is not None and drawing:
        reporter.write_line(f"drawn of the long tail by {SEED}={os.environ[SEED]}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Let the second worker import the tests from the last one on.

    In a fresh clone pytest rewrites the assertions of each file, half a minute in all; so each of two
    workers rewrites half of them, and finds the rest kept. An import that fails is tried again, and
    told, when the file is collected.
    """
    if getattr(session.config, "workerinput", {}).get("workerid") == "gw1":
        for path in sorted(_HERE.rglob("test_*.py"), reverse=True):
            with suppress(Exception, pytest.skip.Exception):
                import_module(".".join(path.relative_to(_HERE.parent).with_suffix("").parts))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is not drawn of the long tail is slow; where slow tests are asked for, all of it is."""
    some = "not slow" in config.getoption("markexpr")
    seen = Counter[str]()
    for item in items:
        mark = item.get_closest_marker("long_tail")
        if mark is None:
            continue
        function = item.nodeid.partition("[")[0]
        seen[function] += 1
        if some and seen[function] <= mark.kwargs.get("keep", 0):
            continue
        if not (some and drawn(item.nodeid, os.environ[SEED])):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Write no bytecode from here on, when the tests' modules are imported and theirs is kept.

    A file that a test writes twice within a second must not be taken from the bytecode of the first.
    Nor is what was imported by now searched for garbage again and again, a tenth of all the time.
    """
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _home_of_what_is_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nor do fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAMERGE_HOME", str(tmp_path_factory.mktemp("loramerge-home")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Use one thread where none are asked for: other workers have the other processors.

    What is tested of threads gives their number, and commands in processes of their own use all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loramerge.algebra.workers.available_cpus", lambda: 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_disks() -> Iterator[None]:
    """Leave fsync out: the files of a test need not survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


_homes = count()


@pytest.fixture(autouse=True)
def _own_home(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No test sees, or leaves anything in, the user's configuration.

    The home is in the test's folder; for one that asks for none, no folder is made.
    """
    if "tmp_path" in request.fixturenames:
        place = request.getfixturevalue("tmp_path")
    else:
        place = tmp_path_factory.getbasetemp() / "homes" / str(next(_homes))
    monkeypatch.setenv("LORAMERGE_HOME", str(place / "loramerge-home"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that looks up an address or opens a connection."""
    tried: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments[-2:])
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert tried == []


@pytest.fixture
def shared_data() -> Path:
    """The folder of real adapters and key listings, or a skip where there is none."""
    if not _SHARED.is_dir():
        pytest.skip(f"no real files: {_SHARED.name} is absent beside the repository")
    return _SHARED
