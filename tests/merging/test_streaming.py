"""Merging from files chunk by chunk gives what merging in memory gives."""

import jax
import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.checkpoints.tensors import LazyTensor, SafetensorsWriter, ShapeDtype, open_safetensors
from r2m_jax.merging import cart, r2m, task_arithmetic, ties, weight_averaging
from r2m_jax.merging.averaging import WeightAveraging
from r2m_jax.merging.cart import Cart
from r2m_jax.merging.chunks import plan
from r2m_jax.merging.r2m import R2M
from r2m_jax.merging.ranks import Energy
from r2m_jax.merging.streaming import apply_stream, measure_stream, resolve
from r2m_jax.merging.sweep import Sweep
from r2m_jax.merging.task_arithmetic import TaskArithmetic
from r2m_jax.merging.ties_streaming import ties_stream

SHAPES = {
    **{f"encoder.layers.{n}.self_attn.{x}_proj.weight": (12, 12) for n in range(3) for x in "qkv"},
    **{f"encoder.layers.{n}.self_attn.q_proj.bias": (12,) for n in range(3)},
    **{f"encoder.layers.{n}.mlp.fc1.weight": (20, 12) for n in range(3)},
    **{f"encoder.layers.{n}.mlp.fc2.weight": (12, 20) for n in range(3)},
    "embeddings.position_embedding.weight": (37, 12),
    "embeddings.class_embedding": (12,),
}
NAMES = ["A", "B", "C"]


def values(seed, scale):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def models():
    base, common = values(0, 1.0), values(9, 0.05)
    return base, [{k: base[k] + common[k] + v for k, v in values(n, 0.1 * n).items()} for n in (1, 2, 3)]


@pytest.fixture
def stream(models, tmp_path):
    """Merges files; returns the result read back, and the diagnostics."""
    base, specialists = models
    for name, content in zip(["base", *NAMES], [base, *specialists], strict=True):
        write(tmp_path / name, content)

    def run(method, *, memory=2**20, dtype=None, fused_qkv=False, devices=1, scratch=None, files=None):
        from r2m_jax.parallel import data_mesh

        origin, *others = files or [open_safetensors(tmp_path / n / "model.safetensors") for n in ["base", *NAMES]]
        mesh = data_mesh(jax.devices()[:devices])
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        wanted = {name: ShapeDtype(t.shape, np.dtype(dtype or t.dtype)) for name, t in origin.items()}
        writer = SafetensorsWriter(out, wanted)
        diagnostics = None
        if isinstance(method, dict):
            cut = plan(WeightAveraging(), origin, others, memory=memory)
            ties_stream(cut, origin, others, writer.write, names=NAMES, **method)
        else:
            cut = plan(method, origin, others, memory=memory, fused_qkv=fused_qkv, devices=devices)
            scratch = scratch or tmp_path / "scratch"
            scratch.mkdir(exist_ok=True)
            statistics = None
            if method.measures:
                statistics = measure_stream(method, cut, origin, others, names=NAMES, scratch=scratch, mesh=mesh)
            coefficients, diagnostics = resolve(method, statistics, cut)
            apply_stream(
                method, cut, origin, others, coefficients, writer.write, names=NAMES, mesh=mesh,
                dtype=None if dtype is None else np.dtype(dtype), scratch=scratch if method.measures else None,
            )  # fmt: skip
        writer.close()
        return {k: t.read() for k, t in open_safetensors(out / "model.safetensors").items()}, diagnostics

    return run


def write(folder, content):
    folder.mkdir(exist_ok=True)
    tensors = {name: LazyTensor.of(array) for name, array in content.items()}
    writer = SafetensorsWriter(folder, tensors)
    for name, array in content.items():
        writer.write(name, array)
    writer.close()


def same(found, wanted, rtol=1e-5, atol=2e-6):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=atol, err_msg=name)


CASES = {
    "weight averaging": (WeightAveraging((2.0, 1.0, 1.0)), lambda o, t: weight_averaging(o, t, weights=(2, 1, 1))),
    "task arithmetic": (TaskArithmetic(0.5, "sum"), lambda o, t: task_arithmetic(o, t, alpha=0.5, reduce="sum")),
    "cart": (Cart(0.3, 1.5), lambda o, t: cart(o, t, rank=0.3, scale=1.5)),
    "r2m": (R2M(), lambda o, t: r2m(o, t).params),
    "r2m by leaf": (
        R2M(0.3, scope="leaf", norm_matching="leaf", centering="uncentered"),
        lambda o, t: r2m(o, t, rank=0.3, scope="leaf", norm_matching="leaf", centering="uncentered").params,
    ),
    "r2m by energy": (R2M(Energy(0.8), k=2), lambda o, t: r2m(o, t, rank=Energy(0.8), k=2).params),
    "ties": ({"density": 0.3}, lambda o, t: ties(o, t, density=0.3)),
    "ties as in the paper": (
        {"density": 0.1, "scale": 0.5, "variant": "paper"},
        lambda o, t: ties(o, t, density=0.1, scale=0.5, variant="paper"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(1, id="one by one", marks=pytest.mark.integration),
        pytest.param(9000, id="some rows"),
        pytest.param(2**20, id="all", marks=pytest.mark.integration),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_files_and_memory_give_the_same(stream, models, case, memory):
    method, in_memory = CASES[case]
    same(stream(method, memory=memory)[0], in_memory(*models))


def test_devices_and_fused_qkv(stream, models):
    same(stream(R2M(), devices=3)[0], r2m(*models).params)
    same(stream(Cart(0.3), fused_qkv=True, devices=2)[0], cart(*models, rank=0.3, fused_qkv=True))


def test_diagnostics_are_those_of_a_merge_in_memory(stream, models):
    _, ours = stream(R2M())
    for name, value in r2m(*models).diagnostics._asdict().items():
        np.testing.assert_allclose(getattr(ours, name), value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_interrupted_first_pass_goes_on(stream, models, tmp_path, monkeypatch):
    from r2m_jax.merging import streaming

    scratch, measured = tmp_path / "kept", []
    scratch.mkdir()
    real = streaming._measure

    def counted(*arguments):
        measured.append(1)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(streaming, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        stream(R2M(), memory=1, scratch=scratch)
    found, _ = stream(R2M(), memory=1, scratch=scratch)
    chunks = len(list(scratch.glob("*.npz")))
    assert len(measured) == 4 + chunks - 3
    same(found, r2m(*models).params)


def test_stacks_of_layers_are_cut(models):
    base, specialists = models

    def stacked(model):
        q = np.stack([model[f"encoder.layers.{n}.self_attn.q_proj.weight"] for n in range(3)])
        return {"layers/attn/q/kernel": LazyTensor.of(q), "class": LazyTensor.of(model["embeddings.class_embedding"])}

    cut = plan(R2M(), stacked(base), [stacked(s) for s in specialists], memory=1)
    assert [(p.start, p.stop) for c in cut.chunks for p in c.pieces if c.rank] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.integration
def test_the_sweep_gives_what_single_merges_give(models):
    theta0, thetas = models
    swept = Sweep(theta0, thetas)
    for rank in (0.3, 0.7, 5):
        for alpha in (0.4, 0.6):
            params, diagnostics = swept.merge(R2M(rank, alpha, centering="uncentered"))
            wanted = r2m(theta0, thetas, rank=rank, alpha=alpha, centering="uncentered")
            same(params, wanted.params)
            np.testing.assert_allclose(diagnostics.eta, wanted.diagnostics.eta, rtol=1e-5)
    same(swept.merge(WeightAveraging())[0], weight_averaging(theta0, thetas))
    same(swept.merge(Cart(0.1, 2.0))[0], cart(theta0, thetas, rank=0.1, scale=2.0))
    with pytest.raises(InputError, match=r"ratios or counts, not energy:0.5"):
        swept.merge(Cart(Energy(0.5)))


@pytest.mark.parametrize("method", [WeightAveraging(), R2M(), {"density": 0.2}], ids=["average", "r2m", "ties"])
@pytest.mark.parametrize(("where", "value"), [(0, np.nan), (2, np.inf)])
def test_what_is_not_finite_is_named(stream, models, method, where, value):
    base, specialists = models
    broken = [base, *specialists][where]
    broken["encoder.layers.1.mlp.fc1.weight"][3, 4] = value
    files = [{k: LazyTensor.of(v) for k, v in model.items()} for model in (base, *specialists)]
    who = ["the base", *NAMES][where]
    with pytest.raises(InputError, match=rf"{who}: encoder.layers.1.mlp.fc1.weight holds 1 values that are NaN or inf"):
        stream(method, files=files)


def test_what_does_not_fit_the_dtype_is_named(stream, models):
    base, specialists = models
    for model in (base, *specialists):
        model["embeddings.class_embedding"][:] = 1e6
    files = [{k: LazyTensor.of(v) for k, v in model.items()} for model in (base, *specialists)]
    with pytest.raises(InputError, match=r"embeddings.class_embedding: the merged values do not fit into float16"):
        stream(WeightAveraging(), dtype="float16", files=files)


def test_models_that_differ_are_named(models):
    base, (a, b, c) = ({k: LazyTensor.of(v) for k, v in models[0].items()}, models[1])
    del b["embeddings.class_embedding"]
    c["embeddings.position_embedding.weight"] = c["embeddings.position_embedding.weight"][:5]
    lazy = [{k: LazyTensor.of(v) for k, v in model.items()} for model in (a, b, c)]
    with pytest.raises(InputError, match=r"specialist 1 lacks embeddings.class_embedding"):
        plan(R2M(), base, lazy)
    with pytest.raises(InputError, match=r"specialist 1 has embeddings.position_embedding.weight of shape \(5, 12\)"):
        plan(R2M(), base, [lazy[0], lazy[2]])
    with pytest.raises(InputError, match="at least one specialist"):
        plan(R2M(), base, [])


@pytest.mark.parametrize("lean", [1, -1])
def test_entries_that_cancel_take_the_majority_sign(stream, models, lean):
    base, specialists = models
    for number, model in enumerate(specialists):
        for name in model:
            model[name] = base[name] + np.float32(lean * 0.25)
        model["embeddings.class_embedding"] = base["embeddings.class_embedding"] * 0 + np.float32([1, -1, 0][number])
    base["embeddings.class_embedding"][:] = 0
    files = [{k: LazyTensor.of(v) for k, v in model.items()} for model in (base, *specialists)]
    found, _ = stream({"density": 1.0}, files=files)
    same(found, ties(base, specialists, density=1.0))
    np.testing.assert_array_equal(found["embeddings.class_embedding"], np.full(12, lean, np.float32))
