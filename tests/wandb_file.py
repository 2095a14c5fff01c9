"""Reads the file of an offline wandb run back: blocks of a LevelDB log with protobuf records."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

BLOCK = 32768
HEAD = 7
PATIENCE = 60.0
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(folder: Path) -> list[Any]:
    """The records of the only offline run below a folder, in order.

    wandb's own process may still be writing when the run is finished: what comes last is waited
    for.
    """
    until = time.monotonic() + PATIENCE
    while True:
        files = list(folder.rglob("offline-run-*/run-*.wandb"))
        actual = _parsed(files[0].read_bytes()) if files else []
        if any(record.WhichOneof("record_type") == "exit" for record in actual):
            assert len(files) == 1
            return actual
        assert time.monotonic() < until, f"{folder} has no run that was finished"
        time.sleep(0.1)


def _parsed(data: bytes) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    assert data[:4] in (b":W&B", b"")
    actual, payload, at = [], b"", HEAD
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:  # padding to the next block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        payload += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (WHOLE, LAST) and at <= len(data):
            actual.append(Record.FromString(payload))
            payload = b""
    return actual


def history(folder: Path) -> list[dict[str, Any]]:
    """What was logged, a dict for each time."""
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def group(folder: Path) -> str:
    """The group of the run."""
    return next(r.run.run_group for r in records(folder) if r.WhichOneof("record_type") == "run")


def summary(folder: Path) -> dict[str, Any]:
    """The words and figures of the run's summary."""
    return {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records(folder)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
