"""The log: one line per unit of work, whatever is in it, and no secret."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from infra import config, log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    before = (root.handlers[:], root.level, access.disabled, logging.raiseExceptions)
    yield io.StringIO()
    root.handlers[:], root.level, access.disabled, logging.raiseExceptions = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def only(stream: io.StringIO) -> dict[str, Any]:
    (line,) = lines(stream)
    return line


def test_a_line_is_one_json_object_with_its_fields(stream: io.StringIO) -> None:
    log.setup(config.Log(), "gateway", stream)
    log.get(job="j1").info("copied", size_bytes=7, names=["a", "b"])
    line = only(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "message": "copied",
        "job": "j1",
        "size_bytes": 7,
        "names": ["a", "b"],
        "process": "gateway",
    }


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("name", ["a\r\nb", "\x1b[2J", "\u202egpj.exe", "\u2028", "\x9b31m", "\udce9", "x" * 100_000])
def test_no_name_breaks_a_line_or_moves_the_cursor(stream: io.StringIO, format: str, name: str) -> None:
    log.setup(config.Log(format=format), "worker", stream)
    log.get().warning(f"skipped {name}", path=name, inside={"names": [name]})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert len(text) < 20_000
    assert not set(text) & set("\r\x9b\u202e\u2028\udce9")
    assert "\x1b[2J" not in text
    text.encode()


SECRET = "R3VuZ2VyX19hYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3g"


@pytest.mark.parametrize(
    "fields",
    [
        {"token": SECRET},
        {"admin_token": SECRET},
        {"headers": {"Authorization": f"Bearer {SECRET}"}},
        {"database_url": f"postgresql://me:{SECRET}@host/db"},
        {"reason": f"could not connect to postgresql://me:{SECRET}@host:5432/db?x=1 (refused)"},
        {"reason": f"nats://{SECRET}@host"},
        {"reason": f"header was bearer {SECRET}"},
        {"reason": f"Server=x;Password={SECRET};Encrypt=yes"},
        {"reason": f"whsec_{SECRET}"},
        {"reason": f"no key udk_admin_{SECRET}"},
        {"path": f"/s/{SECRET}"},
        {"path": f"/s/{SECRET}?x=1", "arguments": [("a", SECRET)]},
        {"reason": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0." + SECRET},
    ],
)
@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_are_hidden(stream: io.StringIO, format: str, fields: dict[str, Any]) -> None:
    log.setup(config.Log(format=format), "gateway", stream)
    log.get().info("request", **fields)
    assert SECRET not in stream.getvalue()
    assert log.HIDDEN in stream.getvalue()


def test_hashes_ids_and_counts_are_not_secrets(stream: io.StringIO) -> None:
    log.setup(config.Log(), "gateway", stream)
    fields = {
        "plan": "0123456789abcdef" * 4,
        "job": "0190c7a2-7a6e-7cc3-98b1-2f0d3a1b9c55",
        "path": "/srv/Holiday Pictures/IMG_20240102.jpeg",
        "url": "http://127.0.0.1:8080/api",
        "tokens_left": 3,
        "status": 200,
        "ok": True,
    }
    log.get().info("request", **fields)
    assert {key: only(stream)[key] for key in fields} == fields


def test_a_failed_unit_of_work_is_one_line_and_raises_on(stream: io.StringIO) -> None:
    log.setup(config.Log(), "worker", stream)

    def work() -> None:
        with log.unit("sync", job="j1") as line:
            line["files"] = 3
            raise ValueError(f"no such host postgresql://a:{SECRET}@b")

    with pytest.raises(ValueError, match="no such host"):
        work()
    found = only(stream)
    assert found.pop("duration_ms") >= 0
    assert found["reason"] == "no such host postgresql://[redacted]"
    assert (found["message"], found["level"], found["outcome"]) == ("sync", "error", "failed")
    assert (found["job"], found["files"], found["error"]) == ("j1", 3, "ValueError")


def test_an_exception_is_in_its_line_without_its_secrets(stream: io.StringIO) -> None:
    log.setup(config.Log(), "worker", stream)
    try:
        raise RuntimeError(f"password={SECRET}")
    except RuntimeError:
        log.get().exception("failed")
    assert "RuntimeError: password=[redacted]" in only(stream)["exception"]
    assert SECRET not in stream.getvalue()


def test_the_standard_library_logs_through_the_same_lines(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("nats"), "level", logging.NOTSET)  # a bus of another test has silenced it
    logging.getLogger("nats.aio").manager._clear_cache()
    log.setup(config.Log(), "gateway", stream)
    logging.getLogger("uvicorn.error").warning("bad request from %s", f"nats://u:{SECRET}@h")
    logging.getLogger("uvicorn.access").warning("GET / 200")
    logging.getLogger("nats.aio").error("lost\r\n\x1b[0m")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    found = [(line["logger"], line["level"], line["message"]) for line in lines(stream)]
    assert found[:2] == [
        ("uvicorn.error", "warning", "bad request from nats://[redacted]"),
        ("nats.aio", "error", "lost\r\n\x1b[0m"),
    ]
    assert found[2][:2] == ("py.warnings", "warning")
    assert "DeprecationWarning: old" in found[2][2]
    assert "\x1b" not in stream.getvalue()


def test_lines_below_the_level_are_not_written(stream: io.StringIO) -> None:
    log.setup(config.Log(level="warning"), "gateway", stream)
    log.get().info("quiet")
    log.get().warning("loud")
    assert only(stream)["message"] == "loud"


def test_work_goes_on_when_nobody_reads_the_log(stream: io.StringIO) -> None:
    log.setup(config.Log(), "gateway", stream)
    stream.close()
    with log.unit("sync") as line:
        line["files"] = 3
    logging.getLogger("uvicorn.error").error("lost")
    assert line["files"] == 3
