"""Long rows of the CUDA softmax and sum, in the emulation: their ends, the widest that fits, and what mistakes show."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from autokernel import assets, registry
from autokernel.backends import cuda
from autokernel.problems._common import TORCH_DTYPES
from autokernel.types import DTYPES, DType, Problem

from .emulation import built
from .extent import ALL, REASON, only_with_all
from .test_cpp_starters import check, generator
from .test_cuda_starters import toolkit_headers

SOFTMAX, REDUCE = (registry.load("problems", name) for name in ("softmax", "reduce"))
HOPPER, AMPERE = 227 << 10, 163 << 10  # bytes of shared memory that a block gets at most
SCRATCH_BYTES = 256  # what softmax_shared needs beside a row
ROWS = 7  # enough that the emulation's three multiprocessors have a block a row
WIDTH = {"fp16": 33001, "bf16": 33001, "fp32": 16701}  # a little more than registers hold
EVEN = {"fp16": 65536, "bf16": 65536, "fp32": 32768}  # each thread of a block has 8 packs

pytestmark = pytest.mark.skipif(cuda._nvcc() is None, reason="no nvcc")


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> DType:
    chosen: DType = request.param
    if not ALL and chosen != "fp16":
        pytest.skip(REASON)
    return chosen


@functools.cache
def kernel(name: str, wrong: tuple[str, str] | None = None, shared_bytes: int = HOPPER) -> Callable[..., torch.Tensor]:
    """A starter where a block gets so much shared memory. ``wrong``: what is right in it, what takes its place."""
    path = assets.starter(name, "cuda")
    assert path is not None
    source = path.read_text()
    if wrong is not None:
        assert source.count(wrong[0]) == 1
        source = source.replace(*wrong)
    function: Callable[..., torch.Tensor] = built(source, toolkit_headers(), shared_bytes).kernel_fn
    return function


def widest(dtype: DType, shared_bytes: int) -> int:
    """Columns of the widest row that shared memory holds, wherever between two packs of 16 bytes it begins."""
    each = 16 // TORCH_DTYPES[dtype].itemsize
    return (shared_bytes - SCRATCH_BYTES) // 16 * each - each + 1


def among_infinities(problem: Problem, dtype: DType, columns: int, first: int = 0, gap: int = 0) -> torch.Tensor:
    """Rows of a wider matrix, from its column ``first`` on. What lies around them makes any sum infinite or NaN."""
    (x,) = problem.make_inputs({"R": 2 * ROWS if problem is REDUCE else ROWS, "C": columns}, dtype, generator(columns))
    wide = torch.full((len(x), first + columns + gap), torch.inf, dtype=x.dtype)
    wide[:, first : first + columns] = x
    return wide[:, first : first + columns]


def test_softmax_of_rows_that_begin_and_end_anywhere(dtype: DType) -> None:
    for columns, first, gap in ((0, 0, 0), (0, 1, 0), (0, 3, 5), (7, 0, 8), (7, 8, 0), (3, 5, 4)):
        x = among_infinities(SOFTMAX, dtype, WIDTH[dtype] + columns, first, gap)
        check(SOFTMAX, kernel("softmax"), (x,), dtype, {}, (columns, first, gap), statistical=True)
    check(SOFTMAX, kernel("softmax"), (x[:1].expand(ROWS, -1),), dtype, {}, "one row repeated")


def test_softmax_of_values_that_are_special(dtype: DType) -> None:
    """The judge's adversarial inputs, as wide; NaN; infinities of which a row, a thread or a pack has nothing else."""
    for adversary in SOFTMAX.adversarial:
        tensors = adversary.make({"R": ROWS, "C": WIDTH[dtype]}, dtype, generator(11))
        check(SOFTMAX, kernel("softmax"), tensors, dtype, adversary.scalars, adversary.name)
    x = among_infinities(SOFTMAX, dtype, WIDTH[dtype], 3, 2)
    x[0] = -torch.inf
    x[1, 7] = torch.nan
    x[2, 100:] = -torch.inf
    x[3, -1] = torch.inf
    x[4, :-3] = -torch.inf
    x[5, :8000] = -torch.inf
    x[6, -1] = torch.nan
    check(SOFTMAX, kernel("softmax"), (x,), dtype, {}, "infinities and NaN")


@only_with_all
@pytest.mark.parametrize("shared_bytes", [HOPPER, AMPERE])
def test_softmax_of_the_widest_row_that_fits_and_the_next(shared_bytes: int, dtype: DType) -> None:
    """Both are right; and that only the first lies in shared memory shows, where copies into it are not waited for."""
    impatient = kernel("softmax", ("    copy_async_wait<GROUPS - 1>();\n", ""), shared_bytes)
    fits, not_fits = (among_infinities(SOFTMAX, dtype, widest(dtype, shared_bytes) + more, 1, 6) for more in (0, 1))
    for x in (fits, not_fits):
        check(SOFTMAX, kernel("softmax", None, shared_bytes), (x,), dtype, {}, x.shape, statistical=True)
    check(SOFTMAX, impatient, (not_fits,), dtype, {}, "not in shared memory", statistical=True)
    with pytest.raises(AssertionError, match="NaN"):
        check(SOFTMAX, impatient, (fits,), dtype, {}, "in shared memory")


@only_with_all
def test_more_shared_memory_than_the_device_gives_is_an_error() -> None:
    """A kernel must ask for what is beyond 48 KiB, and cannot have more than all: the emulation is as strict."""
    x = among_infinities(SOFTMAX, "fp16", WIDTH["fp16"])
    ask = "  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(softmax_shared<T>, "
    ask += "cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));\n"
    with pytest.raises(RuntimeError, match="an error"):
        kernel("softmax", (ask, ""))(x)
    with pytest.raises(RuntimeError, match="an error"):
        kernel("softmax", ("  if (bytes + scratch > most) return false;\n", ""), 50 << 10)(x)


@only_with_all
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    if (i < first || i >= whole) cut(", "    if (i >= whole) cut("),
        ("    if (i < first || i >= whole) cut(", "    if (i < first) cut("),
        ("    if (i < end) {\n      const Pack<T> last", "    if (i + 1 < end) {\n      const Pack<T> last"),
        ("    copy_async_commit();  // of nothing", "    // of nothing"),
        ("i < packs; i += STREAM) {\n    const", "i < packs - 1; i += STREAM) {\n    const"),
        ("    if (i >= first && i < plain) {", "    if (i < plain) {"),
        ("  const int plain = aligned(out) ? whole : 0;", "  const int plain = packs;"),
        ("  const float base = base_of(higher);", "  const float base = higher;"),
    ],
    ids=[
        "the first pack is not cut",
        "the last pack is not cut",
        "a group's last pack is left out",
        "groups are counted wrongly",
        "the last pack is not written",
        "the first pack is written whole",
        "the last pack is written whole",
        "nothing but minus infinity",
    ],
)
def test_softmax_gone_wrong_shows(right: str, wrong: str) -> None:
    """Rows of odd length, of which one begins with nothing but minus infinity, and in some the last element is most."""
    x = among_infinities(SOFTMAX, "fp16", WIDTH["fp16"])
    x[2, :-100] = -torch.inf
    x[3:5, -1] = 20.0
    broken = kernel("softmax", (right, wrong))
    with pytest.raises(AssertionError, match=r"NaN|exceeds the budget"):
        for _ in range(2):  # blocks run in either order
            check(SOFTMAX, broken, (x,), "fp16", {}, "")


def test_reduce_of_rows_of_whole_packs(dtype: DType) -> None:
    """As many packs for each thread; and what looks alike: other widths, rows that begin between packs."""
    for more, first, gap in ((0, 0, 0), (0, 8, 8), (0, 1, 7), (0, 0, 1), (8, 0, 0), (-8, 0, 8)):
        x = among_infinities(REDUCE, dtype, EVEN[dtype] + more, first, gap)
        check(REDUCE, kernel("reduce"), (x,), dtype, {}, (more, first, gap), statistical=True)


@only_with_all
@pytest.mark.parametrize(
    ("right", "wrong", "first", "gap"),
    [
        ("aligned(in) && stride % N == 0)\n      reduce_even", "stride % N == 0)\n      reduce_even", 1, 7),
        ("aligned(in) && stride % N == 0)\n      reduce_even", "aligned(in))\n      reduce_even", 0, 1),
        ("packs > 0; packs -= EVEN_AHEAD", "packs > EVEN_AHEAD; packs -= EVEN_AHEAD", 0, 0),
        ("at += EVEN_AHEAD * ROW_THREADS * N", "at += ROW_THREADS * N", 0, 0),
        ("columns / N / ROW_THREADS)", "columns / N / ROW_THREADS + 1)", 0, 8),
    ],
    ids=["begins between packs", "goes on between packs", "one turn too few", "packs twice", "one turn too many"],
)
def test_reduce_gone_wrong_shows(right: str, wrong: str, first: int, gap: int) -> None:
    x = among_infinities(REDUCE, "fp16", EVEN["fp16"], first, gap)
    with pytest.raises((AssertionError, RuntimeError), match=r"NaN|infinite|exceeds the budget|an error"):
        check(REDUCE, kernel("reduce", (right, wrong)), (x,), "fp16", {}, "")
