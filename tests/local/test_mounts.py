"""Folders on network and FUSE filesystems: how they are told, and what still holds there."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, InputChangedError, resume
from checkpoint_store._filesystems import mounts
from checkpoint_store._filesystems.mounts import (
    Mount,
    caveat_of,
    parse_mount_output,
    parse_mountinfo,
)

MOUNTINFO = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict
28 27 0:30 / /data rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2
29 28 8:1 / /data/disk rw,relatime shared:2 master:1 - xfs /dev/sda1 rw
30 27 0:39 /sub /home/a\\040b\\134c rw,nosuid - fuse.sshfs host:/with\\040-\\040dash rw,user_id=0
31 27 0:40 / /bound rw - fuse /tmp/source rw,user_id=0
32 27 0:41 / /covered rw - cifs //server/share rw
33 32 0:42 / /covered rw - tmpfs tmpfs rw
34 27 8:2 / /windows rw - fuseblk /dev/sdb1 rw
35 27 0:43 / /\xff\xfe rw - 9p share rw
this line means nothing
"""

# As macOS 14 prints it, with what its manuals and users show of other types.
PRINTED = """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
server:/export on /Volumes/export (nfs, nodev, nosuid, mounted by ada)
//ada@server/My%20Share on /Volumes/My Share (smbfs, nodev, nosuid, mounted by ada)
sshfs#host:/ on /Users/ada/far (1) (macfuse, nodev, nosuid, synchronous, mounted by ada)
this line means nothing
"""


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_mounts", lambda: parse_mountinfo(MOUNTINFO))


def kind_of(caveat: str | None) -> str | None:
    return None if caveat is None else caveat.partition(" is a mount of type ")[2].partition(":")[0]


def test_the_mounts_of_linux_are_parsed() -> None:
    parsed = parse_mountinfo(MOUNTINFO)
    assert len(parsed) == 10
    assert Mount("/data", "nfs4") in parsed
    assert Mount("/data/disk", "xfs") in parsed
    assert Mount("/home/a b\\c", "fuse.sshfs") in parsed
    assert Mount(os.fsdecode(b"/\xff\xfe"), "9p") in parsed


def test_the_mounts_of_macos_are_parsed() -> None:
    expected = [
        Mount("/", "apfs"),
        Mount("/dev", "devfs"),
        Mount("/System/Volumes/Data", "apfs"),
        Mount("/System/Volumes/Data/home", "autofs"),
        Mount("/Volumes/export", "nfs"),
        Mount("/Volumes/My Share", "smbfs"),
        Mount("/Users/ada/far (1)", "macfuse"),
    ]
    assert expected == parse_mount_output(PRINTED)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")
@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", None),
        ("/data", "nfs4"),
        ("/data/not/there/yet", "nfs4"),
        ("/data2", None),
        ("/data/disk/root", None),
        ("/home/a b\\c/root", "fuse.sshfs"),
        ("/bound/root", "fuse"),
        ("/covered/root", None),
        ("/windows/root", None),
        ("/\udcff\udcfe/root", "9p"),
    ],
)
def test_the_innermost_mount_decides(path: str, kind: str | None) -> None:
    assert kind == kind_of(caveat_of(path))


SHARED = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "ceph", "lustre", "gpfs",
    "beegfs", "afs", "afpfs", "webdav", "ocfs2", "gfs2", "fuse", "fuse.rclone", "macfuse",
)  # fmt: skip


@pytest.mark.parametrize("kind", SHARED)
def test_a_network_or_fuse_filesystem_has_a_caveat(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_mounts", lambda: [Mount(os.path.abspath("/"), kind)])
    assert kind == kind_of(CheckpointStore(tmp_path / "new" / "root")._filesystem.caveat)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "apfs", "tmpfs", "overlay", "fuseblk"]
)
def test_a_local_disk_has_none(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_mounts", lambda: [Mount(os.path.abspath("/"), kind)])
    assert CheckpointStore(tmp_path)._filesystem.caveat is None


def test_a_link_to_a_mount_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mounted")
    point = os.path.realpath(tmp_path / "mounted")
    monkeypatch.setattr(mounts, "_mounts", lambda: [Mount("/", "ext4"), Mount(point, "nfs")])
    assert kind_of(CheckpointStore(tmp_path / "link" / "root")._filesystem.caveat) == "nfs"


def test_where_no_mounts_are_told_there_is_no_caveat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise OSError

    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr("builtins.open", unreadable)
        monkeypatch.setattr(subprocess, "run", unreadable)
        caveat = caveat_of(str(tmp_path))
        monkeypatch.undo()
        assert caveat is None


def test_macos_is_asked_by_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        assert command == ["/sbin/mount"]
        return subprocess.CompletedProcess(command, 0, PRINTED.encode())

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)
    caveat = caveat_of("/Volumes/My Share/root")
    monkeypatch.undo()
    assert kind_of(caveat) == "smbfs"


def test_a_store_says_it_once_and_claims_no_conditional_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mounts, "_mounts", lambda: [Mount(os.path.abspath("/"), "nfs4")])
    store = CheckpointStore(tmp_path)
    swaps: list[str] = []
    swap = store._filesystem.swap
    monkeypatch.setattr(
        store._filesystem, "swap", lambda key, *rest: swaps.append(key) or swap(key, *rest)
    )
    assert store.conditional_writes is None
    with caplog.at_level(logging.WARNING, "checkpoint_store"):
        for name in ("wf", "wf2"):
            assert store.run(name).is_current()
    [message] = [record.getMessage() for record in caplog.records]
    assert "type nfs4" in message
    assert message.endswith("through one mount and on one host at a time")
    # It is not asked again and again, as a server is of which nothing is known.
    assert len(swaps) == 2
    assert store.conditional_writes is None


def test_elsewhere_a_store_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mounts, "_mounts", lambda: [Mount(os.path.abspath("/"), "ext4")])
    store = CheckpointStore(tmp_path)
    store.run("wf")
    assert store.conditional_writes is True
    assert caplog.records == []


def test_a_store_is_made_without_a_look_at_the_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_mounts", lambda: pytest.fail("it looked"))
    store = CheckpointStore(tmp_path)
    with pytest.raises(pytest.fail.Exception):
        assert store.conditional_writes


# A real one


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder, and a FUSE filesystem that shows the same folder."""
    if shutil.which("bindfs") is None or shutil.which("fusermount3") is None:
        pytest.skip("bindfs is not installed")
    source, point = tmp_path / "source", tmp_path / "point"
    source.mkdir()
    point.mkdir()
    done = subprocess.run(
        ["bindfs", "--no-allow-other", str(source), str(point)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"FUSE does not work here: {done.stderr.strip()}")
    try:
        yield source, point
    finally:
        subprocess.run(["fusermount3", "-uz", str(point)], check=True)


def race(url: str, fingerprint: str, rounds: int, together: Barrier, outcomes: Any) -> None:
    logging.getLogger("checkpoint_store").addHandler(logging.NullHandler())
    store = CheckpointStore(url)
    for number in range(rounds):
        together.wait(60)
        try:
            run = resume(store, f"wf{number}", fingerprint=fingerprint, on_input_change="raise")
            outcomes.put((number, run.token))
        except InputChangedError:
            outcomes.put((number, None))


def test_of_two_creates_through_a_mount_and_beside_it_one_wins(bound: tuple[Path, Path]) -> None:
    rounds = 60
    context = multiprocessing.get_context("spawn")
    together, outcomes = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=race, args=(str(path / "root"), name, rounds, together, outcomes))
        for path, name in zip(bound, "AB", strict=True)
    ]
    for process in processes:
        process.start()
    told = [outcomes.get(timeout=60) for _ in range(2 * rounds)]
    for process in processes:
        process.join(60)
    winners = Counter(number for number, token in told if token)
    assert dict.fromkeys(range(rounds), 1) == winners
    assert os.listdir(bound[0] / "root" / ".tmp") == []


def test_a_fuse_mount_is_told(bound: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    source, point = bound
    on_disk, through = CheckpointStore(source / "root"), CheckpointStore(point / "root")
    assert on_disk.conditional_writes is True
    assert through.conditional_writes is None
    assert through.run("wf").token == on_disk.run("wf").token
    [record] = caplog.records
    assert record.getMessage().startswith(f"{os.path.realpath(point)} is a mount of type fuse")
