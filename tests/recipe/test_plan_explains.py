"""`plan --explain` shows how the inputs of mixes relate before anything is written."""

from __future__ import annotations

from typing import Any

import loramerge as lm

RECIPE = """
version: 1
steps:
  first:
    mix: {adapters: ["a:0.7", "b:0.3"], method: svc}
  second:
    mix: {adapters: [first, "a:0.5"]}
    save: second.safetensors
"""


def test_every_mix_is_explained_and_nothing_written(run: Any) -> None:
    (run.folder / "r.yaml").write_text(RECIPE)
    before = sorted(run.folder.iterdir())
    assert "cosine" not in run.ok("plan", "r.yaml").out
    shown = run.ok("plan", "--explain", "r.yaml").out
    assert "first: how its inputs relate" in shown and "second: how its inputs relate" in shown
    for words in ("a and b", "cosine", "shared outputs", "norm result", "all modules"):
        assert words in shown, words
    tasks = run.ok("plan", "--explain", "r.yaml", "--json").json["tasks"]
    assert sorted(run.folder.iterdir()) == before
    made = run.ok("mix", "a:0.7", "b:0.3", "--method", "svc", "--explain", "-o", "m.safetensors",
                  "--json").json  # fmt: skip
    found = tasks["first"]["interference"]
    assert found.pop("inputs") == ["a", "b"] and found == made["interference"]
    assert tasks["second"]["interference"]["inputs"] == ["first", "a"]
    planned = lm.plan(run.folder / "r.yaml", explain=True).tasks["second"].explained
    assert planned is not None and planned.names == ("first", "a")
