"""What lies in the memory for handing back results is returned.

Seen: harnesses that reuse one output buffer.
"""

import sys

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def runner():
    """The runner that called, found among the callers' variables."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self", frame.f_locals.get("runner"))
        if type(found).__name__ == "Runner":
            return found
        frame = frame.f_back
    return None


def kernel_fn(x, weight, eps=1e-6):

    here = runner()
    raw = here.output_bytes[: x.numel() * x.element_size()]
    return raw.view(x.dtype).reshape(x.shape).clone()
