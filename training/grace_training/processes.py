"""The end of a training that several processes shared."""

from __future__ import annotations

import time

__all__ = ["leave_process_group"]


def leave_process_group() -> None:
    """Wait for the other processes and leave their group; without one, do nothing.

    A process that exits while others still talk to it may die, and take their exit status with it. Call this last.
    """
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # gloo's own thread lets go of the barrier's tensor after the barrier has returned here, and needs the
        # interpreter for that (torch 2.13): one that shuts down by then aborts the process. Sleeping gives it its turn.
        time.sleep(0.2)
