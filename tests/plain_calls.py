"""A backend of the plain recurrence called directly, without the checks and without autograd."""

from __future__ import annotations

from lightning_lrnn.core.adjoint import adjoint
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY


class PlainCalls:
    """Calls of the recurrence and its adjoint; `backend` makes a backend of a problem."""

    def __init__(self, backend):
        self.backend = backend

    def run(self, a, b, h0, lengths, reset, *, reverse, exclusive, **options):
        problem = Problem(IDENTITY, "", (a, b), h0, lengths, reset, reverse, exclusive)
        y, _, final = self.backend(problem, **options).forward(problem)
        return y, final

    def run_backward(
        self, a, y, h0, dy, dh_final, lengths, reset, *, reverse, exclusive, **options
    ):
        problem = Problem(IDENTITY, "", (a, a), h0, lengths, reset, reverse, exclusive)
        backend = self.backend(problem, **options)
        (da, db), dh0 = backend.backward(problem, y, Gradients(dy, dh_final))
        return da, db, dh0


def adjoint_of(run, a, y, h0, dy, dh_final, lengths, reset, *, reverse, exclusive):
    """The gradients by `adjoint`, which calls a recurrence in the other direction."""

    def recurrence(problem):
        (a, b), *rest, reverse, exclusive = problem[2:]
        return run(a, b, *rest, reverse=reverse, exclusive=exclusive)

    problem = Problem(IDENTITY, "", (a, a), h0, lengths, reset, reverse, exclusive)
    return adjoint(recurrence, problem, y, Gradients(dy, dh_final))
