"""What this machine can do for autokernel, and what is missing, each with the command that mends it. No torch here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from autokernel.extension import Missing
from autokernel.isolation import LEVELS
from autokernel.types import AutokernelError

State = Literal["ok", "note", "missing", "fatal"]
SHM_WANTED_BYTES = 1 << 30  # inputs and outputs of the judge lie in shared memory

OPENMP_LINE = "#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }\n"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. ``fatal``: nothing can run without it; ``missing``: something cannot; ``mend`` is the
    command or the step that changes it ("" when there is nothing to do)."""

    what: str
    state: State
    detail: str
    mend: str = ""


def examine(device: str, ask: Callable[..., Mapping[str, Any]]) -> list[Finding]:
    """Looks at the machine. ``ask("machine", device)`` is the device process's answer (see autokernel.probe)."""
    findings = [
        _python(),
        _processor(),
        *_gpus(),
        *([*_conditions(device), *_watchers()] if device.startswith("cuda") else ()),
        _compiler(),
        _headers(),
        _tool("git", "apt-get install git", fatal=True),
    ]
    findings += [
        _distribution("apache-tvm-ffi", fatal=True),
        _ninja(),
        _distribution("triton"),
        _nvcc(),
        _shared_memory(),
    ]
    try:
        answer = ask("machine", device)
    except AutokernelError as error:
        findings.append(Finding("torch", "fatal", str(error), f"{sys.executable} -m pip install torch"))
    else:
        findings += _torch(answer) + _backends(answer) + _sandbox(answer["isolation"])
    findings += [_ceilings(device), _api_key()]
    return findings


def _output(*command: str) -> str | None:
    """The first line that the command prints, or None when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else None


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} at {sys.executable}")


def _processor() -> Finding:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    name = match.group(1) if match else "unknown processor"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = psutil.virtual_memory().total / 2**30
    return Finding("cpu", "ok", f"{name}, {usable} usable cores of {psutil.cpu_count()}, {memory_gib:.0f} GiB memory")


def _gpus() -> list[Finding]:
    if shutil.which("nvidia-smi") is None:
        return [Finding("gpu", "note", "no NVIDIA driver here: kernels are made for the CPU")]
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    first = _output(*query)
    if first is None:
        return [Finding("gpu", "missing", "nvidia-smi is there but fails", "nvidia-smi   # read what it says")]
    return [Finding("gpu", "ok", first)]


def _conditions(device: str) -> list[Finding]:
    """What the judge looks at around every timed block of a GPU."""
    from autokernel.evaluate.nvml import Watch

    watch = Watch(device)
    seen = watch.look()
    if seen is None:
        detail = f"cannot be seen ({watch.missing}): a GPU that is throttled or shared goes unnoticed"
        return [Finding("gpu conditions", "missing", detail, "nvidia-smi -q -d PERFORMANCE   # the driver's own view")]
    clocks = ", ".join(
        f"{name} {value} {unit}" if value is not None else f"{name} unknown"
        for name, value, unit in (
            ("SM", seen.sm_mhz, "MHz"), ("memory", seen.memory_mhz, "MHz"), ("temperature", seen.temperature_c, "°C")
        )
    )  # fmt: skip
    findings = [Finding("gpu clocks", "ok", clocks)]
    if seen.throttled:
        mend = "let it cool, or mend its power supply or airflow   # nvidia-smi -q -d PERFORMANCE"
        findings.append(Finding("gpu throttling", "missing", f"{', '.join(seen.throttled)}: times are void", mend))
    elif seen.throttled is None:
        findings.append(Finding("gpu throttling", "note", "the driver does not say"))
    else:
        capped = "; at its power limit, which is ordinary under load" if seen.power_capped else ""
        findings.append(Finding("gpu throttling", "ok", f"none{capped}"))
    return [*findings, _gpu_processes(seen.listed)]


def _watchers() -> list[Finding]:
    """The tools of the CUDA toolkit that bench and run call when asked; their rights show only when they run."""
    from autokernel.evaluate import toolrun

    found = []
    for name, purpose in (("ncu", "bench --ncu"), ("compute-sanitizer", "--sanitize")):
        path = toolrun.command(name)
        found.append(Finding(name, "ok", path) if path else Finding(name, "note", f"not found: no {purpose}"))
    return found


def _gpu_processes(listed: Sequence[int] | None) -> Finding:
    """This process is not on the GPU itself, so that whoever the driver lists is another."""
    if listed is None:
        return Finding("gpu processes", "note", "the driver does not say which processes are on it")
    if not listed:
        return Finding("gpu processes", "ok", "none listed (a container may hide others)")
    return Finding("gpu processes", "note", f"others are on it, and disturb times: {', '.join(map(_process, listed))}")


def _process(pid: int) -> str:
    try:
        return f"{pid} {psutil.Process(pid).name()}"
    except psutil.Error:
        return f"{pid} (of another namespace, or gone)"


def _compiler() -> Finding:
    """A compiler counts when it builds and runs one OpenMP line: a version string proves nothing."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    mend = "apt-get install g++"
    if shutil.which(compiler) is None:
        return Finding("compiler", "missing", f"{compiler} not found: no C++ kernel, no torch.compile baseline", mend)
    version = _output(compiler, "--version") or compiler
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "openmp.cpp"), Path(folder, "openmp")
        source.write_text(OPENMP_LINE)
        if _output(compiler, "-fopenmp", "-march=native", str(source), "-o", str(program)) is None:
            detail = f"{version}, but a line of OpenMP does not build with -fopenmp -march=native"
            return Finding("compiler", "missing", detail, "apt-get install g++ libgomp1")
        if _output(str(program)) is None:
            detail = f"{version}, but a program with OpenMP does not start"
            return Finding("compiler", "missing", detail, "apt-get install libgomp1")
    return Finding("compiler", "ok", f"{version}; OpenMP builds and runs")


def _headers() -> Finding:
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if header.is_file():
        return Finding("Python.h", "ok", str(header))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    detail = f"{header} not found: torch.compile may fail, and that baseline is then left out"
    return Finding("Python.h", "missing", detail, f"apt-get install python{version}-dev")


def _tool(name: str, mend: str, fatal: bool = False) -> Finding:
    version = _output(name, "--version")
    if version is None:
        return Finding(name, "fatal" if fatal else "missing", "not found", mend)
    return Finding(name, "ok", version)


def _distribution(name: str, fatal: bool = False) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            name, "fatal" if fatal else "missing", "not installed", f"{sys.executable} -m pip install {name}"
        )


def _ninja() -> Finding:
    """tvm-ffi calls ninja by name: the executable must be beside this interpreter or on the path."""
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    found = shutil.which("ninja") or beside
    if found is None:
        return Finding(
            "ninja", "missing", "not found: no kernel can be built", f"{sys.executable} -m pip install ninja"
        )
    return Finding("ninja", "ok", f"{_output(found, '--version') or 'does not start'} at {found}")


def _nvcc() -> Finding:
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if compiler is None:
        mend = "install the CUDA toolkit of your driver's version" if shutil.which("nvidia-smi") else ""
        return Finding("nvcc", "missing" if mend else "note", "not found: no CUDA C++ kernels", mend)
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"release [\d.]+", done.stdout)
    return Finding("nvcc", "ok", f"{match.group(0) if match else 'unknown release'} at {compiler}")


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding(
            "/dev/shm", "fatal", "no such folder: the judge shares tensors there", "mount -t tmpfs tmpfs /dev/shm"
        )
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free"
    if free < SHM_WANTED_BYTES:
        return Finding(
            "/dev/shm", "missing", f"{detail}: large workloads will not fit", "mount -o remount,size=4G /dev/shm"
        )
    return Finding("/dev/shm", "ok", detail)


def _torch(answer: Mapping[str, Any]) -> list[Finding]:
    gpus = ", ".join(answer["cuda"])
    build = f"CUDA {answer['cuda_build']}" if answer["cuda_build"] else "CPU build"
    findings = [Finding("torch", "ok", f"{answer['torch']} ({build}), {answer['threads']} threads")]
    if gpus:
        findings.append(Finding("torch on the GPU", "ok", gpus))
    elif shutil.which("nvidia-smi"):
        mend = f"{sys.executable} -m pip install --force-reinstall torch   # a build for your driver's CUDA"
        findings.append(Finding("torch on the GPU", "missing", f"this torch ({build}) sees no GPU", mend))
    return findings


def _backends(answer: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for name, gaps in answer["backends"].items():
        missing = [Missing(**gap) for gap in gaps]
        if missing:
            detail, mend = "; ".join(m.what for m in missing), " && ".join(m.mend for m in missing)
            findings.append(Finding(f"backend {name}", "missing", detail, mend))
        else:
            findings.append(Finding(f"backend {name}", "ok", "can build kernels"))
    return findings


def _sandbox(answer: Mapping[str, Any]) -> list[Finding]:
    """One line a level of isolation: what it protects, and how to get it where it is missing."""
    findings = []
    for name, level in LEVELS.items():
        if answer["levels"].get(name):
            abi = f" (landlock ABI {answer['landlock_abi']})" if name == "landlock" else ""
            findings.append(Finding(f"sandbox {name}", "ok", f"a candidate {level.protects}{abi}"))
        else:
            detail = f"not granted here: nothing ensures that a candidate {level.protects}"
            findings.append(Finding(f"sandbox {name}", "missing", detail, level.mend))
    return findings


def _ceilings(device: str) -> Finding:
    """The measured ceilings of the device, when they were taken, or that the first profile takes them."""
    from autokernel import hardware

    found = hardware.cached(device)
    if found is None:
        return Finding(f"ceilings {device}", "note", "not measured yet: the first profile, bench or run measures them")
    flops = ", ".join(f"{dtype} {value:.2f} TFLOP/s" for dtype, value in found.tflops.items())
    largest = max(found.copy_gbps, key=int)
    return Finding(f"ceilings {device}", "ok", f"{found.name}: copy {found.copy_gbps[largest]:.0f} GB/s, {flops}")


def _api_key() -> Finding:
    if os.environ.get("ANTHROPIC_API_KEY"):
        return Finding("API key", "ok", "ANTHROPIC_API_KEY is set")
    return Finding("API key", "note", "none set: ideas come from the playbook, which needs none")


def fatal(findings: Sequence[Finding]) -> bool:
    """Whether nothing can run here."""
    return any(f.state == "fatal" for f in findings)
