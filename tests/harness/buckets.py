"""A bucket of its own for each test on S3, and boto3 to look into it without the library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
from botocore.config import Config


@dataclass
class Bucket:
    """A new bucket, what a store needs to reach it, and boto3 to look into it."""

    endpoint: str
    name: str
    client: Any

    @property
    def storage_options(self) -> dict[str, Any]:
        return self.options(self.endpoint)

    def options(self, endpoint: str) -> dict[str, Any]:
        return {
            "key": "test",
            "secret": "test-secret",
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def uploads(self) -> list[Any]:
        """The uploads that were begun and neither completed nor aborted."""
        return list(self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ()))


@cache
def s3_client(endpoint: str) -> Any:
    """A client of boto3, with other credentials than those that stores are given."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="helper-key",
        aws_secret_access_key="helper-secret",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=32),
    )
