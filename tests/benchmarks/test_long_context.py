"""`benchmarks/long_context.py`: contexts differ in nothing else, and what is kept and drawn.

Seen to fail: held-out spans trained on; rows cut another way; state carried from step to step;
readings that never forget; fewer steps for a shorter context; a second training from other
parameters; results of other sizes mixed in, and results lost that were not asked for.
"""

from __future__ import annotations

import json
import sys
from functools import partialmethod

import pytest
import torch
from paths import BENCHMARKS, TESTS

FIELDS = """rnn context seed lr hidden_size num_layers parameters backend bytes bytes_per_step steps
    order text_bytes text_sha256 held_out_bytes bits_per_byte bits_per_byte_by_reading
    bits_per_byte_by_reading_and_position curve seconds us_per_byte step_seconds
    peak_bytes_of_process commit processor threads malloc versions""".split()
SAME = ["seed", "bytes", "bytes_per_step", "steps", "order", "text_sha256", "held_out_bytes"]


@pytest.fixture(scope="module")
def benchmark():
    """The script; its modules have the names of everyday words, and go when the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in ("long_context", "timing"):
            patch.delitem(sys.modules, name, raising=False)
        import long_context

        # Not of all of the standard library, of which each run reads some seconds.
        text = partialmethod(long_context.ByteText.__init__, path=str(TESTS))
        patch.setattr(long_context.ByteText, "__init__", text)
        yield long_context
        for name in ("long_context", "timing"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def quick(benchmark, tmp_path_factory):
    path = tmp_path_factory.mktemp("quick") / "found.json"
    benchmark.main(["--quick", "--rounds", "2", "--json", str(path)])
    return path


@pytest.mark.slow
def test_every_layer_has_every_context(benchmark, quick):
    results = json.loads(quick.read_text())
    sizes = benchmark.QUICK
    cases = sorted((rnn, context) for rnn in benchmark.LEARNING_RATES for context in sizes.contexts)
    firsts = [(rnn, 32) for rnn in sorted(benchmark.LEARNING_RATES)]
    assert sorted((actual["rnn"], actual["context"]) for actual in results["starts"]) == firsts
    for kind in ("runs", "timings"):
        assert sorted((actual["rnn"], actual["context"]) for actual in results[kind]) == cases
    for run in results["starts"] + results["runs"]:
        assert list(run) == FIELDS
        assert run["backend"] == (None if run["rnn"] == "torch.nn.LSTM" else "scan")
        assert run["peak_bytes_of_process"] > 1e7
        assert len(run["step_seconds"]) == run["steps"] and run["seconds"] > 0
    for timing in results["timings"]:
        assert len(timing["step_seconds"]) == 2 and timing["us_per_byte"] > 0
    assert quick.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_contexts_differ_in_nothing_but_the_context(benchmark, quick):
    results = json.loads(quick.read_text())
    starts, runs = results["starts"], results["runs"]
    sizes = benchmark.QUICK
    assert {run["steps"] for run in runs} == {sizes.bytes_seen // sizes.span}
    assert {run["bytes"] for run in runs} == {sizes.bytes_seen}
    for run in runs:
        assert {name: run[name] for name in SAME} == {name: runs[0][name] for name in SAME}
        assert [seen for seen, _ in run["curve"]] == [512, 1024, 1536, 2048]
    for start in starts:
        assert (start["bytes"], start["steps"]) == (sizes.bytes_seen, 16)
        of_layer = [run for run in runs if run["rnn"] == start["rnn"]]
        # All begin where the first training ended.
        first = [run["curve"][0][1] for run in of_layer]
        assert max(first) - min(first) < 0.1 < start["curve"][0][1] - max(first)
        assert {run["lr"] for run in of_layer} == {start["lr"] / 10}


def test_a_step_has_the_same_bytes_in_every_context(benchmark):
    sizes = benchmark.QUICK
    text = torch.arange(20 * sizes.span).remainder(251).to(torch.uint8)
    spans = benchmark.windows_of(text, 1, sizes.span)
    order = benchmark.order_of(len(spans), sizes.bytes_seen // sizes.span, seed=1)
    for context in sizes.contexts:
        actual = list(benchmark.batches(spans, order, context))
        assert len(actual) == sizes.bytes_seen // sizes.span
        for k, batch in zip(order, actual, strict=True):
            assert batch.inputs.shape == (sizes.span // context, context)
            expected = text[k * sizes.span : (k + 1) * sizes.span].long()
            assert torch.equal(batch.targets.flatten(), expected)
            # Each predicted from the one before, over the ends of rows.
            assert torch.equal(batch.inputs.flatten()[1:], expected[:-1])


def test_an_order_repeats_nothing_before_all_were_seen(benchmark):
    order = benchmark.order_of(18, 30, seed=0)
    assert sorted(order[:18]) == list(range(18)) and len(order) == 30
    assert set(order[18:]) <= set(range(18)) and len(set(order[18:])) == 12
    assert order != benchmark.order_of(18, 30, seed=1)


def test_held_out_spans_are_never_trained_on(benchmark, monkeypatch):
    """A text whose held-out spans alone have a byte."""
    sizes = benchmark.QUICK._replace(bytes_seen=8 * 512)
    text = torch.zeros(6 * 512, dtype=torch.uint8)
    text[-2 * 512 :] = 7
    seen = []
    loss = benchmark.LanguageModel.loss

    def noted(self, output, batch):
        seen.append(batch.targets)
        return loss(self, output, batch)

    monkeypatch.setattr(benchmark.LanguageModel, "loss", noted)
    _, parameters = benchmark.train(text, sizes, "MinGRU", 0, 1e-2)
    actual, _ = benchmark.train(text, sizes, "MinGRU", 0, 1e-2, 128, parameters)
    assert [targets.shape for targets in seen] == [(4, 32)] * 32 + [(4, 128)] * 8
    assert all(not targets.any() for targets in seen)
    assert actual["held_out_bytes"] == 1024 and actual["bits_per_byte"] > 8


def test_a_reading_forgets_where_it_should(benchmark):
    """Of a model that only counts steps: rows start from zeros, in training too."""
    sizes = benchmark.QUICK
    spans = benchmark.windows_of(torch.zeros(5 * 512, dtype=torch.uint8), 1, 512)
    model = benchmark.model_of(sizes, "GILRLSTM")
    assert not model.carry_state
    for context in sizes.contexts:
        costs = benchmark.held_out_bits(model, spans, sizes, context)
        assert costs.shape == (sizes.held_out, sizes.span)
        by_row = costs[1].view(-1, context)
        assert torch.allclose(by_row, by_row[:1].expand_as(by_row), atol=1e-5)
        assert by_row.std(1).min() > 1e-4


def test_positions_are_of_a_span(quick):
    for run in json.loads(quick.read_text())["runs"]:
        by_reading = run["bits_per_byte_by_reading_and_position"]
        assert list(by_reading) == ["32", "128", "512"]
        for reading, costs in by_reading.items():
            assert list(costs) == ["0-32", "32-128", "128-512"]
            mean = (32 * costs["0-32"] + 96 * costs["32-128"] + 384 * costs["128-512"]) / 512
            assert mean == pytest.approx(run["bits_per_byte_by_reading"][reading], abs=1e-5)
        # No reading forgets before the first ends.
        assert by_reading["32"]["0-32"] == pytest.approx(by_reading["512"]["0-32"], abs=1e-5)
        assert by_reading["32"]["128-512"] != by_reading["512"]["128-512"]
        assert run["bits_per_byte"] == run["bits_per_byte_by_reading"]["512"]


def test_what_is_not_asked_for_is_kept(benchmark, quick, tmp_path, capsys):
    path = tmp_path / "found.json"
    before = json.loads(quick.read_text())
    path.write_text(quick.read_text())
    one = ["--quick", "--json", str(path), "--rnn", "MinGRU", "--contexts", "128"]
    benchmark.main([*one, "--rounds", "1"])
    after = json.loads(path.read_text())
    for kind in ("runs", "timings"):
        assert len(after[kind]) == 9
        changed = [a for a, b in zip(after[kind], before[kind], strict=True) if a != b]
        assert [(actual["rnn"], actual["context"]) for actual in changed] == [("MinGRU", 128)]
    benchmark.main([*one, "--seeds", "1", "--rounds", "0", "--bytes", "1024"])
    after = json.loads(path.read_text())
    assert (len(after["starts"]), len(after["runs"])) == (4, 10)
    benchmark.main([*one, "--rates", "0.1", "--rounds", "0"])
    (tried,) = json.loads(path.read_text())["rates"]
    assert (tried["lr"], tried["context"], tried["steps"], tried["bytes"]) == (0.1, 32, 4, 512)


def test_it_draws_what_is_there(benchmark, tmp_path, capsys, quick):
    path = tmp_path / "found.json"
    results = json.loads(quick.read_text())
    for kind in ("starts", "runs"):
        results[kind] = [run for run in results[kind] if run["rnn"] == "MinGRU"]
    # Of other sizes, not to be mixed in.
    results["runs"] += [
        {**run, "bytes": 512, "bits_per_byte_by_reading": {}} for run in results["runs"]
    ]
    path.write_text(json.dumps(results))
    benchmark.main(["--quick", "--draw", "--json", str(path)])
    assert json.loads(path.read_text()) == results
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows = capsys.readouterr().out.splitlines()[-12:]
    for row in rows:
        layer, _, bits, *_ = row.split()
        assert (bits == "-") != (layer == "MinGRU")
    bits = results["runs"][0]["bits_per_byte_by_reading_and_position"]
    saved = bits["32"]["128-512"] - bits["512"]["128-512"]
    (row,) = (row for row in rows if row.split()[:2] == ["MinGRU", "32"])
    assert f"{results['runs'][0]['bits_per_byte']:.3f}  " in row and f"{saved:+.3f}" in row


@pytest.mark.parametrize(
    "words, message",
    [
        (["--bytes", "1000"], "multiple of 512"),
        (["--contexts", "77"], "32, 128, 512"),
        ([], "--json"),
    ],
)
def test_refused(benchmark, words, message, capsys, tmp_path):
    words = [*words, "--json", str(tmp_path / "x.json")] if words else words
    with pytest.raises(SystemExit):
        benchmark.main(["--quick", *words])
    assert message in capsys.readouterr().err
