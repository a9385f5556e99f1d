"""A second process for one piece of work: forked, ended with its parent, its answer sent back through a pipe."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

import msgspec
from msgspec import Struct

from domain import errors
from infra import linux

_WAIT_MS = 20


class _Answer(Struct):
    """The value, or the error of the catalogue that was raised, or the text of another exception."""

    value: bytes = b""
    code: str | None = None
    text: str = ""
    details: dict[str, str] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Answer).decode


class Second:
    """Runs `work` in a forked child. Only for a process without other threads and without an event loop."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        self._pipe, theirs = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _child(work, parent, theirs)
        os.close(theirs)

    def answer(self, meanwhile: Callable[[], object]) -> bytes:
        """Waits for the child; `meanwhile` is called again and again. Raises what the child raised."""
        parts = []
        ready = select.poll()  # select() knows no descriptor above 1023
        ready.register(self._pipe, select.POLLIN)
        while True:
            if not ready.poll(_WAIT_MS):
                meanwhile()
            elif part := os.read(self._pipe, 1 << 16):
                parts.append(part)
            else:
                break
        self._end()
        if not parts:
            raise errors.SyncFailed("A helper process ended unexpectedly")
        answer: _Answer = _decode(b"".join(parts))
        if answer.code is not None:
            raise errors.catalogue().get(answer.code, errors.SyncFailed)(answer.text, **answer.details)
        if answer.text:
            raise RuntimeError(answer.text)
        return answer.value

    def kill(self) -> None:
        """When its answer is no longer wanted."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._end()

    def _end(self) -> None:
        os.close(self._pipe)
        os.waitpid(self._pid, 0)
        self._pid = 0


def _child(work: Callable[[], bytes], parent: int, pipe: int) -> NoReturn:
    try:
        linux.die_with_parent(parent)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the parent hears of it and stops both
        try:
            answer = _Answer(work())
        except errors.Error as error:
            details = {name: str(value) for name, value in error.details.items()}
            answer = _Answer(code=error.code, text=error.message, details=details)
        except Exception:
            answer = _Answer(text=traceback.format_exc())
        data = memoryview(_encode(answer))
        while data:
            data = data[os.write(pipe, data) :]
    finally:
        os._exit(0)
