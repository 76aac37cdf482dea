"""The command line: `neaptide analyze | schedule | allocate | models | targets | measure | search | cost`.

Exit codes: 0 done, 1 an error, 2 a wrong command line, an unknown name or a file that is not what its format says, 3 over budget, 4 wrong
outputs, 130 interrupted. Results go to standard output, everything else to standard error. A failure is one paragraph; `--debug` adds the
traceback.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from .cli_analyze import analyze
from .cli_cost import app as cost
from .cli_errors import GONE, notes, refusal, working_folder_exists
from .cli_measure import measure
from .cli_plan import allocate, schedule
from .cli_search import search
from .cli_streams import standard_streams
from .cli_targets import targets
from .compiler.children import safe_environment
from .compiler.errors import NeaptideError
from .compiler.scratch import sweep
from .report.console import note

app = typer.Typer(
    name="neaptide",
    help="How much memory and work a neural network needs, proven; and the order and layout that need least.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
INTERRUPTED = 130
app.command()(analyze)
app.command()(schedule)
app.command()(allocate)
app.command()(targets)
app.command()(measure)
app.command()(search)
app.add_typer(cost, name="cost")


@app.command()
def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the built-in reference models."""
    from .compiler.reference_models import REFERENCE_MODELS
    from .report.listing import models_json, models_table

    known = list(REFERENCE_MODELS.values())
    if json:
        print(models_json(known))
    else:
        from .report.console import output

        output().print(models_table(known))


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"neaptide {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """`main` reads `--debug` by itself, wherever it stands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `argv`: the words after `neaptide` (None: those of this process)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.NOTSET if debug else logging.CRITICAL)  # it logs what we report
    with standard_streams(), notes():
        if not debug:
            warnings.simplefilter("ignore", FutureWarning)
        return _run([w for w in words if w != "--debug"], debug)


def _run(words: list[str], debug: bool) -> int:
    if not working_folder_exists():
        return _fail(GONE, 1, debug)
    try:
        sweep()
        with safe_environment():
            code = int(app(words, prog_name="neaptide", standalone_mode=False) or 0)
        sys.stdout.flush()
        return _fail("interrupted", INTERRUPTED, debug) if code == INTERRUPTED else code
    except NeaptideError as error:
        return _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:  # whoever read has what they wanted
        return 1
    except RecursionError:
        return _fail(
            "the model nests deeper than Python's recursion limit; flatten it, or raise sys.setrecursionlimit in its factory", 1, debug
        )
    except Exception as error:  # the last resort of a command line: whatever it is, one paragraph and a non-zero code
        usage = getattr(error, "format_message", None)  # Typer's own complaints about words it was given
        if usage is not None:
            return _fail(usage(), 2, debug) if usage() else 2
        if (refused := refusal(error)) is not None:
            return _fail(refused, 1, debug)
        what = " ".join(str(error).split())
        return _fail(f"this is a bug in Neaptide, please report it: {type(error).__name__}: {what} (--debug shows where)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    """Say `message` on standard error, the traceback too if asked for; returns `code`."""
    if debug:
        import traceback

        note(traceback.format_exc().rstrip())
    note(f"neaptide: {message}")
    return code
