"""Options of the command line: those derived from a verb's parameters, and those commands share."""

from __future__ import annotations

import os
import typing
from collections.abc import Sequence
from typing import Any

import click

from loramerge.errors import suggestion
from loramerge.steps.parameters import Parameter

__all__ = [
    "json_options",
    "load_operators",
    "operator_option",
    "option_of",
    "recipe_options",
    "report_options",
    "run_options",
    "worker_options",
]


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


def run_options(*, device: bool = True) -> list[click.Parameter]:
    """Return the options of every command that computes something.

    Args:
        device: whether it may compute on another device than the CPU.
    """
    found: list[click.Parameter] = [
        *json_options(),
        click.Option(["--quiet", "-q"], is_flag=True, help="Show warnings only."),
        click.Option(
            ["--threads"],
            type=number_from(int, low=1),
            metavar="N",
            help="Worker threads [default: all processors; 1 for train and preview]. Results do "
            "not depend on it, except for the last bits in training and previews.",
        ),
        click.Option(
            ["--device"],
            metavar="DEVICE",
            help="Torch device, such as cuda [default: the CPU, without torch; for train and "
            "preview a GPU, if there is one].",
        ),
    ]
    return found if device else found[:-1]


def worker_options(large: int | None) -> list[click.Parameter]:
    """Return the options of commands whose work other processes can do.

    Args:
        large: bytes to compute from which they do so by themselves; None is never.
    """
    own = (
        "1"
        if large is None
        else f"1; one for each processor where {large >> 20} MB or more of a file are computed"
    )
    return [
        click.Option(
            ["--jobs", "-j"],
            type=number_from(int, low=1),
            metavar="N",
            help=f"Processes of this machine that compute parts of the checkpoint [default: {own}].",
        ),
        click.Option(
            ["--dask"],
            metavar="ADDRESS",
            help="Compute the parts on the Dask cluster at this address; its workers need loramerge and "
            "the same file system.",
        ),
    ]


def recipe_options(*, writes: bool) -> list[click.Parameter]:
    """Return the options about a command's recipe.

    Args:
        writes: whether the command writes files with a recipe in their headers.
    """
    found: list[click.Parameter] = [
        click.Option(
            ["--save-recipe"],
            metavar="FILE.yaml",
            help="Also write a recipe that does the same.",
        )
    ]
    if writes:
        strip = "Do not record in the header how the file was made."
        found.append(click.Option(["--strip"], is_flag=True, help=strip))
    return found


def report_options() -> list[click.Parameter]:
    """Return the options of commands whose results have a page and figures."""
    return [
        click.Option(
            ["--html"],
            metavar="FILE.html",
            help="Also write the result as a self-contained HTML page (reads the weights).",
        ),
        click.Option(
            ["--plot"],
            metavar="FILE",
            help="Also write its figures as a PNG, SVG or PDF file (reads the weights).",
        ),
    ]


def load_operators(paths: Sequence[str]) -> None:
    """Run Python files that define merge operators, each once.

    Raises:
        LoramergeError: see `operators.load_file`.
    """
    from loramerge.algebra.operators import load_file

    for path in paths:
        real = os.path.realpath(path)
        if real not in _loaded:
            load_file(path)
            _loaded.add(real)


_loaded: set[str] = set()


def operator_option() -> click.Option:
    """Return the option that names files of merge operators."""
    return click.Option(
        ["--operator"],
        multiple=True,
        metavar="FILE.py",
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, param, value: load_operators(value),
        help="Python file that defines merge operators; its code is run. May be repeated.",
    )


def option_of(one: Parameter) -> click.Parameter:
    """Return the click parameter that sets a parameter of a verb."""
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
    if one.kind is bool and one.optional:
        word = flags[0].removeprefix("--")
        return click.Option([f"--{word}/--no-{word}", one.name], default=None, help=doc.help)
    if one.kind is bool:
        return click.Option([*flags, one.name], is_flag=True, default=False, help=doc.help)
    return _Option(
        [*flags, one.name],
        former=[f"--{word.replace('_', '-')}" for word in doc.former],
        rules_of=one.word if one.per_module else None,
        type=_Separated(_click_type(one)) if one.doc.separated else _click_type(one),
        multiple=one.many and not one.doc.separated,
        required=one.required,
        **default,
        show_default=default.get("default") not in (None, ""),
        metavar=doc.metavar or ("N" if one.kind in (int, float) else None),
        help=doc.help,
        shell_complete=completion,
    )


class _OneOf(click.Choice[Any]):
    """A choice of several words; the error names the one that is probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = suggestion(str(value), map(str, self.choices))
            if hint is None:
                raise
            raise click.BadParameter(f"{error.message}\n  hint: {hint}", ctx, param) from None


class _Separated(click.ParamType[Any]):
    """Several values of a type in one text, with commas between them."""

    name = "list"

    def __init__(self, one: click.ParamType[Any]) -> None:
        self._one = one

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return tuple(self._one.convert(part, param, ctx) for part in parts)


class _Option(click.Option):
    """An option that may have former names, and values for parts of the network.

    Args:
        former: names under which it is still taken, which the help does not show.
        rules_of: parameter that takes texts such as `0.3:te=0.5`, see `steps.rules`; None for others.
    """

    def __init__(
        self,
        flags: Sequence[str],
        *,
        former: Sequence[str],
        rules_of: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(flags, **settings)
        self._former, self._rules_of = former, rules_of

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        if self._rules_of is not None and isinstance(value, str):
            from loramerge.steps.rules import is_rules, rules_in_text

            if is_rules(value):
                return rules_in_text(value, self._rules_of)
        return super().type_cast_value(ctx, value)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown, self.opts = self.opts, [*self.opts, *self._former]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


def _metavar(word: str, *, required: bool, many: bool) -> str:
    return (word if required else f"[{word}]") + ("..." if many else "")


def _click_type(one: Parameter) -> click.ParamType[Any]:
    if one.doc.choices is not None:
        return _OneOf(one.doc.choices())
    if typing.get_origin(one.kind) is typing.Literal:
        return _OneOf(typing.get_args(one.kind))
    if one.kind in (int, float):
        return _range(one.kind, one.bounds)
    return click.STRING


def _range(inner: type, extras: Sequence[Any]) -> click.ParamType[Any]:
    """Return a click range from bounds."""
    bounds: dict[str, Any] = {}
    for extra in extras:
        for name in ("ge", "gt", "le", "lt"):
            value = getattr(extra, name, None)
            if value is not None:
                bounds[name] = value
    if not bounds:
        return click.INT if inner is int else click.FLOAT
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    return number_from(inner, low=low, high=high, low_open="gt" in bounds, high_open="lt" in bounds)


def number_from(
    inner: type,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> click.ParamType[Any]:
    """Return the type of an option that takes a number within bounds.

    Args:
        inner: int or float.
        low: the smallest value; None for no bound.
        high: the largest value; None for no bound.
        low_open: whether `low` itself is excluded.
        high_open: whether `high` itself is excluded.
    """
    kind: Any = click.IntRange if inner is int else click.FloatRange
    found: click.ParamType[Any] = kind(low, high, min_open=low_open, max_open=high_open)
    found.name = kind.name.removesuffix(" range")  # a word is "not a valid integer"
    return found


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
        if what in ("adapters", "bases", "models", "files"):
            items.append(CompletionItem(incomplete, type="file"))
        return items

    return complete


_IN_LIBRARY = {"bases": ("bases",), "models": ("bases", "adapters")}


def _names(what: str) -> list[str]:
    if what == "dialects":
        from loramerge.dialects import DIALECTS

        return list(DIALECTS)
    from loramerge.errors import LoramergeError
    from loramerge.library.lookup import names_in_library
    from loramerge.library.paths import bare
    from loramerge.library.registry import load_registry
    from loramerge.library.shipped import SHIPPED_ADAPTERS, SHIPPED_BASES

    try:
        registry = load_registry()
    except LoramergeError:
        return []
    names = [*registry.bases, *SHIPPED_BASES] if what != "adapters" else []
    names += SHIPPED_ADAPTERS if what in ("adapters", "models") else ()
    for holds in _IN_LIBRARY.get(what, ("adapters",)):
        found = names_in_library(registry, holds)
        names += [bare(relative.rpartition("/")[2]) for relative, _ in found]
    return sorted(dict.fromkeys(names))
