"""A group of commands that names the nearest one where the name is unknown."""

from __future__ import annotations

import click

from mmulab.errors import near, quoted


class Group(click.Group):
    """A click group whose refusal of an unknown command says which was perhaps meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, and the other arguments."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            hint = near(args[0], known)
            ctx.fail(f"no such command '{quoted(args[0])}'; {hint}'{ctx.command_path} --help' lists them")
        return super().resolve_command(ctx, args)
