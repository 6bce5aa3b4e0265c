"""What the commands print: tables or JSON on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table


def messages() -> Console:
    """The console of messages and progress bars."""
    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One message, as it is."""
    messages().print(message, markup=False, soft_wrap=True)


def report(title: str, facts: Mapping[str, Any], json: bool) -> None:
    """Print what was done, as a table of two columns or as JSON."""
    if json:
        print_json(facts)
    else:
        print_table(title, ["what", "value"], list(facts.items()))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header; no cell is cut off."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        table.add_column(name, overflow="fold", justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a pipe has no width of its own: let the table choose
        console.width = 200
    console.print(table)


def print_json(values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document and nothing else; a number that is not finite becomes null."""
    print(json.dumps(_plain(values), indent=2, allow_nan=False))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


class Interrupts:
    """What :func:`noting_interrupts` hands out: true once Ctrl-C was pressed."""

    def __init__(self) -> None:
        self._count = 0
        self._holding = False

    def __bool__(self) -> bool:
        return self._count > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Ctrl-C is only noted in here, so that a row is written and counted, or neither.

        A second one raises all the same: a disk may hang.
        """
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """A handler of signals."""
        self._count += 1
        if not (self._holding and self._count == 1):
            raise KeyboardInterrupt


@contextlib.contextmanager
def noting_interrupts() -> Iterator[Interrupts]:
    """Ctrl-C raises KeyboardInterrupt as ever, and is noted in what is handed out.

    An exception raised inside a finaliser or a foreign callback is lost; the note is not, so a loop
    that looks at it stops all the same, and Python need not report the loss.
    """
    asked = Interrupts()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    report = sys.unraisablehook

    def report_others(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            report(lost)

    signal.signal(signal.SIGINT, asked.note)
    sys.unraisablehook = report_others
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = report
