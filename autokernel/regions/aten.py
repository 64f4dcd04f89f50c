"""A function of tensors as the few elementary aten operations that it comes down to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
VIEWS = frozenset(
    "view _unsafe_view reshape expand unsqueeze squeeze permute transpose t alias detach slice select as_strided "
    "split split_with_sizes unbind lift_fresh_copy clone _to_copy scalar_tensor full".split()
)
_ALSO = (
    aten._softmax, aten._log_softmax, aten.native_layer_norm, aten.native_group_norm, aten.gelu, aten.elu,
    aten.leaky_relu, aten.var, aten.var_mean, aten.std, aten.linalg_vector_norm, aten.softplus, aten.hardswish,
    aten.hardsigmoid, aten.silu, aten.mish, aten.glu, aten.logsumexp, aten.masked_fill, aten.addcmul, aten.addcdiv,
    aten.lerp, aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.clamp_min, aten.clamp_max, aten.hardtanh,
    aten.celu, aten.selu, aten.rsub, aten.square, aten.log_sigmoid_forward, aten.soft_margin_loss, aten.xlogy,
    aten.dropout, aten.threshold, aten.mean, aten.rms_norm, aten.prelu,
    aten._native_batch_norm_legit_no_training, aten.native_batch_norm, aten._batch_norm_with_update,
)  # fmt: skip


def traced(function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> fx.Graph:
    """The graph of a call, decomposed; each node's ``meta["val"]`` is a tensor of its shape and dtype, without data.
    May raise whatever the function raises.
    """
    known = {op for op in _ALSO if op is not None}
    table = {**core_aten_decompositions(), **get_decompositions(list(known))}
    with torch.no_grad():
        graph: fx.Graph = make_fx(function, tracing_mode="fake", decomposition_table=table)(*tensors).graph
    graph.eliminate_dead_code()
    return graph


def name_of(node: fx.Node) -> str:
    """The operation of a decomposed node: "mul" for aten.mul.Tensor."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def work(function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Iterator[int]:
    """For each operation that computes, the elements of the largest tensor that it reads or writes."""
    for node in traced(function, tensors).nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or name_of(node) in VIEWS or not isinstance(value, torch.Tensor):
            continue
        read = [i.meta["val"] for i in node.all_input_nodes if isinstance(i.meta.get("val"), torch.Tensor)]
        yield max(t.numel() for t in (value, *read))
