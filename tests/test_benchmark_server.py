"""The small S3 that the benchmarks run against says to every client what S3 would."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from checkpoint_store import CheckpointStore

from .harness.buckets import s3_client

# Not where the tests are run beside a wheel alone.
server: Any = pytest.importorskip("benchmarks.server")

KEYS = sorted(
    [
        *("a%2Fb", "a%252Fb", "a+b", "a b", "é名", "\U0001f600", "a&b<c>\"d'", "]]>", "&amp;"),
        *("~", "a=b", "a//b", "dir/x%20y", "dir/x y", "dir+/x", "dir é/x", "line\rend\n\ttab"),
    ]
)


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with server.running() as running:
        yield running


@pytest.fixture
def client(running: Any) -> Any:
    running.tell("empty")
    client = s3_client(running.endpoint)
    for key in KEYS:
        client.put_object(Bucket=running.bucket, Key=key, Body=key.encode())
    return client


def raw_list(running: Any, query: str = "") -> ElementTree.Element:
    url = f"{running.endpoint}/{running.bucket}?list-type=2{query}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url) as reply:
        return ElementTree.fromstring(reply.read())


@pytest.mark.usefixtures("client")
def test_names_are_as_they_are_unless_their_encoding_is_asked_for(running: Any) -> None:
    plain = raw_list(running)
    assert [key.text for key in plain.iter("Key")] == KEYS
    assert plain.find("EncodingType") is None
    encoded = raw_list(running, "&encoding-type=url")
    assert [quote(key, safe="/") for key in KEYS] == [key.text for key in encoded.iter("Key")]
    assert encoded.findtext("EncodingType") == "url"


@pytest.mark.usefixtures("client")
def test_folders_are_as_they_are_unless_their_encoding_is_asked_for(running: Any) -> None:
    folders = ["a/", "dir é/", "dir+/", "dir/"]
    plain = raw_list(running, "&delimiter=/")
    assert sorted(folders) == sorted(str(found.text) for found in plain.iter("Prefix"))
    encoded = raw_list(running, "&delimiter=/&encoding-type=url")
    found = sorted(str(found.text) for found in encoded.iter("Prefix"))
    assert sorted(quote(folder, safe="/") for folder in folders) == found


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_boto3_reads_every_name_page_by_page(running: Any, client: Any, size: int) -> None:
    paginator = client.get_paginator("list_objects_v2")
    for asked in ({}, {"EncodingType": "url"}):
        pages = paginator.paginate(Bucket=running.bucket, MaxKeys=size, **asked)
        names = [item["Key"] for page in pages for item in page["Contents"]]
        assert [quote(key, safe="/") if asked else key for key in KEYS] == names
    page = client.list_objects_v2(Bucket=running.bucket, Delimiter="/")
    assert {"dir+/", "dir é/"} < {folder["Prefix"] for folder in page["CommonPrefixes"]}


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.usefixtures("client")
def test_any_client_reads_every_name_page_by_page(running: Any, size: int) -> None:
    names: list[str | None] = []
    query = f"&max-keys={size}"
    while query and len(names) < 2 * len(KEYS):
        page = raw_list(running, query)
        names += [key.text for key in page.iter("Key")]
        token = page.findtext("NextContinuationToken")
        query = f"&max-keys={size}&continuation-token={quote(token)}" if token else ""
    assert names == KEYS


def test_a_reply_to_deletes_names_the_keys_as_they_are(running: Any, client: Any) -> None:
    reply = client.delete_objects(
        Bucket=running.bucket, Delete={"Objects": [{"Key": key} for key in KEYS]}
    )
    assert [deleted["Key"] for deleted in reply["Deleted"]] == KEYS
    assert client.list_objects_v2(Bucket=running.bucket)["KeyCount"] == 0


def test_a_store_reads_its_own_names_there(running: Any) -> None:
    running.tell("empty")
    options = {"key": "k", "secret": "s", "endpoint_url": running.endpoint}
    with CheckpointStore(f"s3://{running.bucket}/a b+c%", storage_options=options) as store:
        names = {"a/b", "a%2Fb", "é 名", "+"}
        for name in names:
            store.run(name).dump_many(dict.fromkeys(names, name))
        assert set(store.workflows()) == names
        assert all(store.run(name).load_many() == dict.fromkeys(names, name) for name in names)
