"""The second proving ground from training to figures, on a tiny language model of random weights."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.builders.language import quiet

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")
pytest.importorskip("peft")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of three layers that reads bytes, where the ground keeps its model."""
    made = tmp_path / "smollm2"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    with quiet():
        transformers.LlamaForCausalLM(config).save_pretrained(made)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({one: place for place, one in enumerate(alphabet)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(made / "tokenizer.json"))
    return tmp_path


def test_losses_are_those_of_the_whole_model(folder: Path) -> None:
    from benchmarks.languagebench.network import Language
    from benchmarks.languagebench.tasks import TASKS, examples

    language = Language(folder / "smollm2", 1)
    texts = list(islice(examples(TASKS["record"], 0, test=True), 3))
    found, right = language.losses(language.batch(texts))
    for one, loss in zip(texts, found.tolist(), strict=True):
        asked, whole = (
            language.tokenizer.encode(text).ids
            for text in (one.question, one.question + one.answer)
        )
        labels = torch.tensor([[-100] * len(asked) + whole[len(asked) :]])
        expected = language.model(torch.tensor([whole]), labels=labels).loss
        assert loss == pytest.approx(float(expected), rel=1e-5)
    assert not right.any()


def test_a_run_measures_everything_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.languagebench import __main__ as command
    from benchmarks.languagebench import checkpoints, lessons, page, trial
    from benchmarks.languagebench.tasks import TASKS
    from benchmarks.proving import resizing
    from benchmarks.proving.cases import Case
    from benchmarks.proving.keeping import figures

    for name, task in TASKS.items():  # in a checkpoint, a module that an adapter lacks counts as 0
        monkeypatch.setitem(TASKS, name, replace(task, mlp=True))
    few = ("linear", "slerp", "ties", "svc")
    monkeypatch.setattr(trial, "FIRST", 1)
    monkeypatch.setattr(lessons, "_STEPS", 3)
    monkeypatch.setattr(resizing, "RULES", {"rank": (2,), "max_size": (2,)})
    monkeypatch.setattr(checkpoints, "METHODS", {"linear": {"scale": 0.75}, "ties": {}})
    monkeypatch.setattr(command, "operator_cases", lambda: [Case("operators", m) for m in few])
    monkeypatch.setattr(command, "scale_cases", lambda _: [Case("scales", "svc", "literal")])
    trial.language.cache_clear()
    command._measure(folder, folder, range(1))
    rows = figures(folder)
    assert all(math.isfinite(row["mean"]) for row in rows)
    by_table = {
        name: [row for row in rows if row["table"] == name] for name in ("resize", "scales")
    }
    assert len(by_table["resize"]) == 6
    assert by_table["scales"]
    for row in rows:
        if row["table"] == "checkpoints":  # what `merge` gives is what `mix` gives
            assert row["mean"] == pytest.approx(row["mix mean"], abs=2e-3)
    assert page.tables_of(rows, page.SHAPES.read_text("utf-8"))
    command._measure(folder, folder, range(1))
    assert figures(folder) == rows
    trial.language.cache_clear()
