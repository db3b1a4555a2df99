"""What the operations cost on S3, counted where it is paid: HTTP requests in front of a server.

`n` is the number of checkpoints, and a listing has pages of 1,000 keys, the record among them.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import pytest

from checkpoint_store import CheckpointStore, InputChangedError, Run, Task, plan, resume
from checkpoint_store._filesystems.base import Entry, Page
from checkpoint_store._policy import POLICIES
from checkpoint_store._protocol import PAGES_AT_ONCE

from ..harness import servers
from ..harness.backends import MotoBackend
from ..harness.contract import EVERY, INPUTS, OTHER_INPUTS, TASKS, USED, resumed

pytestmark = [pytest.mark.usefixtures("no_aws_environment"), pytest.mark.slow]


@pytest.fixture
def recorder(moto_server: str) -> Iterator[servers.Proxy]:
    with servers.Proxy(moto_server).running() as proxy:
        yield proxy


@pytest.fixture
def backend(moto_server: str, recorder: servers.Proxy) -> MotoBackend:
    return MotoBackend(moto_server, through=recorder.endpoint)


@pytest.fixture
def store(backend: MotoBackend) -> Iterator[CheckpointStore]:
    """A store that knows already that the server honours conditions, and has a workflow `wf`."""
    with backend.store() as store:
        resume(store, "wf", INPUTS, on_input_change="raise")
        assert store.conditional_writes is True
        yield store


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return store.run("wf")


@pytest.fixture
def requests(recorder: servers.Proxy) -> Callable[[Callable[[], object]], str]:
    """The kinds of requests that a call makes, in their order."""

    def count(call: Callable[[], object]) -> str:
        recorder.take()
        call()
        return " ".join(map(kind, recorder.take()))

    return count


Count = Callable[[Callable[[], object]], str]


def kind(request: servers.Recorded) -> str:
    assert 200 <= request.status < 300 or request.status in (404, 412, 416), request
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    kinds = {
        ("GET", "list-type"): "LIST",
        ("POST", "delete"): "DELETE",
        ("POST", "uploads"): "CREATE",
        ("PUT", "partNumber"): "PART",
        ("POST", "uploadId"): "COMPLETE",
        ("DELETE", "uploadId"): "ABORT",
    }
    found = [kinds[request.method, name] for name in query if (request.method, name) in kinds]
    assert found or query.keys() <= {"x-id"}, request
    return found[0] if found else request.method


def pages(keys: int) -> int:
    """The pages of a listing, of which there is always one."""
    return max(1, -(-keys // 1000))


def check_pages(found: list[str], expected: list[str]) -> None:
    """The pages overlap, but none is deleted before the record is read, after it was listed."""
    assert sorted(found) == sorted(expected)
    for stop in range(len(found)):
        begun = found[:stop]
        assert begun.count("LIST") >= begun.count("GET") >= begun.count("DELETE")


def plant(backend: MotoBackend, run: Run, count: int) -> None:
    """Files of a run that nobody will open, past the proxy."""
    keys = [f"wf/task-{number:04}@{run.token}" for number in range(count)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: backend.put(key, b""), keys))


def test_constructing_and_closing_cost_nothing(backend: MotoBackend, requests: Count) -> None:
    def construct() -> None:
        with backend.store() as store:
            pickle.loads(pickle.dumps(store))

    assert requests(construct) == ""


def test_the_first_change_of_a_record_costs_one_more(backend: MotoBackend, requests: Count) -> None:
    with backend.store() as store:
        # The third one sees whether the server honours conditions.
        first = requests(lambda: resume(store, "wf", INPUTS, on_input_change="raise"))
        assert first == "GET PUT PUT"
        second = requests(lambda: resume(store, "wf2", INPUTS, on_input_change="raise"))
        assert second == "GET PUT"


def test_resume_reads_once_and_writes_once_where_it_must(
    store: CheckpointStore, requests: Count
) -> None:
    def changed_raise() -> None:
        with pytest.raises(InputChangedError):
            resume(store, "wf", OTHER_INPUTS, on_input_change="raise")

    for policy in POLICIES:
        unchanged = requests(lambda: resume(store, "wf", INPUTS, on_input_change=policy))  # noqa: B023
        assert unchanged == "GET"
    assert requests(changed_raise) == "GET"
    reuse = requests(lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reuse"))
    assert reuse == "GET PUT"
    again = requests(lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reuse"))
    assert again == "GET"


def test_plan_and_reading_a_fingerprint_cost_one(store: CheckpointStore, requests: Count) -> None:
    for name in ("wf", "none"):
        for policy in POLICIES:
            planned = requests(lambda: plan(store, name, OTHER_INPUTS, on_input_change=policy))  # noqa: B023
            assert planned == "GET"
        assert requests(lambda: store.read_fingerprint(name)) == "GET"  # noqa: B023


def test_a_run_of_the_store_costs_one_or_makes_a_record(
    store: CheckpointStore, requests: Count
) -> None:
    assert requests(lambda: store.run("wf")) == "GET"
    assert requests(lambda: store.run("new")) == "GET PUT"
    assert requests(lambda: store.run("new")) == "GET"
    assert requests(lambda: store.run("new2", fingerprint="v1")) == "GET PUT"


def test_writing_a_fingerprint_costs_two_where_it_writes(
    store: CheckpointStore, requests: Count
) -> None:
    assert requests(lambda: store.write_fingerprint("new", "v1")) == "GET PUT"
    # The same one again needs no write.
    assert requests(lambda: store.write_fingerprint("new", "v1")) == "GET"
    assert requests(lambda: store.write_fingerprint("new", "v2")) == "GET PUT"
    store.run("unlabelled")
    assert requests(lambda: store.write_fingerprint("unlabelled", "v1")) == "GET PUT"


def test_one_checkpoint_costs_one(run: Run, requests: Count) -> None:
    assert requests(lambda: run.write("task", b"data")) == "PUT"
    assert requests(lambda: run.write("task", b"data again")) == "PUT"
    assert requests(lambda: run.read("task")) == "GET"
    assert requests(lambda: run.dump("task", 1)) == "PUT"
    assert requests(lambda: run.load("task")) == "GET"
    assert requests(lambda: "task" in run) == "GET"
    assert requests(lambda: "none" in run) == "GET"
    assert requests(lambda: run.delete("task")) == "DELETE"
    assert requests(lambda: run.delete("task")) == "DELETE"
    assert requests(run.is_current) == "GET"


def test_a_large_checkpoint_costs_one(run: Run, requests: Count) -> None:
    assert requests(lambda: run.write("task", bytes(20 * 1024**2))) == "PUT"
    assert requests(lambda: run.read("task")) == "GET"


def test_a_stream_costs_one_until_it_has_more_than_a_part(run: Run, requests: Count) -> None:
    def write(mib: int) -> None:
        with run.open("task", "wb") as stream:
            for _ in range(mib):
                stream.write(bytes(1024**2))

    def read() -> None:
        with run.open("task") as stream:
            while stream.read(1024**2):
                pass

    assert requests(lambda: write(1)) == "PUT"
    assert requests(read) == "GET"
    assert requests(lambda: write(20)) == "CREATE PART PART PART PART COMPLETE"
    assert requests(read) == "GET"


def test_a_discarded_large_stream_aborts_its_upload(run: Run, requests: Count) -> None:
    def discard() -> None:
        with run.open("task", "wb") as stream:
            stream.write(bytes(9 * 1024**2))
            stream.discard()

    assert requests(discard) == "CREATE PART ABORT"


def test_a_read_through_to_a_base_costs_two(
    store: CheckpointStore, run: Run, requests: Count
) -> None:
    run.write_many({"old": b"old", "both": b"old"})
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    reused.write("both", b"new")
    assert requests(lambda: reused.read("both")) == "GET"
    assert requests(lambda: "both" in reused) == "GET"
    assert requests(lambda: reused.read("old")) == "GET GET"
    assert requests(lambda: "old" in reused) == "GET GET"
    assert requests(lambda: "none" in reused) == "GET GET"
    assert requests(lambda: reused.open("old").close()) == "GET GET"
    assert requests(lambda: reused.write("old", b"new")) == "PUT"
    # Both generations go in one request, the base first.
    assert requests(lambda: reused.delete("old")) == "DELETE DELETE"
    assert requests(reused.tasks) == "LIST"
    # A listing tells which generation has it.
    assert requests(reused.read_many) == "LIST GET"


@pytest.mark.parametrize("n", [0, 1, 999, 1000, 2500])
def test_listing_collecting_and_resetting_cost_what_the_pages_cost(
    backend: MotoBackend, store: CheckpointStore, run: Run, requests: Count, n: int
) -> None:
    plant(backend, run, n)
    p = pages(n + 1)
    assert requests(run.tasks) == " ".join(["LIST"] * p)
    # Nothing is deleted where all are live; and without a checkpoint in the page there is no need
    # to read the record either.
    live = ["LIST", "GET"] * p if n else ["LIST"]
    check_pages(requests(lambda: store.collect("wf")).split(), live)
    reset = ["GET", "PUT", *(["LIST", "GET", "DELETE"] * p if n else ["LIST"])]
    counted = requests(lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reset"))
    assert counted.split()[:2] == reset[:2]
    check_pages(counted.split()[2:], reset[2:])
    assert len(backend.keys()) == 2


@pytest.mark.parametrize("n", [0, 1, 1000, 1001])
def test_clearing_costs_what_the_pages_cost(
    backend: MotoBackend, store: CheckpointStore, run: Run, requests: Count, n: int
) -> None:
    plant(backend, run, n)
    # The record goes first and is on no page any more: 1,000 checkpoints are one page, not two.
    each = ["LIST", "GET", "DELETE"] * pages(n) if n else ["LIST"]
    counted = requests(lambda: store.clear("wf"))
    first, *others = counted.split()
    assert first == "DELETE"
    check_pages(others, each)
    assert len(backend.keys()) == 1
    assert requests(lambda: store.clear("wf")) == "DELETE LIST"


def test_a_page_is_listed_while_the_one_before_is_deleted(
    backend: MotoBackend, store: CheckpointStore, run: Run, recorder: servers.Proxy
) -> None:
    plant(backend, run, 1001)
    second_list = asyncio.Event()
    overlapped: list[bool] = []
    lists = 0

    async def hold_deletions(request: servers.Request) -> None:
        nonlocal lists
        if "list-type" in request.query:
            lists += 1
            if lists == 2:
                second_list.set()
        elif request.query == "delete" and lists:
            with suppress(TimeoutError):
                await asyncio.wait_for(second_list.wait(), 30)
            overlapped.append(second_list.is_set())

    recorder.on_request = hold_deletions
    assert store.clear("wf") == 1001
    recorder.on_request = None
    assert overlapped == [True, True]


def test_no_more_pages_than_are_meant_to_be_are_listed_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = deleted = 0
    ahead = []

    def list_files(_: str, more: int | None = None) -> Page[Entry]:
        nonlocal listed
        listed += 1
        page = more or 0
        return Page([Entry(f"task-{page}@0123456789abcdef")], page + 1 if page < 39 else None)

    def delete(keys: list[str]) -> dict[str, str]:
        nonlocal deleted
        ahead.append(listed - deleted)
        deleted += len(keys)
        return {}

    store = CheckpointStore(f"memory://{secrets.token_hex(8)}")
    monkeypatch.setattr(store._filesystem, "list_files", list_files)
    monkeypatch.setattr(store._filesystem, "delete", delete)
    monkeypatch.setattr(store._filesystem, "detach", lambda *_: None)
    assert store.clear("wf") == 40
    assert max(ahead) == PAGES_AT_ONCE  # In memory one thing is done at a time.


def test_collecting_deletes_once_a_page(
    backend: MotoBackend, store: CheckpointStore, run: Run, requests: Count
) -> None:
    new = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    plant(backend, run, 3)
    plant(backend, new, 3)
    assert requests(lambda: store.collect("wf")) == "LIST GET DELETE"


@pytest.mark.parametrize("n", [0, 1, 40])
def test_many_cost_one_each(run: Run, requests: Count, n: int) -> None:
    payloads = {f"task-{number}": b"data" for number in range(n)}
    assert requests(lambda: run.write_many(payloads)) == " ".join(["PUT"] * n)
    assert requests(lambda: run.dump_many(dict.fromkeys(payloads, 1))) == " ".join(["PUT"] * n)
    assert requests(lambda: run.read_many(payloads)) == " ".join(["GET"] * n)
    assert requests(lambda: run.load_many(payloads)) == " ".join(["GET"] * n)
    assert requests(run.read_many) == " ".join(["LIST", *["GET"] * n])
    assert requests(run.load_many) == " ".join(["LIST", *["GET"] * n])


def test_all_of_more_than_a_page_cost_one_each_and_the_pages(
    moto_server: str, backend: MotoBackend, run: Run, requests: Count
) -> None:
    past_the_proxy = {**backend.storage_options, "endpoint_url": moto_server}
    with CheckpointStore(backend.url, storage_options=past_the_proxy) as store:
        store.run("wf").write_many({f"task-{number}": b"data" for number in range(1000)})
    assert requests(run.read_many) == " ".join(["LIST", "LIST", *["GET"] * 1000])


def test_a_missing_one_among_many_costs_one_too(run: Run, requests: Count) -> None:
    assert requests(lambda: run.read_many(["none"])) == "GET"


def test_as_many_as_max_concurrency_are_in_flight_and_no_more(
    backend: MotoBackend, recorder: servers.Proxy
) -> None:
    now = peak = 0
    full = asyncio.Event()

    async def hold(request: servers.Request) -> servers.Response:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        if now == 8:
            full.set()
        try:
            # As long as there are fewer, they wait for the others to come.
            await asyncio.wait_for(full.wait(), 30)
        except TimeoutError:
            full.set()
        try:
            return await recorder.forward(request)
        finally:
            now -= 1

    with backend.store(max_concurrency=8) as store:
        run = store.run("wf")
        payloads = {f"task-{number}": bytes([number]) for number in range(50)}
        recorder.on_request = hold
        run.write_many(payloads)
        assert peak == 8
        full.clear()
        peak = 0
        assert payloads == run.read_many(payloads)
        assert peak == 8
        recorder.on_request = None


def test_workflows_are_listed_a_page_at_a_time(
    backend: MotoBackend, store: CheckpointStore, run: Run, requests: Count
) -> None:
    assert requests(lambda: list(store.workflows())) == "LIST"
    plant(backend, run, 1500)
    store.run("z")
    assert requests(lambda: next(store.workflows())) == "LIST"
    # The rest of a workflow's files is skipped, and yet has to be listed.
    assert requests(lambda: list(store.workflows())) == "LIST LIST"


# Declared tasks

NEWER = {**TASKS, "plot": Task(uses=["colour"], after=["train"], version=2)}


@pytest.fixture
def declared(store: CheckpointStore) -> Run:
    """A run that has computed every task, the three that are declared among them."""
    run = resumed(store)
    run.dump_many(dict.fromkeys(EVERY, "old"))
    return run


@pytest.mark.usefixtures("declared")
def test_a_partial_reset_costs_what_a_reset_costs(
    backend: MotoBackend, store: CheckpointStore, requests: Count
) -> None:
    for tasks, day, left in ((TASKS, USED["day"], 2), (None, "another", 0)):
        inputs = {**USED, "day": day, "colour": "blue"}
        reset = requests(lambda: resume(store, "wf", inputs, on_input_change="reset", tasks=tasks))  # noqa: B023
        assert (reset, len(backend.keys())) == ("GET PUT LIST GET DELETE", 2 + left)


@pytest.mark.usefixtures("declared")
def test_declarations_cost_nothing_if_none_is_new(store: CheckpointStore, requests: Count) -> None:
    def cost(tasks: dict[str, Task], policy: str = "raise", call: Any = resume) -> str:
        return requests(lambda: call(store, "wf", USED, on_input_change=policy, tasks=tasks))

    for policy in POLICIES:
        assert cost(TASKS, policy) == cost(NEWER, policy, plan) == "GET"
    assert requests(lambda: store.run("wf", tasks=TASKS)) == "GET"
    assert [cost(NEWER), cost(NEWER)] == ["GET PUT", "GET"]
    assert requests(lambda: store.run("wf", tasks={"plot": Task(version=3)})) == "GET PUT"
    assert cost({f"load-{number}": Task(version=4) for number in range(2_000)}) == "GET PUT"


def test_a_declared_task_costs_two_only_where_it_reads_through(
    store: CheckpointStore, declared: Run, requests: Count
) -> None:
    assert [requests(lambda: declared.load(task)) for task in EVERY] == ["GET"] * 4  # noqa: B023
    reused = resumed(store, "reuse", rate=0.2)
    costs = [requests(lambda: reused.load(task)) for task in EVERY]  # noqa: B023
    assert costs == ["GET", "GET GET", "GET GET", "GET GET"]
    assert requests(lambda: reused.dump("train", "new")) == "PUT"
    assert requests(lambda: reused.load("train")) == "GET"


def test_deleting_with_dependents_costs_one_for_each_file_there_may_be(
    store: CheckpointStore, declared: Run, requests: Count
) -> None:
    costs = {task: requests(lambda: declared.delete(task, dependents=True)) for task in TASKS}  # noqa: B023
    assert costs == {"load": "DELETE DELETE DELETE", "train": "DELETE DELETE", "plot": "DELETE"}
    reused = resumed(store, "reuse", rate=0.2)
    # The first has the same key in both generations.
    assert requests(lambda: reused.delete("load", dependents=True)) == " ".join(["DELETE"] * 5)
