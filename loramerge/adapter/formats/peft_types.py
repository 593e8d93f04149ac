"""PEFT's types of adapters beside LoRA and its nearest kin: the fields that count, and the types
refused.

Each type is here or in `peft_fields.FIELDS`; tests name one of the installed PEFT that is in neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["MERGE_IN_PEFT", "OTHERS", "REFUSED", "Refused", "TunerType"]

MERGE_IN_PEFT = "merge it in PEFT with merge_and_unload()"
_USE_IN_PEFT = "use it in PEFT; its effect cannot be added to the weights of the base"


@dataclass(frozen=True)
class TunerType:
    """The fields of the configuration of a type, beside those of all types.

    Args:
        used: those that ΔW depends on, or that writing needs.
        harmless: those that change nothing of what the tensors mean.
        refused: field → what it does where it is set.
    """

    used: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


class Refused(NamedTuple):
    """The reason why a type is refused, and the remedy."""

    reason: str
    remedy: str = _USE_IN_PEFT


_INIT = "init_weights"
_TURNED = "fan_in_fan_out"  # tells how the base is stored; ΔW is (out, in) either way

# those of its training, and those of LoRA, whose configuration it has
_ADALORA_HARMLESS = (
    "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
    "lora_dropout", "init_lora_weights", "alpha_pattern", "use_rslora", "megatron_config",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    "qalora_group_size", "monteclora_config", "runtime_config", "ensure_weight_tying",
)  # fmt: skip
_ADALORA_REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "arrow_config",
    "alora_invocation_tokens", "layer_replication", "target_parameters", "trainable_token_indices",
)  # fmt: skip

# type → fields
OTHERS: Mapping[str, TunerType] = {
    "ADALORA": TunerType(
        ("lora_alpha", "init_r", "r", "rank_pattern", _TURNED),
        _ADALORA_HARMLESS,
        dict.fromkeys(_ADALORA_REFUSED, "PEFT has no AdaLoRA with it"),
    ),
    "BEFT": TunerType(harmless=(_INIT,)),
    "BONE": TunerType(("r", _INIT)),
    "C3A": TunerType(("block_size", "block_size_pattern"), (_INIT,)),
    "DEFT": TunerType(
        ("r", "alpha", "decomposition_method", "para", _TURNED),
        (_INIT, "init_scale", "deft_dropout"),
    ),
    "DELORA": TunerType(
        ("r", "rank_pattern"), (_INIT, "delora_lambda", "lambda_pattern", "module_dropout")
    ),
    "FOURIERFT": TunerType(
        ("n_frequency", "n_frequency_pattern", "random_loc_seed", "scaling", _TURNED),
        (_INIT,),
    ),
    "GLORA": TunerType(("r", "config_A_B", "config_C", "config_D_E"), (_INIT,)),
    "GRALORA": TunerType(
        ("r", "alpha", "gralora_k", "hybrid_r", _TURNED), (_INIT, "gralora_dropout")
    ),
    "HIRA": TunerType(("r", "rank_pattern", _TURNED), (_INIT, "hira_dropout")),
    "HRA": TunerType(("r", "apply_GS"), (_INIT,)),
    "LN_TUNING": TunerType(),
    "MISS": TunerType(("r", "mini_r", _INIT), ("miss_dropout",)),
    "OSF": TunerType(("effective_rank", "rank_pattern", "target_svd_config"), (_INIT,)),
    "PEANUT": TunerType(
        ("r", "scaling", "act_fn"),
        (_INIT,),
        {"depth": "PEANuT with encoders and decoders is not computed"},
    ),
    "PVERA": TunerType(
        ("r", "save_projection", _TURNED),
        (_INIT, "d_initial", "projection_prng_key", "pvera_dropout", "generator_seed"),
        {"sample_at_inference": "every run draws another change"},
    ),
    "RANDLORA": TunerType(
        ("r", "randlora_alpha", "save_projection", _TURNED),
        (_INIT, "projection_prng_key", "randlora_dropout", "sparse", "very_sparse"),
    ),
    "ROAD": TunerType(("variant", "group_size"), (_INIT,)),
    "SHIRA": TunerType(("r", _TURNED), (_INIT, "mask_type", "random_seed")),
    "SUPERTUNING": TunerType(
        ("r", "lora_alpha", "save_precomputed_indices"),
        (_INIT, "lora_dropout", "select_top", "sparsity"),
    ),
    "TINYLORA": TunerType(
        ("r", "u", "weight_tying", "projection_seed", "save_projection", _TURNED),
        (_INIT, "init_v_bound", "tinylora_dropout"),
    ),
    "TRAINABLE_TOKENS": TunerType(("token_indices",), (_INIT,)),
    "UNILORA": TunerType(
        ("r", "theta_d_length", "save_indices", _TURNED),
        (_INIT, "init_theta_d_bound", "proj_seed", "unilora_dropout"),
    ),
    "VBLORA": TunerType(
        ("r", "topk", "num_vectors", "vector_length", "save_only_topk_weights", _TURNED),
        ("init_logits_std", "init_vector_bank_bound", "vblora_dropout"),
    ),
    "VERA": TunerType(
        ("r", "save_projection", _TURNED),
        (_INIT, "d_initial", "projection_prng_key", "vera_dropout"),
    ),
    "WAVEFT": TunerType(
        (
            "n_frequency",
            "n_frequency_pattern",
            "random_loc_seed",
            "scaling",
            "use_idwt",
            "wavelet_family",
            "proportional_parameters",
            _TURNED,
        ),
        (_INIT,),
    ),
}

_PROMPT = "its tensors stand before the input, not in a weight"
_PER_INPUT = "what it adds depends on the input"

REFUSED: Mapping[str, Refused] = {
    **dict.fromkeys(
        (
            "CARTRIDGE",
            "CPT",
            "MULTITASK_PROMPT_TUNING",
            "P_TUNING",
            "PREFIX_TUNING",
            "PROMPT_TUNING",
        ),
        Refused(_PROMPT),
    ),
    "ADAPTION_PROMPT": Refused("it adds an attention to prompts of its own, not to a weight"),
    "LILY": Refused(f"{_PER_INPUT}: a router mixes the second factors for each token"),
    "POLY": Refused(f"{_PER_INPUT}: a router mixes its factors for each task"),
    "XLORA": Refused(f"{_PER_INPUT}: a network weighs several adapters for each token"),
    "SHADOW": Refused("it is a second network beside the model"),
    "ADAMSS": Refused(
        "which rows each of its factors changes follows from a clustering of the base, which is not in "
        "the file",
        MERGE_IN_PEFT,
    ),
    "FROD": Refused(
        "its left factors are computed from the base, with signs that each library chooses for itself, "
        "and are not in the file",
        MERGE_IN_PEFT,
    ),
    "PSOFT": Refused(
        "its matrix acts on singular vectors of the base, whose signs each library chooses for itself, "
        "and they are not in the file",
        MERGE_IN_PEFT,
    ),
}
