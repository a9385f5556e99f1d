"""Checks compose.yaml: against the schema of the Compose Specification, and that what it names exists."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from infra import config, configfile

FILE = Path(__file__).resolve().parents[2] / "compose.yaml"


def problems(compose: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a compose file that was read, a line each."""
    schema = json.loads(resources.files("infra.deploy").joinpath("compose-spec.json").read_text("utf-8"))
    for error in jsonschema.Draft201909Validator(schema).iter_errors(compose):
        yield f"{error.json_path}: {error.message}"
    services = compose.get("services", {})
    for name, service in services.items():
        for other in service.get("depends_on", ()):
            if other not in services:
                yield f"services.{name}.depends_on: there is no service {other}"
        for volume in service.get("volumes", ()):
            source = str(volume).partition(":")[0]
            if not source.startswith((".", "/", "$")) and source not in compose.get("volumes", {}):
                yield f"services.{name}.volumes: there is no volume {source}"
        yield from _settings(name, service.get("environment", {}))


def _settings(name: str, environment: dict[str, str]) -> Iterator[str]:
    """Ours must be settings that would be accepted; a password from .env stands for itself."""
    ours = {key: str(value) for key, value in environment.items() if key.startswith("UNDRIFT_")}
    known = {setting.variable for setting in configfile.all_settings()} | set(configfile.PLAIN)
    for key in ours.keys() - known:
        yield f"services.{name}.environment: {key} is not a setting"
    try:
        configfile.load(None, ours)
    except config.InvalidSetting as error:
        yield f"services.{name}.environment: {error}"


def main() -> int:
    """Prints what is wrong; the exit code says whether anything is."""
    compose = yaml.safe_load(FILE.read_text("utf-8"))
    found = list(problems(compose))
    for line in found or [f"compose.yaml: {len(compose['services'])} services, as the specification wants them"]:
        sys.stdout.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
