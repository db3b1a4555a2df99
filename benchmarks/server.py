"""A small S3 in memory, in a process of its own, that answers every request after a fixed time.

    python -m benchmarks.server

It knows what the clients compared here send, checks no signature, and has one bucket. Requests with
the query `latency=SECONDS`, `empty`, `fill`, `save` or `restore` prepare a benchmark, and one with
`answered` tells how many there were.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import urllib.request
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    head: bool = False

    def encode(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if self.head else self.body)


def _xml(name: str, content: str) -> Reply:
    body = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{content}</{name}>'.encode()
    return Reply(body=body, headers={"Content-Type": "application/xml"})


def _error(status: int, code: str) -> Reply:
    reply = _xml("Error", f"<Code>{code}</Code><Message>{code}</Message>")
    reply.status = status
    return reply


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.keys: list[str] = []
        self._saved: tuple[dict[str, tuple[bytes, str]], list[str]] = ({}, [])
        self._uploads: dict[str, dict[int, bytes]] = {}

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        path, _, query_string = target.partition("?")
        key = unquote(path[1:].partition("/")[2])
        query = dict(parse_qsl(query_string, keep_blank_values=True))
        if not key:
            return self._bucket(method, query, body)
        if "uploadId" in query or "uploads" in query:
            return self._multipart(method, key, query, body)
        match method:
            case "GET" | "HEAD":
                return self._get(key, headers, head=method == "HEAD")
            case "PUT":
                return self._put(key, headers, body)
            case "DELETE":
                self._remove({key})
                return Reply(204)
        return _error(501, "NotImplemented")

    def _bucket(self, method: str, query: Mapping[str, str], body: bytes) -> Reply:
        if "empty" in query:
            self.objects, self.keys = {}, []
        elif "fill" in query:
            for key in body.decode().split("\n"):
                self._store(key, b"")
        elif "save" in query:
            self._saved = (self.objects.copy(), self.keys.copy())
        elif "restore" in query:
            self.objects, self.keys = self._saved[0].copy(), self._saved[1].copy()
        elif "delete" in query:
            return self._delete(body)
        elif query.get("list-type") == "2":
            return self._list(query)
        elif method != "HEAD":
            return _error(501, "NotImplemented")
        return Reply()

    def _get(self, key: str, headers: Mapping[str, str], *, head: bool) -> Reply:
        if key not in self.objects:
            return Reply(404, head=True) if head else _error(404, "NoSuchKey")
        data, etag = self.objects[key]
        reply = Reply(200, data, {"ETag": etag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
        reply.head = head
        if wanted := headers.get("range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(data)), len(data) - 1) + 1
            if start >= stop:
                return _error(416, "InvalidRange")
            reply.status, reply.body = 206, data[start:stop]
            reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return reply

    def _put(self, key: str, headers: Mapping[str, str], body: bytes) -> Reply:
        _, current = self.objects.get(key, (b"", None))
        if "if-none-match" in headers and current:
            return _error(412, "PreconditionFailed")
        if "if-match" in headers and current != headers["if-match"]:
            return _error(412, "PreconditionFailed") if current else _error(404, "NoSuchKey")
        return Reply(headers={"ETag": self._store(key, body)})

    def _multipart(self, method: str, key: str, query: Mapping[str, str], body: bytes) -> Reply:
        name = query.get("uploadId", "")
        match method:
            case "POST" if "uploads" in query:
                name = f"{len(self._uploads)}"
                self._uploads[name] = {}
                return _xml("InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>")
            case "PUT":
                self._uploads[name][int(query["partNumber"])] = body
                return Reply(headers={"ETag": _etag(body)})
            case "POST":
                parts = self._uploads[name]
                etag = self._store(key, b"".join(parts[number] for number in sorted(parts)))
                parts.clear()
                return _xml("CompleteMultipartUploadResult", f"<ETag>{etag}</ETag>")
            case "DELETE":
                self._uploads[name].clear()
                return Reply(204)
        return _error(501, "NotImplemented")

    def _delete(self, body: bytes) -> Reply:
        request = ElementTree.fromstring(body)
        keys = [element.text or "" for element in request.iterfind("{*}Object/{*}Key")]
        self._remove(set(keys))
        if request.findtext("{*}Quiet") == "true":
            return _xml("DeleteResult", "")
        deleted = (f"<Deleted><Key>{_text(key)}</Key></Deleted>" for key in keys)
        return _xml("DeleteResult", "".join(deleted))

    def _list(self, query: Mapping[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        size = int(query.get("max-keys", "1000"))
        text = _url if (encoded := query.get("encoding-type") == "url") else _text
        after = unquote(query.get("continuation-token", "")) or query.get("start-after", "")
        position = bisect_left(self.keys, max(prefix, f"{after}\0" if after else ""))
        items: list[str] = []
        while position < len(self.keys) and len(items) < size:
            key = self.keys[position]
            if not key.startswith(prefix):
                break
            after = key
            position += 1
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                folder = key[: end + len(delimiter)]
                after = f"{folder}\U0010ffff"
                position = bisect_left(self.keys, after)
                items.append(f"<CommonPrefixes><Prefix>{text(folder)}</Prefix></CommonPrefixes>")
            else:
                data, etag = self.objects[key]
                items.append(
                    f"<Contents><Key>{text(key)}</Key><LastModified>{_DATE}</LastModified>"
                    f"<ETag>{etag}</ETag><Size>{len(data)}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        more = position < len(self.keys) and self.keys[position].startswith(prefix)
        token = f"<NextContinuationToken>{_url(after)}</NextContinuationToken>" if more else ""
        return _xml(
            "ListBucketResult",
            f"{'<EncodingType>url</EncodingType>' * encoded}<KeyCount>{len(items)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(items)}",
        )

    def _store(self, key: str, data: bytes) -> str:
        if key not in self.objects:
            insort(self.keys, key)
        etag = _etag(data)
        self.objects[key] = (data, etag)
        return etag

    def _remove(self, keys: set[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)
        self.keys = [key for key in self.keys if key in self.objects]


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _url(key: str) -> str:
    return quote(key, safe="/")


def _text(key: str) -> str:
    # As S3 does it; XML has no way to write some of these, and would turn \r into \n.
    return re.sub("[\\x00-\\x1f]", lambda match: f"&#{ord(match[0])};", escape(key))


class Connection(asyncio.Protocol):
    """One request after the other, as every client here sends them."""

    latency = 0.0
    answered = 0

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._received = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._head is None and (end := self._received.find(b"\r\n\r\n")) >= 0:
            self._read_head(self._received[:end].decode("latin-1"))
            del self._received[: end + 4]
        if self._head is not None and len(self._received) >= self._length:
            body = bytes(self._received)
            self._received.clear()
            self._answer(*self._head, body)
            self._head = None

    def _read_head(self, text: str) -> None:
        first, *lines = text.split("\r\n")
        method, target, _ = first.split(" ")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        self._head = method, target, headers
        self._length = int(headers.get("content-length", 0))
        if headers.get("expect") == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        _, _, query = target.partition("?")
        if query.startswith("latency="):
            type(self).latency = float(query.removeprefix("latency="))
            reply = Reply()
        elif query == "answered":
            reply = Reply(body=str(type(self).answered).encode())
        elif "transfer-encoding" in headers or "aws-chunked" in headers.get("content-encoding", ""):
            reply = _error(501, "NotImplemented")
        else:
            reply = self._bucket.answer(method, target, headers, body)
            type(self).answered += 1
        loop = asyncio.get_running_loop()
        loop.call_later(type(self).latency, self._transport.write, reply.encode())


async def _serve() -> None:
    bucket = Bucket()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(bucket), "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    # Until whoever started it closes the pipe or dies.
    await loop.run_in_executor(None, sys.stdin.read)


@dataclass
class Server:
    """The process as the benchmarks see it."""

    endpoint: str
    bucket: str = "bench"

    def tell(self, query: str, body: bytes = b"") -> bytes:
        url = f"{self.endpoint}/{self.bucket}?{query}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, body, method="POST")) as reply:
            return bytes(reply.read())

    def requests(self) -> int:
        """How many requests about objects were answered so far."""
        return int(self.tell("answered"))

    @contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        self.tell(f"latency={seconds}")
        try:
            yield
        finally:
            self.tell("latency=0")


@contextmanager
def running() -> Iterator[Server]:
    command = [sys.executable, "-m", __name__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")


if __name__ == "__main__":
    asyncio.run(_serve())
