"""Files and circumstances nobody means well with: a clear message, an exit code, nothing written."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from loramerge.algebra.mix import mix as mix_adapters
from loramerge.files.reader import release
from tests.builders.samples import safetensors_bytes
from tests.builders.world import rewrite
from tests.tail import crossed

USES = {
    "inspect": ("inspect", "{}"),
    "deep": ("inspect", "--deep", "{}"),
    "diff": ("diff", "a", "{}"),
    "mix": ("mix", "a", "{}:0.5", "-o", "out.safetensors"),
    "resize": ("resize", "--rank", "2", "{}", "-o", "out.safetensors"),
    "bake": ("bake", "-b", "base", "{}", "-o", "out.safetensors"),
    "base": ("bake", "-o", "out.safetensors", "a", "-b", "{}"),
    "trained-on": ("bake", "-b", "base", "a", "-o", "out.safetensors", "--trained-on", "{}"),
}


def _header(entries, data=b""):
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def _zip():
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x", "y")
    return buffer.getvalue()


CONTENTS = {
    "empty": b"",
    "text": b"dear diary, today I renamed a text file to something else",
    "short-text": b"hi",
    "zip": _zip(),
    "html": b"<!DOCTYPE html><html><body>404: not found</body></html>" * 20,
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 144\n",
    "length-only": struct.pack("<Q", 2**63),
    "no-json": struct.pack("<Q", 8) + b"{" * 8,
    "list": struct.pack("<Q", 2) + b"[]",
    "deep-json": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    "gap": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "too-long": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)),
    "huge": _header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "negative": _header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "odd-type": _header({"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
}


@pytest.fixture
def quick(run):
    """The base, quick to read: few of these commands get as far as to use it."""
    return run


@pytest.mark.parametrize(("content", "use"), crossed(CONTENTS, USES))
def test_files_that_are_not_what_they_are_named(quick, use, content):
    (quick.folder / "bad.safetensors").write_bytes(CONTENTS[content])
    command = [word.format("bad.safetensors") for word in USES[use]]
    result = quick.refused(3, *command, says="bad.safetensors")
    assert "hint" in result.err


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999])
def test_truncated_files(quick, use, share):
    name = "base.safetensors" if use in ("base", "trained-on") else "a.safetensors"
    raw = (quick.folder / name).read_bytes()
    (quick.folder / "cut.safetensors").write_bytes(raw[: int(share * len(raw))])
    quick.refused(3, *[w.format("cut.safetensors") for w in USES[use]], says="cut.safetensors")


@pytest.mark.parametrize("use", USES)
def test_folders_in_place_of_files(quick, use):
    (quick.folder / "bad.safetensors").mkdir()
    result = quick(*[word.format("bad.safetensors") for word in USES[use]])
    assert result.code in (3, 4) and "bad.safetensors" in result.err
    assert not (quick.folder / "out.safetensors").exists()


@pytest.mark.parametrize("use", USES)
def test_files_that_are_not_there(quick, use):
    quick.refused(
        3, *[word.format("bad.safetensors") for word in USES[use]], says="bad.safetensors"
    )


@pytest.mark.parametrize("use", [u for u in USES if u not in ("inspect", "deep")])
def test_files_without_tensors(quick, use):
    (quick.folder / "none.safetensors").write_bytes(safetensors_bytes({}))
    code = 4 if use in ("base", "trained-on") else 5
    quick.refused(code, *[w.format("none.safetensors") for w in USES[use]], says="none.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth"])
@pytest.mark.parametrize("content", ["text", "zip", "empty"])
def test_pickles_that_are_none(run, suffix, content):
    pytest.importorskip("torch")
    (run.folder / f"bad{suffix}").write_bytes(CONTENTS[content])
    run.refused(3, "mix", f"bad{suffix}", "-o", "out.safetensors", says=f"bad{suffix}")
    run.refused(3, "bake", "-b", f"bad{suffix}", "a", "-o", "out.safetensors", says=f"bad{suffix}")


@pytest.mark.parametrize("weight", ["1e39", "-1e39", "1e300"])
def test_weights_no_type_can_hold(run, weight):
    refusal = 7 if abs(float(weight)) < 3.4e38 else 2  # more is not a weight at all
    for name in "ab":
        for options in ((), ("--to", "diffusers"), ("--dtype", "float32"), ("--rank", "2")):
            before = run.state()
            result = run("mix", f"{name}:{weight}", "-o", "out.safetensors", *options)
            assert result.code in (0, refusal) and "bug" not in result.err, result.err
            if result.code == refusal:
                assert run.state() == before
            else:  # an alpha in the header holds any number
                (run.folder / "out.safetensors").unlink()
    run.refused(refusal, "bake", "-b", "base", f"a:{weight}", "-o", "out.safetensors")


def test_adapters_against_themselves(run):
    assert run.ok("diff", "a", "a", "--exit-code")
    run.ok("mix", "a:0.5", "a:0.5", "-o", "whole.safetensors")
    assert run.ok("diff", "a", "whole", "--exit-code")
    run.refused(2, "mix", "a:0", "-o", "out.safetensors")
    result = run("mix", "a:1", "a:-1", "-o", "out.safetensors", "--rank", "2")
    assert result.code in (0, 2, 5) and "Traceback" not in result.err and "bug" not in result.err


def test_shapes_that_disagree(run):
    def widen(arrays, metadata):
        key = next(k for k in arrays if k.endswith("lora_down.weight"))
        arrays[key] = np.ones((arrays[key].shape[0] + 1, arrays[key].shape[1]), "float16")

    rewrite(run.folder / "a.safetensors", run.folder / "odd.safetensors", widen)
    assert run.ok("inspect", "odd", "--json").json[0]["findings"][0]["severity"] == "error"
    for use in ("diff", "mix", "resize", "bake"):
        run.refused(5, *[w.format("odd.safetensors") for w in USES[use]], says="odd.safetensors")


def _without_privileges():
    """Give up root's right to pass over file permissions, for the process to be started."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def _bound(run, *arguments):
    """Run where file permissions bind."""
    options = {}
    if os.geteuid() == 0:
        if not sys.platform.startswith("linux"):
            pytest.skip("root passes over permissions here")
        options["preexec_fn"] = _without_privileges
    done = run.process(*arguments, **options)
    assert b"Traceback" not in done.stderr and b"bug" not in done.stderr, done.stderr
    return done


@pytest.mark.skipif(os.name == "nt", reason="permissions differ there")
def test_files_nobody_may_read_and_folders_nobody_may_write(run):
    (run.folder / "secret.safetensors").write_bytes((run.folder / "a.safetensors").read_bytes())
    (run.folder / "secret.safetensors").chmod(0)
    for name in ("a.safetensors", "base.safetensors"):
        (run.folder / name).chmod(0o644)
    done = _bound(run, "mix", "secret", "-o", "out.safetensors")
    assert done.returncode == 3 and b"secret.safetensors" in done.stderr
    done = _bound(run, "inspect", "a", "secret")
    assert done.returncode == 3 and b"secret.safetensors" in done.stderr
    run.folder.chmod(0o555)
    try:
        before = run.state()
        for command in (("mix", "a:0.5"), ("bake", "-b", "base", "a"),
                        ("mix", "a", "--to", "peft", "-o", "out"),
                        ("inspect", "a", "--json-file", "x.json"),
                        ("resize", "--rank", "2", "a", "--out-dir", "new")):  # fmt: skip
            done = _bound(run, *command)
            assert done.returncode == 3, (command, done.stderr)
        assert run.state() == before
    finally:
        run.folder.chmod(0o755)
    home = run.folder.parent / "loramerge-home"  # a home that cannot be written costs time only
    home.mkdir(exist_ok=True)
    home.chmod(0o555)
    try:
        assert _bound(run, "inspect", "a", "--hash").returncode == 0
        done = _bound(run, "base", "add", "x", "base.safetensors")
        assert done.returncode == 3 and b"registry.json" in done.stderr
    finally:
        home.chmod(0o755)


def test_a_full_disk(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    for command in (("mix", "a:0.5"), ("resize", "--rank", "2", "a"), ("bake", "-b", "base", "a")):
        run.refused(3, *command, "-o", "out.safetensors", says="not enough free space")


def test_a_write_that_fails_halfway(run, monkeypatch):
    from loramerge.files.positioned import PositionedFile

    def full(self, offset, view):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PositionedFile, "_write_some", full)
    for command in (("mix", "a:0.5"), ("resize", "--rank", "2", "a")):
        run.refused(3, *command, "-o", "out.safetensors", says="disk is full")


def test_reports_never_replace_what_the_same_command_reads_or_writes(run):
    resize = ("resize", "--rank", "2", "a", "-o", "out.safetensors")
    run.refused(3, *resize, "--json-file", "out.safetensors", says=("same command", "--json-file"))
    run.refused(3, *resize, "--results", "./out.safetensors", says=("same command", "--results"))
    run.refused(3, *resize, "--json-file", "x", "--results", "x", says="same command")
    run.refused(3, *resize, "--json-file", "x", "--save-recipe", "x", says="same command")
    recipe = run.folder / "recipe.yaml"
    recipe.write_text(
        '{"version": 1, "inputs": {"x": "a.safetensors"},'
        ' "steps": {"s": {"resize": {"adapter": "x", "rank": 2}, "save": "o.safetensors"}}}'
    )
    run.refused(3, "run", "recipe.yaml", "--json-file", "recipe.yaml", says="same command")
    run.refused(3, "plan", "recipe.yaml", "--json-file", "recipe.yaml", says="same command")
    run.refused(3, "run", "recipe.yaml", "--json-file", "o.safetensors", says="same command")
    result = run("mix", "a:0.5", "--json-file", "a@0.5.safetensors")  # the name that it chose
    assert result.code == 3 and "same command" in result.err
    run.ok("inspect", "a@0.5.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="no devices in files there")
def test_devices_stay_devices(run):
    run.ok("inspect", "a", "--json-file", "/dev/null")
    run.ok("resize", "--rank", "2", "a", "-o", "out.safetensors", "--results", "/dev/null")
    (run.folder / "null.safetensors").symlink_to("/dev/null")
    for command in (("mix", "a:0.5"), ("bake", "-b", "base", "a")):
        run.refused(3, *command, "-o", "null.safetensors", "--force", says="a device")
    assert Path("/dev/null").is_char_device()


ESCAPE = "\x1b[31mred\x1b[0m\u202e\x9b\x7f\x07"


def test_no_escape_code_reaches_the_terminal(run):
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    entries = {
        f"key{ESCAPE}": tensor,
        "__metadata__": {f"ss_{ESCAPE}": ESCAPE, "ss_network_dim": ESCAPE},
    }
    (run.folder / "odd.safetensors").write_bytes(_header(entries, bytes(4)))
    shutil.copy("a.safetensors", f"name{ESCAPE}.safetensors")
    (run.folder / "odd.yaml").write_text(
        'version: 1\nsteps: {"s\\e[31m": {mix: {adapters: ["x\\e[5m\\u202e"]}}}\n'
    )
    (run.folder / "names.yaml").write_text(
        'version: 1\nsteps: {"s\\u202e": {mix: {adapters: [a.safetensors]}, save: "x\\x9b"}}\n'
    )
    name = f"name{ESCAPE}.safetensors"
    for command in (
        ("inspect", "odd"), ("inspect", "odd", "--json"), ("meta", "odd", "--json"),
        ("plan", "names.yaml", "--dot"), ("plan", "names.yaml", "--json"), ("meta", "odd.safetensors"),
        ("mix", "odd", "-o", "x.safetensors"),
        ("inspect", name), ("inspect", f"no{ESCAPE}"), ("mix", f"{name}:0.5", "-f"), (ESCAPE,),
        ("inspect", f"--{ESCAPE}"), ("plan", "odd.yaml"), ("diff", "a", name), ("run", f"{ESCAPE}.yaml"),
    ):  # fmt: skip
        result = run(*command)
        shown = result.out + result.err
        assert result.code != 70 and shown, result
        assert not set(shown) & set("\x1b\x07\u202e\x9b\x7f"), (command, shown)


@pytest.mark.parametrize("how", ["cut", "edited", "gone"])
def test_a_file_that_changes_while_it_is_mixed(run, monkeypatch, how):
    """Its header is read, then somebody downloads it again: never half of one and half of the other."""
    path = run.folder / "b.safetensors"

    def change(*args, **options):
        raw = path.read_bytes()
        if how == "gone":
            release(path)
            path.unlink()
            path.write_bytes(raw[:100])
        elif how == "cut":
            os.truncate(path, len(raw) // 2)
        else:
            with path.open("r+b") as file:
                file.seek(-1, 2)
                file.write(bytes([raw[-1] ^ 1]))
            os.utime(path, ns=(1, 1))
        return mix_adapters(*args, **options)

    monkeypatch.setattr("loramerge.verbs.mix.mix_adapters", change)
    result = run("mix", "a", "b", "-o", "out.safetensors")
    assert result.code == 3 and "b.safetensors" in result.err and "Traceback" not in result.err
    assert {path.name for path in run.folder.iterdir()} == {
        "a.safetensors", "b.safetensors", "base.safetensors",
    }  # fmt: skip


def test_messages_have_an_end(run):
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    keys = {"k" * 5000: tensor} | {f"strange.{i}.thing": tensor for i in range(3000)}
    (run.folder / "odd.safetensors").write_bytes(_header(keys))
    for command in (("inspect", "odd"), ("mix", "odd"), ("inspect", "n" * 200_000)):
        result = run(*command)
        assert len(result.out + result.err) < 20_000


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, str(2**63), "1e400"])
def test_numbers_that_are_too_large_are_said_to_be(run, number):
    resize = ("resize", "a", "-o", "out.safetensors")
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {a: a.safetensors}\n"
        f"steps: {{s: {{resize: {{adapter: a, rank: {number}}}, save: out.safetensors}}}}\n"
    )
    for command in (
        (*resize, "--rank", number), (*resize, "--energy", number),
        ("mix", "a", "--rank", f"-{number}"), ("plan", "r.yaml"), ("run", "r.yaml"),
        ("preview", "--base", "tiny", "--seed", number),
        ("preview", "--base", "tiny", "--steps", number),
        ("train", "--base", "tiny", "--images", ".", "--seed", number),
    ):  # fmt: skip
        result = run(*command)
        assert result.code in (2, 6), (command[:4], result.code, result.err[:300])
        assert len(result.err) < 4000


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home: no HOME, and no entry in the system's list, as in some containers."""
    pwd = pytest.importorskip("pwd")

    def nobody(_):
        raise KeyError("no such user")

    for name in ("HOME", "LORAMERGE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)


@pytest.mark.skipif(sys.platform == "win32", reason="homes are found otherwise there")
def test_a_user_without_home(run, homeless):
    run.ok("inspect", "a", "--hash")
    run.ok("mix", "a:0.5", "-o", "out.safetensors")
    run.ok("base", "list")
    run.ok("bake", "-b", "tiny", "zuzu", "-o", "baked")
    run.refused(4, "diff", "zuzu", "tiny", says="error: tiny: this is a checkpoint")
    run.refused(3, "inspect", "nothing", says="nothing")
    run.refused(3, "base", "add", "x", "a.safetensors", says="LORAMERGE_HOME")
    run.refused(3, "library", "add", ".", says="LORAMERGE_HOME")
    run.refused(3, "library", "add", "~/loras", says="~")
    run.refused(3, "inspect", "~/loras/x.safetensors", says="~/loras/x.safetensors")
    assert not (run.folder / "~").exists()


@pytest.mark.skipif(os.name != "posix", reason="streams close otherwise there")
def test_a_reader_that_leaves_does_not_change_the_exit_code(run):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for command, code in (
            (("diff", "a", "b", "--exit-code", "--json"), 1),
            (("mix", "nothing"), 3),
        ):
            done = run.process(*command, stdout=writer)
            assert done.returncode == code, done.stderr
            assert b"bug" not in done.stderr and b"Traceback" not in done.stderr
    finally:
        os.close(writer)


@pytest.mark.skipif(os.name != "posix", reason="streams close otherwise there")
def test_closed_output_does_not_change_the_exit_code(run):
    import subprocess

    root = Path(__file__).resolve().parents[2]
    line = f"cd {run.folder} && {sys.executable} -m loramerge diff a b --exit-code >&- 2>&-"
    done = subprocess.run(
        ["sh", "-c", line], env={**os.environ, "PYTHONPATH": str(root)}, check=False, timeout=120
    )
    assert done.returncode == 1
    run.ok("inspect", "a", "b")  # nothing was written over them


_ADDRESS = "https://example.com/a.safetensors"


@pytest.mark.usefixtures("no_network")
def test_no_command_and_no_recipe_reads_the_network(run):
    """An address is the name of a file that is not there."""
    run.ok("mix", "a:0.5", "b", "-o", "m.safetensors")
    run.ok("bake", "--base", "base.safetensors", "m.safetensors", "-o", "baked.safetensors")
    run.ok("run", "m.safetensors")
    for command in (("mix", f"{_ADDRESS}:0.5", "-o", "x"), ("inspect", _ADDRESS)):
        run.refused(3, *command)
    run.refused(3, "bake", "--base", _ADDRESS, "a", "-o", "x.safetensors")
    recipe = {"mix": {"adapters": [_ADDRESS]}, "save": "x"}
    recipe = json.dumps({"version": 1, "steps": {"m": recipe}})
    Path("r.yaml").write_text(recipe, "utf-8")
    for command in ("plan", "run"):
        assert run(command, "r.yaml").code != 0
    assert not Path("x").exists()
