"""`python -m checkpoint_store [URL]`: a demonstration, and a check of what a URL guarantees."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NoReturn

from .._filesystems import Filesystem, connect
from .._store import CheckpointStore
from ..errors import CheckpointStoreError, storage_errors
from .check import check
from .demo import demonstrate
from .report import Report, version

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
Races are run by 8 threads of 2 processes on this machine, each with a connection of
its own. What remains to be tried elsewhere has a line that begins with --. No line
takes much longer than 5 seconds, unless a single step of it does: on slow storage
fewer rounds are made, and the line says how many.

With --json the output is one JSON object and nothing else:
  version, place         of this library; the folder that was used, or null
  demonstration          its lines
  demonstration_failure  what ended it too early, or null
  findings               one object for each line of the check: promise; kept, which
                         is true, false or null (not tried); detail; seconds; and
                         meaning, which is null unless the promise is broken
  warnings               what the library logged meanwhile
  left_behind            why the folder could not be removed, or null
  error                  why there is no more to tell, or null
  exit_status            as below

exit status:
  0    every promise that can be tried there is kept
  1    one is not, the demonstration failed, or something was left behind; the output
       says what that means
  2    the command is wrong, or the storage cannot be reached or written to
  130  interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, or raises `SystemExit` as argparse does."""
    parsed = _parse(sys.argv[1:] if arguments is None else arguments)
    options = dict(parsed.storage_option)
    report = Report(options, as_json=parsed.json)
    try:
        return report.finish(_status(parsed.url, options, report))
    except BrokenPipeError:
        # Nobody reads the output any more. The interpreter would complain when it flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _status(url: str | None, options: dict[str, Any], report: Report) -> int:
    try:
        return _examine(url, options, report)
    except KeyboardInterrupt:
        report.fail("interrupted")
        return 130
    except BrokenPipeError:
        raise
    except (CheckpointStoreError, ImportError, OSError) as error:
        message = str(error)
        if options and isinstance(error.__cause__, TypeError):
            message = f"{message}: check the names of the storage options"
        report.fail(message)
        return 2


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        "python -m checkpoint_store",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.as_json = "--json" in arguments
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
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, for machines (see below)"
    )
    parser.add_argument("--version", action="version", version=f"checkpoint_store {version()}")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        # The arguments are not repeated in full: one might be a credential without its option.
        names = ", ".join(word.partition("=")[0] for word in unknown if word.startswith("--"))
        parser.error(f"there are arguments too many, or unknown ones: {names or 'name one URL'}")
    return parsed


class _Parser(argparse.ArgumentParser):
    as_json = False

    def error(self, message: str) -> NoReturn:
        if self.as_json:
            report = Report({}, as_json=True)
            report.fail(message)
            self.exit(report.finish(2))
        super().error(message)


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


def _examine(url: str | None, options: dict[str, Any], report: Report) -> int:
    base = tempfile.gettempdir() if url is None else url
    # An error in the URL is reported with the URL as it was given, without the folder below it.
    connect(base, options)
    place = f"{base.removesuffix('/')}/checkpoint-store-check-{secrets.token_hex(8)}"
    filesystem = connect(place, options)
    place = filesystem.url
    with storage_errors(base), suppress(FileNotFoundError):
        filesystem.read_small("missing/missing")

    try:
        _write(filesystem, base)
        report.begin(place)
        if url is None:
            report.say("(No URL was given, so this is a temporary local folder.)")
        report.say()
        with _telling_warnings(report):
            _try(place, options, report)
    finally:
        removed = _remove(filesystem, report)
    if removed:
        report.tell_removal()
    if url is None:
        report.say("Next, name your own place: python -m checkpoint_store s3://bucket/prefix")
    return 0 if report.all_kept and removed else 1


def _write(filesystem: Filesystem, base: str) -> None:
    """Fails if nothing can be written, neither plainly nor under a condition."""
    try:
        with storage_errors(base):
            filesystem.write("written/plainly", [b"data"])
    except CheckpointStoreError as error:
        # A bucket may allow only conditional writes.
        try:
            filesystem.swap("written/conditionally", None, b"data")
        except Exception:  # noqa: BLE001
            raise error from error.__cause__


def _try(place: str, options: dict[str, Any], report: Report) -> None:
    """Reports the demonstration at this place, and which promises are kept there."""
    with (
        CheckpointStore(place, storage_options=options) as store,
        CheckpointStore(place, storage_options=options) as other,
    ):
        _demonstrate(store, report)
        report.say("\nWhat this storage guarantees, tried here and now (-- was not tried):\n")
        with closing(check(store, other, options)) as findings:
            for finding in findings:
                report.find(finding)
    report.conclude()


def _demonstrate(store: CheckpointStore, report: Report) -> None:
    lines = demonstrate(store)
    while True:
        try:
            with storage_errors("the demonstration"):
                line = next(lines, None)
        except CheckpointStoreError as error:
            return report.fail_demonstration(error)
        if line is None:
            return None
        report.demonstrate(line)


def _remove(filesystem: Filesystem, report: Report) -> bool:
    """Removes everything at this place, and the folders above it that were made for it.

    Returns False if something is left.
    """
    place = filesystem.url
    try:
        with storage_errors(place):
            filesystem.remove_all()
    except CheckpointStoreError as error:
        report.leave_behind(place, str(error))
        return False
    except (KeyboardInterrupt, SystemExit):
        report.leave_behind(place, "its removal was interrupted")
        raise
    finally:
        filesystem.close()
    return True


@contextmanager
def _telling_warnings(report: Report) -> Iterator[None]:
    """Reports the warnings that the library logs meanwhile."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            report.warn(record.getMessage())

    logger = logging.getLogger("checkpoint_store")
    teller = Teller(logging.WARNING)
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)
