"""verify and unbake of GGUF files: sound bakes hold, faults are found, and bytes come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.steps.references import parse_reference
from loramerge.verbs.bake import Bake, bake
from loramerge.verbs.unbake import Unbake, unbake
from loramerge.verbs.verify import Verify, verify
from tests.builders.bases import write_safetensors
from tests.stream.test_gguf import NAMES, ROWS, language
from tests.tail import tail


def peft_folder(path: Path) -> None:
    """Write an adapter of rank 2 for the modules of the file, a fifth of the weights in size."""
    random = np.random.default_rng(3)
    tensors = {}
    for name, module in NAMES.items():
        rows, columns = ROWS[name]
        stem = f"base_model.model.model.layers.0.{module}"
        up, down = random.standard_normal((rows, 2)), random.standard_normal((2, columns))
        tensors[f"{stem}.lora_B.weight"] = (0.01 * up).astype("float32")
        tensors[f"{stem}.lora_A.weight"] = down.astype("float32")
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    write_safetensors(path / "adapter_model.safetensors", tensors)


@pytest.mark.parametrize("kind", ["Q8_0", tail("Q6_K"), tail("Q4_K"), tail("Q4_0"), tail("F16")])
def test_a_bake_into_gguf(kind: str, tmp_path: Path) -> None:
    base, lora = language(tmp_path / "base.gguf", kind), tmp_path / "lora"
    peft_folder(lora)
    out, back = tmp_path / "out.gguf", tmp_path / "back.gguf"
    given = (parse_reference(f"{lora}:0.8"),)
    bake(Bake(base=str(base), adapters=given, output=str(out), allow_loss=True))
    found = verify(Verify(file=parse_reference(str(out))))
    assert found.holds, found.verdict
    free = (parse_reference(str(lora)),)
    strength = verify(Verify(file=parse_reference(str(out)), base=str(base), lora=free))
    assert strength.holds and strength.contents is not None, strength.verdict
    assert strength.contents.found[0].strength == pytest.approx(0.8, rel=0.05)
    twice = tmp_path / "twice.gguf"
    bake(Bake(base=str(out), adapters=given, output=str(twice), allow_loss=True, allow_again=True))
    wrong = verify(Verify(file=parse_reference(str(twice)), base=str(base), lora=given))
    assert not wrong.holds and "baked twice" in wrong.verdict
    assert not verify(Verify(file=parse_reference(str(base)), base=str(base), lora=given)).holds
    done = unbake(Unbake(checkpoint=str(out), lora=given, base=str(base), output=str(back)))
    assert done.restored == done.tensors > 0 and done.differing == 0
