"""The RAIDA network's users and servers, from all its directories at once: what most of them agree on, or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from domain import errors
from domain.plans import network as plan
from domain.plans import network_lists
from services.worker.collecting import Context, Gone, Item, Outcome, Page
from services.worker.network_fetch import Body, Fetched, fetch, ping

_SHOWN = 20


class Network:
    """A source of one page: the entities are the three lists, their ids the keys of the records."""

    atomic = True
    guarded = True

    def __init__(self, context: Context) -> None:
        self._context = context
        self._spec: plan.Spec = context.spec
        self._result: plan.Result | None = None

    def observe(self, cursor: Any | None) -> Iterator[Page]:
        """Raises errors.RemoteUnavailable, errors.SyncFailed (no majority), errors.Held, errors.PlanChanged."""
        yield Page(stage="fetching", percent=0)
        answers = self._read(fetch(self._spec, self._context.work, self._context.stopped, self._context.deadline))
        self._tell_troubles(answers)
        yield Page(stage="comparing", percent=60)
        accepted = plan.accept(answers, len(self._spec.directories))
        dissents = self._tell_dissents(answers, accepted)
        planned = self._plan(accepted)
        self._result = self._measure(answers, accepted, dissents)
        contents = msgspec.json.Decoder().decode
        items = [
            Item(name, key, contents(value)) for name, one in accepted.items() for key, value in one.records.items()
        ]
        gone = [Gone(one.list, one.key) for one in planned if one.op == "deleted"]
        yield Page(items, gone, stage="processing_items", percent=90)

    def outcome(self) -> Outcome:
        assert self._result is not None
        return Outcome(mark=None, complete=True, result=self._result)

    def _read(self, fetched: Fetched) -> plan.Answers:
        """Bodies become lists, those of the same bytes once."""
        read: dict[tuple[plan.List, bytes], plan.Listing | plan.Trouble] = {}
        answers: dict[plan.List, dict[str, plan.Listing | plan.Trouble]] = {name: {} for name in plan.PATHS}
        for (name, directory), found in fetched.items():
            if isinstance(found, Body):
                if (name, found.digest) not in read:
                    read[name, found.digest] = _parse(name, found, self._spec.max_rows)
                found.file.close()
                answers[name][directory] = read[name, found.digest]
            else:
                answers[name][directory] = found
        return answers

    # What a person reads in the job's log.

    def _tell_troubles(self, answers: plan.Answers) -> None:
        for directory in self._spec.directories:
            said: dict[str, list[str]] = {}
            for name in plan.PATHS:
                if isinstance(one := answers[name][directory], plan.Trouble):
                    said.setdefault(one.reason, []).append(name)
            for reason, names in said.items():
                which = "" if len(names) == len(plan.PATHS) else f"{', '.join(names)}: "
                self._context.log("warn", f"{directory}: {which}{reason}")
        for name, each in answers.items():
            listings = {id(one): one for one in each.values() if isinstance(one, plan.Listing) and one.troubles}
            weights = Counter(map(id, each.values()))
            for identity, listing in listings.items():
                text = "; ".join(listing.troubles)
                self._context.log("warn", f"{name} of {weights[identity]} directories: rows of no use: {text}")

    def _tell_dissents(self, answers: plan.Answers, accepted: plan.Accepted) -> tuple[str, ...]:
        found = plan.dissents(answers, accepted)
        for directory, differences in found.items():
            self._context.log("warn", f"{directory} dissents: {'; '.join(map(str, differences))}")
        counts = ", ".join(f"{len(one.records)} {name}" for name, one in accepted.items())
        total, gave = len(self._spec.directories), len(self._spec.directories) - len(self._silent(answers))
        self._context.log("info", f"{gave} of {total} directories gave lists; accepted: {counts}; {len(found)} dissent")
        return tuple(found)

    def _silent(self, answers: plan.Answers) -> tuple[str, ...]:
        """Who gave no list of use at all."""
        return tuple(
            directory
            for directory in self._spec.directories
            if all(isinstance(each[directory], plan.Trouble) for each in answers.values())
        )

    # What is done.

    def _plan(self, accepted: plan.Accepted) -> list[plan.Change]:
        known = {name: {id: self._context.known.hash(name, id) or "" for id in self._ids(name)} for name in plan.PATHS}
        planned = plan.changes(accepted, known)
        asked, hash = self._spec.plan_hash, plan.plan_hash(planned)
        if asked is not None and asked != hash:
            raise errors.PlanChanged(plan=hash)
        found = plan.suspicious(planned, known, self._spec.max_change_fraction)
        if found is not None and asked is None:
            self._context.confirm(hash, f"{found['changed']} of {found['known']} {found['list']} would change", found)
        return planned

    def _ids(self, name: plan.List) -> Iterator[str]:
        return iter(self._context.known.ids(name))

    def _measure(self, answers: plan.Answers, accepted: plan.Accepted, dissents: tuple[str, ...]) -> plan.Result:
        servers = accepted["servers"].records
        order = plan.ordered(servers, len(self._spec.directories))
        sightings = tuple(map(plan.Sighting, order))
        if self._spec.ping and order:
            where = [(id, content["ip_address"], content["port"]) for id, content in _contents(servers, order)]
            sightings = ping(where, self._spec.ping_timeout, self._context.stopped)
        return plan.Result(
            users_synced=len(accepted["users"].records),
            servers_synced=len(servers),
            raida_servers_synced=len(accepted["raida_servers"].records),
            last_server=order[-1] if order else None,
            servers=sightings,
            dissenters=dissents[:_SHOWN],
            silent=self._silent(answers)[:_SHOWN],
        )


def _contents(records: Any, order: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for id in order:
        yield id, msgspec.json.decode(records[id])


def _parse(name: plan.List, body: Body, max_rows: int) -> plan.Listing | plan.Trouble:
    try:
        return network_lists.parse(name, body.read(), max_rows)
    except errors.Invalid as error:
        return plan.Trouble(error.message, reached=True)
