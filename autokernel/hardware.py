"""What this device is and what it can do at best: measured ceilings for copying and for multiplying, cached per device.

A floor computed from measured ceilings is one that software on this very machine has been seen to reach; a data sheet's
is not. The measurement imports torch and belongs in a device process; reading the cache does not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autokernel.types import AutokernelError, DType

CPU_SETS_BYTES = tuple(1 << n for n in range(18, 29, 2))  # 256 KiB to 256 MiB, read plus written
CUDA_SETS_BYTES = (1 << 22, 1 << 25, 1 << 28, 1 << 31)
CPU_MATMUL = {"fp32": 1024, "fp16": 512, "bf16": 768}  # side of the square product, per dtype
CUDA_MATMUL = 8192
CPU_BUDGET_S = 0.25  # of each CPU figure: the best call within it
CPU_MATMUL_BUDGET_S = {"fp32": 0.5, "fp16": 0.2, "bf16": 0.4}
REPEATS = 3
SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A device and its measured ceilings.

    ``copy_gbps`` maps a working set (bytes read plus written, as text) to the rate of copying it; ``tflops`` maps a
    dtype to the best rate of a square matrix product. ``llc_bytes`` is the last-level cache (0 where unknown).
    """

    device: str
    name: str
    cores: int
    threads: int
    llc_bytes: int
    copy_gbps: Mapping[str, float]
    tflops: Mapping[DType, float]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "copy_gbps": dict(self.copy_gbps), "tflops": dict(self.tflops)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Hardware:
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})

    def bandwidth_gbps(self, nbytes: int) -> float:
        """The best copy rate seen at this working set or a larger one: a floor must not promise too little speed, so
        between two measured sets the smaller one's rate holds.
        """
        sets = sorted((int(size), rate) for size, rate in self.copy_gbps.items())
        below = [i for i, (size, _) in enumerate(sets) if size <= nbytes]
        return max(rate for _, rate in sets[below[-1] if below else 0 :])

    def memory_us(self, nbytes: int) -> float:
        """Least time to move ``nbytes`` (read plus written), in microseconds."""
        return nbytes / self.bandwidth_gbps(nbytes) / 1e3

    def compute_us(self, flops: int, dtype: DType) -> float:
        """Least time for ``flops`` operations, in microseconds. A slower ceiling of a narrow dtype than of fp32 only
        says that the library has no fast product for it: a kernel may convert, so the better of the two holds.
        """
        best = max(self.tflops[dtype], self.tflops["fp32"])
        return flops / best / 1e6

    def floor_us(self, flops: int, nbytes: int, dtype: DType) -> float:
        """The roofline: no kernel that does this much is faster, in microseconds."""
        return max(self.compute_us(flops, dtype), self.memory_us(nbytes))


def cached(device: str = "cpu") -> Hardware | None:
    """The ceilings measured earlier on this device, or None. Imports no torch."""
    name, cores = _identity(device)
    if not name:
        return None
    path = _cache_file(device, name, cores)
    try:
        data = json.loads(path.read_text())
        return Hardware.from_json(data["hardware"])
    except (OSError, ValueError, KeyError, TypeError):  # absent, torn or of an older kind: measure again
        return None


def measure(device: str = "cpu", refresh: bool = False) -> Hardware:
    """The ceilings of this device: from the cache, or measured now (a few seconds) and cached.

    ``refresh`` measures again and keeps the better of each old and new figure: other work on the machine can lower
    what is measured, and nothing can raise it.

    Raises AutokernelError where PyTorch has no such device.
    """
    known = cached(device)
    if known is not None and not refresh:
        return known
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise AutokernelError("device cuda was asked for, and PyTorch sees no CUDA device: use --device cpu")
    hardware = _measure_cuda(device) if device.startswith("cuda") else _measure_cpu()
    if known is not None:
        hardware = _better(known, hardware)
    _store(hardware)
    return hardware


def _better(old: Hardware, new: Hardware) -> Hardware:
    copy = {size: max(rate, old.copy_gbps.get(size, 0.0)) for size, rate in new.copy_gbps.items()}
    tflops = {dtype: max(rate, old.tflops.get(dtype, 0.0)) for dtype, rate in new.tflops.items()}
    return dataclasses.replace(new, copy_gbps=copy, tflops=tflops)


def arch(device: str = "cpu") -> str | None:
    """The architecture of a CUDA device as kernel folders name it ("sm90"); None for a CPU. Imports torch."""
    if not device.startswith("cuda"):
        return None
    import torch

    major, minor = torch.cuda.get_device_capability(torch.device(device))
    return f"sm{major}{minor}"


# ---------------------------------------------------------------------------------------------- measuring


def _measure_cpu() -> Hardware:
    import torch

    def timed(function: Callable[[], Any], budget_s: float) -> float:
        """Best seconds of one call, within the budget (at least one call after one to warm up)."""
        stop, best = time.perf_counter() + budget_s, math.inf
        function()
        while True:
            start = time.perf_counter()
            function()
            end = time.perf_counter()
            best = min(best, end - start)
            if end >= stop:
                return best

    copy: dict[str, float] = {}
    for nbytes in CPU_SETS_BYTES:
        source = torch.ones(nbytes // 8, dtype=torch.float32)  # 4 bytes read and 4 written an element
        target = torch.empty_like(source)
        copy[str(nbytes)] = nbytes / timed(functools.partial(target.copy_, source), CPU_BUDGET_S) / 1e9
    tflops: dict[DType, float] = {}
    for dtype, kind in _dtypes(torch):
        side = CPU_MATMUL[dtype]
        a = torch.randn(side, side).to(kind)
        b = torch.randn(side, side).to(kind)
        c = torch.empty(side, side, dtype=kind)
        seconds = timed(functools.partial(torch.mm, a, b, out=c), CPU_MATMUL_BUDGET_S[dtype])
        if dtype == "fp32" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            # On AMD processors the BLAS behind torch.mm reaches half of what oneDNN does: a ceiling is the better.
            x, weight = a.to_mkldnn(), b.to_mkldnn()
            linear = functools.partial(torch.nn.functional.linear, x, weight)
            seconds = min(seconds, timed(linear, CPU_MATMUL_BUDGET_S[dtype]))
        tflops[dtype] = 2 * side**3 / seconds / 1e12
    name, cores = _identity("cpu")
    return Hardware("cpu", name, cores, torch.get_num_threads(), _llc_bytes(), copy, tflops)


def _measure_cuda(device: str) -> Hardware:
    import torch

    where = torch.device(device)
    props = torch.cuda.get_device_properties(where)

    def timed(function: Callable[[], Any], calls: int) -> float:
        """Best seconds of one call: events around ``calls`` of them, REPEATS times, after a warm-up."""
        function()
        best = math.inf
        for _ in range(REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(calls):
                function()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / calls / 1e3)
        return best

    copy: dict[str, float] = {}
    tflops: dict[DType, float] = {}
    tf32 = torch.backends.cuda.matmul.allow_tf32
    with torch.cuda.device(where):
        for nbytes in CUDA_SETS_BYTES:
            source = torch.ones(nbytes // 8, dtype=torch.float32, device=where)
            target = torch.empty_like(source)
            calls = max(5, min(200, (1 << 31) // nbytes))
            seconds = timed(functools.partial(target.copy_, source), calls)
            copy[str(nbytes)] = nbytes / seconds / 1e9
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            for dtype, kind in _dtypes(torch):
                a = torch.randn(CUDA_MATMUL, CUDA_MATMUL, device=where).to(kind)
                b = torch.randn(CUDA_MATMUL, CUDA_MATMUL, device=where).to(kind)
                c = torch.empty_like(a)
                seconds = timed(functools.partial(torch.mm, a, b, out=c), 10)
                tflops[dtype] = 2 * CUDA_MATMUL**3 / seconds / 1e12
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32
    cache = int(getattr(props, "L2_cache_size", 0))
    return Hardware(device, props.name, props.multi_processor_count, 1, cache, copy, tflops)


def _dtypes(torch: Any) -> list[tuple[DType, Any]]:
    return [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]


# ---------------------------------------------------------------------------------------------- identity and cache


def _identity(device: str) -> tuple[str, int]:
    """Name of the device ("" where there is none) and, for a CPU, the cores this process may use. Without torch."""
    if not device.startswith("cuda"):
        affinity = getattr(os, "sched_getaffinity", None)
        return _cpu_name(), len(affinity(0)) if affinity else os.cpu_count() or 1
    index = device.partition(":")[2] or "0"
    visible = [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    if visible:
        if not index.isdigit() or int(index) >= len(visible):
            return "", 0
        index = visible[int(index)]
    command = ["nvidia-smi", "-i", index, "--query-gpu=name", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "", 0
    return (result.stdout.strip() if result.returncode == 0 else ""), 0


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (models[0] if models else "") or platform.processor() or platform.machine() or "cpu"


def _llc_bytes() -> int:
    """The largest cache that the first core sees; 0 where the system does not say."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        sizes.append(int(digits) * unit if digits.isdigit() else 0)
    return max(sizes)


def _cache_file(device: str, name: str, cores: int) -> Path:
    try:
        version = importlib.metadata.version("torch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    folder = os.environ.get("AUTOKERNEL_CACHE")
    base = Path(folder) if folder else Path.home() / ".cache" / "autokernel"
    kind = "cuda" if device.startswith("cuda") else "cpu"
    digest = hashlib.sha256(f"{SCHEMA}|{kind}|{name}|{cores}|{version}".encode()).hexdigest()[:16]
    return base / f"hardware-{kind}-{digest}.json"


def _store(hardware: Hardware) -> None:
    """Cache it; a folder that cannot be written costs only the next run's time."""
    name, cores = _identity(hardware.device)
    if not name:
        return
    path = _cache_file(hardware.device, name, cores)
    text = json.dumps({"measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "hardware": hardware.to_json()})
    torn = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn.write_text(text)
        torn.replace(path)
    except OSError:
        return
