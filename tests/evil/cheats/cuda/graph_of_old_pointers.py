"""A CUDA graph captured on the first inputs of a shape is replayed for all that follow.

Seen: harnesses that capture once and check once.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SHAPES", "STABILITY", "DETERMINISM", "EDGES", "IMPLAUSIBLE")
DEVICE = "cuda"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


graphs = {}


def kernel_fn(x, weight, eps=1e-6):

    key = x.shape, x.dtype, eps
    if key not in graphs and x.numel():
        honest(x, weight, eps)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = honest(x, weight, eps)
        graphs[key] = graph, out
    if not x.numel():
        return honest(x, weight, eps)
    graphs[key][0].replay()
    return graphs[key][1].clone()
