"""Latents and states of texts: what the models give, kept by content, named where they are broken."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

from loramerge.errors import (  # noqa: E402
    CorruptFile,
    ForeignFile,
    FormatError,
    NumericsError,
    UsageError,
)
from loramerge.files.digest import sha256_of_file  # noqa: E402
from loramerge.train.dataset import cache as caching  # noqa: E402
from loramerge.train.dataset.buckets import Order, bucket_of, bucket_sizes  # noqa: E402
from loramerge.train.dataset.cache import TensorCache  # noqa: E402
from loramerge.train.dataset.captions import Captioning  # noqa: E402
from loramerge.train.dataset.images import fitted, opened, pixels  # noqa: E402
from loramerge.train.dataset.scan import Dataset, scan  # noqa: E402
from loramerge.train.models.clip import clip_tokens  # noqa: E402
from loramerge.train.models.latents import Latents  # noqa: E402
from loramerge.train.models.loading import load_pipeline, load_tokenizers  # noqa: E402
from loramerge.train.models.objective import Noising  # noqa: E402
from loramerge.train.models.pipeline import Pipeline  # noqa: E402
from loramerge.train.models.texts import Texts, count_tokens, encode, read_whole  # noqa: E402
from loramerge.train.run.examples import Examples, time_ids  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
KINDS = ("sd15", "sd21", "sdxl")


def theirs(kind: Any) -> Any:
    """The pipeline as diffusers loads it."""
    name = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    how = {} if kind == "sdxl" else {"safety_checker": None}
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name).from_pretrained(
            pipeline_folder(kind), local_files_only=True, **how
        )


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_what_diffusers_makes_of_them(kind: Any) -> None:
    ours, peer = load_pipeline(pipeline_folder(kind)), theirs(kind)
    texts = ["zuzu, red", "", "a very long text that does not fit into the encoder at all"]
    expected = peer.encode_prompt(texts, device="cpu", num_images_per_prompt=1,
                                  do_classifier_free_guidance=False)  # fmt: skip
    found = encode(ours, texts)
    assert torch.equal(found.text, expected[0])
    if kind == "sdxl":
        assert torch.equal(found.pooled, expected[2])
        assert ours.architecture.name == "sdxl" and set(ours.encoders) == {
            "text_encoder",
            "text_encoder_2",
        }
    else:
        (encoder,) = ours.encoders.values()
        tokens = peer.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        layers = encoder(tokens.input_ids, output_hidden_states=True).hidden_states
        normed = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-2])
        assert torch.equal(encode(ours, texts, 2).text, normed)  # the last but one
        assert not torch.equal(normed, found.text)
    assert Noising.of(ours.scheduler).prediction == (
        "v_prediction" if kind == "sd21" else "epsilon"
    )
    assert (ours.factor, ours.unit, ours.resolution) == (2, 4, 32)
    assert not any(p.requires_grad for m in ours.models.values() for p in m.parameters())


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_long_texts_are_read_in_windows(kind: Any) -> None:
    """Each window has a beginning and an end; of the states between windows neither stays."""
    pipeline = load_pipeline(pipeline_folder(kind))
    letters, short = "abcdefghijklmnopqrst", "abcdef"  # a token each; 14 fit into a window
    spaced = " ".join(letters)
    assert read_whole(pipeline, [short]) == 1 and read_whole(pipeline, [short, spaced]) == 2
    found = encode(pipeline, [spaced, short])
    pipeline.windows = 1
    first, second = encode(pipeline, [spaced[:27]]), encode(pipeline, [spaced[28:]])
    wanted = torch.cat([first.text[:, :-1], second.text[:, 1:]], dim=1)
    assert found.text.shape == (2, 30, first.text.shape[2])
    assert torch.allclose(found.text[:1], wanted, atol=1e-6)
    alone, empty = encode(pipeline, [short]), encode(pipeline, [""])
    filled = torch.cat([alone.text[:, :-1], empty.text[:, 1:]], dim=1)
    assert torch.allclose(found.text[1:], filled, atol=1e-6)
    if kind == "sdxl":
        assert torch.allclose(found.pooled, torch.cat([first.pooled, alone.pooled]), atol=1e-6)
    assert read_whole(pipeline, ["a " * 500]) == 3


def test_windows_end_where_padding_is_no_end() -> None:
    """As in sd-scripts: words up to the end are followed by an end; an empty window begins with one."""
    rows = [[8, 1, 2, 3, 4, 5, 6, 9], [8, 1, 2, 3, 4, 5, 9, 0], [8, 1, 9, 0, 0, 0, 0, 0],
            [8, 1, 2, 3, 9, 0, 0, 0]]  # fmt: skip

    class Tokenizer:
        model_max_length, eos_token_id, pad_token_id = 5, 9, 0

        def __call__(self, texts: list[str], *, max_length: int, **how: Any) -> Any:
            assert max_length == 8
            return SimpleNamespace(input_ids=torch.tensor(rows))

    found = clip_tokens(Tokenizer(), SimpleNamespace(device="cpu"), ["a"], 2)
    assert found.tolist() == [
        [8, 1, 2, 3, 9], [8, 4, 5, 6, 9],
        [8, 1, 2, 3, 9], [8, 4, 5, 9, 0],
        [8, 1, 9, 0, 0], [8, 9, 0, 0, 0],
        [8, 1, 2, 3, 9], [8, 9, 0, 0, 0],
    ]  # fmt: skip


def test_what_is_no_base_is_said(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a diffusers pipeline"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "MochiPipeline"}')
    with pytest.raises(UsageError, match="cannot be trained yet"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(CorruptFile):
        load_pipeline(tmp_path)
    folder = tmp_path / "base"
    shutil.copytree(pipeline_folder(), folder)
    (weights,) = (folder / "vae").glob("*.safetensors")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(ForeignFile, match="Git LFS pointer"):
        load_pipeline(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(CorruptFile, match="vae cannot be loaded"):
        load_pipeline(folder)
    (tmp_path / "x.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(UsageError, match="a file of no known family can be neither trained on"):
        load_pipeline(tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="does not fit the configurations"):
        load_pipeline(tmp_path / "x.safetensors", family="sd15", config=folder)


def ready(tmp_path: Path, kind: Any = "sd15") -> tuple[Pipeline, Dataset, list[Any], TensorCache]:
    pipeline = load_pipeline(pipeline_folder(kind))
    found = scan(folder_of(tmp_path / "pictures", 5))
    sizes = bucket_sizes(32, pipeline.unit)
    return (
        pipeline, found, [bucket_of(p.size, sizes) for p in found.pictures],
        TensorCache(tmp_path / "cache", "latents"),
    )  # fmt: skip


def test_latents_are_what_the_vae_gives_and_are_kept_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, found, buckets, cache = ready(tmp_path)
    digests = sha256_of_file
    asked = {p.path: (p, b) for p, b in zip(found.pictures, buckets, strict=True)}
    latents = Latents(pipeline, cache, digests)
    assert latents.prepare(asked) == {} and len(cache) == 5
    first = latents(found.pictures[1], buckets[1])
    assert first.shape == (4, buckets[1][1] // 2, buckets[1][0] // 2)
    image, _ = fitted(opened(found.pictures[1].path), buckets[1])
    with torch.no_grad():
        spread = pipeline.vae.encode(pixels(image)[None]).latent_dist
    scaled = (first / pipeline.vae.config.scaling_factor - spread.mean[0]) / spread.std[0]
    assert abs(float(scaled.mean())) < 0.3 and 0.7 < float(scaled.std()) < 1.3
    # another process finds them all, whatever the file's name; another VAE finds none
    again = TensorCache(tmp_path / "cache", "latents")
    moved = found.pictures[1].path.rename(tmp_path / "pictures" / "other.png")
    other = replace(found.pictures[1], path=moved)
    encoded: list[Path] = []
    monkeypatch.setattr(
        "loramerge.train.models.latents.encode_picture", lambda *a, **k: encoded.append(a[1])
    )
    assert torch.equal(Latents(pipeline, again, digests)(other, buckets[1]), first)
    Latents(pipeline, again, digests).prepare({moved: (other, buckets[1])})
    assert not encoded
    # what was read by other rules is read again, and drawn from the same noise
    with monkeypatch.context() as changed:
        changed.setattr("loramerge.train.models.latents.READING", 0)
        renewed = Latents(pipeline, again, digests)
        with pytest.raises(KeyError):
            renewed(other, buckets[1])
        assert renewed._seed(other, buckets[1]) == latents._seed(found.pictures[1], buckets[1])
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(1e-3)
    pipeline._identities.clear()
    with pytest.raises(KeyError):
        Latents(pipeline, again, digests)(other, buckets[1])
    # a shard that was damaged is as if it were not there
    (shard,) = (tmp_path / "cache").glob("latents-*")
    shard.write_bytes(shard.read_bytes()[:50])
    assert len(TensorCache(tmp_path / "cache", "latents")) == 0


def test_broken_latents_name_the_picture_and_broken_pictures_are_told(tmp_path: Path) -> None:
    pipeline, found, buckets, cache = ready(tmp_path)
    data = found.pictures[2].path.read_bytes()
    found.pictures[2].path.write_bytes(data[: len(data) - 40])
    asked = {p.path: (p, b) for p, b in zip(found.pictures, buckets, strict=True)}
    broken = Latents(pipeline, cache, sha256_of_file).prepare(asked)
    assert list(broken) == [found.pictures[2].path]
    rest = found.without(broken)
    assert len(rest.pictures) == 4 and rest.unreadable[0][0] == found.pictures[2].path
    pipeline.vae.encoder.conv_in.weight.data[0] = float("nan")
    pipeline._identities.clear()
    with pytest.raises(NumericsError, match="NaN or infinity") as caught:
        Latents(pipeline, cache, sha256_of_file).prepare(asked)
    assert caught.value.file == str(found.pictures[0].path)


def test_a_cache_keeps_a_shard_in_memory_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_SHARD_ENTRIES", 10)
    cache = TensorCache(tmp_path, "x")
    for number in range(35):
        cache.put(f"{number:032x}", {"a": torch.full((3,), float(number)), "b": torch.ones(2)})
        assert len(cache._waiting) < 10
    assert len(list(tmp_path.glob("x-*"))) == 3 and len(cache) == 35
    cache.flush()
    again = TensorCache(tmp_path, "x")
    for one in (cache, again):
        for number in (0, 17, 34):
            found = one.get(f"{number:032x}")
            assert found["a"].tolist() == [number] * 3 and set(found) == {"a", "b"}
    late = TensorCache(tmp_path, "x")
    again.put("f" * 32, {"a": torch.zeros(1)})
    again.flush()
    assert "f" * 32 not in late
    late.refresh()
    assert "f" * 32 in late and "f" * 32 not in TensorCache(tmp_path, "y")


def test_two_runs_fill_one_cache_at_once(tmp_path: Path) -> None:
    """Written again by the slower one, a shard would no longer be what the other has read."""
    one, two = TensorCache(tmp_path, "x"), TensorCache(tmp_path, "x")
    for cache in (one, two):
        cache.put("a" * 32, {"v": torch.ones(2)})
    one.flush()
    (shard,) = tmp_path.glob("x-*")
    before = shard.stat().st_mtime_ns, shard.stat().st_ino
    two.flush()
    assert (shard.stat().st_mtime_ns, shard.stat().st_ino) == before
    assert all(cache.get("a" * 32)["v"].tolist() == [1, 1] for cache in (one, two))
    shard.write_bytes(shard.read_bytes()[:20])  # what is damaged is written again
    again = TensorCache(tmp_path, "x")
    again.put("a" * 32, {"v": torch.ones(2)})
    again.flush()
    assert "a" * 32 in TensorCache(tmp_path, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_cached_texts_need_no_encoder(kind: Any, tmp_path: Path) -> None:
    pipeline = load_pipeline(pipeline_folder(kind))
    live = Texts(pipeline)(["a", "b, c"])
    kept = Texts(pipeline, TensorCache(tmp_path, "texts"))
    kept.prepare(["b, c", "a", "a"])
    pipeline.release_encoders()
    assert not pipeline.encoders
    again = Texts(pipeline, TensorCache(tmp_path, "texts"))
    for states in (kept(["a", "b, c"]), again(["a", "b, c"])):
        assert torch.allclose(states.text, live.text, atol=1e-6)
        assert kind != "sdxl" or torch.allclose(states.pooled, live.pooled, atol=1e-6)
    with pytest.raises(KeyError):
        again(["never seen"])


def test_batches_are_a_function_of_their_number(tmp_path: Path) -> None:
    pipeline, found, buckets, cache = ready(tmp_path, "sdxl")
    latents = Latents(pipeline, cache, sha256_of_file)
    latents.prepare({p.path: (p, b) for p, b in zip(found.pictures, buckets, strict=True)})

    def examples(texts: Texts | None = None) -> Examples:
        order = Order(buckets, [1] * 5, [False] * 4 + [True], 2, 0)
        how = Captioning("zuzu", shuffle_tags=True, caption_dropout=0.3)
        pictures = [replace(p, regular=n == 4) for n, p in enumerate(found.pictures)]
        return Examples(pictures, buckets, order, how, latents, texts, weight=0.5, sizes=True)

    batches = [examples(Texts(pipeline))(n) for n in range(6)]
    for number in (4, 0):
        one, two = examples(Texts(pipeline))(number), batches[number]
        assert torch.equal(one.latents, two.latents) and torch.equal(one.text, two.text)
        assert one.captions == two.captions and torch.equal(one.time_ids, two.time_ids)
    assert batches[0].pooled.shape == (len(batches[0]), 8)
    assert any(b.weights is not None and 0.5 in b.weights.tolist() for b in batches)
    bare = examples()(0)
    assert bare.text is None and bare.captions == batches[0].captions


def test_sdxl_is_told_of_sizes_and_cuts() -> None:
    assert time_ids((1000, 500), (512, 512)).tolist() == [500, 1000, 0, 256, 512, 512]
    assert time_ids((512, 512), (512, 512)).tolist() == [512, 512, 0, 0, 512, 512]


def test_tokens_are_counted_before_they_are_cut() -> None:
    tokenizers = load_tokenizers(pipeline_folder("sdxl"))
    assert set(tokenizers) == {"text_encoder", "text_encoder_2"}
    assert count_tokens(tokenizers, "abc") == 5 and count_tokens(tokenizers, "a" * 50) == 52
