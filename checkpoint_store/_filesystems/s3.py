"""S3, one request a call.

s3fs makes the client and understands the options. Its file operations are not used: they ask
before they read, cache listings, retry what botocore has retried, and drop conditions.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import logging
import os
import re
import sys
import weakref
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from itertools import count, groupby
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

import fsspec.asyn
import fsspec.config

from .._frame import MAX_HEADER_BYTES, Data, Source
from ..errors import InvalidURLError
from . import generic  # noqa: F401 - after a fork it resets fsspec's loop
from .base import PAGE, SMALL_BYTES, Entry, Filesystem, Stored, Upload, upload_all

_T = TypeVar("_T")

_ENDPOINT = re.compile(r"https?://[^@?#]+", re.IGNORECASE)
_PUT_BYTES = 5 * 1024**3  # As many as one PutObject may have.
_PART_BYTES = 6 * 1024**2
_SLICE_BYTES = 256 * 1024
_READS = 3
_ABORT_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 20.0  # As long as botocore's own pauses are at most.
_CONFLICT = "ConditionalRequestConflict"

_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 5},
    # No limit: open streams hold connections, and a call that waits for one would wait for ever.
    "max_pool_connections": 0,
    # botocore would compose one for every request, which takes a sixth of its time.
    "user_agent": "checkpoint_store",
}

_REMEDIES = {
    "NoSuchBucket": "create the bucket, or correct the URL or endpoint_url",
    "NoSuchAccessPoint": "create the access point, or correct the URL",
    "UnsupportedS3AccesspointConfigurationError": "give the access point's region (AWS_REGION, or "
    "region_name in client_kwargs)",
    "AccessDenied": "allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket (without "
    "the last one S3 also says this of a key that does not exist)",
    "AccessDenied on writing": "allow s3:PutObject, or give what a bucket policy demands of every "
    "write, such as storage_options={'s3_additional_kwargs': {'ServerSideEncryption': 'aws:kms'}} "
    "(a policy that demands If-None-Match has to leave this prefix out)",
    "InvalidAccessKeyId": "check the credentials",
    "SignatureDoesNotMatch": "check the credentials, and whether a proxy or the server itself "
    "changes the keys in URLs, such as %2F",
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "PermanentRedirect": "give the bucket's region",
    "AuthorizationHeaderMalformed": "give the bucket's region",
    "NotImplemented": "choose a server that has what was asked for",
    "NotImplemented on writing": "if this was a conditional write, as every change of a record is, "
    "choose a server that has If-None-Match and If-Match",
    "SlowDown": "try again later, or lower max_concurrency",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give "
    "storage_options: key and secret, profile, or anon=True",
    "PartialCredentialsError": "give both the key and the secret",
    "EndpointConnectionError": "check endpoint_url, the region and the network",
    "ConnectTimeoutError": "check endpoint_url, the region and the network",
    "ReadTimeoutError": "check endpoint_url, the region and the network",
    "SSLError": "check endpoint_url, the certificate and the proxy",
    "ProxyConnectionError": "check HTTP_PROXY and HTTPS_PROXY",
    "ProfileNotFound": "check AWS_PROFILE, or profile in storage_options",
    "HTTPClientError at exit": "the interpreter is exiting and lets nobody begin a thread, which a "
    "new connection needs: write before that, or over a connection that is open already",
}
_WRITES = {
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
}
_CLOSED = "the store was closed while this was at work: close it after its last call"

logger = logging.getLogger("checkpoint_store")

_connected: WeakSet[object] = WeakSet()


def _keep_inherited() -> None:
    # A child that drops a connection, and be it at its exit, takes it out of the epoll set that it
    # shares with its parent, which then waits for the next reply in vain (60 s) and tries again.
    for inherited in list(_connected):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


class S3Filesystem(Filesystem):
    # Lists of S3 Express directory buckets, and of some servers, are in no order.
    in_pieces = True

    def __init__(
        self, bucket: str, prefix: str, options: Mapping[str, Any], *, max_concurrency: int
    ) -> None:
        if importlib.util.find_spec("s3fs") is None:
            raise ImportError("s3:// needs s3fs: pip install 'checkpoint-store[s3]'")
        client_options = options.get("client_kwargs") or {}
        if not isinstance(client_options, Mapping):
            raise TypeError(f"client_kwargs must be a dict, not {type(client_options).__name__}")
        for given in (options, client_options):
            if not _ENDPOINT.fullmatch(str(given.get("endpoint_url") or "http://default")):
                # Not repeated, as botocore would, because it may hold a password.
                raise InvalidURLError(
                    "endpoint_url must be http:// or https:// and a host, without a user name or a "
                    "query: give credentials as key and secret"
                )
        self.conditional_writes = None
        self.max_concurrency = max_concurrency
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._options = dict(options)
        # Whether If-Match wants ETags without their quotes; None until a swap has told.
        self._bare_etags: bool | None = None
        # One client a process: an inherited one is not fork-safe.
        self._clients: dict[int, _Client] = {}

    @property
    def _client(self) -> _Client:
        process = os.getpid()
        return self._clients.get(process) or self._clients.setdefault(
            process, _Client(self._bucket, self._options)
        )

    def _request(self, operation: str, **parameters: Any) -> Any:
        client = self._client
        return client.run(client.call(operation, **parameters))

    def read(self, key: str) -> bytes:
        client = self._client
        return client.run(client.read(self._root + key))

    def read_many(self, keys: Iterable[str]) -> Iterator[tuple[int, bytes | Exception]]:
        client = self._client
        requests = (client.read(self._root + key) for key in keys)
        return client.run_each(requests, self.max_concurrency)

    def read_small(self, key: str) -> Stored:
        client = self._client
        stored = client.run(client.get(self._root + key, SMALL_BYTES))
        if not stored.etag:
            # A swap would have no condition then. S3 always gives one, so this is not from S3.
            raise OSError("the reply has no ETag: take away what answers in place of S3")
        return stored

    def contains(self, key: str) -> bool:
        client = self._client
        return client.run(client.contains(self._root + key))

    def write(self, key: str, parts: Sequence[Data]) -> None:
        client = self._client
        client.run(client.write(self._root + key, parts))

    def write_many(
        self, files: Iterable[tuple[str, Sequence[Data]]]
    ) -> Iterator[tuple[int, Exception | None]]:
        client = self._client
        requests = (client.write(self._root + key, parts) for key, parts in files)
        return client.run_each(requests, self.max_concurrency)

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        if old is None:
            refused = self._put(key, data, IfNoneMatch="*")
        else:
            refused = self._put(key, data, IfMatch=_bare(old) if self._bare_etags else old.etag)
            if refused == "412" and self._bare_etags is None and self._is_still(key, old):
                # Ceph RGW 16.2 refuses `If-Match: "…"` and takes it unquoted; a proxy that
                # compresses makes `W/"…"` of it, which matches nothing.
                if self._put(key, data, IfMatch=_bare(old)):
                    return False  # Whether conditions are honoured is still unknown.
                self._bare_etags, refused = True, ""
        if not refused:
            if old is not None and self._bare_etags is None:
                self._bare_etags = False
        elif self.conditional_writes is None and refused != "409":
            self.conditional_writes = True
        return not refused

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        """Writes under a condition, and returns "", or with what status S3 refused it."""
        try:
            self._request("put_object", Key=self._root + key, Body=data, **condition)
            return ""
        except OSError as error:
            status, code, _ = _answer(error.__cause__)
            if status not in (409, 412) and (code != "NoSuchKey" or "IfMatch" not in condition):
                raise
            logger.debug("S3 refused a conditional write: %s", code)
            # This conflict is one of conditions; any other 409 says nothing of them.
            return code if code == _CONFLICT else str(status)

    def _is_still(self, key: str, version: Stored) -> bool:
        try:
            return self.read_small(key) == version
        except FileNotFoundError:
            return False

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        if not keys:
            return {}
        objects = [{"Key": self._root + key} for key in keys]
        reply = self._request("delete_objects", Delete={"Objects": objects, "Quiet": True})
        failures = {}
        for error in reply.get("Errors", ()):
            if error.get("Code") != "NoSuchKey":
                key = error.get("Key", "").removeprefix(self._root)
                failures[key] = f"{error.get('Code')}: {error.get('Message')}"
        return failures

    def pages(self, folder: str) -> Iterator[list[str]]:
        for page in self._list(f"{self._root}{folder}/"):
            names = [file.name for file in page if file.name and "/" not in file.name]
            if names:
                yield names

    def entries(self, folder: str) -> Iterator[Entry]:
        for page in self._list(f"{self._root}{folder}/"):
            yield from (file for file in page if file.name and "/" not in file.name)

    def folders(self) -> Iterator[tuple[str, Iterator[str]]]:
        paths = (file.name.split("/") for page in self._list(self._root) for file in page)
        files = (path for path in paths if len(path) == 2 and all(path))
        for folder, group in groupby(files, lambda path: path[0]):
            yield folder, (name for _, name in group)

    def _list(self, prefix: str) -> Iterator[list[Entry]]:
        """The objects whose keys have this prefix, under what follows it, a page at a time."""
        start: dict[str, str] = {}
        while True:
            reply = self._request("list_objects_v2", Prefix=prefix, MaxKeys=PAGE, **start)
            if "IsTruncated" not in reply:
                raise OSError("an empty reply: take away what answers in place of S3")
            yield [
                Entry(
                    item["Key"].removeprefix(prefix),
                    item.get("Size", 0),
                    item["LastModified"].timestamp() if "LastModified" in item else None,
                )
                for item in reply.get("Contents", ())
            ]
            if not reply.get("IsTruncated"):
                return
            start = {"ContinuationToken": reply["NextContinuationToken"]}

    def open_read(self, key: str) -> Source:
        client = self._client
        reply = client.run(client.call("get_object", Key=self._root + key))
        return _Download(client, reply["Body"])

    def open_write(self, key: str) -> Upload:
        return _Upload(self._client, self._root + key)

    def close(self) -> None:
        client = self._clients.pop(os.getpid(), None)
        if client:
            client.close()


class _Client:
    """The requests of one process, on fsspec's event loop, and what they raise explained."""

    def __init__(self, bucket: str, options: Mapping[str, Any]) -> None:
        import s3fs  # Here because it takes 309 ms.

        self.process = os.getpid()
        self.loop = fsspec.asyn.get_loop()
        self._bucket = bucket
        # What the environment sets counts as an option, but must not turn these on.
        options = fsspec.config.apply_config(s3fs.S3FileSystem, dict(options))
        self._fs = s3fs.S3FileSystem(
            **{
                **options,
                "config_kwargs": {**_CONFIG, **(options.get("config_kwargs") or {})},
                "skip_instance_cache": True,
                "use_listings_cache": False,
                "version_aware": False,
                # s3fs would close the connections in forked children, too.
                "asynchronous": True,
            }
        )
        self._is_session_given = self._fs.session is not None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()
        self._creators: list[Any] = []  # Of s3fs; the last one made the connections in use.
        self._prepared: WeakSet[Any] = WeakSet()
        self._close_creators = weakref.finalize(
            self, _close, self.process, self.loop, self._creators
        )

    def run(self, request: Coroutine[Any, Any, _T]) -> _T:
        self._refuse_elsewhere(request)
        future = asyncio.run_coroutine_threadsafe(self.while_open(request), self.loop)
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001
            explained = self.explained(error)
            raise explained from explained.__cause__
        finally:
            future.cancel()  # After a KeyboardInterrupt the request must not go on.

    def run_each(
        self, requests: Iterable[Coroutine[Any, Any, _T]], at_most: int
    ) -> Iterator[tuple[int, _T | Exception]]:
        """What each request returns or raises, with its position, as it becomes known."""
        # Without a thread for each, which takes a third longer.
        numbered = enumerate(requests)
        outcomes: SimpleQueue[tuple[int, _T | Exception] | None] = SimpleQueue()

        async def work() -> None:
            for index, request in numbered:
                try:
                    outcomes.put((index, await self.while_open(request)))
                except Exception as error:  # noqa: BLE001
                    outcomes.put((index, self.explained(error)))

        async def work_all() -> None:
            try:
                await asyncio.gather(*(work() for _ in range(at_most)))
            finally:
                outcomes.put(None)

        working = work_all()
        self._refuse_elsewhere(working)
        future = asyncio.run_coroutine_threadsafe(working, self.loop)
        try:
            yield from iter(outcomes.get, None)
            future.result()
        finally:
            future.cancel()

    def finish(self, request: Coroutine[Any, Any, object], seconds: float) -> None:
        """Waits so long at most for a request, which goes on to its end in any case.

        On fsspec's own thread, where a reply cannot be waited for, it is only begun.
        """
        future = asyncio.run_coroutine_threadsafe(self.while_open(request), self.loop)
        if _running_loop() is not self.loop:
            with suppress(OSError):
                future.result(seconds)

    async def while_open(self, request: Coroutine[Any, Any, _T]) -> _T:
        """What a request returns, or an error as soon as the client is closed.

        On connections that are gone it would be retried for seconds.
        """
        if self._closed:
            request.close()
            raise OSError(_CLOSED)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await request
        except asyncio.CancelledError:
            if self._closed:
                raise OSError(_CLOSED) from None
            raise
        finally:
            self._running.discard(task)

    def _refuse_elsewhere(self, request: Coroutine[Any, Any, Any]) -> None:
        if self.process != os.getpid() or _running_loop() is self.loop:
            request.close()
            raise RuntimeError(
                "this was opened before the fork: open it in the process that uses it"
                if self.process != os.getpid()
                else "a call in fsspec's own event loop would block it: use asyncio.to_thread"
            )

    def explained(self, error: Exception) -> Exception:
        """What to raise for an error: another, with this as its cause, if it needs explaining."""
        status, code, message = _answer(error)
        operation = getattr(error, "operation_name", "")
        circumstance = ""
        if operation in _WRITES:
            circumstance = " on writing"
        elif "cannot schedule new futures" in message:
            circumstance = " at exit"
        remedy = _REMEDIES.get(code + circumstance) or _REMEDIES.get(code)
        if not status and remedy is None:
            return error
        text = message.rstrip(".")
        if status:
            if code == str(status):  # botocore found no error of S3's in the reply.
                code, remedy = "without an error code", "check endpoint_url and what answers there"
            answer = f"S3 answered {status} {code} for bucket {self._bucket!r}"
            text = f"{answer}: {text}" if text else answer
        if remedy:
            text = f"{text}: {remedy}"
        explained = PermissionError(text) if status in (401, 403) else OSError(text)
        if code == "NoSuchKey" and operation == "GetObject":
            explained = FileNotFoundError(message)
        explained.__cause__ = error
        return explained

    async def call(self, operation: str, **parameters: Any) -> Any:
        client = await self._s3()
        try:
            return await self._send(client, operation, parameters)
        except Exception as error:
            if _answer(error)[1] != "ExpiredToken":
                raise
            logger.debug("the credentials for S3 have expired: looking for newer ones")
        if hasattr(parameters.get("Body"), "seek"):
            parameters["Body"].seek(0)
        return await self._send(await self._s3(instead_of=client), operation, parameters)

    async def _send(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        method = getattr(client, operation)
        known = self._fs._get_s3_method_kwargs(method, Bucket=self._bucket, **parameters)
        return await method(**known)

    async def _s3(self, *, instead_of: Any = None) -> Any:
        """s3fs's client for the region of the bucket, and not the one whose credentials expired."""
        async with self._connecting:
            if not self._creators:
                await self._connect()
            client = await self._fs.get_s3(self._bucket)
            if client is instead_of:
                await self._connect()
                client = await self._fs.get_s3(self._bucket)
        if client not in self._prepared:
            # A set, because s3fs may have made it for another region than the first one.
            events, retries = client.meta.events, client.meta.config.retries or {}
            events.register("before-parse.s3.GetObject", _drop_date)
            events.register_first("needs-retry.s3", _heed_throttling(retries))
            events.register_first("needs-retry.s3.HeadBucket", _follow_no_redirect)
            self._prepared.add(client)
        return client

    async def _connect(self) -> None:
        if self._creators and not self._is_session_given:
            # Credentials are taken anew from where they come from. The oldest s3fs that is allowed
            # would keep them with its session.
            self._fs.session = None
        try:
            client = await self._fs.set_session(refresh=bool(self._creators))
        except TypeError as error:
            message = "check the names of the storage options, and of FSSPEC_S3_... if it is set"
            raise OSError(f"{error}: {message}") from error
        creator = self._fs._s3creator
        known = client.meta.service_model.operation_model("PutObject").input_shape.members
        if not {"IfMatch", "IfNoneMatch"} <= set(known):
            await creator.__aexit__(None, None, None)
            raise RuntimeError(
                "this version of botocore does not know conditional writes: "
                "pip install --upgrade 'aiobotocore>=2.16' s3fs"
            )
        _connected.add(self)
        # Earlier ones stay open until all are closed: requests and streams may be using them.
        self._creators.append(creator)

    async def begin_upload(self, key: str) -> str:
        """Begins a multipart upload, and returns its id."""
        declared = {}
        config = (await self._s3()).meta.config
        if getattr(config, "request_checksum_calculation", "") == "when_supported" and (
            "ChecksumAlgorithm" not in self._fs.s3_additional_kwargs
        ):
            # botocore sends it with each part, and strict servers (LocalStack 4.14) refuse parts
            # whose checksum was not declared.
            declared["ChecksumAlgorithm"] = "CRC32"
        reply = await self.call("create_multipart_upload", Key=key, **declared)
        return str(reply["UploadId"])

    def close(self) -> None:
        def cancel() -> None:
            for task in self._running:
                task.cancel()

        self._closed = True
        if self.loop.is_running():
            self.loop.call_soon_threadsafe(cancel)
        self._close_creators()

    async def read(self, key: str) -> bytes:
        return (await self.get(key)).data

    async def write(self, key: str, parts: Sequence[Data]) -> None:
        if sum(map(len, parts)) <= _PUT_BYTES:
            await self.call("put_object", Key=key, Body=_body(parts))
        else:
            await asyncio.to_thread(upload_all, _Upload(self, key), parts)

    async def get(self, key: str, size: int | None = None, **parameters: Any) -> Stored:
        for attempt in count(1):
            reply = await self.call("get_object", Key=key, **parameters)
            body = reply["Body"]
            try:
                chunks = await _take(body, MAX_HEADER_BYTES if size is None else size)
                # What has no header line is corrupt whatever follows.
                if size is None and any(b"\n" in chunk for chunk in chunks):
                    chunks += await _take(body, sys.maxsize)
                break
            except Exception as error:
                # botocore no longer retries once the body has begun.
                if attempt == _READS:
                    raise
                logger.debug("S3 broke a reply off, reading again: %s", error)
            finally:
                body.close()
        return Stored(b"".join(chunks), reply.get("ETag", ""))

    async def contains(self, key: str) -> bool:
        # HeadObject has no error code and so cannot tell a missing bucket from a missing key.
        try:
            await self.get(key, 1, Range="bytes=0-0")
        except Exception as error:
            status, code, _ = _answer(error)
            if code == "NoSuchKey":
                return False
            if status != 416:  # The file is empty.
                raise
        return True


class _Download:
    def __init__(self, client: _Client, body: Any) -> None:
        self._client = client
        self._body = body
        _connected.add(self)

    def read(self, size: int, /) -> bytes:
        return b"".join(self._client.run(_take(self._body, size)))

    def close(self) -> None:
        if self._client.process == os.getpid():
            self._client.loop.call_soon_threadsafe(self._body.close)


class _Upload(Upload):
    """One PutObject at the end, or a multipart upload once there is more than a part."""

    def __init__(self, client: _Client, key: str) -> None:
        self._client = client
        self._key = key
        self._beginning: asyncio.Task[str] | None = None
        self._parts: list[dict[str, Any]] = []
        self._buffer = bytearray()
        super().__init__()

    def write(self, data: Data) -> None:
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                # The 10,000 parts that there may be hold 322 GiB.
                size = _PART_BYTES * (1 + len(self._parts) // 1000)
                stop = start + size - len(self._buffer)
                self._buffer += view[start:stop]
                start = stop
                if len(self._buffer) >= size:
                    self._run(self._send_part())

    def _commit(self) -> None:
        if self._beginning is None:
            self._run(self._client.call("put_object", Key=self._key, Body=_body([self._buffer])))
        else:
            if self._buffer:
                self._run(self._send_part())
            self._run(self._complete())

    def _discard(self) -> None:
        self._client.finish(self._abort(), _ABORT_SECONDS)

    def _run(self, request: Coroutine[Any, Any, _T]) -> _T:
        if self._is_over:
            request.close()
            raise ValueError("the upload has been committed or discarded")
        try:
            return self._client.run(request)
        except BaseException:
            self.discard()
            raise

    async def _id(self) -> str:
        if self._beginning is None:
            begin = self._client.while_open(self._client.begin_upload(self._key))
            self._beginning = asyncio.ensure_future(begin)
        # Shielded, because what S3 has begun can only be aborted by the id in its reply.
        return await asyncio.shield(self._beginning)

    async def _send_part(self) -> None:
        upload_id, number = await self._id(), len(self._parts) + 1
        body, self._buffer = self._buffer, bytearray()
        reply = await self._client.call(
            "upload_part",
            Key=self._key,
            UploadId=upload_id,
            PartNumber=number,
            Body=_body([body]),
        )
        # S3 wants the checksums again that botocore has sent.
        sums = {name: value for name, value in reply.items() if name.startswith("Checksum")}
        self._parts.append({"PartNumber": number, "ETag": reply["ETag"], **sums})

    async def _complete(self) -> None:
        reply = await self._client.call(
            "complete_multipart_upload",
            Key=self._key,
            UploadId=await self._id(),
            MultipartUpload={"Parts": self._parts},
        )
        if "ETag" not in reply:
            raise OSError("the reply does not say that the upload is complete: write it again")

    async def _abort(self) -> None:
        self._buffer = bytearray()
        if self._beginning is not None:
            try:
                await self._client.call(
                    "abort_multipart_upload", Key=self._key, UploadId=await self._id()
                )
            except Exception as error:  # noqa: BLE001
                why = self._client.explained(error)
                logger.debug("an upload to S3 could not be aborted: %s", why)


async def _take(body: Any, size: int) -> list[bytes]:
    """Up to `size` bytes, fewer only at the end."""
    chunks = []
    while size > 0 and (chunk := await body.read(size)):
        chunks.append(chunk)
        size -= len(chunk)
    return chunks


def _body(parts: Sequence[Data]) -> bytes | _Body:
    # Small ones are joined, which costs less than to hand them on one after the other.
    return b"".join(parts) if sum(map(len, parts)) <= 1024**2 else _Body(parts)


class _Body:
    """What botocore reads, as often as it likes, without the two copies it makes of bytes.

    It is no `io.IOBase`, or aiohttp would read it in a thread, which none may begin at exit.
    """

    def __init__(self, parts: Sequence[Data]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts]
        self._size = sum(map(len, self._parts))
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        chunks = []
        size = self._size if size < 0 else size
        while size > 0 and (chunk := self._next(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        while chunk := self._next(_SLICE_BYTES):
            yield chunk

    def _next(self, size: int) -> memoryview:
        start = self._position
        for part in self._parts:
            if start < len(part):
                chunk = part[start : start + size]
                self._position += len(chunk)
                return chunk
            start -= len(part)
        return memoryview(b"")


def _drop_date(response_dict: dict[str, Any], **_: object) -> None:
    # Nobody asks for it, and to parse it takes a fifth of the time of a small read.
    response_dict["headers"].pop("Last-Modified", None)


def _heed_throttling(retries: Mapping[str, Any]) -> Callable[..., float | None]:
    """A handler that retries a 429 as SlowDown, after the pause that the reply asks for.

    botocore knows throttling by its error codes, and a 429 may have no body (R2, Google).
    """
    most = retries.get("total_max_attempts", 1)

    def needs_retry(response: Any, attempts: int, **_: object) -> float | None:
        if response is None or response[0].status_code not in (429, 503):
            return None
        http, parsed = response
        if http.status_code == 429:
            parsed["Error"] = {"Message": "", **parsed.get("Error", {}), "Code": "SlowDown"}
        pause = http.headers.get("retry-after", "")
        if not pause.isdecimal() or attempts >= most:
            return None
        return min(float(pause), _RETRY_AFTER_SECONDS)

    return needs_retry


def _follow_no_redirect(request_dict: dict[str, Any], **_: object) -> None:
    # After a redirect botocore asks HeadBucket for the region. Where that is redirected, too, as by
    # whatever sends http:// to https://, it would ask again for ever.
    request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True


def _bare(version: Stored) -> str:
    return version.etag.removeprefix("W/").strip('"')


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _close(process: int, loop: asyncio.AbstractEventLoop, creators: Sequence[Any]) -> None:
    # A forked child inherits the finalizer, but the connections are its parent's.
    if process != os.getpid() or not loop.is_running():
        return
    for creator in creators:
        closed = asyncio.run_coroutine_threadsafe(creator.__aexit__(None, None, None), loop)
        if _running_loop() is not loop:
            with suppress(TimeoutError):
                closed.result(1)


def _answer(error: BaseException | None) -> tuple[int, str, str]:
    """Status, error code and message of botocore's `ClientError`; of any other, its class."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0, type(error).__name__, str(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    details = response.get("Error", {})
    return status, str(details.get("Code", "")), str(details.get("Message") or "")
