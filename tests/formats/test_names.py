"""Names to key segments and back: injective, reversible, inside the root whatever the name."""

from __future__ import annotations

import re
import string
from enum import Enum
from itertools import combinations
from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, assume, example, given, reject, settings
from hypothesis import strategies as st

from checkpoint_store._names import (
    MAX_SEGMENT_BYTES,
    RECORD,
    decode_name,
    encode_name,
    file_name,
    is_token,
    parse_file_name,
)
from checkpoint_store.errors import InvalidNameError

TOKEN = "0123456789abcdef"
SAFE = frozenset(string.ascii_letters + string.digits + "_-.")

EXAMPLES = {
    "a/b": "a%2Fb",
    ".": "%2E",
    "..": "%2E%2E",
    ".x.y.": "%2Ex.y%2E",
    "a.b": "a.b",
    "x@1": "x%401",
    "100%": "100%25",
    "é": "%C3%A9",
    "Load": "Load",
    "\ud800": "%ED%A0%80",
    "\0": "%00",
}

SIBLINGS = ("wf", "wf1", "wf-1", "wf/", "wf.", ".wf", "WF", "wf/t", "wf%2Ft", "wf*", "wf@x", "w")

HOSTILE = (
    *SIBLINGS,
    *(".", "..", "...", "../../etc/passwd", "a/b", "/abs", "//", "a//b", "./a", "a/.", "/", "\\"),
    *("\\\\server\\share", "C:\\x", "C:", "*", "?", "[12]", "wf[12]", "{a,b}", "!a", "[!a]", "**"),
    *("%", "%%", "%2e%2e", "%2E%2E", "%00", "%zz", "%2", "#", "a#b", "?versionId=1", "a?b=c", "&"),
    *("::", "a::b", "s3://", "s3://bucket/key", "file:///x", "memory://", "~", "~root", "$HOME"),
    *("\0", "a\0b", "\n", "a\n", "a.\n", "\r\n", "\t", "\x1b[31m", "\x7f", "\x85", " ", "  ", "a "),
    *(" a", "a.", ".a", "-", "--help", "-rf", "_", "\u202eabc", "\u200b", "\ufeff", "e\u0301", "é"),
    *(
        "Load",
        "load",
        "LOAD",
        "ß",
        "ss",
        "\u0131",
        "i",
        "İ",
        "CON",
        "con",
        "NUL",
        "aux.txt",
        "LPT1",
    ),
    *("名", "名前", "\U0001f600", "👩‍👩‍👧", "\ud800", "\udfff", "\ud83d\ude00", "a\udc80b"),
    *(RECORD, ".locks", ".tmp", "wf.lock", f"wf~{TOKEN}", f"wf@{TOKEN}", f"@{TOKEN}", "@", "a@"),
    *(f"a@{TOKEN}@{TOKEN}", f"%40{TOKEN}", f"a%40{TOKEN}", "__proto__", "null", "None", "nan"),
    *("';DROP TABLE", '"', "'", "`id`", "$(id)", "|", "<", ">", "a:b", "a;b", "a,b", "a+b", "a=b"),
    "x" * MAX_SEGMENT_BYTES,
    "名" * 22,
)

_PIECES = (
    *("wf", "a", "A", "1", "-1", "_", ".", "..", "/", "\\", "%", "%2F", "%2f", "%25", "@", "~"),
    *(f"@{TOKEN}", "%40", " ", "\n", "\0", "*", "?", "[", "é", "e\u0301", "名", "😀"),
    *("\ud800", "\udc00", "\udcff", "\x7f", "\u2028"),
)
any_text = st.text(st.characters(exclude_categories=()), min_size=1, max_size=70)
names = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=8).map("".join) | any_text


@st.composite
def siblings(draw: st.DrawFn) -> tuple[str, str]:
    """Two names, more often than not alike: an affix more, one character or its case changed."""
    name = draw(names)
    piece = draw(st.sampled_from(_PIECES))
    place = draw(st.integers(0, len(name)))
    other = draw(
        st.sampled_from(
            [
                name + piece,
                piece + name,
                name[:place] + piece + name[place:],
                name[:place] + piece + name[place + 1 :],
                name[:place] + name[place + 1 :],
                name.swapcase(),
                encode_or_same(name),
            ]
        )
        | names
    )
    return name, other


def encode_or_same(name: str) -> str:
    try:
        return encode_name(name, "name")
    except InvalidNameError:
        return name


def reference(name: str) -> str:
    """The rule of the documentation, one character after the other."""
    last = len(name) - 1
    return "".join(
        char
        if char in SAFE and not (char == "." and place in (0, last))
        else "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        for place, char in enumerate(name)
    )


pytestmark = pytest.mark.slow

many = settings(
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
some = settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(siblings())
@example(("wf/t", "wf%2Ft"))
@example(("%2E", "."))
@example(("é", "e\u0301"))
@example(("😀", "\ud83d\ude00"))
def test_two_names_never_share_a_segment(pair: tuple[str, str]) -> None:
    one, other = pair
    assume(one and other and one != other)
    try:
        segments = encode_name(one, "name"), encode_name(other, "name")
    except InvalidNameError:
        reject()
    assert segments[0] != segments[1]


@many
@given(names)
@example("a.\n")
@example("\ud83d\ude00")
def test_a_name_comes_back_from_its_segment_or_is_refused(name: str) -> None:
    expected = reference(name)
    if len(expected) > MAX_SEGMENT_BYTES:
        with pytest.raises(InvalidNameError, match="too long"):
            encode_name(name, "name")
        assert decode_name(expected) is None
    else:
        segment = encode_name(name, "name")
        assert name == decode_name(segment)


@some
@given(names)
@example("a.\n")
@example(".\n")
def test_a_segment_is_what_the_documented_rule_says(name: str) -> None:
    expected = reference(name)
    assume(len(expected) <= MAX_SEGMENT_BYTES)
    assert expected == encode_name(name, "name")


@some
@given(names)
def test_a_segment_is_safe_on_every_filesystem(name: str) -> None:
    try:
        segment = encode_name(name, "name")
    except InvalidNameError:
        reject()
    assert 0 < len(segment) <= MAX_SEGMENT_BYTES
    assert set(segment) <= SAFE | {"%"}
    assert not segment.startswith(".")
    assert not segment.endswith(".")


@some
@given(names)
def test_a_safe_name_is_its_own_segment(name: str) -> None:
    safe = "".join(char for char in name if char in SAFE).strip(".")
    assume(safe)
    assert safe == encode_name(safe, "name")


segments = st.lists(
    st.sampled_from(
        (
            "a",
            "B",
            "0",
            ".",
            "_",
            "-",
            "%",
            "%2F",
            "%2f",
            "%2E",
            "%41",
            "%C3%A9",
            "%C3",
            "%ED%A0%80",
            "%F0%9F%98%80",
            "%ED%A0%BD%ED%B8%80",
            "%C0%AF",
            "é",
            "@",
            "/",
            "�",
            "~",
            "\n",
        )
    ),
    max_size=6,
).map("".join)


@some
@given(segments | any_text)
def test_only_the_canonical_segment_decodes(segment: str) -> None:
    name = decode_name(segment)
    if name is not None:
        assert segment == encode_name(name, "name")


@pytest.mark.parametrize(
    "segment",
    [
        "",
        ".",
        "..",
        ".a",
        "a.",
        "a/b",
        "a@b",
        "a b",
        "é",
        "�",
        "a\n",
        "%",
        "%2",
        "%zz",
        "%2f",
        "%c3%a9",
        "%41",
        "%5F",
        "a%2Eb",
        "%C3",
        "%FF",
        "%C0%AF",
        "%C0%80",
        "%F5%80%80%80",
        "a" * (MAX_SEGMENT_BYTES + 1),
        "%2E" * 67,
        RECORD,
        ".locks",
        ".tmp",
        f"wf~{TOKEN}",
    ],
)
def test_a_segment_that_is_not_canonical_is_nobodys(segment: str) -> None:
    assert decode_name(segment) is None


@pytest.mark.parametrize(("name", "segment"), EXAMPLES.items())
def test_the_documented_examples_hold(name: str, segment: str) -> None:
    assert segment == encode_name(name, "name")
    assert name == decode_name(segment)


def test_the_hostile_names_are_as_many_as_promised() -> None:
    assert len(set(HOSTILE)) >= 120


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_stays_inside_its_folder_and_comes_back(name: str) -> None:
    segment = encode_name(name, "name")
    assert re.fullmatch(r"[A-Za-z0-9_%-]([A-Za-z0-9_.%-]*[A-Za-z0-9_%-])?", segment, re.ASCII)
    assert name == decode_name(segment)
    assert (name, TOKEN) == parse_file_name(file_name(segment, TOKEN))


def test_hostile_names_have_segments_of_their_own() -> None:
    for one, other in combinations(sorted(set(HOSTILE)), 2):
        assert encode_name(one, "name") != encode_name(other, "name")


def test_no_segment_is_the_prefix_of_a_sibling_with_its_separator() -> None:
    for one, other in combinations(SIBLINGS, 2):
        prefixes = f"{encode_name(one, 'name')}/", f"{encode_name(other, 'name')}/"
        assert not prefixes[0].startswith(prefixes[1])
        assert not prefixes[1].startswith(prefixes[0])


@pytest.mark.parametrize(
    ("char", "most"), [("x", 200), ("/", 66), ("é", 33), ("名", 22), ("😀", 16), ("\ud800", 22)]
)
def test_a_name_may_fill_the_segment_and_not_one_character_more(char: str, most: int) -> None:
    assert len(encode_name(char * most, "name")) <= MAX_SEGMENT_BYTES
    with pytest.raises(InvalidNameError, match="shorten it"):
        encode_name(char * (most + 1), "name")


@pytest.mark.parametrize("size", [255, 256, 1024, 4096, 10_000_000])
def test_an_endless_name_is_refused_in_a_short_message(size: int) -> None:
    with pytest.raises(InvalidNameError) as caught:
        encode_name("n" * size, "task name")
    assert "task name" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InvalidNameError, match="workflow id must not be empty"):
        encode_name("", "workflow id")


@pytest.mark.parametrize("name", [None, 5, 1.5, b"wf", PurePosixPath("wf"), ["wf"], True])
def test_a_name_that_is_not_a_str_is_refused(name: object) -> None:
    with pytest.raises(InvalidNameError, match=f"a str, not {type(name).__name__}"):
        encode_name(name, "task name")  # type: ignore[arg-type]


class Step(str, Enum):  # noqa: UP042 - its format is what differs from a plain str
    LOAD = "load"


class Liar(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "other"

    def __format__(self, spec: str) -> str:
        return "../other"


@pytest.mark.parametrize("name", [Step.LOAD, Liar("load")])
def test_a_str_subclass_is_the_text_it_holds_however_it_prints(name: str) -> None:
    segment = encode_name(name, "name")
    assert type(segment) is str
    assert f"load@{TOKEN}" == file_name(segment, TOKEN)


@some
@given(names, st.from_regex(r"[0-9a-f]{16,64}", fullmatch=True))
def test_a_file_name_comes_back_as_task_and_token(task: str, token: str) -> None:
    try:
        segment = encode_name(task, "task name")
    except InvalidNameError:
        reject()
    name = file_name(segment, token)
    assert (task, token) == parse_file_name(name)
    assert len(name.encode()) <= 255 or len(token) > 54


@some
@given(segments | any_text, st.sampled_from(["", "@", f"@{TOKEN}", "@0", f"@{TOKEN}~"]))
def test_a_file_is_ours_only_if_it_is_exactly_what_we_would_write(stem: str, tail: str) -> None:
    parsed = parse_file_name(stem + tail)
    if parsed is not None:
        task, token = parsed
        assert stem + tail == file_name(encode_name(task, "task name"), token)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "@",
        f"@{TOKEN}",
        TOKEN,
        "load",
        "load@",
        RECORD,
        f"{RECORD}@{TOKEN}",
        f".load@{TOKEN}",
        f"load.@{TOKEN}",
        f"load@{TOKEN[:-1]}",
        f"load@{TOKEN.upper()}",
        f"load@{TOKEN}g",
        f"load@{TOKEN}\n",
        f"load@ {TOKEN}",
        f"load @{TOKEN}",
        f"load@{TOKEN}.tmp",
        f"load@{TOKEN}@",
        f"a@b@{TOKEN}",
        f"lo%61d@{TOKEN}",
        f"a%2fb@{TOKEN}",
        f"a/b@{TOKEN}",
        f"../load@{TOKEN}",
        f"�@{TOKEN}",
        f"load@{'0' * 65}",
        f"load@{chr(0x660) * 16}",
        f"load@{TOKEN} (copy)",
        f"load copy@{TOKEN}",
        f"{'a' * 201}@{TOKEN}",
    ],
    ids=ascii,
)
def test_a_file_that_imitates_a_checkpoint_is_not_one(name: str) -> None:
    assert parse_file_name(name) is None


@pytest.mark.parametrize(
    "token", ["", "../../x", "0" * 15, "0" * 65, TOKEN.upper(), f"{TOKEN}\n", 5, None, b"0" * 16]
)
def test_what_is_not_a_token_is_not_taken_for_one(token: object) -> None:
    assert not is_token(token)
    assert is_token(TOKEN)
    assert is_token("f" * 64)
