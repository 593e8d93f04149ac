"""The graph of a recipe: its boxes and arrows, and as text for Graphviz or Mermaid."""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.recipe.recipe import Recipe

__all__ = ["dot", "edges", "mermaid", "nodes"]

Node = tuple[str, str, bool]  # name, text in its box, whether it is a file


def nodes(recipe: Recipe) -> Iterator[Node]:
    """Yield the files and tasks: name, text in its box, and whether it is a file."""
    files = dict.fromkeys(name for task in recipe.tasks.values() for name in task.files)
    for name in files:
        yield name, name, True
    for task in recipe.tasks.values():
        save = "" if task.save is None else f"\n→ {task.save.name}"
        yield task.name, f"{task.name}\n{task.verb.name}{save}", False


def edges(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield pairs of names: what a task takes, and the task."""
    for task in recipe.tasks.values():
        for name in (*task.files, *task.needs):
            yield name, task.name


def dot(recipe: Recipe) -> str:
    """Return the graph in the language of Graphviz."""
    ids = {node[0]: f"n{index}" for index, node in enumerate(nodes(recipe))}

    def quoted(text: str) -> str:
        clean = text.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + clean.replace("\n", "\\n") + '"'

    lines = ["digraph recipe {", "  rankdir=LR;", "  node [fontname=Helvetica];"]
    for name, text, is_file in nodes(recipe):
        lines.append(f"  {ids[name]} [label={quoted(text)}, shape={'note' if is_file else 'box'}];")
    lines += [f"  {ids[a]} -> {ids[b]};" for a, b in edges(recipe)]
    return "\n".join([*lines, "}", ""])


def mermaid(recipe: Recipe) -> str:
    """Return the graph in the language of Mermaid."""
    ids = {node[0]: f"n{index}" for index, node in enumerate(nodes(recipe))}
    lines = ["flowchart LR"]
    for name, text, is_file in nodes(recipe):
        clean = text.replace('"', "#quot;").replace("\n", "<br/>")
        left, right = ("([", "])") if is_file else ("[", "]")
        lines.append(f'  {ids[name]}{left}"{clean}"{right}')
    lines += [f"  {ids[a]} --> {ids[b]}" for a, b in edges(recipe)]
    return "\n".join([*lines, ""])
