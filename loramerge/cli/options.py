"""Commands derived from the verbs' parameters: one field, one option."""

from __future__ import annotations

import json
import math
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from loramerge.cli.session import Session
from loramerge.events import Note
from loramerge.steps.parameters import Context, Parameter, parameters_of

__all__ = ["emit", "json_options", "run_options", "verb_command"]

Render = Callable[[Any], None]

Steps = list[tuple[str, Any, Any]]  # verb, parameters, result

_COMMON = ("as_json", "json_file", "quiet", "threads", "device", "save_recipe", "strip")


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


def run_options() -> list[click.Parameter]:
    """Return the options of every command that computes something."""
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
    writes: bool = False,
    recipe: bool = True,
    steps: Callable[[Any, Any], Steps] | None = None,
) -> click.Command:
    """Make the command of a verb.

    Args:
        parameters: the verb's frozen dataclass; its docstring is the help text.
        run: `module:function` of the verb.
        render: shows a result to people.
        example: a command line that works, shown in the help.
        exit_code: function of the result that gives the exit code.
        decomposes: whether the verb uses `--device`.
        writes: whether it writes adapters or checkpoints, which then say what made them.
        recipe: whether recipes can do the same.
        steps: function of parameters and result that gives the steps of a recipe that does the
            same; by default the verb itself.
    """
    said = parameters_of(parameters)
    own = {one.name for one in said}  # meta has a --strip of its own

    def callback(**values: Any) -> int:
        common: dict[str, Any] = {
            key: None if key in own else values.pop(key, None) for key in _COMMON
        }
        from importlib import import_module

        module, _, function = run.partition(":")
        quiet, json_file = common["quiet"], common["json_file"]
        _check_json_file(json_file)
        save_recipe = common["save_recipe"]
        if save_recipe is not None:
            _check_recipe_file(save_recipe)
        asked = parameters(**{one.name: _read(one, values[one.name]) for one in said})
        with Session(quiet=quiet) as session:
            if common["device"] is not None:
                _check_device(name, common["device"], session, used=decomposes)
            context = Context(
                common["threads"], common["device"], session.notify, bool(common["strip"])
            )
            result = getattr(import_module(module), function)(asked, context)
            if save_recipe is not None:
                _save_recipe(
                    save_recipe, steps(asked, result) if steps else [(name, asked, result)]
                )
        shown = (lambda: None) if quiet else lambda: render(result)
        emit(result.json(), common["as_json"], json_file, shown)
        return exit_code(result)

    fields = [_parameter(one) for one in said]
    fields.sort(key=lambda p: not isinstance(p, click.Argument))
    return click.Command(
        name,
        callback=callback,
        params=[*fields, *(_recipe_options(writes=writes) if recipe else []), *run_options()],
        help=parameters.__doc__,
        epilog=f"Example: {example}",
        no_args_is_help=any(isinstance(p, click.Argument) and p.required for p in fields),
    )


def _recipe_options(*, writes: bool) -> list[click.Parameter]:
    """Return the options that say where the recipe of a command goes."""
    found: list[click.Parameter] = [
        click.Option(
            ["--save-recipe"],
            metavar="FILE.yaml",
            help="Also write a recipe that does the same.",
        )
    ]
    if writes:
        strip = "Write nothing into the header about what made the file."
        found.append(click.Option(["--strip"], is_flag=True, help=strip))
    return found


def _save_recipe(text: str, steps: Steps) -> None:
    from loramerge.recipe.writing import write_recipe

    write_recipe(Path(text), steps)


def _check_recipe_file(text: str) -> None:
    """Refuse to write a recipe over something.

    Raises:
        OutputExists: if the path exists.
    """
    if os.path.exists(text):
        from loramerge.errors import OutputExists

        raise OutputExists("the recipe exists", file=text, hint="give --save-recipe another name")


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


def _parameter(one: Parameter) -> click.Parameter:
    """Make the click parameter of a verb's parameter."""
    doc = one.doc
    completion = _completion(doc.completes)
    # an explicit None would count as a value, so what is required is given no default at all
    default: dict[str, Any] = {} if one.required or one.many else {"default": one.default}
    if doc.positional:
        return click.Argument(
            [one.name],
            nargs=-1 if one.many else 1,
            required=one.required,
            **default,
            metavar=_metavar(doc.flags[0], required=one.required, many=one.many),
            shell_complete=completion,
        )
    flags = doc.flags or (f"--{one.name.replace('_', '-')}",)
    if one.kind is bool:
        return click.Option([*flags, one.name], is_flag=True, default=False, help=doc.help)
    return click.Option(
        [*flags, one.name],
        type=_click_type(one),
        multiple=one.many,
        required=one.required,
        **default,
        show_default=default.get("default") is not None,
        metavar=doc.metavar,
        help=doc.help,
        shell_complete=completion,
    )


def _read(one: Parameter, value: Any) -> Any:
    """Return a value from the command line as the verb takes it."""
    if getattr(one.kind, "__name__", "") != "Reference":
        return value
    from loramerge.steps.references import parse_reference

    if one.many:
        return tuple(parse_reference(text) for text in value)
    return None if value is None else parse_reference(value)


def _metavar(word: str, *, required: bool, many: bool) -> str:
    return (word if required else f"[{word}]") + ("..." if many else "")


def _click_type(one: Parameter) -> click.ParamType[Any]:
    if typing.get_origin(one.kind) is typing.Literal:
        return click.Choice(typing.get_args(one.kind))
    if one.kind in (int, float):
        return _range(one.kind, one.bounds)
    return click.STRING


def _range(inner: type, extras: Sequence[Any]) -> click.ParamType[Any]:
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

        if what == "folders":
            return [CompletionItem(incomplete, type="dir")]
        items = [CompletionItem(name) for name in _names(what) if name.startswith(incomplete)]
        if what in ("adapters", "bases", "files"):
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
    from loramerge.library.shipped import SHIPPED_ADAPTERS, SHIPPED_BASES

    try:
        registry = load_registry()
    except LoramergeError:
        return []
    bases = what != "adapters"
    names = [*registry.bases, *SHIPPED_BASES] if bases else list(SHIPPED_ADAPTERS)
    holds = "bases" if what == "bases" else "adapters"
    found = names_in_library(registry, holds)
    names += [bare(relative.rpartition("/")[2]) for relative, _ in found]
    return sorted(dict.fromkeys(names))
