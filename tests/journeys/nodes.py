"""A node of a Panel's: both over real sockets, with servers that were taken over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.doubles import panel as double
from tests.journeys.system import QUICK, Answer, System


def settings(panel: double.Panel, **changed: Any) -> str:
    made = {"budget_s": 3.0, "list_s": 0, **changed}
    lines = "".join(f"{name} = {value}\n" for name, value in made.items())
    return f'{QUICK}\n[panel]\nurl = "{panel.url}"\ntoken_id = "{double.TOKEN_ID}"\ntoken = "{double.TOKEN}"\n{lines}'


@pytest.fixture(scope="module")
def panel() -> Iterator[double.Panel]:
    with double.Panel() as one:
        yield one


@pytest.fixture(scope="module")
def node(panel: double.Panel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("node"), settings=settings(panel))
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture(autouse=True)
def untroubled(panel: double.Panel) -> Iterator[None]:
    yield
    panel.trouble = None


def ask(node: System, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    answer = node.call(method, path, body, token=double.TOKEN, headers=headers)
    assert answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-credentials"] == "true"
    return answer


def taken_over(node: System, panel: double.Panel, **changed: Any) -> str:
    uuid = panel.add(**changed)
    answer = ask(node, "POST", "/api/servers", {"uuid": uuid})
    assert (answer.status, answer.body) == (202, b""), answer
    return uuid
