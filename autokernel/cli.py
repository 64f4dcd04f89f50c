"""The command line: one group, its commands in autokernel/commands, and the one place where errors become exit codes.

Exit codes: 0 done; 1 a verdict other than PASS (bench), or a machine on which nothing can run (doctor); 2 a mistake in
what was given, told in one line, and a run whose proposer will not answer again without its owner (a revoked key, no
money left): it ends with its report first; 130 and 143 ended by SIGINT or SIGTERM.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from autokernel.commands.agent import COMMANDS as AGENT_COMMANDS
from autokernel.commands.bench import bench
from autokernel.commands.model import extract, profile
from autokernel.commands.night import run
from autokernel.commands.reading import doctor, listing, report
from autokernel.commands.winning import export, verify
from autokernel.types import AutokernelError

UNWRITABLE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
}


class Mistake(click.ClickException):
    """What was given cannot be done: one line that says what was expected, what came, and what to do."""

    exit_code = 2


class Commands(click.Group):
    """Maps the library's errors to exit codes, and an unknown command to its near match."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            about = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            raise Mistake(error.format_message().rstrip(".") + about) from error
        except AutokernelError as error:
            raise Mistake(str(error)) from error
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            place = f"{error.filename}: " if error.filename else ""
            raise Mistake(f"{place}{error.strerror}; {UNWRITABLE[error.errno]}") from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            ctx.fail(f"unknown command '{args[0]}': {hint}known: {', '.join(known)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="autokernel")
def main() -> None:
    """Make a PyTorch model faster while you sleep.

    autokernel run MODEL.py profiles the model, extracts its hot spots as kernel files, and then proposes, judges and
    keeps or reverts edits until the budget is spent. autokernel report says what was won.
    """
    tools = str(Path(sys.executable).parent)  # ninja lies there; an environment need not be activated to be used
    if tools not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), tools)))


for command in (profile, extract, run, bench, report, verify, export, listing, doctor, *AGENT_COMMANDS):
    main.add_command(command)


if __name__ == "__main__":
    main()
