"""Inputs of the golden runs: adapters of every kind and family, bases of every layout, images.

Everything follows from names, shapes and a seed by integer arithmetic, so that the bytes are the
same on every machine. Nothing here imports loramerge: what it is made of may move.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]

_NAMES = Path(__file__).with_name("golden_names.txt.gz")
_TYPES = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype("int64"),
    "I32": np.dtype("int32"), "I8": np.dtype("int8"), "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}  # fmt: skip
_WORDS = {dtype: word for word, dtype in _TYPES.items()}


# ---- files


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] = {}) -> None:
    """Write a safetensors file, tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in tensors.items():
        stop = position + array.nbytes
        header[name] = {
            "dtype": _WORDS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, stop],
        }
        position = stop
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read the tensors of a safetensors file and its metadata."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = raw[8 + length :]
    return {
        name: np.frombuffer(data[slice(*one["data_offsets"])], _TYPES[one["dtype"]]).reshape(
            one["shape"]
        )
        for name, one in header.items()
    }, metadata


# ---- names, shapes and values


@cache
def shapes(family: str, part: str) -> Shapes:
    """Return the names and shapes of a section of the list of names."""
    found: Shapes = {}
    here = False
    for line in gzip.decompress(_NAMES.read_bytes()).decode().splitlines():
        if line.startswith("["):
            here = line == f"[{family} {part}]"
        elif here:
            shape, _, pattern = line.partition(" ")
            size = () if shape == "-" else tuple(map(int, shape.split("x")))
            found |= dict.fromkeys(_spread(pattern), size)
    if not found:
        raise KeyError(f"{family} {part}")
    return found


def _spread(pattern: str) -> list[str]:
    """Spell out `{0-3}`."""
    pieces = re.split(r"\{(\d+)-(\d+)\}", pattern)
    ranges = [range(int(a), int(b) + 1) for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
    ends = pieces[3::3]
    return [
        pieces[0] + "".join(f"{n}{end}" for n, end in zip(numbers, ends, strict=True))
        for numbers in itertools.product(*ranges)
    ]


def values(name: str, shape: tuple[int, ...], seed: int = 0, power: int = -3) -> Array:
    """Float32 values of about 2**power, a sum of four even ones; exact on every machine."""
    random = np.random.default_rng([zlib.crc32(name.encode()), seed])
    drawn = random.integers(-(1 << 14), 1 << 14, (4, *shape)).sum(0)
    return (drawn.astype("float32") * np.float32(2.0 ** (power - 14))).astype("float32")


def network(family: str, part: str, dtype: str = "F32", seed: int = 0) -> Tensors:
    """Make the tensors of a section; norms are near one."""
    found: Tensors = {}
    for name, shape in shapes(family, part).items():
        if name.endswith(("position_ids", "num_updates")):
            found[name] = np.arange(int(np.prod(shape)), dtype="int64").reshape(shape)
            continue
        value = values(name, shape, seed)
        if name.endswith(".weight") and len(shape) == 1:
            value = value + np.float32(1)
        found[name] = value.astype(_TYPES[dtype])
    return found


def factors(name: str, shape: tuple[int, ...], rank: int, seed: int = 0) -> tuple[Array, Array]:
    """Return up and down of a layer; each further rank is half as large."""
    tail = (1, 1) if len(shape) > 2 else ()
    up = values(f"{name}.up", (shape[0], rank, *tail), seed, -1)
    down = values(f"{name}.down", (rank, *shape[1:]), seed, -2)
    decay = np.float32(2.0) ** -np.arange(rank, dtype="float32")
    return up * decay.reshape(1, rank, *tail).astype("float32"), down


# ---- adapters of Stable Diffusion


def layers(family: str, component: str, pattern: str) -> Shapes:
    """Return the linear layers and convolutions of a component that a pattern finds, by path."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes(family, component).items()
        if name.endswith(".weight") and len(shape) > 1 and re.search(pattern, name)
    }


_ATTENTION = r"\.(attn[12]|ff|self_attn)\."
_ARCHITECTURES = {
    "sd15": "stable-diffusion-v1/lora",
    "sd21": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner/lora",
}


def kohya(
    family: str = "sd21",
    rank: int = 4,
    seed: int = 1,
    *,
    pattern: str = _ATTENTION,
    dtype: str = "F16",
    title: str = "flat",
) -> tuple[Tensors, dict[str, str]]:
    """Make an adapter of a UNet in kohya's names, with an alpha of half the rank."""
    found: Tensors = {}
    for path, shape in layers(family, "unet", pattern).items():
        up, down = factors(path, shape, rank, seed)
        stem = "lora_unet_" + path.replace(".", "_")
        found[f"{stem}.lora_down.weight"] = down.astype(_TYPES[dtype])
        found[f"{stem}.lora_up.weight"] = up.astype(_TYPES[dtype])
        found[f"{stem}.alpha"] = np.array(rank / 2, _TYPES[dtype])
    return found, {
        "modelspec.architecture": _ARCHITECTURES[family],
        "ss_output_name": title,
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank / 2),
        "ss_tag_frequency": json.dumps({f"10_{title}": {title: 24, "outdoors": 7}}),
    }


def diffusers(
    family: str = "sd21",
    rank: int = 6,
    seed: int = 2,
    *,
    components: tuple[str, ...] = ("unet", "text_encoder"),
    dtype: str = "F16",
) -> tuple[Tensors, dict[str, str]]:
    """Make an adapter of several components in diffusers' names."""
    found: Tensors = {}
    for component in components:
        for path, shape in layers(family, component, _ATTENTION).items():
            if shape[0] < 2:
                continue
            up, down = factors(f"{component}.{path}", shape, rank, seed)
            found[f"{component}.{path}.lora_A.weight"] = down.astype(_TYPES[dtype])
            found[f"{component}.{path}.lora_B.weight"] = up.astype(_TYPES[dtype])
    return found, {"modelspec.architecture": _ARCHITECTURES[family], "ss_output_name": "zuzu"}


# ---- every kind, on three layers of the small SD1


_KIND_LAYERS = {
    "linear": "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q",
    "conv1x1": "down_blocks.2.attentions.0.proj_in",
    "conv3x3": "down_blocks.2.resnets.1.conv1",
}
_OUT, _R = 16, 2


def _lora(v: Callable[..., Array], kernel: tuple[int, ...]) -> Tensors:
    tail = (1, 1) if kernel else ()
    return {
        "lora_up.weight": v("up", _OUT, _R, *tail),
        "lora_down.weight": v("down", _R, _OUT, *kernel),
        "alpha": _number(1.0),
    }


def _loha(v: Callable[..., Array], kernel: tuple[int, ...], tucker: bool = False) -> Tensors:
    places = int(np.prod(kernel))
    found = {"alpha": _number(1.0)}
    for i in (1, 2):
        if tucker and len(kernel) == 2 and places > 1:
            found[f"hada_t{i}"] = v(f"t{i}", _R, _R, *kernel)
            found[f"hada_w{i}_a"] = v(f"a{i}", _R, _OUT)
            found[f"hada_w{i}_b"] = v(f"b{i}", _R, _OUT)
        else:
            found[f"hada_w{i}_a"] = v(f"a{i}", _OUT, _R)
            found[f"hada_w{i}_b"] = v(f"b{i}", _R, _OUT * places)
    return found


def _lokr(v: Callable[..., Array], kernel: tuple[int, ...], first: str, second: str) -> Tensors:
    places = int(np.prod(kernel))
    found = {"alpha": _number(1.0)}
    if first == "full":
        found["lokr_w1"] = v("w1", 4, 2)
    else:
        found |= {"lokr_w1_a": v("w1a", 4, _R), "lokr_w1_b": v("w1b", _R, 2)}
    if second == "full":
        found["lokr_w2"] = v("w2", 4, 8, *kernel)
    elif second == "tucker" and places > 1:
        found |= {
            "lokr_t2": v("t2", _R, _R, *kernel),
            "lokr_w2_a": v("w2a", _R, 4),
            "lokr_w2_b": v("w2b", _R, 8),
        }
    else:
        found |= {"lokr_w2_a": v("w2a", 4, _R), "lokr_w2_b": v("w2b", _R, 8 * places)}
    return found


def _dora(v: Callable[..., Array], kernel: tuple[int, ...], inner: Tensors, out: bool) -> Tensors:
    ones = (1,) * len(kernel)
    shape = (_OUT, 1, *ones) if out else (1, _OUT, *ones)
    return inner | {"dora_scale": np.abs(v("magnitude", *shape)) + np.float32(0.5)}


def _oft(
    v: Callable[..., Array], kernel: tuple[int, ...], *, boft: bool, rescaled: bool
) -> Tensors:
    shape = (3, 4, 4, 4) if boft else (4, 4, 4)
    found = {"oft_blocks": v("blocks", *shape), "alpha": _number(0.0)}
    if rescaled:
        tail = (1,) * (1 + len(kernel))
        found["rescale"] = np.abs(v("rescale", _OUT, *tail)) + np.float32(0.5)
    return found


def _ia3(v: Callable[..., Array], kernel: tuple[int, ...], on_input: bool) -> Tensors:
    shape = (1, _OUT, 1, 1) if kernel else (_OUT,)
    return {"weight": v("scale", *shape), "on_input": np.array(int(on_input), "int64")}


def _glora(v: Callable[..., Array], kernel: tuple[int, ...]) -> Tensors:
    tail = (1, 1) if kernel else ()
    return {
        "a1.weight": v("a1", _OUT, _R, *tail),
        "a2.weight": v("a2", _R, _OUT, *tail),
        "b1.weight": v("b1", _OUT, _R, *tail),
        "b2.weight": v("b2", _R, _OUT, *kernel),
        "alpha": _number(1.0),
    }


def _sparse(v: Callable[..., Array], kernel: tuple[int, ...]) -> Tensors:
    columns = _OUT * int(np.prod(kernel))
    return _lora(v, kernel) | {
        "bias_indices": np.array([[0, 3, 3, 15], [1, 0, 5, 7]], "int64"),
        "bias_values": np.array([1.0, -2.0, 0.5, 3.0], "float32"),
        "bias_size": np.array([_OUT, columns], "int64"),
    }


def _tucker(v: Callable[..., Array], kernel: tuple[int, ...]) -> Tensors:
    if int(np.prod(kernel)) == 1:
        return _lora(v, kernel)
    return {
        "lora_up.weight": v("up", _OUT, _R, 1, 1),
        "lora_mid.weight": v("mid", _R, _R, *kernel),
        "lora_down.weight": v("down", _R, _OUT, 1, 1),
        "alpha": _number(1.0),
    }


def _number(value: float) -> Array:
    return np.array(value, "float32")


Maker = Callable[[Callable[..., Array], tuple[int, ...]], Tensors]
KINDS: dict[str, Maker] = {
    "tucker": _tucker,
    "loha": _loha,
    "loha-tucker": lambda v, k: _loha(v, k, True),
    "lokr-full": lambda v, k: _lokr(v, k, "full", "full"),
    "lokr-half": lambda v, k: _lokr(v, k, "full", "factored"),
    "lokr": lambda v, k: _lokr(v, k, "factored", "factored"),
    "lokr-tucker": lambda v, k: _lokr(v, k, "full", "tucker"),
    "sparse": _sparse,
    "scaled": lambda v, k: _lora(v, k) | {"scale": _number(0.75)},
    "full": lambda v, k: (
        {"diff": v("diff", _OUT, _OUT, *k)} | ({"diff_b": v("bias", _OUT)} if k else {})
    ),
}
BASE_KINDS: dict[str, Maker] = {
    "ia3-out": lambda v, k: _ia3(v, k, False),
    "ia3-in": lambda v, k: _ia3(v, k, True),
    "dora-out": lambda v, k: _dora(v, k, _lora(v, k), True),
    "dora-in": lambda v, k: _dora(v, k, _lora(v, k), False),
    "dora-loha": lambda v, k: _dora(v, k, _loha(v, k), True),
    "oft": lambda v, k: _oft(v, k, boft=False, rescaled=False),
    "oft-rescaled": lambda v, k: _oft(v, k, boft=False, rescaled=True),
    "boft": lambda v, k: _oft(v, k, boft=True, rescaled=True),
    "glora": _glora,
}


def of_kind(kind: str) -> tuple[Tensors, dict[str, str]]:
    """Make an adapter of one kind on a linear layer and two convolutions."""
    make = (KINDS | BASE_KINDS)[kind]
    found: Tensors = {}
    for layer, path in _KIND_LAYERS.items():
        kernel = {"linear": (), "conv1x1": (1, 1), "conv3x3": (3, 3)}[layer]
        stem = "lora_unet_" + path.replace(".", "_")

        def v(word: str, *shape: int, at: str = layer) -> Array:
            return values(f"{kind}.{at}.{word}", shape, 0, -1)

        found |= {f"{stem}.{end}": value for end, value in make(v, kernel).items()}
    return found, {"modelspec.architecture": _ARCHITECTURES["sd15"]}


def norms() -> tuple[Tensors, dict[str, str]]:
    """Make an adapter that changes norms, beside one linear layer."""
    stem = "lora_unet_down_blocks_2_resnets_1_norm1"
    found = {f"{stem}.w_norm": values("w", (_OUT,)), f"{stem}.b_norm": values("b", (_OUT,))}
    head, metadata = of_kind("scaled")
    return head | found, metadata


# ---- diffusion transformers


def split(
    family: str, part: str = "transformer", dtype: str = "F32"
) -> tuple[Tensors, dict[str, str]]:
    """Make an adapter of every linear layer of a small transformer, in diffusers' names."""
    found: Tensors = {}
    for name, shape in shapes(family, part).items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        stem = "transformer." + name.removesuffix(".weight")
        up, down = factors(stem, shape, 2, 3)
        found[f"{stem}.lora_A.weight"] = down.astype(_TYPES[dtype])
        found[f"{stem}.lora_B.weight"] = up.astype(_TYPES[dtype])
    return found, {}


def full_width(family: str) -> tuple[Tensors, dict[str, str]]:
    """Make an adapter of a few layers of true width, of rank one, without metadata."""
    found: Tensors = {}
    for stem, shape in shapes(family, "full").items():
        if len(shape) == 2:
            up, down = factors(stem, shape, 1, 4)
            found[f"{stem}.lora_A.weight"] = down.astype("float16")
            found[f"{stem}.lora_B.weight"] = up.astype("float16")
    return found, {}


# ---- bases


def scaled_float8(style: str, dtype: str = "F8_E4M3") -> Tensors:
    """Make the small SD2 in float8, with a scale (a power of two) for each tensor."""
    ends = {"comfyui": ".scale_weight", "later": ".weight_scale"}[style]
    found: Tensors = {}
    for name, array in network("sd21", "single").items():
        plain = not name.endswith("weight") or array.ndim < 2 or "first_stage" in name
        if plain:
            found[name] = array
            continue
        found[name] = (array * np.float32(256)).astype(_TYPES[dtype])
        found[name.removesuffix(".weight") + ends] = _number(2.0**-8)
    found["scaled_fp8"] = np.zeros(2, _TYPES[dtype])
    return found


_FILES = {
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}


def folder(path: Path, family: str, parts: tuple[str, ...], shards: int = 1) -> None:
    """Write a folder of diffusers; its first component in shards if there are several."""
    path.mkdir(parents=True)
    (path / "model_index.json").write_text('{"_class_name": "DiffusionPipeline"}')
    (path / "README.md").write_text("read me")
    for i, part in enumerate(parts):
        tensors = network(family, part)
        stem = _FILES.get(part, "model")
        here = path / part
        if i or shards == 1:
            write(here / f"{stem}.safetensors", tensors, {"format": "pt"})
        else:
            where = {}
            for k, names in enumerate(np.array_split(np.array(list(tensors)), shards)):
                file = f"{stem}-{k + 1:05d}-of-{shards:05d}.safetensors"
                write(here / file, {str(n): tensors[str(n)] for n in names}, {"format": "pt"})
                where |= {str(n): file for n in names}
            index = {"metadata": {"total_size": 0}, "weight_map": where}
            (here / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        (here / "config.json").write_text("{}")


# ---- images


def images(path: Path, count: int = 6, side: int = 32) -> None:
    """Write small images of coloured squares with captions."""
    from PIL import Image

    path.mkdir(parents=True)
    for i in range(count):
        random = np.random.default_rng(i)
        image = np.empty((side, side, 3), "uint8")
        image[:] = random.integers(0, 256, 3)
        image[side // 4 : -side // 4, side // 4 : -side // 4] = random.integers(0, 256, 3)
        Image.fromarray(image).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"a zuzu on a background, number {i}")


# ---- by name


def make(name: str, path: Path) -> None:
    """Write the input of a name: `KIND` or `KIND/family/part…`."""
    word, *rest = name.split("/")
    _MAKERS[word](path, *rest)


def _file(build: Callable[..., tuple[Tensors, dict[str, str]]]) -> Callable[..., None]:
    def made(path: Path, *rest: str) -> None:
        write(path, *build(*rest))

    return made


def _embedding() -> tuple[Tensors, dict[str, str]]:
    tensors, metadata = kohya("sd15", pattern=r"down_blocks\.1.*attn1", dtype="F32")
    tensors["bundle_emb.zuzu.string_to_param.*"] = values("embedding", (2, 10))
    return tensors, metadata


_MAKERS: dict[str, Callable[..., None]] = {
    "a": _file(lambda: kohya()),
    "b": _file(lambda: diffusers()),
    "a4": _file(lambda: kohya(seed=5, title="other")),
    "f32": _file(lambda: kohya("sd15", 3, dtype="F32")),
    "bf16": _file(lambda: kohya("sd15", 3, 7, dtype="BF16")),
    "conv": _file(lambda: kohya("sd15", 4, 8, pattern="attn|conv1|conv_in", dtype="F32")),
    "embedding": _file(_embedding),
    "xl": _file(
        lambda: diffusers("sdxl", 2, components=("unet", "text_encoder", "text_encoder_2"))
    ),
    "refiner": _file(lambda: diffusers("sdxl-refiner", 2, components=("unet", "text_encoder_2"))),
    "kind": _file(of_kind),
    "norms": _file(norms),
    "split": _file(split),
    "full": _file(full_width),
    "single": lambda path, family, part="single", dtype="F32", seed="0": write(
        path, network(family, part, dtype, int(seed)), {"format": "pt", "author": "test"}
    ),
    "float8": lambda path, style, dtype="F8_E4M3": write(path, scaled_float8(style, dtype)),
    "folder": lambda path, family, *parts: folder(path, family, parts),
    "shards": lambda path, family, *parts: folder(path, family, parts, 2),
    "images": lambda path: images(path),
    "broken": lambda path: path.write_bytes(b"not a safetensors file"),
    "text": lambda path, text: path.write_text(text),
}
