"""Adapters, checkpoints and metadata that somebody has tampered with, from a seed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["MUTATIONS", "mutated", "sound"]

Entries = dict[str, Any]

_NUMBERS = (0, -1, 1, 2, 3, 2**31, 2**63, 10**30, 1.5, None, "4", [], {}, True)
_WORDS = (
    "", ".", "..", "/", "a" * 3000, "\x1b[31m", "\u202e", "ключ", "lora_unet_", "__metadata__",
    "lora_unet_x.lora_up.weight", "../../x", "C:\\x", "\u0000", "lora_te_text_model_encoder",
)  # fmt: skip
_TEXTS = (
    "", "{}", "[]", "NaN", "1e999", "9" * 5000, "[" * 20000, '{"a": NaN}', "null", "\x1b]0;x\x07",
    '{"r": 1e99, "alpha_pattern": {"(a+)+$": 1}}', "∞", "-1", '{"1_x": {"tag": "many"}}', "true",
)  # fmt: skip
_ENTRIES = (
    "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_tag_frequency", "ss_network_module",
    "ss_bucket_info", "lora_adapter_metadata", "loramerge", "loramerge.recipe", "modelspec.title",
    "sshs_model_hash", "format", "ss_v2", "unet", "<s1>", "sshs_cp0",
)  # fmt: skip
_TYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "Q4", "", 3)


def sound(seed: random.Random) -> tuple[Entries, bytes]:
    """Return the entries and data of a small adapter of kohya's, some of its modules of other kinds."""
    entries: Entries = {}
    data = b""

    def add(name: str, shape: list[int], values: list[float]) -> None:
        nonlocal data
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), 0]}
        data += struct.pack(f"<{len(values)}f", *values)
        entries[name]["data_offsets"][1] = len(data)

    for number in range(seed.randint(1, 4)):
        stem = f"lora_unet_blocks_{number}_attn_{seed.choice('qkv')}"
        kind = seed.choice(("lora", "lora", "loha", "lokr", "diff"))
        roles = {
            "lora": (("lora_down.weight", [2, 6]), ("lora_up.weight", [4, 2])),
            "loha": (
                ("hada_w1_a", [4, 2]), ("hada_w1_b", [2, 6]),
                ("hada_w2_a", [4, 2]), ("hada_w2_b", [2, 6]),
            ),
            "lokr": (("lokr_w1", [2, 2]), ("lokr_w2", [2, 3])),
            "diff": (("diff", [4, 6]),),
        }[kind]  # fmt: skip
        for role, shape in roles:
            count = shape[0] * shape[1]
            add(f"{stem}.{role}", shape, [seed.uniform(-1, 1) for _ in range(count)])
        if kind != "diff":
            add(f"{stem}.alpha", [], [2.0])
    entries["__metadata__"] = {"ss_network_dim": "2", "ss_network_alpha": "2"}
    return entries, data


def _tensor(seed: random.Random, entries: Entries) -> str:
    return seed.choice([name for name in entries if name != "__metadata__"] or ["a"])


def _shape(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    entry = entries.setdefault(_tensor(seed, entries), {})
    shape = seed.choice(([1] * seed.randint(1, 90), [seed.choice(_NUMBERS)], seed.choice(_NUMBERS)))
    entry["shape"] = shape
    return data


def _dtype(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    entries.setdefault(_tensor(seed, entries), {})["dtype"] = seed.choice(_TYPES)
    return data


def _offsets(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    offsets = [seed.choice(_NUMBERS) for _ in range(seed.randint(0, 3))]
    entries.setdefault(_tensor(seed, entries), {})["data_offsets"] = offsets
    return data


def _name(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    name = _tensor(seed, entries)
    if name in entries:
        stem, _, role = name.partition(".")
        other = seed.choice(
            (seed.choice(_WORDS), f"{seed.choice(_WORDS)}.{role}", f"{stem}.{role}s")
        )
        entries[other] = entries.pop(name)
    return data


def _gone(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    entries.pop(_tensor(seed, entries), None)
    return data


def _values(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    if len(data) < 4:
        return data
    place = 4 * seed.randrange(len(data) // 4)
    odd = seed.choice((float("nan"), float("inf"), 3e38, -0.0, 1e-45))
    return data[:place] + struct.pack("<f", odd) + data[place + 4 :]


def _metadata(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    value = seed.choice((seed.choice(_TEXTS), seed.choice(_TEXTS), seed.choice(_NUMBERS)))
    found = entries.get("__metadata__")
    if isinstance(found, dict) and seed.random() < 0.95:
        found[seed.choice((seed.choice(_ENTRIES), seed.choice(_WORDS)))] = value
    else:
        entries["__metadata__"] = value
    return data


def _cut(seed: random.Random, entries: Entries, data: bytes) -> bytes:
    return data[: seed.randrange(len(data) + 1)] + b"\0" * seed.randrange(3)


MUTATIONS: tuple[Callable[[random.Random, Entries, bytes], bytes], ...] = (
    _shape, _dtype, _offsets, _name, _gone, _values, _metadata, _cut,
)  # fmt: skip


def mutated(number: int) -> bytes:
    """Return the file of a seed: sound but for one to three changes, its bytes at times, too."""
    seed = random.Random(number)
    entries, data = sound(seed)
    for _ in range(seed.choice((0, 1, 1, 1, 2, 3))):
        data = seed.choice(MUTATIONS)(seed, entries, data)
    raw = json.dumps(entries, ensure_ascii=seed.random() < 0.5).encode("utf-8", "replace")
    whole = bytearray(struct.pack("<Q", len(raw)) + raw + data)
    for _ in range(seed.choice((0, 0, 0, 1, 4))):
        whole[seed.randrange(len(whole))] = seed.randrange(256)
    return bytes(whole)
