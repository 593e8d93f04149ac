"""Live computing: the newest request wins, and figures are those of the verbs."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import loramerge as lm
from loramerge.adapter.save import save
from loramerge.errors import UsageError
from loramerge.events import ignore
from loramerge.page import living
from loramerge.page.doing import curve, plan, report
from loramerge.page.living import Live, Replaced
from loramerge.page.places import Places
from loramerge.page.processes import WorkerError
from loramerge.steps import engine, kept, loss
from tests.builders.deltas import adapter, low_rank
from tests.page.serving import Served, eventually, served

SHAPES = {"unet.down_blocks.0.x": (24, 16), "unet.mid_block.x": (20, 32)}


def made(folder: Path, name: str, seed: int = 1, rank: int = 6) -> str:
    deltas = {n: low_rank(shape, rank, seed + i) for i, (n, shape) in enumerate(SHAPES.items())}
    save(adapter(deltas), folder / name, force=True)
    return str(folder / name)


# ---- one waits for another


class Pretended:
    """A worker that answers when the test says so, and stops when it is told to, as the real one."""

    every: ClassVar[list[Pretended]] = []

    def __init__(self, places: Any, *, lasting: bool = False) -> None:
        self.asked: list[tuple[dict[str, Any], asyncio.Future[Any], Any]] = []
        Pretended.every.append(self)

    def begin(self, request: Any, listener: Any) -> tuple[int, asyncio.Future[Any]]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append((request, answer, listener))
        return len(self.asked), answer

    def stop(self, number: int, *, gently: bool = False) -> None:
        assert gently  # else a model may stay with half of an adapter in it
        answer = self.asked[number - 1][1]
        if not answer.done():
            answer.set_exception(WorkerError({"text": "stopped", "exit_code": 130}))


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Live, list[Any]]]:
    monkeypatch.setattr(living, "WorkerProcess", Pretended)
    Pretended.every = []
    told: list[Any] = []
    yield Live(Places(Path()), lambda event, content: told.append((event, content))), told


async def rest() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def asked() -> list[dict[str, Any]]:
    return [request for worker in Pretended.every for request, *_ in worker.asked]


def answer(number: int, found: Any) -> None:
    [one for worker in Pretended.every for one in worker.asked][number][1].set_result(found)


def test_the_newest_request_wins(live: tuple[Live, list[Any]]) -> None:
    """The one that runs is stopped, those that wait never start, and the newest is answered."""

    async def work() -> None:
        ask = [asyncio.create_task(live[0].ask({"do": "preview", "n": n}, "mix")) for n in range(4)]
        await rest()
        assert [one["n"] for one in asked()] == [0, 3]
        answer(1, "new")
        found = await asyncio.gather(*ask, return_exceptions=True)
        assert [type(one) for one in found[:3]] == [Replaced] * 3 and found[3] == "new"

    asyncio.run(work())


def test_other_keys_are_left_alone(live: tuple[Live, list[Any]]) -> None:
    async def work() -> None:
        keys = ("a", "b", "", "")
        ask = [
            asyncio.create_task(live[0].ask({"do": "curve", "n": n}, k)) for n, k in enumerate(keys)
        ]
        for n in range(4):
            await rest()
            assert [one["n"] for one in asked()] == list(range(n + 1))  # one at a time
            answer(n, n)
        assert await asyncio.gather(*ask) == [0, 1, 2, 3]

    asyncio.run(work())


def test_no_plan_waits_for_a_picture_or_a_report(live: tuple[Live, list[Any]]) -> None:
    async def work() -> None:
        requests = (
            {"do": "preview"},
            {"do": "report"},
            {"do": "plan"},
            {"do": "plan", "verb": "train"},
        )
        ask = [asyncio.create_task(live[0].ask(one)) for one in requests]
        await rest()
        assert len(asked()) == 3  # the plan of `train` waits: it needs what draws
        for task in ask:
            task.cancel()
        await asyncio.gather(*ask, return_exceptions=True)

    asyncio.run(work())


def test_progress_is_told_with_the_key(live: tuple[Live, list[Any]]) -> None:
    async def work() -> None:
        task = asyncio.create_task(live[0].ask({"do": "preview"}, "mix"))
        await rest()
        (worker,) = [one for one in Pretended.every if one.asked]
        worker.asked[0][2]({"kind": "progress", "task": "preview", "done": 1, "total": 8})
        worker.asked[0][2]({"kind": "note", "text": "x"})
        answer(0, 1)
        await task
        assert live[1] == [
            ("live", {"kind": "progress", "task": "preview", "done": 1, "total": 8, "key": "mix"})
        ]

    asyncio.run(work())


# ---- figures


def test_a_plan_says_what_the_verb_would_write(tmp_path: Path) -> None:
    a, b = made(tmp_path, "a.safetensors"), made(tmp_path, "b.safetensors", 20, 3)
    values = {"adapters": [f"{a}:0.7", f"{b}:-0.2"]}
    asked = {"verb": "mix", "values": values}
    fast, whole = plan.do(asked, ignore), plan.do({**asked, "relations": True}, ignore)
    assert fast["ranks"] == {9: 2} and fast["relations"] is None and fast["refused"] is None
    explained = lm.mix([(lm.load(a), 0.7), (lm.load(b), -0.2)])
    norm = sum((d.dense() ** 2).sum() for d in explained.deltas.values()) ** 0.5
    found = whole["relations"]
    assert found["total"]["result"] == pytest.approx(norm, rel=1e-6)
    assert found["names"] == ["a", "b"] and found["pairs"][0]["names"] == ["a", "b"]
    cut = plan.do({**asked, "values": {**values, "rank": 2}, "relations": True}, ignore)
    small = lm.resize(explained, rank=2)
    error = lm.diff(explained, small)
    assert cut["relations"]["total"] == found["total"]  # before ranks are lowered
    assert cut["losses"]["relative_error"] > 0.1 and error is not None


def test_a_plan_says_what_is_refused_and_goes_on(tmp_path: Path) -> None:
    found = plan.do({"verb": "resize", "values": {"adapter": "zuzu"}}, ignore)
    assert "needs a rank option" in found["refused"]
    found = plan.do({"verb": "mix", "values": {"adapters": ["no such file"]}}, ignore)
    assert "no such file" in found["refused"]


def test_another_method_is_mixed_where_that_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [made(tmp_path, f"{n}.safetensors", 30 * n) for n in (1, 2)]
    asked = {"verb": "mix", "values": {"adapters": files, "method": "ties"}, "relations": True}
    quick = plan.do(asked, ignore)["relations"]["total"]
    monkeypatch.setattr(plan, "_QUICK", 0.0)
    slow = plan.do(asked, ignore)["relations"]["total"]
    assert 0 < quick["ratio"] < 1
    assert slow == {**quick, "result": None, "ratio": None}  # and not that of the sum


def test_the_forecast_of_a_bake_is_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"base": "tiny", "adapters": ["zuzu:0.5"], "dtype": "bfloat16", "allow_loss": True}
    found = plan.do({"verb": "bake", "values": values, "relations": True}, ignore)["survival"]
    result = lm.bake("tiny", ["zuzu:0.5"], tmp_path / "out", dtype="bfloat16", allow_loss=True)
    assert found["kept"] == pytest.approx(result.survived, rel=1e-12)
    assert found["estimated"] is None
    monkeypatch.setattr(loss, "WHOLE", 0)
    monkeypatch.setattr(loss, "_FORECAST", 20)
    some = plan.do({"verb": "bake", "values": values, "relations": True}, ignore)["survival"]
    assert some["estimated"] == "from 20 of 84 tensors"
    assert some["kept"] == pytest.approx(found["kept"], abs=0.05)


def test_a_changed_file_is_opened_again(tmp_path: Path) -> None:
    found = kept.Kept(most=2)
    opened: list[Path] = []

    def read(path: Path) -> Any:
        opened.append(path)
        return lm.load(path)

    path = Path(made(tmp_path, "a.safetensors"))
    first = found.adapter(path, read)
    assert found.adapter(path, read) is first and len(opened) == 1
    made(tmp_path, "a.safetensors", 7, rank=3)
    assert found.adapter(path, read).ranks() == {3: 2}
    for name in "bcd":
        found.adapter(Path(made(tmp_path, f"{name}.safetensors")), read)
    assert len(found._adapters) == 2


def test_a_curve_needs_no_rank_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, "a.safetensors")
    counted: list[int] = []
    make = curve.Curve
    monkeypatch.setattr(curve, "Curve", lambda *given: (counted.append(1), make(*given))[1])
    found = curve.do({"values": {"adapter": path}}, ignore)
    assert found["chosen"] is None and found["worst"] == []
    assert [one["rank"] for one in found["uniform"]] == [1, 2, 3, 4, 6]
    assert int(found["best"][0]["max_size"]) >= found["best"][0]["size"]
    at = curve.do({"values": {"adapter": path, "rank": 2}}, ignore)
    small = engine.perform(*resized(path, tmp_path, rank=2)).json()
    assert at["chosen"]["relative_error"] == pytest.approx(small["relative_error"], rel=1e-5)
    assert at["worst"][0]["module"] == small["worst"]["module"]
    assert at["worst"][0]["relative_error"] == pytest.approx(
        small["worst"]["relative_error"], rel=1e-4
    )
    errors = [one["relative_error"] for one in at["worst"]]
    assert errors == sorted(errors, reverse=True)
    size = curve.do({"values": {"adapter": path, "max_size": "60%"}}, ignore)
    small = engine.perform(*resized(path, tmp_path, max_size="60%")).json()
    assert size["chosen"]["relative_error"] == pytest.approx(small["relative_error"], rel=1e-5)
    assert size["chosen"]["size"] <= 0.6 * Path(path).stat().st_size
    assert len(counted) == 1
    made(tmp_path, "a.safetensors", 9)
    curve.do({"values": {"adapter": path, "rank": 2}}, ignore)
    assert len(counted) == 2


def resized(path: str, folder: Path, **rule: Any) -> Any:
    from loramerge.steps.parameters import Context
    from loramerge.verbs.resize import VERB

    values = {"adapter": path, "output": str(folder / "small.safetensors"), "force": True, **rule}
    return VERB, engine.parameters_from(VERB.parameters, values), Context()


def test_reports_have_a_page_and_write_nothing(tmp_path: Path) -> None:
    path = made(tmp_path, "a.safetensors")
    found = report.do({"verb": "inspect", "values": {"files": [path], "deep": True}}, ignore)
    assert found["result"][0]["checked"] == "weights"
    assert found["report"]["kind"].startswith("text/html")
    assert b"<html" in base64.b64decode(found["report"]["base64"])
    made(tmp_path, "b.safetensors", 9)
    several = report.do({"verb": "compare", "values": {"files": [str(tmp_path)]}}, ignore)
    assert several["result"]
    with pytest.raises(UsageError, match="writes files"):
        report.do({"verb": "mix", "values": {"adapters": [path]}}, ignore)


# ---- with real processes


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("live")
    (place / "here").mkdir()
    made(place / "here", "a.safetensors")
    made(place / "here", "b.safetensors", 9)
    with served(place / "here", store=place / "jobs") as found:
        yield found


def mixed(weight: float) -> dict[str, Any]:
    return {"kind": "plan", "verb": "mix", "values": {"adapters": [f"a:{weight}", "b.safetensors"]}}


def test_a_process_that_ends_is_said_and_the_next_request_works(page: Served) -> None:
    assert page.post("/api/live", mixed(0.5)).body["modules"] == 2
    process = page.app.state.page.live.process_of("plan")._process
    process.kill()
    process.wait()
    assert page.post("/api/live", mixed(0.6)).body["modules"] == 2


def test_values_that_do_not_fit_and_other_kinds_are_refused(page: Served) -> None:
    assert page.post("/api/live", {"kind": "run", "verb": "mix", "values": {}}).status == 400
    assert page.post("/api/live", {**mixed(1), "values": {"nothing": 1}}).status == 400
    found = page.post("/api/live", {"kind": "curve", "values": {"adapter": "a.safetensors"}}).body
    assert found["modules"] == 2
    found = page.post(
        "/api/live", {"kind": "report", "verb": "inspect", "values": {"files": ["a.safetensors"]}}
    )
    shown = page.get(f"/report/{found.body['report']}")
    assert shown.status == 200 and "script" not in shown.headers["content-security-policy"]


def test_a_picture_gives_way_to_a_newer_one(page: Served) -> None:
    """It stops at its next step, and what draws next has the weights of the base again."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")

    def drawn(steps: int, weight: float = 1.0, **more: Any) -> Any:
        values = {"base": ["tiny"], "no_base": True, "together": True, "steps": steps}
        values |= {"adapters": [f"zuzu:{weight}", "polka"], "size": 32}
        return page.post(
            "/api/live", {"kind": "preview", "values": values, "latest": "mix", **more}
        )

    first = drawn(2)
    assert first.status == 200, first
    picture = page.get(f"/picture/{first.body['columns'][0]['pictures'][0]}.png")
    assert picture.headers["content-type"] == "image/png"
    old: list[Any] = []
    thread = threading.Thread(target=lambda: old.append(drawn(1000, 0.3)))
    thread.start()
    live = page.app.state.page.live
    eventually(lambda: live._seats["pictures"].key == "mix")
    again = drawn(2)
    thread.join()
    assert old[0].status == 200 and old[0].body == {"replaced": True}
    assert again.body["columns"] == first.body["columns"]  # the same bytes have the same number
    of = {"verb": "mix", "values": {"adapters": ["zuzu", "polka"], "rank": 15}}
    values = {"base": ["tiny"], "no_base": True, "steps": 2, "size": 32}
    whole = page.post("/api/live", {"kind": "preview", "values": values, "of": of})
    assert whole.status == 200 and len(whole.body["columns"]) == 1, whole
    grid = page.post(
        "/api/live",
        {"kind": "preview", "values": {**values, "adapters": ["zuzu"], "weight": ["0,1"]}},
    )
    labels = [one["label"] for one in grid.body["columns"]]
    assert labels == ["zuzu at 0", "zuzu"] and len(grid.body["rows"]) == 1
