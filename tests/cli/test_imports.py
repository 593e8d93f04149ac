"""What a command imports, and what works where torch is not installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from tests.builders.commands import ROOT

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


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("--version",), ("mix", "--help"), ("bake", "--help"), ("base", "list"),
        ("library", "list"), ("dialects",), ("families",), ("inspect", "a"), ("inspect", "b", "--json"),
        ("inspect", "base"), ("inspect", "a", "--hash"), ("inspect", "a", "--metadata"),
        ("inspect", "p"), ("meta", "a"), ("meta", "b", "--strip", "--json"), ("convert", "--help"),
        ("train", "--help"), ("preview", "--help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_light_commands_import_nothing_heavy(run, arguments):
    run.ok("mix", "a", "--to", "peft", "-o", "p")
    code, imported, errors, _ = _start(run, arguments)
    assert code == 0, errors
    assert imported == set()


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
]  # fmt: skip


@pytest.mark.parametrize("arguments", WORK, ids=" ".join)
def test_work_on_the_cpu_leaves_torch_out(run, arguments):
    code, imported, errors, _ = _start(run, arguments)
    assert code == 0, errors
    assert not imported & TORCH and "numpy" in imported


NO_TORCH = (
    "sys.modules.update(dict.fromkeys(['torch', 'safetensors', 'diffusers', 'transformers']))"
)


@pytest.mark.parametrize("arguments", [*WORK, ("demo",)], ids=" ".join)
def test_work_where_torch_is_not_installed(run, arguments):
    code, _, errors, _ = _start(run, arguments, before=NO_TORCH)
    assert code == 0, errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("mix", "x.pt"), ("inspect", "x.pt"), ("resize", "--rank", "2", "x.bin"),
        ("bake", "-b", "x.ckpt", "a"), ("mix", "a:2", "--device", "cuda"),
        ("resize", "--rank", "2", "a", "--device", "cuda"), ("diff", "a", "b", "--device", "cuda:0"),
        ("train", "--base", "base", "--images", "."), ("preview", "--base", "base", "a"),
        ("demo", "--train"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_needs_torch_says_so(run, arguments):
    for suffix in (".pt", ".bin", ".ckpt"):
        (run.folder / f"x{suffix}").write_bytes(b"pickled")
    before = run.state()
    code, _, errors, out = _start(run, arguments, before=NO_TORCH)
    assert (
        code == 2 and "needs torch" in errors and "pip install" in errors and "loramerge[" in errors
    )
    assert "Traceback" not in errors and out == ""
    assert run.state() == before


# --- the checks themselves ------------------------------------------------------------------------


def test_a_heavy_import_would_be_noticed(run):
    _, imported, _, _ = _start(run, ("base", "list"), before="import numpy")
    assert imported == {"numpy"}
    _, imported, _, _ = _start(run, ("inspect", "a", "--deep"))
    assert "numpy" in imported


def test_an_import_of_torch_would_be_noticed(run):
    pytest.importorskip("torch")
    (run.folder / "x.pt").write_bytes(b"pickled")
    code, imported, _, _ = _start(run, ("inspect", "x.pt"))
    assert code == 3 and "torch" in imported


def test_a_missing_torch_is_missing_there(run):
    code = f"import sys; {NO_TORCH}\nimport torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "ModuleNotFoundError" in done.stderr
