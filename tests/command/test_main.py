"""The command is run as a user would; what it leaves behind is looked at by another way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import CheckpointStore, InvalidNameError
from checkpoint_store._command.command import main
from checkpoint_store._filesystems import memory
from checkpoint_store._filesystems.base import Page

from ..harness.buckets import Bucket
from ..harness.command import (
    CANARY,
    CONDITIONAL,
    UNCONDITIONAL,
    command,
    failed,
    marks,
    rows,
    s3_arguments,
)
from ..harness.environment import posix
from ..harness.s3 import on_ministack, on_moto
from ..harness.servers import Proxy, Request, Response, error

pytestmark = pytest.mark.usefixtures("few_rounds")

NOT_TRIED = {"durable publish"}


def test_without_a_url_it_uses_a_temporary_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}

    done = subprocess.run(command(), capture_output=True, text=True, env=environment)

    assert done.stderr == ""
    assert done.returncode == 0
    assert "No URL was given" in done.stdout
    assert set(marks(done.stdout)) == CONDITIONAL | UNCONDITIONAL
    assert {name for name, mark in marks(done.stdout).items() if mark != "ok"} == NOT_TRIED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("untouched_memory")
def test_the_demonstration_shows_what_was_skipped_and_what_is_stale(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["memory://demo"]) == 0

    output = capsys.readouterr().out
    changed = "changed: 'orders'"
    crashed, resumed, refused, reused, fresh, partial = rows(output)
    assert crashed == ["5,000", "raise", "ran", "CRASHED", "-", "-", "-", "start"]
    assert resumed[:6] == ["5,000", "raise", "skipped", "ran", "ran", "ran"]
    assert resumed[7:] == ["EUR", "fresh", "continue"]
    assert refused == ["5,250", "raise", *"-----", "refused,", *changed.split()]
    assert reused[:6] == ["5,250", "reuse", "skipped", "skipped", "skipped", "skipped"]
    assert reused[7:] == ["EUR", "STALE", f"reuse, {changed}"]
    assert fresh[:6] == ["5,250", "reset", "ran", "ran", "ran", "ran"]
    assert fresh[7:] == ["EUR", "fresh", f"reset, {changed}"]
    assert partial[:6] == ["5,250", "reset", "skipped", "skipped", "skipped", "ran"]
    assert partial[7:] == ["USD", "fresh", "reset, changed: 'currency'"]
    assert resumed[6] == reused[6] != fresh[6] == partial[6]
    assert "'extract', 'clean', 'total' kept: everything used is unchanged" in output
    assert "'report' computed anew: input 'currency' changed" in output


@pytest.mark.usefixtures("untouched_memory")
def test_a_warning_of_the_library_is_part_of_the_output_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["memory://warnings"])

    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("warning: workflow 'revenue': reuse (changed: 'orders')") == 1


@pytest.mark.usefixtures("untouched_memory")
def test_the_output_is_plain_and_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["memory://plain"])

    output = capsys.readouterr().out
    assert output.isascii()
    assert "\x1b" not in output
    assert "\r" not in output
    assert len(output.splitlines()) <= 44
    assert max(map(len, output.splitlines())) <= 100


def test_memory_is_left_as_it_was_and_is_not_called_durable(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    MemoryFileSystem().pipe_file("/user/file", b"mine")
    request.addfinalizer(lambda: MemoryFileSystem().rm("/user", recursive=True))
    before = dict(MemoryFileSystem.store), set(MemoryFileSystem.pseudo_dirs)

    assert main(["memory://user"]) == 0

    output = capsys.readouterr().out
    assert failed(output) == set()
    assert marks(output)["durable publish"] == "--"
    assert "not promised: memory is gone with this process" in output
    assert "Every promise that can be tried here is kept." in output
    assert before == (dict(MemoryFileSystem.store), set(MemoryFileSystem.pseudo_dirs))


def test_a_local_folder_keeps_what_is_in_it_and_nothing_else(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).run("mine").write("task", b"data")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-store-check-mine").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert len(before) >= 6

    assert main([str(tmp_path)]) == 0

    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert before == after


def test_a_missing_local_folder_is_made_and_removed_again(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()

    assert main([f"file://{tmp_path}/old/new/er"]) == 0

    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


@on_ministack
def test_s3_keeps_every_promise(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("deep/prefix/mine", b"mine")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_ENDPOINT_URL": bucket.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)

    url = f"s3://{bucket.name}/deep/prefix"
    done = subprocess.run(command(url), capture_output=True, text=True)

    assert done.stderr == ""
    assert done.returncode == 0
    assert set(marks(done.stdout)) == CONDITIONAL | UNCONDITIONAL
    assert {name for name, mark in marks(done.stdout).items() if mark != "ok"} == NOT_TRIED
    assert len(rows(done.stdout)) == 6
    assert CANARY not in done.stdout
    assert bucket.keys() == ["deep/prefix/mine"]


@on_moto
def test_moto_keeps_every_promise_but_for_its_races(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    main(s3_arguments(bucket))

    # It checks conditions without a lock, and fails reads beside writes.
    races = CONDITIONAL | {"whole reads"}
    assert failed(capsys.readouterr().out) <= races
    assert bucket.keys() == []


@on_ministack
@pytest.mark.parametrize(
    ("ignored", "broken"),
    [
        ({"if-match", "if-none-match"}, CONDITIONAL),
        ({"if-match"}, CONDITIONAL - {"exclusive create"}),
        ({"if-none-match"}, {"exclusive create"}),
    ],
    ids=["all", "If-Match", "If-None-Match"],
)
def test_a_server_that_ignores_conditions_is_caught(
    ignored: set[str],
    broken: set[str],
    bucket: Bucket,
    proxy: Proxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def ignore(request: Request) -> None:
        for name in [name for name in request.headers if name.lower() in ignored]:
            del request.headers[name]

    proxy.on_request = ignore
    assert main(s3_arguments(bucket, proxy.endpoint)) == 1

    output = capsys.readouterr().out
    assert failed(output) == broken
    for name in ignored:
        assert re.search(f"{name} was ignored", output, re.IGNORECASE)
    assert "Two processes that resume, reset or clear the same workflow" in output
    assert "Let a single process at" in output
    assert bucket.keys() == []


@on_ministack
def test_what_cannot_be_removed_is_named(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forbid(request: Request) -> Response | None:
        return error(403, "AccessDenied") if request.method == "POST" else None

    proxy.on_request = forbid
    assert main([*s3_arguments(bucket, proxy.endpoint)]) == 1

    captured = capsys.readouterr()
    assert failed(captured.out) == {"list after delete", "large streams", "sibling-safe clear"}
    assert "s3:DeleteObject" in captured.out
    assert "was removed" not in captured.out
    place = re.search(r"remove (s3://\S+/deep/prefix/checkpoint-store-check-\w+)", captured.err)
    assert place
    prefix = place[1].removeprefix(f"s3://{bucket.name}/")
    keys = bucket.keys()
    assert keys
    assert [key for key in keys if not key.startswith(f"{prefix}/")] == []
    assert CANARY not in captured.out + captured.err


def test_a_filesystem_without_conditions_is_called_unsafe_and_left_empty(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Plain(MemoryFileSystem):
        protocol = "plainmain"
        store: dict[str, object] = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("plainmain://"))

    fsspec.register_implementation("plainmain", Plain, clobber=True)

    assert main(["plainmain://folder"]) == 1

    output = capsys.readouterr().out
    assert failed(output) == CONDITIONAL
    assert marks(output)["durable publish"] == "--"
    assert output.count("this storage has no conditional writes: results are safe only") == 1
    assert "Let a single process at" in output
    assert Plain.store == {}
    assert [name for name in Plain.pseudo_dirs if "checkpoint-store-check" in name] == []


def sleepy_swap(self, key, old, data):
    """Compares and writes, but not in one step."""
    try:
        current = self.read_small(key)
    except FileNotFoundError:
        current = None
    time.sleep(0.001)
    if current == old:
        self.write(key, [data])
    return current == old


def forgetful_read(self, key, *_, _read=memory.MemoryFilesystem.read, _seen={}):  # noqa: B006
    """Answers from a cache that nobody keeps up to date."""
    return _seen.setdefault(key, _read(self, key)) if "@" in key else _read(self, key)


def torn_read(self, key, *_, _read=memory.MemoryFilesystem.read):
    data = _read(self, key)
    return data[:-1] if "whole" in key and "@" in key else data


def forgetful_list(self, folder, *_, _list=memory.MemoryFilesystem.list_files):
    callers = {frame.f_code.co_name for frame, _ in traceback.walk_stack(None)}
    is_removal = "remove_all" in callers
    return _list(self, folder) if is_removal else Page([])


def greedy_detach(self, folder, *_):
    for found in self.list_folders(bool).items:
        if found.startswith(folder):
            self.delete([f"{found}/{file.name}" for file in self.list_files(found).items])


@pytest.mark.usefixtures("untouched_memory")
@pytest.mark.parametrize(
    ("primitive", "replacement", "broken"),
    [
        ("swap", sleepy_swap, CONDITIONAL),
        ("read", forgetful_read, {"read after write"}),
        ("read", torn_read, {"whole reads"}),
        ("detach", greedy_detach, {"sibling-safe clear"}),
        ("list_files", forgetful_list, {"list after write", "sibling-safe clear"}),
        ("contains", lambda *_: True, {"list after delete"}),
    ],
)
def test_a_filesystem_that_breaks_a_promise_is_caught(
    primitive: str,
    replacement: object,
    broken: set[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory.MemoryFilesystem, primitive, replacement)

    assert main(["memory://broken"]) == 1

    output = capsys.readouterr().out
    assert failed(output) == broken
    for promise in broken:
        assert re.search(rf"^Not kept here: .*{promise}", output, re.MULTILINE)


def test_a_lost_reply_in_a_race_is_no_broken_promise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = memory.MemoryFilesystem.swap
    lost = []

    def swap_and_lose_the_reply(self, key, old, data):
        swapped = swap(self, key, old, data)
        if swapped and old is not None and (b" by " in data or key == "swap/updates"):
            lost.append(key)
            raise TimeoutError("no reply")
        return swapped

    monkeypatch.setattr(memory.MemoryFilesystem, "swap", swap_and_lose_the_reply)

    assert main(["memory://lossy"]) == 0

    assert {"swap/one", "swap/updates"} == set(lost)
    assert failed(capsys.readouterr().out) == set()


def test_a_disk_that_folds_case_keeps_every_promise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CheckpointStore.run

    def refuse_upper_case(self, name):
        if name == "WF":
            raise InvalidNameError("this disk does not tell upper from lower case")
        return run(self, name)

    monkeypatch.setattr(CheckpointStore, "run", refuse_upper_case)

    assert main(["memory://folding"]) == 0

    assert "8 workflows with names like it kept every byte" in capsys.readouterr().out


def test_an_unknown_bucket_is_unreachable(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = s3_arguments(bucket)

    assert main(["s3://no-such-bucket/prefix", *arguments[1:]]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "s3://no-such-bucket/prefix: " in captured.err
    assert "create the bucket, or correct the URL" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert CANARY not in captured.err


@pytest.mark.usefixtures("no_aws_environment")
def test_missing_credentials_are_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3://bucket"]) == 2

    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in capsys.readouterr().err


@pytest.mark.usefixtures("no_aws_environment")
def test_no_network_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--storage-option=key=test",
        f"--storage-option=secret={CANARY}",
        "--storage-option=endpoint_url=http://127.0.0.1:1",
        '--storage-option=config_kwargs={"retries": {"total_max_attempts": 1}}',
    ]

    assert main(["s3://bucket", *arguments]) == 2

    captured = capsys.readouterr()
    assert "check endpoint_url, the region and the network" in captured.err
    assert CANARY not in captured.err


def test_missing_s3fs_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)

    assert main(["s3://bucket"]) == 2

    assert "pip install 'checkpoint-store[s3]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is empty"),
        ("s3://", "names no bucket: write s3://bucket/prefix"),
        ("file://folder", "is not absolute"),
        ("nonsense://folder", "has a protocol that fsspec does not know"),
        (f"s3://key:{CANARY}@bucket", "give them in storage_options"),
        ("simplecache::s3://bucket", "chains filesystems"),
    ],
)
def test_a_bad_url_is_a_usage_error(
    url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert CANARY not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--storage-option", CANARY],
        ["--storage-option", f"={CANARY}"],
        ["--storage-options", f"secret={CANARY}"],
        [f"--storage-options=secret={CANARY}"],
        ["--storage-option", "secret=start", CANARY],
        ["--storage-option"],
    ],
)
def test_a_bad_storage_option_is_a_usage_error_that_does_not_repeat_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["memory://", *arguments])

    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert CANARY not in captured.err


@pytest.mark.usefixtures("no_aws_environment")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"nonsense={CANARY}", "check the names of the storage options"),
        (f'client_kwargs={{"nonsense": ["{CANARY}"]}}', "check the names of the storage options"),
        (f"endpoint_url={CANARY}", "endpoint_url must be"),
    ],
)
def test_a_storage_option_that_is_not_understood_is_not_repeated(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials = ["--storage-option=key=test", "--storage-option=secret=test"]

    assert main(["s3://bucket", *credentials, "--storage-option", option]) == 2

    captured = capsys.readouterr()
    assert message in captured.err
    assert CANARY not in captured.err


@pytest.mark.usefixtures("no_aws_environment")
def test_digits_are_credentials_and_the_endpoint_that_refuses_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        "key": "123456",
        "secret": "1234567",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": '{"retries": {"total_max_attempts": 1}}',
    }
    given = [f"--storage-option={name}={value}" for name, value in options.items()]

    assert main(["s3://bucket", *given]) == 2

    captured = capsys.readouterr()
    assert 'endpoint URL: "http://127.0.0.1:9/bucket/' in captured.err
    assert "check endpoint_url" in captured.err
    assert "123456" not in captured.err


def test_a_local_folder_takes_no_storage_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([".", "--storage-option", f"key={CANARY}"]) == 2

    captured = capsys.readouterr()
    assert "takes no storage_options, but was given key" in captured.err
    assert CANARY not in captured.err


def test_a_file_in_place_of_a_folder_is_unreachable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")

    assert main([str(tmp_path / "file")]) == 2

    captured = capsys.readouterr()
    assert "name a folder, not a file" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_unwritable_folder_is_unreachable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", refuse)

    assert main([str(tmp_path)]) == 2

    assert "name a folder that you may read and write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "checkpoint_store: interrupted\n"), (signal.SIGTERM, 143, "")],
)
@pytest.mark.parametrize("moment", ["orders  policy", "exclusive create"])
def test_an_interrupted_check_removes_everything(
    moment: str, number: signal.Signals, status: int, message: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(str(tmp_path / "new")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stderr
        assert any(moment in line for line in process.stdout)
        process.send_signal(number)
        process.stdout.read()
        # A lock that is interrupted while it is made may complain of itself, in filelock's words.
        said = [line for line in process.stderr if line.startswith("checkpoint_store: ")]
        assert "".join(said) == message

    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_removal_names_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupt)

    assert main([str(tmp_path)]) == 130

    (left,) = tmp_path.iterdir()
    assert f"remove {left} yourself, it was left behind" in capsys.readouterr().err


@posix
def test_output_that_nobody_reads_ends_it_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""

    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        command(str(tmp_path / "é")),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )

    assert done.returncode == 0
    assert "\\xe9/checkpoint-store-check-" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_tells_the_exit_statuses_and_how_to_begin() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True)

    assert done.returncode == 0
    assert re.findall(r"^  (\d+) +\S", done.stdout, re.MULTILINE) == ["0", "1", "2", "130"]
    assert re.findall(r"^  (findings|error|exit_status) ", done.stdout, re.MULTILINE)
    assert "python -m checkpoint_store s3://bucket/checkpoints\n" in done.stdout
    assert "AWS_PROFILE" in done.stdout


def test_the_version_is_that_of_the_package() -> None:
    done = subprocess.run(command("--version"), capture_output=True, text=True)

    assert re.fullmatch(r"checkpoint_store (\d+\.\d+\.\d+\S*|\(not installed\))\n", done.stdout)


# What others may have written


@posix
def test_a_name_cannot_pass_for_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a\x1b[31m\n  ok  b  c\u202e"

    assert main([str(place)]) == 0

    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert output.count(r"a\x1b[31m\n  ok  b  c\u202e/checkpoint-store-check-") == 2


@on_ministack
def test_a_message_of_a_server_stays_within_its_line(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forge(request: Request) -> Response | None:
        if request.method != "PUT":
            return None
        reply = error(400, "Malformed")
        reply.body = reply.body.replace(b"The message", b"\n  ok \xc2\x9b31m")
        return reply

    proxy.on_request = forge
    assert main(s3_arguments(bucket, proxy.endpoint)) == 2

    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert r"\n  ok \x9b31m of Malformed" in errors
