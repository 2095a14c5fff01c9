"""Files that are no checkpoints: each is refused in a sentence with the path and what is wrong.

A row is the content of a file and words of the message. What the commands make of them, and of
what is wrong further inside: test_checkpoint.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.modules.checkpoint import CheckpointError, check, read

GOOD: dict[str, Any] = {
    "state_dict": {"weight": torch.zeros(3)},
    "pytorch-lightning_version": "2.6.0",
    "hyper_parameters": {"hidden_size": 3},
    **{"epoch": 0, "global_step": 1, "optimizer_states": [], "lr_schedulers": []},
    **{"callbacks": {}, "loops": {}},
}


class Runs:
    """Would run when it is read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_good_one_is_none_of_them() -> None:
    check(GOOD, "a.ckpt", resumes=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"weights\n", "cannot be read as a checkpoint"),
        (bytes(1000), "cannot be read as a checkpoint"),
        (b"PK\x03\x04 and no more", "cannot be read as a checkpoint"),
        ({**GOOD, "more": Runs()}, "a.ckpt is not read: it names "),
        ([1, 2], "a.ckpt is not a checkpoint but a list"),
        (torch.zeros(3), "a.ckpt is not a checkpoint but a Tensor"),
        ({}, "it has no `state_dict`"),
        ({**GOOD, "state_dict": [1]}, "its `state_dict` is no dict"),
        ({**GOOD, "state_dict": {"weight": "x"}}, "`state_dict` has a str at 'weight'"),
        ({**GOOD, "pytorch-lightning_version": None}, "its `pytorch-lightning_version` is None"),
        ({**GOOD, "pytorch-lightning_version": 2}, "its `pytorch-lightning_version` is 2"),
        ({**GOOD, "pytorch-lightning_version": "new"}, "its `pytorch-lightning_version` is 'new'"),
        ({**GOOD, "hyper_parameters": [1]}, "its `hyper_parameters` are not options by name"),
        ({**GOOD, "hyper_parameters": {1: 2}}, "its `hyper_parameters` are not options by name"),
        ({**GOOD, "hyper_parameters": {"num_layers": 10**12}}, "`num_layers` of its `hyper_parame"),
        (
            {**GOOD, "hyper_parameters": {"rnn": {"init_args": {"window": 10**12}}}},
            "`rnn.window` of its `hyper_parameters` is 1000000000000",
        ),
        ({**GOOD, "callbacks": "x"}, "its `callbacks` is a str"),
        ({**GOOD, "loops": [1]}, "its `loops` is a list"),
        ({**GOOD, "epoch": "x"}, "its `epoch` is a str"),
        ({**GOOD, "global_step": 1.5}, "its `global_step` is a float"),
        ({**GOOD, "optimizer_states": {}}, "its `optimizer_states` is a dict"),
        ({**GOOD, "lr_schedulers": "x"}, "its `lr_schedulers` is a str"),
        (
            {k: v for k, v in GOOD.items() if k != "optimizer_states"},
            "a.ckpt has weights only, from which training cannot go on",
        ),
    ],
)
def test_contents(content: Any, words: str) -> None:
    if isinstance(content, bytes):
        Path("a.ckpt").write_bytes(content)
    else:
        torch.save(content, "a.ckpt")
    with pytest.raises(CheckpointError) as raised:
        check(read("a.ckpt"), "a.ckpt", resumes=True)
    assert words in str(raised.value) and "a.ckpt" in str(raised.value)
    assert "\n" not in str(raised.value) and not Path("ran").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.ckpt", "there is no checkpoint none.ckpt, it is not there"),
        (".", "there is no checkpoint ., it is not a file"),
        ("a" * 5000, "aaa cannot be read (File name too long)"),
        ("nothing://a/b.ckpt", "nothing://a/b.ckpt cannot be read as a checkpoint (Protocol not"),
    ],
)
def test_paths(path: str, words: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read(path)
    assert words in str(raised.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("content", [b"", b"weights\n", b"PK\x03\x04 and no more"])
def test_a_model_is_not_loaded_of_them(content: bytes) -> None:
    Path("a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt cannot be read as a checkpoint"):
        LanguageModel.load_from_checkpoint("a.ckpt")
