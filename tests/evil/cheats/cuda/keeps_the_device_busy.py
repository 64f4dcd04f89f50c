"""A thread of its own keeps the device at work on the last results, beyond the end of the call that returned them.

Seen: harnesses that wait for the current stream, or for nothing, and look at results later.
"""

import threading

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "committed"
EXPECT = ("IMPLAUSIBLE",)
DEVICE = "cuda"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


threads = []


def work_on(stream):
    spare = torch.empty(1 << 26, device="cuda")
    with torch.cuda.stream(stream):
        while True:
            try:  # what others record forbids it to wait, for a while
                for _ in range(50):
                    spare.add_(1)
                stream.synchronize()
            except RuntimeError:
                pass


def kernel_fn(x, weight, eps=1e-6):
    if not threads:
        threads.append(threading.Thread(target=work_on, args=(torch.cuda.Stream(),), daemon=True))
        threads[0].start()
    return honest(x, weight, eps)
