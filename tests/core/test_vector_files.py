"""Files of vectors and neighbours: each as the tools write it, and none that was cut short or swapped."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_retrieval.corpus.corpus import Columns, Corpus
from grace_retrieval.corpus.vectors import has_queries, is_matrix, open_matrix, read_neighbours
from grace_retrieval.errors import InputError

FLOATS = np.random.default_rng(0).standard_normal((250, 12)).astype(np.float32)
BYTES = np.random.default_rng(1).integers(0, 256, (250, 12)).astype(np.uint8)
SIGNED = (BYTES.astype(np.int16) - 128).astype(np.int8)
IDS = np.random.default_rng(2).integers(0, 250, (5, 10)).astype(np.int32)


def read(path: Path, **options: str) -> np.ndarray:
    matrix = open_matrix(path, **options)
    blocks = list(matrix.blocks(100))
    assert [len(block) for block in blocks] == [100, 100, 50]
    assert matrix.rows == 250
    assert all(block.dtype == np.float32 and block.flags["C_CONTIGUOUS"] for block in blocks)
    return np.concatenate(blocks)


def big_ann(path: Path, array: np.ndarray) -> Path:
    """As big-ann-benchmarks writes it (xbin_write, u8bin_write)."""
    path.write_bytes(struct.pack("<II", *array.shape) + array.tobytes())
    return path


def hdf5(path: Path, distance: str | None = "euclidean") -> Path:
    """As ann-benchmarks writes it (write_output)."""
    import h5py

    with h5py.File(path, "w") as file:
        if distance is not None:
            file.attrs["distance"] = distance
        file.create_dataset("train", data=FLOATS)
        file.create_dataset("test", data=FLOATS[:5] + 1)
        file.create_dataset("neighbors", (5, 10), dtype=int)[:] = IDS
        file.create_dataset("distances", (5, 10), dtype=float)
    return path


def test_texmex_as_faiss_writes_and_reads_it(tmp_path: Path) -> None:
    vecs_io = pytest.importorskip("faiss.contrib.vecs_io", reason="no extra of FAISS is installed")
    vecs_io.fvecs_write(tmp_path / "x.fvecs", FLOATS)
    np.testing.assert_array_equal(read(tmp_path / "x.fvecs"), FLOATS)
    vecs_io.ivecs_write(tmp_path / "x.ivecs", IDS)
    np.testing.assert_array_equal(read_neighbours(tmp_path / "x.ivecs"), IDS)
    (tmp_path / "x.bvecs").write_bytes(b"".join(struct.pack("<i", 12) + row.tobytes() for row in BYTES))
    np.testing.assert_array_equal(vecs_io.bvecs_mmap(tmp_path / "x.bvecs"), BYTES)
    np.testing.assert_array_equal(read(tmp_path / "x.bvecs"), BYTES)


@pytest.mark.parametrize(
    ("name", "array"), [("x.fbin", FLOATS), ("x.u8bin", BYTES), ("x.i8bin", SIGNED), ("x.1B.u8bin.crop_nb_250", BYTES)]
)
def test_big_ann(tmp_path: Path, name: str, array: np.ndarray) -> None:
    np.testing.assert_array_equal(read(big_ann(tmp_path / name, array)), array)


def test_neighbours_of_big_ann(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_neighbours(big_ann(tmp_path / "gt.ibin", IDS)), IDS)
    with_distances = tmp_path / "GT_10M"  # usbin_write: places, then distances
    with_distances.write_bytes(struct.pack("<II", *IDS.shape) + IDS.tobytes() + np.ones(IDS.shape, "<f4").tobytes())
    np.testing.assert_array_equal(read_neighbours(with_distances), IDS)


def test_hdf5_of_ann_benchmarks(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "x.hdf5")
    np.testing.assert_array_equal(read(path), FLOATS)
    queries = np.concatenate(list(open_matrix(path, "test").blocks()))
    np.testing.assert_array_equal(queries, FLOATS[:5] + 1)
    np.testing.assert_array_equal(read_neighbours(path), IDS)
    assert has_queries(path)
    for distance, metric in (("euclidean", "l2"), ("angular", "cosine"), (None, None)):
        assert open_matrix(hdf5(tmp_path / f"{distance}.hdf5", distance)).metric == metric
    with pytest.raises(InputError, match="is of the distance 'jaccard'"):
        open_matrix(hdf5(tmp_path / "sets.hdf5", "jaccard"))


def test_arrays_of_numpy(tmp_path: Path) -> None:
    for kind in ("f2", "f4", ">f4", "f8", "i1", "u1"):
        array = (FLOATS * 10).astype(kind)
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(read(tmp_path / "x.npy"), array.astype(np.float32))
    np.save(tmp_path / "x.npy", np.asfortranarray(FLOATS))
    np.testing.assert_array_equal(read(tmp_path / "x.npy"), FLOATS)
    np.savez(tmp_path / "one.npz", embeddings=FLOATS)
    np.savez_compressed(tmp_path / "two.npz", vector=FLOATS, ids=IDS)
    np.testing.assert_array_equal(read(tmp_path / "one.npz"), FLOATS)
    np.testing.assert_array_equal(read(tmp_path / "two.npz"), FLOATS)
    np.testing.assert_array_equal(read_neighbours(tmp_path / "two.npz"), IDS)
    with pytest.raises(InputError, match="holds the arrays vector, ids: call the one that is meant 'x'"):
        open_matrix(tmp_path / "two.npz", "x")


def test_parquet_as_pandas_writes_it(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "x.parquet"
    for array in (FLOATS, FLOATS.astype(np.float64), SIGNED):
        pd.DataFrame({"name": list(map(str, range(250))), "vector": list(array)}, index=range(5, 255)).to_parquet(path)
        np.testing.assert_array_equal(read(path), array)
    frame = pd.DataFrame(FLOATS, index=range(7, 257))
    frame.columns = frame.columns.astype(str)
    frame.to_parquet(path, index=True, row_group_size=60)
    matrix = open_matrix(path)
    np.testing.assert_array_equal(np.concatenate(list(matrix.blocks(1000))), FLOATS, "a column a dimension")
    pd.DataFrame({"name": ["a"], "v": [[1.0]]}).to_parquet(path)
    with pytest.raises(InputError, match=r"has no column 'vector', but \['name', 'v'\]"):
        open_matrix(path)
    pq.write_table(pa.table({"vector": pa.array([[1], [2]], pa.list_(pa.int64()))}), path)
    with pytest.raises(InputError, match="not lists of floating-point numbers"):
        list(open_matrix(path).blocks())


def damaged(path: Path) -> dict[str, Callable[[], Any]]:
    """What is wrong with a file, by how it reads."""
    rows = [struct.pack("<i", 4) + FLOATS[0, :4].tobytes()] * 3
    swapped = [struct.pack(">i", 4) + FLOATS[0, :4].astype(">f4").tobytes()] * 3
    return {
        "cut short, or is no .fvecs": lambda: (path / "a.fvecs").write_bytes(b"".join(rows)[:-1]),
        "row 2 has another width": lambda: (path / "a.fvecs").write_bytes(
            rows[0] * 2 + struct.pack("<i", 3) + b"\0" * 16
        ),
        "is big-endian, and .fvecs": lambda: (path / "a.fvecs").write_bytes(b"".join(swapped)),
        "has 2 bytes: nothing to read": lambda: (path / "a.bvecs").write_bytes(b"\1\0"),
        "take 56 bytes with 4 for each; it has 55": lambda: (path / "a.fbin").write_bytes(
            struct.pack("<II", 3, 4) + bytes(47)
        ),
        "is big-endian, and this format": lambda: (path / "a.u8bin").write_bytes(struct.pack(">II", 3, 4) + bytes(12)),
        "its counts alone have 8": lambda: (path / "a.i8bin").write_bytes(b"\0"),
        "says that it holds 0 rows": lambda: (path / "a.fbin").write_bytes(struct.pack("<II", 0, 4)),
        "holds whole numbers, which are places": lambda: big_ann(path / "a.ibin", IDS),
        "as .npz": lambda: (path / "a.npz").write_bytes(b"PK\3\4 cut"),
        "as .npy": lambda: (path / "a.npy").write_bytes(b"\x93NUMPY cut"),
        "as HDF5": lambda: (path / "a.hdf5").write_bytes(b"\x89HDF"),
        "unknown format. Give .npy, .npz": lambda: (path / "a.bin").write_bytes(b"x"),
        "and dtype int64": lambda: np.save(path / "a.npy", np.ones((4, 4), dtype=np.int64)),
        "and dtype <U1": lambda: np.savez(path / "a.npz", np.array([["x"]])),
    }


@pytest.mark.parametrize("complaint", sorted(damaged(Path())))
def test_files_that_hold_no_vectors(tmp_path: Path, complaint: str) -> None:
    damaged(tmp_path)[complaint]()
    (path,) = tmp_path.iterdir()
    with pytest.raises(InputError) as raised:
        list(open_matrix(path).blocks())
    assert str(raised.value).startswith((str(path), f"Cannot read {path}"))
    assert complaint in str(raised.value)


def test_files_that_hold_no_neighbours(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    (tmp_path / "GT").write_bytes(struct.pack("<II", *IDS.shape) + IDS.tobytes())
    for name, complaint in (
        ("x.npy", "dtype float32: give places of neighbours as whole numbers"),
        ("GT", "was cut short, or is of another format"),
        ("no.ivecs", "does not exist"),
    ):
        with pytest.raises(InputError, match=complaint):
            read_neighbours(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.fbin", "x.fvecs"])
def test_a_file_is_mapped_and_not_in_memory_as_a_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows, width = 400_000, 250
    with open(path, "wb") as stream:  # sparse: zeros that take no disk
        if name == "x.npy":
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
            )
        elif name == "x.fbin":
            stream.write(struct.pack("<II", rows, width))
        else:
            stream.write(struct.pack("<i", width))
        size = stream.tell() + rows * width * 4 if name != "x.fvecs" else rows * (width + 1) * 4
        stream.truncate(size)
    tracemalloc.start()
    try:
        block = next(open_matrix(path).blocks(1)) if name == "x.fvecs" else next(open_matrix(path).blocks(1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert block.shape[1] == width
    assert path.stat().st_size >= 400_000_000
    assert peak < 8_000_000


def test_documents_with_vectors_of_a_file(tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(f'{{"id": {n}, "text": "{"" if n == 3 else n}"}}\n' for n in range(250)))
    path = big_ann(tmp_path / "x.u8bin", BYTES)
    corpus = Corpus([str(lines)], columns=Columns(vectors=str(path)))
    for _ in range(2):
        found = {int(document.id): document.vector for document in corpus.documents(lambda _: None)}
        assert len(found) == 249, "the blank one is left out, and the others keep their vectors"
        for place, vector in found.items():
            np.testing.assert_array_equal(vector, BYTES[place])
    big_ann(path, BYTES[:200])
    with pytest.raises(InputError, match="has 200 vectors only"):
        list(Corpus([str(lines)], columns=Columns(vectors=str(path)), allow_empty=True).documents())


def test_names_of_columns_are_none_of_files() -> None:
    assert not any(map(is_matrix, ("vector", "v", "embedding.f4", "npy")))
