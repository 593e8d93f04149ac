"""PEFT adapters of language models, baked into folders of transformers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.naming import renaming
from loramerge.errors import AdapterError, LoramergeError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from loramerge.stream.sharing import head_of
from tests.builders.samples import dense, read_safetensors, relative, safetensors_bytes


def model_folder(folder: Path, tensors: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), "utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def real_base(folder: Path, shared: Path, *, level: str) -> Path:
    """The weights that the real adapter changes, as GPT-2 stores them: inputs first."""
    arrays, _ = read_safetensors(shared / "adapters" / "peft_gpt2" / "adapter_model.safetensors")
    random = np.random.default_rng(0)
    tensors = {}
    for key, down in arrays.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name = stem.removeprefix("base_model.model.transformer.")
            up = arrays[f"{stem}.lora_B.weight"]
            shape = (down.shape[1], up.shape[0])
            tensors[f"{level}{name}.weight"] = random.random(shape, "float32") - 0.5
    return model_folder(folder, tensors)


@pytest.mark.long_tail
@pytest.mark.parametrize("level", ["transformer.", ""])
def test_a_real_adapter_of_gpt2_is_baked_transposed(
    shared_data: Path, tmp_path: Path, level: str
) -> None:
    """With the level that the head adds, and as the published checkpoint is, without it."""
    place = shared_data / "adapters" / "peft_gpt2"
    base = real_base(tmp_path / "base", shared_data, level=level)
    checkpoint = open_checkpoint(base)
    assert checkpoint.candidates == () and checkpoint.family_name == "transformers"
    plan = plan_bake(checkpoint, [(load(place).require_sound(), Weight(0.5))])
    bake(plan, tmp_path / "out")
    before, _ = read_safetensors(base / "model.safetensors")
    after, _ = read_safetensors(tmp_path / "out" / "model.safetensors")
    arrays, _ = read_safetensors(place / "adapter_model.safetensors")
    assert before.keys() == after.keys() and len(before) == 36
    for name in list(before)[::5]:
        stem = f"base_model.model.transformer.{name.removeprefix(level)[:-7]}"
        up, down = arrays[f"{stem}.lora_B.weight"], arrays[f"{stem}.lora_A.weight"]
        change = 0.5 * dense(up, down, 32 / 8)
        found = after[name].astype("float64") - before[name]
        assert relative(found, change.T) < 1e-4
        if found.shape[0] == found.shape[1]:  # only fan_in_fan_out tells which way round
            assert relative(found, change) > 0.5
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_base_of_another_model_is_refused(shared_data: Path, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", {"model.layers.0.q.weight": np.ones((2, 2), "float32")})
    adapter = load(shared_data / "adapters" / "peft_gpt2")
    with pytest.raises(AdapterError, match="the base lacks 36 modules"):
        plan_bake(open_checkpoint(base), [(adapter, Weight())])
    (base / "config.json").unlink()
    assert open_checkpoint(base).family_name == "unknown"


def test_the_hint_names_no_component_that_the_option_refuses(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", {"model.layers.0.q.weight": np.ones((2, 2), "float32")})
    place = tmp_path / "adapter_model.safetensors"

    def refusal(*modules: str) -> str:
        keys = [f"base_model.model.{m}.lora_{x}.weight" for m in modules for x in "AB"]
        place.write_bytes(safetensors_bytes({key: np.ones((2, 2), "f4") for key in keys}))
        with pytest.raises(AdapterError, match="the base lacks 1 modules") as caught:
            plan_bake(open_checkpoint(base), [(load(place), Weight())])
        return str(caught.value)

    assert "skip_missing='all'" in refusal("lm_head", "model.layers.0.q")
    assert "skip_missing" not in refusal("lm_head")  # nothing would be left


def test_levels_are_found() -> None:
    known = ["h.0.attn", "h.1.attn", "wte"]
    assert renaming(["transformer.h.0.attn"], known)("transformer.h.1.attn") == "h.1.attn"
    assert renaming(["h.0.attn"], [f"transformer.{k}" for k in known])("wte") == "transformer.wte"
    assert renaming(["h.0.attn"], known)("wte") == "wte"
    assert renaming(["a.b"], known)("a.b") == "a.b"


PUBLISHED = ("model.layers.0.q_proj", "visual.blocks.0.qkv", "lm_head")
TODAY = ("model.language_model.layers.0.q_proj", "model.visual.blocks.0.qkv", "lm_head")
LLAVA = ("language_model.model.layers.0.q_proj", "visual.blocks.0.qkv", "language_model.lm_head")


@pytest.mark.parametrize(
    ("ours", "theirs"), [(TODAY, PUBLISHED), (PUBLISHED, TODAY), (TODAY, LLAVA)]
)
def test_models_that_see_are_known_by_either_naming(
    ours: tuple[str, ...], theirs: tuple[str, ...], tmp_path: Path
) -> None:
    """Each module by itself: levels at the head come and go, for the language model and for the rest."""
    random = np.random.default_rng(0)
    base = {f"{name}.weight": random.standard_normal((4, 4)).astype("f4") for name in theirs}
    folder = model_folder(tmp_path / "base", base | {"model.norm.weight": np.ones(4, "f4")})
    factors = {
        f"base_model.model.{name}.lora_{x}.weight": random.standard_normal((4, 4)).astype("f4")
        for name in ours
        for x in "AB"
    }
    place = tmp_path / "adapter_model.safetensors"
    place.write_bytes(safetensors_bytes(factors))
    bake(plan_bake(open_checkpoint(folder), [(load(place), Weight())]), tmp_path / "out")
    after, _ = read_safetensors(tmp_path / "out" / "model.safetensors")
    for own, other in zip(ours, theirs, strict=True):
        stem = f"base_model.model.{own}"
        change = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
        assert np.allclose(after[f"{other}.weight"], base[f"{other}.weight"] + change, atol=1e-5)


def test_a_name_that_two_modules_could_have_is_not_guessed() -> None:
    known = ["model.layers.0.q", "transformer.layers.0.q", "model.norm"]
    found = renaming(["language_model.layers.0.q", "model.norm"], known)
    assert found("language_model.layers.0.q") == "language_model.layers.0.q"
    assert found("model.norm") == "model.norm"


def tied_base(folder: Path, **config: Any) -> Path:
    """A model whose output layer shares the embedding's weight, as transformers saves it."""
    random = np.random.default_rng(0)
    embedding = random.standard_normal((6, 4)).astype("f4")
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": np.ones(4, "f4")}
    base = model_folder(folder, tensors)
    content = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 6,
    } | config
    (base / "config.json").write_text(json.dumps(content), "utf-8")
    return base


def peft_folder(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    folder.mkdir()
    named = {f"base_model.model.{key}": value for key, value in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(named))
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config
    (folder / "adapter_config.json").write_text(json.dumps(content), "utf-8")
    return folder


def values(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def baked(base: Path, out: Path, *adapters: Path, weight: float = 1.0) -> tuple[Any, Any]:
    inputs = [(load(one).require_sound(), Weight(weight)) for one in adapters]
    bake(plan_bake(open_checkpoint(base), inputs), out)
    return read_safetensors(out / "model.safetensors")[0], json.loads(
        (out / "config.json").read_text("utf-8")
    )


EMBED, HEAD = "model.embed_tokens", "lm_head"


@pytest.mark.parametrize("tie", [{}, {"tie_word_embeddings": True}])
def test_an_embedding_that_changes_alone_is_parted_from_the_output_layer(
    tie: dict[str, bool], tmp_path: Path
) -> None:
    base = tied_base(tmp_path / "base", **tie)
    before, _ = read_safetensors(base / "model.safetensors")
    a, b = values(2, 6), values(4, 2)
    place = peft_folder(
        tmp_path / "a", {f"{EMBED}.lora_embedding_A": a, f"{EMBED}.lora_embedding_B": b}
    )
    after, config = baked(base, tmp_path / "out", place)
    assert config["tie_word_embeddings"] is False
    assert np.array_equal(after["lm_head.weight"], before[f"{EMBED}.weight"])
    assert np.allclose(after[f"{EMBED}.weight"], before[f"{EMBED}.weight"] + (b @ a).T, atol=1e-6)


@pytest.mark.parametrize(
    ("sort", "architecture", "embedding", "head"),
    [
        ("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.embed_in", "embed_out"),
        ("bert", "BertForMaskedLM", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
        ("roberta", "RobertaForMaskedLM", "roberta.embeddings.word_embeddings", "lm_head.decoder"),
        ("bloom", "BloomForCausalLM", "transformer.word_embeddings", "lm_head"),
        ("xlnet", "XLNetLMHeadModel", "transformer.word_embedding", "lm_loss"),
        ("modernbert", "ModernBertForMaskedLM", "model.embeddings.tok_embeddings", "decoder"),
    ],
)
def test_other_models_call_the_two_otherwise(
    sort: str, architecture: str, embedding: str, head: str, tmp_path: Path
) -> None:
    weight = values(6, 4, seed=3)
    base = model_folder(tmp_path / "base", {f"{embedding}.weight": weight})
    content = {"model_type": sort, "architectures": [architecture], "vocab_size": 6}
    (base / "config.json").write_text(json.dumps(content), "utf-8")
    a, b = values(2, 6), values(4, 2)
    place = peft_folder(
        tmp_path / "a", {f"{embedding}.lora_embedding_A": a, f"{embedding}.lora_embedding_B": b}
    )
    after, config = baked(base, tmp_path / "out", place)
    assert config["tie_word_embeddings"] is False
    assert np.array_equal(after[f"{head}.weight"], weight)
    assert np.allclose(after[f"{embedding}.weight"], weight + (b @ a).T, atol=1e-6)


@pytest.mark.parametrize(
    ("sort", "architecture", "embedding", "says"),
    [
        ("t5", "T5ForConditionalGeneration", "shared", "encoder, decoder and output layer share"),
        ("t5", "T5EncoderModel", "shared", "encoder and decoder share"),
        (
            "bart",
            "BartForConditionalGeneration",
            "model.shared",
            "encoder, decoder and output layer",
        ),
        (
            "luke",
            "LukeForMaskedLM",
            "luke.entity_embeddings.entity_embeddings",
            "the output layer of entities",
        ),
        (
            "new",
            "NewForCausalLM",
            "model.tokens",
            "the output layer, whose name is not known, shares",
        ),
    ],
)
def test_a_weight_that_cannot_be_parted_is_refused(
    sort: str, architecture: str, embedding: str, says: str, tmp_path: Path
) -> None:
    base = model_folder(tmp_path / "base", {f"{embedding}.weight": values(6, 4)})
    content = {"model_type": sort, "architectures": [architecture], "vocab_size": 6}
    (base / "config.json").write_text(json.dumps(content), "utf-8")
    place = peft_folder(
        tmp_path / "a",
        {
            f"{embedding}.lora_embedding_A": values(2, 6),
            f"{embedding}.lora_embedding_B": values(4, 2),
        },
    )
    with pytest.raises(AdapterError, match=says) as caught:
        plan_bake(open_checkpoint(base), [(load(place).require_sound(), Weight(1.0))])
    assert caught.value.module == embedding


def test_a_weight_of_the_adapter_that_differs_from_the_base_is_told(tmp_path: Path) -> None:
    """PEFT loads such a weight in place of the base's."""
    base = tied_base(tmp_path / "base", tie_word_embeddings=False)
    own, a, b = values(6, 4, seed=5), values(2, 6), values(4, 2)
    factors = {f"{EMBED}.lora_embedding_A": a, f"{EMBED}.lora_embedding_B": b}
    place = peft_folder(tmp_path / "a", {f"{EMBED}.base_layer.weight": own, **factors})
    plan = plan_bake(open_checkpoint(base), [(load(place).require_sound(), Weight(1.0))])
    (warning,) = plan.warnings
    assert warning.startswith(f"{EMBED}: the adapter contains a whole weight that differs")
    after, _ = baked(base, tmp_path / "out", place)
    assert np.allclose(after[f"{EMBED}.weight"], own + (b @ a).T, atol=1e-6)


def test_tokens_of_a_shared_embedding_change_both(tmp_path: Path) -> None:
    base = tied_base(tmp_path / "base")
    rows = values(2, 4)
    place = peft_folder(
        tmp_path / "a",
        {f"{EMBED}.token_adapter.trainable_tokens_delta": rows},
        trainable_token_indices=[1, 4],
    )
    after, config = baked(base, tmp_path / "out", place)
    assert "lm_head.weight" not in after and "tie_word_embeddings" not in config
    assert np.allclose(after[f"{EMBED}.weight"][[1, 4]], rows)
    head = peft_folder(
        tmp_path / "b",
        {f"{HEAD}.lora_A.weight": values(2, 4), f"{HEAD}.lora_B.weight": values(6, 2)},
    )
    both, config = baked(base, tmp_path / "both", place, head)
    change = values(6, 2) @ values(2, 4)
    assert config["tie_word_embeddings"] is False
    assert np.allclose(both["lm_head.weight"], after[f"{EMBED}.weight"] + change, atol=1e-6)
    assert np.allclose(both[f"{EMBED}.weight"], after[f"{EMBED}.weight"])


def test_a_larger_vocabulary_is_written_whole(tmp_path: Path) -> None:
    base = tied_base(tmp_path / "base")
    larger = values(8, 4)
    place = peft_folder(tmp_path / "a", {f"{EMBED}.weight": larger, f"{HEAD}.weight": larger})
    after, config = baked(base, tmp_path / "out", place)
    assert np.array_equal(after[f"{EMBED}.weight"], larger) and "lm_head.weight" not in after
    assert config["vocab_size"] == 8 and "tie_word_embeddings" not in config
    with pytest.raises(AdapterError, match="weight 1 only"):
        baked(base, tmp_path / "half", place, weight=0.5)
    with pytest.raises(AdapterError, match="a single file does not contain"):
        plan_bake(open_checkpoint(base / "model.safetensors"), [(load(place), Weight())])


EXPERTS = "model.layers.0.mlp.experts"
A, B = values(4, 4), values(6, 4)  # of two experts of rank 2
CHANGES = [B.reshape(6, 2, 2)[..., e] @ A.reshape(2, 2, 4)[e] for e in (0, 1)]


def expert_adapter(folder: Path) -> Path:
    return peft_folder(
        folder,
        {f"{EXPERTS}.lora_A.weight": A, f"{EXPERTS}.lora_B.weight": B},
        target_parameters=["experts.gate_up_proj"],
    )


def test_experts_are_baked_where_the_base_stores_them_apart(tmp_path: Path) -> None:
    gate, up = (values(3, 4, seed=n) for n in (5, 6))
    stored = {
        f"{EXPERTS}.{e}.{n}_proj.weight": x for e in (0, 1) for n, x in (("gate", gate), ("up", up))
    }
    base = model_folder(tmp_path / "base", stored)
    after, _ = baked(base, tmp_path / "out", expert_adapter(tmp_path / "a"))
    for e in (0, 1):
        name = f"{EXPERTS}.{e}"
        assert np.allclose(after[f"{name}.gate_proj.weight"], gate + CHANGES[e][:3], atol=1e-6)
        assert np.allclose(after[f"{name}.up_proj.weight"], up + CHANGES[e][3:], atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("level", ["model.", ""])
def test_experts_are_baked_where_the_base_stacks_them(
    turned: bool, level: str, tmp_path: Path
) -> None:
    name = f"{level}{EXPERTS.removeprefix('model.')}.gate_up_proj"
    stack = values(3, 6, 4, seed=7)  # of three experts, of which the adapter changes two
    stored = np.ascontiguousarray(stack.swapaxes(1, 2)) if turned else stack
    base = model_folder(tmp_path / "base", {name: stored, "norm.weight": values(4)})
    after, _ = baked(base, tmp_path / "out", expert_adapter(tmp_path / "a"), weight=0.5)
    assert after[name].shape == stored.shape
    found = after[name].swapaxes(1, 2) if turned else after[name]
    for e in (0, 1):
        assert np.allclose(found[e], stack[e] + 0.5 * CHANGES[e], atol=1e-6)
    assert np.array_equal(found[2], stack[2])


def test_experts_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    import loramerge.stream.parts  # noqa: F401  # open files can be pickled from then on

    adapter = load(expert_adapter(tmp_path / "a"))
    copy = pickle.loads(pickle.dumps(dict(adapter.deltas)))
    assert len(copy) > 1
    for site, delta in adapter.deltas.items():
        assert np.array_equal(copy[site].dense(), delta.dense())


def test_stacks_that_are_not_understood_are_refused(tmp_path: Path) -> None:
    adapter = expert_adapter(tmp_path / "a")
    for name, stored, says in (
        ("few", values(1, 6, 4), "lacks 1 modules"),
        ("flat", values(12, 4), "all experts of a parameter in one tensor"),
        ("packed", values(2, 6, 4).astype("int8"), "all experts of a parameter in one tensor"),
        ("other", values(2, 8, 4), "do not have the base's shapes"),
    ):
        base = model_folder(tmp_path / name, {f"{EXPERTS}.gate_up_proj": stored})
        with pytest.raises(LoramergeError, match=says):
            baked(base, tmp_path / "out", adapter)
    square = peft_folder(
        tmp_path / "square",
        {f"{EXPERTS}.lora_A.weight": A, f"{EXPERTS}.lora_B.weight": values(4, 4)},
        target_parameters=["experts.down_proj"],
    )
    base = model_folder(tmp_path / "equal", {f"{EXPERTS}.down_proj": values(2, 4, 4)})
    with pytest.raises(AdapterError, match="nothing tells which axis"):
        baked(base, tmp_path / "out", square)


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    base = tied_base(tmp_path / "base")
    places = [
        peft_folder(tmp_path / str(n), {f"{EMBED}.base_layer.weight": values(7, 4, seed=n)})
        for n in (1, 2)
    ]
    with pytest.raises(AdapterError, match="two adapters bring different weights"):
        baked(base, tmp_path / "out", *places)


@pytest.mark.parametrize("indices", [[1], None, {"other": [1, 2]}, [1, -2]])
def test_tokens_that_the_configuration_does_not_name_are_refused(
    indices: Any, tmp_path: Path
) -> None:
    place = peft_folder(
        tmp_path / "a",
        {f"{EMBED}.token_adapter.trainable_tokens_delta": values(2, 4)},
        trainable_token_indices=indices,
    )
    with pytest.raises(AdapterError, match=r"trainable_token_indices|which tokens"):
        load(place).require_sound()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("sort", ["gpt2", "llama"])
def test_a_sharded_model_merges_as_peft_merges(tmp_path: Path, sort: str) -> None:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    if sort == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=8, n_embd=12, n_layer=3, n_head=2, tie_word_embeddings=True
        )
        targets, flipped = ["c_attn", "c_proj", "c_fc"], True
    else:
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1,
        )  # fmt: skip
        targets, flipped = ["q_proj", "v_proj", "down_proj"], False
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=flipped,
            init_lora_weights=False, rank_pattern={f"1.*{targets[0]}": 4},
        ),
    )  # fmt: skip
    wrapped.save_pretrained(tmp_path / "adapter")
    plan = plan_bake(open_checkpoint(tmp_path / "base"), [(load(tmp_path / "adapter"), Weight())])
    bake(plan, tmp_path / "out")
    merged = wrapped.merge_and_unload()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected, found = dict(merged.named_parameters()), dict(again.named_parameters())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name


@pytest.mark.parametrize(
    ("embedding", "kind", "head"),
    [
        ("model.embed_tokens", "qwen3", "lm_head"),
        ("backbone.embeddings", "mamba", "lm_head"),
        ("bert.embeddings.word_embeddings", "big_bird", "cls.predictions.decoder"),
        ("model.decoder.embed_tokens", "whisper", "proj_out"),
        ("roberta.embeddings.word_embeddings", "xmod", "lm_head.decoder"),
        ("biogpt.embed_tokens", "biogpt", "output_projection"),
        ("transformer.embeddings", "xlm", "pred_layer.proj"),
        ("embeddings.position_embeddings", "bert", None),
    ],
)
def test_the_output_layer_that_shares_an_embedding(
    embedding: str, kind: str, head: str | None
) -> None:
    """`tests/peers` compares the whole table with transformers' own."""
    assert head_of(embedding, {"model_type": kind}) == head
