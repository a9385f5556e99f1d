"""How a server is known to have started: by words in its output, or by patterns.

Patterns are of the Panel's making, and some take for ever: a process of their own tries them, and is ended when it
takes too long.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence

_PREFIX = "regex:"
_PATIENCE_S = 2.0
#: Of a line that is looked at.
_LONGEST = 2048
_ANSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

_PROGRAM = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
patterns = [re.compile(one) for one in json.loads(sys.stdin.readline())]
for line in sys.stdin:
    text = json.loads(line)
    sys.stdout.write("1" if any(one.search(text) for one in patterns) else "0")
    sys.stdout.flush()
"""


class TooSlow(Exception):
    """The patterns took too long; they are not tried any more."""


class Matching:
    """Of one start. `complaints` are patterns that are none; it is `empty` where there is nothing to look for."""

    def __init__(self, done: Sequence[str], strip_ansi: bool) -> None:
        self.complaints: list[str] = []
        self._strip = strip_ansi
        self._words = [word.encode() for word in done if word and not word.startswith(_PREFIX)]
        self._patterns = [
            one for one in (word.removeprefix(_PREFIX) for word in done if word.startswith(_PREFIX)) if one
        ]
        for pattern in list(self._patterns):
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError):
                self._patterns.remove(pattern)
                self.complaints.append(pattern)
        self._child: asyncio.subprocess.Process | None = None

    @property
    def empty(self) -> bool:
        return not self._words and not self._patterns

    async def matches(self, line: bytes) -> bool:
        """Raises TooSlow, once; then only the words are left."""
        line = (_ANSI.sub(b"", line) if self._strip else line)[:_LONGEST]
        if any(word in line for word in self._words):
            return True
        return bool(self._patterns) and await self._tried(line.decode(errors="replace"))

    async def _tried(self, text: str) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                child = self._child or await self._begin()
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(json.dumps(text).encode() + b"\n")
                await child.stdin.drain()
                answer = await child.stdout.readexactly(1)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            self._patterns = []
            await self.close()
            raise TooSlow from None
        return answer == b"1"

    async def _begin(self) -> asyncio.subprocess.Process:
        self._child = child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-ISc",
            _PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(self._patterns).encode() + b"\n")
        return child

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            child.kill()
            await child.wait()
