"""The engine of S3: each call makes one request about objects and their keys.

s3fs makes the client and understands the options. Its file operations are not used: they look
before they read, cache listings, retry what botocore has retried already, and drop conditions.
Errors are neutral: `FileNotFoundError` for a missing object, `RefusedError` for a condition that
did not hold, and `OSError` with a remedy for everything else.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import sys
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

import fsspec.asyn
import fsspec.config

from .base import HEAD_BYTES, PAGE, Entry, Page, Stored, anything
from .loop import running_loop, wait_for
from .s3_errors import answer_of, explained, refusal

_T = TypeVar("_T")

_READS = 3
_RETRY_AFTER_SECONDS = 20.0  # botocore's own pauses are no longer than this.
_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 5},
    # There is no limit: open streams hold connections, and a call might wait for one for ever.
    "max_pool_connections": 0,
    # Without this botocore composes one for every request, which takes a sixth of its time.
    "user_agent": "checkpoint_store",
}

_CLOSED = "the store was closed while this was at work: close it after its last call"

logger = logging.getLogger("checkpoint_store")

connected: WeakSet[object] = WeakSet()


def _keep_inherited() -> None:
    # A child shares an epoll set with its parent. When it drops a connection, if only at its exit,
    # the connection leaves that set, and the parent waits 60 s in vain for the next reply to it.
    for inherited in list(connected):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


class S3Engine:
    """The requests of one process, which run on fsspec's event loop. Errors are explained."""

    def __init__(self, bucket: str, options: Mapping[str, Any]) -> None:
        import s3fs  # It is not imported above, because that takes 309 ms.

        self.process = os.getpid()
        self.loop = fsspec.asyn.get_loop()
        self.bucket = bucket
        # Options from the environment count, but must not change those that are set below.
        options = fsspec.config.apply_config(s3fs.S3FileSystem, dict(options))
        self._fs = s3fs.S3FileSystem(
            **{
                **options,
                "config_kwargs": {**_CONFIG, **(options.get("config_kwargs") or {})},
                "skip_instance_cache": True,
                "use_listings_cache": False,
                "version_aware": False,
                # Otherwise s3fs would close the connections also in forked children.
                "asynchronous": True,
            }
        )
        self._is_session_given = self._fs.session is not None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()
        # Those of s3fs. The last one has made the connections that are in use.
        self._creators: list[Any] = []
        self._prepared: WeakSet[Any] = WeakSet()
        self._close_creators = weakref.finalize(
            self, _close, self.process, self.loop, self._creators
        )

    def run(self, request: Coroutine[Any, Any, _T]) -> _T:
        """Waits for a request. A forked child cannot go on with what its parent has opened."""
        if self.process != os.getpid():
            request.close()
            raise RuntimeError(
                "this was opened before the fork: open it in the process that uses it"
            )
        return wait_for(self.guarded(request))

    def finish(self, request: Coroutine[Any, Any, object], seconds: float) -> None:
        """Begins a request and waits for it, but no longer than this. It goes on to its end.

        On fsspec's own thread it is only begun, because no reply can be waited for there.
        """
        future = asyncio.run_coroutine_threadsafe(self.guarded(request), self.loop)
        if running_loop() is not self.loop:
            with suppress(OSError):
                future.result(seconds)

    async def guarded(self, request: Coroutine[Any, Any, _T]) -> _T:
        """What a request returns. Its errors are explained, and it fails once the engine is closed.

        Without that, it would be retried for seconds on connections that are gone.
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
        except Exception as error:  # noqa: BLE001 - raised again
            told = explained(error, self.bucket)
            raise told from told.__cause__
        finally:
            self._running.discard(task)

    async def call(self, operation: str, **parameters: Any) -> Any:
        client = await self._s3()
        try:
            return await self._send(client, operation, parameters)
        except Exception as error:
            if answer_of(error)[1] != "ExpiredToken":
                raise
            logger.debug("the credentials for S3 have expired: looking for newer ones")
        if hasattr(parameters.get("Body"), "seek"):
            parameters["Body"].seek(0)
        return await self._send(await self._s3(instead_of=client), operation, parameters)

    async def _send(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        method = getattr(client, operation)
        known = self._fs._get_s3_method_kwargs(method, Bucket=self.bucket, **parameters)
        return await method(**known)

    async def _s3(self, *, instead_of: Any = None) -> Any:
        """s3fs's client for the region of the bucket.

        It is another than `instead_of`, whose credentials have expired.
        """
        async with self._connecting:
            if not self._creators:
                await self._connect()
            client = await self._fs.get_s3(self.bucket)
            if client is instead_of:
                await self._connect()
                client = await self._fs.get_s3(self.bucket)
        if client not in self._prepared:
            # There may be several clients: s3fs makes one for each region that it meets.
            events, retries = client.meta.events, client.meta.config.retries or {}
            events.register("before-parse.s3.GetObject", _drop_date)
            events.register_first("needs-retry.s3", _heed_throttling(retries))
            events.register_first("needs-retry.s3.HeadBucket", _follow_no_redirect)
            self._prepared.add(client)
        return client

    async def _connect(self) -> None:
        if self._creators and not self._is_session_given:
            # Credentials are to be looked up again. The oldest s3fs that is allowed would keep them
            # together with its session.
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
        connected.add(self)
        # Earlier ones stay open until the engine is closed: requests and streams may use them.
        self._creators.append(creator)

    async def begin_upload(self, key: str) -> str:
        """Begins a multipart upload, and returns its id."""
        declared = {}
        config = (await self._s3()).meta.config
        if getattr(config, "request_checksum_calculation", "") == "when_supported" and (
            "ChecksumAlgorithm" not in self._fs.s3_additional_kwargs
        ):
            # botocore sends this checksum with each part. Strict servers (LocalStack 4.14) refuse
            # parts whose algorithm was not declared.
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

    async def put(self, key: str, data: Any, **condition: str) -> None:
        """Stores an object, or raises `RefusedError` if the condition does not hold."""
        try:
            await self.guarded(self.call("put_object", Key=key, Body=data, **condition))
        except OSError as error:
            if condition and (refused := refusal(error.__cause__, condition)):
                raise refused from error
            raise

    async def get(
        self, key: str, size: int = sys.maxsize, is_wanted: Callable[[bytes], bool] = anything
    ) -> Stored:
        """Up to `size` bytes of an object, but only its head if `is_wanted` says no to that."""
        return await self.guarded(self._get(key, size, is_wanted))

    async def contains(self, key: str) -> bool:
        # HeadObject has no error code and so cannot tell a missing bucket from a missing key.
        try:
            await self.guarded(self._get(key, 1, anything, Range="bytes=0-0"))
        except FileNotFoundError:
            return False
        except OSError as error:
            if answer_of(error.__cause__)[0] != 416:  # The object is empty.
                raise
        return True

    async def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Deletes objects, and returns which could not be deleted, each with the reason."""
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        reply = await self.guarded(self.call("delete_objects", Delete=objects))
        return {
            error.get("Key", ""): f"{error.get('Code')}: {error.get('Message')}"
            for error in reply.get("Errors", ())
            if error.get("Code") != "NoSuchKey"
        }

    async def list(self, prefix: str, token: str | None) -> Page[Entry]:
        """A page of the objects whose keys begin with `prefix`, which their names leave out."""
        start = {} if token is None else {"ContinuationToken": token}
        listing = self.call("list_objects_v2", Prefix=prefix, MaxKeys=PAGE, **start)
        reply = await self.guarded(listing)
        if "IsTruncated" not in reply:
            raise OSError("an empty reply: take away what answers in place of S3")
        found = [
            Entry(
                item["Key"].removeprefix(prefix),
                item.get("Size", 0),
                item["LastModified"].timestamp() if "LastModified" in item else None,
            )
            for item in reply.get("Contents", ())
        ]
        return Page(found, reply["NextContinuationToken"] if reply["IsTruncated"] else None)

    async def open_body(self, key: str) -> Any:
        """The body of an object, which is read as it arrives."""
        return (await self.guarded(self.call("get_object", Key=key)))["Body"]

    async def _get(
        self, key: str, size: int, is_wanted: Callable[[bytes], bool], **parameters: Any
    ) -> Stored:
        for attempt in count(1):
            reply = await self.call("get_object", Key=key, **parameters)
            body = reply["Body"]
            try:
                chunks = await take(body, min(size, HEAD_BYTES))
                if size > HEAD_BYTES and is_wanted(b"".join(chunks)):
                    chunks += await take(body, size - HEAD_BYTES)
                break
            except Exception as error:
                # botocore retries no request whose body has begun to arrive.
                if attempt == _READS:
                    raise
                logger.debug("S3 broke a reply off, reading again: %s", error)
            finally:
                body.close()
        return Stored(b"".join(chunks), reply.get("ETag", ""))


async def take(body: Any, size: int) -> list[bytes]:
    """Reads `size` bytes, or fewer if the body ends before."""
    chunks = []
    while size > 0 and (chunk := await body.read(size)):
        chunks.append(chunk)
        size -= len(chunk)
    return chunks


def _drop_date(response_dict: dict[str, Any], **_: object) -> None:
    # It is not used, and to parse it takes a fifth of the time of a small read.
    response_dict["headers"].pop("Last-Modified", None)


def _heed_throttling(retries: Mapping[str, Any]) -> Callable[..., float | None]:
    """A handler for botocore that retries a 429 as SlowDown, after the pause that the reply names.

    botocore recognises throttling by error codes, and a 429 may have no body and so no code (R2,
    Google).
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
    # After a redirect botocore asks for the region with HeadBucket. If that is redirected, too, as
    # where http:// leads to https://, botocore would ask again and again for ever.
    request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True


def _close(process: int, loop: asyncio.AbstractEventLoop, creators: Sequence[Any]) -> None:
    # A forked child inherits this finalizer, but the connections belong to its parent.
    if process != os.getpid() or not loop.is_running():
        return
    for creator in creators:
        closed = asyncio.run_coroutine_threadsafe(creator.__aexit__(None, None, None), loop)
        if running_loop() is not loop:
            with suppress(TimeoutError):
                closed.result(1)
