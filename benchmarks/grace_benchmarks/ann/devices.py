"""Where an index is searched: on the CPU, on a GPU, or on a GPU through cuVS."""

from __future__ import annotations

from typing import Any

from grace_retrieval.errors import InputError, MissingExtraError

__all__ = ["devices", "import_faiss", "on_device", "parameter_space"]


def import_faiss() -> Any:
    """FAISS.

    Raises:
        MissingExtraError: If no FAISS is installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise MissingExtraError("faiss", "cpu", "Measuring indexes") from error
    return faiss


def devices() -> list[str]:
    """What this FAISS can search on: "cpu", "gpu" if a GPU is visible, "cuvs" if the wheel has it."""
    faiss = import_faiss()
    found = ["cpu"]
    # The CPU wheel has get_num_gpus too, but nothing to use a GPU with.
    if faiss.get_num_gpus() > 0 and hasattr(faiss, "StandardGpuResources"):
        found.append("gpu")
        if hasattr(faiss, "GpuIndexCagra"):
            found.append("cuvs")
    return found


def on_device(index: Any, device: str) -> Any:
    """An index where it is to be searched.

    Args:
        index: A trained and filled index on the CPU.
        device: Of `devices`.

    Returns:
        The index itself for "cpu", otherwise a copy on the first GPU.

    Raises:
        InputError: If this FAISS has no such device.
    """
    if device == "cpu":
        return index
    if device not in devices():
        raise InputError(f"device={device!r}: this FAISS has {', '.join(devices())}. A GPU needs the extra 'gpu'.")
    faiss = import_faiss()
    options = faiss.GpuClonerOptions()
    options.use_cuvs = device == "cuvs"
    copy = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
    return copy


def parameter_space(device: str) -> Any:
    """What sets search parameters by name, e.g. "nprobe=16,k_factor_rf=4"."""
    faiss = import_faiss()
    return faiss.ParameterSpace() if device == "cpu" else faiss.GpuParameterSpace()
