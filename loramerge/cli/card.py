"""The command `card`: write a model card for hubs, a README.md."""

from __future__ import annotations

from typing import Any

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.card import VERB, CardResult


def render(result: CardResult) -> None:
    """Show where the card is, and its fields for hubs."""
    fields = [(name, _said(value)) for name, value in result.header.items()]
    show.table([("written", result.output), *fields])


def _said(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ", ".join(one["url"] if isinstance(one, dict) else one for one in value)


command = verb_command(VERB, render, "loramerge card character.safetensors")
