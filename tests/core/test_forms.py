"""What is kept for problems of one form: keyed completely, bounded, and nothing is checked less.

Seen to fail: strides, or the initial state, left out of the form; which of h0, lengths and reset
is there left out of the key of a guard; values of lengths not looked at in a warm call; a cache
without a limit; guards without one; a guard made under `no_grad` that keeps that nothing wants a
gradient.
"""

from __future__ import annotations

import threading

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn import backends, recurrence
from lightning_lrnn.backends import recipes
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.core.pytorch import guard_of
from lightning_lrnn.gates import IDENTITY, trace
from lightning_lrnn.nn.cells.gilr import gilr

x, w = torch.zeros(2, 6, 4), torch.zeros(2, 6, 4)
BASE = Problem(IDENTITY, "", (x, w), None, None, None, False, False)
READOUT = trace(lambda h, a, b: h * b)
OTHERS = {
    "gate": BASE._replace(gate=gilr.program),
    "readout": BASE._replace(readout=READOUT),
    "shape": BASE._replace(pre=(torch.zeros(2, 5, 4), torch.zeros(2, 5, 4))),
    "strides": BASE._replace(pre=(x, torch.zeros(6, 2, 4).transpose(0, 1))),
    "dtype": BASE._replace(pre=(x.double(), w.double())),
    "device": BASE._replace(pre=(x.to("meta"), w.to("meta"))),
    "parameter": BASE._replace(pre=(torch.zeros(4), w)),
    "conjugate": BASE._replace(pre=(x.cfloat().conj(), x.cfloat())),
    "complex": BASE._replace(pre=(x.cfloat(), x.cfloat())),
    "negative": BASE._replace(pre=(torch._neg_view(x), w)),
    "h0": BASE._replace(h0=torch.zeros(2, 4)),
    "strides of h0": BASE._replace(h0=torch.zeros(4, 2).t()),
    "lengths": BASE._replace(lengths=torch.tensor([6, 6])),
    "dtype of lengths": BASE._replace(lengths=torch.tensor([6, 6], dtype=torch.int32)),
    "reset": BASE._replace(reset=torch.zeros(2, 6, dtype=torch.bool)),
    "reverse": BASE._replace(reverse=True),
    "exclusive": BASE._replace(exclusive=True),
}


def test_every_property_makes_another_form():
    forms = {BASE.form(), *(problem.form() for problem in OTHERS.values())}
    assert len(forms) == 1 + len(OTHERS)
    assert BASE._replace(pre=(x.clone(), x.clone())).form() == BASE.form()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert BASE.form() not in forms
    finally:
        torch.set_num_threads(threads)


def test_every_form_has_a_backend_of_its_own():
    made = {name: backends.prepared("serial", problem) for name, problem in OTHERS.items()}
    gated = [backend for name, backend in made.items() if name != "device"]
    assert len(set(map(id, gated))) == len(gated)
    assert backends.prepared("serial", OTHERS["h0"]) is made["h0"]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_recipe_is_found_for_its_own_form_alone(guarded, monkeypatch):
    if not guarded:
        monkeypatch.setattr(recipes, "guard_of", lambda *_: None)
    backends.forget()
    made = {}
    for name, problem in {"base": BASE, **OTHERS}.items():
        assert recurrence._known(problem, "scan") is None
        made[name] = recipes.of("scan", object(), problem)
        recipes.keep(problem, "scan", made[name])
        for known, recipe in made.items():
            for _ in range(2):  # by the form, then by a guard
                actual = recurrence._known({"base": BASE, **OTHERS}[known], "scan")
                assert actual is not None and actual.backend is recipe.backend
    assert recurrence._known(BASE, "serial") is None
    backends.forget()


def test_a_guard_tells_what_decides():
    guard = guard_of(x, w)
    if guard is None:
        pytest.skip("this PyTorch has no guards")
    assert guard(x.clone(), torch.rand_like(x))
    for problem in OTHERS.values():
        assert (problem.pre is BASE.pre) == guard(*problem.pre)
    wanted = w.clone().requires_grad_()
    for other in (None, 1.0, [1.0], w.to_sparse(), torch.nn.Parameter(w), wanted):
        assert not guard(x, other)


WRONG = [
    ({"reverse": "yes"}, TypeError, "`reverse` must be True or False, got 'yes'"),
    ({"exclusive": 2}, TypeError, "`exclusive` must be True or False, got 2"),
    ({"b": torch.zeros(2, 6, 5)}, ValueError, "must be"),
    ({"a": [1.0]}, ValueError, "got list"),
    ({"a": None}, ValueError, "got NoneType"),
    ({"b": torch.zeros(2, 6, 4).to_sparse()}, TypeError, "dense tensor"),
    ({"a": torch.zeros(2, 6, 4).double()}, TypeError, "share one dtype"),
    ({"a": torch.zeros(2, 6, 4, device="meta")}, TypeError, "on one device"),
    ({"h0": torch.zeros(2, 4).double()}, TypeError, "`h0` must be torch.float32"),
    ({"h0": torch.zeros(2, 5)}, ValueError, "`h0` must have shape"),
    ({"lengths": torch.tensor([0, 7])}, ValueError, "between 0 and T = 6, got 0 to 7"),
    ({"lengths": torch.tensor([-1, 6])}, ValueError, "got -1 to 6"),
    ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "integers"),
    ({"reset": torch.zeros(2, 6, dtype=torch.int64)}, TypeError, "torch.bool"),
    ({"backend": "scam"}, lrnn.BackendError, "no backend 'scam'"),
    ({"backend": ["scan"]}, lrnn.BackendError, "no backend"),
    ({"backend": "cudnn"}, lrnn.BackendError, "'cudnn' cannot run"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=lambda v: str(v)[:30])
def test_a_warm_call_refuses_what_a_cold_one_does(wrong, error, message):
    right = {
        "a": torch.rand(2, 6, 4), "b": torch.rand(2, 6, 4), "h0": torch.rand(2, 4),
        "lengths": torch.tensor([3, 6]), "reset": torch.zeros(2, 6, dtype=torch.bool),
    }  # fmt: skip
    for _ in range(3):
        lrnn.linear_recurrence(**right)
    with pytest.raises(error, match=message):
        lrnn.linear_recurrence(**{**right, **wrong})


def test_a_warm_call_does_not_take_resets_for_lengths():
    a, b, reset = torch.rand(2, 6, 4), torch.rand(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    for _ in range(3):
        lrnn.linear_recurrence(a, b, reset=reset)
    with pytest.raises(ValueError, match="`lengths` must have shape"):
        lrnn.linear_recurrence(a, b, lengths=reset)


def test_a_warm_call_is_that_of_the_backend_that_is_chosen_now():
    a = torch.rand(2, 6, 4)
    for name in ("scan", "serial", "scan"):
        with lrnn.use_backend(name):
            for _ in range(2):
                lrnn.linear_recurrence(a, a)
                assert lrnn.last_backend() == name


@pytest.mark.parametrize("enabled", [(False, True), (True, False)])
def test_a_warm_call_has_a_gradient_where_one_is_wanted(enabled):
    backends.forget()
    x, h0 = torch.rand(2, 6, 4), torch.rand(2, 4)
    w = x.clone().requires_grad_()
    for given in [(x, x, h0), (x, w, h0), (x, x, h0.clone().requires_grad_())] * 2:
        for grad in enabled:
            with torch.set_grad_enabled(grad):
                for _ in range(3):
                    y, _ = lrnn.linear_recurrence(*given)
                    assert y.requires_grad == (grad and any(p.requires_grad for p in given))


def test_as_many_forms_are_kept_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(recipes, "FORMS", 3)
    monkeypatch.setattr(recipes, "GUARDS", 2)
    backends.forget()
    for T in range(1, 12):
        for reverse in (False, True):
            a = torch.rand(1, T, 2)
            for _ in range(2):
                y, _ = lrnn.linear_recurrence(a, a, reverse=reverse)
            first = T - 1 if reverse else 0
            torch.testing.assert_close(y[:, first], a[:, first])
            assert len(recipes.by_form) <= 3 and len(backends._prepared) <= 3
            assert len(recipes.by_guard) <= 3
            assert all(len(guards) <= 2 for guards in recipes.by_guard.values())


def test_threads_share_forms():
    backends.forget()
    actual: list[bool] = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            for T in (3, 9, 17):
                a, b = (torch.rand(2, T, 8, generator=generator) for _ in range(2))
                y, _ = lrnn.linear_recurrence(a, b)
                last = a[:, 1] * b[:, 0] + b[:, 1]
                actual.append(torch.allclose(y[:, 1], last))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(actual) == 600 and all(actual)
