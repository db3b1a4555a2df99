"""Faults of S3, which a proxy between a store and a working server brings about."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from urllib.parse import parse_qsl, unquote, urlencode

from aiohttp import web

from .servers import Proxy, Request, Response, end_to_end, error


class Kind(StrEnum):
    """The kinds of requests that the library makes."""

    READ_RECORD = "GetObject-record"
    CREATE_RECORD = "PutObject-create"
    SWAP_RECORD = "PutObject-swap"
    READ = "GetObject"
    WRITE = "PutObject"
    LIST = "ListObjectsV2"
    DELETE = "DeleteObjects"
    BEGIN = "CreateMultipartUpload"
    PART = "UploadPart"
    COMPLETE = "CompleteMultipartUpload"
    ABORT = "AbortMultipartUpload"


RECORD_WRITES = {Kind.CREATE_RECORD, Kind.SWAP_RECORD}
READS = {Kind.READ_RECORD, Kind.READ}

_BY_QUERY = {
    ("GET", "list-type"): Kind.LIST,
    ("POST", "delete"): Kind.DELETE,
    ("POST", "uploads"): Kind.BEGIN,
    ("PUT", "partNumber"): Kind.PART,
    ("POST", "uploadId"): Kind.COMPLETE,
    ("DELETE", "uploadId"): Kind.ABORT,
}


def kind_of(request: Request) -> Kind:
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    for (method, name), kind in _BY_QUERY.items():
        if method == request.method and name in query:
            return kind
    is_record = unquote(request.path).endswith("/.fingerprint")
    conditions = {name.lower() for name in request.headers} & {"if-match", "if-none-match"}
    return {
        ("GET", True, ()): Kind.READ_RECORD,
        ("GET", False, ()): Kind.READ,
        ("PUT", True, ("if-none-match",)): Kind.CREATE_RECORD,
        ("PUT", True, ("if-match",)): Kind.SWAP_RECORD,
        ("PUT", False, ()): Kind.WRITE,
    }[request.method, is_record, tuple(conditions)]


class Broken(Response):
    """A reply whose connection is reset, or that stops in the middle until it is given up."""

    def __init__(self, response: Response, *, stall: asyncio.Event | None = None) -> None:
        super().__init__(response.status, response.headers, response.body, 0)
        self.stall = stall


class FaultProxy(Proxy):
    async def _reply(self, incoming: web.Request, response: Response) -> web.StreamResponse:
        transport = incoming.transport
        if not isinstance(response, Broken) or transport is None:
            return await super()._reply(incoming, response)
        if response.stall is None:
            # A socket that does not linger is closed with a reset.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            return web.StreamResponse()
        reply = web.StreamResponse(status=response.status, headers=end_to_end(response.headers))
        reply.content_length = len(response.body)
        await reply.prepare(incoming)
        await reply.write(response.body[: len(response.body) // 2])
        await response.stall.wait()
        transport.abort()
        return reply


@dataclass(eq=False)
class Injection:
    """The hook of a proxy that breaks some of the requests of one kind.

    It lets the first `skip` of them pass and breaks the next `times`, or all if that is None. With
    `applied` the server has done what the request asks before its reply is replaced. With `late`
    the request is held back, and the server gets it once it is released.
    """

    proxy: Proxy
    kind: Kind
    fault: str
    applied: bool = False
    times: int | None = None
    skip: int = 0
    late: bool = False
    seen: list[Kind] = field(default_factory=list)
    """The kinds of all requests that arrived."""
    hits: int = 0
    """The number of requests that were broken."""

    def __post_init__(self) -> None:
        self._matched = 0
        self._released = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished = threading.Event()
        self.late_status = 0

    async def __call__(self, request: Request) -> Response | None:
        self._loop = asyncio.get_running_loop()
        kind = kind_of(request)
        self.seen.append(kind)
        if kind is not self.kind:
            return None
        self._matched += 1
        if self._matched <= self.skip or (self.times is not None and self.hits >= self.times):
            return None
        self.hits += 1
        if self.fault == "delete-errors":
            return await self._delete_errors(request)
        reply = await self.proxy.forward(request) if self.applied else None
        if self.fault == "timeout":
            await self._released.wait()
            if self.late:
                self.late_status = (await self.proxy.forward(request)).status
                self._finished.set()
            return Response(cut=0)
        return self._broken(reply)

    def release(self) -> None:
        """Lets go of everything that is held back."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._released.set)

    def let_through(self) -> int:
        """Lets the late request reach the server, and returns the status of the reply."""
        self.release()
        assert self._finished.wait(60)
        return self.late_status

    def _broken(self, reply: Response | None) -> Response:
        if self.fault == "reset":
            return Broken(reply or Response())
        if self.fault in ("truncated", "stalled"):
            assert reply is not None
            body = reply.body or bytes(64)
            whole = replace(reply, status=200 if reply.status == 204 else reply.status, body=body)
            if self.fault == "stalled":
                return Broken(whole, stall=self._released)
            return replace(whole, cut=len(body) // 2)
        return STATUSES[self.fault]()

    async def _delete_errors(self, request: Request) -> Response:
        """Replies that keys were not deleted: all of them, or with `applied` only the last."""
        body = request.body.decode()
        keys = [part.partition("</Key>")[0] for part in body.split("<Key>")[1:]]
        failed = keys[-1:] if self.applied else keys
        if len(failed) < len(keys):
            head, _, tail = body.rpartition("<Object>")
            request.body = (head + tail.partition("</Object>")[2]).encode()
            unsealed = {
                name: value
                for name, value in request.headers.items()
                if name.lower() not in ("content-md5", "x-amz-sdk-checksum-algorithm")
                and not name.lower().startswith("x-amz-checksum")
            }
            reply = await self.proxy.forward(replace(request, headers=unsealed))
            assert reply.status == 200, reply
        errors = "".join(
            f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>No</Message></Error>"
            for key in failed
        )
        body = f"<DeleteResult>{errors}</DeleteResult>"
        return Response(200, {"Content-Type": "application/xml"}, body.encode())


@dataclass
class Unordered:
    """A hook that lists up to 1,000 keys in no order, with `size` of them on a page.

    S3 Express directory buckets and Storj list keys in no order.
    """

    proxy: Proxy
    size: int

    async def __call__(self, request: Request) -> Response | None:
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        if "list-type" not in query:
            return None
        after = query.pop("continuation-token", "")
        whole = replace(request, query=urlencode({**query, "max-keys": 1000}))
        reply = await self.proxy.forward(whole)
        assert b"<IsTruncated>false" in reply.body
        files = {
            sha256(re.findall(b"<Key>.*</Key>", file)[0]).hexdigest(): file.decode()
            for file in re.findall(b"<Contents>.*?</Contents>", reply.body, re.DOTALL)
        }
        places = [place for place in sorted(files) if place > after]
        page = places[: self.size]
        body = (
            "<ListBucketResult>"
            + "<EncodingType>url</EncodingType>" * (b"<EncodingType>url<" in reply.body)
            + "".join(files[place] for place in page)
            + f"<IsTruncated>{str(page != places).lower()}</IsTruncated>"
            f"<NextContinuationToken>{''.join(page[-1:])}</NextContinuationToken>"
            "</ListBucketResult>"
        )
        return Response(200, {"Content-Type": "application/xml"}, body.encode())


STATUSES: dict[str, Callable[[], Response]] = {
    "500": lambda: error(500, "InternalError"),
    "503": lambda: error(503, "SlowDown"),
    "403": lambda: error(403, "AccessDenied"),
    "404-bucket": lambda: error(404, "NoSuchBucket"),
    "404-key": lambda: error(404, "NoSuchKey"),
    "404-bare": lambda: Response(404),
    "409": lambda: error(409, "ConditionalRequestConflict"),
    "412": lambda: error(412, "PreconditionFailed"),
    "malformed": lambda: Response(200, {"Content-Type": "application/xml"}, b"<Result><Key>no"),
    "error-in-200": lambda: replace(error(500, "InternalError"), status=200),
    "empty": lambda: Response(200),
}
