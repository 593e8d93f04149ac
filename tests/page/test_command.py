"""The command `ui`: what it refuses, and what it prints."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from loramerge.cli import ui
from tests.builders.commands import Runner
from tests.page.serving import Process

pytest.importorskip("uvicorn")

pytestmark = pytest.mark.xdist_group("page")


def test_a_place_that_is_not_there_is_refused(run: Runner) -> None:
    run.refused(3, "ui", "nowhere", says=("nowhere", "no such file or folder"))


def test_a_port_that_is_taken_is_refused(run: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run.refused(3, "ui", "--no-browser", "--port", port, says=("cannot listen", port, "--port"))
    run.refused(2, "ui", "--host", "0.0.0.0", says=("every address", "name or address"))


def test_without_its_extra_the_command_says_what_to_install(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run.refused(2, "ui", says=("Starlette", "pip install 'loramerge[ui]'"))


@pytest.mark.long_tail
def test_folders_and_files_that_are_named_are_places(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with Process(here, tmp_path / "home", there) as page:
        places = page.get("/api/about").body["places"]
    assert places[:2] == [str(here), str(there)]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these have a browser of their own")
@pytest.mark.parametrize("code", [0, 3])
def test_a_browser_prints_nothing_and_is_missed(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    browser = tmp_path / "browser.py"
    browser.write_text(
        f"import sys; print('noise'); print('noise', file=sys.stderr); sys.exit({code})"
    )
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no other browser is there
    monkeypatch.setenv("BROWSER", f"{sys.executable} {browser} %s")
    ui._open("http://127.0.0.1:1/")
    found = capfd.readouterr()
    assert found.out == ("No browser was found; open the address.\n" if code else "")
    assert found.err == ""
