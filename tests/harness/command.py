"""What the command prints, read as a user would read it."""

from __future__ import annotations

import re
import sys

from .buckets import Bucket

CANARY = "canary-of-a-secret"
CONDITIONAL = {"exclusive create", "compare-and-swap", "no lost update"}
UNCONDITIONAL = {
    "missing is missing",
    "read after write",
    "list after write",
    "list after delete",
    "whole reads",
    "large streams",
    "sibling-safe clear",
    "durable publish",
}


def command(*arguments: str) -> list[str]:
    """The arguments that start the command in a process of its own."""
    return [sys.executable, "-m", "checkpoint_store", *arguments]


def marks(output: str) -> dict[str, str]:
    """The mark that the output has for each promise: ok, FAIL or --."""
    found = re.findall(r"^  (ok|FAIL|--) +[\d,]+ ms  (.{19}) \S", output, re.MULTILINE)
    return {promise.strip(): mark for mark, promise in found}


def failed(output: str) -> set[str]:
    return {promise for promise, mark in marks(output).items() if mark == "FAIL"}


def rows(output: str) -> list[list[str]]:
    """The rows of the table of the demonstration.

    A row has the orders, the policy, four steps, the revenue with its currency, what it is
    worth and the decision.
    """
    return [
        re.split(r"\s+", line.strip(), maxsplit=9)
        for line in output.splitlines()
        if re.match(r"  5,\d\d0 ", line)
    ]


def s3_arguments(bucket: Bucket, endpoint: str = "") -> list[str]:
    return [
        f"s3://{bucket.name}/deep/prefix",
        "--storage-option=key=test",
        f"--storage-option=secret={CANARY}",
        f"--storage-option=endpoint_url={endpoint or bucket.endpoint}",
        '--storage-option=client_kwargs={"region_name": "us-east-1"}',
    ]
