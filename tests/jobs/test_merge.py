import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from r2m_jax import InputError, load_detector, merging, save_detector
from r2m_jax.checkpoints import image_processor, provenance
from r2m_jax.checkpoints.tensors import safetensors_files
from r2m_jax.jobs.merge import earlier_recipe, merge
from r2m_jax.models import Detector
from r2m_jax.progress import Reporter
from r2m_jax.recipes import load_recipe
from r2m_jax.recipes.merging import MergeRecipe
from r2m_jax.trees import flatten


@pytest.fixture
def models(base, tmp_path):
    """Three specialists of the random base."""
    origin = load_detector(base)
    made = provenance.record("specialist", inputs=provenance.input_hashes(safetensors_files(base)))
    for number, name in enumerate(("fs", "fr", "efs")):
        key = jax.random.key(number)
        moved = jax.tree.map(
            lambda leaf, key=key, size=0.01 * (number + 1): leaf + size * jax.random.normal(key, leaf.shape),
            origin.params,
        )
        save_detector(origin.replace_params(moved), tmp_path / name, provenance=made)
    return {name: tmp_path / name for name in ("fs", "fr", "efs")}


@pytest.fixture
def recipe(base, models, tmp_path):
    def make(*replacements, **settings):
        whole = {"base": str(base), "models": {name: str(path) for name, path in models.items()}, **settings}
        return load_recipe(MergeRecipe, "merge", None, [f"out={tmp_path / 'out'}", *replacements], whole)

    return make


def run(recipe, **options):
    return merge(recipe, reporter=Reporter(quiet=True), **options)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("weight_averaging", {}),
        ("task_arithmetic", {"alpha": 0.5, "reduce": "sum"}),
        ("ties", {"density": 0.3, "variant": "paper"}),
        ("cart", {"rank": 0.3, "scale": 1.5}),
        ("r2m", {"rank": 0.5, "alpha": 0.7, "centering": "uncentered", "origin": "theta_avg"}),
        ("r2m", {"rank": 5}),
    ],
)
def test_a_merge_is_what_the_library_computes(recipe, base, models, method, parameters):
    made = run(recipe(method=method, parameters=parameters))
    merged, origin = load_detector(made.directory), load_detector(base)
    thetas = [load_detector(path).params for path in models.values()]
    wanted = getattr(merging, method)(origin.params["backbone"], [theta["backbone"] for theta in thetas], **parameters)
    wanted = getattr(wanted, "params", wanted)
    for path, leaf in flatten(wanted).items():
        np.testing.assert_allclose(flatten(merged.params["backbone"])[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    mean = np.mean([np.asarray(theta["head"]["kernel"]) for theta in thetas], axis=0)
    np.testing.assert_allclose(merged.params["head"]["kernel"], mean, rtol=1e-5, atol=1e-7)
    facts = json.loads((made.directory / "r2m.json").read_text())
    assert facts["kind"] == "merged"
    assert len(facts["inputs"]) == 4
    assert facts["recipe"]["method"] == method
    assert bool(made.sentences) == (method == "r2m")
    assert bool(facts["diagnostics"]) == (method in ("r2m", "ties"))


def test_weights_heads_and_dtypes(recipe, models):
    weighted = {name: {"path": str(path), "weight": float(n)} for n, (name, path) in enumerate(models.items())}
    made = run(recipe("head=fr", "dtype=bfloat16", models=weighted, method="weight_averaging"))
    merged = load_detector(made.directory, dtype=None)
    assert {str(leaf.dtype) for leaf in flatten(merged.params).values()} == {"bfloat16"}
    heads = {name: load_detector(path).params["head"]["bias"] for name, path in models.items()}
    np.testing.assert_array_equal(merged.params["head"]["bias"], heads["fr"].astype(jnp.bfloat16))
    fr, efs = (load_detector(models[name]).params["backbone"]["embeddings"] for name in ("fr", "efs"))
    np.testing.assert_allclose(
        merged.params["backbone"]["embeddings"]["class_token"].astype(np.float32),
        (fr["class_token"] + 2 * efs["class_token"]) / 3,
        rtol=1e-2,
        atol=1e-3,
    )


def test_what_does_not_belong_together_is_named(recipe, models, base, tmp_path):
    origin = load_detector(models["fr"])
    other = Detector.create(origin.config, origin.params, image_processor(32, (0.5,) * 3, (0.5,) * 3))
    save_detector(other, tmp_path / "half", provenance=origin.provenance)
    with pytest.raises(InputError, match=r"half takes images with image_mean \[0.5, 0.5, 0.5\], fs with \[0.48"):
        run(recipe(models={"fs": str(models["fs"]), "half": str(tmp_path / "half")}))
    foreign = {**origin.provenance, "inputs": [{"path": "x/model.safetensors", "bytes": 1, "sha256": "0" * 64}]}
    save_detector(origin, tmp_path / "foreign", provenance=foreign)
    with pytest.raises(InputError, match="foreign was fine-tuned from another base"):
        run(recipe(models={"foreign": str(tmp_path / "foreign")}))
    from transformers import CLIPVisionConfig

    from r2m_jax.models import init_backbone

    small = CLIPVisionConfig(**{**origin.config.to_dict(), "num_hidden_layers": 2})
    save_detector(
        Detector.create(small, {"backbone": init_backbone(small, jax.random.key(0))}, image_processor(32)),
        tmp_path / "small",
    )
    with pytest.raises(InputError, match="small has num_hidden_layers 2, the base 3"):
        run(recipe(models={"small": str(tmp_path / "small")}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("replacements", "settings", "says"),
    [
        (["parameters.density=0.2"], {}, "r2m takes no density; it takes rank, alpha, k"),
        (["head=fx"], {}, "head='fx' is neither average, norm_matched nor one of fs, fr, efs"),
        (["method=slerp"], {}, "method='slerp' does not fit"),
        (["parameters.rnk=1"], {}, "has no key 'rnk'; did you mean rank"),
        (["method=ties", "models.fs={path: a, weight: 2}"], {}, "ties takes no weights"),
        (["parameters.rank=1.5"], {}, "rank=1.5 is no ratio"),
        (["parameters.rank=enrgy:0.5"], {}, "rank 'enrgy:0.5' is no ratio"),
        (["parameters.k=3"], {}, "k=3 is out of range"),
        (["parameters.rank=[{filter: mlp, value: 0.5}]"], {}, "the last of a list of .* needs no filter"),
        (["parameters.variant=paper", "parameters.k=2"], {}, "variant='paper' has k=1, not 2"),
    ],
)
def test_recipes_that_do_not_fit(recipe, replacements, settings, says):
    with pytest.raises(InputError, match=says):
        recipe(*replacements, **settings)


@pytest.mark.integration
def test_the_command_merges_adds_and_removes(r2m, base, models, tmp_path):
    named = [option for name in ("fs", "fr") for option in ("--specialist", f"{name}={models[name]}")]
    out = tmp_path / "two"
    r2m("merge", "--base", base, *named, "--method", "r2m", "--rank", "0.7", "--alpha", "0.5", "--out", out)
    result = r2m("merge", out, "--add", f"efs={models['efs']}", "--out", tmp_path / "three")
    assert "The core is" in result.stderr
    direct = r2m(
        "merge", "--base", base, *named, "--specialist", f"efs={models['efs']}", "--rank", "0.7", "--alpha", "0.5",
        "--out", tmp_path / "direct",
    )  # fmt: skip
    assert direct.returncode == 0
    one, two = (flatten(load_detector(tmp_path / name).params) for name in ("three", "direct"))
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)
    r2m("merge", tmp_path / "three", "--remove", "efs", "--out", tmp_path / "again")
    again, first = (flatten(load_detector(tmp_path / name).params) for name in ("again", "two"))
    for path in first:
        np.testing.assert_array_equal(again[path], first[path], err_msg=path)

    shown = r2m("merge", tmp_path / "three", "--remove", "efs", "--out", "x", "--dry-run")
    assert yaml.safe_load(shown.stdout)["models"].keys() == {"fs", "fr"}
    assert "12 matrices 64 × 64 at rank 0.7" in shown.stderr
    assert "estimated time, starting apart:" in shown.stderr
    wrong = r2m("merge", tmp_path / "three", "--remove", "nobody", "--out", tmp_path / "x", check=False)
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: there is no specialist 'nobody' to remove; there are fs, fr, efs.\n",
    )  # fmt: skip
    taken = r2m("merge", tmp_path / "three", "--out", tmp_path / "two", check=False)
    assert taken.returncode == 2
    assert "already exists" in taken.stderr
    (safetensors,) = safetensors_files(models["efs"])
    safetensors.write_bytes(safetensors.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"efs/model.safetensors, of which .* was merged, has changed since"):
        earlier_recipe(tmp_path / "three")


def test_files_without_the_prefix_merge_alike(recipe, models, base, tmp_path):
    """transformers 5 leaves `vision_model.` out, older releases and the hub have it."""
    from safetensors.numpy import load_file, save_file

    wanted = flatten(load_detector(run(recipe()).directory).params)
    for folder in (base, models["fr"]):
        bare = tmp_path / f"bare-{folder.name}"
        bare.mkdir()
        for file in folder.iterdir():
            (bare / file.name).write_bytes(file.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {name.removeprefix("vision_model."): value for name, value in tensors.items()},
            bare / "model.safetensors",
            metadata={"format": "pt"},
        )
        (bare / "r2m.json").unlink(missing_ok=True)
    origin = {"base": str(tmp_path / f"bare-{base.name}")}
    for path in models.values():  # made from the prefixed base, whose file has another hash
        (path / "r2m.json").unlink()
    mixed = {**{n: str(p) for n, p in models.items()}, "fr": str(tmp_path / "bare-fr")}
    found = flatten(load_detector(run(recipe(f"out={tmp_path / 'two'}", models=mixed, **origin)).directory).params)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_the_screen_warns_or_refuses(recipe, models):
    broken = load_detector(models["fr"])
    flipped = jax.tree.map(lambda leaf: -leaf, broken.params["backbone"])
    save_detector(
        broken.replace_params({**broken.params, "backbone": flipped}), models["fr"], provenance=broken.provenance,
        overwrite=True,
    )  # fmt: skip
    facts = json.loads((run(recipe("screen=warn")).directory / "r2m.json").read_text())
    assert any("fr" in sentence for sentence in facts["screen"])
    with pytest.raises(InputError, match="fr"):
        run(recipe("screen=refuse"), overwrite=True)


def test_an_interrupted_merge_leaves_no_model_and_goes_on(recipe, monkeypatch, tmp_path):
    from r2m_jax.merging import streaming

    wanted = flatten(load_detector(run(recipe(f"out={tmp_path / 'whole'}", "memory=1")).directory).params)
    real, measured = streaming._measure, []

    def counted(*arguments):
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(streaming, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe("memory=1"))
    assert not (tmp_path / "out").exists()
    chunks_done = len(list((tmp_path / "out.merge").rglob("*.npz")))
    assert chunks_done == 2
    found = flatten(load_detector(run(recipe("memory=1")).directory).params)
    assert not (tmp_path / "out.merge").exists()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


KILLED_IN_THE_SECOND_PASS = """
import json, os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from r2m_jax.jobs.merge import merge
from r2m_jax.merging import streaming
from r2m_jax.progress import Reporter
from r2m_jax.recipes.merging import MergeRecipe
real, calls = streaming._apply, []
def dying(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
streaming._apply = dying
merge(MergeRecipe.model_validate_json(sys.argv[1]), reporter=Reporter(quiet=True))
"""


@pytest.mark.integration
def test_a_killed_merge_leaves_no_model_and_what_it_finished_is_not_done_again(recipe, monkeypatch, tmp_path):
    import signal
    import subprocess
    import sys

    from r2m_jax.merging import streaming

    wanted = flatten(load_detector(run(recipe(f"out={tmp_path / 'whole'}", "memory=1")).directory).params)
    told = recipe("memory=1")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_THE_SECOND_PASS, told.model_dump_json()], timeout=240, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    scratch = tmp_path / "out.merge" / "0"
    noted = list(scratch.glob("*.written"))
    chunks = list(scratch.glob("*.npz"))
    assert 2 <= len(noted) < len(chunks)
    real, applied = streaming._apply, []
    monkeypatch.setattr(streaming, "_measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(streaming, "_apply", lambda *given: applied.append(1) or real(*given))
    found = flatten(load_detector(run(told).directory).params)
    assert len(applied) == len(chunks) - len(noted)
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "whole"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out."))]
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_what_was_written_before_the_machine_went_down_is_written_again(recipe, monkeypatch, tmp_path):
    from r2m_jax.jobs import merge as job

    scratch = tmp_path / "0"
    scratch.mkdir()
    (scratch / "3.written").write_text(job._boot())
    (scratch / "4.written").write_text("another start")
    assert job._written(scratch) == {3}


def test_a_truncated_shard_is_named_before_any_work(recipe, models, tmp_path):
    detector = load_detector(models["fr"])
    save_detector(detector, models["fr"], provenance=detector.provenance, overwrite=True, max_shard_bytes=100_000)
    *_, shard = safetensors_files(models["fr"])
    shard.write_bytes(shard.read_bytes()[:-100])
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=rf"{shard} is not a whole safetensors file"):
        run(recipe())
    assert set(tmp_path.iterdir()) == before
