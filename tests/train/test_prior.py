"""Regularisation pictures that the base draws: which, how, once, and as if they had been given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.cli.main import main  # noqa: E402
from loramerge.errors import NotFound, UsageError, spelled  # noqa: E402
from loramerge.events import Note, Progress, Warn  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.dataset.arrange import arrange  # noqa: E402
from loramerge.train.dataset.images import opened  # noqa: E402
from loramerge.train.device.workers import Workers  # noqa: E402
from loramerge.train.drawing import prior  # noqa: E402
from loramerge.train.drawing.prior import draw_prior, wanted, without_trigger  # noqa: E402
from loramerge.train.drawing.sampling import Drawing, draw  # noqa: E402
from loramerge.train.models.loading import load_pipeline  # noqa: E402
from loramerge.train.models.texts import Texts, read_whole  # noqa: E402
from loramerge.train.spec.spec import Data, Prior  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402
from tests.tail import tail  # noqa: E402
from tests.train.test_verb import asked, run  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
AUTO: dict[str, Any] = {"regularisation": "auto"}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the sampler: what is drawn does not matter here."""
    monkeypatch.setattr("loramerge.train.spec.spec.Prior.__init__.__defaults__", ((), None, 7.0, 2))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of what is really drawn."""
    seeds: list[int] = []

    def watched(pipeline: Any, states: Any, empty: Any, asked: Any, how: Any) -> Any:
        seeds.extend(asked)
        return draw(pipeline, states, empty, asked, how)

    monkeypatch.setattr(prior, "draw", watched)
    return seeds


@pytest.mark.parametrize(
    ("caption", "left"),
    [
        ("zuzu", ""),
        ("", ""),
        ("zuzu, red, round", "red, round"),
        ("a happy Zuzu on a hill", "a happy on a hill"),
        ("red, ZUZU , round", "red, round"),
        ("a photo of [trigger], outside", "a photo of, outside"),
        ("zuzu's hat, zuzus", "hat, zuzus"),
        ("a puzuzup", "a puzuzup"),
    ],
)
def test_captions_without_the_trigger(caption: str, left: str) -> None:
    assert without_trigger(caption, "zuzu") == left
    assert without_trigger(caption.replace("[trigger]", ""), None) == " ".join(
        caption.replace("[trigger]", "").replace(" ,", ",").split()
    )


def test_what_is_drawn_is_spread_over_the_subject(tmp_path: Path) -> None:
    arranged = arrange(Data(folder_of(tmp_path / "p", 6), "red, round"), 4, 32, 0)
    sizes = arranged.buckets
    assert len(set(sizes)) > 2
    usual = wanted(Prior(), arranged)
    assert [one.size for one in usual] == sizes and len({one.seed for one in usual}) == 6
    assert [one.prompt for one in usual] == [f"thing {n}" for n in range(6)]
    few = wanted(Prior(regularisation_count=3), arranged)
    assert [one.size for one in few] == sizes[::2]
    assert [one.seed for one in few] == [one.seed for one in usual[:3]]
    many = wanted(Prior(("a", "b"), 9), arranged)
    assert [one.prompt for one in many] == ["a", "b"] * 4 + ["a"]
    assert [one.size for one in many] == [*sizes, *sizes[:3]]
    most = prior.MOST
    arranged.dataset.pictures = arranged.pictures * 50
    arranged.buckets = sizes * 50
    assert len(wanted(Prior(), arranged)) == most


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_it_is_as_if_the_pictures_had_been_given(kind: Any, tmp_path: Path) -> None:
    """Fails where prompts keep the trigger, sizes are not buckets, or the drawn weigh otherwise."""
    one = run(tmp_path / "a", kind, **AUTO, text_encoder=True)
    folder = Path(one.folder) / "regularisation"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{n:03}.{suffix}" for n in range(5) for suffix in ("png", "txt")
    ]
    assert (folder / "003.txt").read_text("utf-8") == "red, round, thing 3\n"
    run(tmp_path / "b", kind, regularisation=str(folder), text_encoder=True)
    ours, given = (read_safetensors(tmp_path / n / "out.safetensors") for n in "ab")
    assert ours[0].keys() == given[0].keys()
    assert all((ours[0][name] == given[0][name]).all() for name in ours[0])
    assert ours[1]["ss_num_reg_images"] == given[1]["ss_num_reg_images"] == "5"
    step = json.loads(ours[1]["loramerge.recipe"])["steps"]["result"]["train"]
    assert step["regularisation"] == "auto"
    run(tmp_path / "c", kind, text_encoder=True)
    alone = read_safetensors(tmp_path / "c" / "out.safetensors")[0]
    assert any((ours[0][name] != alone[name]).any() for name in alone)


@pytest.mark.long_tail
def test_they_are_what_the_untrained_base_draws(tmp_path: Path) -> None:
    """Fails where the seed, the prompt or the size is another picture's."""
    result = run(tmp_path, **AUTO, clip_skip=2, regularisation_guidance=3.0)
    pipeline = load_pipeline(pipeline_folder())
    arranged = arrange(Data(tmp_path / "pictures", "zuzu"), 4, 32, 0)
    texts = Texts(pipeline, None, 2)
    for index, one in enumerate(wanted(Prior(), arranged)):
        how = Drawing(one.size, 2, 3.0)
        read_whole(pipeline, [one.prompt])
        with torch.no_grad():
            states, empty = texts([one.prompt]), texts.empty()
        (expected,) = draw(pipeline, states, empty, [one.seed], how)
        found = opened(Path(result.folder) / "regularisation" / f"{index:03}.png")
        assert found.tobytes() == expected.tobytes() and found.size == one.size


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, tail(True)], ids=["some", "every"])
def test_nothing_is_drawn_twice(tmp_path: Path, drawn: list[int], every: bool) -> None:
    cache = str(tmp_path / "cache")
    run(tmp_path / "a", **AUTO, cache=cache)
    first = list(drawn)
    assert len(set(first)) == 5
    pictures = {"images": str(tmp_path / "a" / "pictures"), "cache": cache}
    run(
        tmp_path / "b", **AUTO, **pictures, seed=4, rank=1
    )  # what the base is does not depend on it
    assert drawn == first
    run(tmp_path / "b", **AUTO, **pictures, seed=4, rank=1, resume=True, force=True)
    assert drawn == first
    for more, count in (
        ({"regularisation_count": 7}, 2), ({"regularisation_guidance": 1.0}, 5),
        ({"regularisation_prompt": ("a cat",)}, 5), ({"clip_skip": 2}, 5),
        ({"resolution": 24}, 5), ({"trigger": "red"}, 5),
    )[:: 1 if every else 3]:  # fmt: skip
        drawn.clear()
        run(tmp_path / "c", **(AUTO | pictures | more), force=True)
        assert len(drawn) == count, more
    drawn.clear()
    run(tmp_path / "d", "sd21", **AUTO, **pictures)
    assert len(drawn) == 5
    # a picture that was damaged is drawn again, what an earlier run left in the folder goes
    for path in (tmp_path / "cache" / "regularisation").glob("*.png"):
        path.write_bytes(path.read_bytes()[:-30])
    drawn.clear()
    run(tmp_path / "c", **AUTO, **pictures, force=True, regularisation_count=2)
    assert len(drawn) == 2
    left = tmp_path / "c" / "out-run" / "regularisation"
    assert sorted(p.name for p in left.glob("*.png")) == ["000.png", "001.png"]


def test_stopped_while_drawing_it_goes_on_to_the_same_bytes(
    tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "a", **AUTO)
    pictures = {"images": str(tmp_path / "a" / "pictures")}
    watched = prior.draw
    drawn.clear()

    def stopped(*args: Any) -> Any:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return watched(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prior, "draw", stopped)
        run(tmp_path / "b", **AUTO, **pictures, resume=True)
    run(tmp_path / "b", **AUTO, **pictures, resume=True)
    assert len(drawn) == 5
    ours, other = (tmp_path / name / "out.safetensors" for name in "ab")
    assert ours.read_bytes() == other.read_bytes()


def test_one_process_draws(
    tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(Workers, "wait", lambda self: waited.append(self.rank))
    from loramerge.verbs.train.places import made_of_training
    from loramerge.verbs.train.spec import spec_of

    parameters = asked(tmp_path, **AUTO)
    made = made_of_training(parameters, tmp_path / "out.safetensors", Context())
    spec = spec_of(parameters, tmp_path / "out.safetensors", made, Context())
    assert spec.prior is not None
    arranged = arrange(spec.data, 4, 32, 0)
    pipeline = load_pipeline(pipeline_folder())
    found = wanted(spec.prior, arranged)
    for rank in (1, 0):
        folder = draw_prior(spec, pipeline, found, Workers(rank, 2), lambda event: None)
        assert len(drawn) == (0 if rank else 5) and folder.exists() == (rank == 0)
    assert waited == [1, 0]


@pytest.mark.long_tail
def test_what_is_said(tmp_path: Path) -> None:
    said: list[Any] = []

    def told(**how: Any) -> list[Any]:
        said.clear()
        train(asked(tmp_path, force=True, **how), Context(device="cpu", notify=said.append))
        return [event for event in said if "regularisation" in str(event)]

    (hint,) = (e for e in told() if isinstance(e, Note) and "forget" in spelled(e.text))
    assert "regularisation='auto'" in spelled(hint.text)
    assert not told(trigger=None)
    events = told(**AUTO)
    steps = [e for e in events if isinstance(e, Progress) and "generating" in e.task]
    assert [e.done for e in steps] == [1, 2, 3, 4, 5]
    assert not any(isinstance(e, (Note, Warn)) for e in events)
    for path in (tmp_path / "pictures").glob("*.txt"):
        path.write_text("[trigger]" if path.stem > "001" else "zuzu", "utf-8")
    (warned,) = (e for e in told(**AUTO) if isinstance(e, Warn))
    assert "5 of 5 captions are the trigger alone" in spelled(warned.text)
    assert "regularisation_prompt=" in spelled(warned.text)
    assert not any(isinstance(e, Warn) for e in told(**AUTO, regularisation_prompt=("a cat",)))


@pytest.mark.long_tail
def test_a_dry_run_tells_how_many_and_draws_none(
    tmp_path: Path, drawn: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    asked(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = run(tmp_path, **AUTO, dry_run=True, regularisation_count=7).json()
    assert sorted(tmp_path.rglob("*")) == before and not drawn
    assert found["regularisation"] == 7 and found["shown_per_epoch"] == 10
    assert found["to_draw"][:2] == ["red, round, thing 0", "red, round, thing 1"]
    more = run(tmp_path, **AUTO, dry_run=True, regularisation_count=70).json()
    assert more["drawing_seconds"] > 3 * found["drawing_seconds"] > 0
    none = run(tmp_path, regularisation="none", dry_run=True).json()
    assert none["regularisation"] == 0 and none["to_draw"] == [] and none["drawing_seconds"] is None
    words = ["train", "--base", str(pipeline_folder()), "--images", str(tmp_path / "pictures")]
    assert main([*words, "--regularisation", "auto", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert (
        "up to 5 regularisation images: 'red, round, thing 0'" in out and "before training" in out
    )


def test_words_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for how, says in (
        ({"regularisation_prompt": ("a cat",)}, "regularisation_prompt applies only"),
        ({"regularisation_guidance": 3.0}, "regularisation_guidance applies only"),
        (
            {"regularisation_count": 3, "regularisation": str(tmp_path)},
            "regularisation_count applies only",
        ),
        ({"regularisation": " "}, "is not a folder"),
    ):
        with pytest.raises(UsageError, match=says):
            run(tmp_path, **how)
    with pytest.raises(NotFound):
        run(tmp_path, regularisation="automatic")
    run(tmp_path, regularisation="none")
    assert (
        "regularisation"
        not in read_safetensors(tmp_path / "out.safetensors")[1]["loramerge.recipe"]
    )
    # a folder of that name is still a folder, by its path
    folder_of(tmp_path / "auto", 2)
    monkeypatch.chdir(tmp_path)
    run(tmp_path, regularisation="./auto", force=True)
    assert read_safetensors(tmp_path / "out.safetensors")[1]["ss_num_reg_images"] == "2"
    assert not (tmp_path / "out-run" / "regularisation").exists()


@pytest.mark.slow
def test_in_a_recipe_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Looked up as names, the words would be files that are not there."""
    base = pipeline_folder()
    folder_of(tmp_path / "pictures", 3)
    (tmp_path / base.name).symlink_to(base, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    words = [
        "train", "--base", base.name, "--images", "pictures", "--trigger", "zuzu", "--steps", "3",
        "--rank", "2", "--lr", "0.01", "--sample-every", "0", "--regularisation", "auto",
        "--regularisation-prompt", "a cat", "--regularisation-prompt", "x, y", "--device", "cpu",
    ]  # fmt: skip
    assert main([*words, "-o", "a.safetensors", "--save-recipe", "a.yaml"]) == 0
    whole = Path("a.safetensors").read_bytes()
    text = Path("a.yaml").read_text("utf-8")
    assert "regularisation: auto" in text and "auto:" not in text
    assert main(["run", "a.safetensors", "--device", "cpu"]) == 0
    assert "same file" in capsys.readouterr().out
    Path("a.safetensors").unlink()
    assert main(["plan", "a.yaml"]) == 0
    assert main(["run", "a.yaml", "--device", "cpu", "--set", "x=1"]) != 0
    assert main(["run", "a.yaml", "--device", "cpu", "--force"]) == 0
    assert Path("a.safetensors").read_bytes() == whole
    capsys.readouterr()
    assert main(["run", "a.yaml", "--device", "cpu"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_another_unet_has_other_keys(tmp_path: Path) -> None:
    """A key that forgot the UNet would give one base's pictures to another."""
    pipeline = load_pipeline(pipeline_folder())
    how = Prior()
    before = prior._identity(pipeline, how, None)
    assert prior._identity(pipeline, how, 1) == before  # the last layer
    assert prior._identity(pipeline, how, 2) != before
    assert prior._identity(pipeline, replace(how, sampler_steps=9), None) != before
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    assert prior._identity(pipeline, how, None) != before
    other = load_pipeline(pipeline_folder())
    assert prior._identity(other, how, None) == before
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1e-3)
    assert prior._identity(other, how, None) != before
