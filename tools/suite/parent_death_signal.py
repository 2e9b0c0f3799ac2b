"""Replace this process by another program that gets SIGTERM when the process that started it ends, for any reason.

python parent_death_signal.py PARENT_PID COMMAND [ARGUMENT ...]

A suite that is killed with SIGKILL cannot forward a signal, and its training would continue unnoticed. Linux sends a
"parent death signal" to a process that has requested it. The request survives ``exec``, so it is made here, in a small
process without threads, which the program then replaces. On other systems there is no such request: the training
continues, and a suite that is started again waits for its lock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Make the request, then execute the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the request was made
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
