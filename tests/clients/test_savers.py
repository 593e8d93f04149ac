"""Files that programs save are read here, whole, and mean what the program means by them.

A program trains a network of its own on every sort of layer of a family, saves it, and answers probes
with it; the file, read here, must give the same answers. Checkouts are named as in `test_matrix`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge import families as known
from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from tests.clients import saved
from tests.clients.readers.job import Array

pytestmark = [pytest.mark.slow, pytest.mark.peers]
pytest.importorskip("torch")

CHECKOUTS = {
    "kohya": "LORAMERGE_SD_SCRIPTS",
    "lycoris": "LORAMERGE_LYCORIS",
    "musubi": "LORAMERGE_MUSUBI",
    "ai_toolkit": "LORAMERGE_AI_TOOLKIT",
    "onetrainer": "LORAMERGE_ONETRAINER",
    "diffusion_pipe": "LORAMERGE_DIFFUSION_PIPE",
    "simpletuner": "LORAMERGE_SIMPLETUNER",
}
FAMILIES = {
    "kohya": ("sd15", "sd21", "sdxl", "flux1", "sd3", "sd35-medium", "sd35-large", "lumina2", "anima"),
    "lycoris": ("sd15", "sdxl", "flux1", "sd3", "lumina2", "wan", "hunyuan-video", "qwen-image"),
    "musubi": ("wan", "hunyuan-video", "qwen-image", "flux1", "flux2-dev", "flux2-klein-4b",
               "flux2-klein-9b", "z-image", "hidream-o1"),
    "ai_toolkit": ("sd15", "sdxl", "flux1", "sd3", "lumina2", "qwen-image", "z-image"),
    "onetrainer": ("sd15", "sdxl", "sd3", "sd35-medium", "flux1", "flux2-klein-4b", "qwen-image",
                   "z-image", "hunyuan-video", "anima"),
    "diffusion_pipe": ("flux1", "wan", "qwen-image", "z-image", "sdxl", "sd3", "sd35-medium",
                       "sd35-large", "auraflow", "lumina2", "hunyuan-video", "hunyuan-video-15",
                       "hunyuan-image", "ltx-video", "ltx-2", "chroma", "cosmos2-14b",
                       "anima", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b", "hidream-i1",
                       "ernie-image", "ideogram4", "krea2"),
    "simpletuner": ("flux1", "qwen-image", "z-image", "sdxl", "sd3"),
}  # fmt: skip
ROWS = [(program, family) for program, families in FAMILIES.items() for family in families]
TOLERANCE = 1e-4
ROUNDING = 1e-5  # answers are differences of float32 numbers, whose rounding they keep
# OneTrainer exchanges the halves of rows that the original stores the other way round, but for these
# kinds, whose files then do otherwise than what it trained
UNTURNED = {"onetrainer": ("loha", "lokr")}
# musubi-tuner's converter gives the attention of Flux the names it has in HunyuanVideo, `img_attn_qkv`;
# no loader of Flux knows them, so the file is of no family, and we say which one it resembles
MISNAMED = {"musubi": ("flux1", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b")}
# blocks of these are named as those of Flux.1; widths tell them apart, and layers here are narrow
UNTOLD = ("hunyuan-image", "hunyuan-video-15")


@pytest.mark.parametrize(("program", "family"), ROWS)
def test_what_it_saves_is_read_as_it_means_it(program: str, family: str, tmp_path: Path) -> None:
    if not os.environ.get(CHECKOUTS[program]):
        pytest.skip(f"{CHECKOUTS[program]} names no checkout")
    report = _run(program, family, tmp_path)
    assert report
    amiss = {}
    for name in report:
        with np.load(tmp_path / f"{name}.npz") as answers:
            expected = dict(answers)
        file = tmp_path / f"{name}.safetensors"
        adapter = load(file if file.exists() else tmp_path / name)
        misnamed = name.endswith("converted") and family in MISNAMED.get(program, ())
        families = _families(adapter, misnamed=misnamed)
        found = saved.meaning(adapter, family, expected)
        faults = saved.turned_layers(family) if name.startswith(UNTURNED.get(program, ())) else ()
        off = sorted(_off(found, expected) - set(faults))
        keys, unknown = len(adapter.info.order), len(adapter.info.account.unknown)
        dialect = adapter.info.dialect
        what = f"{dialect}, {len(off)} layers off"
        sys.stdout.write(f"{program:14} {family:14} {name:24} {keys - unknown}/{keys}  {what}\n")
        told = family in families or family in UNTOLD
        if not told or unknown or off:
            amiss[name] = (families, list(adapter.info.account.unknown)[:3], off[:4])
    assert amiss == {}


def _run(program: str, family: str, folder: Path) -> Any:
    """Let the program save; the result is its report."""
    task = folder / "task.json"
    task.write_text(json.dumps(saved.task_of(family)))
    script = Path(saved.__file__).parent / "savers" / f"{program}.py"
    done = subprocess.run(
        [sys.executable, str(script), os.environ[CHECKOUTS[program]], str(task), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "report.json").read_text())


def _families(adapter: Adapter, *, misnamed: bool) -> list[str]:
    """Return the families that a file may be of; of misnamed ones, those that it resembles alone."""
    detection = adapter.info.detection
    twins = [name for name, family in known.FAMILIES.items() if family.title in detection.twins]
    candidates = [*(found.name for found in detection.candidates), *twins]
    return [*detection.resembles] if misnamed and not candidates else [] if misnamed else candidates


def _off(found: saved.Meaning, expected: dict[str, Array]) -> set[str]:
    """Layers that answer otherwise than the program's."""
    off = {tag for tag in found.answers if tag not in expected}
    strangers = list(found.strangers)
    for tag, answer in expected.items():
        given = found.answers.get(tag)
        if given is None and answer.any():
            given = next((s for s in strangers if _near(s, answer)), None)
        if (given is None and answer.any()) or (given is not None and not _near(given, answer)):
            off.add(tag)
    return off


def _near(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape:
        return False
    error = np.linalg.norm(found - expected)
    return bool(error <= TOLERANCE * np.linalg.norm(expected) + ROUNDING)
