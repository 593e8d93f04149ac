"""The yardstick: a bare numpy script that resizes a kohya adapter, and nothing else.

    python benchmarks/bare_resize.py IN OUT [RANK [float16|float32]]

For ΔW = s B A with Gram matrices `B'B = L_B L_B'` and `A A' = L_A L_A'` (R×R, float64), the core
`s L_B' L_A = U S V'` has the singular values of ΔW, and the best factors of rank k are
`up = s B (L_A V_k) S_k^-½` and `down = s S_k^-½ (U_k' L_B') A`. One process, one thread, no checks.
"""

import json
import sys

import numpy as np


def root(gram: np.ndarray) -> np.ndarray:
    """Returns L with `L L' = gram`."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def resize(
    up: np.ndarray, down: np.ndarray, scale: float, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best factors of rank `rank` of `scale * up @ down`, float64, scale 1."""
    up, down = up.astype(np.float64), down.astype(np.float64)
    left, right = root(up.T @ up), root(down @ down.T)
    u, s, vt = np.linalg.svd(scale * (left.T @ right))
    fold = scale / np.sqrt(np.maximum(s[:rank], s[0] * 1e-12))
    return up @ (right @ vt[:rank].T * fold), ((left @ u[:, :rank]) * fold).T @ down


def main(source: str, target: str, rank: str = "8", dtype: str = "float16") -> None:
    """Resizes `source` into `target`."""
    with open(source, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    metadata = header.pop("__metadata__", {})

    def tensor(name: str) -> np.ndarray:
        entry = header[name]
        start, end = entry["data_offsets"]
        return np.frombuffer(data, "<f2", (end - start) // 2, start).reshape(entry["shape"])

    result: dict[str, np.ndarray] = {}
    for name in header:
        if not name.endswith(".lora_up.weight"):
            continue
        stem = name.removesuffix(".lora_up.weight")
        up, down = tensor(name), tensor(f"{stem}.lora_down.weight")
        up, down = resize(up, down, float(tensor(f"{stem}.alpha")) / len(down), int(rank))
        result[f"{stem}.alpha"] = np.array(int(rank), dtype)
        result[f"{stem}.lora_down.weight"] = down.astype(dtype)
        result[name] = up.astype(dtype)

    metadata |= {"ss_network_dim": rank, "ss_network_alpha": rank}
    out: dict[str, object] = {"__metadata__": metadata}
    offset, kind = 0, {"float16": "F16", "float32": "F32"}[dtype]
    for name, array in result.items():
        end = offset + array.nbytes
        out[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(out).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as written:
        written.write(len(text).to_bytes(8, "little") + text)
        for array in result.values():
            written.write(np.ascontiguousarray(array).data)


if __name__ == "__main__":
    main(*sys.argv[1:])
