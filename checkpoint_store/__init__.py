"""Checkpoints for workflows on any fsspec URL, which never come back for other inputs.

>>> from checkpoint_store import CheckpointNotFoundError, CheckpointStore, resume
>>> store = CheckpointStore("memory://quickstart")
>>> run = resume(store, "orders", {"day": "2026-11-23"}, on_input_change="reset")
>>> try:
...     total = run.load("total")
... except CheckpointNotFoundError:
...     total = run.dump("total", 42)
>>> total
42

- `resume(store, workflow_id, inputs, on_input_change=...)` starts or resumes a workflow and returns
  a `Run`; `plan` only says what it would decide. The policies are "reuse", "reset" and "raise".
- `Task` says which of the inputs a task uses, so that `resume` keeps what no change concerns.
- `Run` loads and dumps objects, reads and writes bytes, opens streams, lists and deletes.
- `CheckpointStore` names the storage; it clears workflows, lists them, and collects what
  interrupted resets left. `store.run(workflow_id)` is for runners with a policy of their own.
- `fingerprint` shows what inputs are compared by; `register` teaches it your own types.
- Every error is a `CheckpointStoreError`; `CheckpointNotFoundError` means: compute it.
"""

from ._changes import InputChange
from ._description import Description, TaskDescription
from ._fingerprint import fingerprint, register
from ._policy import Decision
from ._resume import plan, resume
from ._run import Run
from ._store import CheckpointStore
from ._tasks import Task
from .errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    ContentionError,
    CorruptCheckpointError,
    CorruptRecordError,
    FingerprintError,
    IncompleteClearError,
    InputChangedError,
    InvalidNameError,
    InvalidPolicyError,
    InvalidTaskError,
    InvalidURLError,
    SerializationError,
    StorageError,
    UnsupportedFormatError,
)

__all__ = [
    "CheckpointNotFoundError",
    "CheckpointStore",
    "CheckpointStoreError",
    "ContentionError",
    "CorruptCheckpointError",
    "CorruptRecordError",
    "Decision",
    "Description",
    "FingerprintError",
    "IncompleteClearError",
    "InputChange",
    "InputChangedError",
    "InvalidNameError",
    "InvalidPolicyError",
    "InvalidTaskError",
    "InvalidURLError",
    "Run",
    "SerializationError",
    "StorageError",
    "Task",
    "TaskDescription",
    "UnsupportedFormatError",
    "fingerprint",
    "plan",
    "register",
    "resume",
]
