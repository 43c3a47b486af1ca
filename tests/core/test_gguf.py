"""Models in GGUF files: the model must be the file's, and everything that cannot be is refused by name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grace_retrieval import GraceEmbedder, GraceIndex
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import ModelLoadError
from grace_retrieval.gguf import architectures, convert
from grace_retrieval.gguf.convert import convert_gguf
from grace_retrieval.indexing import build_index
from grace_retrieval.loading import load_policy, resolve_model
from tests.core.gguf_files import (
    CONFIGS,
    HARD_TEXTS,
    make_model,
    sentencepiece_vocabulary,
    train_byte_level,
    write_gguf,
)

QUIET = {"cache": None, "max_new_tokens": 4, "max_seq_length": 200, "model_kwargs": {"dtype": "float32"}}


def load(path: Path, **options: Any) -> Any:
    return load_policy(str(path), model_kwargs={"dtype": "float32"}, **options)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_model_is_the_files(architecture: str, tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "m.gguf", architecture)
    model, tokenizer = load(tmp_path / "m.gguf")
    for text in HARD_TEXTS:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            ours, theirs = (m.base_model(ids).last_hidden_state for m in (model, original))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_text_is_parted_by_the_rule_that_the_file_names(rule: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", rule=rule)
    _, tokenizer = load(tmp_path / "m.gguf")
    expected = train_byte_level(rule)
    for text in HARD_TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == expected.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids) == text


def test_sentencepiece_merges_by_score_and_keeps_every_byte(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "gemma3")
    _, tokenizer = load(tmp_path / "m.gguf")
    for text in HARD_TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == merge_by_score(text), text
        assert tokenizer.decode(ids) == text


def merge_by_score(text: str) -> list[int]:
    """SentencePiece's BPE as its paper has it: the best pair first, again and again."""
    tokens, scores, _ = sentencepiece_vocabulary()
    place = {token: index for index, token in enumerate(tokens)}
    pieces = list(text.replace(" ", "▁"))
    while True:
        pairs = [(scores[place[a + b]], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in place]
        if not pairs:
            break
        i = -max(pairs)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    found: list[int] = []
    for piece in pieces:
        known = place.get(piece)
        found += [known] if known is not None else [place[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return found


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_stretched_positions(rope: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "qwen2", {**CONFIGS["qwen2"], "rope_parameters": rope})
    original = write_gguf(tmp_path / "m.gguf", "qwen2")
    model, _ = load(tmp_path / "m.gguf")
    ids = torch.arange(3, 203)[None]
    with torch.inference_mode():
        ours, theirs = (m.base_model(ids).last_hidden_state for m in (model, original))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_llama_3_stretches_by_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 5e5, **rule}
    monkeypatch.setitem(CONFIGS, "llama", {**CONFIGS["llama"], "rope_parameters": rope})
    plain = make_model("llama", 480)
    stretched: torch.Tensor = plain.base_model.rotary_emb.inv_freq
    divisors = 5e5 ** (-torch.arange(0, 16, 2) / 16) / stretched
    original = write_gguf(tmp_path / "m.gguf", "llama", tensors={"rope_freqs.weight": divisors.numpy()})
    model, _ = load(tmp_path / "m.gguf")
    assert model.config.rope_parameters["rope_type"] == "llama3"
    ids = torch.arange(3, 203)[None]
    with torch.inference_mode():
        ours, theirs = (m.base_model(ids).last_hidden_state for m in (model, original))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    write_gguf(tmp_path / "odd.gguf", "llama", tensors={"rope_freqs.weight": divisors.numpy() * 1.5})
    with pytest.raises(ModelLoadError, match="by a rule that is not known"):
        load(tmp_path / "odd.gguf")


def test_it_embeds_indexes_and_is_found_again_after_moving(tmp_path: Path) -> None:
    write_gguf(tmp_path / "here.gguf", "llama")
    embedder = GraceEmbedder(tmp_path / "here.gguf", **QUIET)
    vectors = embedder.encode_document(["Bread rises.", "Tides follow the moon."])
    index = GraceIndex.open(build(embedder, tmp_path))
    assert len(index.search("Bread rises.", k=2).ids) == 2
    (tmp_path / "there").mkdir()
    shutil.move(tmp_path / "here.gguf", tmp_path / "there" / "moved.gguf")
    moved = GraceEmbedder(tmp_path / "there", **QUIET)
    assert moved.fingerprint("query").digest() == embedder.fingerprint("query").digest()
    np.testing.assert_array_equal(moved.encode_document(["Bread rises.", "Tides follow the moon."]), vectors)
    assert GraceIndex.open(tmp_path / "index", embedder=moved).search("Bread rises.", k=1).ids


def build(embedder: GraceEmbedder, folder: Path) -> Path:
    documents = [Document(id="a", text="Bread rises."), Document(id="b", text="Tides.")]
    build_index(documents, folder / "index", embedder=embedder)
    return folder / "index"


def test_a_saved_copy_is_the_file_until_it_is_changed(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen2")
    embedder = GraceEmbedder(tmp_path / "m.gguf", **QUIET)
    assert embedder.fingerprint().weights.startswith("gguf-")
    embedder.save_pretrained(str(tmp_path / "saved"))
    saved = GraceEmbedder(tmp_path / "saved", cache=None)
    assert saved.fingerprint("query").digest() == embedder.fingerprint("query").digest()
    with torch.no_grad():
        saved.pipeline.module.get_input_embeddings().weight[5] += 1
    assert not saved.fingerprint("query").weights.startswith("gguf-")
    saved.save_pretrained(str(tmp_path / "changed"))
    assert not (tmp_path / "changed" / "grace_weights.json").exists()


def test_dtype_is_part_of_what_is_written_down(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    default = GraceEmbedder(tmp_path / "m.gguf", cache=None)
    assert default.pipeline.policy.dtype == str(convert.fastest_dtype()).removeprefix("torch.")
    half = GraceEmbedder(tmp_path / "m.gguf", cache=None, model_kwargs={"dtype": torch.float16})
    assert half.pipeline.policy.dtype == "float16"
    assert GraceIndex.open(build(half, tmp_path)).embedder.pipeline.policy.dtype == "float16"
    older = GraceEmbedder(tmp_path / "m.gguf", cache=None, model_kwargs={"torch_dtype": "float16"})
    assert older.fingerprint().digest() == half.fingerprint().digest(), "under transformers' older name for it"
    with pytest.raises(ValueError, match="dtype='int9'"):
        GraceEmbedder(tmp_path / "m.gguf", cache=None, model_kwargs={"dtype": "int9"})


def test_which_file_a_folder_means(tmp_path: Path) -> None:
    for name in ("a-Q4.gguf", "a-Q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"2 GGUF files: a-Q4\.gguf, a-Q8\.gguf"):
        resolve_model(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve_model(tmp_path) == str(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(tmp_path) == str(tmp_path), "a folder with a config is a model of its own"


REFUSED = {
    "mixture": ({"llama.expert_count": 8}, "mixture of 8 experts"),
    "a number that nobody knows": ({"llama.logit_scale": 0.5}, r"states llama\.logit_scale=0\.5, which is not known"),
    "half-turned heads": ({"llama.rope.dimension_count": 8}, "turns a part of each head"),
    "another scale": ({"llama.attention.scale": 0.5}, r"scales attention by 0\.5"),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, "scales rotary positions by 'longrope'"),
    "a number that is missing": ({"llama.block_count": None}, r"lacks llama\.block_count"),
    "no rule for parting text": ({"tokenizer.ggml.pre": None}, "does not say by which rule"),
    "a rule that nobody knows": ({"tokenizer.ggml.pre": "moonshine"}, "says 'moonshine', which is not known here"),
    "another kind of tokenizer": ({"tokenizer.ggml.model": "rwkv"}, "a tokenizer of the kind 'rwkv'"),
    "an end that is no token": ({"tokenizer.ggml.eos_token_id": 99999}, "names 99999 as its eos token"),
    "an embedding model": ({"llama.pooling_type": 1}, "holds an embedding model or an encoder"),
    "one of several parts": ({"split.count": 3}, "one of 3 parts"),
}


@pytest.mark.parametrize(("metadata", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_known_is_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", metadata=metadata)
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path / "m.gguf")
    assert not list(tmp_path.rglob("*.part")), "nothing half made is left"


def test_other_architectures_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", stated="mamba")
    known = ", ".join(sorted(architectures.ARCHITECTURES))
    with pytest.raises(ModelLoadError, match=f"architecture 'mamba'; read from GGUF are {re.escape(known)}"):
        load(tmp_path / "m.gguf")
    write_gguf(tmp_path / "b.gguf", "llama", stated="nomic-bert")
    with pytest.raises(ModelLoadError, match="embedding model or an encoder"):
        load(tmp_path / "b.gguf")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    write_gguf(tmp_path / "more.gguf", "llama", tensors={"blk.0.attn_sinks.weight": np.zeros(4)})
    with pytest.raises(ModelLoadError, match=r"1 of its .* tensors have no place"):
        load(tmp_path / "more.gguf")
    model = make_model("llama", 480)
    model.resize_token_embeddings(400)
    write_gguf(tmp_path / "few.gguf", "llama", model=model)
    with pytest.raises(ModelLoadError, match="embeddings for 400"):
        load(tmp_path / "few.gguf")


def test_files_that_are_none(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    whole = (tmp_path / "m.gguf").read_bytes()
    for name, content, message in (
        ("empty", b"", "is empty"),
        ("other", b"PK\x03\x04", "is no GGUF file"),
        ("cut", whole[: len(whole) // 2], "damaged or cut short"),
        ("head", whole[:200], "damaged or cut short"),
    ):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(ModelLoadError, match=message):
            load(tmp_path / f"{name}.gguf")
    write_gguf(tmp_path / "mute.gguf", "llama", tokenizer=False, model=make_model("llama", 480))
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        load(tmp_path / "mute.gguf")


def test_a_model_without_a_template_says_so_and_works(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "gpt2", template=None)
    with pytest.warns(UserWarning, match="has no chat template"):
        embedder = GraceEmbedder(tmp_path / "m.gguf", **QUIET)
    assert embedder.encode(["Bread rises."]).shape == (1, 64)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(
        ModelLoadError, match=r"cannot be converted into .*: it takes .* GB there, and 0\.0 GB are free"
    ):
        load(tmp_path / "m.gguf")


def test_two_processes_convert_one_file_once(tmp_path: Path, grace_cache_dir: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    program = (
        "import logging, sys; logging.basicConfig(level='INFO', format='%(message)s'); from pathlib import Path\n"
        "from grace_retrieval.gguf.convert import convert_gguf; print(convert_gguf(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "m.gguf")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum("Converting" in errors for _, errors in said) == 1
    (folder,) = (path for path in (grace_cache_dir / "models").iterdir() if path.is_dir())
    assert str(folder) == said[0][0].strip()


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path, grace_cache_dir: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    folder = convert_gguf(tmp_path / "m.gguf")
    part = folder.with_name(f".{folder.name}.part")
    folder.rename(part)
    (part / "model.safetensors").write_bytes(b"cut")
    assert convert_gguf(tmp_path / "m.gguf") == folder
    assert not part.exists()
    load_policy(str(folder))
