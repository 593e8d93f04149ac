"""Two processes started by `accelerate launch` train as one that accumulates, save once, log once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from loramerge.cli.main import main  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from loramerge.train.device import workers  # noqa: E402
from loramerge.train.device.workers import ALONE, Workers  # noqa: E402
from tests.builders.commands import ROOT  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402

pytestmark = pytest.mark.peers
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torch's launcher needs libuv there")
def test_two_train_as_one_that_accumulates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "pictures", 6)
    asked = [
        "train", "--base", str(pipeline_folder()), "--images", "pictures", "--trigger", "zuzu",
        "--steps", "5", "--rank", "2", "--lr", "0.01", "--sample-every", "0", "--device", "cpu",
        "--regularisation", "auto", "--regularisation-count", "6",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCH, "-m", "loramerge", *asked, "-o", "two.safetensors"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written") == 1 and done.stdout.count("report.html") == 1
    monkeypatch.chdir(tmp_path)
    assert main([*asked, "--accumulate", "2", "-o", "one.safetensors", "-q"]) == 0
    two, one = (list(read_log(tmp_path / f"{name}-run" / "log.jsonl")) for name in ("two", "one"))
    assert [e["step"] for e in two] == list(range(5))
    for a, b in zip(two, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient"] == pytest.approx(b["gradient"], rel=1e-3)
    a, b = (read_safetensors(tmp_path / f"{name}.safetensors")[0] for name in ("two", "one"))
    assert a.keys() == b.keys()
    assert all(np.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_one_alone_changes_nothing() -> None:
    value = torch.ones(3, requires_grad=True)
    value.grad = torch.full((3,), 2.0)
    assert ALONE.mean([value], 1.5, 2) == 1.5 and value.grad.tolist() == [2.0] * 3
    assert ALONE.first and not Workers(1, 2).first


def test_images_of_all_processes_weigh_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads stand for processes; gradients go in pieces."""
    barrier, given, pieces = threading.Barrier(2), {}, []

    def all_reduce(value: Any) -> None:
        given[threading.get_ident()] = value.clone()
        barrier.wait()
        total = sum(given.values())
        barrier.wait()
        value.copy_(total)
        pieces.append(value.numel())

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(workers, "_pieces", partial(workers._pieces, most=4))
    parts = {3: ([1.0] * 3, 2.0), 1: ([5.0] * 3, 6.0)}  # images → gradient and loss

    def one(images: int) -> tuple[float, list[float]]:
        gradient, loss = parts[images]
        values = [torch.zeros(3, requires_grad=True) for _ in range(2)]
        for value in values:
            value.grad = torch.tensor(gradient)
        return Workers(0, 2).mean(values, loss, images), values[1].grad.tolist()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, parts))
    assert found == [(3.0, [2.0] * 3)] * 2
    assert sorted(pieces) == [1] * 4 + [3] * 4
