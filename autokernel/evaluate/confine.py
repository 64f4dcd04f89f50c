"""Runs one command of the owner's on an untrusted kernel, confined as a runner is: see sandbox.py for the levels.

    python -m autokernel.evaluate.confine FD FOLDER -- COMMAND     (a shell command line, run in FOLDER)

The levels that were reached are written to the descriptor FD as one line of JSON, before the command starts. The
environment keeps what names no secret (see ``sandbox.scrubbed_environment``) and what a toolchain wants of its user;
caches and temporary files go below FOLDER, the only place that can be written. Ends with the command's exit status, or
128 and the number of the signal that ended it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autokernel.evaluate import sandbox

READS = frozenset({"reads"})  # left out: what the command reads, its owner knows; the judge's own answers lie nowhere
OF_THE_USER = ("HOME", "USER", "PYTHONPATH", "CONDA_PREFIX", "CC", "CFLAGS", "CXXFLAGS", "LDFLAGS", "KERNEL")
CACHES = {
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "TRITON_CACHE_DIR": "cache/triton",
    "TORCHINDUCTOR_CACHE_DIR": "cache/inductor",
    "TORCH_EXTENSIONS_DIR": "cache/extensions",
    "TVM_FFI_CACHE_DIR": "cache/tvm-ffi",
    "CUDA_CACHE_PATH": "cache/cuda",
    "PYTHONPYCACHEPREFIX": "cache/python",
}


def environment(folder: Path) -> dict[str, str]:
    """What the command sees; makes the folders that it names."""
    kept = {**sandbox.scrubbed_environment(), **{n: os.environ[n] for n in OF_THE_USER if n in os.environ}}
    for name, place in CACHES.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        kept[name] = str(folder / place)
    return {**kept, "PWD": str(folder)}


def main(arguments: Sequence[str]) -> int:
    fd, folder, command = int(arguments[0]), Path(arguments[1]).resolve(), arguments[3]
    sandbox.die_with_parent()
    os.chdir(folder)
    inside = environment(folder)
    namespaced = sandbox.own_house()
    reaper = os.fork()  # the first process of the new namespace: when it ends, so does everything in there
    if reaper:
        os.close(fd)
        return _status(os.waitpid(reaper, 0)[1])
    sandbox.die_with_parent()
    levels = {"pid": namespaced, "proc": namespaced and sandbox.own_proc()}
    child = os.fork()
    if child:
        os.close(fd)
        while True:  # orphans of the command are ours to collect
            ended, status = os.wait()
            if ended == child:
                os._exit(_status(status))
    sandbox.die_with_parent()
    levels |= sandbox.enter([folder], memory_bytes=None, off=READS)
    os.write(fd, json.dumps({**levels, "env": True}).encode() + b"\n")
    os.close(fd)
    return os.execve("/bin/sh", ["sh", "-c", command], inside)


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
