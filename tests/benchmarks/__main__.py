"""Runs the benchmarks that exist and prints one table per section, each figure beside its peer and its target."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import time
from typing import Any

MODULES = (
    "append",
    "http",
    "projector",
    "relay",
    "files",
    "collections",
    "streams",
    "library",
    "webhooks",
    "consumers",
    "servers",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; all without")
    parser.add_argument("--quick", action="store_true", help="short runs: to see that they work, not for figures")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - set(MODULES):
        parser.error(f"there is no benchmark {min(unknown)}")
    for name in arguments.modules or MODULES:
        if importlib.util.find_spec(f"tests.benchmarks.{name}") is None:
            continue
        began, cpu = time.monotonic(), os.times()
        rows = importlib.import_module(f"tests.benchmarks.{name}").run(arguments.quick)
        _print(rows)
        spent = sum(os.times()[:4]) - sum(cpu[:4])
        load = os.getloadavg()[0]
        print(f"{name}: {time.monotonic() - began:.0f} s, {spent:.0f} CPU s of ours, load {load:.1f}\n", flush=True)


def _print(rows: list[dict[str, Any]]) -> None:
    """A table for each `section`, in the order of the rows; a row without a column leaves it empty."""
    for section in dict.fromkeys(row.get("section", "") for row in rows):
        mine = [
            {k: str(v) for k, v in row.items() if k != "section"} for row in rows if row.get("section", "") == section
        ]
        columns = list(dict.fromkeys(column for row in mine for column in row))
        widths = {c: max(len(c), *(len(row.get(c, "")) for row in mine)) for c in columns}
        print(section)
        print("  " + "  ".join(c.ljust(widths[c]) for c in columns))
        for row in mine:
            print("  " + "  ".join(row.get(c, "").ljust(widths[c]) for c in columns).rstrip())
        print()


if __name__ == "__main__":
    main()
