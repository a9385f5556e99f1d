"""As much of S3 as a store of blobs needs, over a real socket: objects, ranges, parts; every request is signed."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

BUCKET, REGION = "bucket", "eu-test-1"
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>[^,]+),\s*SignedHeaders=(?P<signed>[^,]+),"
    r"\s*Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass
class S3:
    """`objects` by key. `largest` is the longest body that came; `refusing` a status that everything is answered
    with, 0 for none."""

    key: str = field(default_factory=lambda: "AKIA" + secrets.token_hex(8).upper())
    secret: str = field(default_factory=lambda: secrets.token_hex(20))
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    largest: int = 0
    refusing: int = 0
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def open_uploads(self) -> int:
        return len(self.uploads)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }


@contextlib.contextmanager
def serving() -> Iterator[S3]:
    found = S3()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"s3": found}))
    server.daemon_threads = True
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: S3

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        path = unquote(url.path).lstrip("/")
        with self.s3.lock:
            self.s3.largest = max(self.s3.largest, len(body))
            if self.s3.refusing:
                return self._fail(self.s3.refusing, "AccessDenied")
            if not self._is_signed(url.path, query, body):
                return self._fail(403, "SignatureDoesNotMatch")
            if path.partition("/")[0] != BUCKET:
                return self._fail(404, "NoSuchBucket")
            return self._route(path.partition("/")[2], query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _route(self, key: str, query: dict[str, str], body: bytes) -> None:
        objects, uploads = self.s3.objects, self.s3.uploads
        match self.command:
            case "POST" if "uploads" in query:
                uploads[id := secrets.token_hex(8)] = {}
                self._answer(200, _xml("InitiateMultipartUploadResult", UploadId=id, Key=key, Bucket=BUCKET))
            case "PUT" if "partNumber" in query:
                uploads[query["uploadId"]][int(query["partNumber"])] = body
                self._answer(200, ETag=_etag(body))
            case "POST" if "uploadId" in query:
                parts = uploads.pop(query["uploadId"])
                named = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
                objects[key] = b"".join(parts[number] for number in named)
                said = _xml("CompleteMultipartUploadResult", Key=key, Bucket=BUCKET, ETag=_etag(objects[key]))
                self._answer(200, said)
            case "DELETE" if "uploadId" in query:
                uploads.pop(query["uploadId"], None)
                self._answer(204)
            case "POST" if "delete" in query:
                names = [name.decode() for name in re.findall(rb"<Key>([^<]+)</Key>", body)]
                for name in names:
                    objects.pop(name, None)
                gone = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
                self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())
            case "DELETE":
                objects.pop(key, None)
                self._answer(204)
            case "PUT":
                objects[key] = body
                self._answer(200, ETag=_etag(body))
            case "GET" | "HEAD" if key in objects:
                self._object(objects[key])
            case _:
                self._fail(404, "NoSuchKey")

    def _object(self, data: bytes) -> None:
        said = {"ETag": _etag(data), "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT", "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if match is None:
            return self._answer(200, data, **said)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first > last:
            return self._fail(416, "InvalidRange")
        said["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[first : last + 1], **said)

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, _xml("Error", Code=code, Message=f"{code} for {self.s3.key}"))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _is_signed(self, path: str, query: dict[str, str], body: bytes) -> bool:
        """AWS Signature Version 4, over the headers that the request says."""
        match = _AUTHORIZATION.fullmatch(self.headers.get("authorization", ""))
        if match is None or match["key"] != self.s3.key:
            return False
        payload = self.headers.get("x-amz-content-sha256", "")
        if payload not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            return False
        signed = match["signed"].split(";")
        asked = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        fields = "".join(f"{name}:{(self.headers.get(name) or '').strip()}\n" for name in signed)
        canonical = "\n".join((self.command, path, asked, fields, match["signed"], payload))
        scope = match["scope"]
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(("AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, hashed))
        key = f"AWS4{self.s3.secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), match["signature"])


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(name: str, **fields: str) -> bytes:
    inside = "".join(f"<{key}>{value.replace(chr(34), '&quot;')}</{key}>" for key, value in fields.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inside}</{name}>'.encode()
