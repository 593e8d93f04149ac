"""The entries of an adapter's header that tell of the images and their captions."""

from __future__ import annotations

import json
from typing import Any

from loramerge.train.dataset.arrange import Arranged
from loramerge.train.spec.spec import Spec

__all__ = ["header_of_images"]


def header_of_images(spec: Spec, arranged: Arranged, windows: int) -> dict[str, str]:
    """Return the entries of the header that tell of the images and their captions."""
    how = spec.data
    entries: dict[str, Any] = {
        "ss_num_train_images": sum(p.repeats for p in arranged.dataset.subject),
        "ss_num_reg_images": len(arranged.dataset.regular),
        "ss_batch_size_per_device": how.batch,
        "ss_resolution": f"({arranged.resolution}, {arranged.resolution})",
        "ss_enable_bucket": not how.no_buckets,
        "ss_shuffle_caption": how.shuffle_tags,
        "ss_caption_dropout_rate": how.caption_dropout,
        "ss_caption_tag_dropout_rate": how.tag_dropout,
        "ss_clip_skip": how.clip_skip,
    }
    if windows > 1:
        entries["ss_max_token_length"] = 75 * windows
    tags = arranged.tags()
    if tags:
        entries["ss_tag_frequency"] = json.dumps({how.images.resolve().name: tags})
    if how.trigger:
        entries["modelspec.trigger_phrase"] = how.trigger
    return {name: str(value) for name, value in entries.items()}
