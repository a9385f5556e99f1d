"""The connector that ARCHITECTURE.md shows works as it stands there."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from domain import kinds
from services.worker import child, collector

NOTES = [{"id": f"n{number}", "text": "x" * number, "changed": None} for number in range(250)]


class Spec(Struct, frozen=True):
    url: str


def example() -> Any:
    """The class in the document."""
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    [source] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Wiki" in code]
    found: dict[str, Any] = {}
    exec(compile(source, "ARCHITECTURE.md", "exec", dont_inherit=True), found)
    return found["Wiki"], found["Result"]


class _Wiki(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = int(self.path.rpartition("=")[2])
        notes = NOTES[100 * (page - 1) : 100 * page]
        body = json.dumps({"notes": notes, "next": page + 1 if 100 * page < len(NOTES) else None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def wiki() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Wiki)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/notes"
    finally:
        server.shutdown()
        server.server_close()


def frames(channel: socket.socket) -> Iterator[Any]:
    """What the child says."""
    file = channel.makefile("rb")
    while size := file.read(4):
        yield child.said.decode(file.read(int.from_bytes(size, "big")))


def run(made: Any, url: str, work: Path, monkeypatch: Any, cursor: bytes | None = None) -> tuple[list[Any], child.Done]:
    """All that one run says to its worker, which answers everything."""
    source, result = made
    kind = kinds.Kind(Spec, result, Spec, lambda config, *_: config, target=lambda _: None)
    monkeypatch.setattr(kinds, "KINDS", {**kinds.KINDS, "wiki": kind})
    ours, theirs = socket.socketpair()
    said: list[Any] = []

    def answer() -> None:
        for one in frames(ours):
            said.append(one)
            if isinstance(one, child.Permit):
                ours.sendall(child.frame(child.Wait(0)))
            elif isinstance(one, child.Changes):
                ours.sendall(child.frame(child.Applied(len(one.puts), 0, len(one.removes))))

    thread = threading.Thread(target=answer)
    thread.start()
    collect = child.Collect("wiki", "notes", str(work / "known"), cursor=cursor)
    task = child.Task("collect", msgspec.json.encode(Spec(url)), "job", str(work), collect=collect)
    try:
        done = collector.run(task, child.Parent(theirs), source)
    finally:
        theirs.close()
        thread.join()
        ours.close()
    return said, done


def test_the_example_brings_everything_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    made = example()
    with wiki() as url:
        said, done = run(made, url, tmp_path, monkeypatch)
        changes = [one for one in said if isinstance(one, child.Changes)]
        assert [len(one.puts) for one in changes] == [100, 100, 50]
        assert [msgspec.json.decode(one.cursor)["at"] for one in changes if one.cursor] == [2, 3]
        assert (done.counters.processed, done.counters.created, done.seen) == (250, 250, child.Seen(None, True))
        assert msgspec.json.decode(done.result) == {"notes": 250}
        _, rest = run(made, url, tmp_path, monkeypatch, changes[1].cursor)
        assert (rest.counters.processed, rest.counters.created, rest.seen) == (250, 50, child.Seen(None, False))


def test_the_example_knows_what_is_gone(tmp_path: Path, monkeypatch: Any) -> None:
    lines = [f"notes\tn{number}\t{'0' * 64}\t" for number in range(255)]
    (tmp_path / "known").write_text("\n".join(lines) + "\n")
    with wiki() as url:
        said, done = run(example(), url, tmp_path, monkeypatch)
    gone = [one.item for changes in said if isinstance(changes, child.Changes) for one in changes.removes]
    assert gone == [f"n{number}" for number in range(250, 255)]
    assert done.counters.deleted == 5
