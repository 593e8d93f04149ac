"""Files of nunchaku, and the weights they hold, by the addresses of single numbers.

Addresses are those of the comments in nunchaku's packer and kernels, written without loramerge's code.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
SHIFT = 0.171875
FIRST = ("lora_down", "lora_up", "smooth", "smooth_orig")
LATER = ("proj_down", "proj_up", "smooth_factor", "smooth_factor_orig")


def grid(rows: int, columns: int) -> tuple[Array, Array]:
    n, k = np.indices((rows, columns))
    return n, k


def at_codes(rows: int, columns: int) -> Array:
    """Address of the half byte of every code."""
    n, k = grid(rows, columns)
    r, c = n % 128, k % 64
    found = (n // 128) * (columns // 64) + k // 64
    for size, digit in (
        (8, r // 16), (8, r % 8), (4, c // 8 % 4), (2, r // 8 % 2), (2, c // 32), (8, c % 8),
    ):  # fmt: skip
        found = found * size + digit
    return found


def at_scales(rows: int, groups: int) -> Array:
    """Address of the scale of every group: lane 0 holds rows 0, 1, 8, 9, lane 1 rows 2, 3, 10, 11."""
    n, g = grid(rows, groups)
    r = n % 128
    lane, place = r // 16 * 4 + r % 8 // 2, r // 8 % 2 * 2 + r % 2
    return ((n // 128) * groups + g) * 128 + lane * 4 + place


def at_micro_scales(rows: int, groups: int) -> Array:
    """Address of every group of 16: lane 0 holds rows 0, 32, 64, 96, lane 1 rows 8, 40, …, in fours."""
    n, g = grid(rows, groups)
    r = n % 128
    lane, place = r % 8 * 4 + r % 32 // 8, r // 32
    return (((n // 128) * (groups // 4) + g // 4) * 32 + lane) * 16 + place * 4 + g % 4


def at_factor(rows: int, columns: int, *, down: bool) -> Array:
    """Address of every number of a factor: fragments of 16 × 16, those of the channel outside."""
    n, k = grid(rows, columns)
    outer, inner, count = (
        (k // 16, n // 16, rows // 16) if down else (n // 16, k // 16, columns // 16)
    )
    r, c = n % 16, k % 16
    found = outer * count + inner
    for size, digit in ((8, r % 8), (4, c // 2 % 4), (2, r // 8), (2, c // 8), (2, c % 2)):
        found = found * size + digit
    return found


def at_zero_point_codes(rows: int, columns: int) -> Array:
    """Address of the half byte of every code: of 4 rows, 64 columns; a word of 16 bits holds 8 apart."""
    n, k = grid(rows, columns)
    c = k % 32
    found = (n // 4) * (columns // 64) + k // 64
    for size, digit in ((4, n % 4), (2, k % 64 // 32), (8, c % 8), (4, c // 8)):
        found = found * size + digit
    return found


def stored(values: Array, addresses: Array) -> Array:
    """Numbers at their addresses, in one row."""
    found = np.zeros(values.size, values.dtype)
    found[addresses.reshape(-1)] = values.reshape(-1)
    return found


def halves(codes: Array, addresses: Array) -> Array:
    flat = stored(codes.astype(np.uint8), addresses)
    return flat[::2] | (flat[1::2] << 4)


def layer(
    random: np.random.Generator,
    stem: str,
    rows: int,
    columns: int,
    *,
    precision: str = "int4",
    words: tuple[str, ...] = FIRST,
    rank: int = 16,
    bias: bool = True,
) -> tuple[Tensors, Array]:
    """The tensors of a layer of SVDQuant, and its weight in float64."""
    group = 64 if precision == "int4" else 16
    codes = random.integers(0, 16, (rows, columns))
    codes[codes == 8] = 0  # a minus zero, or a number the quantiser does not make
    smooth = random.uniform(0.5, 2, (columns, 1)).astype(BF16)
    up = (0.05 * random.standard_normal((rows, rank))).astype(BF16)
    down = (0.05 * random.standard_normal((rank, columns))).astype(BF16)
    made = {
        f"{stem}.qweight": halves(codes, at_codes(rows, columns)).view(np.int8).reshape(rows, -1)
    }
    if precision == "int4":
        numbers = np.where(codes > 7, codes - 16, codes)
        scales = random.uniform(0.005, 0.01, (rows, columns // group)).astype(BF16)
        made[f"{stem}.wscales"] = stored(scales, at_scales(rows, columns // group)).reshape(
            -1, rows
        )
        factor = 1.0
    else:
        numbers = FP4[codes & 7] * np.where(codes > 7, -1, 1)
        scales = random.uniform(20, 200, (rows, columns // group)).astype(F8)
        made[f"{stem}.wscales"] = stored(scales, at_micro_scales(rows, columns // group)).reshape(
            -1, rows
        )
        outputs = random.uniform(0.5, 1, (rows, 1)).astype(BF16)
        made[f"{stem}.wcscales"] = stored(outputs, at_scales(rows, 1))
        made[f"{stem}.wtscale"] = np.array([2.0**-13], BF16)
        factor = 2.0**-13 * outputs.astype("float64")
    made |= {
        f"{stem}.{words[0]}": stored(down, at_factor(rank, columns, down=True)).reshape(
            columns, rank
        ),
        f"{stem}.{words[1]}": stored(up, at_factor(rows, rank, down=False)).reshape(rows, rank),
        f"{stem}.{words[2]}": stored(smooth, at_scales(columns, 1)),
        f"{stem}.{words[3]}": stored(smooth, at_scales(columns, 1)),
    }
    if bias:
        made[f"{stem}.bias"] = random.standard_normal(rows).astype(BF16)
    residual = numbers * np.repeat(scales.astype("float64"), group, axis=1) * factor
    residual /= smooth.astype("float64").reshape(-1)
    return made, residual + up.astype("float64") @ down.astype("float64")


def zero_points(
    random: np.random.Generator, stem: str, rows: int, columns: int, splits: int
) -> tuple[Tensors, Array, Array]:
    """The tensors of a modulation, its weight and its bias in float64."""
    codes = random.integers(0, 16, (rows, columns))
    scales = random.uniform(0.005, 0.01, (rows, columns // 64)).astype(BF16)
    zeros = (-7 * scales.astype("float64")).astype(BF16)
    bias = random.standard_normal(rows).astype(BF16)
    made = {
        f"{stem}.qweight": halves(codes, at_zero_point_codes(rows, columns))
        .view(np.int32)
        .reshape(rows // 4, columns // 2),
        f"{stem}.wscales": np.ascontiguousarray(scales.T),
        f"{stem}.wzeros": np.ascontiguousarray(zeros.T),
        f"{stem}.bias": bias,
    }
    weight = codes * np.repeat(scales.astype("float64"), 64, axis=1)
    weight += np.repeat(zeros.astype("float64"), 64, axis=1)
    order = model_order(rows, splits)
    return made, weight[order], bias.astype("float64")[order] - ones(rows, splits)


def model_order(rows: int, splits: int) -> Array:
    """For every output of the model, the row that holds it: outputs alternate among modulations."""
    each = rows // splits
    return np.array([i % each * splits + i // each for i in range(rows)])


def ones(rows: int, splits: int) -> Array:
    """The numbers added to the scales of a modulation, by output of the model."""
    return np.array(
        [splits > 1 and i * splits // rows in (1, splits - 2) for i in range(rows)], float
    )


WIDTH = 128
_DOUBLE = {
    "qkv_proj": (("attn.to_q", "attn.to_k", "attn.to_v"), 3, 1),
    "qkv_proj_context": (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), 3, 1),
    "out_proj": (("attn.to_out.0",), 1, 1),
    "out_proj_context": (("attn.to_add_out",), 1, 1),
    "mlp_fc1": (("ff.net.0.proj",), 4, 1),
    "mlp_fc2": (("ff.net.2",), 1, 4),
    "mlp_context_fc1": (("ff_context.net.0.proj",), 4, 1),
    "mlp_context_fc2": (("ff_context.net.2",), 1, 4),
}
_SINGLE = {
    "qkv_proj": (("attn.to_q", "attn.to_k", "attn.to_v"), 3, 1),
    "mlp_fc1": (("proj_mlp",), 4, 1),
    "out_proj": ((), 1, 1),
    "mlp_fc2": ((), 1, 4),
}


def flux(seed: int = 1, *, precision: str = "int4", full: bool = False) -> tuple[Tensors, Tensors]:
    """A narrow Flux.1 of nunchaku's first layout, and its weights by diffusers' names.

    All blocks have the tensors of the first of their sort, unless `full`.
    """
    random = np.random.default_rng(seed)
    made: Tensors = {}
    weights: Tensors = {}
    for sort, count, table, norms in (
        ("transformer_blocks", 19, _DOUBLE, {"norm1.linear": 6, "norm1_context.linear": 6}),
        ("single_transformer_blocks", 38, _SINGLE, {"norm.linear": 3}),
    ):
        first: tuple[Tensors, Tensors] | None = None
        for block in range(count):
            if first is None or full:
                first = _block(random, sort, table, norms, precision)
            for target, source in zip((made, weights), first, strict=True):
                target.update({f"{sort}.{block}.{name}": one for name, one in source.items()})
    for name in ("context_embedder", "time_text_embed.text_embedder.linear_1"):
        plain = random.standard_normal((WIDTH, WIDTH)).astype(BF16)
        made[f"{name}.weight"], weights[f"{name}.weight"] = plain, plain.astype("float64")
    return made, weights


def _block(
    random: np.random.Generator,
    sort: str,
    table: Any,
    norms: dict[str, int],
    precision: str,
    words: tuple[str, ...] = FIRST,
) -> tuple[Tensors, Tensors]:
    made: Tensors = {}
    weights: Tensors = {}
    head = f"{sort}.0."
    wholes: Tensors = {}
    for name, (modules, high, wide) in table.items():
        tensors, whole = layer(
            random, head + name, high * WIDTH, wide * WIDTH, precision=precision, words=words
        )
        made |= tensors
        wholes[name] = whole
        parts = np.split(whole, len(modules)) if modules else []
        weights |= {f"{m}.weight": part for m, part in zip(modules, parts, strict=True)}
    if sort.startswith("single"):
        both = wholes["out_proj"], wholes["mlp_fc2"]
        weights["proj_out.weight"] = np.concatenate(both, axis=1)
    for name, splits in norms.items():
        rows = (3 if sort.startswith("single") else 6) * WIDTH
        tensors, whole, _ = zero_points(random, head + name, rows, WIDTH, splits)
        made |= tensors
        weights[f"{name}.weight"] = whole
    return {name.removeprefix(head): one for name, one in made.items()}, weights


def qwen(seed: int = 2, *, fused: bool = True, precision: str = "int4") -> tuple[Tensors, Tensors]:
    """A narrow Qwen-Image of nunchaku's later layout, or of diffusers' where `fused` is false."""
    random = np.random.default_rng(seed)
    table: dict[str, tuple[tuple[str, ...], int, int]] = {
        name: ((name,), high, wide)
        for name, high, wide in (
            ("attn.to_out.0", 1, 1), ("attn.to_add_out", 1, 1), ("img_mlp.net.0.proj", 4, 1),
            ("img_mlp.net.2", 1, 4), ("txt_mlp.net.0.proj", 4, 1), ("txt_mlp.net.2", 1, 4),
        )
    }  # fmt: skip
    for whole, names in (
        ("attn.to_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("attn.add_qkv_proj", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    ):
        table |= {whole: (names, 3, 1)} if fused else {n: ((n,), 1, 1) for n in names}
    mods = dict.fromkeys(("img_mod.1", "txt_mod.1"), 6 if fused else 1)
    first = _block(random, "transformer_blocks", table, mods, precision, LATER)
    made, weights = (
        {
            f"transformer_blocks.{block}.{name}": one
            for block in range(60)
            for name, one in found.items()
        }
        for found in first
    )
    return made, weights
