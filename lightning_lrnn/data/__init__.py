"""Lightning data modules for sequences."""

from lightning_lrnn.data.byte_text import ByteText, TextError
from lightning_lrnn.data.digits import Digits
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequence_table import SequenceTable
from lightning_lrnn.data.sequences import SequenceBatch, SequenceRow, collate
from lightning_lrnn.data.source_tokens import SourceTokens
from lightning_lrnn.data.spoken_digits import SpokenDigits
from lightning_lrnn.data.windows import IGNORE, TextBatch, Windows

__all__ = [
    "IGNORE",
    "ByteText",
    "DataError",
    "Digits",
    "SequenceBatch",
    "SequenceData",
    "SequenceRow",
    "SequenceTable",
    "SourceTokens",
    "SpokenDigits",
    "TextBatch",
    "TextError",
    "Windows",
    "collate",
]
