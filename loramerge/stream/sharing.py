"""Weights that several layers of a language model share, and those that cannot be separated.

Source: the lists of tied weights in the models of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loramerge.adapter import Adapter
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.generic import model_config
from loramerge.checkpoint.naming import renaming
from loramerge.errors import AdapterError

__all__ = ["TIE", "head_of", "modules_of", "refuse_parts_of_shared", "shared_beside", "tied"]

TIE = "tie_word_embeddings"
# last level of an embedding → the output layer that may share its weight
_HEADS = {
    "embed_tokens": "lm_head",
    "wte": "lm_head",
    "word_embeddings": "lm_head",
    "embeddings": "lm_head",
    "tokens_embed": "lm_head",
    "embed_in": "embed_out",  # which transformers 5 reads as lm_head
}
_PREDICTIONS, _DECODER, _PROJECTION = (
    "cls.predictions.decoder",
    "lm_head.decoder",
    "output_projection",
)
# `model_type` → its output layer, where it is called otherwise
_HEADS_OF = {
    **dict.fromkeys(
        (
            *("bert", "big_bird", "deberta", "deberta-v2", "ernie", "fnet", "layoutlm"),
            *("megatron-bert", "mobilebert", "mra", "nomic_bert", "nystromformer", "roc_bert"),
            *("roformer", "squeezebert", "tapas", "yoso"),
        ),
        _PREDICTIONS,
    ),
    **dict.fromkeys(
        (
            *("bert-generation", "camembert", "data2vec-text", "esm", "gte", "ibert"),
            *("jina_embeddings_v3", "longformer", "mpnet", "roberta", "roberta-prelayernorm"),
            *("xlm-roberta", "xlm-roberta-xl", "xmod"),
        ),
        _DECODER,
    ),
    **dict.fromkeys(("biogpt", "trocr"), "output_projection"),
    **dict.fromkeys(("convbert", "electra"), "generator_lm_head"),
    **dict.fromkeys(("flaubert", "xlm"), "pred_layer.proj"),
    "albert": "predictions.decoder",
    "distilbert": "vocab_projector",
    "git": "output",
    "rwkv": "head",
    "ultrabert": "head.decoder",
    "whisper": "proj_out",
}
# `model_type` → last level of its embedding, and its output layer, where both are called otherwise
_PAIRS_OF = {
    "ctrl": ("w", "lm_head"),
    "modernbert": ("tok_embeddings", "decoder"),
    "modernbert-decoder": ("tok_embeddings", "decoder"),
    "modernvbert": ("tok_embeddings", "lm_head"),
    "xlnet": ("word_embedding", "lm_loss"),
}
# `model_type` → last level of a module → the layers that share its weight, beside the usual pair
_BESIDE = {
    "luke": {"entity_embeddings": "the output layer of entities shares"},
    "neomme": {"embedding_projection": "unembedding_projection shares"},
    "prophetnet": {"word_embeddings": "encoder, decoder and output layer share"},
}
_WITH_HEAD = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining",
)  # fmt: skip
_OF_BOTH = "shared"  # the embedding of T5's and BART's encoder and decoder


def modules_of(base: Checkpoint) -> Iterable[str]:
    """Return the modules of a base, each as often as it has parameters."""
    return (module for module, _ in base.slots)


def head_of(embedding: str, config: Mapping[str, Any]) -> str | None:
    """Return the output layer that may share an embedding's weight, by the embedding's last level."""
    kind, last = str(config.get("model_type")), embedding.rpartition(".")[2]
    if kind in _PAIRS_OF:
        own, head = _PAIRS_OF[kind]
        return head if last == own else None
    usual = _HEADS.get(last)
    return usual and _HEADS_OF.get(kind, usual)


def shared_beside(module: str, config: Mapping[str, Any]) -> str | None:
    """Return the layers that share a weight beside the usual pair; None if there are none."""
    found = _BESIDE.get(str(config.get("model_type")), {})
    return found.get(module.rpartition(".")[2])


def tied(base: Checkpoint) -> tuple[str, str]:
    """Return an embedding and the output layer that shares its weight; '' twice if none does."""
    config = model_config(base.files)
    said = _shares(config)
    for module in dict.fromkeys(modules_of(base)):
        head = head_of(module, config)
        if head is None or said is False:
            continue
        if (head, "weight") not in base.slots or said is True:
            return module, head
    return "", ""


def _shares(config: Mapping[str, Any]) -> bool | None:
    """Return whether a configuration shares the embedding; None if not stated, False without an
    output layer."""
    text = config.get("text_config")
    said = config.get(TIE, text.get(TIE) if isinstance(text, dict) else None)
    classes = config.get("architectures")
    named = classes if isinstance(classes, list) else ()
    return said if any(str(name).endswith(_WITH_HEAD) for name in named) else False


def refuse_parts_of_shared(base: Checkpoint, adapter: Adapter, weight: Weight) -> None:
    """Refuse to change a weight that layers share inseparably.

    The encoder and decoder of one model share an embedding, and T5 scales what it gives its output
    layer only where that shares it, too. Of other models the name of the output layer must be known.

    Raises:
        AdapterError: naming the module, and the layers that share its weight.
    """
    name = renaming((m for s in adapter.deltas for m in s.modules), modules_of(base))
    of = weight.on(adapter)
    config = model_config(base.files)
    for site in adapter.deltas:
        if site.parameter == "bias" or not of(site):
            continue
        module = name(site.modules[0])
        if (others := _sharing(base, module, config)) is not None:
            with naming(site, adapter.info.path):
                raise AdapterError(
                    f"{others} the weight of this module, so it cannot be changed alone",
                    hint="load the adapter beside the model, or give this module weight 0",
                )


def _sharing(base: Checkpoint, module: str, config: Mapping[str, Any]) -> str | None:
    """Return the layers that share the weight of a module inseparably; None if it is not shared."""
    last = module.rpartition(".")[2]
    if (others := shared_beside(module, config)) and _shares(config) is not False:
        return others
    if last in (_OF_BOTH, "embed_tokens", "lm_head") and any(
        m.rpartition(".")[2] == _OF_BOTH for m in modules_of(base)
    ):
        if _shares(config) is not False:
            return "encoder, decoder and output layer share"
        return None if last == "lm_head" else "encoder and decoder share"
    places = base.slots.get((module, "weight"))
    rows = config.get("vocab_size")
    if places is None or len(places[0].shape) != 2 or places[0].shape[0] != rows:
        return None
    if head_of(module, config) is not None or _shares(config) is False:
        return None
    tall = [
        m
        for (m, parameter), found in base.slots.items()
        if parameter == "weight" and len(found[0].shape) == 2 and found[0].shape[0] == rows
    ]
    return "the output layer, whose name is not known, shares" if tall == [module] else None
