"""Jobs: run once, stopped, remembered, lost, and told apart between servers."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.builders.samples import read_safetensors
from tests.page.serving import Process, Served, eventually, served

pytest.importorskip("starlette")

from loramerge.cli.main import main
from loramerge.page.history import History, Job
from loramerge.page.jobs import Jobs
from loramerge.page.places import Places
from loramerge.page.processes import WorkerProcess
from loramerge.page.training import thinned, training

pytestmark = pytest.mark.xdist_group("page")
# takes a minute, unless it is stopped; each case bakes a whole model
LONG = """
version: 1
sweep: {n: [%s]}
steps:
  one: {bake: {base: tiny, adapters: ["zuzu:${n}"]}, save: "out/${n}"}
""" % ", ".join(str(n / 1000) for n in range(1, 1000))  # noqa: UP031


def _start_long(page: Served) -> str:
    number = str(page.post("/api/jobs", {"recipe": LONG}).body["id"])
    eventually(lambda: len(_outputs(page.folder)) >= 2)
    return number


def _outputs(folder: Path) -> list[Path]:
    return sorted(one for one in (folder / "out").glob("*") if one.is_dir())


def _partial(folder: Path) -> list[Path]:
    return [one for one in folder.rglob(".*") if ".partial" in one.name]


def _are_whole(folder: Path) -> bool:
    """Return whether every model that has its name is the whole of it."""
    found = [sorted(p.relative_to(one) for p in one.rglob("*")) for one in _outputs(folder)]
    for one in _outputs(folder):
        for path in one.rglob("*.safetensors"):
            read_safetensors(path)
    return all(one == found[0] for one in found)


def test_a_job_writes_what_the_command_line_writes(
    page: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"adapters": ["zuzu:0.7", "polka:0.3"], "rank": 4, "output": "job.safetensors"}
    job = page.until(page.start("mix", **values))
    assert (job["state"], job["outputs"]) == ("done", ["job.safetensors"])
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(job["command"])[1:]) == 0
    written = (tmp_path / "job.safetensors").read_bytes()
    assert written == (page.folder / "job.safetensors").read_bytes()


def test_the_same_action_of_two_tabs_runs_once(page: Served) -> None:
    values = {"adapters": ["zuzu", "polka"], "output": "twice.safetensors"}
    spelled = [values, {**values, "method": "linear"}, {**values, "force": False}]  # defaults
    found: list[dict[str, Any]] = []

    def tab(number: int) -> None:
        asked = {"verb": "mix", "values": spelled[number % 3]}
        found.append(page.post("/api/jobs", asked).body)

    tabs = [threading.Thread(target=tab, args=(n,)) for n in range(6)]
    for one in tabs:
        one.start()
    for one in tabs:
        one.join()
    assert len({one["id"] for one in found}) == 1
    assert [one["already"] for one in found].count(False) == 1
    assert page.until(found[0]["id"])["state"] == "done"


def test_pages_are_told_of_a_job_from_begin_to_end(page: Served) -> None:
    stream = http.client.HTTPConnection(page.address, timeout=60)
    stream.request("GET", f"/api/events?token={page.token}")
    found = stream.getresponse()
    assert found.headers["content-type"].startswith("text/event-stream")
    number = page.start("inspect", files=["zuzu", "polka"])
    told: list[dict[str, Any]] = []
    while not told or told[-1]["state"] in ("waiting", "running"):
        line = found.readline().decode()
        if line.startswith("data: ") and json.loads(line[6:]).get("id") == number:
            told.append(json.loads(line[6:]))
    stream.close()
    assert (told[0]["state"], told[-1]["state"]) == ("waiting", "done")
    assert told[-1] == page.job(number)
    page.ask("DELETE", f"/api/jobs/{number}")


def test_a_key_that_is_never_the_same_runs_it_twice(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above."""
    add = Jobs.add
    monkeypatch.setattr(
        Jobs, "add", lambda *given: add(*given[:4], os.urandom(4).hex(), *given[5:])
    )
    values = {"adapters": ["zuzu", "polka"], "output": "fault.safetensors"}
    both = [page.start("mix", **values) for _ in range(2)]
    assert sorted(page.until(one)["state"] for one in both) == ["done", "failed"]


def test_a_job_is_stopped_while_it_runs_and_while_it_waits(page: Served) -> None:
    running = _start_long(page)
    waiting = page.start("mix", adapters=["zuzu"], output="waited.safetensors")
    assert page.job(waiting)["state"] == "waiting"
    assert page.ask("DELETE", f"/api/jobs/{waiting}").status == 400
    assert page.post(f"/api/jobs/{waiting}/stop").body["state"] == "cancelled"
    assert page.post(f"/api/jobs/{running}/stop").status == 200
    job = page.until(running)
    assert job["state"] == "cancelled" and job["error"]["exit_code"] == 130
    assert not _partial(page.folder) and _are_whole(page.folder)
    assert not (page.folder / "waited.safetensors").exists()
    assert "ended already" in page.post(f"/api/jobs/{running}/stop").error
    for number in (running, waiting):
        assert page.ask("DELETE", f"/api/jobs/{number}").status == 200
    assert page.post(f"/api/jobs/{running}/stop").status == 404


def test_a_worker_that_dies_is_an_error_and_the_next_request_works(page: Served) -> None:
    running = page.post("/api/jobs", {"recipe": LONG, "force": True}).body["id"]
    jobs = page.app.state.page.jobs
    eventually(lambda: jobs._worker and jobs._worker._process)
    jobs._worker._process.kill()  # as the system does where memory is short
    job = page.until(running)
    assert job["state"] == "failed" and "memory" in job["error"]["hint"]
    live = page.app.state.page.live.process_of("plan")
    asked = {"kind": "plan", "verb": "mix", "values": {"adapters": ["zuzu", "polka"]}}
    assert page.post("/api/live", asked).body["modules"] == 84
    live._process.kill()
    live._process.wait()
    assert page.post("/api/live", asked).body["modules"] == 84
    assert page.until(page.start("inspect", files=["zuzu"]))["state"] == "done"


def test_nothing_is_imported_from_the_current_folder(page: Served) -> None:
    for name in ("numpy", "json", "sitecustomize", "loramerge"):
        text = f"open('{page.folder}/ran-{name}', 'w').close()\nraise SystemExit\n"
        (page.folder / f"{name}.py").write_text(text)
    assert page.until(page.start("inspect", files=["polka"]))["state"] == "done"
    assert list(page.folder.glob("ran-*")) == []
    path = f"{page.folder.name}.module.Class"
    values = {"base": "tiny", "images": ".", "optimizer": path}
    job = page.until(page.start("train", **values))
    assert "importing an optimizer outside the known packages" in job["error"]["text"]
    for name in ("numpy", "json", "sitecustomize", "loramerge"):
        (page.folder / f"{name}.py").unlink()


def test_a_worker_that_outlives_the_server_is_waited_for(tmp_path: Path) -> None:
    """Else Python says that it still runs, as a warning, wherever it happens to be."""
    loop = asyncio.new_event_loop()
    loop.close()
    process = subprocess.Popen(
        [sys.executable, "-c", "print('{}', flush=True); input()"], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.close()
    WorkerProcess(Places(tmp_path))._listen(process, loop)
    assert process.returncode == 1


# --- what is remembered --------------------------------------------------------------------------


def test_jobs_are_remembered_by_the_next_server(tmp_path: Path) -> None:
    with served(tmp_path, store=tmp_path / "store") as first:
        done = first.until(first.start("mix", adapters=["zuzu"], output="a.safetensors"))
    with served(tmp_path, store=tmp_path / "store") as second:
        assert second.get("/api/jobs").body == [done]
        again = second.post(f"/api/jobs/{done['id']}/again").body
        assert "exists" in second.until(again["id"])["error"]["text"]
    assert [p.suffix for p in (tmp_path / "store").iterdir() if "server" in p.name] == []


def test_a_killed_server_leaves_nothing_half_written_and_its_job_is_lost(tmp_path: Path) -> None:
    place, home = tmp_path / "here", tmp_path / "home"
    place.mkdir()
    with Process(place, home) as first:
        number = _start_long(first)
        workers = _children(first.process.pid)
        first.kill()
    eventually(lambda: not any(map(_lives, workers)))
    written = _outputs(place)
    assert not _partial(place) and _are_whole(place)
    with Process(place, home) as second:
        job = second.job(number)
        assert job["state"] == "lost" and "server ended" in job["error"]["text"]
    assert _outputs(place) == written  # it is not started by itself


def _children(process: int) -> list[int]:
    folder = Path(f"/proc/{process}/task")
    if not folder.is_dir():
        pytest.skip("this system does not list the children of a process")
    return [int(n) for one in folder.iterdir() for n in (one / "children").read_text().split()]


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_server_ends_cleanly_with_streams_open_and_a_job_running(
    name: str, tmp_path: Path
) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("this system has no such signal")
    place, home = tmp_path / "here", tmp_path / "home"
    place.mkdir()
    with Process(place, home) as page:
        stream = http.client.HTTPConnection(page.address)
        stream.request("GET", f"/api/events?token={page.token}")
        assert stream.getresponse().status == 200
        running = _start_long(page)
        waiting = page.start("inspect", files=["zuzu"])
        workers = _children(page.process.pid) if Path("/proc").is_dir() else []
        page.process.send_signal(number)
        assert page.process.wait(60) == 0
        stream.close()
    eventually(lambda: not any(map(_lives, workers)))
    assert not _partial(place) and _are_whole(place)
    with served(place, store=next((home / "page").iterdir())) as again:
        ended = [again.job(one) for one in (running, waiting)]
        assert [one["state"] for one in ended] == ["lost", "lost"]  # one word for both
        assert ended[0]["error"] == ended[1]["error"]


@pytest.mark.long_tail
def test_two_servers_of_one_folder_know_whose_job_runs(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with served(tmp_path, store=store) as first, served(tmp_path, store=store) as second:
        running = _start_long(first)
        assert second.job(running)["state"] == "running"
        assert second.post("/api/jobs", {"recipe": LONG}).body == {"id": running, "already": True}
        assert "another" in second.post(f"/api/jobs/{running}/stop").error
        assert second.ask("DELETE", f"/api/jobs/{running}").status == 400
        done = second.until(second.start("inspect", files=["zuzu"]))
        assert first.job(done["id"]) == done
        assert first.job(running)["state"] == "running"
        first.post(f"/api/jobs/{running}/stop")
        assert second.until(running)["state"] == "cancelled"


def _job(number: str, **more: Any) -> Job:
    return Job(number, "a job", {"do": "run", "verb": "mix", "values": {}}, created=1.0, **more)


def test_a_job_is_lost_only_if_its_server_has_ended(tmp_path: Path) -> None:
    first, second = History(tmp_path), History(tmp_path)
    first.write(_job("a", server=first.server, state="running"))
    second.refresh()
    assert second.jobs["a"].state == "running"
    first.close()
    second.refresh()
    assert second.jobs["a"].state == "lost"


def test_a_history_without_locks_loses_jobs_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above."""
    monkeypatch.setattr(History, "_lives", lambda *_: False)
    first, second = History(tmp_path), History(tmp_path)
    first.write(_job("a", server=first.server, state="running"))
    second.refresh()
    assert second.jobs["a"].state == "lost"
    first.close()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"id": "a"}', '{"id": "b", "title": "", "request": {}}',
     '{"id": "a", "title": 1, "request": {}}', '{"id": "a", "title": "", "request": []}',
     '{"id": "a", "title": "", "request": {}, "state": []}', "\ufeff", "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_is_no_job(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, "utf-8")
    found = History(tmp_path)
    found.refresh()
    assert found.jobs == {}


def test_only_the_newest_jobs_are_remembered(tmp_path: Path) -> None:
    for number in range(520):
        (tmp_path / f"{number}.json").write_text("{}")
    History(tmp_path).refresh()
    assert len(list(tmp_path.iterdir())) == 500


# --- training --------------------------------------------------------------------------------------


def _log(folder: Path, steps: int) -> None:
    folder.mkdir()
    lines = [{"chosen": {}}]
    lines += [{"step": n, "loss": 1 / (n + 1), "rate": 1e-4, "gradient": 1.0} for n in range(steps)]
    lines += [{"step": 9, "validation": 0.5}, {"step": 5, "loss": None}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 1'
    (folder / "log.jsonl").write_text(text)


def test_the_losses_of_a_run_are_thinned(page: Served) -> None:
    folder = page.folder / "a-run"
    _log(folder, 2000)
    shared = page.app.state.page
    found = training(_job("a", folder=str(folder)), shared.places)
    assert found.steps == 2000 and len(found.losses) == 500
    assert found.losses[-1][0] == 2000 and found.validation == [(10, 0.5)]
    assert found.samples is None


def test_points_are_means_of_equal_parts() -> None:
    points = [(n, float(n)) for n in range(10)]
    assert thinned(points, 10) == points
    assert thinned(points, 5) == [(1, 0.5), (3, 2.5), (5, 4.5), (7, 6.5), (9, 8.5)]


def test_a_sheet_of_samples_is_made_smaller(page: Served) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = page.folder / "b-run"
    _log(folder, 3)
    image.new("RGB", (4000, 100)).save(folder / "samples.png")
    shared = page.app.state.page
    job = _job("0123", folder=str(folder), server=shared.jobs._history.server, state="done")
    shared.jobs._history.write(job)
    found = page.get("/api/jobs/0123/training").body
    picture = page.get(f"/picture/{found['samples']}.png?token={page.token}")
    assert picture.headers["content-type"] == "image/png"
    assert int.from_bytes(picture.body[16:20], "big") == 1600  # pixels
    (folder / "samples.png").write_bytes(b"<html>")
    assert page.get("/api/jobs/0123/training").body["samples"] is None


def test_a_run_is_shown_from_its_own_folder_alone(page: Served) -> None:
    shared = page.app.state.page
    job = _job("0456", folder="/etc", server=shared.jobs._history.server, state="done")
    shared.jobs._history.write(job)
    assert "may not use" in page.get("/api/jobs/0456/training").error
    assert page.get("/api/jobs/none/training").status == 404


@pytest.mark.slow
def test_a_run_is_stopped_kept_and_goes_on(page: Served) -> None:
    pytest.importorskip("diffusers")
    image = pytest.importorskip("PIL.Image")
    (page.folder / "subject").mkdir()
    for number in range(4):
        image.new("RGB", (64, 64), (60 * number, 90, 120)).save(
            page.folder / f"subject/{number}.png"
        )
    values = {
        "base": "tiny", "images": "subject", "steps": 40, "resolution": 64, "trigger": "it",
        "sample_every": 40, "sample_steps": 2, "output": "run.safetensors",
    }  # fmt: skip
    number = page.start("train", **values)
    assert page.job(number)["folder"] == str(page.folder / "run-run")
    path = f"/api/jobs/{number}/training"
    eventually(lambda: page.get(path).body["steps"] >= 5 or page.job(number)["error"])
    assert page.get(path).body["samples"] is not None
    page.post(f"/api/jobs/{number}/stop")
    job = page.until(number)
    assert job["state"] == "stopped" and job["outputs"] == ["run.safetensors"], job["error"]
    again = page.post(f"/api/jobs/{number}/again").body["id"]
    assert page.job(again)["values"] == {**values, "resume": True}
    last = page.until(again)
    assert last["state"] == "done" and last["result"]["resumed"] >= 5, last["error"]
