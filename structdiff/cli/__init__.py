"""The command ``structdiff``: it parses, calls the package, and prints.

Exit codes: 0 done; 2 bad input, told in one line that names what was given, why it cannot be used
and what would help; 130 interrupted with Ctrl-C, what was finished is written; 1 a defect of ours,
with its traceback. Results go to standard output, progress and messages to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments
        The words after ``structdiff``; those of the process by default.
    """
    try:
        import typer

        from structdiff.cli.app import command
        from structdiff.cli.failures import explain, help_asked

        try:
            code = command().main(
                args=list(sys.argv[1:] if arguments is None else arguments),
                prog_name="structdiff",
                standalone_mode=False,
            )
        except typer.Abort as stop:  # how older versions of typer say Ctrl-C
            raise KeyboardInterrupt from stop
        except Exception as error:
            if (text := help_asked(error)) is not None:
                print(text, file=sys.stderr)
                return 2
            line = explain(error)
            if line is None:
                raise
            print(f"structdiff: {line}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit of its own.
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        code = 130
    if code == 130:
        print("structdiff: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0
