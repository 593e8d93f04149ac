"""Starts ComfyUI without its server, and runs workflows in it: `driver.py CHECKOUT JOB.json`.

The job names the folder of models and custom nodes, and workflows in the form of ComfyUI's API. The
report says what ComfyUI logged, the definitions of the nodes, and the errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import types
import uuid
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
JOB = json.loads(Path(sys.argv[2]).read_text("utf-8"))
CHECKOUT = sys.argv[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests" / "clients" / "readers"), CHECKOUT]
sys.argv = ["main.py", "--cpu", "--base-directory", JOB["base"], "--disable-api-nodes"]

from stubs import stub  # noqa: E402

stub(
    "av", "torchsde", "scipy", "kornia", "spandrel", "aiohttp", "sentencepiece", "torchaudio",
    "torchvision", "comfy_aimdo", "cv2", "sqlalchemy", "alembic", "yarl",
)  # fmt: skip


class Messages(logging.Handler):
    """Keeps what is logged as a warning or an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def prepare() -> None:
    """Teach both programs the narrow model: loramerge its family, ComfyUI a configuration."""
    from loramerge.families import FAMILIES
    from tests.comfyui import narrow

    FAMILIES.add(narrow.family_of(narrow.WORDS_IN_COMFYUI))
    models: Any = import_module("comfy.supported_models")
    clip: Any = import_module("comfy.sd1_clip")
    config = {
        "num_hidden_layers": narrow.CLIP.layers, "hidden_size": narrow.CLIP.width,
        "num_attention_heads": 4, "intermediate_size": 4 * narrow.CLIP.width,
        "hidden_act": "quick_gelu", "vocab_size": narrow.WORDS_IN_COMFYUI, "max_position_embeddings": 77,
        "eos_token_id": 49407, "projection_dim": narrow.CLIP.width,
    }  # fmt: skip

    shape = {"model_channels": narrow.UNET.widths[0], "context_dim": narrow.UNET.context}
    heads = {"num_heads": narrow.HEADS, "num_head_channels": -1}

    class Narrow(models.SD15):  # type: ignore[misc, name-defined]
        unet_config = models.SD15.unet_config | shape
        unet_extra_config = heads

        def clip_target(self, state_dict: Any = None) -> Any:
            small = partial(clip.SDClipModel, textmodel_json_config=config)
            target: Any = import_module("comfy.supported_models_base")
            return target.ClipTarget(
                clip.SD1Tokenizer, partial(clip.SD1ClipModel, clip_model=small)
            )

    models.models.insert(0, Narrow)


def add_test_nodes(nodes: Any) -> None:
    """Add a node that writes the weights of a model as they are when it is used."""
    management: Any = import_module("comfy.model_management")

    class Dump:
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True
        CATEGORY = "tests"

        @classmethod
        def INPUT_TYPES(cls) -> Any:
            return {
                "required": {"model": ("MODEL",), "path": ("STRING", {})},
                "optional": {"clip": ("CLIP",)},
            }

        def run(self, model: Any, path: str, clip: Any = None) -> Any:
            import numpy as np

            found = {}
            for name, given in (("unet", model), ("clip", clip)):
                if given is None:
                    continue
                patcher = given if name == "unet" else given.patcher
                management.load_models_gpu([patcher], force_patch_weights=True)
                for key, value in patcher.model.state_dict().items():
                    found[f"{name}.{key}"] = value.float().numpy().copy()
            np.savez(path, **found)
            return {}

    nodes.NODE_CLASS_MAPPINGS["TestDump"] = Dump


async def load(nodes: Any) -> None:
    """Load the custom nodes, as ComfyUI does at its start, and one of its own that the examples use."""
    await nodes.init_external_custom_nodes()
    extra = Path(CHECKOUT, "comfy_extras", "nodes_preview_any.py")
    await nodes.load_custom_node(str(extra), module_parent="comfy_extras")


class Server:
    """Stands for the server, which shows progress to the interface."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def send_sync(self, *_: Any) -> None:
        pass


def run(workflow: Any, execution: Any) -> Any:
    """Validate a workflow and run it; return the errors and what its nodes show."""
    prompt_id = str(uuid.uuid4())
    valid = asyncio.run(execution.validate_prompt(prompt_id, workflow, None))
    if not valid[0]:
        return {"errors": [valid[1], valid[3]], "cached": []}
    executor = STATE.setdefault("executor", execution.PromptExecutor(Server()))
    executor.execute(workflow, prompt_id, {}, valid[2])
    messages = dict(executor.status_messages)
    failed = messages.get("execution_error")
    return {
        "errors": [failed["exception_message"]] if failed else [],
        "cached": messages["execution_cached"]["nodes"],
    }


STATE: dict[str, Any] = {}


def main() -> None:
    """Run the job, and write the report beside it."""
    handler = Messages()
    import_module("comfy.options").enable_args_parsing()
    import_module("utils.json_util")  # before ComfyUI puts another `utils` on the path
    folder_paths = import_module("folder_paths")
    folder_paths.set_output_directory(str(Path(JOB["base"], "output")))
    sys.modules.setdefault("server", types.ModuleType("server")).PromptServer = Server  # type: ignore[attr-defined]
    prepare()
    nodes = import_module("nodes")
    execution = import_module("execution")
    add_test_nodes(nodes)
    logging.getLogger().addHandler(handler)
    asyncio.run(load(nodes))
    ours = {n: c for n, c in nodes.NODE_CLASS_MAPPINGS.items() if n.startswith("Loramerge")}
    report = {
        "loading": list(handler.found),
        "nodes": {name: found.GET_NODE_INFO_V1() for name, found in ours.items()},
        "runs": [],
    }
    handler.found.clear()
    translations = import_module("app.custom_node_manager").CustomNodeManager().build_translations()
    report["translations"] = translations
    for workflow in JOB["workflows"]:
        report["runs"].append(run(workflow, execution) | {"log": list(handler.found)})
        handler.found.clear()
    Path(JOB["report"]).write_text(json.dumps(report, default=str), "utf-8")


if __name__ == "__main__":
    main()
