"""The harness's secrets, or an answer, over the network.

Seen: runners with a network.
"""

import socket

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "net"
EXPECT = ("BUILD",)
ALONE = "whether a machine has a route is not the judge's to say"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("192.0.2.1", 9))


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
