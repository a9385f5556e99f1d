"""Servers that take and give a large file: @tus/server, nginx, and uvicorn with Starlette doing the bare minimum.

The first two are used where they are found: `npm install @tus/server @tus/file-store` in the folder that
UNDRIFT_NODE_PACKAGES names, and an nginx on the PATH."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from infra import processes

NODE_PACKAGES = Path(os.environ.get("UNDRIFT_NODE_PACKAGES", "/nonexistent"))

_BARE = """
import os, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Route

folder = sys.argv[2]

async def put(request):
    with open(os.path.join(folder, "up"), "wb") as file:
        async for piece in request.stream():
            file.write(piece)
    return Response()

async def get(request):
    return FileResponse(os.path.join(folder, "down"))

app = Starlette(routes=[Route("/up", put, methods=["PUT"]), Route("/down", get)])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""
_TUS = """
import { Server } from '@tus/server'
import { FileStore } from '@tus/file-store'
const [port, directory] = process.argv.slice(2)
const server = new Server({ path: '/files', datastore: new FileStore({ directory }) })
server.listen({ host: '127.0.0.1', port: Number(port) })
"""
_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
    access_log off; sendfile on; tcp_nopush on;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {folder}/served; }}
}}
"""


class Peer(NamedTuple):
    url: str
    pid: int


@contextlib.contextmanager
def _running(command: list[str], port: int, cwd: str | None = None) -> Iterator[Peer]:
    program = subprocess.Popen(command, cwd=cwd)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield Peer(f"http://127.0.0.1:{port}", program.pid)
    finally:
        program.kill()
        program.wait(10)


@contextlib.contextmanager
def bare(folder: str) -> Iterator[Peer]:
    """Takes a body at /up, and gives the folder's file `down` at /down."""
    port = processes.choose_port()
    with _running([sys.executable, "-c", _BARE, str(port), folder], port) as peer:
        yield peer


@contextlib.contextmanager
def tus(folder: str) -> Iterator[Peer | None]:
    """@tus/server at /files; None where it is not installed."""
    node = shutil.which("node")
    if node is None or not (NODE_PACKAGES / "node_modules" / "@tus" / "server").exists():
        yield None
        return
    script = NODE_PACKAGES / f"bench-tus-{os.getpid()}.mjs"  # beside the packages it imports
    script.write_text(_TUS)
    store = Path(folder, "tus")
    store.mkdir()
    port = processes.choose_port()
    try:
        with _running([node, str(script), str(port), str(store)], port, str(NODE_PACKAGES)) as peer:
            yield peer
    finally:
        script.unlink()


@contextlib.contextmanager
def nginx(folder: str) -> Iterator[Peer | None]:
    """The folder's file `down` at /down, by sendfile; None where there is no nginx."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if found is None:
        yield None
        return
    base = Path(folder, "nginx")
    (base / "served").mkdir(parents=True)
    (base / "served" / "down").symlink_to(Path(folder, "down").resolve())
    for one in (Path(folder), base, base / "served"):
        one.chmod(0o755)
    port = processes.choose_port()
    config = base / "nginx.conf"
    config.write_text(_NGINX.format(folder=base, port=port))
    with _running([found, "-e", "stderr", "-p", str(base), "-c", str(config)], port) as peer:
        yield peer
