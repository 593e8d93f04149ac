"""Fields of PEFT configurations: which are used, which change nothing, and which are refused.

The configuration of a folder decides the meaning of its tensors. A field that would change their
meaning in a way that loramerge does not compute is an error, by name; so is a field that is not in
the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loramerge.adapter.formats.peft_types import MERGE_IN_PEFT, OTHERS
from loramerge.adapter.info import Problem

__all__ = [
    "FIELDS",
    "TRAINING",
    "Field",
    "configuration_problems",
    "of_training",
    "training_problem",
    "type_problems",
]

_EMPTY: tuple[Any, ...] = (None, False, "", [], {}, ())


@dataclass(frozen=True)
class Field:
    """The meaning of a field.

    Args:
        use: `used` where reading or writing takes its value; `harmless` where the tensors mean the same
            whatever it is; `refused` where some values change what they mean.
        plain: whether a value leaves the tensors' meaning as it is; asked of refused fields only.
        reason: the effect of another value.
        remedy: the advice then.
    """

    use: Literal["used", "harmless", "refused"]
    plain: Callable[[Any], bool] = lambda value: value in _EMPTY
    reason: str = ""
    remedy: str = ""


_USED = Field("used")
_HARMLESS = Field("harmless")

_CONVERT = (
    "save it again with save_pretrained(folder, path_initial_model_for_weight_conversion=...), which "
    "writes an ordinary LoRA of twice the rank"
)
_PEFT_ALONE = "use it in PEFT; it cannot be written as an ordinary LoRA"

# starts of the words for initialisations that change the base → what they do
_CHANGES_BASE: Mapping[str, str] = {
    "pissa": "subtracts the largest singular values from the base",
    "olora": "subtracts the start of a QR decomposition from the base",
    "corda": "subtracts a decomposition that was made with data from the base",
    "lora_ga": "subtracts factors that were made of gradients from the base",
    "loftq": "replaces the base by a quantised one",
}
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")


def _keeps_base(value: Any) -> bool:
    return value is None or isinstance(value, bool) or str(value).lower() in _KEEPS_BASE


def _refused(reason: str, remedy: str = _PEFT_ALONE) -> Field:
    return Field("refused", reason=reason, remedy=remedy)


_COMMON: Mapping[str, Field] = {
    **dict.fromkeys(("peft_type", "base_model_name_or_path", "target_modules"), _USED),
    **dict.fromkeys(("modules_to_save", "inference_mode"), _USED),
    **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"), _USED),
    **dict.fromkeys(("task_type", "auto_mapping", "peft_version", "revision"), _HARMLESS),
}
_FACTORS: Mapping[str, Field] = {
    **dict.fromkeys(("r", "alpha", "rank_pattern", "alpha_pattern", "use_effective_conv2d"), _USED),
    **dict.fromkeys(("rank_dropout", "module_dropout", "init_weights"), _HARMLESS),
}
_ROTATIONS: Mapping[str, Field] = {
    **dict.fromkeys(("fan_in_fan_out", "bias"), _USED),
    "init_weights": _HARMLESS,
}

# PEFT type → field → its meaning; the types are those that can be read
FIELDS: Mapping[str, Mapping[str, Field]] = {
    "LORA": {
        **_COMMON,
        **dict.fromkeys(("r", "lora_alpha", "rank_pattern", "alpha_pattern"), _USED),
        **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out"), _USED),
        **dict.fromkeys(("trainable_token_indices", "target_parameters"), _USED),
        "ensure_weight_tying": _USED,
        "init_lora_weights": Field("refused", _keeps_base, "", _CONVERT),
        # what training draws, keeps or splits among cards; PEFT's own merge leaves it out
        **dict.fromkeys(("lora_dropout", "velora_config", "monteclora_config"), _HARMLESS),
        **dict.fromkeys(("megatron_config", "megatron_core", "runtime_config"), _HARMLESS),
        # read by the initialisation alone, which `init_lora_weights` names
        **dict.fromkeys(("loftq_config", "eva_config", "corda_config", "lora_ga_config"), _HARMLESS),
        "qalora_group_size": _HARMLESS,  # read where use_qalora is set
        "kasa_config": _refused(
            "KaSA cuts singular values from the base and scales each rank", MERGE_IN_PEFT
        ),
        "alora_invocation_tokens": _refused(
            "an activated LoRA (aLoRA) acts only after its invocation tokens, which weights "
            "cannot express"
        ),
        "arrow_config": _refused("Arrow routes every token to other adapters"),
        "use_qalora": _refused("QA-LoRA averages the inputs of a quantised layer in groups"),
        "use_bdlora": _refused("the factors are block-diagonal (BD-LoRA)"),
        "layer_replication": _refused(
            "the model's layers are repeated before the adapter is added", MERGE_IN_PEFT
        ),
    },
    "LOHA": {**_COMMON, **_FACTORS},
    "LOKR": {
        **_COMMON,
        **_FACTORS,
        **dict.fromkeys(("decompose_both", "decompose_factor"), _USED),
        "rank_dropout_scale": _HARMLESS,
    },
    "OFT": {
        **_COMMON,
        **_ROTATIONS,
        **dict.fromkeys(("r", "oft_block_size", "block_share", "coft", "eps"), _USED),
        **dict.fromkeys(("use_cayley_neumann", "num_cayley_neumann_terms"), _USED),
        "module_dropout": _HARMLESS,
    },
    "BOFT": {
        **_COMMON,
        **_ROTATIONS,
        **dict.fromkeys(("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"), _USED),
        "boft_dropout": _HARMLESS,
    },
    "IA3": {
        **_COMMON,
        **dict.fromkeys(("feedforward_modules", "fan_in_fan_out"), _USED),
        "init_ia3_weights": _HARMLESS,
    },
    **{
        name: {
            **_COMMON,
            **dict.fromkeys(type_.used, _USED),
            **dict.fromkeys(("bias", *type_.harmless), _HARMLESS),
            **{field: _refused(reason, MERGE_IN_PEFT) for field, reason in type_.refused.items()},
        }
        for name, type_ in OTHERS.items()
    },
}  # fmt: skip

# field → what stands in the names of tensors that it adds, which training alone reads
TRAINING: Mapping[str, str] = {
    "velora_config": ".lora_velora_embed",
    "monteclora_config": ".lora_monteclora_sampler.",
}

# fields that other programs, or older versions of PEFT, add and that change nothing
_OTHERS = frozenset({
    "enable_lora", "merge_weights", "lorap_lr_ratio", "lorap_emb_lr", "model_key", "lora_dtype",
    "_custom", "_commit_hash", "alora_offsets",
})  # fmt: skip


def configuration_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield an error for each field under which the tensors mean something else than is computed."""
    fields = FIELDS.get(str(config.get("peft_type") or "LORA"), {})
    for name, value in config.items():
        field = fields.get(name)
        if field is None:
            if value not in _EMPTY and name not in _OTHERS:
                yield _unknown(name)
        elif field.use == "refused" and not field.plain(value):
            reason = field.reason or _reason_of(name, value)
            says = f"{name} in the PEFT configuration: {reason}"
            yield Problem("error", "peft-field", None, says, field.remedy)


def of_training(keys: Sequence[str]) -> list[str]:
    """Return the keys of tensors that training alone reads."""
    return [key for key in keys if any(word in key for word in TRAINING.values())]


def training_problem(keys: Sequence[str]) -> Problem:
    """Return the note about tensors that training alone reads."""
    return Problem(
        "note",
        "training-alone",
        None,
        f"{len(keys)} tensors that PEFT reads in training alone ({keys[0]}); no result has them",
        "no action needed; to train on, keep the original",
    )


def type_problems(config: Mapping[str, Any], types: Collection[str]) -> Iterator[Problem]:
    """Yield an error if the tensors are of other types than the configuration: PEFT leaves them out.

    Args:
        types: PEFT types of the deltas.
    """
    stated = str(config.get("peft_type") or "LORA")
    others = sorted({*types} - {stated})
    if others:
        yield Problem(
            "error",
            "peft-type",
            None,
            f"the PEFT configuration is of type {stated}, and the tensors are those of "
            f"{' and '.join(others)}",
            "put the right peft_type into adapter_config.json, or export the adapter again",
        )


def _reason_of(name: str, value: Any) -> str:
    """Return the effect of an initialisation on the base."""
    word = str(value)[:40]
    known = next(
        (does for start, does in _CHANGES_BASE.items() if word.lower().startswith(start)), ""
    )
    if not known:
        return f"the initialisation {word!r} is not known, and it may change the base"
    return f"{word} {known}, so the tensors alone are not the change of the original base"


def _unknown(name: str) -> Problem:
    return Problem(
        "error",
        "peft-field",
        None,
        f"{name[:60]} in the PEFT configuration is not known, and it may change what the tensors mean",
        "if it changes nothing, remove the field from adapter_config.json",
    )
