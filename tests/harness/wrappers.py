"""Everyday objects that write into a stream they are given, closed in time or left open."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from checkpoint_store._frame import FrameWriter


def as_text(writer: FrameWriter) -> Any:
    return io.TextIOWrapper(writer, encoding="utf-8", newline="")


def as_buffered(writer: FrameWriter) -> Any:
    return codecs.getwriter("utf-8")(io.BufferedWriter(writer, 16))  # type: ignore[arg-type]


def as_stacked(writer: FrameWriter) -> Any:
    return as_text(io.BufferedWriter(writer, 16))  # type: ignore[arg-type]


def as_stream_writer(writer: FrameWriter) -> Any:
    return codecs.getwriter("utf-8")(writer)


def as_closing(writer: FrameWriter) -> Any:
    class Text(contextlib.closing[Any]):
        def __enter__(self) -> Any:
            return as_stream_writer(super().__enter__())

    return Text(writer)


def as_exit_stack(writer: FrameWriter) -> Any:
    class Text(contextlib.ExitStack):
        def __enter__(self) -> Any:
            return super().__enter__().enter_context(as_text(writer))

    return Text()


@contextlib.contextmanager
def as_generator(writer: FrameWriter) -> Iterator[Any]:
    text = as_text(writer)
    try:
        yield text
    finally:
        text.close()


WRAPPERS: list[Callable[[FrameWriter], Any]] = [
    as_text,
    as_buffered,
    as_stacked,
    as_stream_writer,
    as_closing,
    as_exit_stack,
    as_generator,
]


# Objects that are dropped without being closed


def leave_text(writer: FrameWriter) -> Any:
    text = as_text(writer)
    text.write("half")
    return text


def leave_buffered(writer: FrameWriter) -> Any:
    buffered = io.BufferedWriter(writer)  # type: ignore[arg-type]
    buffered.write(b"half")
    return buffered


def leave_stacked(writer: FrameWriter) -> Any:
    stacked = as_stacked(writer)
    stacked.write("half")
    return stacked


def leave_csv(writer: FrameWriter) -> Any:
    table = csv.writer(as_stacked(writer))
    table.writerow(["half"])
    return table


def leave_gzip(writer: FrameWriter) -> Any:
    text = as_text(gzip.GzipFile(fileobj=writer, mode="wb"))  # type: ignore[arg-type]
    text.write("half")
    return text


def leave_lzma(writer: FrameWriter) -> Any:
    compressed = lzma.LZMAFile(writer, "wb")  # type: ignore[arg-type]  # noqa: SIM115
    compressed.write(b"half")
    return compressed


def leave_bz2(writer: FrameWriter) -> Any:
    compressed = bz2.BZ2File(writer, "wb")  # type: ignore[arg-type]
    compressed.write(b"half")
    return compressed


def leave_zip(writer: FrameWriter) -> Any:
    archive = zipfile.ZipFile(writer, "w")  # type: ignore[arg-type]
    archive.writestr("a", "half")
    return archive


def leave_tar(writer: FrameWriter) -> Any:
    archive = tarfile.open(fileobj=writer, mode="w|")  # type: ignore[call-overload]  # noqa: SIM115
    archive.addfile(tarfile.TarInfo("a"))
    return archive


def leave_stream_writer(writer: FrameWriter) -> Any:
    text = as_stream_writer(writer)
    text.write("half")
    return text


def leave_arrow(writer: FrameWriter) -> Any:
    import pyarrow

    sink = pyarrow.PythonFile(writer, mode="w")
    sink.write(b"half")
    return sink


LEFT = [
    leave_text,
    leave_buffered,
    leave_stacked,
    leave_csv,
    leave_gzip,
    leave_lzma,
    leave_bz2,
    leave_zip,
    leave_tar,
    leave_stream_writer,
    leave_arrow,
]
