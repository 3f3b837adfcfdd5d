import re

import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.evaluation.plots import energy_lost
from r2m_jax.jobs.compare.task_vectors import figures, tables
from r2m_jax.merging.interference import GRID, compare
from r2m_jax.trees import unflatten


def report(count, layers=3):
    rng = np.random.default_rng(0)
    shapes = {"layers/attn/q/kernel": (layers, 8, 8), "layers/norm/scale": (layers, 8), "bias": (5,)}
    origin = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    thetas = [{path: leaf + 0.1 * rng.normal(size=leaf.shape) for path, leaf in origin.items()} for _ in range(count)]
    return compare(unflatten(origin), [unflatten(theta) for theta in thetas], [f"s{index}" for index in range(count)])


def test_tables_hold_the_reports_numbers():
    found = report(3)
    made = tables(found)
    assert list(made) == ["specialists", "cosines", "layers", "leaves"]
    layers = made["layers"]
    assert layers.groups == {"Model": ["whole model"], "Layers": ["layer 0", "layer 1", "layer 2"]}
    row = dict(zip(layers.columns, layers.values["layer 1"], strict=True))
    part = found.layers[1]
    assert row["‖s2‖"] == part.norms[2]
    assert row["cos s0, s2"] == part.cosines[0, 2]
    assert row["sign conflicts"] == part.sign_conflicts
    leaf = dict(zip(made["leaves"].columns, made["leaves"].values["layers/attn/q/kernel, layer 2"], strict=True))
    entry = next(e for e in found.entries if e.where == "layers/attn/q/kernel, layer 2")
    assert leaf["effective rank"] == pytest.approx(np.mean([s.effective_rank for s in entry.spectra]))
    assert np.isnan(made["leaves"].values["bias"][-1])
    assert made["specialists"].values["s1"][0] == found.whole.norms[1]


@pytest.mark.parametrize(("count", "drawn"), [(1, 2), (3, 5), (6, 5)])
def test_figures_of_one_and_of_many(count, drawn):
    """One specialist has no pairs; six have more than can be told apart as lines."""
    made = figures(report(count))
    assert len(made) == drawn
    for svg in made.values():
        assert svg.startswith("<svg")
        assert "nan" not in re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL).lower()
    assert any("smallest and largest of 15 pairs" in svg for svg in made.values()) == (count == 6)


def test_nothing_to_draw_is_left_out():
    origin = {"layers": {"norm": {"scale": np.zeros((2, 4))}}}
    same = compare(origin, [origin, origin], ["a", "b"])
    assert not any("Spectra" in svg or "Effective" in svg for svg in figures(same).values())
    assert np.isnan(tables(same)["cosines"].values["a"]).all()


def test_spectra_are_refused_where_they_do_not_fit():
    flat = {"flat": GRID}
    assert energy_lost(GRID, flat, title="t") == energy_lost(GRID, flat, title="t")
    with pytest.raises(InputError, match="no spectrum"):
        energy_lost(GRID, {}, title="t")
    with pytest.raises(InputError, match="shape"):
        energy_lost(GRID, {"a": [0.0, 1.0]}, title="t")
    with pytest.raises(InputError, match="NaN"):
        energy_lost(GRID, {"a": np.full(GRID.shape, np.nan)}, title="t")
