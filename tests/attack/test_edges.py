"""Damaged files beside tensors give a result, or a known exit code with one message.

`LORAMERGE_ATTACKS=20000 python -m pytest -m slow tests/attack/test_edges.py` tries as many; a failure
names its form and seed.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.attack.seeing import SEEING
from tests.attack.test_files import require_clean
from tests.attack.texts import damaged, tampered
from tests.builders.gguf import write_gguf
from tests.builders.samples import safetensors_bytes
from tests.tail import tail

_LAYER = "model.layers.0.self_attn.q_proj"
_CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
    "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}, "base_model_name_or_path": "org/x",
    "layers_to_transform": [0], "modules_to_save": None, "use_rslora": False, "init_lora_weights": True,
}  # fmt: skip
_MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1,
    "vocab_size": 8, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
_INDEX = {
    "metadata": {"total_size": 64},
    "weight_map": {f"{_LAYER}.weight": "model-00001-of-00001.safetensors"},
}
_RECIPE = {
    "version": 1, "inputs": {"a": "a.safetensors", "b": {"path": "b.safetensors"}},
    "vars": {"w": 0.5}, "sweep": {"k": [1, 2]},
    "steps": {
        "m": {"mix": {"adapters": ["a:${w}", {"adapter": "b", "weight": {"unet": 0.5}}]}},
        "r": {"resize": {"adapter": "m", "rank": "${k}"}, "save": "out/${k}.safetensors"},
    },
}  # fmt: skip
_STATE = {
    "version": 1, "running": ["out/2.safetensors"],
    "tasks": {
        "r[k=1]": {"key": "x", "output": "out/1.safetensors", "sha256": "0", "figures": {},
                   "seconds": 1},
    },
}  # fmt: skip
_LOCK = {"version": 1, "inputs": {"a": {"path": "a.safetensors", "sha256": "0"}}}
_WEIGHTS = {"unet": {"default": 0.5, "blocks": {"IN01": 1, "MID": 0}}, "te": 0.3, "*attn*": 2}
_MERGEKIT = {
    "merge_method": "ties", "base_model": "m", "dtype": "float16",
    "models": [{"model": "m", "parameters": {"weight": [0, 0.5, 1], "density": 0.5}}, {"model": "m"}],
}  # fmt: skip


def _peft(seed: random.Random) -> None:
    Path("p").mkdir()
    Path("p/adapter_config.json").write_text(tampered(_CONFIG, seed), "utf-8", "replace")
    tensors = {
        f"base_model.model.{_LAYER}.lora_{half}.weight": np.ones(shape, "f4")
        for half, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    Path("p/adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))


def _model(seed: random.Random) -> None:
    Path("m").mkdir()
    which = seed.randrange(3)
    for number, (name, content) in enumerate(
        (("config.json", _MODEL), ("model.safetensors.index.json", _INDEX))
    ):
        text = json.dumps(content) if which == number else tampered(content, seed)
        Path("m", name).write_text(text, "utf-8", "replace")
    tensors = {f"{_LAYER}.weight": np.ones((4, 4), "f4")}
    Path("m/model-00001-of-00001.safetensors").write_bytes(safetensors_bytes(tensors))


def _base(seed: random.Random) -> None:
    _model(seed)
    _peft(random.Random(0))
    Path("p/adapter_config.json").write_text(json.dumps(_CONFIG), "utf-8")


def _recipe(seed: random.Random) -> None:
    Path("r.yaml").write_text(tampered(_RECIPE, seed), "utf-8", "replace")


def _beside(name: str, content: Any) -> Callable[[random.Random], None]:
    def write(seed: random.Random) -> None:
        Path("r.yaml").write_text(json.dumps(_RECIPE), "utf-8")
        Path(name).write_text(tampered(content, seed), "utf-8", "replace")

    return write


def _text(name: str, content: Any) -> Callable[[random.Random], None]:
    return lambda seed: Path(name).write_text(tampered(content, seed), "utf-8", "replace") and None


def _pickle(seed: random.Random) -> None:
    torch = pytest.importorskip("torch")
    content: dict[Any, Any] = {
        f"lora_unet_x.lora_{half}.weight": torch.ones(*shape)
        for half, shape in (("up", (4, 2)), ("down", (2, 4)))
    }
    content[seed.choice(("lora_unet_x.alpha", "epoch", "x.y", 3))] = seed.choice(
        (1.0, True, [1.0], None, torch.tensor(2.0), {"a": torch.ones(1)}, "\x1b[31m", 10**400)
    )
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=seed.random() < 0.5)
    Path("x.pt").write_bytes(damaged(buffer.getvalue(), seed))


def _gguf(seed: random.Random) -> None:
    tensors = {"blk.0.attn_q.weight": (np.ones((4, 32), "f4"), "F32", (4, 32))}
    write_gguf(Path("x.gguf"), tensors, {"general.architecture": "llama"})
    Path("x.gguf").write_bytes(damaged(Path("x.gguf").read_bytes(), seed))


def _mark(seed: random.Random) -> None:
    """A quantised layer whose mark, a tensor of JSON, is tampered with."""
    mark = tampered({"format": "int8_tensorwise", "params": {"x": 1}}, seed).encode(
        "utf-8", "replace"
    )
    states = tampered({"blocksize": 64, "shape": [4, 16], "dtype": "float16"}, seed)
    layer = "model.diffusion_model.input_blocks.1.1.proj_in"
    tensors = {
        f"{layer}.weight": np.ones((4, 16), "i1"), f"{layer}.weight_scale": np.ones(1, "f4"),
        f"{layer}.comfy_quant": np.frombuffer(mark, "u1"),
        "model.y.weight": np.ones((32, 1), "u1"), "model.y.weight.absmax": np.ones(1, "f4"),
        "model.y.weight.quant_map": np.ones(16, "f4"),
        "model.y.weight.quant_state.bitsandbytes__nf4":
            np.frombuffer(states.encode("utf-8", "replace"), "u1"),
    }  # fmt: skip
    Path("q.safetensors").write_bytes(safetensors_bytes(tensors))


# form → (what writes it, the commands that read it)
FORMS: dict[str, tuple[Callable[[random.Random], None], tuple[tuple[str, ...], ...]]] = {
    "a PEFT folder": (_peft, (("inspect", "p"), ("mix", "p", "-o", "out.safetensors"))),
    "a model's folder": (_base, (("inspect", "m"), ("bake", "-b", "m", "p", "-o", "out"))),
    "a recipe": (_recipe, (("plan", "r.yaml"), ("run", "r.yaml"))),
    "a state": (_beside("r.state.json", _STATE), (("plan", "r.yaml"), ("run", "r.yaml"))),
    "a lock": (_beside("r.lock.json", _LOCK), (("plan", "r.yaml"), ("run", "r.yaml"))),
    "weights": (_text("w.yaml", _WEIGHTS),
                (("mix", "a", "b", "--weights", "a=w.yaml", "-o", "out.safetensors"),)),
    "mergekit's recipe": (_text("k.yaml", _MERGEKIT), (("recipes", "--from-mergekit", "k.yaml"),)),
    "a pickle": (_pickle, (("inspect", "x.pt"), ("mix", "x.pt", "-o", "out.safetensors"))),
    "GGUF": (_gguf, (("inspect", "x.gguf"),)),
    "a mark of quantisation": (_mark, (("inspect", "q.safetensors"),
                                       ("bake", "-b", "q.safetensors", "a", "-o", "out.safetensors"))),
    **SEEING,
}  # fmt: skip
MADE = ("p", "m", "r.yaml", "r.state.json", "r.lock.json", "w.yaml", "k.yaml", "x.pt", "x.gguf",
        "q.safetensors", "out", "out.safetensors", "out.svg", "d", "k.safetensors", "p.safetensors",
        "m.safetensors", "x.safetensors")  # fmt: skip


def attack(run, form: str, number: int) -> None:
    """Give the form of a seed to one of the commands that read it, and judge what that did."""
    for name in MADE:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
    write, commands = FORMS[form]
    write(random.Random(f"{form} {number}"))
    command = commands[number % len(commands)]
    before = {path.name for path in Path().iterdir()}
    result = run(*command)
    said = f"{form}, seed {number}: {' '.join(command)}: {result.code}: {result.err[-600:]}"
    require_clean(result, said)
    new = {path.name for path in Path().iterdir()} - before
    if result.code > 1 and command[0] != "run":  # which keeps the steps that were done
        assert not new, said
    assert new <= {"out", "out.safetensors", "out.svg", "r.state.json", "r.lock.json"}, said


@pytest.mark.parametrize("form", [tail(f) if f == "a pickle" else f for f in FORMS])
def test_a_few_tampered_edges(run, form):
    for number in range(len(FORMS[form][1]) if form in SEEING else 2):
        attack(run, form, number)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_many_tampered_edges(run, form):
    many = int(os.environ.get("LORAMERGE_ATTACKS", "4000")) // len(FORMS)
    failed = []
    for number in range(1000, 1000 + many):
        try:
            attack(run, form, number)
        except (Exception, SystemExit) as error:
            failed.append(f"seed {number}: {type(error).__name__}: {str(error)[:600]}")
    assert not failed, f"{len(failed)} of {many}:\n" + "\n".join(failed[:20])
