"""Language models that serve as text encoders: Qwen3, Gemma 2 and Llama, with transformers' names.

A model with a head (`Qwen3ForCausalLM`) keeps the same layers in `model`, as ComfyUI's files do.
Both spellings are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loramerge.families.spec import Module, Parameter, Slot, Spelling, plain_slot
from loramerge.records import record

__all__ = [
    "DECODER_SIGN",
    "GEMMA2_2B",
    "LLAMA3_8B",
    "LLAVA_8B",
    "QWEN3_06B",
    "Decoder",
    "decoder_modules",
    "decoder_spellings",
]  # fmt: skip

# what stands in the names of every file of these encoders, for `Family.sign`
DECODER_SIGN = r"(?<!encoder[._])(?<![a-z])layers[._]\d+[._](?:self_attn|mlp)[._]"
_WITH_HEAD = "model."
_USUAL = ("input_layernorm", "post_attention_layernorm")


@record
class Decoder:
    """The numbers that tell one language model from another.

    Args:
        width, layers, hidden: hidden size, number of blocks, and width of the feed-forward.
        heads: of queries, and of keys and values.
        head: width of each.
        norms: of a block.
        normed: queries and keys have norms, too.
    """

    width: int
    layers: int
    hidden: int
    heads: tuple[int, int]
    vocabulary: int
    head: int = 128
    norms: tuple[str, ...] = _USUAL
    normed: bool = False


QWEN3_06B = Decoder(1024, 28, 3072, (16, 8), 151936, normed=True)
LLAMA3_8B = Decoder(4096, 32, 14336, (32, 8), 128256)
LLAVA_8B = replace(LLAMA3_8B, vocabulary=128320)
GEMMA2_2B = Decoder(
    2304, 26, 9216, (8, 4), 256000, 256,
    (*_USUAL, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)  # fmt: skip


def decoder_modules(decoder: Decoder, *, with_head: bool = False) -> Iterator[Module]:
    """Yield every layer with its path and full-width shape.

    Args:
        with_head: the paths are those of the model with an output layer, which has the rest in `model`.
    """
    layers = _layers(decoder)
    if not with_head:
        yield from layers
        return
    for module in layers:
        yield module._replace(path=_WITH_HEAD + module.path)
    yield Module("lm_head", "linear", (decoder.vocabulary, decoder.width), False)


def _layers(decoder: Decoder) -> Iterator[Module]:
    w = decoder.width
    queries, keys = (number * decoder.head for number in decoder.heads)
    yield Module("embed_tokens", "embedding", (decoder.vocabulary, w), False)
    for i in range(decoder.layers):
        layer = f"layers.{i}"
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield Module(f"{layer}.self_attn.{name}", "linear", (rows, w), False)
        yield Module(f"{layer}.self_attn.o_proj", "linear", (w, queries), False)
        for name in ("q_norm", "k_norm") if decoder.normed else ():
            yield Module(f"{layer}.self_attn.{name}", "norm", (decoder.head,), False)
        yield Module(f"{layer}.mlp.gate_proj", "linear", (decoder.hidden, w), False)
        yield Module(f"{layer}.mlp.up_proj", "linear", (decoder.hidden, w), False)
        yield Module(f"{layer}.mlp.down_proj", "linear", (w, decoder.hidden), False)
        for name in decoder.norms:
            yield Module(f"{layer}.{name}", "norm", (w,), False)
    yield Module("norm", "norm", (w,), False)


def _with_head(module: Module, parameter: Parameter) -> Slot:
    headed = module.path.startswith(_WITH_HEAD) or module.path == "lm_head"
    return Slot(f"{'' if headed else _WITH_HEAD}{module.path}.{parameter}")


def decoder_spellings(prefix: str) -> tuple[Spelling, ...]:
    """Return the spellings of the model; `prefix` is the one in a single file."""
    return (
        Spelling("comfyui", prefix, _with_head),
        Spelling("diffusers", "", plain_slot),
        Spelling("diffusers", "", _with_head),
    )
