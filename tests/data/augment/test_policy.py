"""Policies: presets, bounds, and DeepfakeBench's ``data_aug`` keys."""

import pytest

from r2m_jax.data.augment import PRESETS, Policy, preset, read_data_aug
from r2m_jax.errors import InputError

BENCH = {
    "flip_prob": 0.5,
    "rotate_prob": 0.5,
    "rotate_limit": [-10, 10],
    "blur_prob": 0.5,
    "blur_limit": [3, 7],
    "brightness_prob": 0.5,
    "brightness_limit": [-0.1, 0.1],
    "contrast_limit": [-0.1, 0.1],
    "quality_lower": 40,
    "quality_upper": 100,
}


def test_the_benchmark_s_configuration_is_the_df40_preset():
    assert read_data_aug(BENCH) == (PRESETS["df40"], [])


def test_the_paper_s_wording_jitters_brightness_and_contrast_apart():
    policy = preset("r2m_text")
    assert (policy.one_of, policy.brightness, policy.contrast, policy.jpeg) == (0, 0.5, 0.5, 0.5)


def test_even_blur_sizes_become_the_next_odd_one():
    assert Policy().blur_choices == (3, 5, 5, 7, 7)


def test_single_numbers_are_symmetric_or_start_at_three():
    policy, _ = read_data_aug(BENCH | {"rotate_limit": 5, "blur_limit": 5, "contrast_limit": 0.2})
    assert (policy.degrees, policy.blur_sizes, policy.contrast_limits) == ((-5, 5), (3, 5), (-0.2, 0.2))


def test_missing_and_ineffective_keys_are_named():
    policy, notes = read_data_aug({key: BENCH[key] for key in BENCH if key != "blur_prob"} | {"brightness_prob": 0.9})
    assert policy == PRESETS["df40"]
    assert len(notes) == 2
    assert "brightness_prob 0.9 has no effect" in notes[0]
    assert "blur_prob not given" in notes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip_probability": 0.5}, "no key 'flip_probability'; did you mean flip_prob?"),
        ({"flip_prob": 1.5}, "probability of flip is 1.5"),
        ({"flip_prob": "0.5"}, "flip_prob is '0.5'; give a number"),
        ({"flip_prob": True}, "flip_prob is True"),
        ({"blur_limit": [3, 9]}, "blur_sizes is 3 to 9"),
        ({"blur_limit": [3, 6]}, "both must be odd"),
        ({"blur_limit": [3.0, 7]}, "give a whole number"),
        ({"rotate_limit": [10, -10]}, "must run upwards"),
        ({"rotate_limit": [1, 2, 3]}, "give one number or two"),
        ({"quality_lower": 90, "quality_upper": 80}, "jpeg_qualities is 90 to 80"),
        ({"quality_lower": 0}, "within 1 to 100"),
    ],
)
def test_mistakes_in_data_aug_are_named(change, message):
    with pytest.raises(InputError) as caught:
        read_data_aug(BENCH | change)
    assert message in str(caught.value)
    assert str(caught.value).startswith("data_aug")


@pytest.mark.parametrize("fields", [{"brightness": 0.5}, {"pca_std": -1.0}, {"jpeg_subsampling": "4:1:1"}])
def test_contradictory_policies_are_refused(fields):
    with pytest.raises(InputError):
        Policy(**fields)


def test_an_unknown_preset_lists_the_names():
    with pytest.raises(InputError, match="df40, r2m_text, flip, none"):
        preset("df41")
