"""The golden list: what is run, on which inputs.

A case is a few commands in a folder of its own. `inputs` are `FILE=INPUT`, an input being a name that
`golden_inputs.make` knows. Commands that start with `python:` run Python with `lm` at hand;
`> FILE` keeps what a command prints for the next one, and is not an output.
"""

from __future__ import annotations

from dataclasses import dataclass

from golden_inputs import BASE_KINDS, KINDS


@dataclass(frozen=True)
class Case:
    """Commands in a folder with inputs.

    Args:
        files: texts that stand beside the inputs, by name.
        torch: whether the commands need torch.
    """

    name: str
    inputs: tuple[str, ...]
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    torch: bool = False


def _case(name: str, inputs: str, *commands: str, torch: bool = False, **files: str) -> Case:
    """Make a case; `files` are texts by name, `__` for the dot."""
    texts = tuple((word.replace("__", "."), text) for word, text in files.items())
    return Case(name, tuple(inputs.split()), commands, texts, torch)


_A, _B = "a.safetensors=a", "b.safetensors=b"
_BASE = "base.safetensors=single/sd21/single/F16"
_SD15 = "base.safetensors=single/sd15"

MIX = [
    _case("mix", f"{_A} {_B}", "mix a.safetensors:0.7 b.safetensors:0.3 --json"),
    _case("mix-rank", f"{_A} {_B}", "mix a.safetensors:0.7 b.safetensors:0.3 -r 3 -o o.safetensors"),
    _case("mix-components", f"{_A} {_B}",
          "mix a.safetensors:unet=0.8:te=0 b.safetensors:te=0.5:unet=0 -o o.safetensors --json"),
    _case("mix-preset", f"{_A} {_B}", "mix a.safetensors:OUTALL b.safetensors:-0.5 -o o.safetensors"),
    _case("mix-vector", _A, "mix a.safetensors:1,0,0,0,.5,0,0,0,1,1,1,1,1,1,1,1,.25 -o o.safetensors"),
    _case("mix-weights", f"{_A} {_B}",
          "mix a.safetensors b.safetensors --weights a=w.yaml --weights b=d.yaml -o o.safetensors",
          w__yaml="default: 1\ntext_encoder: 0\nmatch: {'*attn2*': 0.5}\n",
          d__yaml="depth: [0, 1, 0.5]\n"),
    _case("mix-dialects", f"{_A} {_B}",
          "mix a.safetensors:0.7 b.safetensors:0.3 --to diffusers --dtype float32 -o o.safetensors",
          "mix a.safetensors:0.7 b.safetensors:0.3 --for comfyui --dtype bfloat16 -o p.safetensors"),
    _case("mix-compat", f"{_A} c.safetensors=a4",
          *(f"mix a.safetensors:0.7 c.safetensors:0.3 --compat {tool} -o {tool}.safetensors"
            for tool in ("kohya", "kohya-concat", "peft-linear"))),
    _case("mix-strip-recipe", f"{_A} {_B}",
          "mix a.safetensors:0.7 b.safetensors:0.3 --strip -o o.safetensors --save-recipe r.yaml"),
    _case("mix-embeddings", "e.safetensors=embedding f.safetensors=f32",
          "mix e.safetensors f.safetensors -o all.safetensors",
          "mix e.safetensors f.safetensors --embeddings none -o none.safetensors"),
    _case("mix-types", "f.safetensors=f32 h.safetensors=bf16",
          "mix f.safetensors:0.5 h.safetensors:0.5 -o o.safetensors",
          "mix h.safetensors:0.5 -o p.safetensors"),
    _case("mix-xl", "x.safetensors=xl", "mix x.safetensors:0.5:te2=0 -o o.safetensors --json",
          "mix x.safetensors:te1=0.5:te2=0 --to kohya -o p.safetensors"),
    _case("mix-shipped", "", "mix zuzu:0.7 polka:0.3 --json"),
]  # fmt: skip

RESIZE = [
    _case(f"resize-{word.replace('_', '-')}", "c.safetensors=conv",
          f"resize {option} c.safetensors -o o.safetensors --json")
    for word, option in {
        "rank": "--rank 2", "conv_rank": "--rank 3 --conv-rank 1", "energy": "--energy 0.9",
        "ratio": "--ratio 5", "cumulative": "--cumulative 0.8", "max_size": "--max-size 60%",
        "max_error": "--max-error 0.2", "both": "--rank 3 --max-error 0.9 --max-module-error 0.95",
    }.items()
] + [
    _case("resize-many", "loras/a.safetensors=a loras/b.safetensors=b loras/sub/c.safetensors=a4",
          "resize --max-size 50% loras --out-dir small --results t.csv --json",
          "resize --max-size 50% loras --out-dir small"),
    _case("resize-dialect", _B, "resize -r 2 b.safetensors --to kohya --dtype float16 -o o.safetensors"),
]  # fmt: skip

CONVERT = [
    _case("convert-sd", f"f.safetensors=f32 {_B}",
          *(f"convert b.safetensors --to {d} -o {d}.safetensors"
            for d in ("kohya", "diffusers", "diffusers-legacy")),
          "convert b.safetensors --to lycoris --drop text_encoder -o lycoris.safetensors",
          "convert b.safetensors --to peft -o peft",
          "convert b.safetensors --to lora_diffusion --keep '*attn*' -o 2022.safetensors",
          *(f"convert {d}.safetensors --to diffusers -o back-{d}.safetensors"
            for d in ("kohya", "diffusers-legacy", "lycoris", "2022")),
          "convert peft --to kohya -o back-peft.safetensors",
          "inspect kohya.safetensors diffusers.safetensors diffusers-legacy.safetensors "
          "lycoris.safetensors peft 2022.safetensors --deep --json"),
    _case("convert-flux", "s.safetensors=split/flux1",
          *(f"convert s.safetensors --to {d} -o {d}.safetensors"
            for d in ("kohya", "comfyui", "onetrainer", "bare", "lycoris")),
          "convert s.safetensors --keep '*attn*' --drop '*add*' --drop 'single*' "
          "--to xlabs -o xlabs.safetensors",
          "convert s.safetensors --to peft -o peft",
          *(f"convert {d}.safetensors --to diffusers -o back-{d}.safetensors"
            for d in ("kohya", "comfyui", "onetrainer", "bare", "lycoris", "xlabs")),
          "convert peft --to comfyui -o back-peft.safetensors"),
    _case("convert-programs", _A,
          *(f"convert a.safetensors --for {p} -o {p}.safetensors"
            for p in ("comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai")),
          "convert a.safetensors --for peft -o peft"),
    _case("convert-some", _B, "convert b.safetensors --drop text_encoder --rescale 0.5 "
          "-o o.safetensors --json",
          "convert b.safetensors --keep '*attn2*' --dtype float32 -o p.safetensors"),
    _case("convert-xl", "x.safetensors=xl r.safetensors=refiner",
          *(f"convert {n}.safetensors --to {d} -o {n}-{d}.safetensors"
            for n in "xr" for d in ("kohya", "diffusers-legacy")),
          "convert x.safetensors --to peft -o x-peft"),
    _case("convert-many", "loras/a.safetensors=a loras/c.safetensors=a4",
          "convert loras --to diffusers --out-dir out --results t.csv --json"),
]  # fmt: skip

KIND = [
    _case(f"kind-{kind}", f"{_SD15} k.safetensors=kind/{kind} f.safetensors=f32",
          "inspect k.safetensors --deep --modules --json",
          "mix k.safetensors:0.5 f.safetensors:0.25 -o mix.safetensors",
          "resize k.safetensors --rank 2 -o small.safetensors",
          "convert k.safetensors --to-lora -o lora.safetensors",
          "convert k.safetensors --to diffusers -o diffusers.safetensors",
          "bake -b base.safetensors k.safetensors:0.5 -o baked.safetensors")
    for kind in KINDS
] + [
    _case(f"kind-{kind}", f"{_SD15} k.safetensors=kind/{kind} f.safetensors=f32",
          "inspect k.safetensors --base base.safetensors --deep --modules --json",
          "bake -b base.safetensors k.safetensors:0.5 f.safetensors -o baked.safetensors",
          "mix k.safetensors:0.5 f.safetensors:0.25 -b base.safetensors -o mix.safetensors",
          "resize k.safetensors -b base.safetensors --rank 2 -o small.safetensors",
          "convert k.safetensors -b base.safetensors --to-lora --rank 4 -o lora.safetensors",
          "convert k.safetensors --dtype bfloat16 -o same.safetensors")
    for kind in BASE_KINDS
] + [
    _case("kind-norms", f"{_SD15} k.safetensors=norms", "inspect k.safetensors --modules --json",
          "mix k.safetensors:0.5 -o mix.safetensors",
          "bake -b base.safetensors k.safetensors:0.5 -o baked.safetensors"),
]  # fmt: skip

_SD = ("sd15", "sd21", "sdxl", "sdxl-refiner")
_TRANSFORMERS = (
    "flux1", "sd3", "sd35-medium", "sd35-large", "qwen-image", "wan", "flux2-dev", "flux2-klein-4b",
    "flux2-klein-9b", "z-image", "lumina2", "hunyuan-video", "ltx-video", "ltx-video-13b", "anima",
    "cosmos2-14b",
)  # fmt: skip

FAMILY = [
    _case("families-full-width",
          " ".join(f"{f}.safetensors=full/{f}" for f in (*_SD, *_TRANSFORMERS)),
          "inspect " + " ".join(f"{f}.safetensors" for f in (*_SD, *_TRANSFORMERS)) + " --json"),
] + [
    _case(f"family-{f}",
          f"s.safetensors=split/{f} base.safetensors=single/{f} folder=folder/{f}/transformer",
          "convert s.safetensors --to kohya -o kohya.safetensors",
          "convert s.safetensors --to comfyui -o comfyui.safetensors",
          "mix kohya.safetensors:0.5 s.safetensors:0.25 --to diffusers -o mix.safetensors --json",
          "bake -b base.safetensors kohya.safetensors:0.5 -o single.safetensors --json",
          "bake -b folder comfyui.safetensors:0.5 -o baked")
    for f in _TRANSFORMERS
]  # fmt: skip

BAKE = [
    _case("bake", f"{_A} {_B} {_BASE}",
          "bake -b base.safetensors -l a.safetensors:0.8 -l b.safetensors:0.5 -o o.safetensors --json",
          "bake -b base.safetensors a.safetensors --dry-run --json"),
    _case("bake-folder", f"{_A} {_B} base=folder/sd21/unet/text_encoder/vae",
          "bake -b base a.safetensors:0.8 b.safetensors:0.5 -o o --json"),
    _case("bake-shards", f"{_A} base=shards/sd21/unet/text_encoder",
          "bake -b base a.safetensors:0.8 -o o"),
    _case("bake-unet", f"{_A} {_B} base.safetensors=single/sd21/unet",
          "bake -b base.safetensors a.safetensors:0.8 -o o.safetensors",
          "bake -b base.safetensors b.safetensors --skip-missing text_encoder -o p.safetensors"),
    _case("bake-types", f"{_A} base.safetensors=single/sd21/single/BF16",
          "bake -b base.safetensors a.safetensors:0.01 -o o.safetensors --json",
          "bake -b base.safetensors a.safetensors:0.01 --rounding stochastic --seed 3 -o p.safetensors",
          "bake -b base.safetensors a.safetensors --dtype float16 -o q.safetensors"),
    _case("bake-float8", f"{_A} base.safetensors=float8/comfyui later.safetensors=float8/later/F8_E5M2 "
          "plain.safetensors=single/sd21/single/F8_E4M3",
          "bake -b base.safetensors a.safetensors -o o.safetensors --json",
          "bake -b base.safetensors a.safetensors --dtype bfloat16 -o w.safetensors",
          "bake -b later.safetensors a.safetensors -o p.safetensors",
          "bake -b plain.safetensors a.safetensors --rounding stochastic -o q.safetensors"),
    _case("bake-storage", f"{_A} base.safetensors=single/sd21/single/F16",
          "bake -b base.safetensors --storage float8-scaled -o o.safetensors --json",
          "bake -b base.safetensors a.safetensors --storage nvfp4 -o p.safetensors --allow-loss",
          "bake -b o.safetensors a.safetensors --rounding balanced -o q.safetensors"),
    _case("compare", f"{_A} b.safetensors=b c.safetensors=a", "compare . --json",
          "compare b.safetensors c.safetensors --ingredients a.safetensors --json"),
    _case("bake-trained-on", f"{_A} {_BASE} then.safetensors=single/sd21/single/F16/9",
          "bake -b base.safetensors a.safetensors --trained-on then.safetensors "
          "-o o.safetensors --json"),
    _case("bake-sd15", "f.safetensors=f32 base.safetensors=single/sd15/single/F16 "
          "folder=folder/sd15/unet/text_encoder",
          "bake -b base.safetensors f.safetensors -o o.safetensors",
          "bake -b folder f.safetensors -o p"),
    _case("bake-xl", "x.safetensors=xl r.safetensors=refiner base.safetensors=single/sdxl/single/F16 "
          "folder=folder/sdxl/unet/text_encoder/text_encoder_2 other.safetensors=single/sdxl-refiner",
          "bake -b base.safetensors x.safetensors:0.5 -o o.safetensors --json",
          "bake -b folder x.safetensors:0.5 -o p",
          "bake -b other.safetensors r.safetensors:0.5 -o q.safetensors"),
    _case("bake-shipped", "", "bake --base tiny zuzu:0.5 -l polka -o o --json",
          "bake --base tiny-outlined zuzu -o p --save-recipe r.yaml"),
]  # fmt: skip

LOOK = [
    _case("inspect", f"{_A} {_B} {_BASE} c.safetensors=conv",
          "inspect a.safetensors b.safetensors --json", "inspect a.safetensors --deep --modules --json",
          "inspect c.safetensors --spectrum --json", "inspect a.safetensors --hash --metadata --json",
          "inspect a.safetensors --base base.safetensors --json", "inspect base.safetensors --json",
          "inspect zuzu polka tiny --json", "inspect a.safetensors --check"),
    _case("diff", f"{_A} {_B} c.safetensors=a4",
          "diff a.safetensors b.safetensors --json", "diff a.safetensors a.safetensors --exit-code",
          "diff a.safetensors c.safetensors --exit-code --json", "diff zuzu polka --json"),
    _case("meta", f"{_A} {_BASE}",
          "meta a.safetensors --json",
          "meta a.safetensors --set 'modelspec.title=My character' --unset ss_tag* -o o.safetensors",
          "meta a.safetensors --strip -o p.safetensors",
          "meta base.safetensors --set author=me"),
    _case("names", f"loras/a.safetensors=a {_BASE}",
          "library add loras", "library list --json", "base add mine base.safetensors",
          "base list --json", "mix a:0.5 -o o.safetensors", "bake -b mine a -o p.safetensors",
          "base remove mine", "library remove loras", "library list --json"),
    _case("tables", "", "dialects --json", "families --json", "recipes --json", "schema > schema.json"),
    _case("errors", f"{_A} broken.safetensors=broken",
          "mix nothing", "mix a.safetensors -o a.safetensors", "inspect broken.safetensors",
          "mix a.safetensors --rank 0", "resize a.safetensors", "run missing.yaml",
          "convert a.safetensors --to x",
          "bake -b a.safetensors a.safetensors", "mix a.safetensors zuzu", "run a.safetensors",
          "convert a.safetensors --keep nothing", "unknown"),
]  # fmt: skip

_LARDER = (
    "adapters/character.safetensors=b adapters/style.safetensors=a adapters/first.safetensors=a "
    "adapters/second.safetensors=a4 adapters/old.safetensors=a adapters/new.safetensors=a4 "
    "adapters/adapter.safetensors=b models/base.safetensors=single/sd21/single/F16 "
    "models/another-base.safetensors=single/sd21/single/F16/5 "
    "models/trained-on.safetensors=single/sd21/single/F16"
)
_SETTINGS = {
    "bake-for-another-base": "", "block-weights": "", "compare-versions": "",
    "full-pipeline": "--set rank=3 --set most_lost=0.9", "locked": "--lock",
    "old-kohya-results": "", "rank-ladder": "--set rank=[4,2,1]", "shrink-folder": "--set size=60%",
    "style-and-character": "", "subtract-style": "", "weight-sweep": "",
}  # fmt: skip

_OWN = """version: 1
vars: {half: 0.5}
inputs: {x: a.safetensors, y: b.safetensors, sd21: base.safetensors}
sweep:
  - {w: 0.2, rank: 4}
  - {w: 0.6, rank: 2}
steps:
  blend:
    mix:
      adapters:
        - x:${w}
        - adapter: y
          weight: {default: 1, text_encoder: 0, preset: OUTALL, match: {"*attn2*": 0.5}}
  small:
    resize: {adapter: blend, rank: "${rank}", to: diffusers, dtype: float16}
    save: out/small-${w}.safetensors
  half:
    convert: {adapter: small, rescale: "${half}", keep: [unet]}
    save: out/half-${w}.safetensors
  model:
    bake: {base: sd21, adapters: [half], rounding: stochastic, seed: 4}
    save: out/model-${w}.safetensors
  apart:
    diff: {a: blend, b: small}
    save: out/apart-${w}.json
  all:
    inspect: {files: [{each: small}], deep: true}
    save: out/all.json
"""

RECIPE = [
    _case(f"recipe-{name}", _LARDER, f"recipes {name} -o r.yaml",
          f"plan r.yaml {settings.replace('--lock', '')} --json",
          f"run r.yaml {settings} --results table.csv --json", f"run r.yaml {settings} --json")
    for name, settings in _SETTINGS.items()
] + [
    _case("recipe-own", f"{_A} {_B} {_BASE}", "plan own.yaml --json", "plan own.yaml --dot",
          "run own.yaml --results t.csv --json", "run own.yaml --set w=0.2 --set rank=4 --json",
          "run own.yaml --fresh --jobs 2 --json", own__yaml=_OWN),
    _case("run-output", f"{_A} {_B} {_BASE}",
          "mix a.safetensors:0.7 b.safetensors:0.3 -o m.safetensors",
          "resize m.safetensors --rank 2 -o r.safetensors",
          "convert r.safetensors --to diffusers -o c.safetensors",
          "bake -b base.safetensors c.safetensors:0.5 -o k.safetensors",
          *(f"plan {n}.safetensors > {n}.yaml" for n in "mrck"),
          *(f"run {n}.safetensors --json" for n in "mrck"),
          "run k.safetensors -o again.safetensors"),
    _case("save-recipe", f"{_A} {_B} {_BASE}",
          "mix a.safetensors:0.7 b.safetensors:0.3 -r 2 -o m.safetensors --save-recipe m.yaml",
          "resize a.safetensors -r 2 -o r.safetensors --save-recipe r.yaml",
          "convert a.safetensors --to diffusers -o c.safetensors --save-recipe c.yaml",
          "bake -b base.safetensors a.safetensors:0.5 -o k.safetensors --save-recipe k.yaml",
          "inspect a.safetensors --deep --save-recipe i.yaml -q",
          "diff a.safetensors b.safetensors --save-recipe d.yaml -q",
          "run m.yaml --force --json", "run k.yaml --force --json"),
]  # fmt: skip

_TRAIN = ("train --base tiny --images images --trigger zuzu --steps 20 --batch 2 --sample-every 0 "
          "--state-every 10 --cache .cache")  # fmt: skip

TRAIN = [
    _case("train", "images=images",
          f"{_TRAIN} --rank 2 -o o.safetensors --json", "run o.safetensors --json", torch=True),
    _case("train-options", "images=images other=images",
          f"{_TRAIN} --rank 2 --alpha 1 --targets attn --rank-pattern '*attn2*=3' --rslora "
          "--dropout 0.1 --init gaussian --text-encoder --lr 1e-3 --text-lr 5e-4 "
          "--schedule linear --warmup 0.2 "
          "--accumulate 2 --weight-decay 0.1 --lora-plus 4 --clip 0.5 --min-snr 5 --noise-offset 0.05 "
          "--ema 0.9 --precision no --seed 3 --repeats 2 --regularisation other "
          "--regularisation-weight 0.5 --shuffle-tags --keep-tokens 1 --tag-dropout 0.1 "
          "--caption-dropout 0.2 --save-every 10 "
          "--save-recipe r.yaml -o o.safetensors --json", torch=True),
    _case("train-methods", "images=images",
          f"{_TRAIN} --method dora --rank 2 --optimizer lion -o dora.safetensors",
          f"{_TRAIN} --method blocks:up_blocks.1 --save-rank 2 -o blocks.safetensors",
          f"{_TRAIN} --optimizer adafactor --to diffusers --dtype float16 --rank 1 -o o.safetensors",
          torch=True),
    _case("train-resume", "images=images",
          f"{_TRAIN.replace('--steps 20', '--steps 10')} --rank 2 -o o.safetensors",
          f"{_TRAIN} --rank 2 -f --resume -o o.safetensors --json", torch=True),
    _case("train-samples", "images=images",
          f"{_TRAIN.replace('--sample-every 0', '--sample-every 10')} --prompt zuzu --sample-steps 2 "
          "--rank 1 --targets attn -o o.safetensors", torch=True),
    _case("train-plan", "images=images", f"{_TRAIN} --rank 2 --dry-run --json", torch=True),
    _case("preview", "",
          "preview --base tiny zuzu polka:0.5 --prompt 'zuzu, red' --seed 0 --seed 1 --steps 2 "
          "-o o.png --html --json",
          "preview --base tiny --base tiny-outlined zuzu -w 0.5 -w 1 --together --no-base "
          "--prompt zuzu --steps 2 --negative red -o p.png --json", torch=True),
    _case("demo", "", "demo --json", torch=True),
    _case("python-train", "images=images",
          "python: lm.save(lm.train('tiny', 'images', trigger='zuzu', steps=5, rank=1, sample_every=0, "
          "folder='run'), 'o.safetensors')", torch=True),
]  # fmt: skip

PYTHON = [
    _case("python", f"{_A} {_B} {_BASE}",
          "python: a, b = lm.load('a.safetensors'), lm.load('b.safetensors'); "
          "both = lm.mix([(a, 0.7), (b, lm.Weight(0.3, {'text_encoder': 0.0}))]); "
          "lm.save(both, 'both.safetensors', dialect='kohya'); "
          "lm.save(lm.resize(both, rank=2), 'small.safetensors', dialect='diffusers', dtype='float16'); "
          "lm.save(0.7 * a + 0.3 * b, 'sum.safetensors', dialect='kohya'); "
          "lm.save(lm.convert(both, keep=['*attn2*'], rescale=0.5), 'half.safetensors'); "
          "lm.bake('base.safetensors', [(both, 0.5)], 'baked.safetensors'); "
          "print(json.dumps({'diff': lm.diff(a, b).json(), 'inspect': lm.inspect(a, deep=True).json()}))"
          " # --json"),
]  # fmt: skip

CASES: list[Case] = [
    *MIX, *RESIZE, *CONVERT, *BAKE, *LOOK, *KIND, *FAMILY, *RECIPE, *PYTHON, *TRAIN,
]  # fmt: skip
