"""Kernels that break, and kernels that attack: what each does, the status of its verdict, and a part of the reason.

``load(code)`` runs the code when the file is imported (as compiling does), ``call(code)`` when the kernel is called.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from autokernel.types import Status

from .conftest import HONEST, torch_source

IMPORTS = "import ctypes, mmap, os, signal, socket, sys, threading, time"
SPIN = "while True: pass"
Fault = tuple[str, Status, str]


def load(code: str) -> str:
    """A file that does this when it is imported, and is honest otherwise."""
    return HONEST.replace("\n\ndef", f"\n{IMPORTS}\n{textwrap.dedent(code)}\n\ndef", 1)


def call(code: str) -> str:
    """A file that does this when it is called."""
    return torch_source(f"{IMPORTS}\n{textwrap.dedent(code)}\nreturn x")


# Forked twice, in sessions of their own, deaf to every signal that can be ignored.
DAEMONS = """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            os.closerange(0, 256)
            time.sleep(10**6)
        os._exit(0)
"""
MANY_FILES = """
for n in range(10**5):
    with open(f'{folder}/f{n}', 'wb') as file:
        file.write(bytes(4 << 20))
    time.sleep(0.004)
"""

ENDS: Mapping[str, Fault] = {
    "segfault": (call("ctypes.string_at(0)"), Status.CRASH, "SIGSEGV"),
    "abort": (call("os.abort()"), Status.CRASH, "SIGABRT"),
    "abort when it is shown inputs": (
        load("import autokernel.evaluate.runner as harness\nharness.Runner.inputs = lambda *_: os.abort()"),
        Status.CRASH,
        "SIGABRT",
    ),
    "illegal instruction": (call("os.kill(os.getpid(), signal.SIGILL)"), Status.CRASH, "SIGILL"),
    "kills its own group": (call("os.killpg(0, 9)"), Status.CRASH, "SIGKILL"),
    "kills all that it sees": (call("os.kill(-1, 9)"), Status.SMOKE, "No such process"),
    "exit 0 early": (call("os._exit(0)"), Status.CRASH, "exit status 0"),
    "exit 0 while loading": (load("os._exit(0)"), Status.CRASH, "exit status 0"),
    "sys.exit": (call("sys.exit(0)"), Status.CRASH, "exit status 0"),
    "stack overflow": (
        call("""
        sys.setrecursionlimit(10**9)
        def deep(f):
            return [*map(deep, [f])]
        deep(0)"""),
        Status.CRASH,
        "SIGSEGV",
    ),
}
RAISES: Mapping[str, Fault] = {
    "raises": (call("raise ValueError('no')"), Status.SMOKE, "ValueError: no"),
    "raises 100 MB": (call("raise ValueError('no ' * (33 << 20))"), Status.SMOKE, "ValueError: no no"),
    "raises outside Exception": (call("raise BaseException('no')"), Status.CRASH, "exit status 1"),
    "raises what cannot be told": (
        call("""
        class Evil(Exception):
            def __str__(self):
                raise RuntimeError('no')
            __repr__ = __str__
        raise Evil"""),
        Status.CRASH,
        "exit status 1",
    ),
    "syntax error": (torch_source("return ("), Status.BUILD, "not Python"),
    "no kernel_fn": (torch_source("return x").replace("kernel_fn", "other"), Status.BUILD, "kernel_fn"),
}
RETURNS: Mapping[str, Fault] = {
    "no tensor": (call("return 3"), Status.SMOKE, "torch.Tensor"),
    "a list": (call("return [x]"), Status.SMOKE, "it returned list"),
    "a subclass": (call("return torch.nn.Parameter(x, requires_grad=False)"), Status.SMOKE, "Parameter"),
    "a sparse tensor": (call("return x.to_sparse()"), Status.SMOKE, ""),
    "a tensor of no device": (call("return x.to('meta')"), Status.SMOKE, ""),
    "wrong shape": (call("return x[:, :1]"), Status.SMOKE, "expected shape"),
    "wrong dtype": (call("return x.double()"), Status.SMOKE, "float64"),
    "its input": (call("return x"), Status.SMOKE, "exceeds the budget"),
    "its input, written": (call("x[0] = 1"), Status.CRASH, "SIGSEGV"),
}
CONVERSATION: Mapping[str, Fault] = {
    "forges the channel": (call("os.write(3, b'\\xff' * 64)"), Status.CRASH, "forged"),
    "forges deep brackets": (
        call("""
        body = b'[' * 10**6
        os.write(3, len(body).to_bytes(4, 'big') + body)
        time.sleep(9)"""),
        Status.CRASH,
        "not JSON",
    ),
    "floods the channel with descriptors": (
        call("""
        import array
        channel = socket.socket(fileno=os.dup(3))
        fds = array.array('i', [0] * 60)
        for _ in range(50):
            channel.sendmsg([b'\\0'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])"""),
        Status.CRASH,
        "forged",
    ),
    "forges an answer of another form": (
        call("""
        body = b'{"ok": true, "ops": 7, "shape": "x", "at": [1e999]}'
        os.write(3, len(body).to_bytes(4, 'big') + body)
        time.sleep(9)"""),
        Status.CRASH,
        "in a form that no runner writes",
    ),
    "steers the terminal": (call("raise ValueError('\\x1b[2J\\x07\\r\\x9b31mno')"), Status.SMOKE, "ValueError:"),
    "closes the channel": (call("os.close(3)"), Status.CRASH, "ended"),
    "closes every descriptor": (call("os.closerange(0, 4096)"), Status.CRASH, "ended"),
    "closes its output pipes": (
        call("os.close(1)\nos.close(2)\nprint('x' * 10**6, flush=True)"), Status.SMOKE, "Bad file descriptor"
    ),
}  # fmt: skip
TAKES: Mapping[str, Fault] = {
    "asks for a petabyte": (call("torch.empty(10**15)"), Status.SMOKE, "memory"),
    "asks for 10 GB": (call("torch.empty(10 << 30, dtype=torch.uint8)"), Status.SMOKE, "memory"),
    "takes all memory": (
        load("""
        held = []
        while True:
            held.append(bytes(64 << 20))"""),
        Status.BUILD,
        "MemoryError",
    ),
    "takes all shared memory": (
        load("""
        held = mmap.mmap(-1, 4 << 30)
        for at in range(0, 4 << 30, 16 << 20):
            held[at:at + (16 << 20)] = bytes(16 << 20)
            time.sleep(0.01)"""),
        Status.CRASH,
        "of memory together",
    ),
    "takes all memory in memory files": (
        load("""
        held = []
        while True:
            held.append(os.memfd_create('x'))
            os.write(held[-1], bytes(32 << 20))
            time.sleep(0.02)"""),
        Status.CRASH,
        "of memory together",
    ),
    "fork bomb": (
        load("""
        while True:
            try:
                os.fork()
            except OSError:
                pass"""),
        Status.CRASH,
        "more than 60 processes",
    ),
    "a million threads": (
        load("""
        threading.stack_size(1 << 16)
        for _ in range(10**6):
            threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
            time.sleep(0.002)"""),
        Status.CRASH,
        "more than 60 processes",
    ),
    "fills the disk with one file": (
        load("""
        with open('f', 'wb') as file:
            while True:
                file.write(bytes(1 << 20))"""),
        Status.BUILD,
        "File too large",
    ),
    "fills the disk with many files": (load("folder = '.'" + MANY_FILES), Status.CRASH, "its files exceed"),
    "fills the build folder": (
        load("folder = os.environ['XDG_CACHE_HOME']" + MANY_FILES), Status.CRASH, "its files exceed"
    ),
    "makes a million files": (
        load("""
        for n in range(10**4):
            open(f'f{n}', 'w').close()
        time.sleep(9)"""),
        Status.CRASH,
        "more than 2000 files",
    ),
    "a gigabyte of output": (
        load("""
        for _ in range(1 << 14):
            os.write(1, bytes(1 << 16))
            time.sleep(0.001)"""),
        Status.CRASH,
        "printed more than 4 MiB",
    ),
}  # fmt: skip
LEAVES: Mapping[str, Fault] = {
    "daemons, and ends": (load(DAEMONS + "os._exit(0)"), Status.CRASH, "exit status 0"),
    "daemons, and raises": (call(DAEMONS + "raise ValueError('no')"), Status.SMOKE, "ValueError: no"),
    "links out of its scratch folder": (
        load("""
        os.remove('log.txt')
        for name in ('log.txt', 'a', 'b'):
            os.symlink('/etc', name)
        os.symlink('/etc/hostname', 'c')
        raise ValueError('no')"""),
        Status.BUILD,
        "ValueError: no",
    ),
    "a pipe for its log": (load("os.remove('log.txt')\nos.mkfifo('log.txt')\nos.abort()"), Status.CRASH, "SIGABRT"),
    "a deep tree behind closed doors": (
        load("""
        for _ in range(1100):
            os.mkdir('d')
            os.chdir('d')
        os.chmod('.', 0)
        os.abort()"""),
        Status.CRASH,
        "SIGABRT",
    ),
    "shared memory of System V": (
        load("""
        for _ in range(9):
            assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1666) >= 0
        os._exit(0)"""),
        Status.CRASH,
        "exit status 0",
    ),
}
REACHES: Mapping[str, Fault] = {
    "writes outside": (call("open('/tmp/autokernel-was-here', 'w')"), Status.SMOKE, "Permission"),
    "uses the network": (call("socket.create_connection(('127.0.0.1', 22), 2)"), Status.SMOKE, "unreachable"),
}
FAULTS: Mapping[str, Fault] = {
    f"{group}: {name}": fault
    for group, faults in {
        "ends": ENDS, "raises": RAISES, "returns": RETURNS, "channel": CONVERSATION, "takes": TAKES, "leaves": LEAVES,
        "reaches": REACHES,
    }.items()
    for name, fault in faults.items()
}  # fmt: skip

# Judged under a short deadline.
NEVER = """
import tvm_ffi.cpp
os.mkfifo("never.h")
source = '#include "' + os.getcwd() + '/never.h"'
tvm_ffi.cpp.load_inline("never", cpp_sources=source, functions=[])
"""
HANGS: Mapping[str, str] = {
    "spins": load(SPIN),
    "sleeps": load("time.sleep(10**6)"),
    "stops itself": load("os.kill(os.getpid(), signal.SIGSTOP)"),
    "deaf to signals": load("for n in (1, 2, 3, 15):\n    signal.signal(n, signal.SIG_IGN)\n" + SPIN),
    "a compiler that waits for ever": load(NEVER),
}
TEN_MEGABYTES = load("""
import tvm_ffi.cpp
tvm_ffi.cpp.load_inline("m", cpp_sources="#error " + "x" * (10 << 20), functions=[])
""")
