"""Runs a command in a process group that does not outlive whoever asked for it, not even one that was killed.

    python -m autokernel.proposers._leash FD COMMAND ARGUMENT...

FD is the read end of a pipe whose other end the asker holds and never writes to: when it closes, the whole group is
killed. Ends with the command's exit status, or 128 and the number of the signal that ended it; 127 where there is no
such command.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

NOT_FOUND = 127


def main(arguments: Sequence[str]) -> int:
    leash, command = int(arguments[0]), list(arguments[1:])
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([leash, ended], [], [])
    if ended not in ready:
        os.killpg(0, signal.SIGKILL)
    code = child.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
