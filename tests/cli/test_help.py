"""Every command explains itself, and every example it shows runs."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from loramerge.cli.commands import summaries
from loramerge.cli.main import group
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
