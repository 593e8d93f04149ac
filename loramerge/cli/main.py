"""The entry point: a group whose commands are imported only when they are used."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from loramerge import __version__
from loramerge.cli.commands import command_named, summaries
from loramerge.cli.show import complaint
from loramerge.errors import FileError, LoramergeError, Message, on_command_line, spelled
from loramerge.interruption import begin_interruptible, end_interruptible

__all__ = ["group", "main"]

_ONE_THREAD = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class _Group(click.Group):
    """Commands found by name and imported on demand; the help lists them without importing one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(summaries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command_named(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(summaries().items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from loramerge.habits import advice_on_command

            hint = advice_on_command(args[0], summaries()) if args else None
            raise _advised(error.message, hint, ctx) from None


def _advised(problem: str, hint: Message | None, ctx: click.Context | None) -> click.UsageError:
    """Return the error of a command line, with what to write instead where that is known."""
    text = f"\n  hint: {spelled(hint, on_command_line)}" if hint else ""
    return click.UsageError(complaint(problem + text), ctx)


def _unknown_option(error: click.NoSuchOption) -> click.UsageError:
    """Return the error of an unknown option; what click suggests is alike by letters only."""
    from loramerge.habits import advice_on_parameter

    ctx = error.ctx
    params = [] if ctx is None else ctx.command.params
    flags = (flag for one in params if isinstance(one, click.Option) for flag in one.opts)
    known = [flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")]
    verb = (ctx.info_name if ctx is not None else None) or ""
    hint = advice_on_parameter(error.option_name, verb, known)
    return _advised(f"No such option {error.option_name!r}.", hint, ctx)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command has --help with an example. First steps: loramerge demo",
)
@click.version_option(__version__, prog_name="loramerge")
def group() -> None:
    """Mix, resize, convert, bake, inspect and train LoRA files (adapters), exactly."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    for name in _ONE_THREAD:  # before numpy starts its BLAS; our own pool does the rest
        os.environ.setdefault(name, "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # never fail on a character the terminal cannot show
            stream.reconfigure(errors="replace")
    try:
        code = group.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="loramerge",
            standalone_mode=False,
            windows_expand_args=False,
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.NoSuchOption as error:
        _unknown_option(error).show()
        return error.exit_code
    except click.ClickException as error:
        text = io.StringIO()
        error.show(file=text)
        _say(text.getvalue().rstrip("\n"))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        from loramerge.files.temporary import remove_unfinished

        remove_unfinished()
        _say("interrupted; no half-written file was left")
        return 130
    except LoramergeError as error:
        _say(f"error: {error.text(on_command_line)}")
        return error.exit_code
    except BrokenPipeError:
        _silence()
        return 0
    except OSError as error:  # what the layers below did not foresee of files and disks
        _say(f"error: {error.filename or 'the system'}: {error.strerror or error}")
        return FileError.exit_code
    except Exception as error:  # a bug: say so, without a wall of text
        return _bug(error)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(complaint(text), file=sys.stderr, flush=True)  # noqa: T201


def _bug(error: Exception) -> int:
    if os.environ.get("LORAMERGE_TRACEBACK"):
        import traceback

        _say("".join(traceback.format_exception(error)))
    where: Any = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "unknown place"
    _say(
        f"bug: {type(error).__name__}: {error} ({place})\n  this is a bug in loramerge "
        f"{__version__}, not in your files\n  hint: set LORAMERGE_TRACEBACK=1, run again, and "
        "report what it prints"
    )
    return 70


def _silence() -> None:
    """Exit without a second error message if the reader of the output has closed it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _open_streams() -> None:
    """Put the null device where standard output or error is closed: a file would take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


class _Lasting(io.FileIO):
    """Standard output that ignores a closed reader, so that a command ends normally.

    Another error, as of a full disk, is raised once. Python would meet it again on the way out, and
    print a traceback.
    """

    former: io.TextIOWrapper
    failed = False

    def write(self, data: Any) -> int:
        size = len(memoryview(data).cast("B"))
        if self.failed:
            return size
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return size
        except OSError:
            self.failed = True
            raise


def _outlive_readers() -> None:
    """Let commands end with their own exit code after `| head` has stopped reading."""
    out = sys.stdout
    if os.name == "posix" and isinstance(out, io.TextIOWrapper):
        raw = _Lasting(out.fileno(), "w", closefd=False)
        raw.former = out  # who drops the last reference to it closes the descriptor
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), out.encoding, "replace", line_buffering=out.line_buffering
        )


def console_entry() -> NoReturn:
    """Run as a process of its own."""
    _open_streams()
    _outlive_readers()
    begin_interruptible()
    code = main()
    end_interruptible()
    if code == 130:
        # an interrupt inside of `exec`, with which dataclasses are made, stays marked as unhandled, and
        # Python would end by the signal; the next evaluation clears the mark
        eval("None")
    gc.freeze()  # what is left need not be searched for cycles on the way out
    sys.exit(code)
