"""Where runners come from: a warm process that has imported torch and forks a fresh, confined runner on request.

Importing torch takes one to four seconds; a fork takes ten milliseconds and shares the memory. The nursery never
loads a candidate, never opens a device, and holds nothing worth stealing. Each runner gets, where the kernel allows
it, a PID namespace whose first process is a small reaper: when the runner ends, or the reaper is killed, everything
that the candidate ever started ends with it.

Run as ``python -m autokernel.evaluate.nursery FD`` by pool.py; the conversation is over the inherited socket FD.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel.evaluate import sandbox
from autokernel.evaluate.protocol import Channel, PeerGone


def main() -> None:
    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the daemon's to handle
    processors = os.sched_getaffinity(0)  # OpenMP, initialised by the imports below, binds this thread to one of them
    control = Channel(socket.socket(fileno=int(sys.argv[1])))
    import numpy  # noqa: F401  (warm: every runner inherits it)
    import torch
    import tvm_ffi.cpp  # noqa: F401

    from autokernel.evaluate import runner

    with runner.OpAudit():  # its first use imports half a second's worth of modules
        torch.empty(1)
    control.send({"ok": True, "torch": torch.__version__})
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        try:
            message, fds = control.receive()
        except PeerGone:
            os._exit(0)
        if message["op"] == "spawn":
            namespaced = sandbox.unshare(sandbox.CLONE_NEWPID)
            pid = os.fork()
            if pid == 0:
                control.close()
                os.sched_setaffinity(0, processors)
                reaper(message, fds[0], namespaced, runner.serve)
            if namespaced:
                sandbox.set_namespace(own_namespace, sandbox.CLONE_NEWPID)
            os.close(fds[0])
            control.send({"pid": pid})
        else:
            control.send({"status": reap(message["pid"], message["grace_s"])})


def reap(pid: int, grace_s: float) -> str:
    """End a reaper, and with it its runner: how the runner ended within the grace, or "killed" if it did not."""
    deadline = time.monotonic() + grace_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() >= deadline:
            break
        time.sleep(0.005)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "killed"
    code = os.waitstatus_to_exitcode(status)
    if code <= 128:
        return f"exit status {code}"
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"signal {code - 128}"


def reaper(message: Mapping[str, Any], fd: int, namespaced: bool, serve: Any) -> None:
    """First process of the runner's namespace: start the runner, wait for it, end with everything that is left."""
    sandbox.die_with_parent()
    os.setsid()
    levels = {"pid": namespaced, "proc": namespaced and sandbox.own_proc()}
    pid = os.fork()
    if pid == 0:
        runner_process(message, fd, levels, serve)
    os.close(fd)
    code = 0
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            break
        if ended == pid:
            exitcode = os.waitstatus_to_exitcode(status)
            code = 128 - exitcode if exitcode < 0 else min(exitcode, 127)
            break
    if not namespaced:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(code)


def runner_process(message: Mapping[str, Any], fd: int, levels: dict[str, bool], serve: Any) -> None:
    """The runner itself: own session, own log, scrubbed environment, confined; then the conversation."""
    sandbox.die_with_parent()
    os.setpgid(0, 0)
    scratch, cache = Path(message["scratch"]), Path(message["cache"])
    log = os.open(scratch / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    channel_fd = os.dup2(fd, 3)
    os.closerange(4, 65536)
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(scratch)
    sandbox.steady_malloc()
    if message["confine"]:
        levels = {**levels, **sandbox.enter([scratch, cache], message["memory_bytes"])}
    channel = Channel(socket.socket(fileno=channel_fd))
    with contextlib.suppress(PeerGone):
        channel.send({"ok": True, "levels": levels})
        serve(channel, message["device"], scratch)
    os._exit(0)


if __name__ == "__main__":
    main()
