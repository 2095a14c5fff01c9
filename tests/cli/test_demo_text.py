"""`demo text`: its figure. What it trains and times is tested with `benchmarks/equal_time.py`.

Seen to fail: curves over steps in place of seconds.
"""

from __future__ import annotations

import pytest

from lightning_lrnn.cli.demos import figure


def test_both_curves_end_at_the_same_time(tmp_path, monkeypatch):
    """However long the clock says that either took."""
    drawn = []
    monkeypatch.setattr(figure, "save", lambda drawing, path: drawn.append(drawing) or path)
    models = {
        name: {"curve": [4.0] * steps, "bits_per_byte": 3.0, "horizons": {name: [1.0, 30.0]}}
        for name, steps in {"one": 30, "two": 20}.items()
    }
    results = {"seconds": 90.0, "models": models, "compressors": {"gzip -9": 2.5}}
    figure.draw(results, tmp_path / "demo.png")
    lines = drawn[0].axes[0].get_lines()
    for name, step in {"one": 3.0, "two": 4.5}.items():
        (curve,) = (line for line in lines if line.get_label() == f"{name}, training")
        assert list(curve.get_xdata())[::-1][:2] == pytest.approx([90, 90 - step])
