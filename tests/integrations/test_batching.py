"""MicroBatcher: few calls, an event loop that goes on, and requests that do not harm each other."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from grace_retrieval import EngineError
from grace_retrieval.batching import MOST_TEXTS, MicroBatcher


class Upper:
    """A function that takes its time and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, texts: list[str]) -> list[str]:
        self.calls.append(texts)
        self.entered.set()
        assert self.gate.wait(60)
        if "bad" in texts:
            raise ValueError("a bad text")
        return [text.upper() for text in texts]

    def other(self, texts: list[str]) -> list[str]:
        self.calls.append(texts)
        return texts


async def closed_gate(upper: Upper, batcher: MicroBatcher) -> asyncio.Task[list[str]]:
    """A call that does not return until the gate opens."""
    upper.gate.clear()
    task = asyncio.create_task(batcher.run(upper, ["first"]))
    while not upper.entered.is_set():
        await asyncio.sleep(0.001)
    return task


async def test_requests_of_one_turn_of_the_loop_are_one_call() -> None:
    upper, batcher = Upper(), MicroBatcher()
    found = await asyncio.gather(*(batcher.run(upper, [f"a{n}", f"b{n}"]) for n in range(100)))
    assert found == [[f"A{n}", f"B{n}"] for n in range(100)]
    assert len(upper.calls) == 1


async def test_requests_that_come_during_a_call_are_the_next_call() -> None:
    upper, batcher = Upper(), MicroBatcher()
    first = await closed_gate(upper, batcher)
    later = [asyncio.create_task(batcher.run(upper, [str(n)])) for n in range(50)]
    await asyncio.sleep(0)
    upper.gate.set()
    assert await first == ["FIRST"] and await asyncio.gather(*later) == [[str(n)] for n in range(50)]
    assert [len(call) for call in upper.calls] == [1, 50]


async def test_the_loop_goes_on_during_a_call() -> None:
    upper, batcher = Upper(), MicroBatcher()
    first = await closed_gate(upper, batcher)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not first.done()
    upper.gate.set()
    assert await first == ["FIRST"]


async def test_a_request_that_fails_does_not_harm_the_others() -> None:
    upper, batcher = Upper(), MicroBatcher()
    texts = [["a"], ["b", "bad"], ["c"]]
    found = await asyncio.gather(*(batcher.run(upper, part) for part in texts), return_exceptions=True)
    assert found[0] == ["A"] and found[2] == ["C"]
    assert isinstance(found[1], ValueError) and str(found[1]) == "a bad text"


async def test_a_request_that_is_cancelled_does_not_harm_the_others() -> None:
    upper, batcher = Upper(), MicroBatcher()
    first = await closed_gate(upper, batcher)
    waiting = [asyncio.create_task(batcher.run(upper, [str(n)])) for n in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    first.cancel()  # in the middle of its call
    await asyncio.sleep(0)
    upper.gate.set()
    assert await waiting[0] == ["0"] and await waiting[2] == ["2"]
    assert waiting[1].cancelled() and first.cancelled()
    assert upper.calls == [["first"], ["0", "2"]]


async def test_the_number_of_results_is_checked() -> None:
    with pytest.raises(EngineError, match="1 results for 2 texts"):
        await MicroBatcher().run(lambda texts: texts[:1], ["a", "b"])


async def test_nothing_is_no_call() -> None:
    upper = Upper()
    assert await MicroBatcher().run(upper, []) == []
    assert upper.calls == []


async def test_a_query_does_not_wait_for_a_whole_corpus() -> None:
    upper, batcher = Upper(), MicroBatcher()
    first = await closed_gate(upper, batcher)
    corpus = asyncio.create_task(batcher.run(upper, [str(n) for n in range(3 * MOST_TEXTS + 5)]))
    query = asyncio.create_task(batcher.run(upper.other, ["a query"]))
    await asyncio.sleep(0)
    upper.gate.set()
    await asyncio.gather(first, corpus, query)
    assert [len(call) for call in upper.calls] == [1, 1, MOST_TEXTS, MOST_TEXTS, MOST_TEXTS, 5]
    assert corpus.result() == [str(n) for n in range(3 * MOST_TEXTS + 5)]


def test_one_batcher_serves_one_loop_after_another_and_many_at_once() -> None:
    upper, batcher = Upper(), MicroBatcher()
    assert [asyncio.run(batcher.run(upper, [str(n)])) for n in range(3)] == [["0"], ["1"], ["2"]]
    found: dict[int, Any] = {}

    async def many(number: int) -> list[list[str]]:
        return await asyncio.gather(*(batcher.run(upper, [f"{number} {n}"]) for n in range(20)))

    threads = [
        threading.Thread(target=lambda number=number: found.update({number: asyncio.run(many(number))}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [[f"{number} {n}"] for n in range(20)] for number in range(8)}


def test_a_loop_that_was_given_up_does_not_hold_up_another_one() -> None:
    upper, batcher = Upper(), MicroBatcher()

    async def give_up() -> None:
        await closed_gate(upper, batcher)

    asyncio.run(give_up())  # cancels its request and closes
    upper.gate.set()
    assert asyncio.run(batcher.run(upper, ["later"])) == ["LATER"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda batcher: pickle.loads(pickle.dumps(batcher))])
def test_a_copy_is_a_new_batcher(copied: Callable[[MicroBatcher], MicroBatcher]) -> None:
    batcher = MicroBatcher()
    asyncio.run(batcher.run(Upper(), ["x"]))
    other = copied(batcher)
    assert other is not batcher and asyncio.run(other.run(Upper(), ["x"])) == ["X"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    upper, batcher = Upper(), MicroBatcher()
    asyncio.run(batcher.run(upper, ["parent"]))
    child = os.fork()
    if child == 0:
        os._exit(asyncio.run(batcher.run(upper, ["child"])) != ["CHILD"])
    assert os.waitpid(child, 0)[1] == 0
    assert asyncio.run(batcher.run(upper, ["parent again"])) == ["PARENT AGAIN"]


async def test_a_batcher_that_lingers_waits_for_as_many_as_it_answered() -> None:
    """Clients that wait for answers come back one after the other: the first of them is no call of its own."""
    sizes: list[int] = []

    def call(texts: list[str]) -> list[str]:
        sizes.append(len(texts))
        time.sleep(0.01)  # what the patience is a share of
        return texts

    batcher = MicroBatcher(linger=100.0)
    await asyncio.gather(batcher.run(call, ["a"]), batcher.run(call, ["b"]))
    first = asyncio.create_task(batcher.run(call, ["c"]))
    await asyncio.sleep(0.005)
    assert await asyncio.gather(first, batcher.run(call, ["d"])) == [["c"], ["d"]]
    assert sizes == [2, 2]
    assert (copied := pickle.loads(pickle.dumps(batcher)))._linger == 100.0 and isinstance(copied, MicroBatcher)
