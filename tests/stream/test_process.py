"""Bakes in processes of their own: killed at any moment, and measured."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.save import save
from loramerge.errors import CorruptFile
from loramerge.families.unet import Unet, unet_modules
from loramerge.files.reader import TensorFile
from tests.builders.bases import write_safetensors
from tests.builders.deltas import adapter, low_rank

_ROOT = Path(__file__).resolve().parents[2]
# getrusage counts what the process had before it became another program: the tests' own memory
_PEAK = """
import sys
from pathlib import Path
def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
"""
_SCRIPT = f"""
{_PEAK}
from loramerge.adapter.load import load
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
base, lora, output, threads = sys.argv[1:5]
plan = plan_bake(open_checkpoint(base), [(load(lora), Weight(0.5))])
print("ready", flush=True)
def notify(event):
    print(event.done / event.total, flush=True)
bake(plan, Path(output), force=True, threads=int(threads), notify=notify)
print(peak(), flush=True)
"""
_READS_ALL = f"""
{_PEAK}
import numpy
held = [Path(name).read_bytes() for name in sys.argv[1:2]]
print(peak(), flush=True)
"""


def make(folder: Path, width: int) -> tuple[Path, Path]:
    """An SDXL UNet of one width, and a LoRA on all its linear layers; return both paths."""
    unet = Unet((width, width, width), (0, 2, 10), 10, width, True, added=width)
    modules = list(unet_modules(unet))
    block = np.random.default_rng(0).standard_normal(1 << 20).astype("float32")
    # of the smaller ones np.resize would keep whole copies of the block
    tensors = {
        f"{m.path}.weight": np.resize(block, m.shape)
        if math.prod(m.shape) > block.size
        else block[: math.prod(m.shape)].reshape(m.shape)
        for m in modules
    }
    tensors |= {f"{m.path}.bias": block[: m.shape[0]] for m in modules if m.bias}
    base, lora = folder / f"base{width}.safetensors", folder / f"lora{width}.safetensors"
    write_safetensors(base, tensors)
    deltas = {
        f"unet.{m.path}": low_rank(m.shape, 4, i, dtype="float16")
        for i, m in enumerate(modules)
        if m.layer == "linear"
    }
    a = adapter(deltas, families=["sdxl"])
    save(a, lora, to="kohya")
    return base, lora


def start(*arguments: object, script: str = _SCRIPT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    )


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.long_tail
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    base, lora = make(tmp_path, 96)
    assert base.stat().st_size > 50e6
    before = digest(base)
    output = tmp_path / "out.safetensors"
    with start(base, lora, output, 2) as whole:
        whole.communicate(timeout=60)
    wanted = digest(output)
    output.unlink()
    killed = 0
    for round_, moment in enumerate([0.0, *np.random.default_rng().random(2), 1.0]):
        old = round_ % 2 == 1
        if old:
            output.write_bytes(b"what was there")
        with start(base, lora, output, 2) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while moment and float(process.stdout.readline()) < moment:
                pass
            process.send_signal(signal.SIGKILL)
            killed += process.wait(60) == -signal.SIGKILL
        if output.exists() and digest(output) != wanted:
            assert old
            assert output.read_bytes() == b"what was there"
        assert digest(base) == before
        output.unlink(missing_ok=True)
        for left in tmp_path.glob(".out*"):
            assert left.name.endswith(".partial")
            if left.stat().st_size:
                # even by itself it does not look whole
                with pytest.raises(CorruptFile):
                    TensorFile(left)
            left.unlink()
    assert killed >= 3
    with start(base, lora, output, 1) as again:
        again.communicate(timeout=60)
    assert digest(output) == wanted


def peaks(folder: Path, script: str) -> list[int]:
    """Peak memory with a small and a large checkpoint, in bytes."""
    pytest.importorskip("resource")
    found, sizes = [], []
    for width in (32, 96):
        base, lora = make(folder, width)
        sizes.append(base.stat().st_size)
        with start(base, lora, folder / "out.safetensors", 2, script=script) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        found.append(int(output.split()[-1]))
    assert sizes[1] - sizes[0] > 45e6
    return found


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    small, large = peaks(tmp_path, _SCRIPT)
    assert large - small < 15e6  # only the adapter's factors are larger


def test_memory_that_grows_would_be_seen(tmp_path: Path) -> None:
    small, large = peaks(tmp_path, _READS_ALL)
    assert large - small > 45e6
