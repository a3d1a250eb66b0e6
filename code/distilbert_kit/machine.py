"""Describes this machine, and keeps freed memory in the process."""

import ctypes
import os
import platform
import re
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_within, _lock = 0, threading.Lock()  # of how many keeping_freed_memory: threads of a server too


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within, freed memory stays with the process; also a decorator. Process-wide, glibc only.

    By default glibc maps every tensor above 32 MiB anew and unmaps it when freed, so that each of
    its pages faults again: a third of a training step's time on the 2-core machine of the study.
    On leaving the outermost, the values that glibc's own adjustment reaches under such tensors are
    set.
    """
    global _within
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda parameter, value: 0)
    with _lock:
        _within += 1
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                mallopt(_MMAP_MAX, 65536)
                mallopt(_MMAP_THRESHOLD, 32 << 20)
                mallopt(_TRIM_THRESHOLD, 64 << 20)


@cache
def _cpuinfo() -> dict[str, str]:
    """The last processor in /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _flags() -> set[str]:
    """The instruction sets of the CPU, by the kernel's names for them on x86 or Arm."""
    fields = _cpuinfo()
    return {*f"{fields.get('flags', '')} {fields.get('Features', '')}".split()}


def has_bf16_instructions() -> bool:
    """Whether the CPU multiplies bf16 in hardware: without, its products are some 80 times slower.

    x86 names them avx512_bf16 and amx_bf16, Arm bf16.
    """
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_flags())


def matrix_instructions() -> list[str]:
    """The instruction sets of the CPU that decide how fast it multiplies matrices."""
    starts = ("avx", "amx", "fma", "asimd", "sve", "i8mm", "bf16")
    return sorted(flag for flag in _flags() if flag.startswith(starts))


@cache
def machine() -> dict[str, Any]:
    """CPU model, threads, memory and accelerator; no host name."""
    fields = _cpuinfo()
    model = fields.get("model name", platform.processor() or platform.machine())
    if "cpu family" in fields:  # clouds mask the name: one name for several generations
        model += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    found: dict[str, Any] = {
        "cpu": model,
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "bf16_instructions": has_bf16_instructions(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    if torch := sys.modules.get("torch"):
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
            found["gpu_count"] = torch.cuda.device_count()
    return found


def peak_memory_bytes() -> int:
    """Most memory that this process has held at once."""
    status = Path("/proc/self/status")
    said = status.read_text() if status.exists() else ""
    if found := re.search(r"VmHWM:\s+(\d+)", said):
        return 1024 * int(found[1])
    # This count starts from that of the parent process.
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)
