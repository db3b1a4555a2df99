"""Which folders are not simply on a disk of this machine.

On a local disk, locks and the syncing of files are the kernel's work. On a network or FUSE
filesystem they are up to a server or a program, and no test on this machine can tell what another
host, or another mount of the same files, sees of them. Such a place is recognised by the type of
its mount, and the user is told.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import NamedTuple

_SHARED = frozenset(
    [
        *("9p", "acfs", "afpfs", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "davfs"),
        *("fakeowner", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "macfuse", "ncpfs", "nfs"),
        *("nfs3", "nfs4", "ocfs2", "orangefs", "osxfuse", "panfs", "prl_fs", "pvfs2", "smb2"),
        *("smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "webdav", "wekafs"),
    ]
)
# Linux lists for each mount: three numbers, the root within its filesystem, the mount point,
# options, "-" and the type.
_MOUNTINFO = re.compile(rb"\d+ \d+ \S+ \S+ (\S+) .*? - (\S+) ")
_ESCAPED = re.compile(rb"\\([0-7]{3})")
# macOS prints for each mount: `host:/volume on /Volumes/volume (nfs, nodev, nosuid)`.
_PRINTED = re.compile(r".*? on (/.*) \(([^(),]+)[^()]*\)")


class Mount(NamedTuple):
    """Where a filesystem is mounted, and of which type it is."""

    point: str
    kind: str


def caveat_of(path: str) -> str | None:
    """What is unknown about locks and syncs at a path, in a sentence; None on a local disk.

    The path need not exist yet.
    """
    mount = _mount_of(path, _mounts())
    if mount is None or not _is_shared(mount.kind):
        return None
    return (
        f"{mount.point} is a mount of type {mount.kind}: whether its locks hold for another mount "
        "or host, and whether a synced write survives a crash of what serves it, is up to it"
    )


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts in Linux's `/proc/self/mountinfo`."""
    found = filter(None, map(_MOUNTINFO.match, text.splitlines()))
    return [Mount(_unescape(match[1]), _unescape(match[2])) for match in found]


def parse_mount_output(text: str) -> list[Mount]:
    """The mounts that macOS's `mount` prints. This was tried with its output, not on a Mac."""
    found = filter(None, map(_PRINTED.fullmatch, text.splitlines()))
    return [Mount(match[1], match[2]) for match in found]


def _is_shared(kind: str) -> bool:
    # A program that serves a `fuseblk`, such as ntfs-3g, has the block device to itself, as the
    # driver of a disk has. For other FUSE filesystems the type is a name of their own choice.
    return kind in _SHARED or kind.startswith("fuse.")


def _mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    path = os.path.join(os.path.realpath(path), "")
    around = [mount for mount in mounts if path.startswith(os.path.join(mount.point, ""))]
    # If several filesystems are mounted at one point, the last one covers the others.
    return max(reversed(around), key=lambda mount: len(mount.point), default=None)


def _mounts() -> list[Mount]:
    try:
        if sys.platform == "darwin":
            command = subprocess.run(["/sbin/mount"], capture_output=True, check=True, timeout=10)
            return parse_mount_output(os.fsdecode(command.stdout))
        with open("/proc/self/mountinfo", "rb") as file:
            return parse_mountinfo(file.read())
    except (OSError, subprocess.SubprocessError):
        return []


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))
