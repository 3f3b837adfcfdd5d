import json

import jax
import numpy as np
import pytest

from r2m_jax import InputError, load_detector
from r2m_jax.checkpoints import image_processor, load_corit, save_corit, save_detector
from r2m_jax.jobs.merge_inputs import open_inputs
from r2m_jax.models import init_backbone
from r2m_jax.models.corit import CoritDetector, CoritSettings, init_corit_head
from r2m_jax.trees import flatten


@pytest.fixture(params=["concat", "cross_attention"])
def corit(tiny_config, request):
    settings = CoritSettings(gamma=0.3, regions=("foreground", "background"), fusion=request.param)
    params = {
        "backbone": init_backbone(tiny_config, jax.random.key(1)),
        "head": init_corit_head(tiny_config, settings, jax.random.key(2)),
    }
    return CoritDetector.create(tiny_config, params, image_processor(32), settings)


@pytest.fixture
def saved(corit, tmp_path):
    save_corit(corit, tmp_path / "corit", provenance={"kind": "corit"})
    return tmp_path / "corit"


def test_a_directory_gives_the_detector_back(corit, saved):
    found = load_corit(saved)
    assert found.settings == corit.settings
    assert found.settings.fusion_layer == 2
    assert found.provenance == {"kind": "corit"}
    stored, kept = flatten(found.params), flatten(corit.params)
    assert stored.keys() == kept.keys()
    for path in kept:
        np.testing.assert_array_equal(stored[path], kept[path], err_msg=path)


def test_plain_loading_refuses_it_and_the_other_way_round(saved, detector, tmp_path):
    with pytest.raises(InputError, match=r"is a CoRIT model.*load_corit"):
        load_detector(saved)
    with pytest.raises(InputError, match="is a CoRIT model"):
        open_inputs(saved, {"one": saved})
    save_detector(detector, tmp_path / "plain")
    with pytest.raises(InputError, match=r"no CoRIT model.*load_detector"):
        load_corit(tmp_path / "plain")


def test_other_switches_than_those_trained_with_are_refused(saved):
    with pytest.raises(InputError, match=r"gamma=0.3, not 0.1"):
        load_corit(saved, settings=CoritSettings(regions=("foreground", "background")))
    stored = load_corit(saved).settings
    assert load_corit(saved, settings=stored).settings == stored


def test_force_evaluates_in_another_mode(saved):
    stored = load_corit(saved).settings
    other = CoritSettings(gamma=0.3, regions=stored.regions, fusion=stored.fusion, cgp="off")
    with pytest.raises(InputError, match="cgp='canonical', not 'off'"):
        load_corit(saved, settings=other)
    assert load_corit(saved, settings=other, force=True).settings.cgp == "off"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gamma": None}, "gamma"),
        ({"gamma": "much"}, "gamma"),
        ({"pooling": "sum"}, "pooling"),
        ({"colour": 1}, "colour"),
        ({"regions": ["foreground", "sky"]}, "sky"),
        ({"format": 7}, "format 7"),
    ],
)
def test_damaged_switches_are_refused_by_name(saved, change, named):
    path = saved / "corit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=named):
        load_corit(saved)


@pytest.mark.parametrize("gone", ["cgp", "rule", "format"])
def test_missing_switches_are_refused(saved, gone):
    path = saved / "corit.json"
    content = json.loads(path.read_text())
    del content[gone]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=gone):
        load_corit(saved)
