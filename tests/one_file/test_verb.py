"""A verb of another package works as a command, as a step, in a plan and in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import loramerge.recipe.registry
import loramerge.recipe.schema
import loramerge.verbs
from loramerge.cli import commands
from loramerge.recipe.run import run as run_recipe
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named
from tests.builders.commands import ROOT, run, work, world  # noqa: F401

VERB = '''
"""flip: an adapter with its sign changed."""

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.outcome import uncut
from loramerge.algebra.terms import Term
from loramerge.steps.adapters import AdapterResult, write_result
from loramerge.steps.outputs import named_output, output_of
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import predict_adapter
from loramerge.steps.references import Reference
from loramerge.steps.source import open_source
from loramerge.steps.writing import RankParameters, WriteParameters


@dataclass(frozen=True, kw_only=True)
class Flip(WriteParameters):
    """Change the sign of an adapter."""

    adapter: Annotated[Reference, Doc("Adapter to flip.", ("ADAPTER",), completes="adapters")]
    times: Annotated[int, Doc("Flip this many times.")] = 1


def compute_flip(parameters, context=Context()):
    source = open_source([parameters.adapter], None, context)
    whole, sign = source.weighted(), (-1.0) ** parameters.times
    flipped = whole.with_deltas({s: d.scaled(sign) for s, d in whole.deltas.items()}, path=None)
    return AdapterResult(**AdapterResult.figures(flipped, uncut(flipped)))


def flip(parameters, context=Context()):
    output = _output(parameters).checked()
    return write_result(compute_flip(parameters, context), output, context)


def output_path(parameters, context=Context()):
    return _output(parameters).place


def _output(parameters):
    return named_output(parameters, [], f"{parameters.adapter.label}-flipped")


def predict(parameters, context=Context()):
    source = open_source([parameters.adapter], None, context)
    whole = source.weighted()
    terms = {site: [Term(delta)] for site, delta in whole.deltas.items()}
    output = output_of(parameters, source.adapters)
    return predict_adapter(whole, terms, RankParameters().rule(1), output, None, context)


VERB = Verb("flip", Flip, "adapter", flip, predict, compute_flip, output_path=output_path)
'''
RENDER = """

def render(result):
    print("flipped", result.modules, "modules")
"""
CACHES = (
    loramerge.verbs.known_verbs, loramerge.verbs.added_verbs, loramerge.recipe.registry.known_verbs,
    commands.summaries,
)  # fmt: skip


@pytest.fixture
def package(work, monkeypatch):  # noqa: F811
    """A folder with the package `flipping`, which adds the verb `flip` by an entry point."""
    folder = work / "site"
    about = folder / "flipping-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "flipping.py").write_text(VERB, "utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flipping\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[loramerge.verbs]\nflip = flipping\n")
    monkeypatch.syspath_prepend(str(folder))
    for cached in CACHES:
        cached.cache_clear()
    yield folder
    sys.modules.pop("flipping", None)
    for cached in CACHES:
        cached.cache_clear()


pytestmark = pytest.mark.usefixtures("package")


def test_it_is_a_command(run):  # noqa: F811
    assert "flip" in run.ok("--help").out and "Added by flipping." in run.ok("--help").out
    assert "Change the sign of an adapter." in run.ok("flip", "--help").out
    shown = run.ok("flip", "a", "--save-recipe", "r.yaml")
    assert "a-flipped.safetensors" in shown.out and "modules" in shown.out
    assert run.ok("diff", "a", "a-flipped", "--json").json["total"]["best_fit"] == pytest.approx(-1)
    assert "flip" in (run.folder / "r.yaml").read_text()
    run.refused(2, "flip", "a", "--to", "koyha", says="did you mean")


def test_it_may_show_its_results_itself(run, package):  # noqa: F811
    (package / "flipping.py").write_text(VERB + RENDER, "utf-8")
    assert run.ok("flip", "a").out.startswith("flipped ")


REPORT = """

def report(result):
    from loramerge.report.document import Report, Section, facts

    return Report("Flipped", "", [Section("Result", [facts({"modules": result.modules})])])
"""


def test_it_may_have_a_report(run, package):  # noqa: F811
    assert "--html" not in run.ok("flip", "--help").out
    (package / "flipping.py").write_text(VERB + REPORT, "utf-8")
    sys.modules.pop("flipping", None)
    run.ok("flip", "a", "--html", "x.html")
    assert "<h1>Flipped</h1>" in (run.folder / "x.html").read_text("utf-8")


def test_it_works_in_a_process_of_its_own(run, package):  # noqa: F811
    done = subprocess.run(
        [sys.executable, "-m", "loramerge", "flip", "a"], cwd=run.folder, capture_output=True,
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(package)))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_it_is_a_step_and_has_a_plan(run):  # noqa: F811
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {a: a.safetensors}\n"
        "steps:\n  back: {flip: {adapter: 'a:0.5', times: 3}, save: back.safetensors}\n"
        "  sum: {mix: {adapters: [back, 'a:0.5']}}\n  seen: {inspect: {files: [sum], deep: true}}\n"
    )
    plan = run.ok("plan", "r.yaml", "--json").json
    assert plan["tasks"]["back"]["modules"] and plan["tasks"]["back"]["verb"] == "flip"
    shown = run.ok("run", "r.yaml")
    assert "back" in shown.out and (run.folder / "back.safetensors").exists()
    found = run.ok("diff", "a", "back", "--json").json["total"]
    assert found["best_fit"] == pytest.approx(-0.5)
    schema = run.ok("schema", "--json").json
    step = schema["properties"]["steps"]["additionalProperties"]["properties"]
    assert set(step["flip"]["properties"]) == {"adapter", "times", "to", "for", "dtype"}


def test_mistakes_in_its_step_are_found(run):  # noqa: F811
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {a: a.safetensors}\nsteps: {x: {flip: {adapter: a, time: 2}}}\n"
    )
    run.refused(6, "run", "r.yaml", says=("flip has no 'time'", "times"))


def test_it_is_called_from_python():
    verb = verb_named("flip")
    assert verb is not None
    parameters = engine.parameters_from(verb.parameters, {"adapter": "a.safetensors", "times": 2})
    result = engine.perform(verb, parameters, Context(), save=False)
    assert len(result.adapter.deltas) == result.modules and result.output is None


def test_it_runs_in_a_recipe_from_python(tmp_path):
    content = {
        "version": 1,
        "inputs": {"a": "a.safetensors"},
        "steps": {"x": {"flip": {"adapter": "a"}, "save": str(tmp_path / "x.safetensors")}},
    }
    assert run_recipe(content).exit_code == 0 and (tmp_path / "x.safetensors").exists()


def test_one_that_cannot_be_imported_says_so(run, package):  # noqa: F811
    (package / "flipping.py").write_text("import nothing_of_this_name\n", "utf-8")
    run.refused(2, "flip", "a", says=("'flip'", "nothing_of_this_name"))
    assert "flip" in run.ok("--help").out  # the help imports none
    run.ok("inspect", "a")


def test_its_own_verbs_come_first(run, package):  # noqa: F811
    entry = package / "flipping-1.0.dist-info" / "entry_points.txt"
    entry.write_text("[loramerge.verbs]\nmix = flipping\n")
    loramerge.verbs.added_verbs.cache_clear()
    assert verb_named("mix").parameters.__name__ == "Mix"
    assert json.loads(run.ok("inspect", "a", "--json").out)
