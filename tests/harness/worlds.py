"""Storages that can be copied as they are, on which operations crash and overtake each other."""

from __future__ import annotations

import secrets
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import CheckpointStore
from checkpoint_store._filesystems.base import Filesystem
from checkpoint_store._filesystems.generic import GenericFilesystem

from .taps import Tap, Tapped


class World(ABC):
    """A storage, which is looked at without the library."""

    kind: str

    @abstractmethod
    def filesystem(self) -> Filesystem: ...

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """All files except the locks, by their keys."""

    @abstractmethod
    def copy(self) -> World: ...

    @abstractmethod
    def put(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def remove(self) -> None: ...

    def store(self, tap: Tap | None = None) -> CheckpointStore:
        store = CheckpointStore("memory://replaced-below")
        filesystem = self.filesystem()
        store._filesystem = filesystem if tap is None else Tapped(filesystem, tap)
        return store

    def folder(self) -> list[str]:
        """The keys of the workflow: its record, its checkpoints, and what a clear moved away."""
        return [key for key in self.files() if key.startswith(("wf/", ".tmp/wf~"))]

    def others(self) -> dict[str, bytes]:
        mine = set(self.folder())
        return {key: data for key, data in self.files().items() if key not in mine}


class MemoryWorld(World):
    kind = "memory"

    def __init__(self) -> None:
        self.name = f"crash-{secrets.token_hex(8)}"

    def filesystem(self) -> Filesystem:
        return CheckpointStore(f"memory://{self.name}")._filesystem

    def files(self) -> dict[str, bytes]:
        prefix = f"/{self.name}/"
        return {
            path.removeprefix(prefix): file.getvalue()
            for path, file in MemoryFileSystem.store.items()
            if path.startswith(prefix)
        }

    def copy(self) -> World:
        world = type(self)()
        for key, data in self.files().items():
            world.put(key, data)
        return world

    def put(self, key: str, data: bytes) -> None:
        MemoryFileSystem().pipe_file(f"/{self.name}/{key}", data)

    def remove(self) -> None:
        for path in [path for path in MemoryFileSystem.store if path.startswith(f"/{self.name}/")]:
            del MemoryFileSystem.store[path]
        folders = MemoryFileSystem.pseudo_dirs
        folders[:] = [path for path in folders if not path.startswith(f"/{self.name}")]


class GenericWorld(MemoryWorld):
    """Files in memory without conditional writes, for one process at a time."""

    kind = "generic"

    def filesystem(self) -> Filesystem:
        filesystem = GenericFilesystem("memory", f"/{self.name}", {}, max_concurrency=1)
        filesystem.warned = True
        return filesystem


class LocalWorld(World):
    kind = "local"

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.root = parent / secrets.token_hex(8)

    def filesystem(self) -> Filesystem:
        return CheckpointStore(self.root, durable=False)._filesystem

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and ".locks" not in path.parts
        }

    def copy(self) -> World:
        world = LocalWorld(self.parent)
        if self.root.exists():
            shutil.copytree(self.root, world.root, ignore=shutil.ignore_patterns(".locks"))
        return world

    def put(self, key: str, data: bytes) -> None:
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).write_bytes(data)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
