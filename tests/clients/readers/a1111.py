"""A1111 reads files: its extension `Lora` on modules of the names and shapes of the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [f"{sys.argv[1]}/extensions-builtin/Lora", str(Path(__file__).parent)]
from job import Job, Loaded, base_of, narrow, serve  # noqa: E402
from stubs import stub  # noqa: E402

stub("gradio", "modules")
torch: Any = import_module("torch")

SHARED: Any = import_module("modules.shared")
SHARED.cmd_opts = SimpleNamespace(lora_dir=sys.argv[3], lyco_dir_backcompat=sys.argv[3])
SHARED.walk_files = lambda *given, **named: []
DEVICES: Any = import_module("modules.devices")
DEVICES.device = DEVICES.cpu = torch.device("cpu")
DEVICES.dtype = torch.float32
NETWORK: Any = import_module("network")
NETWORKS: Any = import_module("networks")
PARTS = ("q_proj", "k_proj", "v_proj")


def _layer(shape: tuple[int, ...], bias: bool) -> Any:
    if len(shape) == 4:
        return torch.nn.Conv2d(shape[1], shape[0], shape[2], bias=bias)
    if len(shape) == 2:
        return torch.nn.Linear(shape[1], shape[0], bias=bias)
    return torch.nn.LayerNorm(shape[0])


def _put(root: Any, path: str, layer: Any) -> None:
    *above, last = path.split(".")
    for name in above:
        if name not in root._modules:
            root.add_module(name, torch.nn.Module())
        root = root._modules[name]
    root.add_module(last, layer)


def _tree(shapes: Mapping[str, tuple[int, ...]], head: str, tags: dict[str, str], what: str) -> Any:
    """Make the modules of tensors; `tags` gets module name → what its tensors are called."""
    root = torch.nn.Module()
    for name, shape in shapes.items():
        path, _, word = name.rpartition(".")
        if word == "weight":
            _put(root, head + path, _layer(narrow(shape), f"{path}.bias" in shapes))
            tags[f"{head}{path}".replace(".", "_")] = f"{what}{path}"
    return root


def _openclip(held: Mapping[str, tuple[int, ...]], tags: dict[str, str], what: str) -> Any:
    """Make OpenCLIP's modules of those of transformers."""
    root = torch.nn.Module()
    leaves = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for name, shape in held.items():
        path, _, word = name.rpartition(".")
        if word != "weight" or ".layers." not in path:
            continue
        number, _, leaf = path.partition(".layers.")[2].partition(".")
        block = f"model.transformer.resblocks.{number}."
        small = narrow(shape)
        if leaf in leaves:
            _put(root, block + leaves[leaf], _layer(small, f"{path}.bias" in held))
            tags[(block + leaves[leaf]).replace(".", "_")] = what + path
        elif leaf.startswith("self_attn."):
            spelled = f"{block}attn.{leaf.removeprefix('self_attn.')}".replace(".", "_")
            tags[spelled] = what + path
            if leaf == "self_attn.q_proj":
                _put(root, f"{block}attn", torch.nn.MultiheadAttention(small[0], 1))
    return root


def _model(job: Job) -> tuple[Any, dict[str, str]]:
    """The model as A1111 holds it, and its names of modules → ours."""
    tags: dict[str, str] = {}
    model = _tree(job.network, "diffusion_model.", tags, "")
    xl = job.family.startswith("sdxl")
    if job.family == "sdxl":
        found: dict[str, str] = {}
        first = _tree(job.encoders["text_encoder"], "transformer.", found, "text_encoder.")
        tags |= {f"0_{name}": tag for name, tag in found.items()}
        found = {}
        second = _openclip(job.encoders["text_encoder_2"], found, "text_encoder_2.")
        tags |= {f"1_{name}": tag for name, tag in found.items()}
        wrapped = [SimpleNamespace(wrapped=first), SimpleNamespace(wrapped=second)]
        made = SimpleNamespace(conditioner=SimpleNamespace(embedders=wrapped), model=model)
    else:
        held = job.encoders["text_encoder"]
        encoder = (
            _openclip(held, tags, "text_encoder.")
            if job.family == "sd21"
            else _tree(held, "transformer.", tags, "text_encoder.")
        )
        made = SimpleNamespace(cond_stage_model=encoder, model=model)
    made.is_sdxl = xl
    return made, tags


def reader(job: Job) -> Callable[[Mapping[str, Any]], Loaded]:
    model, tags = _model(job)
    NETWORKS.shared.sd_model = model
    NETWORKS.assign_network_names_to_compvis_modules(model)
    NETWORKS.os = SimpleNamespace(path=SimpleNamespace(getmtime=lambda path: 0.0))
    shapes: dict[str, tuple[int, ...]] = dict(job.network)
    shapes |= {f"{c}.{n}": s for c, held in job.encoders.items() for n, s in held.items()}

    def read(tensors: Mapping[str, Any]) -> Loaded:
        NETWORKS.sd_models.read_state_dict = lambda path: dict(tensors)
        unread: list[str] = []
        NETWORKS.logging = SimpleNamespace(debug=lambda text: unread.append(text))
        try:
            net = NETWORKS.load_network("ours", SimpleNamespace(filename="ours"))
        except AssertionError as error:
            return Loaded([], {}, str(error))
        changes = {}
        for key, made in net.modules.items():
            tag = tags[key]
            weight = torch.from_numpy(base_of(f"{tag}.weight", narrow(shapes[f"{tag}.weight"])))
            try:
                step, bias = made.calc_updown(weight)
                changes[f"{tag}.weight"] = step.reshape(weight.shape).numpy()
            except RuntimeError:  # A1111 says so in its log, and leaves the layer as it is
                continue
            if bias is not None:
                changes[f"{tag}.bias"] = bias.numpy()
        return Loaded(_failed(unread, tensors), changes)

    return read


def _failed(said: list[str], tensors: Mapping[str, Any]) -> list[str]:
    text = "".join(said)
    return [key for key in tensors if f"'{key}':" in text]


if __name__ == "__main__":
    serve(reader)
