"""Tables recorded from diffusers and transformers agree with the versions that are installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from loramerge.stream.sharing import head_of, shared_beside
from tests.builders.transformer_classes import of_classes, recorded

pytestmark = [pytest.mark.slow, pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

_OF_BOTH = ".shared"  # embeddings of encoder and decoder, which no table tells


def test_the_transformers_of_diffusers_are_those_recorded() -> None:
    pytest.importorskip("diffusers")
    found = dict(of_classes())
    known = recorded()
    assert found.keys() == known.keys()
    assert [name for name, shapes in found.items() if shapes != known[name]] == []


def _tied() -> Iterator[tuple[str, str, str]]:
    """Yield (model type, output layer, embedding) of every language model that may share them."""
    transformers: Any = pytest.importorskip("transformers")
    auto: Any = pytest.importorskip("transformers.models.auto.modeling_auto")
    for table in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"):
        for kind, names in getattr(auto, table).items():
            model = getattr(transformers, names if isinstance(names, str) else names[0], None)
            pairs = getattr(model, "_tied_weights_keys", None)
            for head, embedding in pairs.items() if isinstance(pairs, dict) else ():
                of = embedding.rstrip("$").removesuffix(".weight")
                name = head.removesuffix(".weight")
                if name == head or of.endswith(_OF_BOTH):
                    continue
                # BLT says it the other way round: its embedding is that of the output layer
                yield (kind, of, name) if of == "lm_head" else (kind, name, of)


def test_output_layers_are_called_as_transformers_calls_them() -> None:
    found = list(_tied())
    if not found:
        pytest.skip("this version of transformers does not say which weights are tied to which")
    other = [
        (kind, head, embedding, ours)
        for kind, head, embedding in found
        if (ours := head_of(embedding, {"model_type": kind})) != head
        and (ours, head) != ("embed_out", "lm_head")  # renamed when it is read
        and not shared_beside(embedding, {"model_type": kind})
    ]
    assert other == []
