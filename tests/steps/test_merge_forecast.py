"""The forecast of a merge is what it reports: exactly from all tensors, about that from some."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loramerge as lm
from loramerge.events import ignore
from loramerge.page.doing import plan as page_plan
from loramerge.steps import engine, merge_forecast
from loramerge.steps.parameters import Context
from loramerge.stream import merge_survey
from loramerge.stream.merge_survey import spread
from loramerge.verbs import known_verbs
from tests.builders.world import make_world, tune, write_base
from tests.tail import first

VERB = known_verbs()["merge"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, one that differs from it everywhere, one that does in few modules."""
    folder = tmp_path_factory.mktemp("models")
    make_world(folder)
    base, other = folder / "base.safetensors", folder / "other.safetensors"
    write_base(other, seed=5)
    lm.merge([f"{base}:0.99", f"{other}:0.01"], folder / "near.safetensors")
    tune(base, folder / "tuned.safetensors")
    for storage in ("float8-scaled", "nvfp4"):
        lm.bake(base, [], folder / f"{storage}.safetensors", storage=[storage], allow_loss=True)
    return folder


MERGES: dict[str, dict[str, Any]] = {
    "quantised": {"models": ["float8-scaled.safetensors", "near.safetensors:0.3"]},
    "plain": {"models": ["base.safetensors", "near.safetensors:0.3"]},
    "another type": {"models": ["base.safetensors", "near.safetensors:0.3"], "dtype": "bfloat16"},
    "of few modules": {"models": ["base.safetensors", "tuned.safetensors:0.3"]},
    "with a base": {
        "models": ["base.safetensors", "near.safetensors:0.5", "a.safetensors:0.5"],
        "base": "other.safetensors",
        "method": "ties",
    },
    "packed": {"models": ["nvfp4.safetensors", "near.safetensors:0.3"], "method": "slerp"},
}


@pytest.fixture
def merged(models: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """A function of a merge and a number of tensors: the forecast, and the result of the merge."""
    monkeypatch.chdir(models)

    def of(name: str, most: int) -> tuple[Any, Any]:
        monkeypatch.setattr(merge_forecast, "_MOST", most)
        monkeypatch.setattr(merge_forecast, "WHOLE", 0)  # of large models only some are read
        values = {**MERGES[name], "output": "merged.safetensors", "force": True}
        parameters = engine.parameters_from(VERB.parameters, values)
        assert VERB.forecast is not None
        before = set(models.iterdir())
        found = VERB.forecast(parameters, Context())["survival"]
        assert set(models.iterdir()) == before
        return found, VERB.run(parameters, Context())

    return of


@pytest.mark.parametrize("name", first(1, MERGES))
def test_all_tensors_give_what_the_merge_reports(name: str, merged: Any) -> None:
    found, result = merged(name, 10**6)
    assert found["estimated"] is None
    assert found["kept"] == pytest.approx(result.survived, rel=1e-9)
    assert found["relative_error"] == pytest.approx(result.relative_error, rel=1e-9)
    assert found["change"] == pytest.approx(result.moved, rel=1e-9)
    assert found["worst"] == result.worst


@pytest.mark.parametrize("name", first(1, MERGES))
def test_some_tensors_give_about_that(name: str, merged: Any) -> None:
    found, result = merged(name, 32)
    if name != "of few modules":
        assert re.fullmatch(r"from \d\d of \d{3} tensors", found["estimated"])
    assert found["kept"] == pytest.approx(result.survived, rel=0.15)
    assert found["relative_error"] == pytest.approx(result.relative_error, rel=0.25, abs=0.02)
    if "storage" in name or name == "quantised":
        kept = {one["storage"]: one["kept"] for one in found["storages"]}
        assert kept["float8_e4m3"] < 0.5 < 0.9 < kept["float16"]


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "drawn evenly, whatever its size": lambda patch: patch.setattr(
        merge_survey, "spread", lambda sizes, count: spread([1] * len(sizes), count)
    ),
    "in the type of the first": lambda patch: patch.setattr(
        merge_survey, "layouts_of",
        lambda plan, whole, own=merge_survey.layouts_of: own(replace(plan, dtype=None), whole),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_wrong_estimate_is_found(
    fault: str, merged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLANTED[fault](monkeypatch)
    found, result = merged("another type" if "type" in fault else "quantised", 32)
    near = found["kept"] == pytest.approx(result.survived, rel=0.15)
    error = pytest.approx(result.relative_error, rel=0.25, abs=0.02)
    assert not (near and found["relative_error"] == error)


def _is_whole(sizes: list[int], found: Mapping[int, float]) -> bool:
    """Return whether what was drawn stands for as much as there is."""
    drawn = sum(sizes[place] * times for place, times in found.items())
    return bool(drawn == pytest.approx(sum(sizes)))


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 50))
def test_what_is_drawn_stands_for_all(sizes: list[int], count: int) -> None:
    found = spread(sizes, count)
    assert len(found) <= min(count, len(sizes)) and all(times >= 1 for times in found.values())
    assert _is_whole(sizes, found)
    for place, size in enumerate(sizes):
        assert size * count < sum(sizes) or not size or found[place] == 1.0


def test_a_drawing_that_counts_each_once_is_found() -> None:
    sizes = [1000, 10, 10, 10, 10, 10]
    assert _is_whole(sizes, spread(sizes, 3)) and len(spread(sizes, 3)) == 3
    assert not _is_whole(sizes, dict.fromkeys(spread(sizes, 3), 1.0))


def test_the_page_says_it_or_why_not(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    values = MERGES["quantised"]
    asked = {"verb": "merge", "values": values, "relations": True}
    found = page_plan.do(asked, ignore)
    assert found["refused"] is None and 0 < found["survival"]["kept"] < 0.5
    asked["values"] = {**values, "method": "cosine-adaptive"}
    found = page_plan.do(asked, ignore)
    assert found["survival"] is None and found["unknown"].startswith("No estimate of what")
    asked["values"] = {"models": ["base.safetensors", "base.safetensors:0.5"]}
    found = page_plan.do(asked, ignore)
    assert found["survival"] is None and "unknown" not in found  # nothing changes


def test_a_change_that_rounding_takes_or_drowns_is_told_of(run: Any) -> None:
    """A merge says it, its JSON, and the plan of the page; one that keeps its change says nothing."""
    run.ok("bake", "-b", "base.safetensors", "a", "-o", "with.safetensors")
    for weight, options, words in (
        (0.001, {}, "of the change is kept after rounding to float16; nearly"),
        (0.05, {"dtype": "float8"}, "error of rounding to float8_e4m3 is"),
        (0.5, {}, ""),
    ):
        models = ["base.safetensors", f"with.safetensors:{weight}"]
        more = [word for name, value in options.items() for word in (f"--{name}", value)]
        result = run.ok("merge", *models, *more, "-o", "m.safetensors", "--force", "--json")
        kept, error = result.json["survived"], result.json["relative_error"]
        assert bool(words) == (kept < 0.9 or error > 1)
        values = {"models": models, **options}
        asked = {"verb": "merge", "values": values, "relations": True}
        planned = page_plan.do(asked, ignore)["survival"]["warnings"]
        if not words:
            assert "warning" not in result.err and not planned
            continue
        assert words in result.err and "--dtype float32" in result.err
        assert words in result.json["notes"][-1] and planned == [result.json["notes"][-1]]


def test_the_page_says_what_a_bake_will_refuse(run: Any) -> None:
    run.ok("bake", "-b", "base.safetensors", "a", "-o", "with.safetensors")

    def planned(**values: Any) -> Mapping[str, Any]:
        return page_plan.do({"verb": "bake", "values": values, "relations": True}, ignore)

    again = {"base": "with.safetensors", "adapters": ["a.safetensors"]}
    assert "is baked into this base already" in planned(**again)["refused"]
    assert planned(**again, allow_again=True)["refused"] is None
    weak = {"base": "base.safetensors", "adapters": ["a.safetensors:0.001"]}
    (told,) = planned(**weak)["survival"]["warnings"]
    assert told.startswith("the bake will refuse this:") and "rounding: stochastic" in told
    (told,) = planned(**weak, allow_loss=True)["survival"]["warnings"]
    assert told.startswith("only") and "will refuse" not in told
    (told,) = planned(**{**weak, "dtype": "float8", "allow_loss": True})["survival"]["warnings"]
    assert "as large as the whole change" in told
