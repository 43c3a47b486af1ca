"""Peak memory of this process, from a moment on.

On Linux the kernel's high-water mark is read and reset (/proc/self: VmHWM, clear_refs). `getrusage` would not do: a
child inherits the mark of the process that started it. Elsewhere the mark cannot be reset, and it is all there is.
"""

from __future__ import annotations

import resource
import sys

__all__ = ["peak_bytes", "reset_peak", "resident_bytes"]


def reset_peak() -> None:
    """Let the peak start from what is resident now; without effect where the system has no way to."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Most bytes that were resident since `reset_peak`, or since the process began where that has no effect."""
    found = _status("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Bytes that are resident now; the peak where the system does not say."""
    found = _status("VmRSS")
    return peak_bytes() if found is None else found


def _status(name: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:")), None)
    except OSError:
        return None
