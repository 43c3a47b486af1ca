"""How many threads torch and FAISS use: what the process may use, a model is worth and others leave, unless told.

torch counts the cores that a process may run on, and knows nothing of the share of them that a container is given: with
a quota of two cores on a host of 64 it starts 64 threads, which wait for each other most of the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from threading import Lock, local
from typing import Any

from grace_retrieval.errors import InputError

__all__ = ["available_cores", "fit_faiss", "fit_torch", "fitted_threads", "hold_torch", "share_cores", "wait_asleep"]

GRACE_THREADS = "GRACE_THREADS"
_OTHERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

_WIDTH = 64
"""Least width of a model for each thread: smaller parts of a product are done before another thread has begun."""

_LOOK_SECONDS = 0.1
"""Seconds between two looks at who else is running; one takes about a hundredth of that."""

_LOOKS = 2
"""Who runs in all of so many moments in a row is there to stay."""

_looked = 0.0
_held = False
"""Whether a program of ours has said how many threads there are to be."""

_here = local()
"""What was set here last in a thread, as OpenMP keeps a number for each."""

_lock = Lock()
_state: tuple[int, int, int] | None = None
"""Threads that torch started with, those that were set here last, and those that the models so far are worth."""


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it may run on, or fewer if a container has a smaller share of time.

    A share is rounded down, and is one core at least.

    Args:
        root: Where /proc and /sys are.
    """
    shares = [float(_affinity()), *_shares(root)]
    return max(1, int(min(shares)))


def fit_torch(width: int | None = None) -> None:
    """Set torch's threads, unless somebody has: by GRACE_THREADS, by OMP_NUM_THREADS, or in Python.

    There are never more than torch started with. A second model may have more of them than the first.

    Args:
        width: Numbers of a hidden state of a model that was loaded; None if there is none yet.

    Raises:
        InputError: If GRACE_THREADS is no positive number.
    """
    import torch

    global _state
    asked = _asked()
    with _lock:
        now = torch.get_num_threads()
        if asked is not None:
            if asked != now:
                torch.set_num_threads(asked)
            return
        if _held or any(os.environ.get(name) for name in _OTHERS) or (_state is None and now not in _defaults()):
            return
        start, last, worth = _state or (now, now, 0)
        if now not in (last, getattr(_here, "last", last)):  # somebody has set them since
            return
        if width is not None:
            worth = max(worth, width // _WIDTH, 1)
        threads = min(start, available_cores(), worth or start)
        _state = (start, threads, worth)
        _here.last = threads
        if threads != now:
            torch.set_num_threads(threads)


def hold_torch(threads: int | None) -> None:
    """Set torch's threads as somebody has asked, and leave them from then on.

    Args:
        threads: How many; None lets them be fitted again.
    """
    import torch

    global _held
    _held = threads is not None
    if threads is not None:
        torch.set_num_threads(threads)


def fitted_threads() -> int:
    """Threads for work of another library: what torch would have if nobody else were running."""
    import torch

    if _state is None:
        return torch.get_num_threads()
    start, _, worth = _state
    return min(start, available_cores(), worth or start)


def share_cores(device: str) -> None:
    """Take as many of torch's threads as others leave cores, before a pass on a CPU; looks ten times a second at most.

    OpenMP's threads wait for each other after every product of matrices, and one whose core somebody else has keeps
    all waiting, busily: two processes of two threads on two cores take several times as long as one after the other.
    Nothing changes where `fit_torch` changes nothing, or where the system does not say who is running.

    Args:
        device: Where the pass runs, such as "cpu"; on another than that nothing changes.
    """
    global _looked, _state
    if device != "cpu" or _state is None or _held or time.monotonic() - _looked < _LOOK_SECONDS or _asked() is not None:
        return
    import torch

    with _lock:
        _looked = time.monotonic()
        start, last, worth = _state
        now = torch.get_num_threads()
        if now not in (last, getattr(_here, "last", last)):  # somebody has set them since
            return
        threads = most = min(start, available_cores(), worth or start)
        cores = os.cpu_count() or 1
        # With cores of its own it cannot be seen who else is running on these.
        if most > 1 and _affinity() == cores:
            threads = max(1, min(most, cores - others_running()))
        _state = (start, threads, worth)
        _here.last = threads
        if threads != now:
            torch.set_num_threads(threads)


def others_running(root: Path = Path("/")) -> int:
    """Threads of other processes that want a core now and for some milliseconds more; 0 where nobody says.

    Args:
        root: Where /proc is.
    """
    seen = []
    for look in range(_LOOKS):
        if look:
            time.sleep(0.001)
        running = _read(root / "proc/loadavg").split()[3:4]
        if not running:
            return 0
        tasks = (_read(path) for path in (root / "proc/self/task").glob("*/stat"))
        # The name before the state is in brackets, and may hold any.
        own = sum(task.rpartition(")")[2].split()[:1] == ["R"] for task in tasks)
        total = "".join(running).partition("/")[0]
        seen.append(int(total) - own if total.isdigit() else 0)
    return max(0, min(seen))


def _after_fork() -> None:
    """OpenMP's threads do not come along: a child keeps the one that the engine gives it."""
    global _state, _lock
    _state, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def fit_faiss(faiss: Any) -> None:
    """Set FAISS's threads once, unless somebody has.

    Args:
        faiss: The module.

    Raises:
        InputError: If GRACE_THREADS is no positive number.
    """
    if (asked := _asked()) is not None:
        faiss.omp_set_num_threads(asked)
    elif not any(os.environ.get(name) for name in _OTHERS):
        now = faiss.omp_get_max_threads()
        if now in _defaults() and now > available_cores():
            faiss.omp_set_num_threads(available_cores())


def wait_asleep() -> None:
    """Let OpenMP's threads sleep soon when they wait for each other, instead of keeping a core busy for milliseconds.

    For programs, before torch is imported: OpenMP reads these variables once. Whatever is set already stays.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ.update(GOMP_SPINCOUNT="10000", KMP_BLOCKTIME="1")


def _asked() -> int | None:
    given = os.environ.get(GRACE_THREADS, "").strip()
    if not given:
        return None
    if not given.isascii() or not given.isdigit() or int(given) < 1:
        raise InputError(f"{GRACE_THREADS}={given!r}: give a positive whole number of threads, or unset it.")
    return int(given)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


@cache
def _defaults() -> frozenset[int]:
    """Threads that torch or FAISS may have started with: as many as cores, those of two threads each counted once."""
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    physical = {_read(path) for path in siblings}
    return frozenset({_affinity(), os.cpu_count() or 1, len(physical) or 1})


def _shares(root: Path) -> Iterator[float]:
    """Quotas of the process's control groups and all that they are in, in cores (versions 1 and 2, Linux)."""
    groups = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for folder in _upwards(groups, path):
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _share(quota, period)
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu"):
                for folder in _upwards(groups / name, path):
                    yield from _share(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A control group's folder and those above it; in a container the mount itself may be the group."""
    folder = Path(os.path.normpath(mount / path.strip("/")))
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _share(quota: str, period: str) -> Iterator[float]:
    try:
        if int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except ValueError:  # "max", or not there
        return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
