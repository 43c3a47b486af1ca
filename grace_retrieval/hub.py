"""The hub is asked once, and given up after seconds: the libraries below ask many times, and wait for minutes."""

from __future__ import annotations

import os
import warnings

from grace_retrieval.errors import ModelLoadError

__all__ = ["HUB_OPTIONS", "HUB_SECONDS", "check_hub"]

HUB_OPTIONS = ("token", "revision", "cache_folder", "local_files_only")
"""Arguments of an embedder that `check_hub` takes."""

HUB_SECONDS = 5
"""How long the hub may take to answer the first question."""


def check_hub(
    name: str,
    *,
    token: bool | str | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> bool:
    """Find out whether a model can be had from the hub.

    Args:
        name: A hub name, owner/name.
        token: As for SentenceTransformer.
        revision: Revision of the model.
        cache_folder: Where downloads are kept; None is the usual place.
        local_files_only: Whether the network is not to be used.

    Returns:
        Whether to keep off the network: as it was asked for, or because the hub is out of reach and a copy is here.

    Raises:
        ModelLoadError: If the hub has no such model, or is out of reach and no copy is here.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if local_files_only or constants.HF_HUB_OFFLINE:
        return local_files_only
    if os.environ.get("GRACE_OFFLINE", "") not in ("", "0"):
        return True
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), token=token, timeout=HUB_SECONDS)
        return False
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"The hub has no model {name!r}, or it is private, and there is no such folder under {os.getcwd()}. Check "
            "the name, or give a token (token=..., or HF_TOKEN in the environment)."
        ) from error
    except Exception as error:  # whatever the HTTP library of the day raises about a network that is not there
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            return False  # it answers: no config.json, or a licence to be accepted, which the loading says better
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(try_to_load_from_cache(name, "config.json", cache_dir=cache_folder, revision=revision), str):
        warnings.warn(
            f"The hub ({constants.ENDPOINT}) is out of reach ({reason}): {name} is loaded as it was downloaded before. "
            "Set HF_HUB_OFFLINE=1 to have it so without asking.",
            stacklevel=3,
        )
        return True
    raise ModelLoadError(
        f"{name!r} is no folder under {os.getcwd()}, and the hub ({constants.ENDPOINT}) is out of reach ({reason}); no "
        "copy was downloaded before. Give a folder or a bundled model, or mend the network (proxies: HTTPS_PROXY; a "
        "mirror: HF_ENDPOINT)."
    )
