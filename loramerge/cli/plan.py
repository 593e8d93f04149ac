"""The command `plan`: show what a run of a recipe would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.command import check_reports, emit
from loramerge.cli.interference import show_interference
from loramerge.cli.layout import clean
from loramerge.cli.options import run_options
from loramerge.cli.run import assignments, recipe_options, values
from loramerge.cli.session import Session
from loramerge.errors import Setting, listed
from loramerge.events import Note, Warn
from loramerge.steps.parameters import Context


@click.command(
    "plan",
    params=[
        click.Argument(["target"], metavar="RECIPE|OUTPUT", required=True),
        *recipe_options(),
        click.Option(
            ["--explain"],
            is_flag=True,
            help="Compute mixes in memory, and show how their inputs relate, per block.",
        ),
        click.Option(["--dot"], is_flag=True, help="Print the graph for Graphviz instead."),
        click.Option(["--mermaid"], is_flag=True, help="Print the graph for Mermaid instead."),
        *run_options(),
    ],
    epilog="Example: loramerge plan recipe.yaml; loramerge plan recipe.yaml --mermaid",
)
def command(target: str, **options: Any) -> int:
    """Check a recipe and show what a run would do, from headers alone.

    Shows for every task the modules, ranks and bytes of its result (upper bounds), memory and time
    (within a factor of two), and whether it is up to date. All mistakes are reported at once.
    How much of a change rounding keeps is not in the headers; `bake --dry-run` and
    `merge --dry-run` say it. `--explain` also reads the adapters, and shows for every mix how its
    inputs relate. For an OUTPUT, prints the recipe in its header as YAML, also one that
    sd-webui-supermerger wrote.
    """
    from loramerge.recipe.header import is_output

    check_reports({"json_file": options["json_file"]}, [target])
    if is_output(Path(target)):
        return _of_output(Path(target), options)
    from loramerge.recipe.picture import dot, mermaid
    from loramerge.recipe.plan import plan_recipe
    from loramerge.recipe.recipe import load_recipe
    from loramerge.recipe.saves import outside_places

    found = load_recipe(
        target, set=values(options["assigned"]), inputs=assignments(options["paths"], "--input")
    )
    for wanted, text in (("dot", dot), ("mermaid", mermaid)):
        if options[wanted]:
            _print(text(found))
            return 0
    with Session(quiet=options["quiet"]) as session:
        context = Context(
            options["threads"],
            options["device"],
            session.notify,
            allow_import=options["allow_import"],
        )
        plan = plan_recipe(found, context, fresh=options["fresh"], explain=options["explain"])
        if outside := outside_places(found.root, found.tasks):
            where = listed([repr(place) for place in outside], 4)
            session.notify(
                Warn(("the recipe writes outside of its folder, and running it needs ",
                      Setting("allow_outside", True), f": {where}"))
            )  # fmt: skip
    shown = (lambda: None) if options["quiet"] else lambda: _show(plan)
    emit(plan.json(), options["as_json"], options["json_file"], shown)
    return plan.refused or 0


def _of_output(path: Path, options: dict[str, Any]) -> int:
    """Print the recipe in a file's header."""
    from loramerge.recipe.header import recipe_of_file
    from loramerge.recipe.writing import yaml_text

    recipe, notes = recipe_of_file(path)
    with Session(quiet=options["quiet"]) as session:
        for note in notes:
            session.notify(Note(note))
    last = list(recipe["steps"])[-1]
    recipe["steps"][last] = {**recipe["steps"][last], "save": path.name}
    text = yaml_text(recipe)
    emit(recipe, options["as_json"], options["json_file"], lambda: _print(text))
    return 0


def _print(text: str) -> None:
    sys.stdout.write(clean(text))


def _show(plan: Any) -> None:
    show.table(
        (_row(planned) for planned in plan.tasks.values()),
        ("task", "verb", "inputs", "modules", "rank", "output", "size", "memory", "time", "state"),
    )
    if all(planned.state == "up to date" for planned in plan.tasks.values()):
        show.line("Everything is up to date: nothing will run.")
    elif plan.refused is None:
        written = [show.size(plan.size)] if plan.size or not plan.unknown else []
        written += [f"the result of {listed(plan.unknown, 4)}, of unknown size"] * bool(
            plan.unknown
        )
        show.line(
            f"The run will write {' and '.join(written)}. It needs about {show.size(plan.memory)} of "
            f"memory and {_time(plan.seconds)} on one core."
        )
    for name, planned in plan.tasks.items():
        if planned.reason:
            refused = "" if planned.refused is None else "this would be refused: "
            show.line(f"{name}: {refused}{planned.reason}")
        for remark in planned.prediction.remarks if planned.prediction else ():
            show.line(f"{name}: {remark}")
        if planned.explained is not None:
            show.line(f"{name}: how its inputs relate")
            show_interference(planned.explained.found, planned.explained.names)


def _row(planned: Any) -> tuple[str, ...]:
    task, found = planned.task, planned.prediction
    cells = ("", "", "", "", "")
    if found is not None:
        most = "≤ " if found.at_most else ""
        cells = (
            "" if found.modules is None else str(found.modules),
            _rank(found.ranks, found.at_most),
            "" if found.size is None or task.save is None else most + show.size(found.size),
            show.size(found.memory),
            _time(found.seconds),
        )
    modules, rank, size, memory, seconds = cells
    names = ", ".join(dict.fromkeys((*task.files, *task.needs)))
    file = "in memory" if task.save is None else str(task.save)
    if not task.lasts and task.save is None:
        size = ""
    if task.verb.gives == "report" and task.save is None:
        file = "report"
    return (task.name, task.verb.name, names, modules, rank, file, size, memory, seconds,
            planned.state)  # fmt: skip


def _rank(counts: dict[int, int], at_most: bool) -> str:
    """Return `4`, `7 to 15`, or `≤ 15`: the ranks of a result, short enough for a column."""
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    if at_most:
        return f"≤ {most}"
    return str(most) if least == most else f"{least} to {most}"


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
