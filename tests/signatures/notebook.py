"""What a notebook does with loramerge: it type-checks under mypy --strict, and it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import loramerge as lm
from loramerge.adapter import Delta
from loramerge.recipe.plan import Plan
from loramerge.recipe.run import RunResult
from loramerge.verbs.bake import BakeResult
from loramerge.verbs.diff import DiffResult
from loramerge.verbs.inspect import Inspected

# load, and look
zuzu = lm.load("zuzu")
assert_type(zuzu, lm.Adapter)
assert_type(len(zuzu), int)
as_mapping: Mapping[str, Delta] = zuzu
name = next(iter(zuzu))
assert_type(name, str)
delta = zuzu[name]
assert_type(delta, Delta)
assert_type(delta.shape, tuple[int, ...])
assert_type(zuzu.ranks(), dict[int, int])
assert name in zuzu and "zuzu" in repr(zuzu)

# mix by operators, pairs, names and texts
mixed = lm.mix(["zuzu:0.7", (zuzu, 0.3), "polka"], rank=8, max_size="20MB", embeddings="all")
assert_type(mixed, lm.Adapter)
assert_type(0.7 * zuzu + lm.load("polka") / 2, lm.Adapter)
weighted = lm.mix([("zuzu", lm.Weight(1.0, {"text_encoder": 0.0})), (Path("polka"), 0.5)])
small = lm.resize("zuzu", rank=4)
assert_type(small, lm.Adapter)
several = lm.resize_each("zuzu", ranks=[2, 4], dtype="float16")
assert_type(several, list[lm.Adapter])
curve = lm.error_curve("zuzu", ranks=[2, 4])
assert_type(curve.uniform[0].relative_error, float)
half = lm.convert(mixed, keep="unet", rescale=0.5)
assert_type(half, lm.Adapter)

# write, bake, compare
size = lm.save(small, Path("zuzu-r4.safetensors"), dialect="kohya", dtype="float16")
assert_type(size, int)
baked = lm.bake("tiny", "zuzu:0.8", "baked", skip_missing="all")
assert_type(baked, BakeResult)
assert_type(baked.survived, float | None)
difference = lm.diff("zuzu-r4.safetensors", "zuzu")
assert_type(difference, DiffResult)
assert_type(difference.verdict, str)
found = lm.inspect("zuzu", deep=True)
assert_type(found, Inspected)
assert_type(found.family, str | None)
assert_type(found.findings[0].message if found.findings else "", str)
base = lm.inspect("baked")
assert base.what == "checkpoint"

# recipes
recipe = {"version": 1, "steps": {"x": {"mix": {"adapters": ["zuzu"]}, "save": "x.safetensors"}}}
planned = lm.plan(recipe)
assert_type(planned, Plan)
assert_type(planned.seconds, float)
result = lm.run(recipe)
assert_type(result, RunResult)
assert_type(result.outcomes["x"].status, str)

# mistakes
try:
    lm.resize(zuzu)
except lm.UsageError as error:
    assert_type(error.problem, str)
    assert_type(error.exit_code, int)

shown = [zuzu._repr_html_(), baked._repr_html_(), planned._repr_html_(), result._repr_html_()]
assert all(text.startswith("<table>") for text in shown)
