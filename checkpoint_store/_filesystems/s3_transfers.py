"""Streams to and from S3, and request bodies that are sent without being copied."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from .base import Data, Upload
from .s3_engine import S3Engine, connected, take
from .s3_errors import explained

_T = TypeVar("_T")

_PART_BYTES = 6 * 1024**2
_SLICE_BYTES = 256 * 1024
_ABORT_SECONDS = 10.0

logger = logging.getLogger("checkpoint_store")


class Download:
    def __init__(self, engine: S3Engine, body: Any) -> None:
        self._engine = engine
        self._body = body
        connected.add(self)

    def read(self, size: int, /) -> bytes:
        return b"".join(self._engine.run(take(self._body, size)))

    def close(self) -> None:
        if self._engine.process == os.getpid():
            self._engine.loop.call_soon_threadsafe(self._body.close)


class MultipartUpload(Upload):
    """A stream to S3: one PutObject if it ends within a part, or else a multipart upload."""

    def __init__(self, engine: S3Engine, key: str) -> None:
        self._engine = engine
        self._key = key
        self._beginning: asyncio.Task[str] | None = None
        self._parts: list[dict[str, Any]] = []
        self._buffer = bytearray()
        super().__init__()

    def write(self, data: Data) -> None:
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                # S3 allows 10,000 parts. As parts grow with their number, those hold 322 GiB.
                size = _PART_BYTES * (1 + len(self._parts) // 1000)
                stop = start + size - len(self._buffer)
                self._buffer += view[start:stop]
                start = stop
                if len(self._buffer) >= size:
                    self._run(self._send_part())

    def _commit(self) -> None:
        if self._beginning is None:
            self._run(self._engine.call("put_object", Key=self._key, Body=body_of([self._buffer])))
        else:
            if self._buffer:
                self._run(self._send_part())
            self._run(self._complete())

    def _discard(self) -> None:
        self._engine.finish(self._abort(), _ABORT_SECONDS)

    def _run(self, request: Coroutine[Any, Any, _T]) -> _T:
        if self._is_over:
            request.close()
            raise ValueError("the upload has been committed or discarded")
        try:
            return self._engine.run(request)
        except BaseException:
            self.discard()
            raise

    async def _id(self) -> str:
        if self._beginning is None:
            begin = self._engine.guarded(self._engine.begin_upload(self._key))
            self._beginning = asyncio.ensure_future(begin)
        # It is shielded from cancellation: an upload that S3 has begun can only be aborted with the
        # id in the reply.
        return await asyncio.shield(self._beginning)

    async def _send_part(self) -> None:
        upload_id, number = await self._id(), len(self._parts) + 1
        body, self._buffer = self._buffer, bytearray()
        reply = await self._engine.call(
            "upload_part",
            Key=self._key,
            UploadId=upload_id,
            PartNumber=number,
            Body=body_of([body]),
        )
        # The completion has to repeat the checksums that botocore has sent.
        sums = {name: value for name, value in reply.items() if name.startswith("Checksum")}
        self._parts.append({"PartNumber": number, "ETag": reply["ETag"], **sums})

    async def _complete(self) -> None:
        reply = await self._engine.call(
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
                await self._engine.call(
                    "abort_multipart_upload", Key=self._key, UploadId=await self._id()
                )
            except Exception as error:  # noqa: BLE001
                why = explained(error, self._engine.bucket)
                logger.debug("an upload to S3 could not be aborted: %s", why)


def body_of(parts: Sequence[Data]) -> bytes | Body:
    # Small parts are joined, which costs less than to send them one after the other.
    return b"".join(parts) if sum(map(len, parts)) <= 1024**2 else Body(parts)


class Body:
    """A body that botocore can read again and again. It makes two copies of a body of `bytes`.

    It is no `io.IOBase`: those aiohttp reads in a thread, and none can be started at exit.
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
