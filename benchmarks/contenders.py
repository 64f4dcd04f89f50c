"""The cases of table4.py, who competes in them, and the worker process that checks and times them.

    python benchmarks/contenders.py --device cuda --dtype fp16 < request.json

The request names a case and the contenders to skip; each contender is announced on standard output before its turn, so
that whoever reads knows which one ended the process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autokernel import assets, hardware, registry, runfile
from autokernel.types import Workload

OURS = ("triton", "cuda", "cpp")


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    problem: str
    dims: dict[str, int]
    scalars: dict[str, Any] = dataclasses.field(default_factory=dict)

    def workload(self, dtype: str) -> Workload:
        known = registry.load("problems", self.problem)
        return Workload(self.dims, dtype, 1, {}, {**known.scalars, **self.scalars})  # type: ignore[arg-type]


def _rows(problem: str, names: str, *shapes: tuple[int, int]) -> list[Case]:
    first, second = names.split()
    return [Case(f"{problem} {a}x{b}", problem, {first: a, second: b}) for a, b in shapes]


def _products(*shapes: tuple[int, int, int]) -> list[Case]:
    return [Case(f"matmul {m}x{n}x{k}", "matmul", {"M": m, "N": n, "K": k}) for m, n, k in shapes]


def _attention(*shapes: tuple[int, int, int, int]) -> list[Case]:
    return [
        Case(f"attention {b}x{h}x{s}x{d} causal", "flash_attention", {"B": b, "H": h, "G": h, "S": s, "T": s, "D": d})
        for b, h, s, d in shapes
    ]


CUDA_CASES = [
    *_products((2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (4096, 11008, 4096)),
    *_rows("softmax", "R C", (4096, 4096), (8192, 8192), (1024, 50257)),
    *_rows("layernorm", "R C", (4096, 5120), (8192, 4096)),
    *_rows("rmsnorm", "R C", (4096, 4096), (8192, 4096), (8192, 8192)),
    *_rows("cross_entropy", "R V", (4096, 32000), (8192, 32000), (4096, 50257), (8192, 128256)),
    *_rows("reduce", "R C", (8192, 8192), (16384, 4096), (1024, 32768)),
    *[Case(f"rotary {b}x{h}x{s}x{d}", "rotary_embedding", {"B": b, "H": h, "S": s, "D": d})
      for b, h, s, d in ((2, 32, 2048, 128), (2, 32, 4096, 128))],
    *_attention((2, 32, 2048, 64), (1, 32, 2048, 128), (4, 16, 8192, 128)),
    *[Case(f"fused_mlp {r}x{h}x{i}", "fused_mlp", {"M": r, "D": h, "F": i})
      for r, h, i in ((2048, 4096, 11008), (4096, 4096, 11008))],
]  # fmt: skip
DECODE_CASES = [
    *_products((1, 4096, 4096), (16, 4096, 4096), (64, 4096, 4096)),
    *_rows("softmax", "R C", (1, 32000), (16, 4096), (64, 4096)),
    *_rows("rmsnorm", "R C", (1, 4096), (16, 4096), (64, 8192)),
    *_rows("layernorm", "R C", (1, 4096), (64, 5120)),
    *_rows("cross_entropy", "R V", (1, 128256), (64, 32000)),
    *[Case(f"rotary {b}x{h}x{s}x{d}", "rotary_embedding", {"B": b, "H": h, "S": s, "D": d})
      for b, h, s, d in ((1, 32, 1, 128), (64, 32, 1, 128))],
    *[Case(f"fused_mlp {r}x{h}x{i}", "fused_mlp", {"M": r, "D": h, "F": i})
      for r, h, i in ((1, 4096, 11008), (16, 4096, 11008))],
]  # fmt: skip
CPU_CASES = [
    *_products((512, 768, 768)),
    *_rows("softmax", "R C", (512, 512)),
    *_rows("layernorm", "R C", (512, 768)),
    *_rows("rmsnorm", "R C", (512, 768), (4096, 4096)),
    *_rows("cross_entropy", "R V", (64, 32000)),
    *_rows("reduce", "R C", (4096, 1024)),
]


def contenders(
    case: Case, device: str, compile_mode: str, peers: Sequence[Path]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, a function that makes the callable): made only when its turn comes, since making it may build or fail."""
    import torch

    problem = registry.load("problems", case.problem)
    kind = torch.device(device).type
    yield "eager", lambda: problem.baselines["eager"]
    yield (
        "compile",
        lambda: torch.compile(problem.baselines["eager"], dynamic=False, mode=compile_mode if kind == "cuda" else None),
    )
    if "library" in problem.baselines:
        yield "library", lambda: problem.baselines["library"]
    if kind == "cuda":
        yield from _libraries(case.problem)
    arch = hardware.arch(device)
    for backend in OURS:
        path = assets.starter(case.problem, backend, arch)
        if path and kind in registry.load("backends", backend).devices:
            yield backend, lambda path=path, backend=backend: built(path, backend)
    for folder in peers:
        for path in sorted(folder.rglob("*.py")):
            if path.stem == case.problem or f'KERNEL_TYPE = "{case.problem}"' in path.read_text(errors="replace"):
                yield f"peer {path.relative_to(folder)}", lambda path=path: load(path)


def _libraries(problem: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if problem == "flash_attention":

        def sdpa(backend: Any) -> Callable[..., Any]:
            def call(q: Any, k: Any, v: Any, causal: bool = True, sm_scale: float | None = None) -> Any:
                with sdpa_kernel(backend):
                    grouped = q.shape[1] != k.shape[1]
                    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=sm_scale, enable_gqa=grouped)

            return call

        yield "SDPA flash", lambda: sdpa(SDPBackend.FLASH_ATTENTION)
        yield "SDPA cuDNN", lambda: sdpa(SDPBackend.CUDNN_ATTENTION)
    if importlib.util.find_spec("liger_kernel"):
        yield from _liger(problem)


def _liger(problem: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    from liger_kernel.transformers import functional as liger

    calls: dict[str, Callable[..., Any]] = {
        "rmsnorm": lambda x, w, eps=1e-6: liger.liger_rms_norm(x, w, eps),
        "layernorm": lambda x, w, b, eps=1e-5: liger.liger_layer_norm(x, w, b, eps),
        "softmax": lambda x: liger.liger_softmax(x),
        "cross_entropy": lambda x, t: liger.liger_cross_entropy(x.clone(), t),  # it overwrites its logits
    }
    if problem in calls:
        yield "Liger", lambda: calls[problem]


def built(path: Path, backend: str) -> Any:
    """The ``kernel_fn`` of a starter, built as the judge builds it."""
    with runfile.environment(registry.load("backends", backend).environment(str(assets.cache_folder() / "table4"))):
        return load(path)


def load(path: Path) -> Any:
    """The ``kernel_fn`` of a kernel file."""
    return runfile.run(path, f"table4_{path.parent.name}_{path.stem}").kernel_fn


def work(options: argparse.Namespace) -> None:
    """Times what the parent asks for on standard input, a line of JSON each; answers on standard output."""
    import torch

    from autokernel.evaluate.correctness import expected, mismatch

    torch.set_grad_enabled(False)
    answers = sys.stdout
    sys.stdout = sys.stderr
    request = json.loads(sys.stdin.read())
    case = Case(**request["case"])
    problem = registry.load("problems", case.problem)
    workload = case.workload(options.dtype)
    with alone(options.lock), torch.device(options.device):
        generator = torch.Generator(options.device).manual_seed(7)
        there = problem.make_inputs(workload.dims, workload.dtype, generator)
        want = expected(problem, there, workload.scalars, problem.flops(workload), options.device)
    for name, make in contenders(case, options.device, options.compile_mode, options.peer):
        if name in request["skip"]:
            continue
        print(json.dumps({"begin": name}), file=answers, flush=True)
        answer: dict[str, Any] = {"name": name}
        try:
            call = functools.partial(make(), *there, **workload.scalars)  # builds, which takes no turn
            with alone(options.lock):
                out = call()
                if tuple(out.shape) != tuple(want.oracle.shape) or out.dtype != want.dtype:
                    raise ValueError(
                        f"{want.dtype} {tuple(want.oracle.shape)} expected, {out.dtype} {tuple(out.shape)} returned"
                    )
                tolerance = problem.tolerances[options.dtype]
                worst, wrong = mismatch(out, want, tolerance, statistical=not name.startswith("peer"))
                answer |= {"error": worst}
                if wrong and name not in ("eager", "compile", "library"):
                    answer["failed"] = f"wrong: {wrong}"
                else:
                    answer["us"] = median_us(call, options.device)
        except Exception as error:  # a contender may raise anything; the table says what
            answer["failed"] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
        print(json.dumps(answer), file=answers, flush=True)


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """While this lasts, no other worker that was given the same lock uses the device."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given up with the file, and with the process
        yield


def median_us(call: Callable[[], Any], device: str) -> float:
    """Median time of one call, the cache overwritten before each, in microseconds."""
    if device != "cpu":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=50, rep=300, return_mode="median")) * 1e3
    import torch

    llc = hardware.measure(device).llc_bytes
    flush = torch.empty(2 * llc, dtype=torch.uint8)
    for _ in range(3):
        call()
    samples, started = [], time.perf_counter()
    while len(samples) < 15 or (time.perf_counter() - started < 1.0 and len(samples) < 200):
        flush.fill_(len(samples) & 1)
        begin = time.perf_counter()
        call()
        samples.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(samples)


def options_of(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that parent and worker share."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="default: fp16 on cuda, fp32 on a CPU")
    parser.add_argument("--peer", action="append", default=[], type=Path, help="a folder of kernel files; repeatable")
    parser.add_argument("--lock", type=Path, help="a file: workers with the same one take turns on the device")
    parser.add_argument("--compile-mode", default="max-autotune-no-cudagraphs")
    return parser


if __name__ == "__main__":
    work(options_of(argparse.ArgumentParser()).parse_args())
