"""The operation inside PyTorch's machinery: compile, export, vmap, opcheck, DDP, CUDA graphs.

Seen to fail: no fake kernel; a fake kernel with the wrong dtype of the final state; no vmap rule;
gradients of h0 left out of the operator's autograd.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap

import processes
import pytest
import torch
import torch._vmap_internals
from torch.autograd import forward_ad

import lightning_lrnn as lrnn
from lightning_lrnn import gates


@lrnn.gate
def gilr(f, z):
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.tanh(z)


def leaves(device="cpu", dtype=torch.float32):
    f, z = torch.randn(2, 3, 17, 5, device=device, dtype=dtype)
    state = torch.float32 if dtype == torch.bfloat16 else dtype
    h0 = torch.randn(3, 5, device=device, dtype=state)
    return [x.clone().requires_grad_() for x in (f, z, h0)]


def outputs_and_gradients(function, x):
    y, final = function(*x)
    return [y, final, *torch.autograd.grad(y.float().sin().sum() + final.sin().sum(), x)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile_fullgraph(backend, device, dtype):
    def function(f, z, h0):
        return lrnn.gated_recurrence(gilr, f, z, h0=h0, reverse=True, backend=backend)

    x = leaves(device, dtype)
    compiled = torch.compile(function, fullgraph=True)
    tolerance = {} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for left, right in zip(
        outputs_and_gradients(compiled, x), outputs_and_gradients(function, x), strict=True
    ):
        torch.testing.assert_close(left, right, **tolerance)


def test_compile_follows_use_backend():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda f, z: lrnn.gated_recurrence(gilr, f, z), fullgraph=True, backend="eager"
    )
    f, z, _ = leaves()
    for name in ("serial", "scan"):
        with lrnn.use_backend(name):
            compiled(f, z)
        assert lrnn.last_backend() == name


@pytest.mark.parametrize("flags", [(False, False), (True, True)])
def test_opcheck(backend, device, flags):
    f, z, h0 = leaves(device)
    lengths = torch.tensor([0, 9, 17], device=device)
    reset = torch.rand(3, 17, device=device) < 0.3
    operator = torch.ops.lightning_lrnn.gated_recurrence.default
    readout = gates.trace(lambda h, f, z: h * torch.sigmoid(z))
    for program, out in ((gates.IDENTITY, ""), (gilr.program, readout)):
        torch.library.opcheck(operator, (program, out, [f, z], h0, lengths, reset, *flags, backend))
    torch.library.opcheck(operator, (gates.IDENTITY, "", [f, z], None, None, None, *flags, backend))


def test_the_operator_and_the_function_behind_it_give_the_same_bits(backend, device):
    inputs = leaves(device)

    def run(observed):
        with (
            torch.profiler.profile(acc_events=True)
            if observed
            else contextlib.nullcontext() as profile
        ):
            y, h_final = lrnn.gated_recurrence(gilr, *inputs[:2], h0=inputs[2], backend=backend)
            gradients = torch.autograd.grad(y.square().sum() + h_final.sum(), inputs)
        if observed:
            assert "lightning_lrnn::gated_recurrence" in {e.key for e in profile.key_averages()}
        return y, h_final, *gradients

    assert all(torch.equal(*pair) for pair in zip(run(False), run(True), strict=True))


def test_a_forward_mode_derivative_is_refused(backend):
    f, z, _ = leaves("cpu")
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        lrnn.linear_recurrence(forward_ad.make_dual(f, z), z, backend=backend)


@lrnn.gate
def scaled(f, z, w):
    return torch.sigmoid(f), torch.tanh(z) * w


@lrnn.gate
def scaled_output(h, f, z, w):
    return torch.tanh(h) * w


def of_scaled(f, z, w, backend):
    return lrnn.gated_recurrence(scaled, f, z, w, readout=scaled_output, backend=backend)


def test_batched_gradients_of_the_older_vmap(backend):
    """`is_grads_batched`, on which `jacobian(vectorize=True)` and a check of gradcheck stand."""
    f, z, h0 = (torch.randn(s, dtype=torch.float64) for s in ((2, 4, 3), (2, 4, 3), (2, 3)))
    w = torch.randn(3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (f, z, h0, w)]

    def plain(f, z, h0):
        return lrnn.linear_recurrence(f, z, h0, backend=backend)

    def gated(f, z, w):
        return of_scaled(f, z, w, backend)

    for function, arguments in ((plain, leaves[:3]), (gated, [f, z, w])):
        assert torch.autograd.gradcheck(function, arguments, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(function, arguments, check_batched_grad=True)
    rnn = lrnn.nn.GILRLSTM(3, 4, 2, batch_first=True, backend=backend, dtype=torch.float64)

    def output(x):
        return rnn(x)[0]

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(output, z, vectorize=True), jacobian(output, z))


def test_batches_of_batched_gradients(backend):
    f, z = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(2))
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = of_scaled(f, z, w, backend)[0]
    weights = torch.randn(2, 3, *y.shape, dtype=torch.float64)

    def of_one(v):
        return torch.autograd.grad(y, w, v, retain_graph=True)[0]

    expected = torch.stack([torch.stack([of_one(v) for v in some]) for some in weights])
    older = torch._vmap_internals._vmap
    for vmap in (older, torch.func.vmap):
        torch.testing.assert_close(vmap(vmap(of_one))(weights), expected)


def test_vmap_over_inputs_and_over_stacked_parameters(backend):
    f, z, h0 = (x.detach() for x in leaves(dtype=torch.float64))
    stacked = torch.randn(4, 5, dtype=torch.float64)

    def loss(bias, f):
        y, final = lrnn.gated_recurrence(
            lambda f, z, bias: (torch.sigmoid(f + bias), z), f, z, bias, h0=h0, backend=backend
        )
        return y.sin().sum() + final.sum()

    def layer(bias, f):
        return torch.func.grad_and_value(loss, argnums=(0, 1))(bias, f)

    batched = torch.func.vmap(layer, in_dims=(0, None))(stacked, f)
    single = [layer(bias, f) for bias in stacked]
    torch.testing.assert_close(batched[1], torch.stack([value for _, value in single]))
    for i in range(2):
        torch.testing.assert_close(batched[0][i], torch.stack([g[i] for g, _ in single]))

    models = [lrnn.nn.GILR(3, 5, batch_first=True, backend=backend) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 7, 3)

    def call(parameters, buffers):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))[0]

    y = torch.func.vmap(call)(parameters, buffers)
    for i, model in enumerate(models):
        torch.testing.assert_close(y[i], model(x)[0])

    lengths, reset = torch.tensor([2, 9, 17]), torch.rand(2, 3, 17) < 0.2

    def masked(reset):
        return lrnn.linear_recurrence(f, z, lengths=lengths, reset=reset, backend=backend)[0]

    torch.testing.assert_close(
        torch.func.vmap(masked)(reset), torch.stack([masked(r) for r in reset])
    )


def test_an_exported_program_runs_in_another_process(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, f, z, h0):
            return lrnn.gated_recurrence(gilr, f, z, h0=h0)

    x = tuple(t.detach() for t in leaves())
    time = {1: torch.export.Dim("T", min=2, max=4096)}
    exported = torch.export.export(Model(), x, dynamic_shapes=(time, time, None))
    longer = (torch.randn(3, 41, 5), torch.randn(3, 41, 5), x[2])
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.save((longer, Model()(*longer)), tmp_path / "expected.pt")
    code = f"""
        import torch, lightning_lrnn
        model = torch.export.load({str(tmp_path / "model.pt2")!r}).module()
        x, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
        for left, right in zip(model(*x), expected, strict=True):
            torch.testing.assert_close(left, right)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def _ddp_worker(rank, folder, backend):
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(lrnn.nn.GILR(3, 4, backend=backend))
    x = torch.randn(6, 2, 3)  # (T, B, D): each process takes one row
    y, _ = model(x[:, rank : rank + 1])
    y.sin().mean().backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")


def test_two_gloo_processes_give_the_gradients_of_one(backend, tmp_path):
    processes.spawn(_ddp_worker, tmp_path, str(tmp_path), backend)
    torch.manual_seed(0)
    model = lrnn.nn.GILR(3, 4, backend=backend)
    y, _ = model(torch.randn(6, 2, 3))
    y.sin().mean().backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for left, right in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(left, right.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["scan", "serial"])
def test_cuda_graph_replays_on_new_inputs(backend):
    a, b, h0 = (x.detach() for x in leaves("cuda"))

    def step():
        leaves = [x.detach().requires_grad_() for x in (a, b, h0)]
        y, final = lrnn.linear_recurrence(*leaves, backend=backend)
        return [y, final, *torch.autograd.grad(y.sin().sum() + final.sum(), leaves)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            for x in (a, b, h0):
                x.copy_(torch.randn_like(x))
        graph.replay()
        for left, right in zip(captured, step(), strict=True):
            assert torch.equal(left, right)


@pytest.mark.gpu
def test_launches_follow_the_current_stream():
    a, b, _ = (x.detach() for x in leaves("cuda"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.zeros_like(b)
        late.copy_(b)
        y, _ = lrnn.linear_recurrence(a, late, backend="scan")
    stream.synchronize()
    torch.testing.assert_close(y, lrnn.linear_recurrence(a, b, backend="scan")[0])


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements():
    # 2**31 + 2**16 elements in bfloat16; the last rows lie beyond what an int32 reaches.
    B, T, D = 2**15 + 1, 2**10, 2**6
    a = torch.full((1,), 0.5, dtype=torch.bfloat16, device="cuda").expand(B, T, D)
    b = torch.zeros(B, T, D, dtype=torch.bfloat16, device="cuda")
    b[-1, -1] = 1
    for backend in ("scan", "serial"):
        y, final = lrnn.linear_recurrence(a, b, backend=backend)
        assert y[-1, -1].eq(1).all() and final[-1].eq(1).all() and not y[:-1].any()
