"""Threads follow the share of a container and the size of a model, and never what somebody has set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grace_retrieval import InputError
from grace_retrieval.threads import available_cores, others_running, wait_asleep

ROOT = Path(__file__).parents[2]
CORES = available_cores(Path("/no/such/root"))
OTHER = (os.cpu_count() or 1) + 3
"""A number that torch does not start with."""


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, CORES),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, CORES),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000000 100000"}, CORES),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 50000"}, 1),
        ({"proc/self/cgroup": "0::/../other", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/docker/1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            CORES,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "nonsense"}, CORES),
    ],
)
def test_the_share_of_a_container(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert available_cores(machine(tmp_path, files)) == cores


def threads(code: str, **environment: str) -> list[int]:
    """What torch's threads are where a process prints them."""
    before = "import os, torch\nfrom grace_retrieval.threads import fit_torch\n"
    inherited = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", before + code],
        env={**inherited, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(CORES < 2 or not hasattr(os, "sched_setaffinity"), reason="needs two cores that can be taken away")
def test_threads_follow_cores_and_models() -> None:
    code = """
for width in (None, 64, 576, 64):
    fit_torch(width)
    print(torch.get_num_threads())
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
fit_torch()
print(torch.get_num_threads())
torch.set_num_threads(7)
fit_torch(576)
print(torch.get_num_threads())
"""
    start, one, more, still, fewer, set_by_hand = threads(code)
    assert start == CORES and one == 1 and more == still == min(CORES, 9) and fewer == 1 and set_by_hand == 7


@pytest.mark.parametrize(
    ("environment", "line", "expected"),
    [
        # With MKL, torch starts with no more threads than there are cores, whatever is asked for.
        ({"OMP_NUM_THREADS": "2"}, "", None),
        ({"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}, "", None),
        ({}, f"torch.set_num_threads({OTHER})", OTHER),
        ({"GRACE_THREADS": "3"}, f"torch.set_num_threads({OTHER})", 3),
        ({"GRACE_THREADS": "3", "OMP_NUM_THREADS": f"{OTHER}"}, "", 3),
    ],
)
def test_what_somebody_has_set_is_kept(environment: dict[str, str], line: str, expected: int | None) -> None:
    code = f"""
start = torch.get_num_threads()
{line}
fit_torch()
fit_torch(64)
print(start, torch.get_num_threads())
"""
    start, found = threads(code, **environment)
    assert found == (start if expected is None else expected)


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_threads_that_are_no_number(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from grace_retrieval.threads import fit_torch

    monkeypatch.setenv("GRACE_THREADS", given)
    with pytest.raises(InputError, match=f"GRACE_THREADS='{given}': give a positive whole number"):
        fit_torch()


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"KMP_BLOCKTIME": "200"}, {"KMP_BLOCKTIME": "200"}),
    ],
)
def test_how_to_wait_is_set_where_nobody_has(
    there: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    wait_asleep()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


@pytest.mark.parametrize(
    ("loadavg", "states", "others"),
    [
        ("0.90 0.50 0.40 5/321 12345", "RRS", 3),
        ("0.90 0.50 0.40 2/321 12345", "RRS", 0),
        ("0.90 0.50 0.40 1/321 12345", "RRR", 0),
        ("nonsense", "R", 0),
        ("", "", 0),
    ],
)
def test_who_else_is_running(tmp_path: Path, loadavg: str, states: str, others: int) -> None:
    files = {f"proc/self/task/{n}/stat": f"{n} (a ) S b) {state} 1 1" for n, state in enumerate(states)}
    assert others_running(machine(tmp_path, {"proc/loadavg": loadavg, **files})) == others


@pytest.mark.skipif(CORES < 2 or not Path("/proc/loadavg").exists(), reason="needs two cores, and Linux")
def test_a_core_that_others_keep_busy_is_left_to_them() -> None:
    code = """
import subprocess, sys, time
from grace_retrieval.threads import hold_torch, others_running, share_cores
fit_torch(576)
print(torch.get_num_threads())
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
try:
    end = time.monotonic() + 30
    while others_running() < os.cpu_count() and time.monotonic() < end:
        time.sleep(0.05)
    share_cores("cuda")
    print(torch.get_num_threads())
    share_cores("cpu")
    print(torch.get_num_threads())
    hold_torch(2)
    time.sleep(0.2)
    share_cores("cpu")
    print(torch.get_num_threads())
    hold_torch(None)
    torch.set_num_threads(2)
    time.sleep(0.2)
    share_cores("cpu")
    print(torch.get_num_threads())
finally:
    for process in busy:
        process.kill()
"""
    whole, elsewhere, shared, held, set_by_hand = threads(code)
    assert whole == elsewhere == min(CORES, 9) and shared == 1 and held == set_by_hand == 2


@pytest.mark.skipif(CORES < 2 or not hasattr(os, "fork"), reason="needs two cores, and fork")
def test_a_forked_child_keeps_the_thread_that_the_engine_gives_it() -> None:
    code = """
import sys, time
from grace_retrieval.threads import share_cores
fit_torch(576)
child = os.fork()
if not child:
    torch.set_num_threads(1)  # what the engine does in a child
    fit_torch(576)
    time.sleep(0.2)
    share_cores("cpu")
    print(torch.get_num_threads(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    assert threads(code) == [1]
