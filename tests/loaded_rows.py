"""The rows of a data module, as its loaders return them."""

from __future__ import annotations

from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_lrnn.data import IGNORE, SequenceData, SequenceRow


def all_rows(data: SequenceData, part: str) -> list[SequenceRow]:
    """All rows of a part, taken from its batches, without padding."""
    rows = []
    for batch in getattr(data, f"{part}_dataloader")():
        inputs, lengths = batch.inputs, batch.lengths
        if isinstance(inputs, PackedSequence):
            inputs, lengths = pad_packed_sequence(inputs, batch_first=True)
        for i, x in enumerate(inputs):
            steps = len(x) if lengths is None else int(lengths[i])
            target = batch.targets[i]
            if not target.is_floating_point() and target.ndim:
                assert (target[steps:] == IGNORE).all()
                target = target[:steps]
            scaling = [None if v is None else v[i] for v in (batch.offset, batch.scale)]
            rows.append(SequenceRow(x[:steps], target, *scaling))
    return rows
