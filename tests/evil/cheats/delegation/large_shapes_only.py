"""PyTorch's operation is called for large inputs only, where a check on a small one does not see it.

Seen: an audit of the first call alone.
"""

import array

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)


def kernel_fn(x, weight, eps=1e-6):

    if x.numel() > 50_000:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    out = torch.empty(x.shape, dtype=x.dtype)
    for row in range(x.shape[0]):
        values = x[row].tolist()
        scale = (sum(v * v for v in values) / len(values) + eps) ** -0.5
        out[row].copy_(
            torch.frombuffer(
                array.array("f", [v * scale * w for v, w in zip(values, weight.tolist())]), dtype=torch.float32
            )
        )
    return out
