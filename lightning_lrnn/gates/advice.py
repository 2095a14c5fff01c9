"""What to write in a gate in the place of what it may not use."""

from __future__ import annotations

from lightning_lrnn.gates.operations import OPERATIONS

__all__ = ["INSTEAD", "advice", "why_untraceable"]

INSTEAD = {
    "addcmul": "x + y * w",
    "cosh": "(torch.exp(x) + torch.exp(-x)) / 2",
    "elu": "torch.where(x > 0, x, torch.exp(x) - 1)",
    "exp2": "2**x",
    "expm1": "torch.exp(x) - 1",
    "full_like": "the number",
    "hardsigmoid": "torch.clamp(x / 6 + 0.5, 0, 1)",
    "hardtanh": "torch.clamp(x, -1, 1)",
    "leaky_relu": "torch.where(x > 0, x, 0.01 * x)",
    "lerp": "x + w * (y - x)",
    "log10": "torch.log(x) / math.log(10)",
    "log1p": "torch.log(1 + x)",
    "log2": "torch.log(x) / math.log(2)",
    "logsigmoid": "-F.softplus(-x)",
    "max": "torch.maximum(x, y)",
    "min": "torch.minimum(x, y)",
    "mish": "x * torch.tanh(F.softplus(x))",
    "ones_like": "1.0",
    "reciprocal": "1 / x",
    "relu6": "torch.clamp(x, 0, 6)",
    "rsub": "y - x",
    "sign": "torch.sgn(x)",
    "sinh": "(torch.exp(x) - torch.exp(-x)) / 2",
    "softsign": "x / (1 + torch.abs(x))",
    "square": "x * x",
    "tan": "torch.sin(x) / torch.cos(x)",
    "zeros_like": "0.0",
}
"""What is a formula of operations: of the arguments x, y and w of PyTorch's function."""

NOT_POINTWISE = (
    *("cummax", "cumprod", "cumsum", "dropout", "flip", "group_norm", "layer_norm", "linear"),
    *("log_softmax", "logcumsumexp", "logsumexp", "matmul", "mean", "mm", "norm", "normalize"),
    *("rand_like", "randn_like", "rms_norm", "roll", "softmax", "std", "sum", "var"),
)
ANOTHER_NAME = {"and_": "&", "or_": "|", "invert": "~", "log_sigmoid": "logsigmoid"}
"""Operators, and PyTorch's own names, by what one writes."""
OTHERWISE = {
    "softplus": "with `beta=b` it is F.softplus(b * x) / b",
    **dict.fromkeys(
        ("&", "bitwise_and", "logical_and"),
        "write torch.where(c, torch.where(d, x, y), y) for torch.where(c & d, x, y)",
    ),
    **dict.fromkeys(
        ("|", "bitwise_or", "logical_or"),
        "write torch.where(c, x, torch.where(d, x, y)) for torch.where(c | d, x, y)",
    ),
    **dict.fromkeys(
        ("~", "bitwise_not", "logical_not"), "write torch.where(c, y, x) for torch.where(~c, x, y)"
    ),
    **dict.fromkeys(
        ("shape", "size", "ndim", "dim", "device", "dtype"),
        "a gate is a formula for every size, dtype and device; take a number from around it",
    ),
    **dict.fromkeys(
        ("to", "float", "double", "half", "bfloat16", "type_as"),
        "leave it away; gates are evaluated in the dtype of the state",
    ),
    **dict.fromkeys(("item", "tolist", "numpy"), "there are no values when a gate is made"),
    **dict.fromkeys(
        NOT_POINTWISE,
        "it is not pointwise: put it into `pre_activations`, or leave `@lightning_lrnn.gate` away "
        "(docs/extending.md)",
    ),
}


def advice(name: str, module: str = "") -> str:
    """What to write for a function that is no operation, as ": ..."; "" where nothing is known."""
    if module == "math":
        name = {"fabs": "abs"}.get(name, name)
        return f": write torch.{name}" if name in OPERATIONS else ""
    if name in INSTEAD:
        return f": write {INSTEAD[name]}"
    return f": {OTHERWISE[name]}" if name in OTHERWISE else ""


def why_untraceable(error: Exception) -> str:
    """What a gate did that ended its tracing, as the rest of a sentence, and what to write."""
    told = str(error)
    if "iterated" in told:
        return "loops over a tensor: it gets one number of each argument at a time"
    if "__array" in told:
        return "gives a tensor to NumPy: write PyTorch's function, torch.exp for np.exp"
    if "item assignment" in told:
        return (
            "sets elements of a tensor: write torch.where, z = torch.where(z > 0, 0, z) for "
            "z[z > 0] = 0"
        )
    if "control flow" in told:
        return (
            "branches on a tensor. A gate may not branch on values; use torch.where, and "
            "torch.maximum and torch.minimum for max and min"
        )
    for function in ("len", "int", "float", "complex"):
        if told.startswith((f"{function}()", f"'{function}'")):
            return f"calls {function} of a tensor, of which nothing is known when a gate is made"
    return f"cannot be traced: {told}"
