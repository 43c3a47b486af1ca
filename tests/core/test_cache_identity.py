"""Fingerprints, row keys and content hashes: what may and what may not change a key."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval.cache import CachedRationale, Fingerprint, hash_files, row_key
from grace_retrieval.errors import InputError

BASE = Fingerprint(
    model="org/model",
    weights="a" * 40,
    tokenizer="b" * 32,
    prompt="Explain the text.",
    role="query",
    generation={"max_new_tokens": 64, "temperature": 0.7, "stop": ["</s>"], "seed": None},
    budget={"max_seq_length": 512},
    dtype="bfloat16",
    engine="transformers",
)
CHANGES: list[tuple[str, Any]] = [
    ("weights", "c" * 40),
    ("tokenizer", "c" * 32),
    ("prompt", "Explain the text. "),
    ("prompt", "Explain the text.\x00"),
    ("role", "document"),
    ("role", ""),
    ("generation", {**BASE.generation, "temperature": 0.8}),
    ("generation", {**BASE.generation, "max_new_tokens": 65}),
    ("generation", {**BASE.generation, "seed": 0}),
    ("generation", {**BASE.generation, "seed": False}),
    ("generation", {**BASE.generation, "stop": ["</s>", "</s>"]}),
    ("generation", {**BASE.generation, "top_p": 1.0}),
    ("generation", {}),
    ("budget", {"max_seq_length": 511}),
    ("budget", {"max_seq_length": "512"}),
    ("dtype", "float32"),
    ("engine", "vllm"),
]


@pytest.mark.parametrize(("field", "value"), CHANGES, ids=lambda part: str(part)[:24])
def test_every_change_gives_another_key(field: str, value: Any) -> None:
    other = replace(BASE, **{field: value})
    assert other.digest() != BASE.digest()
    assert row_key(other.digest(), [1, 2, 3]) != row_key(BASE.digest(), [1, 2, 3])
    assert other != BASE
    differences = BASE.differences(other)
    assert differences and all(line.startswith(field) for line in differences)


def test_all_fields_are_tried_except_the_name() -> None:
    assert {field for field, _ in CHANGES} == {field.name for field in fields(Fingerprint)} - {"model"}


def test_all_variants_differ_from_each_other() -> None:
    digests = [replace(BASE, **{field: value}).digest() for field, value in CHANGES]
    assert len(set(digests)) == len(CHANGES)
    assert all(len(digest) == 16 for digest in digests)


def test_a_moved_model_keeps_its_keys() -> None:
    moved = replace(BASE, model="/somewhere/else")
    assert moved.digest() == BASE.digest()
    assert BASE.differences(moved) == []


def test_value_cannot_move_between_fields() -> None:
    assert replace(BASE, prompt="x", dtype="y").digest() != replace(BASE, prompt="y", dtype="x").digest()


def test_order_and_number_type_of_options_do_not_matter() -> None:
    turned = replace(BASE, generation=dict(reversed(BASE.generation.items())))
    assert turned.digest() == BASE.digest()
    assert replace(BASE, budget={"max_seq_length": 512.0}).digest() == BASE.digest()
    assert replace(BASE, budget={"n": (1, 2)}).digest() == replace(BASE, budget={"n": [1, 2]}).digest()


def test_lone_surrogates_are_not_the_character_they_stand_for() -> None:
    assert replace(BASE, prompt="\ud83d\ude00").digest() != replace(BASE, prompt="\U0001f600").digest()


def test_later_changes_of_the_callers_dict_have_no_effect() -> None:
    options: dict[str, Any] = {"stop": ["a"]}
    fingerprint = replace(BASE, generation=options)
    before = fingerprint.digest()
    options["stop"].append("b")
    options["seed"] = 3
    assert fingerprint.digest() == before


def test_digest_is_pinned() -> None:
    """A change here makes every cache in the world miss: change the `person` string knowingly."""
    assert BASE.digest().hex() == "9898c597ca13a4863f9cac1127571459"
    assert row_key(BASE.digest(), [0, 1, 2**32 - 1]).hex() == "d9f01b928fbc1256aecef1a4d7c04805"


def test_description_goes_through_json_and_back() -> None:
    fingerprint = replace(BASE, prompt="\ud800 naïve")
    description = json.loads(json.dumps(fingerprint.describe()))
    assert Fingerprint.from_description(description) == fingerprint
    assert description["digest"] == fingerprint.digest().hex()
    assert hash(Fingerprint.from_description(description)) == hash(fingerprint)
    with pytest.raises(InputError, match="lacks weights, dtype"):
        Fingerprint.from_description({k: v for k, v in description.items() if k not in ("weights", "dtype")})


def test_differences_are_said_in_words() -> None:
    other = replace(
        BASE,
        model="org/other",
        weights="d" * 40,
        generation={"max_new_tokens": 64, "top_k": 5},
        prompt="p" * 500,
    )
    lines = BASE.differences(other)
    assert f"weights: '{'a' * 40}' (model 'org/model') here, '{'d' * 40}' (model 'org/other') there" in lines
    assert "generation.top_k: absent here, 5 there" in lines
    assert "generation.temperature: 0.7 here, absent there" in lines
    assert not any(line.startswith("generation.max_new_tokens") for line in lines)
    assert max(map(len, lines)) < 250


def test_fingerprint_pickles() -> None:
    assert pickle.loads(pickle.dumps(BASE)).digest() == BASE.digest()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights", "", "weights='': give"),
        ("weights", "main", "weights='main' is a name that moves"),
        ("tokenizer", "", "tokenizer='': give"),
        ("role", "passage", "role='passage': give 'query', 'document' or ''"),
        ("prompt", None, "prompt is NoneType: give a str"),
        ("generation", [1], "generation is list: give a mapping"),
        ("generation", {"temperature": float("nan")}, "generation.temperature=nan: give a JSON value"),
        ("generation", {"stop": [b"x"]}, r"generation.stop\[0\]=b'x': give a JSON value"),
        ("budget", {1: 2}, r"budget has the keys \[1\]: give strings"),
    ],
)
def test_unusable_fields_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(BASE, **{field: value})


def test_row_keys_depend_on_every_id_and_their_order() -> None:
    digest = BASE.digest()
    ids = [5, 0, 7, 2**32 - 1]
    keys = {row_key(digest, other) for other in ([], ids, ids[:-1], ids[::-1], [*ids, 0], [5, 0, 7, 1])}
    assert len(keys) == 6
    assert row_key(digest, np.array(ids)) == row_key(digest, tuple(ids)) == row_key(digest, ids)


@pytest.mark.parametrize("ids", [[-1], [2**32], [1.5], ["1"], "12", b"12", [[1, 2]], [None]])
def test_ids_that_do_not_fit_are_refused(ids: Any) -> None:
    with pytest.raises(InputError, match="token ids: give integers"):
        row_key(BASE.digest(), ids)


@pytest.mark.parametrize("digest", [b"", b"x" * 15, "x" * 16])
def test_digests_of_another_length_are_refused(digest: Any) -> None:
    with pytest.raises(InputError, match="give 16 bytes"):
        row_key(digest, [1])


def test_file_hash_survives_moving_and_order_but_no_changed_byte(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    names = ["model.safetensors", "config.json", "1_Pooling/config.json"]
    for name in names:
        (model / name).write_bytes(random.Random(name).randbytes(3_000_000 if "model" in name else 50))
    before = hash_files(model / name for name in names)
    shutil.copytree(model, tmp_path / "deep" / "elsewhere")
    assert hash_files([tmp_path / "deep" / "elsewhere" / name for name in reversed(names)]) == before
    assert hash_files([str(model / names[0])]) == hash_files([tmp_path / "deep/elsewhere" / names[0]])
    # Two files of one name that change places are another model.
    first, second = (model / name for name in names[1:])
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    assert hash_files(model / name for name in names) != before
    first.write_bytes(content[0])
    second.write_bytes(content[1])
    assert hash_files(model / name for name in names) == before
    weights = bytearray((model / names[0]).read_bytes())
    weights[-1] ^= 1
    (model / names[0]).write_bytes(weights)
    assert hash_files(model / name for name in names) != before


def test_file_hash_counts_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    assert hash_files([tmp_path / "a"]) != hash_files([tmp_path / "b"])
    with pytest.raises(InputError, match="at least one file"):
        hash_files([])
    with pytest.raises(InputError, match="is not a file"):
        hash_files([tmp_path / "a", tmp_path / "missing"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [1]}, "token_ids is list: give a tuple"),
        ({"text": b"x"}, "text is bytes: give a str"),
        ({"finish_reason": "eos"}, "finish_reason='eos': give 'stop', 'length' or 'repeat'"),
        ({"vector": [1.0]}, "vector is list: give a numpy array"),
        ({"vector": np.zeros(3)}, "dtype float64: give"),
        ({"vector": np.zeros((1, 3), dtype=np.float32)}, r"shape \(1, 3\)"),
        ({"vector": np.zeros(0, dtype=np.float32)}, r"shape \(0,\)"),
    ],
)
def test_rows_are_checked_when_made(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "token_ids": (1,),
        "text": "x",
        "finish_reason": "stop",
        "vector": np.ones(3, dtype=np.float32),
    }
    CachedRationale(**good)
    with pytest.raises(InputError, match=message):
        CachedRationale(**{**good, **change})


def test_importing_the_cache_loads_no_torch() -> None:
    code = "import sys, grace_retrieval.cache; sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    root = Path(sys.modules["grace_retrieval.cache"].__file__ or "").parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
