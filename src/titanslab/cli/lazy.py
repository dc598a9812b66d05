"""A typer group whose verbs are imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import typer
import typer.core
import typer.main


class VerbGroup(typer.core.TyperGroup):
    """A group whose verbs are in the table `verbs`: name -> (module with `app`, help); see `lazy_group`."""

    verbs: ClassVar[dict[str, tuple[str, str]]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.verbs, *(name for name in super().list_commands(ctx) if name not in self.verbs)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.verbs:
            return super().get_command(ctx, cmd_name)
        module, text = self.verbs[cmd_name]
        if ctx.resilient_parsing or getattr(ctx, "titans_listing", False):
            return typer.core.TyperCommand(cmd_name, help=text)
        command = typer.main.get_command(import_module(module).app)
        command.name = cmd_name
        command.short_help = text
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.titans_listing = True  # the list of verbs needs only their help lines
        super().format_help(ctx, formatter)


def lazy_group(table: dict[str, tuple[str, str]]) -> type[VerbGroup]:
    """A group class with these verbs, for `typer.Typer(cls=...)`."""
    return type("Verbs", (VerbGroup,), {"verbs": table})
