"""The kernel is a method of an object that was built at import."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


class Norm:
    def __init__(self, power):
        self.power = power

    def __call__(self, x, weight, eps):
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + eps).pow(self.power) * weight).to(x.dtype)


NORM = Norm(-0.5)


def kernel_fn(x, weight, eps=1e-6):
    return NORM(x, weight, eps)
