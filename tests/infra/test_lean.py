"""What a gateway need not load is not loaded, and can be, later."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import services.gateway.__main__
print(sorted({"aiohttp", "rich", "watchfiles", "pydantic"} & sys.modules.keys()))
import aiohttp, rich.console
from infra import lean
with lean.without("aiohttp", "mailbox"):
    import aiohttp
    try:
        import mailbox
    except ImportError as error:
        print(error.name)
import mailbox
"""


def test_a_gateway_takes_only_what_it_needs_and_others_find_the_rest() -> None:
    said = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split("\n")[:2] == ["[]", "mailbox"]
