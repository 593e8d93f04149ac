"""The page tells before a run where the result goes, and whether a file is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import loramerge as lm
from loramerge.page import processes
from tests.page.serving import Served


@pytest.fixture(autouse=True)
def clean(page: Served) -> Iterator[None]:
    """Leave nothing in the current folder."""
    yield
    for one in page.folder.iterdir():
        one.unlink()


def told(page: Served, verb: str, **values: Any) -> dict[str, Any]:
    """Return what the page is told of an action."""
    found = page.post("/api/action", {"verb": verb, "values": values})
    assert found.status == 200, found.body
    return dict(found.body)


@pytest.mark.parametrize(
    ("verb", "values", "output"),
    [
        ("mix", {"adapters": ["zuzu:0.5", "polka"]}, "zuzu@0.5+polka.safetensors"),
        ("mix", {"adapters": ["zuzu"], "output": "given.safetensors"}, "given.safetensors"),
        ("resize", {"adapter": "zuzu", "rank": 2}, "zuzu-r2.safetensors"),
        ("bake", {"base": "tiny", "adapters": ["zuzu"]}, "tiny+zuzu"),
        ("preview", {"base": ["tiny"], "adapters": ["zuzu"]}, "preview-zuzu.png"),
        ("card", {"file": "zuzu"}, "README.md"),
    ],
)
def test_the_output_is_told_before(
    page: Served, verb: str, values: dict[str, Any], output: str
) -> None:
    before = told(page, verb, **values)
    assert (before["output"], before["exists"]) == (output, False)
    assert f"save: {output}\n" in before["yaml"]
    assert list(page.folder.iterdir()) == []
    (page.folder / output).write_bytes(b"there")
    after = told(page, verb, **values)
    assert after == {**before, "exists": True}
    assert "-o" not in after["command"].split() or "output" in values


def test_what_cannot_be_known_is_not_told(page: Served) -> None:
    report = told(page, "inspect", files=["zuzu"])
    missing = told(page, "mix", adapters=["nothing-there"])
    (page.folder / "bad.safetensors").write_bytes(b"bad")
    bad = told(page, "resize", adapter="bad.safetensors", rank=2)
    for one in (report, missing, bad):
        assert (one["output"], one["exists"]) == (None, False) and "save" not in one["yaml"]
    assert page.app.state.page.live.process_of("output")._process.poll() is None


def test_the_recipe_that_is_shown_writes_what_the_action_writes(page: Served) -> None:
    found = told(page, "resize", adapter="zuzu", rank=2)
    job = page.until(page.start("resize", adapter="zuzu", rank=2))
    assert job["outputs"] == [found["output"]]
    written = page.folder / found["output"]
    once = written.read_bytes()
    written.unlink()
    (page.folder / "r.yaml").write_text(found["yaml"], "utf-8")
    lm.run(page.folder / "r.yaml")
    assert written.read_bytes() == once


def test_a_worker_that_ends_costs_only_the_name(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*given: Any) -> Any:
        raise processes.WorkerEnded("the process ended")

    monkeypatch.setattr(page.app.state.page.live, "ask", ended)
    found = told(page, "mix", adapters=["zuzu"])
    assert found["output"] is None and found["command"] == "loramerge mix zuzu"
