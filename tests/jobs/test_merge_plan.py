import dataclasses
import json

import pytest

from r2m_jax import InputError
from r2m_jax.jobs.calibrating import calibrate, read_machine, write_machine
from r2m_jax.jobs.merge_plan import merge_plan
from r2m_jax.merging.estimate import Machine
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.merging import MergeRecipe

MACHINE = Machine(
    name="round numbers", devices=2, cores=2, devices_are_cores=True, products=1e9, wide_products=1e9, cubes=1e-9,
    squares=1e-8, moved=1e9, read=1e9, written=1e9, hashed=1e9, compiled=0.5, compiled_truncating=0.5, memory=1e9,
)  # fmt: skip


@pytest.mark.parametrize("method", ["r2m", "cart", "ties", "task_arithmetic"])
def test_a_plan_says_what_will_be_done(base, tmp_path, method):
    whole = {"base": str(base), "models": {"A": str(base), "B": str(base)}, "method": method}
    recipe = load_recipe(MergeRecipe, "merge", None, [f"out={tmp_path / 'out'}"], whole)
    lines = merge_plan(recipe, MACHINE, processes=2)
    text = "\n".join(lines)
    assert f"2 specialists, {method}, on round numbers, 2 such processes" in lines[0]
    # Three layers of width 64 with 128 inner ones.
    truncates = method in ("r2m", "cart")
    assert ("12 matrices 64 × 64 at rank 0.7" in text) == (method == "r2m")
    assert all((f" matrices {shape} at rank" in text) == truncates for shape in ("64 × 64", "128 × 64", "64 × 128"))
    assert any(line.startswith("merge: ") for line in lines)
    assert any(line.startswith("measure: ") for line in lines) == (method == "r2m")
    assert "balance of the processes" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_rates_are_kept_and_wrong_ones_refused(tmp_path):
    path = tmp_path / "machine.json"
    write_machine(path, MACHINE)
    assert read_machine(path) == MACHINE
    content = json.loads(path.read_text())
    for name, value in (("read", 0), ("cubes", -1e-9), ("moved", float("nan")), ("hashed", "fast"), ("devices", None)):
        path.write_text(json.dumps({**content, "machine": {**content["machine"], name: value}}))
        with pytest.raises(InputError, match=rf"machine\.json: {name} is .*measure anew"):
            read_machine(path)
    path.write_text(json.dumps({**content, "machine": {"read": 1.0}}))
    with pytest.raises(InputError, match="does not hold the rates of a machine"):
        read_machine(path)
    path.write_text(json.dumps(content["versions"]))
    with pytest.raises(InputError, match="does not hold the rates of a machine"):
        read_machine(path)


@pytest.mark.integration
def test_a_measured_machine_can_be_kept(tmp_path):
    found = calibrate(eigenproblems=(32, 64), repeat=1, processor_time=True)
    write_machine(tmp_path / "machine.json", found)
    assert read_machine(tmp_path / "machine.json") == found
    assert found.devices == 8
    assert found.wide_products < found.products < 1e13
    assert dataclasses.replace(found, name="") != dataclasses.replace(MACHINE, name="")
