"""Reads the file of an offline wandb run back: blocks of a LevelDB log with protobuf records."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

BLOCK = 32768
HEAD = 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(folder: Path) -> list[Any]:
    """The records of the only offline run below a folder, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    found, payload, at = [], b"", HEAD
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:  # padding to the next block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        payload += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(payload))
            payload = b""
    return found


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
