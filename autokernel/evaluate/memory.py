"""Tensors in memory that the judge creates and a runner maps: nothing is copied, nothing is left behind.

On a CPU they lie in memory files; on a GPU in memory of the device (see device_memory.py).

A memory file (memfd) has no name in any file system and vanishes with the last process that holds it, so a killed
runner or judge leaves no segment. Files of inputs are sealed: the judge's mapping stays writable, and every other
mapping can only read, so a kernel that writes to its inputs dies of SIGSEGV instead of corrupting them.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from autokernel.evaluate.device_memory import DeviceArena, map_device

ALIGNMENT = 4096
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE = 1033, 2, 4, 16
MAP_FLAGS = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0x8000)  # no page fault inside a timed call
_KNOWN = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
DTYPES = {str(d).removeprefix("torch."): d for d in _KNOWN}


def extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """Elements of storage that a tensor of this size and these strides spans."""
    if any(n == 0 for n in size):
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def padded(nbytes: int) -> int:
    return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)


def relaid(tensor: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """A tensor with the values of ``tensor`` and these strides (0 repeats the first slice of a dimension)."""
    span = extent(tensor.shape, stride)
    out = torch.empty(span, dtype=tensor.dtype, device=tensor.device).as_strided(tensor.shape, stride)
    target, source = out, tensor
    for dim, step in enumerate(stride):
        if step == 0 and tensor.shape[dim] > 1:
            target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    target.copy_(source)
    return out


class Arena:
    """One memory file, mapped. ``read_only`` says what other processes may do with it."""

    def __init__(self, nbytes: int, *, read_only: bool) -> None:
        self.nbytes = padded(nbytes)
        self.fd = os.memfd_create("autokernel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.nbytes)
        self._map = mmap.mmap(self.fd, self.nbytes)
        fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | (F_SEAL_FUTURE_WRITE if read_only else 0))
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def close(self) -> None:
        del self.bytes
        with contextlib.suppress(BufferError):  # a tensor of ours still views it: it goes when that does
            self._map.close()
        os.close(self.fd)


SharedMemory = Arena | DeviceArena


def shared_memory(nbytes: int, device: torch.device, *, read_only: bool) -> SharedMemory:
    """Memory that the judge shares with runners on this device. ``bytes`` is a tensor of all of it [nbytes], uint8;
    ``fd`` is what a runner maps it by.
    """
    return Arena(nbytes, read_only=read_only) if device.type == "cpu" else DeviceArena(nbytes, device)


def strided_view(
    raw: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    count = extent(size, stride)
    flat = raw[offset : offset + count * dtype.itemsize].view(dtype)
    return flat.as_strided(tuple(size), tuple(stride))


class InputSets:
    """Sets of input tensors for one problem, equal in layout, in one sealed arena, each tensor at a page boundary; on
    the device of the first tensor.

    ``layout`` describes the tensors of the first set; set ``i`` lies ``i * set_bytes`` further on. ``place`` gives the
    memory, of at least so many bytes, where it is not to be new; whoever gave it closes it.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[torch.Tensor]],
        *,
        sealed: bool = True,
        place: Callable[[int], SharedMemory] | None = None,
    ) -> None:
        self.sealed = sealed
        self.layout: list[dict[str, Any]] = []
        self.set_bytes = 0
        for tensor in sets[0]:
            self.layout.append(
                {
                    "offset": self.set_bytes,
                    "size": list(tensor.shape),
                    "stride": list(tensor.stride()),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                }
            )
            self.set_bytes += padded(extent(tensor.shape, tensor.stride()) * tensor.element_size())
        device = sets[0][0].device if sets[0] else torch.device("cpu")
        self._own = place is None
        nbytes = self.set_bytes * len(sets)
        self.arena = place(nbytes) if place else shared_memory(nbytes, device, read_only=sealed)
        self.tensors = [tensors_of(self.arena.bytes, self.layout, i * self.set_bytes) for i in range(len(sets))]
        for ours, theirs in zip(self.tensors, sets, strict=True):
            for mine, drawn in zip(ours, theirs, strict=True):
                flat(mine).copy_(flat(drawn))
        settle(device)

    def mix(self, index: int, first: int, windows: Sequence[torch.Tensor], share: float) -> None:
        """Overwrite input ``index`` of the sets from ``first`` on: storage elements of set ``first + i`` become
        ``windows[0][i] + share * windows[1][i]``; both windows are [sets, storage elements].
        """
        entry = self.layout[index]
        dtype = DTYPES[entry["dtype"]]
        step = self.set_bytes // dtype.itemsize
        target = self.arena.bytes.view(dtype).as_strided(
            tuple(windows[0].shape), (step, 1), first * step + entry["offset"] // dtype.itemsize
        )
        torch.add(windows[0], windows[1], alpha=share, out=target)

    def close(self) -> None:
        self.tensors = []
        if self._own:
            self.arena.close()


def settle(device: torch.device) -> None:
    """Wait until what was asked of the device is done: another process is about to look at it."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The storage elements that a tensor spans, as one dimension."""
    return tensor.as_strided((extent(tensor.shape, tensor.stride()),), (1,))


def map_readable(fd: int, nbytes: int, device: torch.device, *, sealed: bool = True) -> torch.Tensor:
    """In a runner: the bytes of a sealed arena, read-only. A write through the tensor ends the process."""
    if device.type != "cpu":
        return map_device(fd, nbytes, device, writable=not sealed)
    import warnings

    mapped = mmap.mmap(fd, nbytes, flags=MAP_FLAGS, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the buffer is read-only: that is the point
        return torch.frombuffer(mapped, dtype=torch.uint8)


def map_writable(fd: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """In a runner: the bytes of an output arena."""
    if device.type != "cpu":
        return map_device(fd, nbytes, device, writable=True)
    return torch.frombuffer(mmap.mmap(fd, nbytes, flags=MAP_FLAGS), dtype=torch.uint8)


def tensors_of(raw: torch.Tensor, layout: Sequence[Mapping[str, Any]], base: int = 0) -> tuple[torch.Tensor, ...]:
    """The tensors that a layout describes over mapped bytes, ``base`` bytes further on."""
    return tuple(strided_view(raw, base + e["offset"], e["size"], e["stride"], DTYPES[e["dtype"]]) for e in layout)
