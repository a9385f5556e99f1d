"""compose.yaml: valid, and the same processes as `undrift up`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deploy import check_compose
from services import up

COMPOSE: dict[str, Any] = yaml.safe_load(check_compose.FILE.read_text("utf-8"))


def test_it_is_valid() -> None:
    assert list(check_compose.problems(COMPOSE)) == []


def test_it_runs_the_processes_of_up() -> None:
    for program in up.programs(Path("/settings.json"), node=True, sftp=True):
        module = list(program.arguments[program.arguments.index("-m") : program.arguments.index("--config")])
        assert COMPOSE["services"][program.name]["command"] == ["python", *module]


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("services", "core", "comand"), ["x"], "'comand' does not match"),
        (("services", "core", "ports"), 5, "is not of type 'array'"),
        (("services", "core", "depends_on"), {"mysql": {"condition": "service_started"}}, "there is no service mysql"),
        (("services", "core", "volumes"), ["files:/data"], "there is no volume files"),
        (("services", "core", "environment", "UNDRIFT_GATEWAY_PROT"), "1", "UNDRIFT_GATEWAY_PROT is not a setting"),
        (("services", "core", "environment", "UNDRIFT_NATS_REPLICAS"), "0", "UNDRIFT_NATS_REPLICAS: expected int >= 1"),
    ],
)
def test_a_mistake_is_named(place: tuple[str, ...], value: Any, expected: str) -> None:
    compose = copy.deepcopy(COMPOSE)
    table = compose
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    assert expected in "\n".join(check_compose.problems(compose))
