"""`mix --correction`: in the report, the header, a recipe and its plan, and Python."""

from __future__ import annotations

import json
from typing import Any

import pytest

import loramerge as lm
from loramerge.errors import UsageError
from tests.builders.samples import read_safetensors


def test_report_header_recipe_and_python(run: Any) -> None:
    shown = run.ok("mix", "a", "b:0.5", "--correction", "svc", "-o", "x.safetensors").out
    assert "linear, corrected by svc, scale literal" in shown and "exact sum" not in shown
    _, metadata = read_safetensors(run.folder / "x.safetensors")
    assert json.loads(metadata["loramerge.recipe"])["steps"]["result"]["mix"]["correction"] == "svc"
    assert "same file" in run.ok("run", "x.safetensors").out
    (run.folder / "r.yaml").write_text(
        "version: 1\nsteps:\n  x:\n    mix: {adapters: [a, 'b:0.5'], correction: svc}\n"
        "    save: r.safetensors\n"
    )
    plan = run.ok("plan", "r.yaml", "--json").json["tasks"]["x"]
    found = run.ok("run", "r.yaml", "--json").json
    assert plan["at_most"] and found
    lm.save(lm.mix(["a", "b:0.5"], correction="svc"), "p.safetensors")
    read = [(run.folder / f"{n}.safetensors").read_bytes() for n in ("x", "r", "p")]
    assert read[0] == read[1] == read[2]
    result = run.ok("mix", "a", "b", "--correction", "svc", "-o", "j.safetensors", "--json").json
    assert result["correction"] == "svc"


def test_what_cannot_correct_is_refused(run: Any) -> None:
    assert run("mix", "a", "b", "--correction", "ties", "-o", "x.safetensors").code == 2
    result = run("mix", "a", "b", "--compat", "kohya", "--correction", "svc", "-o", "x.safetensors")
    assert result.code == 2 and "compat excludes method, scale and correction" in result.err
    assert not (run.folder / "x.safetensors").exists()
    with pytest.raises(UsageError):
        lm.mix(["a", "b"], correction="ties")
