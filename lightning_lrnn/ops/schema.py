"""The operators as PyTorch knows them: names and signatures."""

from __future__ import annotations

import torch

__all__ = [
    "adjoint_impulse",
    "gated_backward",
    "library",
    "pair",
    "plain_backward",
    "recurrence",
]

# The operators. A gate's program passes through the schema as text, so that a backend which
# compiles gates into its kernel needs no other signature; `h` is the state where `y` is not.
library = torch.library.Library("lightning_lrnn", "DEF")
library.define(
    "gated_recurrence(str gate, str readout, Tensor[] pre, Tensor? h0, Tensor? lengths,"
    " Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor y, Tensor h, Tensor h_final)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "recurrence_backward(Tensor a, Tensor y, Tensor? h0, Tensor? dy, Tensor? dh_final,"
    " Tensor? lengths, Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor da, Tensor db, Tensor dh0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "gated_backward(str gate, str readout, Tensor[] pre, Tensor h, Tensor? h0, Tensor? dy,"
    " Tensor? dh_final, Tensor? lengths, Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor[] dpre, Tensor dh0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# What a stretch of time does to the state that comes in: see `backends.pairs`.
library.define(
    "pair(str gate, Tensor[] pre, Tensor? lengths, Tensor? reset, bool reverse, str backend)"
    " -> (Tensor A, Tensor B)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "adjoint_impulse(str gate, str readout, Tensor[] pre, Tensor h, Tensor dy, Tensor? lengths,"
    " Tensor? reset, bool reverse, bool exclusive, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
recurrence = torch.ops.lightning_lrnn.gated_recurrence.default
plain_backward = torch.ops.lightning_lrnn.recurrence_backward.default
gated_backward = torch.ops.lightning_lrnn.gated_backward.default
pair = torch.ops.lightning_lrnn.pair.default
adjoint_impulse = torch.ops.lightning_lrnn.adjoint_impulse.default
