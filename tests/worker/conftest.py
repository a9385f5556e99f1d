"""The workshop of the tests of connectors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain import kinds
from services.worker import children, sources
from tests.conftest import _copy
from tests.worker import outside
from tests.worker.workshop import Workshop, open_workshop


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
async def workshop(postgres_server: str, migrated_template: str, directory: Path) -> AsyncIterator[Workshop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "PROGRAM", "tests.worker.outside")
        patch.setattr(kinds, "KINDS", outside.KINDS)
        patch.setattr(sources, "SOURCES", outside.SOURCES)
        async for url in _copy(postgres_server, migrated_template):
            async with open_workshop(url, directory) as made:
                yield made
