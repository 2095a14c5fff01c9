"""Cells of one's own: what a class cannot have is told by its name, and what it can have works.

Seen to fail: without the checks, where PyTorch or a gate's program said something else, later.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from paths import ROOT

import lightning_lrnn as lrnn
from lightning_lrnn.nn import GatedCell
from lightning_lrnn.nn.layer import Layer


@lrnn.gate
def leaky(f, z):
    a = torch.sigmoid(f)
    return a, (1 - a) * z


class Own(GatedCell):
    gate = leaky
    sizes = (2, 1)


def plain(f, z):
    return f.sigmoid(), z


one = lrnn.gate(lambda f, z: f.sigmoid())
three = lrnn.gate(lambda f, z: (f.sigmoid(), z, f))
of_state = lrnn.gate(lambda h, f, z: (f.sigmoid(), h + z))
pair = lrnn.gate(lambda h, f, z: (h, f))


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ({"sizes": (3, 3)}, ValueError, r"Cell.gate takes 2 arguments, and gets 3.*\(3, 3\)"),
        (
            {"gate": of_state},
            ValueError,
            "takes 3 arguments, and gets 2, .*A gate sees no state, .*SurrogateRNN",
        ),
        ({"sizes": (2, 3)}, ValueError, r"Cell.sizes must be a number of projections.*\(2, 3\)"),
        ({"sizes": (0, 0)}, ValueError, r"got \(0, 0\)"),
        ({"sizes": None}, TypeError, "Cell must have a `sizes`"),
        ({"gate": None}, TypeError, "Cell must have a `gate`"),
        (
            {"gate": one},
            ValueError,
            r"Cell.gate must return .*\(a, b\), returns 1 value:.*<lambda>",
        ),
        ({"gate": three}, ValueError, r"Cell.gate must return .*\(a, b\), returns 3 values"),
        ({"readout": pair}, ValueError, "Cell.readout must return one tensor.*returns 2 values"),
        ({"readout": leaky}, ValueError, "Cell.readout takes 2 arguments, and gets 3, the state"),
        (
            {"gate": plain},
            TypeError,
            "Cell.gate is a function of the class.*`@lightning_lrnn.gate`",
        ),
        ({"readout": plain}, TypeError, "Cell.readout is a function of the class"),
    ],
)
def test_what_a_class_cannot_have(attributes, error, message):
    kind = type("Cell", (Own,), attributes)
    with pytest.raises(error, match=message):
        kind(3, 4)


def test_a_layer_of_such_a_cell_is_refused_when_it_is_made():
    class Layer(lrnn.nn.Stack):
        cell_type = type("OwnCell", (Own,), {"gate": three})

    with pytest.raises(ValueError, match=r"OwnCell.gate must return .*returns 3 values"):
        Layer(3, 4)


def test_what_it_can_have():
    own = type("Cell", (Own,), {"gate": staticmethod(plain)})
    x = torch.randn(2, 3)
    assert own(3, 4)(x).shape == Own(3, 4)(x).shape == (2, 4)


@lrnn.gate
def rotate(f, z, theta):
    return torch.polar(torch.sigmoid(f), theta + 0 * f), torch.complex(z, 0 * z)


class Rotated(GatedCell):
    """A state that its gate makes complex."""

    gate = rotate
    readout = lrnn.gate(lambda h, f, z, theta: torch.real(h) + torch.imag(h))
    sizes = (2, 2)

    def __init__(self, input_size, hidden_size, bias=True, **options):
        super().__init__(input_size, hidden_size, bias, **options)
        self.theta = self.parameter(hidden_size)
        torch.nn.init.uniform_(self.theta)

    def pre_activations(self, projection, x, context):
        return *super().pre_activations(projection, x, context), self.theta


class RotatedWindow(Rotated):
    window = 2


@pytest.mark.parametrize("cell_type", [Rotated, RotatedWindow])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_complex_state_of_an_own_cell_is_taken_back(cell_type, dtype):
    """Seen to fail: a state that the parameters' dtype "cannot hold"."""
    layer_class = type("Layer", (lrnn.nn.Stack,), {"cell_type": cell_type})
    rnn = layer_class(3, 4, batch_first=True, dtype=dtype)
    x = torch.randn(2, 9, 3, dtype=dtype)
    y, final = rnn(x)
    wide = torch.promote_types(dtype, torch.float32)
    assert final.dtype == wide.to_complex()
    tolerance = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {}
    first, middle = rnn(x[:, :4])
    second, end = rnn(x[:, 4:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), y, **tolerance)
    torch.testing.assert_close(end, final, **tolerance)
    torch.testing.assert_close(rnn(x, torch.zeros_like(final).real)[0], y, **tolerance)
    state = None
    for x_t in x.unbind(1):
        y_t, state = rnn.step(x_t, state)
    torch.testing.assert_close(y_t, y[:, -1], **tolerance)
    rnn.checkpoint_time = 4
    torch.testing.assert_close(rnn(x)[0], y, **tolerance)
    (output, carried), cell = rnn.cells[0](x[:, 0]), rnn.cells[0]
    assert cell(x[:, 1], (output, carried))[1].is_complex()


def test_a_complex_state_passes_through_torch_compile():
    """Seen to fail: `dtype.to_complex()`, which cannot be traced."""
    rnn = type("Layer", (lrnn.nn.Stack,), {"cell_type": Rotated})(3, 4, batch_first=True)
    x = torch.randn(2, 9, 3)
    compiled = torch.compile(lambda x, h: rnn(x, h)[0], fullgraph=True, backend="eager")
    state = rnn(x)[1].detach()
    torch.testing.assert_close(compiled(x, state), rnn(x, state)[0])


class Odd(Own):
    def __init__(self, input_size, hidden_size, bias=True, *, low=0.5, **options):
        super().__init__(input_size, hidden_size, bias, **options)
        self.low = low


class OddLayer(lrnn.nn.Stack):
    cell_type = Odd


def test_an_option_that_there_is_not_is_told_with_those_that_there_are():
    """Seen to fail: `Cell.__init__() got an unexpected keyword argument`."""
    assert OddLayer(3, 4, low=0.25).cells[0].low == 0.25
    message = (
        "Odd got an unexpected keyword argument 'lo'; its options are bias, low, proj_size, mem"
    )
    with pytest.raises(TypeError, match=message):
        Odd(3, 4, lo=1)
    message = (
        "OddLayer got an unexpected keyword argument 'lo'; its options are num_layers, .*, low"
    )
    with pytest.raises(TypeError, match=message):
        OddLayer(3, 4, lo=1)


def test_a_cell_that_does_not_take_what_layers_give_it_is_told():
    class Narrow(Own):
        def __init__(self, input_size, hidden_size, bias=True):
            super().__init__(input_size, hidden_size, bias)

    class Layer(lrnn.nn.Stack):
        cell_type = Narrow

    with pytest.raises(TypeError, match=r"Narrow.__init__ must take `\*\*options` .* proj_size"):
        Layer(3, 4)


@pytest.mark.parametrize("cell_type", [torch.nn.GRUCell, Own(3, 4), lrnn.nn.GILR, None])
def test_a_layer_whose_cell_type_is_no_class_of_cells_cannot_be_defined(cell_type):
    with pytest.raises(TypeError, match=r"Layer.cell_type must be a subclass of .*Cell, .* got "):
        type("Layer", (lrnn.nn.Stack,), {"cell_type": cell_type})


def test_a_layer_without_a_cell_type_cannot_be_made():
    with pytest.raises(TypeError, match=r"Layer.cell_type must be a subclass of .* got None"):
        type("Layer", (lrnn.nn.Stack,), {})(3, 4)


@lrnn.gate
def bounded(f, z, floor, ceiling):
    return torch.clamp(f.sigmoid() * ceiling, 0, 1), z + floor


def test_messages_name_the_argument_and_the_gate():
    """Seen to fail: `pre[2]`, and a program of x0 and x1."""

    class Forgets(GatedCell):
        gate = bounded
        sizes = (2, 2)
        given = ()

        def pre_activations(self, projection, x, context):
            return *super().pre_activations(projection, x, context), *self.given

    cell, x = Forgets(3, 4), torch.randn(2, 5, 3)
    rnn = type("Layer", (lrnn.nn.Stack,), {"cell_type": Forgets})(3, 4)
    message = r"the gate takes 4 inputs, got 2: it is bounded\(f, z, floor, ceiling\)"
    with pytest.raises(lrnn.GateError, match=message):
        rnn(x)
    rnn.cells[0].given = (torch.ones(5), torch.ones(4))
    with pytest.raises(ValueError, match=r"`pre\[2\]` must be .*\(5,\); it is `floor` of bounded"):
        rnn(x)
    rnn.cells[0].given = (torch.ones(4), torch.ones(4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"`pre\[3\]` must be floating.*`ceiling` of bounded"):
        rnn(x)
    rnn.cells[0].given = (torch.ones(4), torch.ones(5, 2, 4).double())
    with pytest.raises(TypeError, match=r"`pre\[3\]` is torch.float64.*`ceiling` of bounded"):
        rnn(x)
    cell.given = (torch.ones(4), torch.ones(4))
    assert cell(x[0]).shape == (5, 4)

    def plain(f, z):
        return f, z

    with pytest.raises(ValueError, match=r"got shape \(7,\); it is `z` of .*plain"):
        lrnn.gated_recurrence(plain, x, torch.ones(7))
    with pytest.raises(
        lrnn.GateError, match=r"the readout takes 3 inputs, got 2: it is .*\(h, f, z"
    ):
        lrnn.gated_recurrence(lrnn.gate(lambda f: (f, f)), x, readout=lrnn.gate(lambda h, f, z: h))


PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = {
    re.search(r"class (\w+)\(lrnn", code)[1]: code
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S)
}
"""The code of the page, by the layer that it makes."""


def test_memory_of_another_decay_as_the_page_shows_it():
    """Seen to fail: the bias of a sigmoid in the place of that of exp(-exp(f))."""
    names: dict = {}
    exec(BLOCKS["Leaky"] + BLOCKS["Exponential"], names)
    rnn = names["Exponential"](3, 512, memory=(20, 80))
    decays = torch.exp(-torch.exp(rnn.cells[0].bias[:512]))
    steps = -1 / decays.log()
    assert 20 <= steps.min() < 22 and 79 < steps.max() <= 80.6
    assert rnn(torch.randn(2, 1, 3))[0].isfinite().all()


def test_cells_of_ones_own_are_a_surrogate_as_the_page_says():
    """Seen to fail: a class that was no name of `SURROGATES`."""
    names: dict = {}
    exec(BLOCKS["Leaky"], names)
    (shown,) = re.findall(r"`(lrnn\.nn\.SurrogateRNN\([^`]*\))`", PAGE)
    own = eval(shown, names)
    assert type(own.cells[0].surrogate[0]).__name__ == "LeakyCell"
    x = torch.randn(9, 2, 64)
    y, _ = own(x)
    first, middle = own(x[:4])
    torch.testing.assert_close(torch.cat([first, own(x[4:], middle)[0]]), y)
    with pytest.raises(ValueError, match=r"must be a number, a word .* got <class .*LeakyCell"):
        Layer.of(partial(type(own), surrogate=names["LeakyCell"]))
