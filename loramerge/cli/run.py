"""The command `run`: run a recipe, or make a file again from its header."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import check_reports, emit
from loramerge.cli.commands import render_named
from loramerge.cli.options import number_from, operator_option, run_options
from loramerge.cli.session import Session
from loramerge.errors import UsageError
from loramerge.events import Finished
from loramerge.steps.parameters import Context

_MANY = 8  # tasks of which more are shown as a table only


def recipe_options() -> list[click.Parameter]:
    """Return the options for variables, inputs and operators of a recipe."""
    return [
        click.Option(
            ["--set", "-s", "assigned"],
            multiple=True,
            metavar="NAME=VALUE",
            help="Give a variable this value; may be repeated.",
        ),
        click.Option(
            ["--input", "-i", "paths"],
            multiple=True,
            metavar="NAME=PATH",
            help="Take an input from this path; may be repeated.",
        ),
        click.Option(
            ["--allow-import"],
            is_flag=True,
            help="Import optimizers that the recipe names by a path outside the known packages; this "
            "runs their code.",
        ),
        click.Option(
            ["--fresh"], is_flag=True, help="Run every step, even those that are up to date."
        ),
        operator_option(),
    ]


def assignments(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Return name → value of `NAME=VALUE` texts.

    Raises:
        UsageError: if one is none, or two are for one name.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option}: {text!r} is not NAME=VALUE", hint=f"{option} NAME=VALUE")
        if name in found:
            raise UsageError(f"{option}: {name!r} is given twice")
        found[name] = value
    return found


def values(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return variables with their values, read as in YAML."""
    from loramerge.recipe.text import scalar_of

    return {name: scalar_of(text) for name, text in assignments(texts, "--set").items()}


@click.command(
    "run",
    params=[
        click.Argument(["target"], metavar="RECIPE|OUTPUT", required=True),
        *recipe_options(),
        click.Option(
            ["--allow-outside"],
            is_flag=True,
            help="Let the recipe write outside of its folder.",
        ),
        click.Option(
            ["--jobs", "-j"],
            type=number_from(int, low=1),
            metavar="N",
            default=1,
            show_default=True,
            help="Number of tasks that run at a time.",
        ),
        click.Option(
            ["--dask"], metavar="ADDRESS", help="Run the tasks on the Dask cluster at this address."
        ),
        click.Option(
            ["--results"], metavar="FILE.csv", help="Also write a table with a row for each case."
        ),
        click.Option(
            ["--lock"],
            is_flag=True,
            help="Write the digests of all inputs beside the recipe; a locked recipe refuses others.",
        ),
        click.Option(
            ["--keep-going"],
            is_flag=True,
            help="After a failure, run the steps that do not depend on it.",
        ),
        click.Option(
            ["--output", "-o"],
            metavar="PATH",
            help="Keep the repetition of an OUTPUT here [default: it is only compared].",
        ),
        click.Option(["--force", "-f"], is_flag=True, help="Replace outputs made by others."),
        click.Option(
            ["--strip"],
            is_flag=True,
            help="Do not record in the headers how the files were made.",
        ),
        *run_options(),
    ],
    epilog="Example: loramerge run recipe.yaml --set w=0.5; loramerge run mixed.safetensors",
)
def command(target: str, **options: Any) -> int:
    """Run the steps of a recipe that are not up to date; or repeat an OUTPUT and compare.

    Every file that loramerge writes has its recipe in its header. Given such a file, the recipe is
    run again into a temporary file, and the two are compared: the same file, the same tensors, or
    how much the weights differ (exit code 1 if the tensors differ).
    """
    from loramerge.recipe.header import is_output

    reports, quiet = _Reports(), options["quiet"]
    finished = None if quiet or options["as_json"] else reports.take
    with reports, Session(quiet=quiet, finished=finished) as session:
        context = Context(
            options["threads"],
            _device(options["device"]),
            session.notify,
            options["strip"],
            allow_import=options["allow_import"],
        )
        if is_output(Path(target)):
            repeated = _repeat(Path(target), options, context)
            found, code = repeated.json(), 1 if repeated.differs else 0
            show_it = partial(_show_repetition, repeated)
        else:
            result = _run(target, options, context, reports)
            found, code = result.json(), result.exit_code
            show_it = partial(_show, result)
    emit(found, options["as_json"], options["json_file"], (lambda: None) if quiet else show_it)
    return code


def _device(device: str | None) -> str | None:
    if device is None:
        return None
    from loramerge.algebra.arrays import check_device

    check_device(device)
    return device


# --- recipes ------------------------------------------------------------------------------------------


def _run(target: str, options: dict[str, Any], context: Context, reports: _Reports) -> Any:
    from loramerge.files.tables import check_table, write_table
    from loramerge.recipe.executors import dask_executor
    from loramerge.recipe.recipe import load_recipe
    from loramerge.recipe.run import run_recipe

    if options["output"] is not None:
        raise UsageError(
            "--output is only for repeating a file; in a recipe, `save` names the output"
        )
    if options["results"]:
        check_table(
            Path(options["results"]), is_one=lambda head: b".status" in head.partition(b"\n")[0]
        )
    recipe = load_recipe(
        target, set=values(options["assigned"]), inputs=assignments(options["paths"], "--input")
    )
    files = [target, *(str(path) for task in recipe.tasks.values() for path in task.files.values())]
    saves = [str(task.save) for task in recipe.tasks.values() if task.save is not None]
    check_reports({name: options[name] for name in ("json_file", "results")}, files + saves)
    reports.expect(recipe)
    with ExitStack() as stack:
        where = options["dask"] and stack.enter_context(dask_executor(options["dask"]))
        result = run_recipe(
            recipe,
            context,
            jobs=options["jobs"],
            executor=where or None,
            fresh=options["fresh"],
            force=options["force"],
            lock=options["lock"],
            keep_going=options["keep_going"],
            allow_outside=options["allow_outside"],
        )
    if options["results"]:
        write_table(Path(options["results"]), result.columns(), result.rows())
    return result


class _Reports:
    """Shows the report of each task that lasts as soon as it has ended, in the order of the recipe.

    Where there may be more than `_MANY`, none is shown until it is certain that there will not be.
    """

    def __init__(self) -> None:
        self._waiting: list[str] = []  # names of tasks whose turn has not come
        self._ended: dict[str, Any] = {}
        self._possible = 0  # tasks that have a report, or may get one

    def expect(self, recipe: Any) -> None:
        """Take the tasks whose reports are to be shown."""
        self._waiting = [name for name, task in recipe.tasks.items() if task.lasts]
        self._possible = len(self._waiting)

    def take(self, event: Finished) -> None:
        """Show the report of a task, and those that waited for it."""
        if not event.result.task.lasts:
            return
        self._ended[event.name] = event.result
        self._possible -= event.result.result is None
        while self._possible <= _MANY and self._waiting and self._waiting[0] in self._ended:
            self._report(self._ended[self._waiting.pop(0)])

    def __enter__(self) -> _Reports:
        return self

    def __exit__(self, *error: object) -> None:
        """Show the reports that still wait for a task that has not ended, because the run failed."""
        if self._possible <= _MANY:
            for name in self._waiting:
                if name in self._ended:
                    self._report(self._ended[name])

    def _report(self, outcome: Any) -> None:
        if outcome.result is not None:
            show.line(outcome.task.name, bold=True)
            render_named(outcome.task.verb.name)(outcome.result)
            show.line()


def _show(result: Any) -> None:
    show.table(
        (
            (
                o.task.name,
                o.task.verb.name,
                o.status,
                o.output or "",
                _lost(o.figures),
                o.error.splitlines()[0] if o.error else "",
            )
            for o in result.outcomes.values()
        ),
        ("task", "verb", "status", "output", "norm kept", "reason"),
    )
    if result.lock:
        show.line(f"locked: {result.lock}")


def _lost(figures: dict[str, Any]) -> str:
    kept = figures.get("norm_kept")
    return show.percent(kept) if isinstance(kept, (int, float)) else ""


# --- outputs ------------------------------------------------------------------------------------------


def _repeat(path: Path, options: dict[str, Any], context: Context) -> Any:
    from loramerge.recipe.repeat import repeat

    for option, name in (
        ("assigned", "--set"), ("results", "--results"), ("lock", "--lock"), ("dask", "--dask"),
    ):  # fmt: skip
        if options[option]:
            raise UsageError(f"{name} is for recipes; {path.name} is repeated as it was made")
    output = None if options["output"] is None else Path(options["output"])
    check_reports(
        {"json_file": options["json_file"]}, [str(path), *([str(output)] if output else [])]
    )
    return repeat(
        path,
        inputs=assignments(options["paths"], "--input"),
        output=output,
        force=options["force"],
        context=context,
    )


def _show_repetition(found: Any) -> None:
    lines = [("repeated", found.path), ("verdict", found.verdict)]
    if found.output is not None:
        lines.append(("kept as", found.output))
    show.table(lines)
