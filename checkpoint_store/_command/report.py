"""The output of the command: line by line for people, or one JSON document for machines."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import textwrap
from dataclasses import asdict
from typing import Any, TextIO

from .check import Finding


def version() -> str:
    try:
        return importlib.metadata.version("checkpoint-store")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


class Report:
    """Collects what was found. People are told at once, and machines at the end."""

    def __init__(self, options: dict[str, Any], *, as_json: bool) -> None:
        self._options = options
        self._as_json = as_json
        self._place: str | None = None
        self._demonstration: list[str] = []
        self._demonstration_failure: str | None = None
        self._findings: list[Finding] = []
        self._warnings: list[str] = []
        self._left_behind: str | None = None
        self._error: str | None = None

    @property
    def all_kept(self) -> bool:
        broken = any(finding.kept is False for finding in self._findings)
        return not broken and self._demonstration_failure is None

    def tell_removal(self) -> None:
        self.say(f"\n{_one_line(self._place or '')} was removed.")

    def say(self, text: str = "", stream: TextIO | None = None) -> None:
        """Prints a text for people. It is left out of the JSON document."""
        if not self._as_json:
            _say(text, stream)

    def begin(self, place: str) -> None:
        self._place = place
        self.say(f"checkpoint_store {version()} at {_one_line(place)}")

    def demonstrate(self, line: str) -> None:
        self._demonstration.append(line)
        self.say(line)

    def fail_demonstration(self, error: Exception) -> None:
        self._demonstration_failure = str(error)
        self.say(f"  The demonstration FAILED: {self._clean(str(error))}")

    def find(self, finding: Finding) -> None:
        same = [
            earlier.promise
            for earlier in self._findings
            if earlier.detail == finding.detail and finding.kept is False
        ]
        self._findings.append(finding)
        detail = f"the same as: {same[0]}" if same else self._clean(finding.detail)
        mark = {True: "ok", False: "FAIL", None: "--"}[finding.kept]
        self.say(f"  {mark:4} {1000 * finding.seconds:8,.0f} ms  {finding.promise:19} {detail}")

    def warn(self, message: str) -> None:
        """Reports a warning, unless it was reported before."""
        if message in self._warnings:
            return
        self._warnings.append(message)
        text = f"warning: {self._clean(message)}"
        self.say(textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="  "))

    def conclude(self) -> None:
        """Prints what the findings mean together."""
        broken: dict[str, list[str]] = {}
        for finding in self._findings:
            if finding.meaning is not None:
                broken.setdefault(finding.meaning, []).append(finding.promise)
        for meaning, promises in broken.items():
            self.say(f"\nNot kept here: {', '.join(promises)}.\n{textwrap.fill(meaning, 96)}")
        if self._demonstration_failure is not None:
            self.say("\nThe demonstration failed here, as its last line says.")
        elif not broken:
            self.say("\nEvery promise that can be tried here is kept.")

    def leave_behind(self, place: str, reason: str) -> None:
        self._left_behind = reason
        # The place is printed in full for the person who has to remove it. It holds no credentials.
        said = f"remove {_one_line(place)} yourself, it was left behind: {self._clean(reason)}"
        self.say(f"checkpoint_store: {said}", sys.stderr)

    def fail(self, message: str) -> None:
        self._error = message
        self.say(f"checkpoint_store: {self._clean(message)}", sys.stderr)

    def finish(self, status: int) -> int:
        if self._as_json:
            found = {
                "demonstration": self._demonstration,
                "demonstration_failure": self._demonstration_failure,
                "findings": [asdict(finding) for finding in self._findings],
                "warnings": self._warnings,
                "left_behind": self._left_behind,
                "error": self._error,
            }
            document = {
                "version": version(),
                "place": self._place,
                **self._scrubbed(found),
                "exit_status": status,
            }
            _say(json.dumps(document, indent=2))
        return status

    def _clean(self, text: str) -> str:
        return _one_line(_without_values(text, self._options))

    def _scrubbed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._scrubbed(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._scrubbed(item) for item in value]
        return _without_values(value, self._options) if isinstance(value, str) else value


def _one_line(text: str) -> str:
    """The text in one line, so that no part of it looks like a line of the report."""
    return text.replace("\n", "\\n")


def _without_values(text: str, options: dict[str, Any]) -> str:
    """The text without the values of storage options, which may be credentials."""
    for value in sorted(_leaves(options), key=len, reverse=True):
        text = text.replace(value, "***")
    return text


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        # The endpoint is shown: it tells what to check, and one with credentials in it is refused.
        value = [item for name, item in value.items() if name != "endpoint_url"]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    text = str(value)
    # A shorter value might be a part of an ordinary word.
    return [text] if len(text) >= 4 and not isinstance(value, bool | None) else []


def _say(text: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    text = "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
