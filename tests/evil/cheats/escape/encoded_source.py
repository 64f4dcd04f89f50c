"""The kernel is a string in base64, and runs through exec.

Seen: scanners of source text.
"""

import base64

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)


exec(
    base64.b64decode(
        b"ZGVmIGhpZGRlbih4LCB3ZWlnaHQsIGVwcyk6CiAgICByZXR1cm4gdG9yY2gubm4uZnVuY3Rpb25hbC5ybXNfbm9ybSh4LmZsb2F0KCksIHdlaWdodC5zaGFwZSwgd2VpZ2h0LmZsb2F0KCksIGVwcykudG8oeC5kdHlwZSkK"
    )
)


def kernel_fn(x, weight, eps=1e-6):
    return hidden(x, weight, eps)
