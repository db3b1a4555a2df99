"""What the command prints for machines: one JSON document, whatever happens."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store._command import check as _check
from checkpoint_store._command.command import main
from checkpoint_store._filesystems import memory

from ..harness.buckets import Bucket
from ..harness.command import CANARY, command, marks, rows, s3_arguments
from ..harness.environment import posix
from ..harness.s3 import on_ministack
from ..harness.servers import Proxy, Request, Response, error

pytestmark = pytest.mark.usefixtures("few_rounds")


def document(output: str) -> dict[str, Any]:
    """The one JSON object that there is, and nothing else."""
    parsed: dict[str, Any] = json.loads(output)
    assert list(parsed) == [
        *("version", "place", "demonstration", "demonstration_failure", "findings", "warnings"),
        *("left_behind", "error", "exit_status"),
    ]
    return parsed


@pytest.mark.usefixtures("untouched_memory")
@pytest.mark.parametrize("broken", [False, True])
def test_json_says_what_is_printed(
    broken: bool,  # noqa: FBT001
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if broken:
        monkeypatch.setattr(memory.MemoryFilesystem, "contains", lambda *_: True)
    status = main(["memory://json"])
    printed = capsys.readouterr().out
    assert status == broken

    assert main(["memory://json", "--json"]) == status

    output, errors = capsys.readouterr()
    assert errors == ""
    found = document(output)
    names = {True: "ok", False: "FAIL", None: "--"}
    assert marks(printed) == {
        finding["promise"]: names[finding["kept"]] for finding in found["findings"]
    }
    for finding in found["findings"]:
        assert list(finding) == ["promise", "kept", "detail", "seconds", "meaning"]
        assert (finding["meaning"] is not None) == (finding["kept"] is False)
        # The number of reads beside writes is up to chance.
        assert finding["promise"] == "whole reads" or finding["detail"] in printed
    assert rows("\n".join(found["demonstration"])) == rows(printed)
    assert found["demonstration_failure"] is None
    (warning,) = found["warnings"]
    assert f"warning: {warning}" in printed
    assert found["place"].startswith("memory://json/checkpoint-store-check-")
    assert found["left_behind"] is None
    assert found["error"] is None
    assert found["exit_status"] == status


@on_ministack
def test_no_credential_is_in_the_json(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async def repeat(request: Request) -> Response | None:
        if request.method == "PUT" and ".fingerprint" not in request.path:
            return None
        if request.method in ("GET", "DELETE") and "list-type" not in request.query:
            return None
        reply = error(400, "Malformed")
        reply.body = reply.body.replace(b"The message", CANARY.encode())
        return reply

    proxy.on_request = repeat
    assert main([*s3_arguments(bucket, proxy.endpoint), "--json"]) == 1

    output, errors = capsys.readouterr()
    assert CANARY not in output + errors
    found = document(output)
    assert "*** of Malformed" in found["demonstration_failure"]
    assert "*** of Malformed" in found["left_behind"]
    assert "*** of Malformed" in found["findings"][0]["detail"]
    assert found["place"].startswith(f"s3://{bucket.name}/deep/prefix/checkpoint-store-check-")


@pytest.mark.usefixtures("no_aws_environment")
def test_what_is_unreachable_is_an_error_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s3://bucket", "--json"]) == 2

    output, errors = capsys.readouterr()
    found = document(output)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in found["error"]
    assert found["exit_status"] == 2
    assert found["place"] is None
    assert found["findings"] == []
    assert errors == ""


def test_a_usage_error_is_an_error_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["memory://", "--json", "--nonsense", CANARY])

    assert end.value.code == 2
    output, errors = capsys.readouterr()
    found = document(output)
    assert found["error"].endswith("unknown ones: --nonsense")
    assert found["exit_status"] == 2
    assert errors == ""


def test_an_interruption_is_an_error_in_the_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(_check._Checks, "large_streams", interrupt)

    assert main(["memory://json", "--json"]) == 130

    found = document(capsys.readouterr().out)
    assert found["error"] == "interrupted"
    assert found["exit_status"] == 130
    assert found["findings"][-1]["promise"] == "whole reads"


@posix
def test_json_is_all_that_a_process_prints(tmp_path: Path) -> None:
    done = subprocess.run(command(str(tmp_path), "--json"), capture_output=True, text=True)

    assert done.stderr == ""
    assert document(done.stdout)["exit_status"] == done.returncode == 0
    assert done.stdout.isascii()
