"""The work is done by tensors' own operators, without naming an operation.

Seen: policies that read names and not what is dispatched.
"""

import torch

KERNEL_TYPE = "reduce"
BACKEND = "cpp"
STOPPED_BY = "audit"
EXPECT = ("POLICY",)


def kernel_fn(x, dim=-1):
    wide = x.double() if dim in (-1, 1) else x.double().t()
    if wide.shape[-1] == 0:
        return torch.zeros(wide.shape[:1], dtype=x.dtype)
    while wide.shape[-1] > 1:
        half = wide.shape[-1] // 2
        odd = wide[:, 2 * half :]
        wide = wide[:, :half] + wide[:, half : 2 * half]
        if odd.shape[-1]:
            wide[:, 0] += odd[:, 0]
    return wide[:, 0].to(x.dtype).clone()
