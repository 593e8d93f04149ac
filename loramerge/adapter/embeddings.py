"""Embeddings that travel with an adapter, as a dialect spells them."""

from __future__ import annotations

from loramerge.adapter.adapter import Adapter
from loramerge.dialects import Dialect
from loramerge.errors import NotExpressible, Setting
from loramerge.files.tensors import Tensor

__all__ = ["add_embeddings"]


def add_embeddings(adapter: Adapter, target: Dialect, pairs: dict[str, Tensor]) -> None:
    """Add the embeddings of an adapter to the tensors that will be written.

    Raises:
        NotExpressible: if the dialect cannot carry one of them.
    """
    for key, tensor in adapter.embeddings.items():
        if target.embeddings is None:
            raise NotExpressible(
                f"the dialect {target.name} cannot carry the embeddings of this adapter",
                file=adapter.info.path,
                module=key,
                hint=(
                    "write kohya: ",
                    Setting("to", "kohya"),
                    "; or leave them out: mix with ",
                    Setting("embeddings", "none"),
                    ", convert with ",
                    Setting("drop", "embeddings"),
                ),
            )
        spelled, shape = _embedding_spelling(key, tensor.shape, target)
        pairs[spelled] = tensor.reshaped(shape)


_BUNDLE, _BUNDLE_TAIL = "bundle_emb.", ".string_to_param.*"


def _embedding_spelling(
    key: str, shape: tuple[int, ...], target: Dialect
) -> tuple[str, tuple[int, ...]]:
    """Return key and shape of a carried embedding.

    lora_diffusion has `<token>` with one vector `(dim,)`; kohya files carry A1111's and LyCORIS'
    `bundle_emb.token.string_to_param.*` with `(vectors, dim)`.
    """
    if target.embeddings == "bundle" and not key.startswith(_BUNDLE):
        return f"{_BUNDLE}{key.strip('<>')}{_BUNDLE_TAIL}", shape if len(shape) == 2 else (
            1,
            *shape,
        )
    if target.embeddings == "token" and key.startswith(_BUNDLE):
        if key.endswith(_BUNDLE_TAIL) and len(shape) == 2 and shape[0] == 1:
            return f"<{key[len(_BUNDLE) : -len(_BUNDLE_TAIL)]}>", shape[1:]
        raise NotExpressible(
            "lora_diffusion holds one vector per embedding", module=key, found=list(shape)
        )
    return key, shape
