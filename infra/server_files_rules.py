"""What is to be written into a server's files: the Panel's rules, with their conditions and placeholders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

Scalar = str | int | float | bool | None

PARSERS = ("file", "yaml", "yml", "properties", "ini", "json", "xml")

_PLACEHOLDER = re.compile(r"{{\s*([\w.-]+)\s*}}")
_TEMPLATE = re.compile(r"\$(?:(\$)|(\w+)|{(\w+)})", re.ASCII)
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_REGEX = "regex:"
#: What a pattern is tried on; no address or port is longer.
_SUBJECT = 4096


class Rule(Struct, frozen=True):
    """`match` says where in the words of its parser, `value` what is there from now on, if `condition` (a value, or a
    pattern) meets what is there."""

    match: str
    value: Scalar
    condition: str = ""
    pattern: re.Pattern[str] | None = None

    def applies(self, present: str | None) -> bool:
        if self.pattern is not None:
            return present is not None and self.pattern.search(present[:_SUBJECT]) is not None
        return not self.condition or present == self.condition

    def made(self, present: str | None) -> Scalar:
        """A pattern replaces what it matches, and may keep parts of it as `$1` and `${name}`."""
        if self.pattern is None:
            return self.value
        return self.pattern.sub(self._expanded, present or "")

    def _expanded(self, match: re.Match[str]) -> str:
        def group(found: re.Match[str]) -> str:
            name = found[2] or found[3]
            if found[1] is not None:
                return "$"
            try:
                return match[int(name) if name.isdecimal() else name] or ""
            except IndexError:
                return ""

        return _TEMPLATE.sub(group, text(self.value))


class File(Struct, frozen=True):
    name: str
    parser: str
    rules: tuple[Rule, ...]


class Broken(ValueError):
    """A file is not what its parser reads; the message has none of its content."""


def text(value: Scalar) -> str:
    """As files of text have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def read(files: str, variables: Mapping[str, Any]) -> tuple[list[File], list[str]]:
    """The files, and warnings about what in them is of no use."""
    try:
        found = msgspec.json.decode(files)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = None
    if not isinstance(found, list):
        return [], ["the settings to be written into files are not what the Panel's interface says"]
    made: list[File] = []
    warnings: list[str] = []
    for one in found:
        match one:
            case {"file": str(name), "parser": str(parser)} if parser in PARSERS:
                rules = one.get("replace") or []
                made.append(File(name, parser, tuple(_rules(name, rules, variables, warnings))))
            case _:
                warnings.append("a file to be written has no name, or no known parser")
    return made, warnings


def _rules(name: str, found: Any, variables: Mapping[str, Any], warnings: list[str]) -> Sequence[Rule]:
    made: list[Rule] = []
    for one in found if isinstance(found, list) else [None]:
        try:
            made.append(_rule(one, variables))
        except Broken as broken:
            warnings.append(f"{name}: {broken}")
    return made


def _rule(found: Any, variables: Mapping[str, Any]) -> Rule:
    """Raises Broken."""
    if not isinstance(found, dict) or found.get("match") is None:
        raise Broken("a replacement without a match was left out")
    match, value = found["match"], found.get("replace_with", found.get("value"))
    condition = found.get("if_value")
    if any(isinstance(each, list | dict) for each in (match, value, condition)):
        raise Broken("a replacement that is no plain value was left out")
    made = Rule(text(match), _filled(value, variables), text(condition))
    if not made.condition.startswith(_REGEX):
        return made
    try:
        pattern = re.compile(made.condition.removeprefix(_REGEX))
    except (re.error, RecursionError, OverflowError):
        raise Broken(f"the condition of {made.match!r} is no pattern, and nothing is replaced there") from None
    return Rule(made.match, made.value, made.condition, pattern)


def _filled(value: Scalar, variables: Mapping[str, Any]) -> Scalar:
    """What is not known stays as it stands, so that whoever looks sees why."""
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = _variable(match[1], variables)
        return match[0] if found is None else text(found)

    return _PLACEHOLDER.sub(fill, value)


def _variable(name: str, variables: Mapping[str, Any]) -> Scalar:
    """By its whole name, or step by step; `config.docker.networkInterface` is `config.docker.network_interface`."""
    for key in (name, _INNER_CAPITAL.sub("_", name).lower()):
        found: Any = variables.get(key)
        if found is None:
            found = variables
            for part in key.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(found, str | int | float):
            return found
    return None
