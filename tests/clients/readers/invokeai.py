"""InvokeAI reads files: it tells what they are for, its loader converts their keys, its patcher applies
them to modules of the names that it holds a model by."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent)]
sys.modules.pop("invokeai", None)  # this file has the name of the package
from job import SHARE, Job, Loaded, Part, narrow, serve  # noqa: E402
from stubs import stub  # noqa: E402
from trees import layer, put  # noqa: E402

# before the stand-ins, which it would take for installed
import_module("diffusers.pipelines.pipeline_utils")
_BACKEND = "invokeai.backend"
stub(
    "invokeai.app", f"{_BACKEND}.model_manager.load", f"{_BACKEND}.model_manager.configs.factory",
    f"{_BACKEND}.model_manager.configs.main", f"{_BACKEND}.util.devices", f"{_BACKEND}.flux",
    f"{_BACKEND}.quantization", "pydantic_settings", "picklescan", "gguf", "sdnq", "onnxruntime",
    "blake3", "send2trash", "semver", "compel", "einops", "torchvision", "deprecated",
)  # fmt: skip
import_module("invokeai.app.services.config.config_default").get_config = lambda: SimpleNamespace(
    log_level="critical", log_handlers=[]
)
torch: Any = import_module("torch")

CAST: Any = f"{_BACKEND}.model_manager.load.model_cache.torch_module_autocast.cast_to_device"
import_module(CAST).cast_to_device = lambda tensor, device: tensor
import_module(f"{_BACKEND}.util.devices").TorchDevice = SimpleNamespace(CPU_DEVICE="cpu")
CONFIGS: Any = import_module(f"{_BACKEND}.model_manager.configs.lora")
TAXONOMY: Any = import_module(f"{_BACKEND}.model_manager.taxonomy")
PATCHER: Any = import_module(f"{_BACKEND}.patches.layer_patcher").LayerPatcher
WEIGHTS: Any = import_module(f"{_BACKEND}.util.original_weights_storage").OriginalWeightsStorage

# family → what it is called there, the class that tells its files, heads of components' layers
_NETWORK = {"transformer": "lora_transformer-"}
_FLUX1 = {**_NETWORK, "text_encoder": "lora_clip-", "text_encoder_2": "lora_t5-"}
_UNET = {"unet": "lora_unet_"}
_XL = {**_UNET, "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_SD = {**_UNET, "text_encoder": "lora_te_"}
FAMILIES: dict[str, tuple[str, str, dict[str, str]]] = {
    "sd15": ("StableDiffusion1", "SD1", _SD),
    "sd21": ("StableDiffusion2", "SD2", _SD),
    "sdxl": ("StableDiffusionXL", "SDXL", _XL),
    "flux1": ("Flux", "FLUX", _FLUX1),
    "flux2-dev": ("Flux2", "Flux2", _NETWORK),
    "flux2-klein-4b": ("Flux2", "Flux2", _NETWORK),
    "flux2-klein-9b": ("Flux2", "Flux2", _NETWORK),
    "z-image": ("ZImage", "ZImage", _NETWORK),
    "qwen-image": ("QwenImage", "QwenImage", _NETWORK),
    "anima": ("Anima", "Anima", {**_NETWORK, "text_encoder": "lora_qwen3-"}),
    "wan": ("Wan", "Wan", _NETWORK),
}
ORIGINAL = ("flux1", "anima")  # the others are diffusers' models there


def _loader() -> Any:
    """The loader of LoRA files, whose package is not imported."""
    path = f"{sys.argv[1]}/invokeai/backend/model_manager/load/model_loaders/lora.py"
    registry = import_module(f"{_BACKEND}.model_manager.load.model_loader_registry")
    registry.ModelLoaderRegistry.register = lambda **named: lambda made: made
    spec: Any = importlib.util.spec_from_file_location("lora_loader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADER = _loader()


def _parts(job: Job, component: str) -> dict[str, Part]:
    """Return the parameters of a component by the names in InvokeAI's model."""
    if component.startswith("text_encoder"):
        head = "model." if job.family == "anima" else ""
        held = job.encoders[component]
        return {head + n: Part.whole(f"{component}.{n}", narrow(s)) for n, s in held.items()}
    if job.family in ORIGINAL:
        return {name: Part.whole(name, narrow(shape)) for name, shape in job.network.items()}
    return dict(job.plain)


def _tree(parts: Mapping[str, Part], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    root = torch.nn.Module()
    for name, part in parts.items():
        path, _, word = name.rpartition(".")
        if word == "weight" and path:
            weight = part.base(shapes[part.tag])
            made = layer(weight.shape, f"{path}.bias" in parts)
            made.weight.data = torch.from_numpy(weight)
            put(root, path, made)
    return root


def _told(job: Job, tensors: Mapping[str, Any]) -> str:
    """Return why InvokeAI does not know what a file is for; empty if it does.

    It goes by sizes, so it is given those of the whole network.
    """
    whole = {
        name: torch.empty([n * SHARE if n >= 8 else n for n in tensor.shape], device="meta")
        for name, tensor in tensors.items()
    }
    on_disk = SimpleNamespace(load_state_dict=lambda path=None: whole, metadata=dict)
    config = getattr(CONFIGS, f"LoRA_LyCORIS_{FAMILIES[job.family][1]}_Config")
    try:
        config._validate_looks_like_lora(on_disk)
        config._validate_base(on_disk)
    except CONFIGS.NotAMatchError as error:
        return str(error)
    return ""


def _converted(job: Job, tensors: Mapping[str, Any]) -> Any:
    """Return what the loader makes of a file."""
    LOADER.load_file = lambda path, device: dict(tensors)
    base = getattr(TAXONOMY.BaseModelType, FAMILIES[job.family][0])
    loader = SimpleNamespace(_model_base=base, _torch_dtype=torch.float32)
    config = SimpleNamespace(path="ours.safetensors", format=TAXONOMY.ModelFormat.LyCORIS)
    return LOADER.LoRALoader._load_model(loader, config)


def reader(job: Job) -> Callable[[Mapping[str, Any]], Loaded]:
    shapes: dict[str, tuple[int, ...]] = dict(job.network)
    shapes |= {f"{c}.{n}": s for c, held in job.encoders.items() for n, s in held.items()}
    components = [
        (head, parts, _tree(parts, shapes))
        for component, head in FAMILIES[job.family][2].items()
        for parts in (_parts(job, component),)
    ]

    def read(tensors: Mapping[str, Any]) -> Loaded:
        if refused := _told(job, tensors):
            return Loaded([], {}, refused)
        try:
            patch = _converted(job, tensors)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            return Loaded([], {}, repr(error))
        used: set[int] = set()
        changes: dict[str, Any] = {}
        for head, parts, model in components:
            before = {name: value.detach() for name, value in model.named_parameters()}
            try:
                used |= _apply(patch, model, head)
            except (AssertionError, KeyError, RuntimeError, ValueError) as error:
                return Loaded([], {}, repr(error))
            for name, value in model.named_parameters():
                if value.data_ptr() != before[name].data_ptr():
                    change = (value.detach() - before[name]).numpy()
                    parts[name].add(changes, change, shapes[parts[name].tag])
                    value.data = before[name]
        return Loaded(_unread(tensors, used), changes)

    return read


def _apply(patch: Any, model: Any, head: str) -> set[int]:
    """Apply a file to a component; the result is where the tensors lie that took part."""
    used: set[int] = set()
    apply = PATCHER._apply_model_layer_patch

    def noting(**given: Any) -> None:
        used.update(_tensors(given["patch"]))
        apply(**given)

    PATCHER._apply_model_layer_patch = staticmethod(noting)
    try:
        PATCHER.apply_smart_model_patch(
            model=model, prefix=head, patch=patch, patch_weight=1.0, original_weights=WEIGHTS(),
            original_modules={}, dtype=torch.float32, force_direct_patching=True,
            force_sidecar_patching=False,
        )  # fmt: skip
    finally:
        PATCHER._apply_model_layer_patch = staticmethod(apply)
    return used


def _tensors(patch: Any) -> Iterator[int]:
    for held in vars(patch).values():
        if torch.is_tensor(held):
            yield held.data_ptr()
    for inner in vars(patch).get("lora_layers", ()):
        yield from _tensors(inner)


def _unread(tensors: Mapping[str, Any], used: set[int]) -> list[str]:
    """Return the keys that took no part; an alpha does where any other tensor of its layer does."""
    read = {key for key, tensor in tensors.items() if tensor.data_ptr() in used}
    stems = {_stem(key) for key in read}
    return [
        key
        for key in tensors
        if key not in read and not (key.endswith(".alpha") and _stem(key) in stems)
    ]


def _stem(key: str) -> str:
    for word in (".lora_", ".hada_", ".lokr_", ".alpha", ".dora_scale", ".oft_"):
        key = key.partition(word)[0]
    return key


if __name__ == "__main__":
    serve(reader)
