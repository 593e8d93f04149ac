"""The language model on questions with answers: losses, right answers, and perplexity of English.

Adapters change only the last layers. What the layers below give is the same for all of them, and is
computed once for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.languagebench.tasks import Example

__all__ = ["Batch", "Language"]

_IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Texts as the layers below left them.

    Args:
        hidden: (texts, tokens, width).
        targets: (texts, tokens), the next token where it is part of an answer, else −100.
    """

    hidden: Any
    targets: Any

    def rows(self, chosen: Any) -> Batch:
        """Return some of the texts."""
        return Batch(self.hidden[chosen], self.targets[chosen])


class Language:
    """The model, its tokenizer, and the first layer that adapters change.

    Args:
        folder: of transformers, with tokenizer.json.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tokenizers import Tokenizer
        from transformers.models.llama.modeling_llama import LlamaForCausalLM

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.requires_grad_(False).eval()
        self.first = first

    @property
    def layers(self) -> range:
        """Return the numbers of the layers that adapters change."""
        return range(self.first, len(self.model.model.layers))

    def batch(self, texts: Sequence[Example]) -> Batch:
        """Return questions with their answers; text after a question counts."""
        ids, targets = [], []
        for one in texts:
            asked = len(self.tokenizer.encode(one.question).ids)
            # an answer begins with a space, so the tokens of the question stay as they are
            whole = torch.tensor(self.tokenizer.encode(one.question + one.answer).ids)
            wanted = whole[1:].clone()
            wanted[: max(0, asked - 1)] = _IGNORED
            ids.append(whole[:-1])
            targets.append(wanted)
        # what stands after a text changes nothing in it: no token sees those that follow it
        padded = pad_sequence(ids, batch_first=True)
        with torch.no_grad():
            hidden = self._through(self.model.model.embed_tokens(padded), range(self.first))
        return Batch(hidden, pad_sequence(targets, batch_first=True, padding_value=_IGNORED))

    def losses(self, batch: Batch) -> tuple[Any, Any]:
        """Return the mean loss of each answer, and whether its most probable tokens are all right.

        The most probable token, given the right ones before it, is right everywhere exactly if greedy
        decoding gives the answer.
        """
        hidden = self._through(batch.hidden, self.layers)
        counted = batch.targets != _IGNORED
        wanted = batch.targets[counted]
        logits = self.model.lm_head(self.model.model.norm(hidden[counted]))
        loss = functional.cross_entropy(logits, wanted, reduction="none")
        right = (logits.detach().argmax(-1) == wanted).to(loss.dtype)
        owners = counted.nonzero()[:, 0]
        many = counted.sum(1)
        total = loss.new_zeros(len(many)).index_add(0, owners, loss)
        hits = loss.new_zeros(len(many)).index_add(0, owners, right)
        return total / many, hits == many

    def _through(self, hidden: Any, layers: range) -> Any:
        places = torch.arange(hidden.shape[1])[None]
        rotation = self.model.model.rotary_emb(hidden, places)
        for number in layers:
            hidden = self.model.model.layers[number](
                hidden, attention_mask=None, position_ids=places, position_embeddings=rotation
            )
        return hidden
