"""The parts of the tiny model: the networks with their sizes, the scheduler, the tokenizer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from loramerge.tiny.sprites import words

__all__ = ["autoencoder", "byte_pairs", "scheduler", "text_encoder", "tokenizer", "unet"]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CONTEXT, _TOKENS = 64, 24
_WIDTHS = (64, 88)


def unet() -> Any:
    """Return the UNet, 2.5 million parameters, as SD2's but in two resolutions, one resnet each."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=_WIDTHS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=_CONTEXT,
        attention_head_dim=(4, 4),
        norm_num_groups=8,
        use_linear_projection=True,
    )


def autoencoder() -> Any:
    """Return the VAE: 32 pixels to 8 latents of 4 channels, 0.8 million parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=32,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
    )


def text_encoder(vocabulary: int) -> Any:
    """Return the CLIP text encoder, two layers of width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=_CONTEXT,
            intermediate_size=4 * _CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=_TOKENS,
            projection_dim=_CONTEXT,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def scheduler() -> Any:
    """Return the scheduler: it predicts v, and its last step leaves nothing of the picture (as SD2)."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def byte_pairs(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Return the merges that make every word one token, the commonest pair first, ties by name.

    Source: Sennrich et al. (arXiv:1508.07909), algorithm 1, with CLIP's `</w>` on the last letter.
    """
    spelled = {word: (*word[:-1], f"{word[-1]}</w>") for word in vocabulary}
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for pieces in spelled.values():
            for pair in pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = {word: _merged(pieces, best) for word, pieces in spelled.items()}


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


def _bytes_as_letters() -> list[str]:
    """Return GPT-2's printable stand-ins for the 256 bytes, in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def tokenizer(folder: Path) -> Any:
    """Return CLIP's tokenizer for the words of the captions; any other word falls into its bytes.

    Args:
        folder: where `vocab.json` and `merges.txt` are written.
    """
    from transformers import CLIPTokenizer

    letters, merges = _bytes_as_letters(), byte_pairs(words())
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    entries += [left + right for left, right in merges] + [_START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {entry: number for number, entry in enumerate(entries)}
    vocabulary, pairs = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    pairs.write_text("\n".join(lines) + "\n", "utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=_TOKENS)
