"""Logs: one structured line per unit of work, on stderr; JSON, or readable on a terminal; never a secret in it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
from asyncio import CancelledError
from collections.abc import Iterator, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, NamedTuple, TextIO, cast

import structlog
from structlog.typing import Processor, WrappedLogger

from infra import config

HIDDEN = "[redacted]"
_LONGEST, _LONGEST_TRACE = 4_000, 16_000
_DEEPEST = 6

_SECRET_NAME = re.compile(
    r"(^|_|-)(token|secret|password|passwd|pwd|passphrase|authorization|cookie|credentials?|dsn|api_?key"
    r"|private_?key|access_?key|master_?key|(database|nats|connection)_?(url|string))s?$",
    re.IGNORECASE,
)


class _Shape(NamedTuple):
    """What a secret looks like; `sign` is looked for first, because nearly no text has it."""

    sign: str
    shortest: int
    pattern: re.Pattern[str]
    instead: str


_SHAPES = (
    _Shape("://", 8, re.compile(r"\b([a-z][a-z0-9+.-]{0,20})://[^\s/@\"']*@[^\s\"']*", re.I), rf"\1://{HIDDEN}"),
    _Shape(" ", 14, re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.I), rf"\1 {HIDDEN}"),
    _Shape(
        "=",
        5,
        re.compile(r"\b(password|passwd|pwd|secret|token|api[_-]?key|accountkey)(\s*=\s*)[^\s,;&\"']+", re.I),
        rf"\1\2{HIDDEN}",
    ),
    _Shape(
        ":",
        5,
        re.compile(r"\b(password|passwd|pwd|secret|token|api[_-]?key|accountkey)(\s*:\s*)[^\s,;&\"']+", re.I),
        rf"\1\2{HIDDEN}",
    ),
    _Shape("udk_", 10, re.compile(r"\budk_[\w-]+"), HIDDEN),
    _Shape("whsec_", 10, re.compile(r"\bwhsec_[\w+/=-]+"), HIDDEN),
    _Shape("eyJ", 10, re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),
    # the lengths of 32 random bytes in base64 and of a panel's token; hashes have no upper case
    _Shape(
        "",
        43,
        re.compile(
            r"(?<![\w+-])(?=[\w-]*[a-z])(?=[\w-]*[A-Z])(?=[\w-]*[0-9])(?:[\w-]{43}|[\w-]{64})(?![\w+-])", re.ASCII
        ),
        HIDDEN,
    ),
)
# what moves a cursor, reorders text or ends a line; and halves of characters, which stand for undecodable bytes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_CONTROL_IN_TRACE = re.compile(_CONTROL.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))


def setup(settings: config.Log, process: str = "", stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging; each line names this process where it has a name."""
    stream = stream or sys.stderr
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    shared = _processors(process)
    render: list[Processor] = [_for_terminal, _console()] if console else [_as_json]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Patient(stream))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if settings.level == "debug" else logging.WARNING)
    logging.captureWarnings(True)
    logging.raiseExceptions = False
    _quiet_libraries()


class _Patient:
    """A stream that may be gone: work does not fail because nobody reads of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def get(**fields: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `fields`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


@contextlib.contextmanager
def unit(message: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """The canonical line of one unit of work, written when it ends: what the block put in, and `duration_ms`.

    A failure is in that line and raised on: who handles it need not log it again.
    """
    line: dict[str, Any] = dict(fields)
    begun = time.monotonic()
    level = logging.INFO
    try:
        yield line
    except (CancelledError, GeneratorExit):
        line.setdefault("outcome", "cancelled")
        raise
    except BaseException as error:
        level = logging.ERROR
        line |= {"outcome": "failed", "error": type(error).__name__, "reason": str(error)}
        raise
    finally:
        line["duration_ms"] = round((time.monotonic() - begun) * 1000, 2)
        get().log(level, message, **line)


def _processors(process: str) -> list[Processor]:
    def name(logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        if process:
            event.setdefault("process", process)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name,
        structlog.processors.format_exc_info,
        redact,
    ]


def redact(logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide what has a secret's name or looks like one, and cut what is too long for a line."""
    for key, value in event.items():
        if type(value) is int or type(value) is float or key == "timestamp":
            continue
        event[key] = _clean(key, value, 0)
    return event


def _clean(key: str, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _is_secret(key):
        return HIDDEN
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_text(str(name), _LONGEST): _clean(str(name), each, depth + 1) for name, each in value.items()}
    if depth < _DEEPEST and isinstance(value, (list, tuple, set, frozenset)):
        return [_clean("", each, depth + 1) for each in value]
    text = value if isinstance(value, str) else str(value)
    return _text(text, _LONGEST_TRACE if key in ("exception", "stack") else _LONGEST)


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _text(text: str, longest: int) -> str:
    """Cut first: a pattern must not spend its time on what nobody will read."""
    rest = len(text) - longest
    if rest > 0:
        text = text[:longest]
    for shape in _SHAPES:
        if len(text) >= shape.shortest and shape.sign in text:
            text = shape.pattern.sub(shape.instead, text)
    return f"{text}… and {rest} characters more" if rest > 0 else text


def _as_json(logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> str:
    ordered = {"timestamp": event.pop("timestamp", None), "level": event.pop("level", None)}
    ordered |= {"message": event.pop("event", None), **event}
    return _escape(_CONTROL, _encode(ordered))


def _for_terminal(logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    for key, value in event.items():
        if not isinstance(value, (bool, int, float)) and value is not None:
            pattern = _CONTROL_IN_TRACE if key in ("exception", "stack") else _CONTROL
            event[key] = _escape(pattern, str(value))
    return event


def _escape(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _console() -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=True, exception_formatter=structlog.dev.plain_traceback, pad_event_to=40, sort_keys=False
    )


def _quiet_libraries() -> None:
    """Their lines come through ours; the gateway's own line replaces uvicorn's of each request."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "nats", "asyncio", "py.warnings"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
