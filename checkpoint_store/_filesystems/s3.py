"""Folders, versions and conditions on S3."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from ..errors import InvalidURLError
from .base import (
    SMALL_BYTES,
    Data,
    Entry,
    Page,
    Settings,
    Source,
    Stored,
    Upload,
    anything,
    upload_all,
)
from .loop import Awaited, LoopFilesystem
from .s3_engine import S3Engine
from .s3_errors import RefusedError
from .s3_transfers import Download, MultipartUpload, body_of
from .urls import ARN, URL, check_path, refuse

_PUT_BYTES = 5 * 1024**3  # One PutObject may have so many.
MAX_PREFIX_BYTES = 512
"""S3 allows keys of 1,024 bytes, and a workflow with a task and its token may take 467."""

_ENDPOINT = re.compile(r"https?://[^@?#]+", re.IGNORECASE)

logger = logging.getLogger("checkpoint_store")


class S3Filesystem(LoopFilesystem):
    conditions = "If-None-Match", "If-Match"
    durability = "by design, not tried: stored once the server has answered"
    # S3 Express directory buckets, and some servers, list keys in no order.

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
                # The URL is not repeated in the message, because it may hold a password.
                raise InvalidURLError(
                    "endpoint_url must be http:// or https:// and a host, without a user name or a "
                    "query: give credentials as key and secret"
                )
        self.conditional_writes = None
        self.max_concurrency = max_concurrency
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._options = dict(options)
        # Whether this server wants ETags in If-Match without their quotes. None means unknown.
        self._bare_etags: bool | None = None
        # Each process has an engine of its own: an inherited one is not safe to use after a fork.
        self._engines: dict[int, S3Engine] = {}

    @classmethod
    def at(cls, url: URL, settings: Settings) -> Self:
        path = check_path(url)
        arn = ARN.match(path)
        bucket = arn[0] if arn else path.partition("/")[0]
        if not bucket:
            refuse(url.text, "names no bucket: write s3://bucket/prefix")
        prefix = path[len(bucket) + 1 :]
        if len(prefix.encode("utf-8", "surrogatepass")) > MAX_PREFIX_BYTES:
            refuse(url.text, f"is too long: S3 keys leave {MAX_PREFIX_BYTES} bytes for the prefix")
        return cls(bucket, prefix, settings.options, max_concurrency=settings.max_concurrency)

    @property
    def _engine(self) -> S3Engine:
        process = os.getpid()
        return self._engines.get(process) or self._engines.setdefault(
            process, S3Engine(self._bucket, self._options)
        )

    def connected(self) -> Self:
        kept = object.__new__(type(self))  # A copy would be made as a pickle is.
        vars(kept).update(vars(self), _engines={os.getpid(): self._engine})
        return kept

    # The engine is made in the thread of the caller, because s3fs cannot be made on its own loop.
    # So these are no `async def`: only what they return runs on the loop.

    def aread(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> Awaited[bytes]:
        return self._read(self._engine, key, is_wanted)

    def aread_small(self, key: str) -> Awaited[Stored]:
        return self._read_small(self._engine, key)

    def acontains(self, key: str) -> Awaited[bool]:
        return self._engine.contains(self._root + key)

    def awrite(self, key: str, parts: Sequence[Data]) -> Awaited[None]:
        return self._write(self._engine, key, parts)

    def aswap(self, key: str, old: Stored | None, data: bytes) -> Awaited[bool]:
        return self._swap(self._engine, key, old, data)

    def adelete(self, keys: Sequence[str]) -> Awaited[dict[str, str]]:
        return self._delete(self._engine, keys)

    def alist_files(
        self, folder: str, more: Any = None, sizes: bool = False  # noqa: ARG002, FBT001, FBT002
    ) -> Awaited[Page[Entry]]:  # fmt: skip
        return self._list_files(self._engine, folder, more)

    def alist_folders(self, has: Callable[[str], bool], more: Any = None) -> Awaited[Page[str]]:
        return self._list_folders(self._engine, has, more)

    def aopen_read(self, key: str) -> Awaited[Source]:
        return self._open_read(self._engine, key)

    def open_write(self, key: str) -> Upload:
        return MultipartUpload(self._engine, self._root + key)

    async def _read(self, engine: S3Engine, key: str, is_wanted: Callable[[bytes], bool]) -> bytes:
        return (await engine.get(self._root + key, is_wanted=is_wanted)).data

    async def _write(self, engine: S3Engine, key: str, parts: Sequence[Data]) -> None:
        if sum(map(len, parts)) <= _PUT_BYTES:
            await engine.put(self._root + key, body_of(parts))
        else:
            upload = MultipartUpload(engine, self._root + key)
            await asyncio.to_thread(upload_all, upload, parts)

    async def _open_read(self, engine: S3Engine, key: str) -> Download:
        return Download(engine, await engine.open_body(self._root + key))

    async def _read_small(self, engine: S3Engine, key: str) -> Stored:
        stored = await engine.get(self._root + key, SMALL_BYTES)
        if not stored.etag:
            # A swap would have no condition. S3 always sends an ETag, so this is no answer of S3.
            raise OSError("the reply has no ETag: take away what answers in place of S3")
        return stored

    async def _swap(self, engine: S3Engine, key: str, old: Stored | None, data: bytes) -> bool:
        if old is None:
            refused = await self._put(engine, key, data, IfNoneMatch="*")
        else:
            condition = _bare(old) if self._bare_etags else old.etag
            refused = await self._put(engine, key, data, IfMatch=condition)
            if (
                refused == "412"
                and self._bare_etags is None
                and await self._is_still(engine, key, old)
            ):
                # Ceph RGW 16.2 refuses `If-Match: "…"` and accepts it without the quotes. A proxy
                # that compresses turns an ETag into `W/"…"`, which matches nothing.
                if await self._put(engine, key, data, IfMatch=_bare(old)):
                    return False  # It is still unknown whether conditions are honoured.
                self._bare_etags, refused = True, ""
        if not refused:
            if old is not None and self._bare_etags is None:
                self._bare_etags = False
        elif self.conditional_writes is None and refused != "409":
            self.conditional_writes = True
        return not refused

    async def _put(self, engine: S3Engine, key: str, data: bytes, **condition: str) -> str:
        """Writes under a condition. Returns "", or the answer with which S3 refused the write."""
        try:
            await engine.put(self._root + key, data, **condition)
            return ""
        except RefusedError as error:
            logger.debug("%s", error)
            return error.answer

    async def _is_still(self, engine: S3Engine, key: str, version: Stored) -> bool:
        try:
            return await self._read_small(engine, key) == version
        except FileNotFoundError:
            return False

    async def _delete(self, engine: S3Engine, keys: Sequence[str]) -> dict[str, str]:
        if not keys:
            return {}
        failures = await engine.delete([self._root + key for key in keys])
        return {key.removeprefix(self._root): reason for key, reason in failures.items()}

    async def _list_files(self, engine: S3Engine, folder: str, more: str | None) -> Page[Entry]:
        page = await engine.list(f"{self._root}{folder}/", more)
        files = [file for file in page.items if file.name and "/" not in file.name]
        return Page(files, page.more)

    async def _list_folders(
        self, engine: S3Engine, has: Callable[[str], bool], more: tuple[str, _Distinct] | None
    ) -> Page[str]:
        mark, seen = more or (None, _Distinct())
        page = await engine.list(self._root, mark)
        paths = (file.name.split("/") for file in page.items)
        folders = (path[0] for path in paths if len(path) == 2 and all(path) and has(path[1]))
        # S3 sorts whole keys, so the slash that follows a folder takes part in the order.
        new = [folder for folder in folders if seen.is_new(f"{folder}/")]
        return Page(new, None if page.more is None else (page.more, seen))

    def close(self) -> None:
        super().close()
        engine = self._engines.pop(os.getpid(), None)
        if engine:
            engine.close()


class _Distinct:
    """Tells which of many texts are new.

    As long as the texts ascend, each of them is new, and they are kept compressed, in a few bytes
    each. From the first that does not ascend on, they are kept in a set.
    """

    def __init__(self) -> None:
        self._last = ""
        self._compressor = zlib.compressobj(1)
        self._compressed = bytearray()
        self._seen: set[str] | None = None

    def is_new(self, text: str) -> bool:
        if text == self._last:
            return False
        if self._seen is None and text > self._last:
            self._last = text
            self._compressed += self._compressor.compress(f"{text}\n".encode())
            return True
        if self._seen is None:
            self._compressed += self._compressor.flush()
            self._seen = set(zlib.decompress(self._compressed).decode().split("\n"))
            self._compressed.clear()
        if text in self._seen:
            return False
        self._seen.add(text)
        return True


def _bare(version: Stored) -> str:
    return version.etag.removeprefix("W/").strip('"')
