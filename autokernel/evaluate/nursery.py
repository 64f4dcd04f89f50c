"""Where runners come from: a warm process that has imported torch and forks a fresh, confined runner on request.

Importing torch takes one to four seconds; a fork takes ten milliseconds and shares the memory. The nursery never
loads a candidate, never opens a device, and holds nothing worth stealing. Where the kernel allows it, it lives in
namespaces of its own (a user namespace, where it is not root), and each runner in a further PID namespace, whose first
process is a small reaper: it watches what the runner uses, and when the runner ends, or the reaper is killed,
everything that the candidate ever started ends with it.

Run as ``python -m autokernel.evaluate.nursery FD`` by pool.py; the conversation is over the inherited socket FD.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autokernel.evaluate import landlock, sandbox, watch
from autokernel.evaluate.freezer import descendants
from autokernel.evaluate.protocol import Channel, PeerGone
from autokernel.isolation import Limits

END_S = 5.0
Serve = Callable[[Channel, str, Path], None]


@dataclasses.dataclass(frozen=True)
class House:
    """What all runners of this nursery have in common."""

    device: str
    limits: Limits
    namespaced: bool  # runners get PID namespaces
    hidden: bool  # this process's memory, and so what a runner starts with, is closed to tracing
    readable: tuple[Path, ...]
    processors: frozenset[int]
    serve: Serve


def main() -> None:
    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the daemon's to handle
    control = Channel(socket.socket(fileno=int(sys.argv[1])))
    start, _ = control.receive()
    off = frozenset(start["off"])
    namespaced = "pid" not in off and sandbox.own_house()
    if namespaced:
        move_in(control)
        sandbox.cover_sockets()
    processors = frozenset(os.sched_getaffinity(0))  # the imports below bind this thread to one of them
    serve = warm_up(start["device"]) if start["warm"] else lambda *_: None
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    if namespaced and start["device"] != "cpu":
        namespaced = proc_works(own_namespace)  # CUDA does not start in a namespace whose /proc is another's
    hidden = "ptrace" not in off and sandbox.traceable(False)
    limits = Limits.from_json(start["limits"])
    if start["device"] != "cpu":
        limits = dataclasses.replace(limits, memory_bytes=4 * limits.memory_bytes)
    readable = tuple(landlock.readable())
    house = House(start["device"], limits, namespaced, hidden, readable, processors, serve)
    with contextlib.suppress(PeerGone):  # whoever went before this was up is missed below
        control.send({"ok": True})
    while True:
        try:
            message, fds = control.receive()
        except PeerGone:
            os._exit(0)
        if message["op"] == "spawn":
            pid = spawn(message, fds, house, control, own_namespace)
            for fd in fds:
                os.close(fd)
            here = os.pidfd_open(pid)
            control.send({"pid": pid}, [here])
            os.close(here)
        else:
            control.send({"status": reap(message["pid"], message["grace_s"], limits, namespaced=namespaced)})


def move_in(control: Channel) -> None:
    """Go on in a child, the first process of the new PID namespace. This one only waits for it to end."""
    pid = os.fork()
    if pid:
        control.close()
        _, status = os.waitpid(pid, 0)
        os._exit(min(abs(os.waitstatus_to_exitcode(status)), 255))
    sandbox.die_with_parent()


def warm_up(device: str) -> Serve:
    """Import what every runner will inherit: the runner's conversation."""
    import numpy  # noqa: F401
    import torch
    import tvm_ffi.cpp  # noqa: F401

    from autokernel import registry
    from autokernel.evaluate import runner

    with runner.OpAudit():  # its first use may import a second's worth of modules: that depends on PyTorch
        torch.empty(1)
    for name in registry.names("backends"):
        backend = registry.load("backends", name)
        if hasattr(backend, "warm_up") and device.split(":")[0] in backend.devices and not backend.missing():
            backend.warm_up()
    end_nvml()
    gc.collect()  # once, and what is left is no collector's business in any runner: to look through it takes 0.1 s
    gc.freeze()
    return runner.serve


def end_nvml() -> None:
    """Imports above ask NVML how many GPUs there are, and NVML starts a thread: none may be there at a fork."""
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libnvidia-ml.so.1")
        while library.nvmlShutdown() == 0:  # it counts how often it was asked for
            pass


def proc_works(own_namespace: int) -> bool:
    """Whether the first process of a PID namespace here can have a /proc of its own."""
    if not sandbox.unshare(sandbox.CLONE_NEWPID):
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(0 if sandbox.own_proc() else 1)
    sandbox.set_namespace(own_namespace, sandbox.CLONE_NEWPID)
    return os.waitpid(pid, 0)[1] == 0


def spawn(message: Mapping[str, Any], fds: list[int], house: House, control: Channel, own_namespace: int) -> int:
    """Fork the reaper, which forks the runner. Its process id here."""
    namespaced = house.namespaced and "pid" not in message["off"] and sandbox.unshare(sandbox.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        control.close()
        os.close(own_namespace)
        os.sched_setaffinity(0, house.processors)
        reaper(message, fds, namespaced, house)
    if namespaced:
        sandbox.set_namespace(own_namespace, sandbox.CLONE_NEWPID)
    return pid


def reap(pid: int, grace_s: float, limits: Limits, *, namespaced: bool) -> str:
    """End a reaper, and with it its runner: how the runner ended within the grace, or "killed" if it did not."""
    deadline = time.monotonic() + grace_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() >= deadline:
            break
        time.sleep(0.005)
    if not ended:
        if not namespaced:  # with a namespace, the end of its first process is the end of all
            end_descendants(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "killed"
    code = os.waitstatus_to_exitcode(status)
    if code in watch.EXCEEDED:
        return watch.told(code, limits)
    if code < 0:
        return f"its reaper was killed by {signal.Signals(-code).name}"
    if code <= 128:
        return f"exit status {code}"
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"signal {code - 128}"


def reaper(message: Mapping[str, Any], fds: list[int], namespaced: bool, house: House) -> None:
    """First process of the runner's namespace: start the runner, watch it, end with everything that is left."""
    sandbox.die_with_parent()
    os.setsid()
    sandbox.adopt_orphans()
    scratch, cache = Path(message["scratch"]), Path(message["cache"])
    confined, off = message["confine"], frozenset(message["off"])
    own_proc = namespaced and "proc" not in off and sandbox.own_proc()
    watched = confined and "watch" not in off
    bound = (
        confined
        and own_proc
        and "procs" not in off
        and sandbox.bound_processes(house.limits.processes + sandbox.HEADROOM)
    )
    levels = {
        "pid": namespaced,
        "proc": own_proc,
        "procs": bound,
        "watch": watched and own_proc,
        "ptrace": house.hidden,
        "env": "env" not in off,
    }
    pid = os.fork()
    if pid == 0:
        runner_process(message, fds, levels, house)
    channel_fd, log_fd = fds
    os.close(channel_fd)
    with contextlib.suppress(OSError):
        os.nice(-15)  # among a thousand of the candidate's processes, the watch still gets its turn
    guard = watch.Watch(scratch, cache, log_fd, house.limits, sees_processes=own_proc) if watched else None
    code = wait(pid, guard)
    if not namespaced:
        end_descendants(os.getpid())
    os._exit(code)


def end_descendants(pid: int) -> None:
    """Where there is no namespace to end: kill whatever lives below a process, daemons included, because the reaper
    adopts them. A fork bomb can outrun this for a while, not for ever: its forks are killed faster than they are made
    once most of them are gone.
    """
    deadline = time.monotonic() + END_S
    while (found := list(descendants(pid))) and time.monotonic() < deadline:
        for each in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while pid == os.getpid() and os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)


def wait(pid: int, guard: watch.Watch | None) -> int:
    """Until the runner ends: its exit code (above 128: the signal that ended it), or why the watch ended it."""
    runner = os.pidfd_open(pid)
    poll = select_poll(runner)
    while True:
        ended = poll(None if guard is None else watch.TICK_S * 1e3)
        with contextlib.suppress(ChildProcessError):
            while (orphan := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and orphan.si_pid != pid:
                os.waitpid(orphan.si_pid, 0)
        if ended:
            exitcode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return 128 - exitcode if exitcode < 0 else min(exitcode, 127)
        code = guard.tick() if guard is not None else 0
        if code:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return code


def select_poll(fd: int) -> Callable[[float | None], bool]:
    """Wait until the descriptor is ready or so many milliseconds have passed."""
    import select

    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return lambda timeout_ms: bool(poller.poll(timeout_ms))


def runner_process(message: Mapping[str, Any], fds: list[int], levels: dict[str, bool], house: House) -> None:
    """The runner itself: own session, own log, scrubbed environment, confined; then the conversation."""
    sandbox.die_with_parent()
    sandbox.traceable(True)  # its own threads and children may look at it; what confines it keeps it from others
    os.setpgid(0, 0)
    scratch, cache = Path(message["scratch"]), Path(message["cache"])
    channel_fd, log_fd = fds
    null = os.open("/dev/null", os.O_RDONLY)
    kept = [os.dup(fd) for fd in (null, log_fd, log_fd, channel_fd)]
    high = [os.dup2(fd, 1000 + index) for index, fd in enumerate(kept)]
    for target, fd in enumerate(high):
        os.dup2(fd, target)
    os.closerange(4, 65536)
    if "env" not in message["off"]:
        os.environ.clear()
    os.environ.update(message["environment"])
    tempfile.tempdir = None  # found out before the fork, and kept: a folder where this process cannot write
    os.chdir(scratch)
    sandbox.steady_malloc()
    if message["confine"]:
        on_cpu = house.device == "cpu"
        entered = sandbox.enter(
            [scratch, cache],
            memory_bytes=house.limits.memory_bytes if on_cpu else None,
            readable=house.readable,
            limits=house.limits,
            off=frozenset(message["off"]),
            private_ipc=on_cpu,
        )
        levels = {**levels, **entered}
    channel = Channel(socket.socket(fileno=3))
    with contextlib.suppress(PeerGone):
        channel.send({"ok": True, "levels": levels})
        house.serve(channel, house.device, scratch)
    os._exit(0)


if __name__ == "__main__":
    main()
