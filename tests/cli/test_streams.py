"""What goes where: results, notes, warnings, errors; pipes and old code pages; completion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from click.shell_completion import ShellComplete

from loramerge import __version__, interruption
from loramerge.__main__ import entry as process_entry
from loramerge.cli import main as entry
from loramerge.cli.main import group, main
from loramerge.dialects import DIALECTS
from tests.builders.world import rewrite
from tests.tail import tail

COMMANDS = (
    ("inspect", "a", "--deep"), ("diff", "a", "b"), ("mix", "a", "b"), ("resize", "--rank", "2", "a"),
    ("bake", "-b", "base", "a"), ("base", "list"), ("library", "list"), ("dialects",), ("families",),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_json_stands_alone_on_stdout(run, command):
    result = run.ok(*command, "--json")
    assert isinstance(result.json, (dict, list))
    again = run.ok(*command, "--json-file", "x.json", *_force(command))
    assert json.loads((run.folder / "x.json").read_text("utf-8")) == result.json
    assert again.out  # people are shown the result too


@pytest.mark.parametrize("command", COMMANDS[:5], ids=lambda c: c[0])
def test_quiet_shows_warnings_only(run, command):
    result = run.ok(*command, "-q")
    assert result.out == "" and result.err == ""
    assert run(*command, "-q", "--json", *_force(command)).json


def _force(command):
    return ["--force"] if command[0] in ("mix", "resize", "bake") else []


def test_quiet_still_warns_and_fails(run):
    def add(arrays, metadata):
        arrays["nothing.known"] = arrays[next(iter(arrays))]

    rewrite(run.folder / "a.safetensors", run.folder / "more.safetensors", add)
    assert "warning: " in run.ok("mix", "more:0.5", "--skip-unknown", "-q").err
    (run.folder / "bad.safetensors").write_bytes(b"")
    result = run("resize", "--rank", "2", "a", "bad", "--out-dir", "d", "-q")
    assert result.code == 3 and "bad.safetensors" in result.err and result.out == ""
    run.refused(3, "mix", "nothing", "-q", says="'nothing'")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_piped_output_is_plain(run, command):
    result = run.ok(*command)
    assert "\x1b" not in result.out + result.err
    assert all(line == line.rstrip() for line in result.out.splitlines())


def test_python_m(run):
    done = run.process("--version")
    assert done.returncode == 0 and __version__ in done.stdout.decode()
    assert run.process("mix", "nothing").returncode == 3
    assert b"Usage: loramerge" in run.process("--help").stdout


@pytest.mark.parametrize("encoding", ["ascii", tail("cp1252"), tail("cp932")])
def test_old_code_pages_never_crash(run, encoding):
    shutil.copy("a.safetensors", "猫 ü.safetensors")
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for command in (("--help",), ("mix", "--help"),
                    ("inspect", "猫 ü.safetensors", "--deep", "--modules"),
                    ("inspect", "猫 ü.safetensors", "--json"), ("mix", "猫 nichts")):  # fmt: skip
        done = run.process(*command, env=env)
        assert done.returncode == (3 if "nichts" in command[-1] else 0), done.stderr
        assert b"Traceback" not in done.stderr and b"bug" not in done.stderr
        if encoding != "ascii":  # which click takes for a mistake, and writes UTF-8
            done.stdout.decode(encoding)


def test_json_files_are_utf8_whatever_the_console(run):
    shutil.copy("a.safetensors", "猫.safetensors")
    done = run.process(
        "inspect", "猫.safetensors", "--json-file", "x.json", env={"PYTHONIOENCODING": "cp1252"}
    )
    assert done.returncode == 0
    assert json.loads((run.folder / "x.json").read_text("utf-8"))[0]["path"] == "猫.safetensors"


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
@pytest.mark.parametrize("command", [("--help",), ("inspect", "a", "b", "--json"),
                                     ("inspect", "a", "--modules"),
                                     ("dialects",), ("families", "--json")], ids=" ".join)  # fmt: skip
def test_a_broken_pipe_is_no_error(run, command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run.process(*command, stdout=writer)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 1)


def _complete(run, words, env=None):
    line = f"loramerge {words}"
    env = {"_LORAMERGE_COMPLETE": "bash_complete", "COMP_WORDS": line,
           "COMP_CWORD": str(len(line.split(" ")) - 1), **(env or {})}  # fmt: skip
    done = run.process(env=env)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return [entry.partition(",")[2] for entry in done.stdout.decode().split()]


def _completed(words):
    """Return what a shell is told, without a process of its own."""
    *before, last = words.split(" ")
    found = ShellComplete(group, {}, "loramerge", "_LORAMERGE_COMPLETE")
    return [one.value for one in found.get_completions(before, last)]


def test_completion(run):
    (run.folder / "loras" / "sub").mkdir(parents=True)
    for name in ("style.safetensors", "sub/stone_v1.5.safetensors", "other.safetensors"):
        shutil.copy("a.safetensors", run.folder / "loras" / name)
    run.ok("library", "add", "loras")
    run.ok("base", "add", "sd21-custom", "base.safetensors")
    assert set(_complete(run, "mix st")) >= {"style", "stone_v1.5"}
    assert set(_completed("re")) == {"resize", "recipes"}
    assert set(_completed("mix st")) >= {"style", "stone_v1.5"}
    assert "other" not in _completed("mix st")
    assert set(_completed("mix a --to ")) == set(DIALECTS)
    assert _completed("mix a --to lora") == ["lora_diffusion"]
    assert "sd21-custom" in _completed("bake --base sd")
    assert "style" in _completed("bake --lora st")
    assert _completed("mix a --for com") == ["comfyui"]
    assert "--rounding" in _completed("bake --ro")


def test_completion_survives_a_corrupt_registry(run, tmp_path):
    (tmp_path / "loramerge-home").mkdir()
    (tmp_path / "loramerge-home" / "registry.json").write_text("{")
    _complete(run, "mix st")


@pytest.mark.parametrize("shell", ["bash_source", "zsh_source", "fish_source"])
def test_completion_scripts(run, shell):
    if shell == "bash_source" and shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")
    done = run.process(env={"_LORAMERGE_COMPLETE": shell})
    assert done.returncode == 0 and b"_LORAMERGE_COMPLETE" in done.stdout


# --- interruptions and bugs -----------------------------------------------------------------------


def _raise(error):
    def raiser(*args, **kwargs):
        raise error

    return raiser


def test_interruption(run, monkeypatch):
    monkeypatch.setattr("loramerge.verbs.mix.mix_adapters", _raise(KeyboardInterrupt()))
    before = run.state()
    result = run("mix", "a", "-o", "out.safetensors")
    assert result.code == 130 and "interrupted" in result.err and run.state() == before


@pytest.mark.skipif(os.name == "nt", reason="signals differ there")
def test_a_signal_leaves_nothing_behind(run):
    slow = (
        "import sys, time, loramerge.stream.walk as b, loramerge.cli.main as m\n"
        "old = b.ordered\n"
        "def ordered(work, items, **options):\n"
        "    for value in old(work, items, **options):\n"
        "        print('working', file=sys.stderr, flush=True); time.sleep(0.2)\n"
        "        yield value\n"
        "b.ordered = ordered\n"
        "sys.exit(m.main(['bake', '-b', 'base', 'a', '-o', 'out.safetensors']))\n"
    )
    before = run.state()
    process = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=run.folder, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.fspath(entry.__file__).rpartition("loramerge")[0]},
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("working")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert run.state() == before


def test_an_interrupt_while_a_dataclass_is_made_has_the_exit_code_of_any_other(tmp_path):
    """Dataclasses are made with `exec`, where Python marks an interrupt as unhandled."""
    (tmp_path / "interrupted.py").write_text(
        "import loramerge.cli.main as m\n"
        "m.group.main = lambda **options: exec('raise KeyboardInterrupt')\n"
        "m.console_entry()\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(entry.__file__).rpartition("loramerge")[0]},
    )  # fmt: skip
    assert done.returncode == 130 and done.stderr.startswith("interrupted")


@pytest.mark.skipif(os.name == "nt", reason="signals differ there")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_systems_signals_end_a_command_as_ctrl_c_does(tmp_path, name):
    """In the middle of an output and of a temporary folder: both go, and the old output stays."""
    command = (
        "import tempfile, time, loramerge.cli.main as m\n"
        "from loramerge.files.atomic import AtomicFile, AtomicFolder\n"
        "from loramerge.files.temporary import scratch_folder\n"
        "def slow(**options):\n"
        "    with scratch_folder('loramerge') as folder, AtomicFile('out', force=True) as file:\n"
        "        with AtomicFolder('folder') as other:\n"
        "            (folder / 'x').touch(), (other / 'x').touch(), file.write(0, b'half')\n"
        "            print('working', flush=True); time.sleep(60)\n"
        "m.group.main = slow\n"
        "m.console_entry()\n"
    )
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", command], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.fspath(entry.__file__).rpartition("loramerge")[0],
             "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().startswith("working")
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"out", "temporary"}
    assert not list((tmp_path / "temporary").iterdir())
    assert (tmp_path / "out").read_bytes() == b"old"


def test_bugs_are_said_to_be_ours(run, monkeypatch):
    monkeypatch.setattr("loramerge.verbs.mix.mix_adapters", _raise(RuntimeError("oh")))
    result = run("mix", "a", "-o", "out.safetensors")
    assert (
        result.code == 70
        and "RuntimeError: oh" in result.err
        and "LORAMERGE_TRACEBACK" in result.err
    )
    assert "Traceback" not in result.err and result.out == ""
    monkeypatch.setenv("LORAMERGE_TRACEBACK", "1")
    assert "Traceback" in run("mix", "a", "-o", "out.safetensors").err


def test_the_systems_errors_are_errors_of_files(run, monkeypatch):
    monkeypatch.setattr(
        "loramerge.verbs.mix.mix_adapters",
        _raise(OSError(5, "Input/output error", "a.safetensors")),
    )
    run.refused(3, "mix", "a", "-o", "out.safetensors", says="a.safetensors: Input/output error")


def test_usage(run, capsys):
    run.refused(2, "mixx", "a", says="did you mean mix?")
    run.refused(2, "base", "ad", says="ad")
    run.refused(2, "mix", "a", "--rnak", "3", says="--rank")
    for words in ((), ("mix",), ("base",), ("library",)):
        assert main(words) == 2
        assert "Usage: loramerge" in capsys.readouterr().err


# --- devices --------------------------------------------------------------------------------------


def test_devices(run):
    torch = pytest.importorskip("torch")
    run.ok("mix", "a:0.5", "-o", "cpu.safetensors", "--device", "cpu")
    for command in (("mix", "a:2"), ("resize", "--rank", "2", "a"), ("diff", "a", "b"), ("inspect", "a"),
                    ("bake", "-b", "base", "a"), ("demo",)):  # fmt: skip
        run.refused(2, *command, "--device", "nonsense", says="nonsense")
        if not torch.cuda.is_available():
            run.refused(2, *command, "--device", "cuda", says=("torch", "pip install"))


def test_a_stop_that_python_could_not_raise_comes_a_moment_later():
    """As in the callback of a weak reference, where the signal would be lost and a traceback printed."""
    what = SimpleNamespace(exc_type=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        interruption.not_raised(what)
        time.sleep(5)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_while_the_command_line_is_imported_prints_no_traceback(monkeypatch, handler):
    """In the background it stays ignored, and when the command runs it is handled again."""
    found = []

    class CommandLine(ModuleType):
        def __getattr__(self, name):
            if name != "console_entry":
                raise AttributeError(name)
            found.append(signal.getsignal(signal.SIGINT))
            return lambda: found.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setitem(sys.modules, "loramerge.cli.main", CommandLine("loramerge.cli.main"))
    former = signal.signal(signal.SIGINT, handler)
    try:
        process_entry()
    finally:
        signal.signal(signal.SIGINT, former)
    importing = signal.SIG_IGN if handler == signal.SIG_IGN else signal.SIG_DFL
    assert found == [importing, handler]


def test_ctrl_c_after_the_work_prints_no_traceback(monkeypatch):
    """Libraries that shut down would answer it with one."""
    monkeypatch.setattr(entry, "main", lambda: 0)
    monkeypatch.setattr(entry, "_outlive_readers", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(entry.gc, "freeze", lambda: None)
    numbers = [getattr(signal, name) for name in interruption.ENDING if hasattr(signal, name)]
    former = [signal.getsignal(number) for number in numbers]
    try:
        with pytest.raises(SystemExit):
            entry.console_entry()
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_DFL}
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_a_full_disk_under_the_output_is_one_line(tmp_path):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loramerge", "families"], cwd=tmp_path, text=True, check=False,
            stdout=full, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.fspath(entry.__file__).rpartition("loramerge")[0]},
        )  # fmt: skip
    assert done.returncode == 3 and done.stderr.startswith("error: ")
    assert "No space left" in done.stderr and "Traceback" not in done.stderr
