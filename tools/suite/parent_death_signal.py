"""Become another program that is asked to stop (SIGTERM) when the process that started it ends, however that ends.

python tied.py PARENT_PID COMMAND [ARGUMENT ...]

A suite that is killed with SIGKILL can forward nothing, and its training would go on unseen. Linux sends the signal by
itself to whoever asked for it; the request outlives ``exec``, so it is made here, in a process that is small and has no
threads, and then the program takes this process's place. Elsewhere there is no such request: the training goes on, and
a suite that is started again waits for its lock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Make the request, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the request was made
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
