"""Processes load what they need, and the rest when it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infra import lean


def loaded(code: str) -> set[str]:
    """The modules of a new process that has run this."""
    command = [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"]
    return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout))


@pytest.mark.parametrize("module", ["gateway.__main__", "core", "worker.__main__", "worker.engines", "up", "cli"])
def test_a_process_takes_nothing_along_that_it_does_not_use(module: str) -> None:
    assert not loaded(f"import services.{module}") & {"aiohttp.client", "rich", "watchfiles", "pydantic"}


def test_what_is_left_out_of_a_library_can_be_loaded_all_the_same() -> None:
    found = loaded("import services, structlog, nats; import rich.text, aiohttp")
    assert found >= {"structlog", "nats.aio.client", "rich.text", "aiohttp.client"}


def test_what_is_loaded_stays_and_the_rest_is_not_found() -> None:
    code = """
from infra import lean
import json
with lean.without("json", "mailbox"):
    import json
    try:
        import mailbox
    except ImportError as error:
        assert error.name == "mailbox"
"""
    assert "mailbox" not in loaded(code)
    assert "mailbox" in loaded(f"{code}import mailbox")


def test_what_comes_later_is_there_at_its_first_use() -> None:
    code = "from infra import lean; aiohttp = lean.later('aiohttp')"
    assert "aiohttp.client" not in loaded(code)
    assert "aiohttp.client" in loaded(f"{code}; aiohttp.ClientTimeout")


def test_what_is_not_there_is_said_at_once() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        lean.later("nowhere_to_be_found")
