"""What Schemathesis is told beyond the document: folders that are there, and which 5xx the contract gives."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import Any

import msgspec
import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.hooks import HookContext

from domain import kinds
from services.gateway import node_update, webhooks_shapes

ROOT = Path(os.environ["FUZZED_ROOT"])
FAILED = os.environ.get("FUZZED_JOBS", "").split(",")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KEY = re.compile(r"[!-~]{1,255}")
NETWORK = ("/api/admin/sync", "/api/admin/servers/parity", "/api/data/servers", "/api/data/users/search")
SERVER = "RAIDA1"
#: Of its ranges, which are more than their schema, hardly any is one by chance.
REPLAY = "/api/v1/webhooks/{webhook_id}/replay"
PEOPLE: dict[str, Any] = msgspec.json.decode(os.environ["FUZZED_PEOPLE"])
#: The users' own routes: which of the people asks. Those that end sessions and devices are asked by others.
LIBRARY = re.compile(r"/api/v1/(?:auth/|sync/(?!files|session))")
#: The Panel's routes: whatever is sent, it goes on by the token that it has.
NODE = re.compile(os.environ["FUZZED_NODE"])
RENEWED = {name: re.compile(pattern) for name, pattern in (("token_id", node_update.ID), ("token", node_update.TOKEN))}
ENDS = {"/api/v1/auth/logout": "leaving", "/api/v1/auth/revoke-all": "left"}
#: What is hardly ever right by chance, and may be left out.
LEFT_OUT = ("X-Device-Token", "Content-Digest", "X-Chunk-Hash")
OF_SERVERS = {
    500: {"POST /api/servers", "POST /api/servers/{server}/sync"},
    502: {"POST /api/servers/{server}/commands"},
}
CAUSES = {500: {"SYNC_FAILED"}, 503: {"UNAVAILABLE", "TIMED_OUT"}, 507: {"INSUFFICIENT_STORAGE"}}


def _folders(number: int) -> dict[str, str]:
    return {
        "sourceDirectory": str(ROOT / f"fuzzed-source-{number % 3}"),  # the third is not there
        "targetDirectory": str(ROOT / f"fuzzed-target-{number % 5}"),
    }


@schemathesis.auth(refresh_interval=None)
class Credential:
    """Libraries are opened by people, servers by the Panel, everything else by the installation's own key."""

    def get(self, case: Case[Any], context: Any) -> str:
        path = case.operation.path
        if NODE.match(path):
            return str(PEOPLE["node"])
        if not LIBRARY.match(path):
            return str(PEOPLE["admin"])
        if path in ENDS:
            return str(PEOPLE[ENDS[path]])
        return str(PEOPLE["owner" if "/auth/" in path or "/devices" in path else "device"])

    def set(self, case: Case[Any], data: str, context: Any) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Every other request names things that are there; what is no text, or no id, stays. A key of idempotency is of one
    request only: another scenario's answer, told again, would name what that scenario has deleted since."""
    headers: Any = case.headers or {}
    key = headers.get("Idempotency-Key")
    if isinstance(key, str) and KEY.fullmatch(key):
        headers["Idempotency-Key"] = f"{key[:200]}-{case.id}"
    if zlib.crc32(case.id.encode()) % 4:
        case.headers.pop("Undrift-Session", None)
    if zlib.crc32(case.id.encode()) % 2 and LIBRARY.match(case.operation.path):
        for name in LEFT_OUT:
            case.headers.pop(name, None)
        if case.query:
            case.query.pop("device_id", None)
    given = case.path_parameters or {}
    if case.operation.path == "/api/update" and isinstance(case.body, dict):
        found = {name: case.body[name] for name in RENEWED if isinstance(case.body.get(name), str)}
        case.body |= {
            name: PEOPLE["bodies"]["/api/update"][name] for name, text in found.items() if RENEWED[name].search(text)
        }
    kept = PEOPLE["ids"].get("device_id", {"any": []})
    if case.operation.method.upper() == "DELETE" and given.get("device_id") in kept["any"]:
        case.path_parameters["device_id"] = kept["DELETE /api/v1/sync/devices/{device_id}"][0]  # others need it
    for name, known in PEOPLE["ids"].items():
        text = given.get(name)
        if isinstance(text, str) and text and zlib.crc32(text.encode(errors="replace")) % 2:
            if name == "job_id" and case.operation.label.rpartition("/")[2] not in (
                "stop",
                "revert",
                "history",
                "{other_id}",
            ):
                continue  # the others have theirs already
            if name == "device_id" and MADE.fullmatch(text):
                continue  # the scenario's own, which is to be found
            mine = known.get(case.operation.label, known["any"])
            case.path_parameters[name] = mine[zlib.crc32(text.encode(errors="replace")) // 2 % len(mine)]


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Every other id of a job is that of one that failed, so that it may be resumed; what is no id stays."""
    id = path_parameters.get("job_id") if path_parameters else None
    if isinstance(id, str) and ID.fullmatch(id) and zlib.crc32(id.encode()) % 2:
        return {**(path_parameters or {}), "job_id": FAILED[len(id) % len(FAILED)]}
    return path_parameters


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Every other body that names folders names some below the root; what makes it invalid otherwise stays."""
    if not isinstance(body, dict) or context.operation is None:
        return body
    number = zlib.crc32(msgspec.json.encode(body, enc_hook=str))
    if number % 2:
        return body
    if context.operation.path == "/api/v1/sync/files":
        named = [body.get("sourceDirectory"), body.get("targetDirectory")]
        if all(isinstance(name, str) and name.startswith("/") for name in named):
            return {**body, **_folders(number // 2)}
    elif context.operation.path == "/api/admin/servers/parity" and isinstance(body.get("server_id"), str):
        return {**body, "server_id": SERVER}
    elif context.operation.path == REPLAY and body.get("events") is None and _is(body, webhooks_shapes.Replay):
        return {"fromPosition": 1, "untilPosition": 2, "dryRun": bool(number % 4)}
    elif context.operation.path in PEOPLE["bodies"]:
        known = PEOPLE["bodies"][context.operation.path]
        return {**body, **{name: value for name, value in known.items() if _fits(body.get(name), value)}}
    elif isinstance(body.get("config"), dict):
        # What is no kind stays none.
        kind = {"kind": "files"} if isinstance(body.get("kind"), str) and body["kind"] in kinds.KINDS else {}
        if number % 4 and kind:  # a policy is more than its schema says, too
            body = {name: value for name, value in body.items() if name not in ("policy", "schedule")}
        return {**body, "config": _folders(number // 2), **kind, **_timing(body)}
    return body


def _is(body: Any, kind: type[Any]) -> bool:
    try:
        msgspec.convert(body, kind)
    except msgspec.ValidationError:
        return False
    return True


def _fits(given: Any, known: Any) -> bool:
    """Whether it was meant: too long a text is to be refused, and so is less than nothing."""
    bad = len(given) > 200 if isinstance(given, str) else isinstance(given, int) and given < 0
    return isinstance(given, type(known)) and not bad


def _timing(body: dict[str, Any]) -> dict[str, Any]:
    """A schedule, where one was meant, that can be: an expression and a zone are more than their schemas say."""
    schedule = body.get("schedule")
    if not isinstance(schedule, dict) or not isinstance(schedule.get("overlap", "queue"), str):
        return {}
    kept = {name: schedule[name] for name in ("overlap", "catchUp", "catchUpLimit", "tolerance") if name in schedule}
    return {"syncInterval": None, "schedule": {**kept, "cron": "30 2 * * *", "timeZone": "Europe/Berlin"}}


@schemathesis.check
def server_errors_have_their_cause(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """A 5xx is one that the contract gives for a cause, with its code."""
    if response.status_code >= 500:
        found = response.json()
        if NODE.match(case.operation.path):  # no code either, and only a sync asks somebody
            assert found["error"], found
            assert case.operation.label in OF_SERVERS.get(response.status_code, (case.operation.label,)), found
            return
        if case.operation.path in NETWORK:  # no code, but a sentence
            assert (found["status"], bool(found["message"])) == ("error", True), found
            return
        code = found.get("errorCode") or found.get("code")
        assert code in CAUSES.get(response.status_code, ()), f"{response.status_code} {code}"


#: What only whoever knows a secret can sign, and what finds nothing to stop once everything has been stopped.
SIGNED = {"POST /api/sync/integrations/{integration_id}/hooks/plane", "POST /api/sync/jobs/{job_id}/stop"}


@schemathesis.check
class EveryOperationSucceedsOnce:
    """A run that never gets past the validation of an operation says little about it."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.answered: set[str] = set()

    def after_response(self, context: CheckContext, response: Response, case: Case[Any]) -> None:
        self.asked.add(case.operation.label)
        if response.status_code < 300:
            self.answered.add(case.operation.label)

    def after_run(self, context: CheckContext) -> None:
        # What tus needs beside its document is tried by its own clients (test_tus).
        tus = {label for label in self.asked if "/sync/tus" in label}
        never = sorted(self.asked - self.answered - SIGNED - tus)
        if "FUZZED_AT_LENGTH" not in os.environ:
            return  # few examples may all be refused
        assert not never, f"never succeeded: {', '.join(never)}"
