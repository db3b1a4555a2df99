"""Azure and Google storage, whose fsspec filesystems hand conditions on to the server."""

from __future__ import annotations

import json
import secrets
from abc import abstractmethod
from typing import Any

from .base import Stored
from .generic import GenericFilesystem


class _ConditionalFilesystem(GenericFilesystem):
    """A `swap` is one write, which the server refuses if the file has another version by then."""

    conditional_writes: bool | None = None
    conditions: tuple[str, str] = "If-None-Match", "If-Match"
    _version: str
    """The key under which `info` has a text that is another one for every version of a file."""

    def read_small(self, key: str) -> Stored:
        # The version is asked for first: if the file changes after that, the swap is refused.
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
        """Writes the file if it has this version, or with None if it is not there.

        Otherwise raises `FileExistsError`.
        """


class AzureFilesystem(_ConditionalFilesystem):
    extra = "azure"
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
    extra = "gcs"
    conditions = "ifGenerationMatch", "ifGenerationMatch"
    _version = "generation"

    def _replace(self, path: str, version: str | None, data: bytes) -> None:
        # gcsfs has no condition but `mode="create"`: this makes the request that it would make.
        bucket, _, name = path.partition("/")
        boundary = secrets.token_hex()
        part = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode()
        self._fs.call(
            "POST",
            self._fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
            bucket,
            uploadType="multipart",
            ifGenerationMatch=version or 0,  # 0 stands for a file that does not exist.
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            data=part
            + json.dumps({"name": name}).encode()
            + b"\r\n"
            + part
            + data
            + f"\r\n--{boundary}--".encode(),
        )
