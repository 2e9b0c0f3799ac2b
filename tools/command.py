"""What the tools for trained models share: how one starts, reports errors and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from scripts.core.errors import Interrupted, PipelineError
from scripts.core.log import log, screen_log
from scripts.core.system import stop_request


def run_tool(
    work: Callable[[Sequence[str]], None], argv: Sequence[str] | None, *, messages_to: TextIO | None = None
) -> int:
    """Do the work of a command line, given without the program's name, and return the exit code.

    An error with an explanation is printed without a traceback. A signal ends the work at once: files are written
    atomically, so none is left half written. ``messages_to`` is where the log goes instead of standard output.
    """
    with screen_log(messages_to):
        try:
            with stop_request() as stop:
                stop.advice = "Start the command again."
                work(sys.argv[1:] if argv is None else argv)
        except (PipelineError, Interrupted) as error:
            log.error(str(error))
            return error.exit_code
    return 0
