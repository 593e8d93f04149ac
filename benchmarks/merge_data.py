"""Makes the files of `merge.py`: tuned checkpoints, a large sparse one, language models.

python benchmarks/merge_data.py tuned BASE FOLDER COUNT
python benchmarks/merge_data.py large FOLDER
python benchmarks/merge_data.py language FOLDER COUNT
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np

SIZE = 0.02  # of a change, relative to the weights
BLOCK = 1 << 20  # elements changed at once
WIDTH, INNER, VOCABULARY = 2048, 5632, 32000
LAYERS, LARGE_LAYERS, SHARDS = 20, 240, 12


def tuned(base: Path, folder: Path, count: int) -> None:
    """Writes copies of a float16 checkpoint with a change of every number."""
    with base.open("rb") as file:
        head = 8 + int.from_bytes(file.read(8), "little")
    for number in range(count):
        target = folder / f"tuned{number}.safetensors"
        shutil.copyfile(base, target)
        change_numbers(target, head, number)


def change_numbers(path: Path, head: int, seed: int) -> None:
    """Adds noise to the float16 numbers of a file, from `head` on."""
    random = np.random.Generator(np.random.SFC64(seed))
    stored = np.memmap(path, "<f2", "r+", head)
    noise = random.standard_normal(BLOCK + 12345, dtype=np.float32) * np.float32(SIZE)
    for start in range(0, len(stored), BLOCK):
        part = stored[start : start + BLOCK].astype(np.float32)
        shift = int(random.integers(12345))
        stored[start : start + BLOCK] = part * (1 + noise[shift : shift + len(part)])
    stored.flush()


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a Llama."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{one}_proj.weight": (WIDTH, WIDTH) for one in "qkvo"}
        found |= {f"{at}.mlp.{one}_proj.weight": (INNER, WIDTH) for one in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = (WIDTH, INNER)
        found |= {f"{at}.{one}_layernorm.weight": (WIDTH,) for one in ("input", "post_attention")}
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def write_model(folder: Path, layers: int, shards: int, seed: int | None) -> None:
    """Writes a folder of transformers in float16, with random numbers or, without a seed, sparse."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    entries = list(shapes(layers).items())
    per_shard, index = -(-len(entries) // shards), {}
    for number in range(shards):
        part = entries[number * per_shard : (number + 1) * per_shard]
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        name = "model.safetensors" if shards == 1 else name
        index |= dict.fromkeys((key for key, _ in part), name)
        write_shard(folder / name, part, seed)
    if shards > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def write_shard(path: Path, entries: list[tuple[str, tuple[int, ...]]], seed: int | None) -> None:
    """Writes one file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in entries:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if seed is None:
            file.truncate(8 + len(text) + offset)
            return
        shared = np.random.Generator(np.random.SFC64(0))
        own = np.random.Generator(np.random.SFC64(seed + 1))
        for start in range(0, offset // 2, BLOCK):
            count = min(BLOCK, offset // 2 - start)
            part = shared.standard_normal(count, dtype=np.float32) * np.float32(0.02)
            part *= 1 + np.float32(SIZE) * own.standard_normal(count, dtype=np.float32)
            file.write(part.astype("<f2").tobytes())


def main() -> None:
    """Makes what the arguments say."""
    kind, *words = sys.argv[1:]
    if kind == "tuned":
        tuned(Path(words[0]), Path(words[1]), int(words[2]))
    elif kind == "large":
        write_model(Path(words[0]), LARGE_LAYERS, SHARDS, None)
    else:
        for number in range(int(words[1])):
            write_model(Path(words[0]) / str(number), LAYERS, 1, number)


if __name__ == "__main__":
    main()
