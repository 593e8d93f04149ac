"""diffusers reads of diffusion transformers what the table says, and changes by it what we say.

Its pipelines' loaders work on networks of the family's names and narrow shapes; UNets and their text
encoders are those of `test_diffusers_loads`. One row runs by default, all of them behind `slow`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loramerge.adapter import Adapter
from loramerge.adapter.readers import reading
from loramerge.adapter.save import save
from loramerge.dialects import DIALECTS
from loramerge.dialects.programs import READERS
from tests.clients import written

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

PROGRAM = READERS["diffusers"]
UNETS = ("sd15", "sd21", "sdxl")
ROWS = sorted(
    {
        (family, dialect, form)
        for reads in PROGRAM.reads
        for family in reads.families
        if family not in UNETS
        for dialect in reads.dialects
        for form in reads.tried
    }
)
_DOWN = ".lora_A.weight"
DEFAULT = ("flux2-klein-4b", "kohya", "dora of outputs")


def _network_of(family: str, kind: str) -> Adapter:
    """An adapter of a kind on the network alone, without the text encoders."""
    adapter = written.adapter_of(family, kind)
    deltas = {s: d for s, d in adapter.deltas.items() if not s.component.startswith("text_encoder")}
    return replace(adapter, deltas=deltas)


@pytest.mark.parametrize(
    ("family", "dialect", "form"),
    [row if row == DEFAULT else pytest.param(*row, marks=pytest.mark.slow) for row in ROWS],
)
def test_it_reads_what_the_table_says(family: str, dialect: str, form: str, tmp_path: Path) -> None:
    from tests.peers import diffusers_networks as networks

    adapter = _network_of(family, form)
    path = tmp_path / "ours.safetensors"
    save(adapter, path, to=dialect)
    said = reading(adapter, PROGRAM, DIALECTS[dialect])
    assert said is not None
    found: Any = networks.load(path, family)
    expected = networks.expected(family, adapter)
    otherwise = {name for names in said.otherwise.values() for name in names}
    tags = {site.name: networks.places(family)[0].get((site.modules[0], site.parameter))
            for site in adapter.deltas}  # fmt: skip
    left = {tags[name][0] for name in said.unread if tags[name]}
    off = {tags[name][0] for name in otherwise if tags[name]}
    assert found.keys() == expected.keys() - left
    for tag, change in found.items():
        error = np.linalg.norm(change - expected[tag]) / np.linalg.norm(expected[tag])
        assert (error > 1e-4) == (tag in off), tag


ALPHAS = sorted(
    {
        (family, reads.alphas)
        for reads in PROGRAM.reads
        for family in reads.families
        if "comfyui" in reads.dialects and "lora" in reads.forms and reads.alphas != "unseen"
    }
)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "alphas"), ALPHAS)
def test_it_makes_of_alphas_what_the_table_says(family: str, alphas: str, tmp_path: Path) -> None:
    """Files in ComfyUI's dialect that others write with alphas, here half the rank."""
    from tests.peers import diffusers_networks as networks

    adapter = _network_of(family, "lora")
    path = tmp_path / "ours.safetensors"
    save(adapter, path, to="comfyui")
    tensors = load_file(path)
    for key in [key for key in tensors if key.endswith(_DOWN)]:
        rank = len(tensors[key])
        tensors[f"{key.removesuffix(_DOWN)}.alpha"] = np.array(rank / 2, "float32")
    save_file(tensors, path)
    if alphas == "refused":
        with pytest.raises(ValueError, match=r"contain `'lora'` substring|should be empty"):
            networks.load(path, family)
        return
    expected = networks.expected(family, adapter)
    found = networks.load(path, family)
    assert found.keys() == expected.keys()
    for tag, change in found.items():
        assert np.linalg.norm(change - 0.5 * expected[tag]) < 1e-4 * np.linalg.norm(expected[tag])
