"""Every command explains itself, and every example it shows runs."""

from __future__ import annotations

import re
import shlex
from typing import Any

import click
import pytest

from loramerge.cli.commands import summaries
from loramerge.cli.main import group
from loramerge.files.dtypes import FLOATS, dtype_of, type_words
from tests.builders.sampler import few_steps
from tests.builders.unmeasured import unmeasured
from tests.cli.examples import examples_of, prepare, walk
from tests.tail import tail

ALL = dict(walk())


def test_every_command_is_reached():
    assert {name.split()[0] for name in ALL if name} == set(summaries())
    assert {
        "base add",
        "base list",
        "base remove",
        "library add",
        "library list",
        "library remove",
    } <= set(ALL)


@pytest.mark.parametrize("name", ALL, ids=lambda n: n or "loramerge")
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(run, name, flag):
    result = run.ok(*name.split(), flag)
    assert result.out.startswith(f"Usage: loramerge {name}".rstrip()) and result.err == ""
    command = ALL[name]
    if name:
        assert "Example: loramerge" in result.out
        assert command.help and command.help.rstrip().endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help and parameter.help.rstrip().endswith((".", "]", ")")), (
                parameter.name
            )


def test_the_list_says_what_the_commands_say():
    for name, line in summaries().items():
        assert line.endswith(".") and len(line) < 70, name


# the README runs the tour and a training, too
@pytest.mark.parametrize("name", [tail(n) if n in ("demo", "train") else n for n in ALL if n])
def test_examples_run(run, name, monkeypatch):
    examples = examples_of(ALL[name])
    assert examples
    if name in ("train", "preview", "demo"):
        few_steps(monkeypatch)
        unmeasured(monkeypatch)
    if name == "ui":  # tests/page have servers; this one would wait for Ctrl-C
        monkeypatch.setattr("loramerge.page.serve.serve", lambda *given: None)
    for line in examples:
        prepare(run, monkeypatch, resized=name == "diff", pictures=name in ("train", "preview"))
        if name in ("library search", "library similar", "library duplicates"):
            run.ok("library", "scan", ".")
        words = shlex.split(line)
        assert words[0] == "loramerge" and " ".join(words).startswith(
            f"loramerge {name.split()[0]}"
        )
        run.ok(*words[1:])


def test_optional_arguments_are_shown_as_such(run):
    assert "bake [OPTIONS] [ADAPTER]..." in run.ok("bake", "--help").out
    assert "demo [OPTIONS] [FOLDER]" in run.ok("demo", "--help").out
    assert "mix [OPTIONS] ADAPTER..." in run.ok("mix", "--help").out


_WITHOUT_RESULT = {
    "base add", "base remove", "library add", "library remove",
    "completion install", "completion show", "completion uninstall", "comfyui install",
    "comfyui uninstall", "ui",
}  # fmt: skip


def test_common_options_are_everywhere():
    for name, command in ALL.items():
        if isinstance(command, click.Group) or name in _WITHOUT_RESULT:
            continue
        options = {flag for p in command.params for flag in p.opts}
        assert {"--json", "--json-file"} <= options, name
        if name in ("inspect", "diff", "mix", "resize", "bake", "demo"):
            assert {"--quiet", "-q", "--threads", "--device"} <= options, name


def test_version(run):
    assert re.fullmatch(r"loramerge, version \d+\.\d+\.\d+\n", run.ok("--version").out)


def test_the_group_is_lazy():
    assert isinstance(group, click.Group) and list(group.list_commands(None)) == list(summaries())  # type: ignore[arg-type]


def test_slips_in_commands_and_choices_are_named(run: Any) -> None:
    run.refused(2, "mxi", says=("did you mean mix?",))
    run.refused(2, "mix", "a", "b", "--method", "tiess", says=("'tiess'", "did you mean ties?"))
    error = run.refused(2, "mix", "a", "b", "--method", "qqqq", says=("'qqqq'",))
    assert "did you mean" not in error.err


def test_types_that_work_are_in_help_and_error(run: Any) -> None:
    words = type_words(FLOATS)
    assert "float8_e4m3 (or float8)" in words
    for verb, base in (("bake", ("-b", "tiny")), ("merge", ())):
        assert words in " ".join(run.ok(verb, "--help").out.split())
        run.refused(2, verb, *base, "tiny", "tiny", "--dtype", "flaot", "-o", "x", says=(words,))
    for word in words.replace(" (or ", ", ").replace(")", "").split(", "):
        assert dtype_of(word) in FLOATS


def test_vectors_that_a_family_takes_are_named(run: Any) -> None:
    run.refused(
        2, "mix", "zuzu:OUTALL", "-o", "x.safetensors", says=("tiny takes 26 values", "depth=0,1")
    )
