"""What a piece of work took is measured, and what was before it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import json, os, sys, time
from services.worker.meter import Meter

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

MIB = 1024 * 1024
before = Meter()
large = bytearray(os.urandom(1)) * (200 * MIB)
burn(0.2)
first = before.read()
del large
meter = Meter()
small = bytearray(os.urandom(1)) * (20 * MIB)
second = meter.read()
del small
meter = Meter()
if os.fork() == 0:
    inner = bytearray(os.urandom(1)) * (300 * MIB)
    burn(0.2)
    os._exit(0)
os.wait()
third = meter.read()
print(json.dumps([[one.cpu_ms, one.peak_bytes // MIB] for one in (first, second, third)]))
"""


def measured() -> Any:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(ran.stdout)


def test_cpu_and_memory_are_those_of_the_work() -> None:
    first, second, third = measured()
    assert 200 <= first[0] < 20_000
    assert first[1] >= 200
    assert second[0] < first[0]
    assert 20 <= second[1] < 200  # what was given back before is forgotten
    assert third[0] >= 200  # with its own children
    assert third[1] >= 300
