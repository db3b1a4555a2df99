"""Azure and Google storage, whose fsspec filesystems hand conditions on to the server."""

from __future__ import annotations

import json
import secrets
from abc import abstractmethod
from typing import Any

from .base import Stored
from .generic import GenericFilesystem


class _ConditionalFilesystem(GenericFilesystem):
    """A `swap` is one write, which the server refuses if the file is another version by now."""

    conditional_writes: bool | None = None
    conditions: tuple[str, str] = "If-None-Match", "If-Match"
    _version: str
    """What `info` calls that which no two versions of a file share."""

    def read_small(self, key: str) -> Stored:
        # The version first: if the file changes before it is read, the swap will be refused.
        info = self._fs.info(self._path(key))
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return Stored(super().read_small(key).data, str(info[self._version]))

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        path = self._path(key)
        try:
            self._replace(path, old and old.etag, data)
            return True
        except FileNotFoundError as error:
            raise OSError(f"{path} cannot be created: {error}") from error
        except FileExistsError:
            if self.conditional_writes is None:
                self.conditional_writes = True
            return False

    @abstractmethod
    def _replace(self, path: str, version: str | None, data: bytes) -> None:
        """`FileExistsError` if it is refused, because there is (None: any) other version."""


class AzureFilesystem(_ConditionalFilesystem):
    _version = "etag"

    def _replace(self, path: str, version: str | None, data: bytes) -> None:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError

        condition: dict[str, Any] = {"overwrite": False}
        if version is not None:
            condition = {"etag": version, "match_condition": MatchConditions.IfNotModified}
        try:
            self._fs.pipe_file(path, data, **condition)
        except ResourceModifiedError as error:
            raise FileExistsError(path) from error


class GoogleFilesystem(_ConditionalFilesystem):
    conditions = "ifGenerationMatch", "ifGenerationMatch"
    _version = "generation"

    def _replace(self, path: str, version: str | None, data: bytes) -> None:
        # gcsfs writes with no condition but `mode="create"`, and so this is its request by hand.
        bucket, _, name = path.partition("/")
        boundary = secrets.token_hex()
        part = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode()
        self._fs.call(
            "POST",
            self._fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
            bucket,
            uploadType="multipart",
            ifGenerationMatch=version or 0,  # 0 is that of a file that does not exist.
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            data=part
            + json.dumps({"name": name}).encode()
            + b"\r\n"
            + part
            + data
            + f"\r\n--{boundary}--".encode(),
        )
