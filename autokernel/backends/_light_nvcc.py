"""An nvcc that reads a light header in place of tvm-ffi's own, wherever a source asks for no more than that header has.

More than half of a small kernel's build is tvm-ffi's headers and what they include (rmsnorm, nvcc 13.0: 4.0 s of
processor time, 1.7 s with the light one), and the machine code is the same to the byte. Which names a source uses only
a compiler can tell, so both are tried: the light header first, and tvm-ffi's own where that fails. A source with an
error pays 0.4 s for it, and its messages are those that tvm-ffi's headers give.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from autokernel.assets import cache_folder

HEADER = Path(__file__).with_name("_tvm_ffi_light.h")
SCRIPT = """\
#!/bin/sh
# nvcc with a light header in place of tvm-ffi's own, and with those where a source wants more.
nvcc={nvcc}
# Where C++ sources are linked with it, both must mean the same types.
if grep -qs '\\.cpp$' build.ninja; then exec "$nvcc" "$@"; fi
if said=$("$nvcc" -include {header} "$@" 2>&1); then
  [ -z "$said" ] || printf '%s\\n' "$said" >&2
  exit 0
fi
case $said in *"ptxas fatal"*) printf '%s\\n' "$said" >&2; exit 1;; esac  # no header is to blame
exec "$nvcc" "$@"
"""
THREADS = min(8, os.cpu_count() or 1)


@functools.cache
def toolkit(nvcc: Path) -> Path:
    """A folder that is nvcc's toolkit (a CUDA_HOME) but for its ``bin/nvcc``, which is SCRIPT. Made on first use."""
    real = nvcc.parent.parent
    key = hashlib.sha256(repr((str(nvcc), SCRIPT, HEADER.read_text())).encode()).hexdigest()[:16]
    folder = cache_folder() / "nvcc" / key
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    scratch.chmod(0o755)
    (scratch / "bin").mkdir()
    for entry in [*real.iterdir(), *(real / "bin").iterdir()]:
        if entry not in (real / "bin", nvcc):
            (scratch / entry.relative_to(real)).symlink_to(entry)
    shutil.copyfile(HEADER, scratch / HEADER.name)
    script = scratch / "bin" / "nvcc"
    script.write_text(SCRIPT.format(nvcc=shlex.quote(str(nvcc)), header=shlex.quote(str(folder / HEADER.name))))
    script.chmod(0o755)
    with contextlib.suppress(OSError):  # another process was first
        scratch.rename(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    return folder


@functools.cache
def parallel_flags(nvcc: Path) -> tuple[str, ...]:
    """Flags by which ptxas takes several kernels at a time; none where it is too old to know them. Its machine code is
    the same to the byte. nvcc's own --split-compile is not used: it splits the front end's optimizer, too, which then
    writes other code.
    """
    ptxas = shutil.which("ptxas", path=nvcc.parent)
    if ptxas is None or THREADS == 1:
        return ()
    said = subprocess.run([ptxas, "--help"], capture_output=True, text=True, check=False).stdout
    return (f"-Xptxas=--split-compile={THREADS}",) if "--split-compile" in said else ()
