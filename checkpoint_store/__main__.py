"""`python -m checkpoint_store [URL]`: a demonstration, and a check of what a URL guarantees."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn, TextIO

from ._check import check
from ._demo import demonstrate
from ._filesystems import Filesystem, connect
from ._filesystems.base import PAGE
from ._filesystems.generic import GenericFilesystem
from ._filesystems.local import LocalFilesystem
from ._store import CheckpointStore
from .errors import CheckpointStoreError, storage_errors

_DESCRIPTION = """\
Shows what checkpoint_store does, then checks what the storage at URL guarantees.

A small workflow is interrupted, resumed, and resumed with another input under each
policy. After that every promise of the library is tried at the URL, one line each.
All of it happens in a folder of its own, URL/checkpoint-store-check-<random>, which
is removed at the end, also after an error or Ctrl-C. Nothing else is touched."""

_EPILOG = """\
examples:
  python -m checkpoint_store
  python -m checkpoint_store /mnt/shared/checkpoints
  python -m checkpoint_store s3://bucket/checkpoints
  python -m checkpoint_store s3://bucket/checkpoints \\
      --storage-option endpoint_url=https://minio.example:9000 \\
      --storage-option client_kwargs='{"region_name": "eu-west-1"}'

Credentials come from where they always do (AWS_ACCESS_KEY_ID, AWS_PROFILE,
FSSPEC_..., ~/.aws); what is on the command line other users may see.
Races are run from threads of this machine: on a network file system, whether locks
hold between machines remains to be tried.

exit status:
  0    every promise that can be tried is kept there
  1    one is not, or something was left behind; the output says what that means
  2    the command is wrong, or the storage cannot be reached or written to
  130  interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, or raises `SystemExit` as argparse does."""
    parsed = _parse(arguments)
    options = dict(parsed.storage_option)
    try:
        return _examine(parsed.url, options)
    except KeyboardInterrupt:
        _say("checkpoint_store: interrupted", sys.stderr)
        return 130
    except BrokenPipeError:
        # Nobody reads on, and the interpreter would complain when it flushes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CheckpointStoreError, ImportError, OSError) as error:
        message = str(error)
        if options and isinstance(error.__cause__, TypeError):
            message = f"{message}: check the names of the storage options"
        _say(f"checkpoint_store: {_without_values(message, options)}", sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m checkpoint_store",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help="a folder, or a URL: file://, memory://, s3:// or any other that fsspec knows "
        "(default: a temporary local folder)",
    )
    parser.add_argument(
        "--storage-option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="an option for the fsspec filesystem, such as endpoint_url, profile or anon=true; "
        "a VALUE that is JSON counts as such, any other as a string, as do key, secret and token; "
        "may be repeated",
    )
    parser.add_argument("--version", action="version", version=f"checkpoint_store {_version()}")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        # Not repeated in full: it might be a credential that slipped out of its option.
        names = ", ".join(word.partition("=")[0] for word in unknown if word.startswith("--"))
        parser.error(f"there are arguments too many, or unknown ones: {names or 'name one URL'}")
    return parsed


def _option(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError("write KEY=VALUE, such as anon=true")
    if key in ("key", "secret", "token"):
        return key, value
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _version() -> str:
    try:
        return version("checkpoint-store")
    except PackageNotFoundError:
        return "(not installed)"


def _examine(url: str | None, options: dict[str, Any]) -> int:
    base = tempfile.gettempdir() if url is None else url
    connect(base, options)  # What is wrong with the URL is said of the URL as it was given.
    place = f"{base.removesuffix('/')}/checkpoint-store-check-{secrets.token_hex(8)}"
    filesystem = connect(place, options)
    if isinstance(filesystem, LocalFilesystem):
        place = filesystem.root
    with suppress(FileNotFoundError), storage_errors(base, missing_passes=True):
        filesystem.read_small("missing/missing")

    _say(f"checkpoint_store {_version()} at {place}")
    if url is None:
        _say("(No URL was given, so this is a temporary local folder.)")
    _say()
    missing = _missing_folders(filesystem)
    try:
        with _telling_warnings(options):
            kept = _try(place, options)
    finally:
        removed = _remove(filesystem, place, missing, options)
    if removed:
        _say(f"\n{place} was removed.")
    if url is None:
        _say("Next, name your own place: python -m checkpoint_store s3://bucket/prefix")
    return 0 if kept and removed else 1


def _try(place: str, options: dict[str, Any]) -> bool:
    """Whether every promise is kept at this place."""
    with (
        CheckpointStore(place, storage_options=options) as store,
        CheckpointStore(place, storage_options=options) as other,
    ):
        for line in demonstrate(store):
            _say(line)
        _say("\nWhat this storage guarantees, tried here and now (-- cannot be tried):\n")
        marks = {True: "ok", False: "FAIL", None: "--"}
        broken: dict[str, list[str]] = {}
        for finding in check(store, other):
            _say(
                f"  {marks[finding.kept]:4} {1000 * finding.seconds:8,.0f} ms  "
                f"{finding.promise:19} {_without_values(finding.detail, options)}"
            )
            if finding.kept is False:
                broken.setdefault(finding.meaning, []).append(finding.promise)
    if not broken:
        _say("\nEvery promise that can be tried is kept here.")
    for meaning, promises in broken.items():
        _say(f"\nNot kept here: {', '.join(promises)}.\n{textwrap.fill(meaning, 96)}")
    return not broken


def _missing_folders(filesystem: Filesystem) -> list[str]:
    """The folders above a local root which are not there yet, the innermost first."""
    missing = []
    if isinstance(filesystem, LocalFilesystem):
        path = os.path.dirname(filesystem.root)
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
    return missing


def _remove(
    filesystem: Filesystem, place: str, missing: list[str], options: dict[str, Any]
) -> bool:
    """Removes everything at `place`, and what was missing above it; False if something is left."""
    try:
        with storage_errors(place):
            if isinstance(filesystem, LocalFilesystem):
                _remove_local(filesystem.root, missing)
            else:
                _remove_keys(filesystem)
    except CheckpointStoreError as error:
        reason = _without_values(str(error), options)
        _say(f"checkpoint_store: remove {place} yourself, it was left behind: {reason}", sys.stderr)
        return False
    except (KeyboardInterrupt, SystemExit):
        _say(f"checkpoint_store: remove {place} yourself, it was left behind", sys.stderr)
        raise
    finally:
        filesystem.close()
    return True


def _remove_local(root: str, missing: list[str]) -> None:
    if os.path.lexists(root):
        shutil.rmtree(root)
    with suppress(OSError):
        for path in missing:
            os.rmdir(path)


def _remove_keys(filesystem: Filesystem) -> None:
    folders = [(folder, list(names)) for folder, names in filesystem.folders()]
    keys = [f"{folder}/{name}" for folder, names in folders for name in names]
    for start in range(0, len(keys), PAGE):
        for key, reason in filesystem.delete(keys[start : start + PAGE]).items():
            raise OSError(f"{key}: {reason}")
    if isinstance(filesystem, GenericFilesystem):
        # Some have no folders, or none that can be removed.
        for path in [*(filesystem._path(folder) for folder, _ in folders), filesystem._path()]:
            with suppress(Exception):
                filesystem._fs.rmdir(path)
    if any(list(names) for _, names in filesystem.folders()):
        raise OSError("files are still listed after they were deleted")


@contextmanager
def _telling_warnings(options: dict[str, Any]) -> Iterator[None]:
    """Makes the library's warnings a part of the output, each of them once."""
    told = set()

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = _without_values(record.getMessage(), options)
            if message not in told:
                told.add(message)
                _say(
                    textwrap.fill(
                        f"warning: {message}", 96, initial_indent="  ", subsequent_indent="  "
                    )
                )

    logger = logging.getLogger("checkpoint_store")
    teller = Teller(logging.WARNING)
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)


def _without_values(text: str, options: dict[str, Any]) -> str:
    """A message without the values of storage options, which may be credentials."""
    for value in sorted(_leaves(options), key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        # An endpoint is refused if it has credentials in it, and tells what to check.
        value = [item for name, item in value.items() if name != "endpoint_url"]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    text = str(value)
    # Anything shorter would cross out parts of ordinary words.
    return [text] if len(text) >= 4 and not isinstance(value, bool | None) else []


def _say(text: str = "", stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _terminate(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
