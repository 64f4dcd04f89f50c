"""The cases of table4.py, who competes in them, and the worker process that checks and times them.

    python benchmarks/contenders.py --device cuda --dtype fp16 < request.json

The request names a case and the contenders to skip. All are built and checked first; then they are timed in ROUNDS
rounds, in turn, and what counts is the median of a contender's rounds: a device that grows hot, or a neighbour that
comes and goes, meets all of them. Among them is a copy of as many bytes as the case reads and writes. Each is announced
on standard output before its turn, so that whoever reads knows which one ended the process.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clock import median_us

from autokernel import assets, hardware, registry, runfile
from autokernel.types import Tolerance, Workload

if TYPE_CHECKING:
    from autokernel.evaluate.correctness import Expected

OURS = ("triton", "cuda", "cpp")
COPY = "copy"  # no contender: what memory allows, timed among them
ROUNDS = 6  # even: see where they are timed


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
    """Checks and times what the parent asks for on standard input, a line of JSON; answers on standard output."""
    import torch

    from autokernel.evaluate.correctness import expected

    torch.set_grad_enabled(False)
    answers = sys.stdout
    sys.stdout = sys.stderr

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    request = json.loads(sys.stdin.read())
    case = Case(**request["case"])
    problem = registry.load("problems", case.problem)
    workload = case.workload(options.dtype)
    with alone(options.lock), torch.device(options.device):
        generator = torch.Generator(options.device).manual_seed(7)
        there = problem.make_inputs(workload.dims, workload.dtype, generator)
        want = expected(problem, there, workload.scalars, problem.flops(workload), options.device)
        # As much is written again. Filled: memory that was never written is read from one page of zeros.
        source = torch.ones(problem.bytes(workload) // 2, dtype=torch.uint8)
        copy = functools.partial(torch.empty_like(source).copy_, source)
    calls: dict[str, Callable[[], Any]] = {} if COPY in request["skip"] else {COPY: copy}
    errors: dict[str, float] = {}
    for name, make in contenders(case, options.device, options.compile_mode, options.peer):
        if name in request["skip"]:
            continue
        say(begin=name)
        try:
            call = functools.partial(make(), *there, **workload.scalars)  # builds, which takes no turn
            with alone(options.lock):
                errors[name], wrong = checked(call(), want, problem.tolerances[options.dtype], name)
            if wrong:
                say(name=name, error=errors[name], failed=f"wrong: {wrong}")
            else:
                calls[name] = call
        except Exception as error:  # a contender may raise anything; the table says what
            say(name=name, failed=in_a_line(error))
            settle(options.device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS):
        with alone(options.lock):
            # Every other round backwards: who is early in a round, when the device is cool, is late in the next. So the
            # rounds are even in number: of five, three begin with the copy, and eager after it.
            for name in list(calls)[:: -1 if turn % 2 else 1]:
                say(begin=name)
                try:
                    times[name].append(median_us(calls[name], options.device))
                except Exception as error:
                    del calls[name]
                    say(name=name, failed=in_a_line(error))
                    settle(options.device)
    for name in calls:
        said = {"error": errors[name]} if name in errors else {}
        say(name=name, us=statistics.median(times[name]), rounds_us=times[name], **said)


def checked(out: Any, want: Expected, tolerance: Tolerance, name: str) -> tuple[float, str | None]:
    """(the largest error over its budget, what is wrong with a contender's output or None). PyTorch's own are timed
    whatever their error: it is what they are.
    """
    from autokernel.evaluate.correctness import mismatch

    if tuple(out.shape) != tuple(want.oracle.shape) or out.dtype != want.dtype:
        raise ValueError(f"{want.dtype} {tuple(want.oracle.shape)} expected, {out.dtype} {tuple(out.shape)} returned")
    worst, wrong = mismatch(out, want, tolerance, statistical=not name.startswith("peer"))
    return worst, None if name in ("eager", "compile", "library") else wrong


def settle(device: str) -> None:
    """Raises where an error has left the device of no more use to this process: the others need another one."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def in_a_line(error: Exception) -> str:
    """The error's type, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """While this lasts, no other worker that was given the same lock uses the device."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given up with the file, and with the process
        yield


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
