"""Commands derived from the verbs' parameters: one field, one option."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loramerge.cli.session import Session
from loramerge.events import Note
from loramerge.verbs.parameters import Context, Doc

__all__ = ["emit", "json_options", "verb_command"]

Render = Callable[[Any], None]

_COMMON = ("as_json", "json_file", "quiet", "threads", "device")


def json_options() -> list[click.Parameter]:
    """Return the options of every command that has a result."""
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
        click.Option(
            ["--json-file"],
            metavar="FILE",
            help="Write the result as JSON to a file (for shells that write UTF-16).",
        ),
    ]


def _run_options() -> list[click.Parameter]:
    return [
        *json_options(),
        click.Option(["--quiet", "-q"], is_flag=True, help="Show warnings only."),
        click.Option(
            ["--threads"],
            type=click.IntRange(min=1),
            metavar="N",
            help="Worker threads [default: all processors]. Results do not depend on it.",
        ),
        click.Option(
            ["--device"],
            metavar="DEVICE",
            help="Torch device for decompositions, e.g. cuda [default: the CPU, without torch].",
        ),
    ]


def verb_command(
    name: str,
    parameters: type[Any],
    run: str,
    render: Render,
    example: str,
    exit_code: Callable[[Any], int] = lambda _: 0,
    *,
    decomposes: bool = False,
) -> click.Command:
    """Make the command of a verb.

    Args:
        parameters: the verb's frozen dataclass; its docstring is the help text.
        run: `module:function` of the verb.
        render: shows a result to people.
        example: a command line that works, shown in the help.
        exit_code: function of the result that gives the exit code.
        decomposes: whether the verb uses `--device`.
    """

    def callback(**values: Any) -> int:
        common = {key: values.pop(key) for key in _COMMON}
        from importlib import import_module

        module, _, function = run.partition(":")
        quiet, json_file = common["quiet"], common["json_file"]
        _check_json_file(json_file)
        with Session(quiet=quiet) as session:
            if common["device"] is not None:
                _check_device(name, common["device"], session, used=decomposes)
            context = Context(common["threads"], common["device"], session.notify)
            result = getattr(import_module(module), function)(parameters(**values), context)
        shown = (lambda: None) if quiet else lambda: render(result)
        emit(result.json(), common["as_json"], json_file, shown)
        return exit_code(result)

    fields = [_parameter(field, hint) for field, hint in _fields(parameters)]
    fields.sort(key=lambda p: not isinstance(p, click.Argument))
    return click.Command(
        name,
        callback=callback,
        params=[*fields, *_run_options()],
        help=parameters.__doc__,
        epilog=f"Example: {example}",
        no_args_is_help=any(isinstance(p, click.Argument) and p.required for p in fields),
    )


def _check_device(name: str, device: str, session: Session, *, used: bool) -> None:
    """Refuse a device that is not there before any work, and say so if one that is goes unused."""
    from loramerge.algebra.arrays import check_device

    if check_device(device) is not None and not used:
        session.notify(Note(f"{name} runs on the CPU: --device changes nothing here"))


def _check_json_file(text: str | None) -> None:
    """Refuse to write JSON over something else.

    Raises:
        OutputExists: if the path is a folder, or a file that holds no JSON.
    """
    if text is None or not os.path.exists(text):
        return
    path = Path(text)
    if path.is_dir() or path.read_bytes()[:1] not in (b"[", b"{", b""):
        from loramerge.errors import OutputExists

        raise OutputExists(
            "--json-file would replace something that is no JSON",
            file=path,
            hint="give --json-file another name",
        )


def emit(content: Any, as_json: bool, json_file: str | None, show: Callable[[], None]) -> None:
    """Show a result: as JSON on standard output or in a file, else for people."""
    if as_json or json_file:
        text = json.dumps(_plain(content), ensure_ascii=False, indent=2)
        if json_file:
            from loramerge.files.writer import write_bytes

            write_bytes(Path(json_file), (text + "\n").encode("utf-8", "replace"), force=True)
        if as_json:
            sys.stdout.write(text + "\n")
            return
    show()


def _plain(value: Any) -> Any:
    """Return a value that every JSON reader takes: no NaN or infinity, text keys."""
    if isinstance(value, dict):
        return {_key(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _key(key: Any) -> str:
    return f"{key:g}" if isinstance(key, float) else str(key)


def _fields(parameters: type[Any]) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(parameters, include_extras=True)
    return [(field, hints[field.name]) for field in dataclasses.fields(parameters)]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> click.Parameter:
    """Make the click parameter of a field."""
    inner, *extras = typing.get_args(hint)
    doc = next(extra for extra in extras if isinstance(extra, Doc))
    required = field.default is dataclasses.MISSING
    inner, many = _unwrapped(inner)
    kind = _click_type(inner, extras)
    completion = _completion(doc.completes)
    # an explicit None would count as a value, so what is required is given no default at all
    default: dict[str, Any] = {} if required or many else {"default": field.default}
    if doc.positional:
        return click.Argument(
            [field.name],
            nargs=-1 if many else 1,
            required=required,
            **default,
            metavar=_metavar(doc.flags[0], required=required, many=many),
            shell_complete=completion,
        )
    flags = doc.flags or (f"--{field.name.replace('_', '-')}",)
    if inner is bool:
        return click.Option([*flags, field.name], is_flag=True, default=False, help=doc.help)
    return click.Option(
        [*flags, field.name],
        type=kind,
        multiple=many,
        required=required,
        **default,
        show_default=default.get("default") is not None,
        metavar=doc.metavar,
        help=doc.help,
        shell_complete=completion,
    )


def _metavar(word: str, *, required: bool, many: bool) -> str:
    return (word if required else f"[{word}]") + ("..." if many else "")


def _unwrapped(inner: Any) -> tuple[Any, bool]:
    """Return the type without `| None` and `tuple[…, ...]`, and whether it was a tuple."""
    if isinstance(inner, types.UnionType) or typing.get_origin(inner) is typing.Union:
        inner = next(arg for arg in typing.get_args(inner) if arg is not type(None))
    if typing.get_origin(inner) is tuple:
        return typing.get_args(inner)[0], True
    return inner, False


def _click_type(inner: Any, extras: list[Any]) -> click.ParamType[Any]:
    if typing.get_origin(inner) is typing.Literal:
        return click.Choice(typing.get_args(inner))
    if inner in (int, float):
        return _range(inner, extras)
    return click.STRING


def _range(inner: type, extras: list[Any]) -> click.ParamType[Any]:
    """Return a click range from annotated_types bounds.

    Bounds are known by their fields, so that commands without any need not import the package.
    """
    bounds: dict[str, Any] = {}
    for extra in extras:
        for name in ("ge", "gt", "le", "lt"):
            value = getattr(extra, name, None)
            if value is not None:
                bounds[name] = value
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    kind = click.IntRange if inner is int else click.FloatRange
    return kind(low, high, min_open="gt" in bounds, max_open="lt" in bounds)


def _completion(what: str | None) -> Any:
    """Return a completion function over names of the library, the registry, or the dialects."""
    if what is None:
        return None

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        items = [CompletionItem(name) for name in _names(what) if name.startswith(incomplete)]
        if what in ("adapters", "bases"):
            items.append(CompletionItem(incomplete, type="file"))
        return items

    return complete


def _names(what: str) -> list[str]:
    if what == "dialects":
        from loramerge.dialects import DIALECTS

        return list(DIALECTS)
    from loramerge.errors import LoramergeError
    from loramerge.library.lookup import bare, names_in_library
    from loramerge.library.registry import load_registry

    try:
        registry = load_registry()
    except LoramergeError:
        return []
    names = list(registry.bases) if what == "bases" else []
    names += [bare(relative.rpartition("/")[2]) for relative, _ in names_in_library(registry, what)]
    return sorted(dict.fromkeys(names))
