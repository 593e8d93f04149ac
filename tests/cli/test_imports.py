"""What a command imports, and what works where torch is not installed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys

from tests.builders.commands import ROOT, state_of

HEAVY = {
    "torch",
    "numpy",
    "pydantic",
    "diffusers",
    "transformers",
    "accelerate",
    "ml_dtypes",
    "safetensors",
}
TORCH = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "pydantic"}

_AFTER = """
import atexit, os, sys
{before}
def tell():
    heavy = sorted(m for m in {names!r} if m in sys.modules and sys.modules[m] is not None)
    print("IMPORTED", heavy, file=sys.stderr)
atexit.register(tell)
from loramerge.cli.main import main
code = main({arguments!r})
sys.exit(code)
"""

# one after the other, each in a folder of its own: what one imports, it and all later ones tell
_EACH = """
import contextlib, io, json, os, sys
{before}
from loramerge.cli.main import main
told = []
for folder, arguments in {commands!r}:
    os.chdir(folder)
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(list(arguments))
    heavy = sorted(m for m in {names!r} if sys.modules.get(m) is not None)
    told.append((code, heavy, errors.getvalue(), out.getvalue()))
print(json.dumps(told))
"""


def _start(run, arguments, *, before="", env=None):
    """Run a command in a fresh process; return its exit code, what it imported, and its errors."""

    code = _AFTER.format(before=before, names=sorted(HEAVY | TORCH), arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run.folder, capture_output=True, text=True, check=False,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    imported = next(line for line in lines if line.startswith("IMPORTED "))
    errors = "\n".join(line for line in lines if not line.startswith("IMPORTED "))
    return (
        done.returncode,
        set(ast.literal_eval(imported.removeprefix("IMPORTED "))),
        errors,
        done.stdout,
    )


def _start_each(run, commands, *, before=""):
    """Run commands in one fresh process; return what `_start` does of each, by its command."""
    places = []
    for number, arguments in enumerate(commands):
        folder = run.folder.parent / f"place-{number}"
        shutil.copytree(run.folder, folder, copy_function=os.link)
        places.append((str(folder), arguments))
    code = _EACH.format(before=before, names=sorted(HEAVY | TORCH), commands=places)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {
        arguments: (code, set(imported), errors, out)
        for arguments, (code, imported, errors, out) in zip(commands, told, strict=True)
    }


LIGHT = [
        ("--help",), ("--version",), ("mix", "--help"), ("bake", "--help"), ("base", "list"),
        ("library", "list"), ("library", "search", "a"), ("dialects",), ("families",),
        ("inspect", "a"), ("inspect", "b", "--json"),
        ("inspect", "base"), ("inspect", "a", "--hash"), ("inspect", "a", "--metadata"),
        ("inspect", "p"), ("meta", "a"), ("meta", "b", "--strip", "--json"), ("convert", "--help"),
        ("train", "--help"), ("preview", "--help"),
]  # fmt: skip


def test_light_commands_import_nothing_heavy(run):
    run.ok("mix", "a", "--to", "peft", "-o", "p")
    run.ok("library", "scan", ".")
    for arguments, (code, imported, errors, _) in _start_each(run, LIGHT).items():
        assert code == 0, errors
        assert imported == set(), arguments


def test_completion_imports_nothing_heavy(run):
    for line in ("mix a", "bake --base ba", "mix a --to k", "in"):
        env = {"_LORAMERGE_COMPLETE": "bash_complete", "COMP_WORDS": f"loramerge {line}",
               "COMP_CWORD": str(len(line.split()))}  # fmt: skip
        code, imported, errors, _ = _start(run, (), env=env)
        assert code == 0, errors
        assert imported == set()


def test_importing_the_package_imports_nothing_heavy(run):
    code = (
        "import sys, loramerge as lm; dir(lm)\n"
        "assert not {'torch', 'numpy', 'click'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


WORK = [
    ("mix", "a:0.5", "b:0.5"), ("mix", "a", "b", "--rank", "2"), ("resize", "--rank", "2", "a"),
    ("resize", "--max-size", "50%", "b"), ("bake", "-b", "base", "a:0.8"), ("diff", "a", "b"),
    ("inspect", "a", "--deep", "--spectrum"), ("inspect", "a", "--base", "base"),
    ("mix", "a", "--to", "peft"),
    ("convert", "a", "--to", "diffusers", "--dtype", "float32"),
    ("bake", "-b", "base", "a", "--rounding", "stochastic"),
    ("library", "scan", "."), ("library", "similar", "a"), ("library", "duplicates"),
]  # fmt: skip


def test_work_on_the_cpu_leaves_torch_out(run):
    for arguments, (code, imported, errors, _) in _start_each(run, WORK).items():
        assert code == 0, errors
        assert not imported & TORCH and "numpy" in imported, arguments


NO_TORCH = (
    "sys.modules.update(dict.fromkeys(['torch', 'safetensors', 'diffusers', 'transformers']))"
)


def test_work_where_torch_is_not_installed(run):
    """The tour, and the first of what the test above shows not to try and import torch."""
    for code, _, errors, _ in _start_each(run, [WORK[0], ("demo",)], before=NO_TORCH).values():
        assert code == 0, errors


WITH_TORCH = [
        ("mix", "x.pt"), ("inspect", "x.pt"), ("resize", "--rank", "2", "x.bin"),
        ("bake", "-b", "x.ckpt", "a"), ("mix", "a:2", "--device", "cuda"),
        ("resize", "--rank", "2", "a", "--device", "cuda"), ("diff", "a", "b", "--device", "cuda:0"),
        ("train", "--base", "base", "--images", "."), ("preview", "--base", "base", "a"),
        ("demo", "--train"),
]  # fmt: skip


def test_commands_that_need_torch_name_it(run):
    for suffix in (".pt", ".bin", ".ckpt"):
        (run.folder / f"x{suffix}").write_bytes(b"pickled")
    before = run.state()
    found = _start_each(run, WITH_TORCH, before=NO_TORCH)
    for number, (arguments, (code, _, errors, out)) in enumerate(found.items()):
        assert code == 2 and "needs torch" in errors, arguments
        assert "pip install" in errors and "loramerge[" in errors, arguments
        assert "Traceback" not in errors and out == ""
        assert state_of(run.folder.parent / f"place-{number}") == before, arguments


# --- the checks themselves ------------------------------------------------------------------------


def test_a_heavy_import_would_be_noticed(run):
    found = _start_each(run, [("base", "list"), ("inspect", "a", "--deep"), ("library", "list")])
    assert ["numpy" in imported for _, imported, _, _ in found.values()] == [False, True, True]
    _, imported, _, _ = _start(run, ("base", "list"), before="import numpy")
    assert imported == {"numpy"}
    _, imported, _, _ = _start(run, ("inspect", "a", "--deep"))
    assert "numpy" in imported


def test_an_import_of_torch_would_be_noticed(run):
    (run.folder / "x.pt").write_bytes(b"pickled")
    before = "import types; sys.modules['torch.serialization'] = types.ModuleType('serialization')"
    stub = run.folder / "stub"  # torch itself takes seconds
    stub.mkdir()
    (stub / "torch.py").write_text("")
    _, imported, _, _ = _start(
        run, ("inspect", "x.pt"), before=f"{before}; sys.path.insert(0, {str(stub)!r})"
    )
    assert "torch" in imported


def test_a_missing_torch_is_missing_there(run):
    code = f"import sys; {NO_TORCH}\nimport torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "ModuleNotFoundError" in done.stderr
