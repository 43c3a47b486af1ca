"""What does a server cost? Texts through `grace serve` by many clients at a time, and through `encode` in this process.

    PYTHONPATH=benchmarks python -m programs.serving

Four ways to embed the same number of texts: in this process, all with one call of `encode_document` ("here") or as many
at a time as there are clients ("here, in parts"); and by clients of a server that wait for each answer, with one text a
request or with several. Each repeat gives every way texts of its own that nobody has seen ("cold"), all made after one
pattern, and then the same ones again ("warm"), which leaves what HTTP costs. The order of the ways rotates. The clients
run in this process. Ratios are of texts a second, and of seconds on all cores ("cpu"), which other work on the machine
disturbs less.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console

from grace_benchmarks.record import measure, write_result
from grace_retrieval import GraceEmbedder
from grace_retrieval.threads import hold_torch
from programs.cache import build_texts


@contextmanager
def server(model: str, threads: int) -> Iterator[tuple[str, int, psutil.Process]]:
    """`grace serve`: host, port and process."""
    command = [
        sys.executable,
        "-m",
        "grace_retrieval",
        "serve",
        "--model",
        model,
        "--port",
        "0",
        "--cache",
        "none",
        "-q",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            while True:
                log.seek(0)
                if found := [line for line in log.read().splitlines() if line.startswith("Serving ")]:
                    break
                if process.poll() is not None:
                    raise RuntimeError(f"grace serve ended with {process.returncode}")
                time.sleep(0.1)
            host, port = found[0].rpartition("/")[2].split(":")
            yield host, int(port), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


async def ask_all(host: str, port: int, texts: Sequence[str], clients: int, size: int) -> list[list[float]]:
    """Send texts in requests of some size, so many requests at a time, each client on a connection that it keeps."""
    queue = [(start, texts[start : start + size]) for start in range(0, len(texts), size)][::-1]
    answers: list[list[float]] = [[]] * len(texts)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while queue:
            start, some = queue.pop()
            body = json.dumps({"input": some}).encode()
            head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readuntil(b"\r\n\r\n")
            if not status.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(status.decode())
            length = int(status.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            found = json.loads(await reader.readexactly(length))["data"]
            answers[start : start + size] = [one["embedding"] for one in found]
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def model_calls(host: str, port: int) -> float:
    """Calls of the model so far."""
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("grace_batch_texts_count "))


def cpu_seconds(process: psutil.Process) -> float:
    """Seconds on all cores so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main(
    texts: Annotated[int, typer.Option(help="Texts of each way in a repeat.")] = 256,
    clients: Annotated[int, typer.Option(help="Clients at a time.")] = 64,
    size: Annotated[int, typer.Option(help="Texts of a request, where there are several.")] = 4,
    repeats: Annotated[int, typer.Option(help="Repeats.")] = 3,
    model: Annotated[str, typer.Option(help="Model.")] = "grace-nano",
    threads: Annotated[int, typer.Option(help="Threads of torch, on both sides.")] = 1,
) -> None:
    """Compare a server with its embedder in this process."""
    hold_torch(threads)
    embedder = GraceEmbedder(model, cache="memory")

    def parts(some: list[str]) -> Any:
        return np.concatenate(
            [embedder.encode_document(some[at : at + clients]) for at in range(0, len(some), clients)]
        )

    with server(model, threads) as (host, port, process):
        ways: dict[str, Callable[[list[str]], Any]] = {
            "here": embedder.encode_document,
            "here, in parts": parts,
            "server, 1 text a request": lambda some: asyncio.run(ask_all(host, port, some, clients, 1)),
            f"server, {size} texts a request": lambda some: asyncio.run(ask_all(host, port, some, clients, size)),
        }
        names = list(ways)
        for way in ways.values():
            way([f"{text} Once more." for text in build_texts(clients)])  # everything is loaded
        corpus = iter(build_texts(texts * repeats * len(names)))
        timings: dict[tuple[str, str], list[tuple[float, float]]] = {}
        counted: dict[tuple[str, str], list[int]] = {}
        largest = 0.0
        for repeat in range(repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                some = list(islice(corpus, texts))
                for state in ("cold", "warm"):
                    before, calls = cpu_seconds(process), model_calls(host, port)
                    with measure() as timing:
                        found = ways[name](some)
                    cpu = cpu_seconds(process) - before if name.startswith("server") else timing.cpu
                    timings.setdefault((state, name), []).append((timing.wall, cpu))
                    if name.startswith("server"):
                        counted.setdefault((state, name), []).append(round(model_calls(host, port) - calls))
                largest = max(largest, float(np.abs(embedder.encode_document(some[:16]) - np.array(found[:16])).max()))
    rows = []
    for (state, name), measured in timings.items():
        wall, cpu = (statistics.median(one[part] for one in measured) for part in (0, 1))
        here, here_cpu = (statistics.median(one[part] for one in timings[state, "here"]) for part in (0, 1))
        rows.append(
            {
                "cache": state,
                "way": name,
                "clients": clients,
                "texts": texts,
                "texts_per_second": round(texts / wall, 1),
                "throughput_to_here": round(here / wall, 3),
                "cpu_seconds": round(cpu, 3),
                "throughput_to_here_by_cpu": round(here_cpu / cpu, 3),
                "calls_of_the_server": counted.get((state, name)),
                "seconds": [[round(value, 3) for value in one] for one in measured],
            }
        )
    rows.append({"largest_difference": largest})
    write_result("serving", rows, model=model, threads=threads, repeats=repeats)
    for row in rows:
        Console(width=200).print(row)


if __name__ == "__main__":
    typer.run(main)
