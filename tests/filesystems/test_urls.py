"""From a URL to a filesystem: strictly, without input or output, and never to somewhere else."""

from __future__ import annotations

import builtins
import importlib.util
import os
import socket
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoint_store import CheckpointStore, InvalidURLError, StorageError
from checkpoint_store._filesystems import Filesystem, connect
from checkpoint_store._filesystems.generic import GenericFilesystem
from checkpoint_store._filesystems.local import LocalFilesystem
from checkpoint_store._filesystems.memory import MemoryFilesystem
from checkpoint_store._filesystems.s3 import MAX_PREFIX_BYTES

s3fs = pytest.importorskip("s3fs")

SECRET = "canary-8f1b6d"


def root_of(url: str | os.PathLike[str]) -> str:
    filesystem = connect(url)
    assert isinstance(filesystem, LocalFilesystem)
    return filesystem.root


# Local paths


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("/data/checkpoints", "/data/checkpoints"),
        ("/data/checkpoints/", "/data/checkpoints"),
        ("/data//x/./y", "/data/x/y"),
        ("file:///data/x", "/data/x"),
        ("FILE:///data/x", "/data/x"),
        ("local:///data/x", "/data/x"),
        ("file:///data/x y", "/data/x y"),
        ("file:///data/x%20y", "/data/x%20y"),
        ("/data/x?y#z", "/data/x?y#z"),
        ("/data/*[1]", "/data/*[1]"),
        ("/data/a::b", "/data/a::b"),
        ("/data/é", "/data/é"),
        (Path("/data/x"), "/data/x"),
        (PurePosixPath("/data/x"), "/data/x"),
    ],
)
def test_a_local_path_is_taken_literally(url: str | Path, root: str) -> None:
    assert root == root_of(url)


@pytest.mark.parametrize("url", ["checkpoints", "./checkpoints", "bucket/prefix", "a.b/c"])
def test_a_relative_path_is_below_the_working_directory(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / url) == root_of(url)
    monkeypatch.chdir("/")
    assert str(tmp_path / url) == root_of(tmp_path / url)


def test_a_relative_path_stays_where_it_was_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filesystem = connect("x")
    monkeypatch.chdir("/")
    assert isinstance(filesystem, LocalFilesystem)
    assert str(tmp_path / "x") == filesystem.root


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert root_of("~/checkpoints") == "/home/somebody/checkpoints"


# Other kinds


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("memory://", ""),
        ("memory://a", "/a"),
        ("MEMORY://a/b/", "/a/b"),
        ("memory://a b", "/a b"),
        ("memory://a%2Fb", "/a%2Fb"),
        ("memory://a*b", "/a*b"),
    ],
)
def test_memory_is_a_path_in_the_files_of_this_process(url: str, path: str) -> None:
    filesystem = connect(url)
    assert isinstance(filesystem, MemoryFilesystem)
    assert path == filesystem._url_path


@pytest.mark.parametrize("scheme", ["s3", "S3", "s3a"])
def test_s3_is_a_bucket_and_a_prefix(scheme: str) -> None:
    filesystem: Any = connect(f"{scheme}://bucket/a/b/", {"anon": True}, max_concurrency=7)
    assert type(filesystem).__name__ == "S3Filesystem"
    assert (
        filesystem._bucket,
        filesystem._root,
        filesystem.max_concurrency,
    ) == ("bucket", "a/b/", 7)


def test_the_longest_prefix_leaves_room_for_the_longest_key() -> None:
    connect(f"s3://bucket/{'x' * MAX_PREFIX_BYTES}")
    assert MAX_PREFIX_BYTES + 1 + 200 + 1 + 200 + 1 + 64 <= 1_024
    for prefix in ("x" * (MAX_PREFIX_BYTES + 1), "é" * (MAX_PREFIX_BYTES // 2 + 1)):
        with pytest.raises(InvalidURLError, match="too long"):
            connect(f"s3://bucket/{prefix}")


# Access points of S3, each with the host and the service that its requests are for.
ACCESS_POINTS = {
    "arn:aws:s3:us-west-2:123456789012:accesspoint/my-ap": (
        "my-ap-123456789012.s3-accesspoint.us-west-2.amazonaws.com",
        "us-west-2/s3/",
    ),
    "arn:aws:s3:us-west-2:123456789012:accesspoint:my-ap": (
        "my-ap-123456789012.s3-accesspoint.us-west-2.amazonaws.com",
        "us-west-2/s3/",
    ),
    "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/my-ap": (
        "my-ap-123456789012.s3-object-lambda.us-west-2.amazonaws.com",
        "us-west-2/s3-object-lambda/",
    ),
    "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/my-ap": (
        "my-ap-123456789012.op-1.s3-outposts.us-west-2.amazonaws.com",
        "us-west-2/s3-outposts/",
    ),
    "arn:aws:s3-outposts:us-west-2:123456789012:outpost:op-1:accesspoint:my-ap": (
        "my-ap-123456789012.op-1.s3-outposts.us-west-2.amazonaws.com",
        "us-west-2/s3-outposts/",
    ),
    "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/my-ap": (
        "my-ap-123456789012.s3-accesspoint.cn-north-1.amazonaws.com.cn",
        "cn-north-1/s3/",
    ),
    "arn:aws-us-gov:s3:us-gov-west-1:123456789012:accesspoint/my-ap": (
        "my-ap-123456789012.s3-accesspoint.us-gov-west-1.amazonaws.com",
        "us-gov-west-1/s3/",
    ),
}
OF_SEVERAL_REGIONS = "arn:aws:s3::123456789012:accesspoint/alias.mrap"


@pytest.mark.parametrize("arn", [*ACCESS_POINTS, OF_SEVERAL_REGIONS])
def test_the_whole_arn_of_an_access_point_takes_the_place_of_a_bucket(arn: str) -> None:
    for rest, root in {"": "", "/": "", "/a": "a/", "/a/b@c:d/": "a/b@c:d/"}.items():
        filesystem: Any = connect(f"s3://{arn}{rest}")
        assert (arn, root) == (filesystem._bucket, filesystem._root)
    connect(f"s3://{arn}/{'x' * MAX_PREFIX_BYTES}")
    with pytest.raises(InvalidURLError, match="too long"):
        connect(f"s3://{arn}/{'x' * (MAX_PREFIX_BYTES + 1)}")


class SentError(Exception):
    """In place of a connection."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, no_aws_environment: None) -> list[Any]:  # noqa: ARG001
    """The requests that would have left the machine."""
    requests = []

    async def send(_: object, request: Any) -> None:
        requests.append(request)
        raise SentError

    monkeypatch.setattr("aiobotocore.httpsession.AIOHTTPSession.send", send)
    return requests


def access_point_store(arn: str, **options: Any) -> CheckpointStore:
    options = {"key": "k", "secret": SECRET, **options}
    return CheckpointStore(f"s3://{arn}/root", storage_options=options)


@pytest.mark.parametrize("arn", ACCESS_POINTS)
def test_requests_go_to_the_host_of_the_access_point(arn: str, sent: list[Any]) -> None:
    host, scope = ACCESS_POINTS[arn]
    region = arn.split(":")[3]
    # Of a region in the same partition; that of the access point counts.
    near = {"us-west-2": "eu-west-1", "cn-north-1": "cn-northwest-1"}.get(region, region)
    with access_point_store(arn, client_kwargs={"region_name": near}) as store:
        filesystem = store._filesystem
        for call in (
            lambda: filesystem.read("wf/a"),
            lambda: filesystem.write("wf/a", [b"data"]),
            lambda: filesystem.swap("wf/a", None, b"data"),
            lambda: filesystem.delete(["wf/a"]),
            lambda: filesystem.list_folders(bool),
        ):
            with pytest.raises(SentError):
                call()
    assert {host} == {urlsplit(request.url).netloc for request in sent}
    assert all(scope in str(request.headers["Authorization"]) for request in sent)
    methods = ["GET", "PUT", "PUT", "POST", "GET"]
    paths = ["/root/wf/a"] * 3 + ["/"] * 2
    assert methods == [request.method for request in sent]
    assert paths == [urlsplit(request.url).path for request in sent]


def test_an_access_point_of_another_partition_is_told_with_the_remedy(sent: list[Any]) -> None:
    arn = "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/my-ap"
    with (
        access_point_store(arn) as store,
        pytest.raises(StorageError, match=r"partition.*give the access point's region"),
    ):
        store.read_fingerprint("wf")
    assert sent == []


def test_an_access_point_of_several_regions_needs_another_package(sent: list[Any]) -> None:
    with access_point_store(OF_SEVERAL_REGIONS) as store:
        if importlib.util.find_spec("awscrt") is None:
            with pytest.raises(StorageError, match=r"pip install botocore\[crt\]"):
                store.read_fingerprint("wf")
            return
        with pytest.raises(SentError):
            store._filesystem.read("wf/a")
    assert urlsplit(sent[0].url).netloc == "alias.mrap.accesspoint.s3-global.amazonaws.com"


class PlainFileSystem(MemoryFileSystem):
    protocol = "plaincanary"


def test_any_other_protocol_of_fsspec_is_used_without_conditional_writes() -> None:
    fsspec.register_implementation("plaincanary", PlainFileSystem, clobber=True)
    filesystem = connect("plaincanary://x", max_concurrency=5)
    assert isinstance(filesystem, GenericFilesystem)
    assert filesystem.conditional_writes is False
    # Calls of a filesystem that is not asynchronous do not gain from threads.
    assert filesystem.max_concurrency == 1


# Refused


REFUSED = {
    "": "empty",
    "\0": "NUL",
    "/data/\0x": "NUL",
    "file:///a\0b": "NUL",
    "s3:bucket/x": "neither a path nor a URL",
    "s3:/bucket/x": "neither a path nor a URL",
    "memory:/a": "neither a path nor a URL",
    "file:/a": "neither a path nor a URL",
    "memory:a": "neither a path nor a URL",
    "localhost:9000/bucket": "neither a path nor a URL",
    "file://tmp/x": "not absolute",
    "file://": "not absolute",
    "file://./x": "not absolute",
    "file://~/x": "not absolute",
    "file://localhost/x": "not absolute",
    "local://x": "not absolute",
    "s3://": "no bucket",
    "s3:///": "no bucket",
    "s3:///key": "no bucket",
    "s3://bucket/a::b": "::",
    "simplecache::s3://bucket/x": "simplecache",
    "filecache::memory://x": "filecache",
    "zip://x.zip::s3://bucket/x.zip": "::",
    "memory://a::memory://b": "::",
    "simplecache://x": "cache",
    "filecache://x": "cache",
    "blockcache://x": "cache",
    "cached://x": "cache",
    "s3://arn:aws:s3:::bucket/x": "the name of the bucket",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint": "ARN",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/": "ARN",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/a_b/x": "ARN",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint:a:b": "ARN",
    "s3://arn:aws:s3:us-west-2:12345:accesspoint/a/x": "12 digits",
    "s3://arn:aws:s3:us-west-2:١٢٣٤٥٦٧٨٩٠١٢:accesspoint/a": "12 digits",
    "s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/bucket/b": "ARN",
    "s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1": "ARN",
    "s3://arn:aws:sqs:us-west-2:123456789012:queue": "ARN",
    "s3://arn:other:s3:us-west-2:123456789012:accesspoint/a": "ARN",
    "s3://arn:": "ARN",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/a/b::c": "'::'",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/a//x": "segment",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/a?x": "'?'",
    "s3://bucket/x?versionId=1": "'?'",
    "s3://bucket?x": "'?'",
    "s3://bucket/#x": "'#'",
    "memory://a?b": "'?'",
    "s3://bucket/a\nb": "control character",
    "memory://a\x7f": "control character",
    "s3://bucket//x": "segment",
    "s3://bucket/./x": "segment",
    "s3://bucket/../x": "segment",
    "s3://bucket/a/..": "segment",
    "s3://bucket/.": "segment",
    "memory://a//b": "segment",
    "memory://a/../b": "segment",
    "memory://..": "segment",
    "memory://.": "segment",
    "s3://../x": "",
    "s3://./x": "",
    "nosuch://x": "nosuch",
    "s3s://bucket": "s3s",
    "s3+x://bucket": "s3",
    # These would become folders of that name here.
    " s3://bucket/x": "",
    "\ts3://bucket/x": "",
    "\ufeffs3://bucket/x": "",
    "s_3://bucket/x": "",
    "3s://bucket/x": "",
    "x://bucket": "",
    "://bucket": "",
    "'s3://bucket'": "",
    "url=s3://bucket": "",
}


@pytest.mark.parametrize(("url", "reason"), REFUSED.items(), ids=[ascii(url) for url in REFUSED])
def test_a_doubtful_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        connect(url)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("url", [b"s3://bucket", b"/data", None, 5, ["s3://bucket"], object()])
def test_a_url_that_is_no_text_is_refused(url: Any) -> None:
    with pytest.raises(InvalidURLError, match="a URL must be a str or a path"):
        connect(url)


def test_a_path_object_made_of_a_url_is_refused() -> None:
    # Its two slashes are one by now.
    with pytest.raises(InvalidURLError, match="neither a path nor a URL"):
        connect(Path("s3://bucket/x"))


@pytest.mark.parametrize("url", ["/data", "file:///data", "memory://a"])
def test_options_that_nothing_would_look_at_are_refused(url: str) -> None:
    with pytest.raises(InvalidURLError, match=r"takes no storage_options.*key, secret") as caught:
        connect(url, {"secret": SECRET, "key": "x"})
    assert SECRET not in str(caught.value)


def test_a_missing_dependency_says_what_to_install() -> None:
    missing = [scheme for scheme in known_implementations if not _importable(scheme)]
    if not missing:
        pytest.skip("every protocol of fsspec is installed")
    with pytest.raises(ImportError, match=r"(?i)install"):
        connect(f"{missing[0]}://host/x")


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("abfs://c/x", "adlfs", "azure"), ("gs://b/x", "gcsfs", "gcs"), ("s3://b/x", "s3fs", "s3")],
)
def test_an_extra_that_is_not_installed_is_named(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})  # Of classes found.
    with (
        pytest.raises(ImportError, match=rf"needs .*pip install 'checkpoint-store\[{extra}\]'"),
        CheckpointStore(url) as store,
    ):
        store.read_fingerprint("wf")


def _importable(scheme: str) -> bool:
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        return False
    except AttributeError:
        return True  # Nothing to install would bring it back, as with adl.
    return True


# Secrets


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"s3://{SECRET}@bucket",
        f"s3://key:{SECRET}@bucket/a::b",
        f"s3://arn:aws:s3:{SECRET}@bucket/x",
        f"s3://key:{SECRET}@bucket/x?y",
        f"s3://key:{SECRET}@/x",
        f"s3:key:{SECRET}@bucket",
        f"sftp://user:{SECRET}@host/x",
        f"ftp://user:{SECRET}@host/x",
        f"memory://user:{SECRET}@a",
        # Half of all AWS secrets hold a slash.
        f"s3://key:se/{SECRET}@bucket/x",
        f"simplecache::s3://key:{SECRET}@bucket/x",
        f"nosuch://user:{SECRET}@host",
        f"az://container/x?sig={SECRET}",
        f"https://host/x?token={SECRET}",
        f"file://user:{SECRET}@host/x",
    ],
)
def test_a_secret_within_a_url_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        connect(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_store_never_shows_its_options() -> None:
    options = {"key": "k", "secret": SECRET, "client_kwargs": {"aws_secret_access_key": SECRET}}
    store = CheckpointStore("s3://bucket/x", storage_options=options)
    assert SECRET not in f"{store!r} {store} {store._filesystem!r}"


# As a UPath


@pytest.fixture
def upath() -> Any:
    return pytest.importorskip("upath").UPath


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/a b/c",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/a",
        "memory://a/b",
        "file:///data/x y",
        "local:///data/x",
        "/data/x",
        "data/x",
        "~/x",
    ],
)
def test_a_upath_leads_where_its_url_leads(upath: Any, url: str) -> None:
    def place(url: Any) -> tuple[Any, ...]:
        filesystem: Any = connect(url)
        names = ("root", "_url_path", "_bucket", "_root")
        return type(filesystem), *(getattr(filesystem, name, None) for name in names)

    assert place(url) == place(upath(url))
    assert place(f"{url}/sub") == place(upath(url) / "sub")
    assert CheckpointStore(upath(url)).url in (url, f"{url}/")


def test_a_upath_brings_its_options_and_those_of_the_caller_win(upath: Any) -> None:
    url = upath("s3://bucket/x", key="its", secret=SECRET, anon=False) / "y"
    store = CheckpointStore(url, storage_options={"key": "the caller's"})
    filesystem: Any = store._filesystem
    assert filesystem._options == {"key": "the caller's", "secret": SECRET, "anon": False}
    assert url.storage_options["key"] == "its"
    assert SECRET not in f"{store!r} {store.url} {filesystem!r}"


def test_what_a_upath_says_of_the_server_is_kept(upath: Any) -> None:
    pytest.importorskip("paramiko")
    filesystem: Any = connect(upath(f"sftp://user:{SECRET}@host:2222/a/b"))
    assert filesystem._options == {
        "host": "host", "port": 2222, "username": "user", "password": SECRET,
    }  # fmt: skip
    assert filesystem._url_path == "/a/b"


def test_a_doubtful_upath_is_refused_without_its_secrets(upath: Any) -> None:
    absolute = upath("s3://bucket/a", secret=SECRET)
    for doubtful, reason in (
        ((absolute / "b").relative_to(absolute), "relative to a URL"),
        (upath(f"s3://key:{SECRET}@bucket/x"), "user name or password"),
        (upath("file:///data", auto_mkdir=SECRET), "takes no storage_options"),
        (upath("simplecache::s3://bucket/x"), "'::'"),
        (upath("s3://bucket/a//b"), "segment"),
    ):
        with pytest.raises(InvalidURLError, match=reason) as caught:
            connect(doubtful)
        assert SECRET not in str(caught.value)


# Azure, where the container stands before an @


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("abfs://container@account.dfs.core.windows.net", "container"),
        ("abfss://container@account.dfs.core.windows.net/a/b", "container/a/b"),
        ("az://my-container@account.blob.core.windows.net/a", "my-container/a"),
        ("abfs://account.dfs.core.windows.net/container/a", "container/a"),
    ],
)
def test_the_container_and_account_of_azure_are_no_credentials(url: str, path: str) -> None:
    pytest.importorskip("adlfs")
    filesystem: Any = connect(url)
    assert filesystem._options == {"account_name": "account"}
    assert path == filesystem._url_path


@pytest.mark.parametrize(
    "url",
    [
        f"abfs://container:{SECRET}@account.dfs.core.windows.net/x",
        f"abfs://{SECRET}@account/x",
        f"abfs://{SECRET}@account.dfs.core.windows.net.example.com/x",
        f"abfs://{SECRET}@x@account.dfs.core.windows.net/x",
        f"s3://{SECRET}@account.dfs.core.windows.net/x",
    ],
)
def test_what_only_looks_like_the_container_of_azure_is_a_secret(url: str) -> None:
    with pytest.raises(InvalidURLError, match="user name or password") as caught:
        connect(url)
    assert SECRET not in str(caught.value)


# Never anything else


def test_connecting_does_no_input_or_output(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("/data/x", "memory://x", "s3://bucket/x"):
        connect(url)  # Imports what it needs.

    def refuse(*args: object, **_: object) -> Any:
        raise AssertionError(f"asked for {args}")

    with monkeypatch.context() as patch:
        for name in ("mkdir", "open", "stat", "lstat", "listdir", "scandir"):
            patch.setattr(os, name, refuse)
        patch.setattr(builtins, "open", refuse)
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        made = [connect("/nowhere/x"), connect("memory://nowhere")]
    made.append(connect("s3://no-such-bucket/x"))
    assert len(made) == 3
    assert not Path("/nowhere").exists()


_PIECES = (
    *("s3", "S3", "s3a", "file", "local", "memory", "sftp", "ftp", "http", "https", "github", "gs"),
    *("az", "hdfs", "webhdfs", "smb", "zip", "tar", "git", "data", "reference", "dir", "generic"),
    *("asynclocal", "async_wrapper", "dask", "jupyter", "hf", "simplecache", "ssh", "root"),
    *(":", "://", "::", "/", "//", "///", "\\", ".", "..", "~", "@", "?", "#", "%", "*", "[", "]"),
    *("[::1]", "[", ":0", ":99999", ":abc", ":-1", "user", "host", "bucket", "C:", " ", "\n", "\0"),
    *("arn:", "arn:aws:s3::123456789012:accesspoint/a"),
    *("é", "名", "\ud800", "\u202e", "-", "_", "+", "x" * 600, "?a=b", "%00", "%zz", "{", "}", "$"),
)
urls = st.lists(st.sampled_from(_PIECES), max_size=7).map("".join) | st.text(
    st.characters(exclude_categories=()), max_size=30
)


@settings(max_examples=3_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(urls)
@example("ftp://host:abc/x")
@example("ftp://host:99999/x")
@example("ftp://[::1/x")
@example("ftp://[x]/y")
@example("webhdfs://host:abc/x")
@example("github://")
@example("github://x")
@example("github://a:b@c/x")
@example("data:,x")
@example("data://x")
@example("reference://x")
@example("zip://x")
@example("tar://x")
@example("dir://x")
@example("async_wrapper://x")
@example("generic://x")
@example("http://x")
@example("s3://\ud800/x")
@example("~\ud800")
def test_whatever_the_url_it_is_a_filesystem_or_our_error(url: str) -> None:
    try:
        filesystem = connect(url)
    except InvalidURLError as error:
        assert str(error)  # noqa: PT017
    except ImportError as error:
        assert str(error)  # noqa: PT017 - a protocol whose package is not installed
    else:
        assert isinstance(filesystem, Filesystem)


@settings(max_examples=1_000, deadline=None)
@given(
    st.sampled_from(sorted(known_implementations)),
    st.lists(st.sampled_from(_PIECES), max_size=5).map("".join),
)
def test_every_protocol_of_fsspec_is_a_filesystem_or_our_error(scheme: str, rest: str) -> None:
    try:
        filesystem = connect(f"{scheme}://{rest}")
    except (InvalidURLError, ImportError):
        return
    assert isinstance(filesystem, Filesystem)
