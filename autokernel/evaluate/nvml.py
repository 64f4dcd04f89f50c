"""What the driver says of a GPU around a measurement: clocks, throttling, temperature, whose processes are on it.

Read through NVML (the library behind nvidia-smi), which only looks: nothing here changes a setting, and no CUDA context
is opened. Standard library, psutil and nvidia-ml-py only: no torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import pynvml

# Reasons for which the hardware, or heat, takes clocks away. All others are ordinary: idle, a clock that its owner set,
# and the power cap, which every large matrix product reaches.
THROTTLING: Mapping[int, str] = {
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "thermal slowdown by the driver",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "thermal slowdown by the hardware",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
# Nanoseconds that the driver has counted for some of them, so that what comes and goes between two looks shows as well.
COUNTED: Mapping[int, str] = {
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: "thermal slowdown by the driver",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: "thermal slowdown by the hardware",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: "power brake",
}


@dataclasses.dataclass(frozen=True)
class Conditions:
    """One look at a GPU. What the driver does not tell is None: unknown, which is neither good nor bad.

    ``throttled``: why clocks are taken away, now or at some time since the last look (empty: they are not); a block
    that was timed meanwhile is void. ``power_capped``: the power limit holds clocks down, which is ordinary and only
    recorded. ``foreign``: process ids on this GPU that are neither this process nor below it; None where the driver's
    list does not show this process itself, and so speaks of other ids than ours or hides them. ``listed``: that list as
    it came. Clocks in MHz, temperature in °C.
    """

    throttled: tuple[str, ...] | None
    power_capped: bool | None
    foreign: tuple[int, ...] | None
    listed: tuple[int, ...] | None
    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None


class Watch:
    """Looks at one GPU. ``device`` is a torch device string ("cuda", "cuda:1"), counted as CUDA_VISIBLE_DEVICES counts;
    ``uuid`` (``str(torch.cuda.get_device_properties(device).uuid)``) names it where devices of different kinds are
    ordered otherwise. ``missing`` says why there is nothing to look at ("" where there is).

    A look before and one after a block: the block is void when the one after says ``throttled``, or when ``foreign`` of
    either is not empty. This process must hold a CUDA context for ``foreign`` to be known.
    """

    def __init__(self, device: str, uuid: str = "") -> None:
        self.missing = ""
        self._handle: Any = None
        self._counters: dict[int, int] = {}
        if not device.startswith("cuda"):
            self.missing = f"{device} is no GPU"
            return
        try:
            pynvml.nvmlInit()
            self._handle = _handle(device, uuid)
        except pynvml.NVMLError as error:
            self.missing = f"NVML: {error}"
            return
        self._counters = self._counted()

    def look(self) -> Conditions | None:
        """How the GPU is now; None where there is nothing to look at. A few system calls, and no work on the GPU."""
        if self._handle is None:
            return None
        reasons = _told(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self._handle)
        counters, before = self._counted(), self._counters
        self._counters = counters
        since = {COUNTED[field] for field, ns in counters.items() if ns > before.get(field, ns)}
        now = {name for bit, name in THROTTLING.items() if reasons is not None and reasons & bit}
        listed = self._listed()
        return Conditions(
            throttled=tuple(sorted(now | since)) if reasons is not None or counters else None,
            power_capped=None if reasons is None else bool(reasons & pynvml.nvmlClocksEventReasonSwPowerCap),
            foreign=foreign(listed, os.getpid()),
            listed=listed,
            sm_mhz=_told(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_SM),
            memory_mhz=_told(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_MEM),
            temperature_c=_told(pynvml.nvmlDeviceGetTemperature, self._handle, pynvml.NVML_TEMPERATURE_GPU),
        )

    def _counted(self) -> dict[int, int]:
        values = _told(pynvml.nvmlDeviceGetFieldValues, self._handle, list(COUNTED)) or ()
        return {v.fieldId: int(v.value.ullVal) for v in values if v.nvmlReturn == pynvml.NVML_SUCCESS}

    def _listed(self) -> tuple[int, ...] | None:
        found = _told(pynvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        return None if found is None else tuple(sorted({int(process.pid) for process in found}))


def foreign(listed: tuple[int, ...] | None, own: int) -> tuple[int, ...] | None:
    """Those of the listed process ids that are neither ``own`` nor descend from it; None where ``own`` is not listed.

    A driver may count processes in another namespace than ours, or list none of them: then nothing follows from it.
    """
    if listed is None or own not in listed:
        return None
    return tuple(pid for pid in listed if pid != own and not _descends(pid, own))


def _descends(pid: int, ancestor: int) -> bool:
    try:
        return any(parent.pid == ancestor for parent in psutil.Process(pid).parents())
    except psutil.Error:  # not of this namespace, or gone
        return False


def _handle(device: str, uuid: str) -> Any:
    """NVML's handle of a device. Raises NVMLError."""
    if not uuid:
        index = device.partition(":")[2] or "0"
        visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
        chosen = (visible[int(index)] if int(index) < len(visible) else "") if visible else index
        if chosen.isdigit():
            return pynvml.nvmlDeviceGetHandleByIndex(int(chosen))
        uuid = chosen
    wanted = uuid.removeprefix("GPU-")  # CUDA takes the beginning of one as well
    for position in range(pynvml.nvmlDeviceGetCount() if wanted else 0):
        handle = pynvml.nvmlDeviceGetHandleByIndex(position)
        if pynvml.nvmlDeviceGetUUID(handle).removeprefix("GPU-").startswith(wanted):
            return handle
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)  # a part of a GPU (MIG-...), or none


def _told(question: Callable[..., Any], *arguments: Any) -> Any:
    """The driver's answer, or None where it has none: not every GPU, driver and sandbox knows every question."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None
