"""Record what a fixed list of commands writes, and check that it is still written.

    python tests/golden.py record tests/golden.json
    python tests/golden.py check tests/golden.json --only 'bake*' --jobs 2 --keep /tmp/seen

The loramerge that `import loramerge` finds is run, each command in a process of its own. Of every file
are recorded its bytes, its tensors and its metadata apart, so that a difference says what differs:
`tensors` (values), `layout` (names, shapes, types), `metadata KEY`, or `bytes` alone (order, padding,
digests of inputs in the header). Bytes and values depend on the processor and its libraries; where
those are others than at the time of recording, norms are compared instead. Versions, paths, times and
digests within texts are masked. Reports in HTML and what is printed for people are not looked at.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import io
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # our neighbours, wherever `tests` is

import golden_inputs as inputs  # noqa: E402
import numpy as np  # noqa: E402
from golden_cases import CASES, Case  # noqa: E402

Record = dict[str, Any]

_KEYED = ("keys", "metadata")  # records whose keys are packed
_PART = 5  # letters of the digest of one of them
_CLOSE = 2e-3  # relative, of norms computed on another processor
_IGNORED = (
    "*.html",
    "*/state.pt",
    "*/state.pt.*",
    ".*",
    "*/.*",
    "*/cache/*",
    "*.lock",
    "*/events.*",
)
_TIMES = re.compile(r"second|time|peak|memory|duration|speed|version|modified|bytes_per", re.I)
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{40}\b")
_FLOAT = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?|-?\d+e[-+]?\d+", re.I)
_HASH_KEYS = re.compile(r"hash|loramerge\.version|^sshs_", re.I)


def _short(data: bytes | str, length: int = 12) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()[:length]


def fingerprint() -> dict[str, str]:
    """Say what bytes of results depend on, beside the code."""
    from importlib.metadata import PackageNotFoundError, version

    processor = platform.processor()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        fields = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text, re.M))
        processor = f"{fields.get('model name', '')} {_short(fields.get('flags', ''))}"
    found = {"machine": platform.machine(), "processor": processor}
    for package in ("numpy", "torch", "diffusers", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


# ---- records of what was written


class Masks:
    """Takes paths, versions and digests out of texts.

    Args:
        paths: what stands for a folder, by the folder.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.paths = sorted(paths.items(), key=lambda pair: -len(pair[0]))

    def text(self, text: str) -> str:
        for path, word in self.paths:
            text = text.replace(path, word)
        text = re.sub(r"/[^\s\"']*/loramerge-[^/\s\"']*", "<scratch>", text)
        return _DIGEST.sub("<digest>", text)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if isinstance(value, dict):
            return {
                self.text(key): "<masked>" if _TIMES.search(key) else self.value(one)
                for key, one in value.items()
            }
        return value


def of_text(text: str) -> Record:
    """Record a text: its digest, that of the text without its decimals, and their sum."""
    numbers = [float(found) for found in _FLOAT.findall(text)]
    return {
        "sha": _short(text),
        "skeleton": _short(_FLOAT.sub("#", text), 8),
        "sum": float(f"{sum(map(abs, numbers)):.6g}"),
    }


def of_value(value: Any, masks: Masks) -> Record:
    """Record a parsed content, with a digest for each key on top."""
    masked = masks.value(value)
    text = json.dumps(masked, sort_keys=True)
    parts = masked if isinstance(masked, dict) else {"items": masked}
    keys = {key: _short(json.dumps(part, sort_keys=True), _PART) for key, part in parts.items()}
    return of_text(text) | {"keys": keys}


def of_tensors(path: Path, masks: Masks) -> Record:
    """Record a safetensors file: bytes, values, layout and metadata apart."""
    tensors, metadata = inputs.read(path)
    values, layout, norm, weighted = hashlib.sha256(), hashlib.sha256(), 0.0, 0.0
    for name in sorted(tensors):
        array = tensors[name]
        line = f"{name} {array.dtype} {array.shape}\n".encode()
        layout.update(line)
        values.update(line + array.tobytes())
        with np.errstate(invalid="ignore"):
            size = float(np.sqrt(np.square(array.astype("float64")).sum()))
        norm += size
        weighted += size * (0.5 + zlib.crc32(name.encode()) / 2**32)
    keys = {}
    for key, text in metadata.items():
        if _HASH_KEYS.search(key):
            keys[key] = "-" * _PART
            continue
        shown = masks.text(text)
        with contextlib.suppress(ValueError):
            shown = json.dumps(masks.value(json.loads(text)), sort_keys=True)
        keys[key] = _short(shown, _PART)
    return {
        "sha": _short(path.read_bytes()),
        "tensors": values.hexdigest()[:12],
        "layout": layout.hexdigest()[:8],
        "norms": [float(f"{norm:.6g}"), float(f"{weighted:.6g}")],
        "metadata": keys,
    }


def of_image(path: Path) -> Record:
    """Record an image: its size, and the digest and mean of its pixels."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image)
    return {
        "sha": _short(pixels.tobytes()),
        "skeleton": str(pixels.shape),
        "sum": float(f"{pixels.mean():.6g}"),
    }


def of_file(path: Path, masks: Masks) -> Record:
    """Record a file by its type."""
    if path.suffix == ".safetensors":
        return of_tensors(path, masks)
    if path.suffix == ".png":
        return of_image(path)
    text = path.read_text("utf-8", "replace")
    if path.suffix == ".json":
        return of_value(json.loads(text), masks)
    if path.suffix == ".yaml":
        import yaml

        return of_value(yaml.safe_load(text), masks)
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        return of_text(json.dumps(masks.value(lines), sort_keys=True))
    return of_text(masks.text(text))


# ---- runs


def _child(command: str, folder: Path, home: Path, out: Path, err: Path) -> NoReturn:
    """Run a command in this process, which was forked for it, and end it."""
    code = 99
    try:
        os.chdir(folder)
        os.environ |= {"LORAMERGE_HOME": str(home), "COLUMNS": "100", "NO_COLOR": "1"}
        for number, path in ((1, out), (2, err)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), "utf-8")
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb"), "utf-8")
        try:
            if command.startswith("python:"):
                import loramerge

                exec(command.removeprefix("python:").strip(), {"lm": loramerge, "json": json})
            else:
                sys.argv = ["loramerge", *shlex.split(command)]
                runpy.run_module("loramerge", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(command: str, folder: Path, home: Path, out: Path, err: Path) -> int:
    process = os.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _child(command, folder, home, out, err)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch.fnmatch(name, p) for p in _IGNORED):
            yield name, path


def _prepare(case: Case, folder: Path, larder: Path) -> None:
    folder.mkdir(parents=True)
    for given in case.inputs:
        name, _, kind = given.partition("=")
        kept = larder / kind.replace("/", "+")
        if not kept.exists():
            inputs.make(kind, kept)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(kept, target) if kept.is_dir() else shutil.copy(kept, target)
    for name, text in case.files:
        (folder / name).write_text(text)


def run_case(case: Case, scratch: Path, larder: Path, keep: Path | None) -> Record:
    """Run the commands of a case and record exit codes, JSON printed, and files written."""
    import loramerge

    folder, home = scratch / "work", scratch / "home"
    _prepare(case, folder, larder)
    home.mkdir()
    package = str(Path(loramerge.__file__).parent)
    masks = Masks({str(folder.resolve()): "<work>", str(home): "<home>", package: "<package>"})
    before = {name: _short(path.read_bytes()) for name, path in _files(folder)}
    found: Record = {"exit": [], "json": {}, "files": {}}
    kept_out: set[str] = set()
    for index, line in enumerate(case.commands):
        command, _, target = line.partition(" > ")
        out, err = scratch / f"{index}.out", scratch / f"{index}.err"
        code = _run(command, folder, home, out, err)
        found["exit"].append(code)
        text = out.read_text("utf-8")
        if target:
            (folder / target).write_text(text)
            kept_out.add(target)
        if "--json" in command and code in (0, 1):
            with contextlib.suppress(ValueError):
                found["json"][str(index)] = of_value(json.loads(text), masks)
        if keep:
            shown = masks.text(f"$ {line}\n{text}\n--- {code}\n{err.read_text('utf-8')}\n")
            (keep / case.name).mkdir(parents=True, exist_ok=True)
            (keep / case.name / f"{index}.txt").write_text(shown)
        if code in (70, 99):
            print(f"{case.name}: {line}\n  {err.read_text('utf-8')[-1500:]}", file=sys.stderr)
    for name, path in _files(folder):
        if name in kept_out or before.get(name) == _short(path.read_bytes()):
            continue
        found["files"][name] = of_file(path, masks)
        if keep:
            target_path = keep / case.name / "files" / name
            target_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target_path)
    return found


def _preload(torch: bool) -> None:
    """Import what loramerge will, before forking for each command, but nothing of loramerge's."""
    for name in ("click", "rich.table", "pydantic", "yaml", "ruamel.yaml", "ml_dtypes"):
        with contextlib.suppress(ImportError):
            __import__(name)
    if torch:
        for name in ("torch", "PIL.Image", "diffusers", "transformers"):
            with contextlib.suppress(ImportError):
                __import__(name)
        with contextlib.suppress(ImportError):
            from diffusers import StableDiffusionPipeline  # noqa: F401


def run_cases(cases: Sequence[Case], jobs: int, keep: Path | None) -> dict[str, Record]:
    """Run cases and return their records by name."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        root = Path(name)
        processes = []
        for job in range(jobs):
            process = os.fork()
            if not process:
                _worker(cases[job::jobs], root / str(job), keep)
            processes.append(process)
        failed = [p for p in processes if os.waitpid(p, 0)[1]]
        found: dict[str, Record] = {}
        for job in range(jobs):
            with contextlib.suppress(FileNotFoundError):
                found |= json.loads((root / str(job) / "records.json").read_text())
        if failed:
            raise SystemExit("a worker of the golden runs failed; see above")
        return {case.name: found[case.name] for case in cases}


def _worker(cases: Sequence[Case], root: Path, keep: Path | None) -> NoReturn:
    code = 1
    try:
        found, preloaded = {}, None
        (root / "larder").mkdir(parents=True)
        for case in sorted(cases, key=lambda one: one.torch):
            if preloaded != case.torch:
                _preload(preloaded := case.torch)
            start = time.perf_counter()
            scratch = root / case.name
            found[case.name] = run_case(case, scratch, root / "larder", keep)
            shutil.rmtree(scratch)
            print(f"{case.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        (root / "records.json").write_text(json.dumps(found))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


# ---- comparison


def _differs(before: Any, now: Any) -> list[str]:
    """Name the keys of two mappings that differ."""
    found = [f"-{key}" for key in before if key not in now]
    found += [f"+{key}" for key in now if key not in before]
    return found + [key for key in before if key in now and before[key] != now[key]]


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= _CLOSE * max(abs(a), abs(b)) + 1e-4


def differences(before: Record, now: Record, *, exact: bool) -> Iterator[str]:
    """Yield what differs between two records of a file or of a printed JSON.

    Args:
        exact: compare bytes; else what does not depend on the processor.
    """
    told = False
    if "tensors" in before and "tensors" in now:
        if before["layout"] != now["layout"]:
            yield "layout (names, shapes or types)"
            told = True
        elif exact and before["tensors"] != now["tensors"]:
            yield f"tensors (norms {before['norms']} → {now['norms']})"
            told = True
        elif not all(map(_near, before["norms"], now["norms"])):
            yield f"norms {before['norms']} → {now['norms']}"
            told = True
        changed = _differs(before["metadata"], now["metadata"])
        if changed:
            yield f"metadata {', '.join(changed)}"
        if exact and not told and not changed and before["sha"] != now["sha"]:
            yield "bytes (order, padding, version, or digests in the header)"
        return
    if exact:
        if before["sha"] != now["sha"]:
            changed = _differs(before.get("keys", {}), now.get("keys", {}))
            yield f"content {', '.join(changed)}".rstrip()
        return
    if before["skeleton"] != now["skeleton"]:
        yield "content but for its decimals"
    elif abs(before["sum"] - now["sum"]) > 0.02 * abs(before["sum"]) + 1e-3:
        yield f"sum of its decimals {before['sum']} → {now['sum']}"


def compare(before: Record, now: Record, case: Case, *, exact: bool) -> Iterator[str]:
    """Yield a line for everything that differs between two records of a case."""
    for index, codes in enumerate(zip(before["exit"], now["exit"], strict=False)):
        if codes[0] != codes[1]:
            yield f"`{case.commands[index]}`: exit code {codes[0]} → {codes[1]}"
    for word in ("json", "files"):
        then, today = before[word], now[word]
        for name in {**then, **today}:
            shown = f"`{case.commands[int(name)]}`" if word == "json" else name
            if name not in today or name not in then:
                yield f"{shown}: {'missing' if name in then else 'new'}"
                continue
            for line in differences(then[name], today[name], exact=exact):
                yield f"{shown}: {line}"


# ---- the file of records


def _load(path: Path) -> Record:
    """Read records; keys that many share stand in it once."""
    content: Record = json.loads(path.read_text())
    sets = content["keys"]

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: _spelled(sets[one[0]], one[1]) if key in _KEYED else whole(one)
            for key, one in value.items()
        }

    return {
        "fingerprint": content["fingerprint"],
        "cases": {name: whole(one) for name, one in content["cases"].items()},
    }


def _save(path: Path, cases: Mapping[str, Record]) -> None:
    """Write records, a case on a line."""
    sets: dict[tuple[str, ...], int] = {}

    def packed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: [sets.setdefault(tuple(one), len(sets)), "".join(one.values())]
            if key in _KEYED
            else packed(one)
            for key, one in value.items()
        }

    def dense(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    lines = [f"{dense(name)}:{dense(packed(one))}" for name, one in cases.items()]
    keys = ",\n".join(dense(one) for one in sets)
    head = f'{{"fingerprint":{dense(fingerprint())},\n"keys":[\n{keys}\n],\n"cases":{{\n'
    path.write_text(head + ",\n".join(lines) + "\n}}\n")


def _spelled(keys: Sequence[str], digests: str) -> dict[str, str]:
    return {key: digests[i * _PART : (i + 1) * _PART] for i, key in enumerate(keys)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or check; return 1 if something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=["record", "check", "list"])
    parser.add_argument("file", type=Path, nargs="?", help="the record, tests/golden.json")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="cases of these names")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep what is written and printed in this folder")
    parser.add_argument("--coarse", action="store_true", help="compare as on another processor")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in CASES
        if not options.only or any(fnmatch.fnmatch(case.name, p) for p in options.only)
    ]
    if options.task == "list":
        print("\n".join(case.name for case in cases))
        return 0
    if options.keep:
        options.keep = options.keep.resolve()
    stored = _load(options.file) if options.file.exists() else {"cases": {}}
    now = run_cases(cases, max(1, options.jobs), options.keep)
    if options.task == "record":
        whole = {
            name: now.get(name) or stored["cases"].get(name) for name in (c.name for c in CASES)
        }
        _save(options.file, {name: one for name, one in whole.items() if one})
        return 0
    exact = stored["fingerprint"] == fingerprint() and not options.coarse
    wrong = 0
    for case in cases:
        before = stored["cases"].get(case.name)
        found = ["not recorded"] if before is None else None
        for line in found or compare(before, now[case.name], case, exact=exact):
            print(f"{case.name}: {line}")
            wrong += 1
    how = "bytes" if exact else "norms: the processor or the libraries are others"
    print(f"{len(cases)} cases, {wrong} differences ({how})")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
