"""The template of Cosmos-Predict2, and of Anima, its 2B size with a text conditioner.

The modules are those of the networks that make images; for videos one more channel is patched in.
The text encoder of Anima is Qwen3 0.6B; that of Cosmos-Predict2, an older T5, is not covered.

Source of the names: diffusers' `CosmosTransformer3DModel` and `AnimaTextConditioner` (verified),
and the original single files as diffusers' `convert_cosmos_transformer_checkpoint_to_diffusers`
reads them (verified by conversion). Of the text encoder: transformers' `Qwen3Model` (verified), and
the names that sd-scripts' `lora_anima.py` (48d368fa) gives its modules. Of the sizes: the published
configurations.
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.families.decoder import DECODER_SIGN, QWEN3_06B, decoder_modules, decoder_spellings
from loramerge.families.spec import (
    Component,
    Family,
    Metadata,
    Module,
    Parameter,
    Slot,
    Spelling,
    plain_slot,
)
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    heads,
    native_slots,
    transformer_spellings,
)

__all__ = ["cosmos"]

_WRAPPER = "net."
_PREFIXES = ("", _WRAPPER, "model.diffusion_model.", "diffusion_model.")


def _linear(name: str, rows: str | int, columns: str | int, native: str) -> Row:
    return Row(name, "linear", (rows, columns), False, Native(native))


def _modulation(name: str, native: str, rows: str = "3w") -> tuple[Row, ...]:
    """Two layers through a narrow one, as all modulations are."""
    return (
        _linear(f"{name}.linear_1", 256, "w", f"{native}.1"),
        _linear(f"{name}.linear_2", rows, 256, f"{native}.2"),
    )


def _attention(name: str, native: str, context: str) -> tuple[Row, ...]:
    return (
        Row(f"{name}.norm_q", "norm", ("head",), False, Native(f"{native}.q_norm")),
        Row(f"{name}.norm_k", "norm", ("head",), False, Native(f"{native}.k_norm")),
        _linear(f"{name}.to_q", "w", "w", f"{native}.q_proj"),
        _linear(f"{name}.to_k", "w", context, f"{native}.k_proj"),
        _linear(f"{name}.to_v", "w", context, f"{native}.v_proj"),
        _linear(f"{name}.to_out.0", "w", "w", f"{native}.output_proj"),
    )


_BLOCK = (
    *_modulation("norm1", "adaln_modulation_self_attn"),
    *_attention("attn1", "self_attn", "w"),
    *_modulation("norm2", "adaln_modulation_cross_attn"),
    *_attention("attn2", "cross_attn", "text"),
    *_modulation("norm3", "adaln_modulation_mlp"),
    _linear("ff.net.0.proj", "4w", "w", "mlp.layer1"),
    _linear("ff.net.2", "w", "4w", "mlp.layer2"),
)
_TOP = (
    _linear("patch_embed.proj", "w", 68, "x_embedder.proj.1"),
    _linear("time_embed.t_embedder.linear_1", "w", "w", "t_embedder.1.linear_1"),
    _linear("time_embed.t_embedder.linear_2", "3w", "w", "t_embedder.1.linear_2"),
    Row("time_embed.norm", "norm", ("w",), False, Native("t_embedding_norm")),
    *_modulation("norm_out", "final_layer.adaln_modulation", "2w"),
    _linear("proj_out", 64, "w", "final_layer.linear"),
)


def _stacks(blocks: int) -> tuple[Stack, ...]:
    return (
        Stack("", "", (0,), _TOP),
        Stack("transformer_blocks.{}.", "blocks.{}.", range(blocks), _BLOCK),
    )


def _sizes(width: int) -> dict[str, int]:
    return {"w": width, **{f"{n}w": n * width for n in (2, 3, 4)}, "head": 128, "text": 1024}


def conditioner_modules(width: int = 1024, blocks: int = 6) -> Iterator[Module]:
    """Yield every layer of Anima's text conditioner with its path and full-width shape."""
    w = width
    yield Module("embed", "embedding", (32128, w), False)
    for i in range(blocks):
        for attention in ("self_attn", "cross_attn"):
            yield Module(f"blocks.{i}.norm_{attention}", "norm", (w,), False)
            for leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield Module(f"blocks.{i}.{attention}.{leaf}", "linear", (w, w), False)
            for leaf in ("q_norm", "k_norm"):
                yield Module(f"blocks.{i}.{attention}.{leaf}", "norm", (w // 16,), False)
        yield Module(f"blocks.{i}.norm_mlp", "norm", (w,), False)
        yield Module(f"blocks.{i}.mlp.0", "linear", (4 * w, w), True)
        yield Module(f"blocks.{i}.mlp.2", "linear", (w, 4 * w), True)
    yield Module("out_proj", "linear", (w, w), True)
    yield Module("norm", "norm", (w,), False)


def _in_single_file(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"llm_adapter.{module.path}.{parameter}")


_PROBES = (
    *(f"transformer_blocks.0.attn{n}.to_{x}" for n in (1, 2) for x in "qk"),
    "transformer_blocks.0.ff.net.2",
    "blocks.0.cross_attn.q_proj",
)
_SIGN = (
    r"(?<!\d[._])transformer_blocks[._]\d+[._](?:attn[12]|ff|norm[123])[._]"
    r"|blocks[._]\d+[._](?:self_attn|cross_attn|mlp|adaln)|llm_adapter|text_conditioner"
)


def cosmos(
    name: str, title: str, *, width: int, blocks: int, conditioned: bool, metadata: Metadata
) -> Family:
    """Make a family of one size.

    Args:
        width, blocks: of the transformer.
        conditioned: the text passes through Anima's encoder and conditioner.
    """
    stacks = _stacks(blocks)

    def build() -> tuple[Component, ...]:
        transformer = Component("transformer", tuple(expand(stacks, _sizes(width))))
        if not conditioned:
            return (transformer,)
        return (
            transformer,
            Component("text_conditioner", tuple(conditioner_modules())),
            Component("text_encoder", tuple(decoder_modules(QWEN3_06B))),
        )

    spellings = {
        "transformer": transformer_spellings("original", native_slots(stacks), _PREFIXES),
        "text_conditioner": (
            *(Spelling("original", prefix, _in_single_file) for prefix in _PREFIXES),
            Spelling("diffusers", "", plain_slot),
        ),
        "text_encoder": decoder_spellings("text_encoders.qwen3_06b.transformer."),
    }
    classes = {
        "transformer": "CosmosTransformer3DModel",
        "text_conditioner": "AnimaTextConditioner",
        "text_encoder": "Qwen3Model",
    }
    known = tuple(spellings) if conditioned else ("transformer",)
    # OneTrainer writes adapters with the names of the single file, whose wrapper it keeps
    networks = ("transformer", "text_conditioner") if conditioned else ("transformer",)
    own = {"bare": dict.fromkeys(networks, ("", _WRAPPER))}
    return Family(
        name=name,
        title=title,
        gguf="cosmos",
        build=build,
        spellings={component: spellings[component] for component in known},
        metadata=metadata,
        verified=(
            f"{'diffusers and transformers' if conditioned else 'diffusers'} models on the meta device, "
            "names and shapes; diffusers' converters of files"
        ),
        classes={component: classes[component] for component in known},
        prefixes=own
        | ({"kohya": {"text_encoder": ("lora_te_", "lora_te1_")}} if conditioned else {}),
        heads=(*heads(stacks), *(("llm_adapter.",) if conditioned else ())),
        marks={"bare": (_WRAPPER,)},
        sign=f"{_SIGN}|{DECODER_SIGN}" if conditioned else _SIGN,
        probes=_PROBES,
        programs={"comfyui": "comfyui"},
        one_alpha=False,
    )
