"""One kernel as PyTorch sees it: its own output, aligned, with a gradient where one is needed and not elsewhere."""

from __future__ import annotations

import pytest
import torch

from autokernel.engage.kernel import ALIGNMENT_BYTES, Kernel
from autokernel.engage.won import Won
from autokernel.types import Target, Workload

HEAD = "import torch\n\nKERNEL_TYPE = 'rmsnorm'\nBACKEND = 'torch'\n\n\ndef kernel_fn(x, weight, eps=1e-6):\n"
RIGHT = "    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight\n"


def kernel(body: str = RIGHT, head: str = HEAD) -> Kernel:
    work = Workload({"R": 4, "C": 8}, "fp32")
    return Kernel.of(Won(Target("rmsnorm", "rmsnorm", "torch", (work,), 0.5, 1.0, 1.0), head + body, "0" * 40, 1, 2.0))


def inputs(**options: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 8, **options), torch.rand(8) + 0.5  # type: ignore[arg-type]


def test_the_operator_obeys_pytorchs_rules_for_operators() -> None:
    found = torch.library.opcheck(kernel().op, (*inputs(), 1e-6), test_utils=("test_schema", "test_faketensor"))
    assert set(found.values()) == {"SUCCESS"}


def test_a_gradient_is_made_where_one_is_needed_and_nowhere_else() -> None:
    own, (x, weight) = kernel(), inputs(requires_grad=True)
    for out in (own((x.detach(), weight), {}), own.op(x.detach(), weight, 1e-6)):
        assert out.grad_fn is None
    with torch.no_grad():
        assert own((x, weight), {}).grad_fn is None
    assert torch.autograd.gradcheck(
        lambda a, b: own((a, b), {"eps": 1e-3}),
        (x.detach().double().requires_grad_(), weight.double().requires_grad_()),
    )


def test_scalars_are_the_problems_own_unless_they_are_given() -> None:
    x, weight = inputs()
    for head in (HEAD, HEAD.replace("weight, eps", "weight, *, eps")):
        own = kernel(head=head)
        assert not torch.allclose(own((x, weight), {}), own((x, weight), {"eps": 10.0}))
        assert torch.equal(own((x, weight), {"eps": 10.0}), own.op(x, weight, 10.0))


def test_an_output_is_a_tensor_of_its_own() -> None:
    """A kernel that gives back its input would have the model's next in-place operation write into both."""
    x, weight = inputs()
    out = kernel("    return x\n")((x, weight), {})
    out.zero_()
    assert float(x.abs().sum()) > 0


def test_an_output_is_aligned() -> None:
    """Inductor's own kernels count on it."""
    x, weight = inputs()
    body = "    space = torch.zeros(x.numel() + 1)\n    space[1:] = x.flatten()\n    return space[1:].view(x.shape)\n"
    out = kernel(body)((x, weight), {})
    assert out.data_ptr() % ALIGNMENT_BYTES == 0 and torch.equal(out, x)


def test_an_input_that_is_not_aligned_goes_to_the_reference_and_is_counted() -> None:
    own, (x, weight) = kernel("    raise AssertionError('not for this one')\n"), inputs()
    space = torch.zeros(x.numel() + 1)
    space[1:] = x.flatten()
    before = own.calls
    assert torch.allclose(own((space[1:].view(4, 8), weight), {}), kernel()((x, weight), {}))
    assert own.calls == before and own.refused["an input is not aligned to 16 bytes"] == 1


@pytest.mark.parametrize("requires_grad", [False, True])
def test_under_autocast_a_kernel_sees_none(requires_grad: bool) -> None:
    own = kernel("    assert not torch.is_autocast_enabled('cpu')\n" + RIGHT)
    x, weight = inputs(requires_grad=requires_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = own((x, weight), {})
    assert out.dtype == torch.float32
    if requires_grad:
        out.sum().backward()
        assert x.grad is not None and x.grad.dtype == torch.float32
