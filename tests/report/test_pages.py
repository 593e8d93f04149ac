"""Pages of results: every verb's is well-formed, alone and safe, and the same for the same result."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("jinja2")

import loramerge as lm
import loramerge.report
from loramerge.report.document import (
    Bars,
    HeatMap,
    ImagePart,
    Line,
    Lines,
    Notes,
    Panel,
    Panels,
    Report,
    Section,
    Table,
    facts,
)  # fmt: skip
from loramerge.report.page import page
from loramerge.report.plain import plain_report
from loramerge.report.views import has_report
from loramerge.verbs import known_verbs
from tests.builders.world import rewrite
from tests.report.pages import Page, problems

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} </style> \x1b[2J\u202e'
PNG = bytes.fromhex("89504e470d0a1a0a")
COMMANDS = {
    "inspect": ("inspect", "a"),
    "diff": ("diff", "a", "b"),
    "compare": ("compare", "a", "b", "--ingredients", "a"),
    "mix": ("mix", "a:0.7", "b:-0.3", "-o", "mixed.safetensors"),
    "resize": ("resize", "--rank", "1,2", "a"),
    "curve": ("resize", "--curve", "a"),
    "merge": ("merge", "base.safetensors:0.6", "base.safetensors:0.4", "-o", "merged.safetensors"),
}


def everything(text):
    """A report with every sort of part, each with a text in every place."""
    shared = {"title": text, "caption": text}
    points = [(1.0, 0.5), (2.0, 0.25), (3.0, 0.0)]
    return Report(
        text,
        text,
        [
            Section(text, [facts({text: text, "long": text * 50}), Notes((("error", text),))]),
            Section(text, [Table(text, (text, text), [(text, text)]), ImagePart(PNG, text)]),
            Section(text, [Table(text, (text,), [(text,)], folded=True)]),
            Section(text, [
                Lines(**shared, lines=[Line(text, points, [text] * 3), Line(text, points)],
                      across=text, up=text),
                Bars(**shared, series=(text, text), rows=[(text, (1.0, None)), (text, (0.5, -2.0))]),
                HeatMap(**shared, rows=(text,), columns=(text, text), values=[[1.0, None]]),
                HeatMap(**shared, rows=(text,), columns=(text, text), values=[[1.0, -1.0]],
                       numbers=False),
                Panels(**shared, panels=[Panel(text, [([1.0, 0.1], [0.5, 0.01], [2.0, 0.2])])],
                       series=(text,), across=text, up=text),
            ]),
            Section(text, [Notes(())]),
        ],
    )  # fmt: skip


def test_all_parts_are_escaped():
    text = page(everything(EVIL)).decode()
    assert problems(text) == []
    found = Page(text)
    assert "<script>alert(1)</script>" in found.text  # as text
    assert "49" not in found.text and "{{ 7*7 }}" in found.text
    assert "\x1b" not in text and "\u202e" not in text
    assert found.tags["section"] == 4  # the empty one is left out


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: t.replace("&lt;script&gt;", "<script>", 1),
        lambda t: t.replace('content="default-src', 'content="script-src *; default-src'),
        lambda t: t.replace("'none'; style", "'unsafe-inline'; style"),
        lambda t: t.replace("data:image/png", "https://example.org/x.png?", 1),
        lambda t: t.replace('href="#main"', 'href="//example.org"'),
        lambda t: t.replace("</table>", "", 1),
        lambda t: t.replace("<figure>", '<figure onclick="x()">', 1),
        lambda t: t.replace(' lang="en"', ""),
        lambda t: t.replace('id="s2"', 'id="s1"'),
        lambda t: t.replace("<style>", "<style>@import url(x);", 1),
    ],
)
def test_a_page_that_is_wrong_would_be_found(wrong):
    good = page(everything("x <script> y")).decode()
    assert problems(good) == []
    bad = wrong(good)
    assert bad != good and problems(bad) != []


def test_the_policy_allows_the_style_of_the_page_and_no_other():
    text = page(everything("x")).decode()
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text
    assert " style=" not in text


def test_every_figure_has_its_numbers_as_a_table():
    text = page(everything("x")).decode()
    found = Page(text)
    assert found.tags["figure"] == 6 and found.tags["figcaption"] == 6
    assert (
        found.text.count("Show the numbers") == 3
    )  # bars and numbered cells are tables themselves
    regions = text.count('class="scroll" tabindex="0" role="region" aria-label=')
    assert regions == text.count('class="scroll"') > 5


def test_nothing_is_shown_of_a_picture_that_is_no_png():
    report = Report("x", "", [Section("y", [ImagePart(b"GIF89a<script>", "z")])])
    assert "<img" not in page(report).decode()


def test_letters_that_are_no_unicode_do_not_stop_a_page():
    assert b"caf?" in page(Report("caf\udce9", "", []))


@pytest.mark.parametrize("name", COMMANDS)
def test_pages_of_commands(run, name):
    def edit(arrays, metadata):
        metadata["modelspec.title"] = EVIL
        metadata["ss_tag_frequency"] = json.dumps({f"10_{EVIL}": {EVIL: 3}})

    rewrite(run.folder / "a.safetensors", run.folder / "a.safetensors", edit)
    shown = run.ok(*COMMANDS[name], "--html", "first.html")
    assert "report: first.html" in shown.out
    text = Path("first.html").read_text("utf-8")
    assert problems(text) == []
    force = ["--force"] if name in ("mix", "resize", "merge") else []
    run.ok(*COMMANDS[name], *force, "--html", "second.html", "-q")
    assert Path("second.html").read_bytes() == Path("first.html").read_bytes()
    assert str(run.folder) not in text
    if name == "inspect":
        assert "onerror=alert(2)" in Page(text).text and "10_" in text
        assert "Singular values by block" in text and "Size of the change" in text


@pytest.mark.parametrize("name", ["mix", "resize"])
def test_a_page_changes_nothing_about_the_result(run, name):
    words = {"mix": ("mix", "a:0.7", "b", "-o"), "resize": ("resize", "--rank", "2", "a", "-o")}[
        name
    ]
    run.ok(*words, "plain.safetensors")
    run.ok(*words, "seen.safetensors", "--html", "x.html")
    assert Path("plain.safetensors").read_bytes() == Path("seen.safetensors").read_bytes()
    assert "x.html" not in json.dumps(run.ok("meta", "seen.safetensors", "--json").json)


def test_a_report_replaces_reports_only(run):
    run.ok("inspect", "a", "--html", "x.html")
    run.ok("inspect", "b", "--html", "x.html")
    assert ">b.safetensors" in Path("x.html").read_text("utf-8")
    Path("mine.html").write_text("<h1>My page</h1>", "utf-8")
    run.refused(3, "inspect", "a", "--html", "mine.html", says="not a page of loramerge")
    run.refused(3, "inspect", "a.safetensors", "--html", "a.safetensors", says="input")
    run.refused(3, "mix", "a", "b", "-o", "m.safetensors", "--html", "m.safetensors", says="output")
    run.refused(3, "inspect", "a", "--html", "y.html", "--json-file", "y.html", says="replaced")


def test_paths_of_reports_are_among_the_outputs(run):
    found = run.ok("mix", "a", "b", "-o", "m.safetensors", "--html", "m.html", "--json").json
    assert found["outputs"] == ["m.safetensors", "m.html"]
    assert isinstance(run.ok("inspect", "a", "--html", "x.html", "--json").json, list)


def test_pages_and_plots_from_python(run):
    seen = lm.inspect("a.safetensors", spectrum=True)
    seen.save("a.html")
    assert problems(Path("a.html").read_text("utf-8")) == []
    lm.diff("a.safetensors", "b.safetensors").save("d.html")
    lm.error_curve("a.safetensors", ranks=[1, 2]).save("c.svg")
    assert Path("c.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(lm.UsageError, match="PNG, SVG or PDF"):
        seen.save("a.jpg")
    with pytest.raises(lm.LoramergeError, match="exists"):
        seen.save("a.html")
    seen.save("a.html", force=True)


def test_a_missing_library_is_named_before_any_work(run, monkeypatch):
    monkeypatch.setattr("loramerge.report.page.find_spec", lambda name: None)
    run.refused(2, "mix", "a", "b", "--html", "x.html", says=("Jinja", "loramerge[report]"))


def test_verbs_with_reports_exist():
    folder = Path(loramerge.report.__file__).parent / "results"
    names = {path.stem for path in folder.glob("[!_]*.py")}
    assert names == {"compare", "diff", "inspect", "merge", "mix", "resize", "train", "verify"}
    assert names <= set(known_verbs()) and not has_report("bake") and not has_report("../page")


def test_a_dry_run_has_a_page():
    from loramerge.report.results.train import report

    found = {"images": 3, "steps": 20, "buckets": {"512x512": 3}, "prompts": None}
    check = SimpleNamespace(json=lambda: found)
    result = SimpleNamespace(check=check, folder="/far/away/zuzu-run")
    text = page(report(result)).decode()
    assert problems(text) == [] and "3 images, 20 steps" in text and "/far" not in text


def test_any_result_can_be_shown():
    content = {
        "outputs": ["x"], "verdict": f"{EVIL}.", "differs": True, "share": 0.123456, "nothing": None,
        "blocks": {EVIL: 0.5, "b": 1}, "parts": {EVIL: {"a": 1.5, "b_c": None}, "y": {"z": [1, EVIL]}},
        "rows": [{"a": 1}, {"b": EVIL}], "names": [EVIL, 2], "mixed": {"a": 1, "b": "c"}, "empty": [],
    }  # fmt: skip
    report = plain_report("x", content)
    text = page(report).decode()
    assert problems(text) == [] and Page(text).text.count("alert(1)") == 6
    assert [type(part).__name__ for one in report.shown() for part in one.parts] == [
        "FactList", "Bars", "Table", "Table", "Notes", "FactList",
    ]  # fmt: skip
    assert "0.1235" in text and ">yes<" in text and "b c" in text


def test_pages_of_checkpoints_name_what_differs(run):
    run.ok("bake", "--base", "tiny", "zuzu", "-o", "baked")
    run.ok("diff", "tiny", "baked", "--html", "diff.html")
    run.ok("verify", "baked", "--html", "verify.html")
    for name in ("diff.html", "verify.html"):
        text = Path(name).read_text("utf-8")
        assert problems(text) == [] and "shipped" not in text and "unet.mid_block" in text
    assert "84 of 478 in all" in Path("diff.html").read_text("utf-8")
    assert "It holds what it should." in text and "zuzu is in it at the weight 1." in text


def test_pages_of_many_files_stay_short(run):
    for number in range(21):
        shutil.copy("a.safetensors", f"many-{number:02}.safetensors")
    run.ok("inspect", *(f"many-{n:02}" for n in range(21)), "--html", "x.html")
    text = Path("x.html").read_text("utf-8")
    assert problems(text) == [] and len(text) < 60_000 and "many-20.safetensors" in text
    run.ok("compare", "many-*.safetensors", "--html", "y.html")
    text = Path("y.html").read_text("utf-8")
    assert problems(text) == [] and "… and 10 more" in text  # of 210 pairs of copies


def test_a_plot_of_nothing_is_no_error_beside_a_file(run):
    def zero(arrays, metadata):
        for name in [*arrays]:
            arrays[name] = arrays[name][:0] if False else arrays[name] * 0

    rewrite(run.folder / "a.safetensors", run.folder / "zero.safetensors", zero)
    done = run.ok("resize", "--rank", "1", "zero", "-o", "less.safetensors", "--plot", "x.svg")
    assert "no figures" in done.err and Path("less.safetensors").exists()
    assert not Path("x.svg").exists()


def test_a_step_saves_its_report_as_a_page_or_a_plot(run):
    text = (
        "version: 1\ninputs: {a: a.safetensors, b: b.safetensors}\nsteps:\n"
        "  half: {mix: {adapters: ['a:0.5']}}\n"
        "  seen: {inspect: {files: [half]}, save: out/seen.html}\n"
        "  apart: {diff: {a: half, b: b}, save: out/apart.SVG}\n"
        "  plain: {compare: {files: [a, b]}, save: out/plain.json}\n"
    )
    Path("r.yaml").write_text(text)
    run.ok("run", "r.yaml")
    page_text = Path("out/seen.html").read_text("utf-8")
    assert problems(page_text) == [] and "Singular values by block" in page_text
    assert Path("out/apart.SVG").read_bytes().startswith(b"<?xml")
    assert json.loads(Path("out/plain.json").read_text("utf-8"))["verdict"]
    assert "up to date" in run.ok("run", "r.yaml").out
    Path("x.yaml").write_text(text.replace("seen.html", "seen.txt"))
    run.refused(6, "run", "x.yaml", says="whose name ends in .json")
