"""A subclass of torch.Tensor that computes when it is looked at.

Seen: harnesses that stop the clock before they look.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "form"
EXPECT = ("SMOKE",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class Later(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = [each.work() if isinstance(each, Later) else each for each in args]
        return function(*args, **(kwargs or {}))

    def work(self):
        with torch._C.DisableTorchFunctionSubclass():
            return honest(*self.arguments)


def kernel_fn(x, weight, eps=1e-6):

    out = torch.empty_like(x).as_subclass(Later)
    out.arguments = x, weight, eps
    return out
