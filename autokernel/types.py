"""The nouns of the house: frozen records.

Standard library only, so that the daemon (which never imports torch) and the device processes share one vocabulary.
Tensors appear as ``Any``: a record that carries one lives only inside a device process.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Tensor = Any  # torch.Tensor, named without importing torch
Generator = Any  # torch.Generator
Scalar = bool | int | float | None
Dims = Mapping[str, int]
DType = Literal["fp32", "fp16", "bf16"]
DTYPES: tuple[DType, ...] = ("fp32", "fp16", "bf16")


class AutokernelError(Exception):
    """A mistake the person can mend: one line that says what was expected, what came, and what to do."""


# ---------------------------------------------------------------------------------------------- what is optimized


@dataclasses.dataclass(frozen=True)
class Workload:
    """One real call pattern of a problem, and how often the model makes it in one forward pass.

    ``dims`` names every size of the problem's signature (``{"R": 512, "C": 768}``); ``strides`` holds, in elements,
    those of each input that is not contiguous; ``scalars`` holds the non-tensor arguments (``{"eps": 1e-6}``).
    """

    dims: Dims
    dtype: DType
    count: int = 1
    strides: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    scalars: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """A stable, readable name: equal keys mean the same call pattern (the count aside)."""
        parts = ["x".join(f"{n}{v}" for n, v in self.dims.items()), self.dtype]
        parts += [f"{n}{'x'.join(map(str, s))}" for n, s in sorted(self.strides.items())]
        parts += [f"{n}={v}" for n, v in sorted(self.scalars.items())]
        return "_".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "dims": dict(self.dims),
            "dtype": self.dtype,
            "count": self.count,
            "strides": {n: list(s) for n, s in self.strides.items()},
            "scalars": dict(self.scalars),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workload:
        return cls(
            dims={str(n): int(v) for n, v in data["dims"].items()},
            dtype=data["dtype"],
            count=int(data.get("count", 1)),
            strides={n: tuple(s) for n, s in data.get("strides", {}).items()},
            scalars=dict(data.get("scalars", {})),
        )


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """|out - oracle| <= atol * scale + rtol * |oracle|, elementwise; ``scale`` is the oracle's own magnitude."""

    atol: float
    rtol: float


@dataclasses.dataclass(frozen=True)
class AdversarialInput:
    """Inputs that break a careless kernel of this one problem: ``make(dims, dtype, generator)`` as ``make_inputs``."""

    name: str
    dims: Dims
    make: Callable[[Dims, DType, Generator], tuple[Tensor, ...]]
    scalars: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Window:
    """A candidate region of a model as a problem sees it: its input tensors (on the meta device), its single output
    (likewise), and the numbers written in its nodes (an eps, a scale, a flag), in order of appearance.
    """

    tensors: tuple[Tensor, ...]
    output: Tensor
    constants: tuple[Scalar, ...] = ()


@dataclasses.dataclass(frozen=True)
class Binding:
    """How the tensors of a model's region fill a problem's signature.

    ``adapt(*tensors)`` turns the region's inputs, in the order that was offered, into the problem's (views and
    transposes only), and ``restore(out, *tensors)`` gives the problem's output the region's output shape. ``dims``
    and ``scalars`` are those of the workload.
    """

    dims: Dims
    scalars: Mapping[str, Scalar]
    adapt: Callable[..., tuple[Tensor, ...]]
    restore: Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One kernel type: what is right, on which inputs, within which error, and what it costs.

    ``reference(*tensors, **scalars)`` is plain PyTorch that runs in any float dtype; the oracle is this function in
    float64. ``make_inputs(dims, dtype, generator)`` returns the tensors in signature order, contiguous, on the
    generator's device, with random parameters (never weight = 1 or bias = 0). ``shapes`` maps a device kind ("cpu",
    "cuda") to the dims of the sweep. ``flops`` and ``bytes`` count one call of a workload. ``baselines`` maps "eager"
    (always) and "library" (the best library call, where one exists) to functions of the signature; torch.compile of
    ``eager`` is added by the judge. ``propose_bindings(window)`` gives the ways in which such a region could be this
    problem: recognition is by testing, so a wrong guess costs a run and no more.
    """

    name: str
    summary: str
    reference: Callable[..., Tensor]
    inputs: tuple[str, ...]
    make_inputs: Callable[[Dims, DType, Generator], tuple[Tensor, ...]]
    shapes: Mapping[str, Sequence[Dims]]
    edge_shapes: Sequence[Dims]
    adversarial: Sequence[AdversarialInput]
    tolerances: Mapping[DType, Tolerance]
    tolerance_reason: str
    flops: Callable[[Workload], int]
    bytes: Callable[[Workload], int]
    baselines: Mapping[str, Callable[..., Tensor]]
    propose_bindings: Callable[[Window], Sequence[Binding]]
    held_out: Callable[[Any], Dims]  # (random.Random) -> dims of a shape that no file names
    scalars: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)  # the signature's defaults
    edge_scalars: Sequence[Mapping[str, Scalar]] = ()  # further scalar values every kernel must handle
    deterministic: bool = True
    dtypes: Sequence[DType] = DTYPES  # those that every kernel must handle
    strided: bool = True  # whether it must also handle inputs that are not contiguous
    program: Sequence[str] = ()  # what a graph holds where it holds this problem; () where testing windows tells it
    jumps: bool = False  # whether it rounds on the way: a value near a tie may then fall to either side


@dataclasses.dataclass(frozen=True)
class Region:
    """One recognised place in a model: which problem it is, where, with what calls, and what it costs there."""

    problem: str
    module_path: str
    workloads: tuple[Workload, ...]
    time_us: float
    floor_us: float


@dataclasses.dataclass(frozen=True)
class Target:
    """What one kernel file serves: a group of regions of one problem, its backend, and its share of the model's time.

    ``problem`` is a name, or the absolute path of a file that stands for one: a reference (``x.py``), or a bench
    command of the owner's (``x.json``). ``eager_us`` is the time of these regions in one forward of the model as its
    owner wrote it; ``floor_us`` is the roofline floor of the same work. ``share`` is a fraction of the forward, 0 to 1.
    ``suffix`` is that of the kernel file: what a bench command builds need not be Python.
    """

    name: str
    problem: str
    backend: str
    workloads: tuple[Workload, ...]
    share: float
    eager_us: float
    floor_us: float
    suffix: str = ".py"

    @property
    def file(self) -> str:
        """Path of the kernel file inside the workspace."""
        return f"kernels/{self.name}{self.suffix}"

    @property
    def kernel_type(self) -> str:
        return kernel_type(self.problem)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "workloads": [w.to_json() for w in self.workloads]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: str | os.PathLike[str] = "") -> Target:
        """The target of a JSON object; a problem that is a relative path lies below ``folder``, the workspace."""
        problem = os.path.join(folder, data["problem"]) if is_file(data["problem"]) else data["problem"]
        workloads = tuple(Workload.from_json(w) for w in data["workloads"])
        return cls(**{**data, "problem": problem, "workloads": workloads})


def is_file(problem: str) -> bool:
    """Whether a problem's name is the path of a file that stands for it."""
    return problem.endswith((".py", ".json"))


def kernel_type(problem: str) -> str:
    """A problem as rows and a kernel file's KERNEL_TYPE name it: the stem, where the problem is a file."""
    return os.path.splitext(os.path.basename(problem))[0] if is_file(problem) else problem


# ---------------------------------------------------------------------------------------------- what is tried


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One version of one kernel file. ``parent`` is the id of the source it was derived from ("" for a starter)."""

    target: str
    source: str
    parent: str
    idea: str
    author: str

    @property
    def id(self) -> str:
        return source_id(self.source)


def source_id(source: str) -> str:
    """sha256 of the source, in hex: the identity of a candidate."""
    return hashlib.sha256(source.encode()).hexdigest()


class Status(str, enum.Enum):
    """How a verdict ended. All but PASS name what went wrong."""

    PASS = "PASS"
    POLICY = "POLICY"
    BUILD = "BUILD"
    SMOKE = "SMOKE"
    SHAPES = "SHAPES"
    STABILITY = "STABILITY"
    DETERMINISM = "DETERMINISM"
    EDGES = "EDGES"
    TIMEOUT = "TIMEOUT"
    CRASH = "CRASH"
    IMPLAUSIBLE = "IMPLAUSIBLE"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Times of one passing candidate, all taken in the same session. Times are in microseconds a forward pass:
    medians of each workload, weighted by its count.
    """

    latency_us: float
    baselines_us: Mapping[str, float]  # "eager", "compile", "library": those that ran
    pct_peak: float | None  # roofline floor over latency, in percent; None where ceilings are unknown
    workloads_us: Mapping[str, float]  # Workload.key -> candidate's median
    noise_pct: float  # half-width of the interval of the candidate's own repeated blocks, in percent

    @property
    def speedup_vs_eager(self) -> float | None:
        eager = self.baselines_us.get("eager")
        return eager / self.latency_us if eager else None

    @property
    def speedup_vs_best(self) -> float | None:
        return min(self.baselines_us.values()) / self.latency_us if self.baselines_us else None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of one candidate. ``stage`` is where it ended; ``errors`` maps "stage/case" to the largest
    error relative to its budget (1.0 is the limit); measurements exist if and only if the status is PASS.
    ``evidence`` is what the compiler and the profiler say of its kernels, where they do: by kernel name, such as
    {"softmax_kernel": {"registers": 40, "spill_bytes": 0, "shared_bytes": 1024, "occupancy": 0.75}}.
    """

    status: Status
    stage: str
    reason: str
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measurements: Measurements | None = None
    log_tail: str = ""
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)  # where the time of the verdict went
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.status is Status.PASS) != (self.measurements is not None):
            raise ValueError(f"a verdict has measurements iff it is PASS, not {self.status}")

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "status": self.status.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        measured = data.get("measurements")
        return cls(
            **{
                **data,
                "status": Status(data["status"]),
                "measurements": Measurements(**measured) if measured else None,
            }
        )


Decision = Literal["baseline", "keep", "revert", "aa"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidate against incumbent in paired blocks of one session. ``log_ratio`` is the mean of
    log(t_incumbent / t_candidate); ``ci_low`` and ``ci_high`` bound it. Positive means that the candidate is faster.
    """

    log_ratio: float
    ci_low: float
    ci_high: float
    blocks: int
    keep: bool
    reason: str
    incumbent_us: float
    candidate_us: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a proposal cost its owner."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One trip around the loop: one commit, one row. ``time`` is ISO 8601 UTC; ``seconds`` is wall time; ``attempts``
    is 1, and 1 more for each time that the candidate failed and was mended.
    """

    number: int
    time: str
    target: Target
    candidate: Candidate
    verdict: Verdict
    comparison: Comparison | None
    decision: Decision
    seconds: float
    commit: str
    cost: Cost = Cost()
    attempts: int = 1
