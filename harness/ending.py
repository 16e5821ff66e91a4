"""How commands end: each error as one message on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from twinbench.foundation.errors import ExplainedError, RunFailure
from twinbench.harness.console import LegibleOutput, legible_warnings, standard_error


class Commands(TyperGroup):
    """The commands, which end with code 0: fine; 1: the work failed; 2: wrong use; 75: stopped by a signal and saved,
    to be run again; 130: Ctrl-C; 141: nobody reads what is printed.

    A traceback only with ``--debug``.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named; whatever it raises becomes a message and an exit code."""
        try:
            legible_warnings()
            with contextlib.redirect_stdout(LegibleOutput(sys.stdout)):
                outcome = super().invoke(ctx)
                sys.stdout.flush()  # a closed pipe may show only here
            return outcome
        except KeyboardInterrupt as error:
            _end(error, "interrupted; run the same command again to go on from here", 128 + signal.SIGINT)
        except ExplainedError as error:
            hint = self._as_written(error.option, ctx.invoked_subcommand)
            _end(error, f"error: {error.message(hint)}", error.exit_code)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # typer's own, for example about an unknown option
                raise
            if isinstance(error, BrokenPipeError) and _output_is_closed():
                # what is still to be printed goes nowhere, or the interpreter's last flush would complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(128 + signal.SIGPIPE) from error
            _end(error, f"error: {_unexpected(error)}", RunFailure.exit_code)
        finally:
            standard_error.flush()  # also of what others wrote to it, for the interpreter would end with 120

    def _as_written(self, option: str | None, command: str | None) -> str:
        """How a parameter or a recipe's ``key=value`` is given to a command; empty if it does not take it."""
        if option is None or command is None:
            return ""
        is_recipe_key = "=" in option
        flag = "--set" if is_recipe_key else f"--{option.replace('_', '-')}"
        for parameter in self.commands[command].params:
            if flag in parameter.opts:
                return f"{flag} {option if is_recipe_key else parameter.metavar or ''}".rstrip()
        return ""


def _end(error: BaseException, message: str, code: int) -> None:
    if _debug():
        traceback.print_exception(error)
    print(message, file=standard_error)
    raise typer.Exit(code) from error


def _debug() -> bool:
    return "--debug" in sys.argv


def _unexpected(error: Exception) -> RunFailure:
    from twinbench.pretraining.memory import is_out_of_memory  # takes seconds, which only this needs

    if is_out_of_memory(error):
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return RunFailure(
            f"there is not enough memory: {first_line}",
            next_step="free some, or take less at once: a narrower network, a smaller batch, fewer workers",
        )
    again = "" if _debug() else "run the same command with --debug and "
    return RunFailure(f"unexpected {type(error).__name__}: {error}", next_step=f"{again}report the traceback")


def _output_is_closed() -> bool:
    """Whether the reader of standard output is gone; a pipe to another process may be the one that broke."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
