"""The files engine beside rsync, in one run: `python -m tests.benchmarks.files [--quick]`.

Each figure is the median of the ratios of pairs run in rotation (ours first, then rsync first), after a warm-up. Every
copy has a new name and stays until the end: what is deleted just before slows whoever makes files next. The engine
runs in a process that is already there, as a worker's child is; rsync is started each time, as it always is. Ours
leaves everything durable, rsync leaves it to the kernel: what it left is written out, untimed, before the next run of
either, or ours would be charged for its own bytes and rsync's. CPU includes all processes of each.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

from domain.plans.files import Spec
from services.worker import files
from services.worker.files_context import Context


class Spent(NamedTuple):
    wall: float
    cpu: float


class Sizes(NamedTuple):
    files: int
    large: int
    pairs: int


FULL = Sizes(files=20_000, large=512 << 20, pairs=3)
QUICK = Sizes(files=2_000, large=32 << 20, pairs=1)


def small_files(root: Path, count: int) -> None:
    """Data set A: files of 1 to 16 KiB in folders of 16 to 17, two levels deep."""
    chance = random.Random(1)
    folders = [root / f"top{top:02}" / f"sub{sub:02}" for top in range(20) for sub in range(max(count // 333, 1))]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(count):
        path = folders[number % len(folders)] / f"file{number:05}.dat"
        path.write_bytes(chance.randbytes(chance.randint(1024, 16_384)))


def large_files(root: Path, size: int) -> None:
    """Data set B: four large files of random bytes."""
    root.mkdir(parents=True)
    for number in range(4):
        with (root / f"large{number}").open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))


def change(root: Path, seed: int) -> None:
    """One file in a hundred gets other bytes of the same size."""
    chance = random.Random(seed)
    every = sorted(path for path in root.rglob("*") if path.is_file())
    for path in chance.sample(every, len(every) // 100):
        path.write_bytes(chance.randbytes(path.stat().st_size))


def serve(channel: Connection) -> None:
    """The engine's process: runs one sync after another and says what each cost."""
    while (asked := channel.recv()) is not None:
        spec, context = asked
        before, began = _cpu(), time.perf_counter()
        result = files.run(Spec(**spec), Context(**context))
        channel.send((Spent(time.perf_counter() - began, _cpu() - before), result))


def _cpu() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


class Bench:
    def __init__(self, base: Path, channel: Connection, rsync: str, sizes: Sizes) -> None:
        self.base, self.sizes, self._channel, self._rsync = base, sizes, channel, rsync
        self._names = 0

    def fresh(self) -> Path:
        self._names += 1
        return self.base / f"target{self._names}"

    def clear(self) -> None:
        """Room for what comes next: at most 4 GiB are in use at any time."""
        for path in self.base.iterdir():
            shutil.rmtree(path)

    def ours(self, source: Path, target: Path, verify: bool) -> Spent:
        spec = {"source_directory": str(source), "target_directory": str(target), "verify_integrity": verify}
        self._names += 1
        data = self.base / "data"
        context = {
            "roots": [str(self.base)],
            "job": f"job-{self._names}",
            "work": data / f"work-{self._names}",
            "trash": data / "trash",
            "record": data / f"record-{target.name}",
        }
        self._channel.send((spec, context))
        spent, result = self._channel.recv()
        assert result.error_count == 0, result.errors[:3]
        return Spent(*spent)

    def theirs(self, source: Path, target: Path, checksum: bool) -> Spent:
        before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
        options = ["-a", "--checksum"] if checksum else ["-a"]
        subprocess.run([self._rsync, *options, f"{source}/", f"{target}/"], check=True)
        wall, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
        return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    def compare(
        self, name: str, ours: Callable[[int], Spent], theirs: Callable[[int], Spent], must: str, aim: str
    ) -> dict[str, Any]:
        """Pairs in rotation; the first, which warms up, does not count."""
        pairs: list[tuple[Spent, Spent]] = []
        for number in range(self.sizes.pairs + 1):
            os.sync()
            first = (theirs if number % 2 else ours)(number)
            os.sync()
            second = (ours if number % 2 else theirs)(number)
            pairs.append((second, first) if number % 2 else (first, second))
        pairs = pairs[1:]
        return {
            "section": "files beside rsync (ratios below 1: ours is faster)",
            "work": name,
            "ratio": f"{statistics.median(one.wall / other.wall for one, other in pairs):.2f}",
            "must": must,
            "aim": aim,
            "cpu_ratio": f"{statistics.median(one.cpu / other.cpu for one, other in pairs):.2f}",
            "ours_s": f"{statistics.median(one.wall for one, _ in pairs):.3f}",
            "rsync_s": f"{statistics.median(other.wall for _, other in pairs):.3f}",
            "ours_cpu_s": f"{statistics.median(one.cpu for one, _ in pairs):.3f}",
            "rsync_cpu_s": f"{statistics.median(other.cpu for _, other in pairs):.3f}",
        }


def large(bench: Bench) -> list[dict[str, Any]]:
    source = bench.base / "large"
    large_files(source, bench.sizes.large)
    rows = []

    def once(copy: Callable[[Path], Spent]) -> Callable[[int], Spent]:
        def run(_: int) -> Spent:
            target = bench.fresh()
            try:
                return copy(target)
            finally:
                shutil.rmtree(target)  # a few inodes; keeping the bytes would need too much room

        return run

    for verify, options in ((False, "rsync -a"), (True, "rsync -a --checksum")):
        name = f"B: 4 large files, first copy{', verified' if verify else ''} ({options})"
        rows.append(
            bench.compare(
                name,
                once(lambda target, verify=verify: bench.ours(source, target, verify)),  # type: ignore[misc]
                once(lambda target, verify=verify: bench.theirs(source, target, verify)),  # type: ignore[misc]
                "0.20",
                "0.06",
            )
        )
    shutil.rmtree(source)
    return rows


def small(bench: Bench) -> list[dict[str, Any]]:
    source = bench.base / "small"
    small_files(source, bench.sizes.files)
    os.sync()
    rows = []
    ours, theirs = bench.fresh(), bench.fresh()
    for verify, options in ((False, "rsync -a"), (True, "rsync -a --checksum")):
        name = f"A: {bench.sizes.files} small files, first copy{', verified' if verify else ''} ({options})"
        rows.append(
            bench.compare(
                name,
                lambda _, verify=verify: bench.ours(source, bench.fresh(), verify),  # type: ignore[misc]
                lambda _, verify=verify: bench.theirs(source, bench.fresh(), verify),  # type: ignore[misc]
                "0.60",
                "0.45",
            )
        )
    bench.ours(source, ours, False)
    bench.theirs(source, theirs, False)

    def both(name: str, checksum: bool, must: str, aim: str) -> None:
        rows.append(
            bench.compare(
                name,
                lambda _: bench.ours(source, ours, checksum),
                lambda _: bench.theirs(source, theirs, checksum),
                must,
                aim,
            )
        )

    pairs = bench.sizes.pairs
    bench.sizes = bench.sizes._replace(pairs=pairs * 3)  # these are short
    both("C: A unchanged (rsync -a)", False, "0.70, CPU 1.20", "0.50")
    both("A unchanged, all contents compared (rsync -a --checksum)", True, "0.70", "0.50")
    rows.append(changed(bench, source, ours, theirs))
    bench.sizes = bench.sizes._replace(pairs=pairs)
    return rows


def changed(bench: Bench, source: Path, ours: Path, theirs: Path) -> dict[str, Any]:
    """Both see the same change in each pair: it is made before the first of them runs."""
    seen: set[int] = set()

    def after_change(number: int) -> None:
        if number not in seen:
            seen.add(number)
            change(source, number)

    def run_ours(number: int) -> Spent:
        after_change(number)
        return bench.ours(source, ours, False)

    def run_theirs(number: int) -> Spent:
        after_change(number)
        return bench.theirs(source, theirs, False)

    return bench.compare("D: 1 % of A changed (rsync -a)", run_ours, run_theirs, "0.80", "0.60")


def run(quick: bool = False) -> list[dict[str, Any]]:
    rsync = shutil.which("rsync")
    if rsync is None:
        return [{"section": "files beside rsync", "work": "skipped: the package rsync is not installed"}]
    here, there = get_context("spawn").Pipe()
    engine = get_context("spawn").Process(target=serve, args=(there,))
    engine.start()
    base = Path(tempfile.mkdtemp(prefix="undrift-bench-"))
    try:
        bench = Bench(base, here, rsync, QUICK if quick else FULL)
        rows = small(bench)
        bench.clear()
        return [*rows, *large(bench)]
    finally:
        here.send(None)
        engine.join(10)
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    from tests.benchmarks.__main__ import _print

    _print(run("--quick" in sys.argv))
