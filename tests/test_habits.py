"""Words of other programs get the answer that helps, and never one that is alike by letters only."""

from __future__ import annotations

import re

import pytest

import loramerge as lm
from loramerge.cli.commands import command_named, summaries
from loramerge.errors import Setting, on_command_line, spelled
from loramerge.habits import (
    _COMMANDS,
    _ELSEWHERE,
    _SAME,
    advice_on_command,
    advice_on_parameter,
    answer_to_command,
    answer_to_parameter,
)
from loramerge.steps.foreign import rewritten
from loramerge.steps.parameters import parameters_of
from loramerge.verbs import verb_named

VERBS = {name: verb for name in summaries() if (verb := verb_named(name)) is not None}
WORDS = {
    name: {one.word for kind in (verb.parameters, getattr(verb.for_files, "parameters", None))
           if kind for one in parameters_of(kind)}
    for name, verb in VERBS.items()
}  # fmt: skip
OF_ALL = set.intersection(
    *({option.name for option in command_named(name).params} for name in ("mix", "train"))
)  # `--strip`, `--device`, …
ALL = set().union(OF_ALL, *WORDS.values())
EXPECTED = {"epochs", "init_from"}  # answered as soon as training has them


def test_every_parameter_that_is_advised_exists():
    settings = {
        part.name
        for answers in _ELSEWHERE.values()
        for answer in answers.values()
        if not isinstance(answer, str)
        for part in answer
        if isinstance(part, Setting)
    }
    assert (set(_SAME) | settings) - ALL <= EXPECTED
    assert {verb for answers in _ELSEWHERE.values() for verb in answers} - {""} <= set(VERBS)


def test_every_command_that_is_advised_exists_and_no_command_is_a_habit():
    advised = {
        word
        for answer in _COMMANDS.values()
        for word in re.findall(r"`(?:loramerge )?(\w+)", answer)
    }
    assert advised - {"COMMAND", "loramerge"} <= set(summaries())
    assert not set(_COMMANDS) & set(summaries())


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("train", "--network_dim", "8"), "here it is called --rank"),
        (("train", "--network-alpha", "8"), "here it is called --alpha"),
        (("train", "--lora_alpha", "8"), "here it is called --alpha"),
        (("train", "--train_data_dir", "x"), "here it is called --images"),
        (("train", "--noise_offset", "1"), "write --noise-offset"),
        (("train", "--xformers"), "leave it out"),
        (("resize", "--new_rank", "8"), "here it is called --rank"),
        (("resize", "--save_to", "x"), "here it is called --output"),
        (("resize", "--model", "x"), "write the file without an option"),
        (("resize", "--dynamic_method", "sv_fro"), "--energy 0.81"),
        (("resize", "--lora_alpha", "8"), "ΔW"),
        (("mix", "--ratios", "1"), "behind its name: character:0.7"),
        (("mix", "--models", "x"), "a:0.7 b:0.3"),
        (("mix", "--lbw", "OUTALL"), "NAME:OUTALL"),
        (("mix", "--save_precision", "fp16"), "here it is called --dtype"),
        (("mix", "--merge_method", "ties"), "here it is called --method"),
        (("mix", "--majority_sign_method", "total"), "`operators NAME`"),
        (("bake", "--model", "x"), "here it is called --base"),
        (("bake", "--ratio", "1"), "behind its name"),
        (("extract_lora",), "`extract` makes an adapter"),
        (("extract", "--model_org", "x"), "here it is called --base"),
        (("extract", "--model_tuned", "x"), "here it is called --tuned"),
        (("info", "a"), "`inspect`"),
        (("show", "a"), "`inspect`"),
        (("view", "a"), "`inspect`"),
        (("list",), "library list"),
        (("ties",), "mix --method"),
        (("help",), "--help"),
        (("version",), "--version"),
        (("mixx",), "did you mean mix?"),
        (("mix", "--rnak", "8"), "did you mean --rank?"),
        (("mix", "--no_metadata"), "here it is called --strip"),
        (("train", "--bias", "all"), "does not have it"),
        (("train", "--min_timestep", "200"), "here it is called --timesteps"),
        (("train", "--vae", "x"), "read from one place: --base"),
        (("train", "--dataset_config", "x.toml"), "--save-recipe"),
        (("train", "--metadata_title", "x"), "`meta FILE"),
        (("train", "--huber_c", "1"), "does not have it"),
        (("merge", "--alpha", "0.3"), "behind its name"),
        (("merge", "--t", "0.3"), "`operators NAME`"),
        (("extract", "--v2"), "leave it out"),
    ],
)
def test_on_the_command_line(run, command, says):
    run.refused(2, *command, says=says)


@pytest.mark.parametrize(
    "command", [("vie",), ("qwerty",), ("mix", "--modes", "x"), ("resize", "--sav", "x")]
)
def test_unknown_words_get_no_guess(run, command):
    result = run.refused(2, *command)
    assert "hint" not in result.err and "id you mean" not in result.err


# what sd-scripts' train_network.py, PEFT's LoraConfig and diffusers' LoRA script call their options
ELSEWHERE = {
    "train": """v2 pretrained_model_name_or_path train_data_dir shuffle_caption caption_extension
        color_aug flip_aug random_crop debug_dataset cache_latents vae_batch_size enable_bucket
        min_bucket_reso bucket_no_upscale token_warmup_min caption_dropout_rate
        caption_tag_dropout_rate reg_data_dir in_json dataset_repeats dataset_config output_dir
        output_name save_precision save_every_n_epochs save_state save_last_n_steps
        train_batch_size max_token_length mem_eff_attn xformers vae max_train_steps
        max_train_epochs max_data_loader_n_workers gradient_checkpointing
        gradient_accumulation_steps mixed_precision full_bf16 logging_dir log_with wandb_api_key
        multires_noise_iterations ip_noise_gamma zero_terminal_snr min_timestep loss_type huber_c
        sample_every_n_steps sample_at_first sample_prompts sample_sampler config_file
        metadata_title prior_loss_weight optimizer_type use_8bit_adam learning_rate optimizer_args
        lr_scheduler lr_warmup_steps lr_scheduler_num_cycles min_snr_gamma
        debiased_estimation_loss no_metadata save_model_as unet_lr text_encoder_lr network_weights
        network_module network_dim network_alpha network_dropout network_args
        network_train_unet_only training_comment dim_from_weights scale_weight_norms base_weights
        no_half_vae blocks_to_swap timestep_sampling model_prediction_type instance_data_dir
        instance_prompt class_data_dir class_prompt validation_prompt with_prior_preservation
        num_class_images lora_dropout center_crop train_text_encoder checkpointing_steps
        resume_from_checkpoint dataloader_num_workers adam_beta1 push_to_hub report_to snr_gamma
        use_dora lora_layers r lora_alpha target_modules exclude_modules fan_in_fan_out bias
        use_rslora modules_to_save init_lora_weights task_type""",
    "mix": """models ratios save_to save_precision precision new_rank new_conv_rank concat shuffle
        no_metadata combination_type adapter_name majority_sign_method svd_rank svd_clamp
        svd_driver merge_method""",
    "resize": "model save_to save_precision new_rank new_conv_rank dynamic_method dynamic_param verbose",
    "bake": "sd_model models ratios save_to save_precision v2 no_metadata lora_scale safe_merge",
    "extract": "v2 model_org model_tuned save_to save_precision dim conv_dim clamp_quantile min_diff",
}


@pytest.mark.parametrize("verb", ELSEWHERE)
def test_options_of_other_programs_are_answered_and_never_by_likeness(verb):
    known = WORDS[verb] | OF_ALL
    for word in ELSEWHERE[verb].split():
        assert answer_to_parameter(word, verb, known) is not None, word


def test_the_answer_follows_the_verb():
    def shown(word, verb):
        answer = advice_on_parameter(word, verb, WORDS[verb])
        return answer and spelled(answer, on_command_line)

    assert shown("--mixed_precision", "train") == "here it is called --precision"
    assert shown("--mixed_precision", "mix") == "here it is called --dtype"
    assert "epochs" in shown("max_train_epochs", "train")
    assert (
        shown("multiplier", "bake") == shown("multiplier", "mix") != shown("multiplier", "resize")
    )
    assert shown("steps", "mix") is None
    assert advice_on_command("reszie", summaries()) == "did you mean resize?"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("mix: {adapters: [a], ratios: [1]}", "behind its name"),
        ("resize: {adapter: a, new_rank: 4}", "here it is called rank"),
        ("resize: {adapter: a, lora_alpha: 4}", "ΔW"),
        ("merge: {adapters: [a]}", "merge needs 'models'"),
        ("apply: {adapters: [a]}", "`bake` adds"),
    ],
)
def test_in_recipes(run, step, says):
    (run.folder / "r.yaml").write_text(
        f"version: 1\nsteps:\n  x:\n    {step}\n    save: o.safetensors\n"
    )
    run.refused(6, "plan", "r.yaml", says=says)


def test_in_python():
    with pytest.raises(lm.UsageError, match="here it is called rank"):
        lm.resize("zuzu", new_rank=4)
    with pytest.raises(lm.UsageError, match="behind its name"):
        lm.mix(["zuzu", "polka"], ratios=[1, 1])
    with pytest.raises(lm.UsageError, match="behind its name"):
        lm.mix(["zuzu", "polka"], weights=[1, 1])
    with pytest.raises(lm.UsageError, match="give pairs"):
        lm.mix({"zuzu": 1.0})
    with pytest.raises(AttributeError, match="`mix` combines"):
        lm.add_weighted_adapter  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'qwerty'$"):
        lm.qwerty  # noqa: B018
    assert answer_to_command("mix") is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a=0.7", "a:0.7"),
        ("a*0.7", "a:0.7"),
        ("0.7*a+0.3*b", "a:0.7 b:0.3"),
        ("a:70%", "a:0.7"),
        ("a:0.7,b:0.3", "a:0.7 b:0.3"),
        ("a:0.7:b:0.3", "a:0.7 b:0.3"),
        ("a:0.7:MIDD,b:0.3:OUTALL", "a:0.7:MIDD b:0.3:OUTALL"),
        ("<lora:a:0.7><lora:b:0.3>", "a:0.7 b:0.3"),
        ("a 0.7", "a:0.7"),
    ],
)
def test_weights_as_other_programs_write_them(run, text, meant):
    run.refused(2, "mix", text, says=f"hint: write {meant}\n")


def test_a_file_of_such_a_name_is_that_file(run):
    (run.folder / "a.safetensors").rename(run.folder / "a@0.7+b@0.3.safetensors")
    run.ok("mix", "a@0.7+b@0.3", "-o", "o.safetensors")
    assert rewritten("a" * 1000 + ":0.7") == []


def test_a_number_is_no_adapter(run):
    run.refused(2, "mix", "a", "0.7", "b", "0.3", says="hint: write NAME:0.7")
    run.refused(2, "mix", "a", "b", "--weights", "0.7,0.3", says="NAME:0.7")
    run.refused(3, "mix", "nothing=0.7", says="no adapter 'nothing=0.7'")
