"""Words that people know from other programs, and what says the same here.

One table for the command line, recipes and Python: names of parameters as kohya's scripts, PEFT,
diffusers' scripts, mergekit and supermerger have them, and names of commands. An answer is a message
whose parameters are `Setting`, so that each of the three spells it in its own way. Words that are
close to one of ours by their letters alone get no answer: `--models` does not mean `--method`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from loramerge.errors import Message, Setting, nearest

__all__ = [
    "CLOSE", "advice_on_command", "advice_on_parameter", "answer_to_command", "answer_to_parameter",
]  # fmt: skip

CLOSE = 0.75  # likeness of a slip of the finger: `rnak` and `rank`, but not `models` and `method`

# parameters here → their names elsewhere; a name in several lines is the first that the verb has
_SAME = {
    # files
    "base": """pretrained_model_name_or_path pretrained_model base_model base_model_name_or_path
        model_name_or_path sd_model checkpoint ckpt model_id model model_org original_model""",
    "tuned": "model_tuned tuned_model finetuned finetuned_model fine_tuned",
    "out_dir": "output_dir out_folder output_folder",
    "output": """save_to output_name output_file output_path out outfile save_path save_as dst dest
        output_dir""",
    "force": "overwrite yes y",
    "precision": "mixed_precision",
    "dtype": "save_precision save_dtype out_dtype torch_dtype fp16 bf16 half precision mixed_precision",
    "to": "format output_format target_format dialect out_format save_model_as output_kohya_format",
    "dry_run": "dry simulate check_only debug_dataset",
    # ranks
    "rank": """network_dim network_rank new_rank lora_r lora_rank lora_dim linear_dim linear_rank dim r
        svd_rank target_rank""",
    "conv_rank": "new_conv_rank conv_dim conv_lora_dim",
    "ratio": "sv_ratio",
    "cumulative": "sv_cumulative svd_threshold",
    "energy": "energy_threshold variance",
    # mix
    "method": "merge_method combination_type algorithm",
    # training
    "alpha": "network_alpha lora_alpha",
    "images": """train_data_dir instance_data_dir instance_data data_dir image_dir dataset dataset_name
        dataset_dir image_folder""",
    "trigger": """instance_prompt instance_token trigger_word trigger_words token_string concept
        caption_prefix""",
    "regularisation": """class_data_dir reg_data_dir class_data with_prior_preservation regularization
        regularization_images reg_images""",
    "regularisation_prompt": "class_prompt class_tokens",
    "regularisation_count": "num_class_images",
    "regularisation_weight": "prior_loss_weight",
    "steps": "max_train_steps max_steps num_steps iterations train_steps num_inference_steps",
    "epochs": "max_train_epochs num_train_epochs num_epochs",
    "lr": "learning_rate unet_lr",
    "text_lr": "text_encoder_lr learning_rate_te te_lr",
    "schedule": "lr_scheduler scheduler lr_scheduler_type",
    "warmup": "lr_warmup_steps lr_warmup warmup_steps warmup_ratio",
    "optimizer": "optimizer_type use_8bit_adam optim use_lion_optimizer",
    "optimizer_option": """optimizer_args optimizer_kwargs adam_beta1 adam_beta2 adam_epsilon
        prodigy_beta3""",
    "batch": "train_batch_size batch_size bs",
    "accumulate": "gradient_accumulation_steps gradient_accumulation",
    "checkpointing": "gradient_checkpointing",
    "save_every": "save_every_n_steps save_every_n_epochs checkpointing_steps save_steps save_freq",
    "sample_every": "sample_every_n_steps sample_every_n_epochs validation_epochs validation_steps",
    "prompt": "sample_prompts validation_prompt validation_prompts prompts sample_prompt",
    "negative": "negative_prompt neg",
    "guidance": "guidance_scale cfg cfg_scale",
    "min_snr": "min_snr_gamma snr_gamma",
    "shuffle_tags": "shuffle_caption shuffle_captions",
    "tag_dropout": "caption_tag_dropout_rate caption_tag_dropout",
    "caption_dropout": "caption_dropout_rate caption_dropout_prob",
    "bucket_step": "bucket_reso_steps bucket_resolution_steps",
    "no_buckets": "disable_bucket center_crop",
    "repeats": "num_repeats dataset_repeats",
    "dropout": "lora_dropout network_dropout",
    "targets": "target_modules lora_target_modules lora_layers preset",
    "include": "layers_to_transform",
    "rank_pattern": "network_reg_dims lora_rank_pattern",
    "lora_plus": "loraplus_lr_ratio loraplus_unet_lr_ratio lora_plus_ratio",
    "rslora": "use_rslora",
    "init": "init_lora_weights",
    "text_encoder": "train_text_encoder network_train_text_encoder train_te",
    "ema": "use_ema ema_decay",
    "max_grad_norm": "gradient_clip clip_grad grad_clip",
    "resume": "resume_from_checkpoint resume_from initial_epoch initial_step skip_until_initial_step",
    "init_from": "network_weights lora_weights warm_start dim_from_weights",
    "folder": "logging_dir log_dir run_dir",
    "cache": "cache_dir latent_cache_dir",
    "tensorboard": "log_with report_to log_prefix log_tracker_name",
    "exclude": "exclude_modules",
    "timesteps": """min_timestep max_timestep timestep_sampling sigmoid_scale discrete_flow_shift
        weighting_scheme logit_mean logit_std mode_scale""",
    "prediction": "model_prediction_type prediction_type parameterization",
    "strip": "no_metadata",
    "vram": "blocks_to_swap",
    "device": "cuda",
    "weight_decay": "adam_weight_decay",
}  # fmt: skip

_Answer = TypeVar("_Answer")

_BEHIND: Message = "write the weight of an adapter behind its name: character:0.7 style:0.3"
_ARGUMENTS: Message = "write the adapters without an option, each with its weight: a:0.7 b:0.3"
_ARGUMENT: Message = "write the file without an option"
_SCALE: Message = (
    "alpha needs no option: it is read from the file, and what the adapter changes (ΔW) stays the "
    "same at every rank; to weaken an adapter, write NAME:0.5"
)
_NO_METHOD: Message = "it belongs to a merge method; `operators NAME` shows the options of one"
_AUTOMATIC: Message = "leave it out: loramerge does this by itself"
_ABSENT: Message = "loramerge does not have it"
_METADATA: Message = "`meta FILE --set modelspec.title=…` writes such entries into a header"
_IN_BASE: Message = ("all models are read from one place: ", Setting("base"), " takes a folder of "
                     "diffusers, or a single file that holds them")  # fmt: skip


def _each(words: str, answer: _Answer) -> dict[str, _Answer]:
    """Return the answer to each of some words."""
    return dict.fromkeys(words.split(), answer)


# what no single parameter says: word → verb, or "" for all the others → answer
_ELSEWHERE: Mapping[str, Mapping[str, Message]] = {
    **_each("ratios weights adapter_weights multiplier multipliers lora_scale scale strength",
        dict.fromkeys(("mix", "bake", "preview", "merge"), _BEHIND),
    ),
    **_each("ratio alpha weight", dict.fromkeys(("mix", "bake", "preview", "merge"), _BEHIND)),
    **_each("network_alpha lora_alpha new_alpha", {"": _SCALE}),
    **_each("models loras lora_paths adapters adapter_names lora lora_1 lora1 lora_a",
        {"mix": _ARGUMENTS, "preview": _ARGUMENTS, "": _ARGUMENT},
    ),
    **_each("input src source file path lora_path adapter_path", {"": _ARGUMENT}),
    "model": _each("resize convert inspect meta", _ARGUMENT),
    **_each("lbw lbws blocks block_weights", {
        "": "write the weight per block behind the name: NAME:OUTALL, or NAME:1,0,0,… (docs/weights.md)",
    }),
    **_each("dynamic_method dynamic_param sv_fro", {
        "resize": ("sv_ratio is ", Setting("ratio"), ", sv_cumulative is ", Setting("cumulative"),
                   ", and sv_fro 0.9 is ", Setting("energy", 0.81), " (its square)"),
    }),
    **_each("score_recipes fro_ckpt spn_ckpt thr", {
        "resize": ("scores relative to a base are ", Setting("relative_to", "BASE"), " with ",
                   Setting("ratio", 3162), " (10 to the power of −thr) or ",
                   Setting("max_size", "8MB"), "; spn_ckpt is ", Setting("norm", "spectral")),
    }),
    **_each("density majority_sign_method drop_rate lambda t normalize trim interp_method",
        {"mix": _NO_METHOD, "merge": _NO_METHOD},
    ),
    "concat": {"mix": ("the sum is exact without it; for the bytes of kohya's script, give ",
                       Setting("compat", "kohya-concat"))},
    "shuffle": {"mix": "kohya's shuffling of ranks is not needed: the sum is exact"},
    **_each("load_precision compute_dtype", {
        "": "leave it out: sums are computed in float32 or better whatever the files hold",
    }),
    **_each("network_module network_args algo", {
        "train": ("the kind of adapter is ", Setting("method"), ", its layers ", Setting("targets")),
    }),
    "use_dora": {"train": ("give ", Setting("method", "dora"))},
    **_each("""xformers sdpa mem_eff_attn enable_xformers_memory_efficient_attention cache_latents
        cache_latents_to_disk persistent_data_loader_workers max_data_loader_n_workers enable_bucket
        lowram caption_extension allow_tf32 prior_generation_precision
        zero_terminal_snr cache_text_encoder_outputs caption_extention tokenizer_cache_dir vae_batch_size
        skip_cache_check highvram dataloader_num_workers no_half_vae max_token_length fan_in_fan_out
        save_state save_state_on_train_end sample_at_first network_train_unet_only task_type
        pre_compute_text_embeddings""",
        {"train": _AUTOMATIC},
    ),
    **_each("""sdxl in_format input_format copy_tokenizer lazy_unpickle mem_eff_safe_open safe_merge
        svd_driver svd_full_matrices verbose load_original_model_to min_diff v2 v_parameterization""",
        {"": _AUTOMATIC},
    ),
    **_each("""caption_separator keep_tokens_separator secondary_separator enable_wildcard caption_suffix
        face_crop_aug_range min_bucket_reso max_bucket_reso token_warmup_min token_warmup_step alpha_mask
        caption_dropout_every_n_epochs save_n_epoch_ratio save_last_n_epochs save_last_n_steps
        checkpoints_total_limit torch_compile noise_offset_random_strength multires_noise_iterations
        multires_noise_discount adaptive_noise_scale ip_noise_gamma loss_type huber_c huber_schedule
        lr_decay_steps lr_scheduler_args lr_scheduler_num_cycles lr_scheduler_power
        lr_scheduler_min_lr_ratio scale_lr fused_backward_pass scale_v_pred_loss_like_noise_pred
        v_pred_like_loss debiased_estimation_loss weighted_captions network_train_text_encoder_only
        scale_weight_norms base_weights base_weights_multiplier num_validation_images random_flip
        do_edm_style_training modules_to_save layers_pattern loftq_config bias full_fp16 full_bf16
        fp8_base image_column caption_column wandb_run_name wandb_api_key push_to_hub hub_token
        hub_model_id huggingface_repo_id dataset_class sample_sampler crops_coords
        text_encoder_use_attention_mask""",
        {"train": _ABSENT},
    ),
    **_each("clamp_quantile svd_clamp svd_guidance svd_quantile", {"": _ABSENT}),
    **_each("out_shard_size parameters", {"merge": _ABSENT}),
    **_each("""metadata_title metadata_author metadata_description metadata_license metadata_tags
        training_comment""",
        {"train": _METADATA},
    ),
    **_each("vae ae clip_l clip_g t5xxl", {"train": _IN_BASE}),
    **_each("dataset_config in_json config_file output_config", {
        "train": ("the folder of images is ", Setting("images"), ", and settings that are used again "
                  "go into a recipe: ", Setting("save_recipe", "FILE.yaml")),
    }),
    "epochs": {"train": ("count steps instead: ", Setting("steps"),
                         " = epochs × images × repeats / batch")},
    **_each("bucket_no_upscale random_crop flip_aug color_aug", {"train": _ABSENT}),
    **_each("adapter_name lora_name", {"": _ARGUMENT}),
}  # fmt: skip

_MIX = "`mix` combines adapters in one file, each at its weight"
_BAKE = "`bake` adds adapters to a checkpoint"
_INSPECT = "`inspect` shows what a file is and holds"
_RESIZE = "`resize` lowers the ranks of adapters"
_CONVERT = "`convert` writes an adapter in another format or type"
_PREVIEW = "`preview` generates images with adapters, side by side"
_METHOD = (
    "a merge method is an option: `mix --method NAME`; `operators` lists the methods there are"
)

# commands elsewhere, and those that this version lacks → what does it, or the nearest thing
_COMMANDS = {
    **_each("extract_lora extract_lora_from_models lora_extract subtract_models",
                    "`extract` makes an adapter of the difference of two checkpoints"),
    **_each("info show view cat describe examine identify stats check validate ls",
                    _INSPECT),
    "list": "`library list` shows the folders that names are looked up in, `base list` the checkpoints, "
    "`recipes` the recipes; `inspect FOLDER` shows the adapters of a folder",
    **_each("""ties dare dare_ties dare_linear slerp task_arithmetic della breadcrumbs
        magnitude_prune svd_merge linear""", _METHOD),
    **_each("methods algorithms", "`operators` lists the merge methods"),
    **_each("""add combine blend sum average concat join merge_lora merge_loras
        svd_merge_lora add_weighted_adapter interpolate""", _MIX),
    **_each("""weighted_sum add_difference sum_twice train_difference merge_checkpoints merge_models
        checkpoint_merger mergekit mergekit_yaml""",
                    "`merge` merges checkpoints, and `loramerge merge --help` names its methods"),
    **_each("""apply fuse fold fuse_lora merge_and_unload merge_adapter apply_lora
        merge_to_checkpoint networks_merge_lora""", _BAKE),
    **_each("shrink compress reduce prune truncate resize_lora svd rerank", _RESIZE),
    **_each("export transform translate save convert_lora cast quantize", _CONVERT),
    **_each("""generate sample draw txt2img image render grid xyz plot infer
        inference""", _PREVIEW),
    **_each("fit finetune fine_tune dreambooth train_network train_lora learn",
                    "`train` makes an adapter from a folder of images"),
    **_each("metadata edit tag set header rename",
                    "`meta` shows and edits the metadata of a file"),
    **_each("models model checkpoint checkpoints bases",
                    "`base list` shows the checkpoints that have a name, `base add` names one"),
    **_each("folder folders path find search",
                    "`library` names the folders in which adapters are found"),
    **_each("repeat reproduce rerun redo execute exec",
                    "`run` runs a recipe, or makes a file again from its header"),
    **_each("dryrun dry_run explain preview_recipe",
                    "`plan` shows what a run of a recipe would do"),
    **_each("recipe init new template", "`recipes` lists recipes to start from"),
    **_each("formats dialect", "`dialects` lists the formats"),
    **_each("family architectures", "`families` lists the base models"),
    **_each("operator", "`operators` lists the merge methods"),
    **_each("tour example start quickstart test",
                    "`demo` takes a tour on a tiny model"),
    **_each("help man usage", "write `loramerge --help`, or `loramerge COMMAND --help`"),
    "version": "write `loramerge --version`",
}  # fmt: skip


def _inverted() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for ours, theirs in _SAME.items():
        for word in theirs.split():
            found[word] = (*found.get(word, ()), ours)
    return found


_OURS = _inverted()


def _plain(word: str) -> str:
    return word.lower().lstrip("-").replace("-", "_")


def answer_to_parameter(word: str, verb: str, known: Collection[str]) -> Message | None:
    """Return the advice for a parameter that the verb does not have, None if unknown.

    Args:
        word: as it was typed: `--network_dim`, `lora_alpha`.
        known: the parameters that the verb has, as in recipes.
    """
    plain = _plain(word)
    if plain in known:  # typed with `_` for `-`
        return ("write ", Setting(plain))
    targets = _OURS.get(plain, ())
    answers = [_ELSEWHERE.get(name, {}) for name in (plain, *targets)]
    called = [("here it is called ", Setting(ours)) for ours in targets if ours in known]
    exact = [one[verb] for one in answers[:1] if verb in one]
    others = [one[key] for one in answers for key in (verb, "") if key in one]
    return next(iter((*exact, *called, *others)), None)


def answer_to_command(word: str) -> str | None:
    """Return the command for what other programs call by this name, None if unknown."""
    return _COMMANDS.get(_plain(word))


def advice_on_parameter(word: str, verb: str, known: Collection[str]) -> Message | None:
    """Return the advice for an unknown parameter, None if nothing is certain.

    That is the answer to a habit, or the parameter that differs by a slip.
    """
    answer = answer_to_parameter(word, verb, known)
    if answer is not None:
        return answer
    close = nearest(_plain(word), known, CLOSE)
    return None if close is None else ("did you mean ", Setting(close), "?")


def advice_on_command(word: str, known: Collection[str]) -> str | None:
    """Return the advice for an unknown command, None if nothing is certain."""
    answer = answer_to_command(word)
    if answer is not None:
        return answer
    swapped = (one for one in known if sorted(one) == sorted(word))  # `mxi`: too short to be alike
    close = nearest(word, known, CLOSE) or next(swapped, None)
    return None if close is None else f"did you mean {close}?"
