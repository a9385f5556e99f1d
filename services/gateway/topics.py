"""Topics as clients name them, `jobs.completed` or `jobs.*`: in the event feed and for consumers outside."""

from __future__ import annotations

from collections.abc import Iterable

from domain import catalogue, errors, events

ALL = "*"


def check(asked: Iterable[str]) -> tuple[str, ...]:
    """The same, each once; () stands for all. Raises errors.Invalid for what no event is called."""
    wanted = tuple(dict.fromkeys(asked))
    for one in wanted:
        if not any(catalogue.matches((one,), topic) for topic in events.REGISTRY):
            raise errors.Invalid("There is no event of one of these topics; /schema/asyncapi.json lists them")
    return () if ALL in wanted else wanted


def parse(text: str | None) -> tuple[str, ...]:
    """Of a comma-separated list; without one, all."""
    return () if text is None else check(part.strip() for part in text.split(","))


def wants(wanted: tuple[str, ...], topic: str) -> bool:
    return not wanted or catalogue.matches(wanted, topic)
