"""The command of a verb, derived from its parameters, and how results are shown."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from loramerge.cli.layout import clean_json
from loramerge.cli.options import (
    load_operators,
    operator_option,
    option_of,
    recipe_options,
    report_options,
    run_options,
    worker_options,
)
from loramerge.cli.session import Session
from loramerge.cli.show import Render, line
from loramerge.errors import Setting
from loramerge.events import Finished, Note, Warn
from loramerge.report.views import check_views, has_report, report_of, write_views
from loramerge.steps import engine
from loramerge.steps.parameters import Context, Verb, parameters_of

__all__ = ["MergingCommand", "Render", "check_reports", "emit", "verb_command"]

_COMMON = (
    "as_json",
    "json_file",
    "quiet",
    "threads",
    "device",
    "save_recipe",
    "strip",
    "jobs",
    "dask",
    "html",
    "plot",
)


def verb_command(
    verb: Verb, render: Render, example: str, part: Callable[[Finished], None] | None = None
) -> click.Command:
    """Make the command of a verb; its options and its help text are those of the parameters.

    Args:
        render: shows a result to people, without the parts that were shown before.
        example: a command line that works, shown in the help.
        part: shows a part of the result when it is ready, while others are still to come.
    """
    kind = verb.parameters if verb.for_files is None else verb.for_files.parameters
    own = {one.name for one in parameters_of(kind)}  # meta has a --strip of its own

    def callback(**values: Any) -> int:
        common: dict[str, Any] = {
            key: None if key in own else values.pop(key, None) for key in _COMMON
        }
        json_file, save_recipe = common["json_file"], common["save_recipe"]
        reports = {"json_file": json_file, "save_recipe": save_recipe}
        reports |= {table: values.get(table) for table in ("results", "csv")}
        check_reports(reports, _paths_in(kind, values))
        views = {option: common[option] for option in ("html", "plot")}
        viewed = any(views.values())
        if viewed:
            others = [*_paths_in(kind, values), *filter(None, reports.values())]
            check_views(views, others)
        _check_recipe_file(save_recipe)
        parameters = engine.parameters_from(kind, values)
        folder = _missing_folder(values.get("output"))
        by_parts = None if common["quiet"] or common["as_json"] else part
        session = Session(quiet=common["quiet"], finished=by_parts)
        with session, _workers(verb, common) as executor:
            context = Context(
                common["threads"],
                common["device"],
                session.notify,
                bool(common["strip"]),
                allow_import=True,  # what is named here was typed by whoever runs it
                executor=executor,
                details=viewed,
            )
            result = engine.perform(verb, parameters, context)
            if folder is not None and os.path.isdir(folder):
                session.notify(Note(f"the folder {folder} did not exist and was made"))
            if save_recipe is not None:
                _save_recipe(save_recipe, verb.name, parameters, result, session)
            seen: list[str] = []
            if reported is not None and viewed and getattr(result, "is_shown", True):
                seen = _write_views(reported(result), views, session, written=verb.writes)

        def shown() -> None:
            render(result)
            for path in seen:
                line(f"report: {path}", wrap=False)

        content = _with_outputs(result.json(), seen)
        emit(content, common["as_json"], json_file, (lambda: None) if common["quiet"] else shown)
        return int(getattr(result, "exit_code", 0))

    merges = hasattr(kind, "held_parameters")
    reported = _report_of(verb)

    def options() -> list[click.Parameter]:
        fields = [option_of(one) for one in parameters_of(kind)]
        fields.sort(key=lambda p: not isinstance(p, click.Argument))
        about_recipes = recipe_options(writes=verb.writes) if verb.in_recipes else []
        about_operators = [operator_option()] if merges else []
        about_workers = worker_options(verb.large) if verb.distributes else []
        about_reports = report_options() if reported is not None else []
        return [
            *fields,
            *about_operators,
            *about_recipes,
            *about_reports,
            *about_workers,
            *run_options(),
        ]

    params = options()
    command = partial(MergingCommand, options=options) if merges else click.Command
    return command(
        verb.name,
        callback=callback,
        params=params,
        help=kind.__doc__,
        epilog=f"Example: {example}",
        no_args_is_help=any(isinstance(p, click.Argument) and p.required for p in params),
    )


def _report_of(verb: Verb) -> Callable[[Any], Any] | None:
    """Return the function that makes the report of a result: this package's, or of the verb's module."""
    if has_report(verb.name):
        return partial(report_of, verb.name)
    from loramerge.verbs import verb_module

    return getattr(verb_module(verb.name), "report", None)


def _write_views(
    report: Any, views: Mapping[str, str | None], session: Session, *, written: bool
) -> list[str]:
    """Write the page and the plot of a result; warn of a plot of nothing where a file was written."""
    if written and views["plot"] is not None and not report.figures():
        session.notify(Warn("this result has no figures to plot; no plot was written"))
        views = {**views, "plot": None}
    return write_views(report, views)


def _workers(verb: Verb, common: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Return the context that provides the executor of a command's work, None for this process."""
    large = verb.large if common["jobs"] is None else None
    if large is None and (common["jobs"] or 1) == 1 and common["dask"] is None:
        return nullcontext()
    from loramerge.recipe.executors import workers

    return workers(common["jobs"], common["dask"], threads=common["threads"], least=large)


class MergingCommand(click.Command):
    """A command whose merge operators bring options, also those of files that its line names.

    Args:
        options: function that gives the options for the operators that are known by then.
    """

    def __init__(
        self, *args: Any, options: Callable[[], list[click.Parameter]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._options = options

    def refresh(self) -> None:
        """Take the parameters of the operators that are known now."""
        self.params = self._options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from loramerge.algebra.operators import OPERATORS

        load_operators(_values_of("--operator", args))
        self.refresh()
        flags = {word.partition("=")[0] for word in args if word.startswith("-")}
        methods = set(_values_of("--method", args))
        known = {flag for one in self.params for flag in one.opts}
        strange = {flag for flag in flags - known if flag.startswith("--")}
        helps = flags & set(ctx.help_option_names)
        if helps or strange or methods - {one.name for one in OPERATORS.known()}:
            OPERATORS.look_for_others()
            self.refresh()
        return super().parse_args(ctx, args)


def _values_of(option: str, args: Sequence[str]) -> list[str]:
    """Return the values that a command line gives an option, before it is parsed."""
    found = [word.partition("=")[2] for word in args if word.startswith(f"{option}=")]
    return found + [value for word, value in pairwise(args) if word == option]


def _missing_folder(output: Any) -> str | None:
    """Return the folder of a named output if it does not exist yet."""
    if not isinstance(output, str):
        return None
    folder = os.path.normpath(Path(output).parent)
    return None if os.path.isdir(folder) else folder


def _save_recipe(text: str, verb: str, parameters: Any, result: Any, session: Session) -> None:
    """Write the recipe of what was done; warn if nothing was, because a recipe needs a step."""
    from loramerge.recipe.writing import write_recipe

    steps = [(verb, *step) for step in engine.steps_done(parameters, result)]
    if steps:
        write_recipe(Path(text), steps)
    else:
        session.notify(Warn("nothing was written, so there is no recipe that repeats it"))


def _check_recipe_file(text: str | None) -> None:
    """Refuse to write a recipe over something.

    Raises:
        OutputExists: if the path exists.
    """
    if text is not None and os.path.exists(text):
        from loramerge.errors import OutputExists

        raise OutputExists(
            "the recipe exists already", file=text, hint="give --save-recipe another name"
        )


def check_reports(reports: Mapping[str, str | None], others: Sequence[str]) -> None:
    """Refuse reports that would replace each other, an output, an input, or anything but a report.

    Args:
        reports: option → path.
        others: paths of outputs and inputs.

    Raises:
        OutputExists: naming the path.
    """
    given = {name: path for name, path in reports.items() if path}
    if not given:
        return
    from loramerge.files.reports import check_apart, check_json

    for name, path in given.items():
        beside = [other for another, other in given.items() if another != name]
        check_apart(path, Setting(name), [*others, *beside])
    if "json_file" in given:
        check_json(given["json_file"], Setting("json_file"))


def _paths_in(kind: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Return the texts in the values of parameters that may be paths of outputs and inputs."""
    found = []
    for one in parameters_of(kind):
        value = values.get(one.name)
        if one.refers or one.name == "output":
            found += [value] if isinstance(value, str) else [v for v in value or () if v]
    return found


def _outputs_in(content: Any) -> list[str]:
    """Return the paths that a result says it wrote."""
    outputs = content.get("outputs") if isinstance(content, dict) else None
    return [path for path in outputs or () if isinstance(path, str)]


def _with_outputs(content: Any, paths: Sequence[str]) -> Any:
    """Return the JSON of a result with further paths among its outputs, where it has some."""
    if not paths or not isinstance(content, dict):
        return content
    return content | {"outputs": [*content.get("outputs", ()), *paths]}


def emit(content: Any, as_json: bool, json_file: str | None, show: Callable[[], None]) -> None:
    """Show a result: as JSON on standard output or in a file, else for people."""
    if as_json or json_file:
        text = clean_json(json.dumps(_plain(content), ensure_ascii=False, indent=2))
        if json_file:
            from loramerge.files.reports import check_apart, check_json, write_report

            check_apart(json_file, Setting("json_file"), _outputs_in(content))
            check_json(json_file, Setting("json_file"))
            write_report(json_file, (text + "\n").encode("utf-8", "replace"))
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
