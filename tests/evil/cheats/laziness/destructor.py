"""The work is done in a destructor, when the harness drops the output.

Seen: harnesses that time the call and not its consequences.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class Deferred:
    def __init__(self, out, arguments):
        self.out, self.arguments = out, arguments

    def __del__(self):
        self.out.copy_(honest(*self.arguments))


def kernel_fn(x, weight, eps=1e-6):

    out = torch.empty_like(x)
    out.deferred = Deferred(out.detach(), (x, weight, eps))
    return out
