"""Tiny language models of transformers, and PEFT adapters of them as PEFT saves them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "adapter_folder", "base_folder", "loaded", "logits", "opened", "quiet"]

_SIZES = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def _llama(tied: bool) -> Any:
    import transformers

    config = transformers.LlamaConfig(**_SIZES, tie_word_embeddings=tied, attention_bias=True)
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> Any:
    import transformers

    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    )


def _moe() -> Any:
    import transformers

    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            **_SIZES, head_dim=4, moe_intermediate_size=12, num_experts=3, num_experts_per_tok=2
        )
    )


def _stacked() -> Any:
    """GPT-OSS: all experts in one tensor, transposed; the second of its parameters is square."""
    import transformers

    sizes = _SIZES | {"intermediate_size": 8}
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**sizes, head_dim=4, num_local_experts=3, num_experts_per_tok=2)
    )


def _clip() -> Any:
    """Two encoders, of text and of pictures, whose layers have the same names."""
    import transformers

    sizes = {key: _SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    text = {
        **sizes,
        "num_attention_heads": 2,
        "vocab_size": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {**sizes, "num_attention_heads": 2, "image_size": 4, "patch_size": 2}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: _llama(False),
    "tied": lambda: _llama(True),
    "gpt2": _gpt2,
    "moe": _moe,
    "stacked": _stacked,
    "clip": _clip,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what transformers and PEFT say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base_folder(kind: str, folder: Path, shard: str = "2KB") -> Path:
    """Write a model in shards, as transformers saves it."""
    import torch

    torch.manual_seed(0)
    with quiet():
        model = MODELS[kind]()
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.data = torch.randn_like(value) * 0.3
        model.save_pretrained(folder, max_shard_size=shard)
    return folder


def opened(folder: Path) -> Any:
    """Load a model as transformers does."""
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    with quiet():
        return getattr(transformers, name).from_pretrained(folder)


def logits(model: Any) -> Any:
    """Return what a model says to a few tokens, and of a picture where it sees one."""
    import torch

    tokens = torch.tensor([[1, 2, 3, 5, 7, 1]])
    with torch.no_grad():
        if hasattr(model.config, "vision_config"):
            picture = torch.linspace(-1, 1, 3 * 4 * 4).reshape(1, 3, 4, 4)
            found = model.eval()(input_ids=tokens, pixel_values=picture)
            return torch.cat([found.text_embeds, found.image_embeds])
        return model.eval()(tokens).logits


def adapter_folder(
    base: Path, folder: Path, prepare: Callable[[Any], Any] | None = None, **config: Any
) -> Any:
    """Write an adapter with random values as PEFT saves it; return the model with it, not merged."""
    import peft
    import torch

    with quiet():
        model = opened(base)
        if prepare is not None:
            prepare(model)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, "lora_alpha": 3, **config}))
        torch.manual_seed(1)
        for name, value in wrapped.named_parameters():
            if value.requires_grad and "base_layer.weight" not in name:
                value.data.add_(torch.randn_like(value) * 0.3)  # tied factors share their values
        wrapped.save_pretrained(folder)
    return wrapped


def loaded(
    base: Path, folder: Path, prepare: Callable[[Any], Any] | None = None
) -> tuple[Any, Any]:
    """Load a folder with PEFT; return the model and the keys that are missing or not expected."""
    import peft

    with quiet():
        model = opened(base)
        if prepare is not None:
            prepare(model)
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        wrapped = peft.PeftModel(model, config)
        result = wrapped.load_adapter(str(folder), "default")
    return wrapped, (list(result.missing_keys), list(result.unexpected_keys))
