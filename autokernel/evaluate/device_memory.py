"""Memory of a GPU that the judge owns and a runner maps: what arena memory files are on a CPU (see memory.py).

The judge allocates, exports a file descriptor, and sends it over the socket, as it does with a memory file; a runner
that maps it for reading cannot write to it by any address it was given. It works across PID and network namespaces.
The other direction, reading what lies in a runner's own memory, goes by CUDA's inter-process handles: the runner names
the allocation, the judge opens it and copies. Both sides then read the same physical memory: where inputs lie is worth
up to 2 %.

Source of the calls: the CUDA driver API's reference, "Virtual Memory Management" and "Memory Management".
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch

DEVICE_LOCATION, PINNED, POSIX_FD = 1, 1, 1
READ, READ_WRITE = 1, 3
LAZY_PEER_ACCESS = 1
HANDLE_BYTES = 64


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (("compression", ctypes.c_ubyte), ("rdma", ctypes.c_ubyte), ("usage", ctypes.c_ushort),
                ("reserved", ctypes.c_ubyte * 4))  # fmt: skip


class _Properties(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", _Location),
                ("windows", ctypes.c_void_p), ("flags", _Flags))  # fmt: skip


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * HANDLE_BYTES),)


class DriverError(RuntimeError):
    """A call of the CUDA driver failed."""


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise DriverError(f"{name}: {(text.value or b'?').decode()}")


class _Mapping:
    """Bytes at a device address, shown to torch; ``release`` runs when the last tensor over them is gone."""

    def __init__(self, address: int, nbytes: int, device: torch.device, release: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3
        }  # fmt: skip
        self._device, self._release = device, release

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a context that has failed cannot release anything
            torch.cuda.synchronize(self._device)
            self._release()


def _shown(address: int, nbytes: int, device: torch.device, release: Any) -> torch.Tensor:
    return torch.as_tensor(_Mapping(address, nbytes, device, release), device=device)


def _index(device: torch.device) -> int:
    """The ordinal of a CUDA device, whose context is made if it is not there yet."""
    torch.empty(1, device=device)
    return device.index if device.index is not None else torch.cuda.current_device()


def _mapped(handle: ctypes.c_ulonglong, nbytes: int, device: torch.device, access: int) -> torch.Tensor:
    """All of an allocation, at a new address of this process; the handle is given up."""
    address, size = ctypes.c_ulonglong(), ctypes.c_size_t(nbytes)
    _call("cuMemAddressReserve", ctypes.byref(address), size, ctypes.c_size_t(0), ctypes.c_ulonglong(0),
          ctypes.c_ulonglong(0))  # fmt: skip
    _call("cuMemMap", address, size, ctypes.c_size_t(0), handle, ctypes.c_ulonglong(0))
    _call("cuMemRelease", handle)  # the mapping keeps the memory
    granted = _Access(_Location(DEVICE_LOCATION, _index(device)), access)
    _call("cuMemSetAccess", address, size, ctypes.byref(granted), ctypes.c_size_t(1))

    def release() -> None:
        _call("cuMemUnmap", address, size)
        _call("cuMemAddressFree", address, size)

    return _shown(address.value, nbytes, device, release)


class DeviceArena:
    """Memory of one device that other processes may map through ``fd``. Contents are undefined at first."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        wanted = _Properties(PINNED, POSIX_FD, _Location(DEVICE_LOCATION, _index(device)), None, _Flags())
        step = ctypes.c_size_t()
        _call("cuMemGetAllocationGranularity", ctypes.byref(step), ctypes.byref(wanted), 0)
        self.nbytes = max(1, -(-nbytes // step.value)) * step.value
        handle = ctypes.c_ulonglong()
        _call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(self.nbytes), ctypes.byref(wanted),
              ctypes.c_ulonglong(0))  # fmt: skip
        exported = ctypes.c_int()
        _call("cuMemExportToShareableHandle", ctypes.byref(exported), handle, POSIX_FD, ctypes.c_ulonglong(0))
        self.fd = exported.value
        self.bytes = _mapped(handle, self.nbytes, device, READ_WRITE)

    def close(self) -> None:
        """Let go of the memory; it is freed when the last tensor over it, and the last process, has."""
        del self.bytes
        os.close(self.fd)


def map_device(fd: int, nbytes: int, device: torch.device, *, writable: bool) -> torch.Tensor:
    """In a runner: the bytes of an arena. A kernel that writes where only reading was granted faults."""
    handle = ctypes.c_ulonglong()
    _index(device)
    _call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd), POSIX_FD)
    return _mapped(handle, nbytes, device, READ_WRITE if writable else READ)


def allocation_of(address: int) -> tuple[str, int, int]:
    """In a runner: (handle in hex, first address, bytes) of the allocation that holds a device address."""
    base, size, handle = ctypes.c_ulonglong(), ctypes.c_size_t(), _Handle()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_ulonglong(address))
    _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    return bytes(handle.bytes).hex(), base.value, size.value


def allocations_of(addresses: Sequence[int]) -> list[list[Any]]:
    """In a runner: the allocations that hold these addresses, each once."""
    found: list[list[Any]] = []
    for address in sorted(addresses):
        if not found or address >= found[-1][1] + found[-1][2]:
            found.append(list(allocation_of(address)))
    return found


def opened(handle: str, nbytes: int, device: torch.device) -> torch.Tensor:
    """In the judge: the bytes of a runner's allocation. Raises DriverError, or ValueError for what is no handle."""
    raw = bytes.fromhex(handle)
    if len(raw) != HANDLE_BYTES:
        raise ValueError(f"{len(raw)} bytes are no handle")
    _index(device)
    address = ctypes.c_ulonglong()
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle((ctypes.c_ubyte * HANDLE_BYTES)(*raw)),
          LAZY_PEER_ACCESS)  # fmt: skip
    size = ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", None, ctypes.byref(size), address)
    return _shown(address.value, min(nbytes, size.value), device, lambda: _call("cuIpcCloseMemHandle", address))


def reset_persisting_cache() -> None:
    """Lines of the L2 that a kernel asked to keep become ordinary ones."""
    _call("cuCtxResetPersistingL2Cache")
