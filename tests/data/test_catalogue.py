"""The catalogue against the papers' figures."""

from collections import Counter

import pytest

from r2m_jax.data import catalogue
from r2m_jax.errors import InputError


def test_df40_has_its_forty_methods():
    assert Counter(m.family for m in catalogue.DF40_METHODS) == {"FS": 10, "FR": 13, "EFS": 12, "FE": 5}
    assert sum(m.unknown_domain for m in catalogue.DF40_METHODS) == 9
    assert len({m.name.lower() for m in catalogue.DF40_METHODS}) == 40


def test_other_sets_have_their_sizes():
    assert len(catalogue.UNIVERSAL_METHODS) == 19
    assert len(catalogue.SYNTHBUSTER_METHODS) == 9
    assert sum(map(len, catalogue.SHARED_REALS.values())) == 8


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ddim", "ddpm"),
        ("StarGAN2", "starganv2"),
        ("Whichisreal", "whichfaceisreal"),
        ("whichisreal", "whichfaceisreal"),
        ("RDDM", "rddm"),
        ("PixArt", "pixart"),
        ("StyleGAN-XL", "StyleGANXL"),
        ("SD2.1", "sd2.1"),
        ("mraa", "MRAA"),
        ("stargan", "stargan"),
        ("FaceSwap", "faceswap"),
        ("NeuralTextures", "FF-NT"),
        ("midjourney", "MidJourney"),
        ("Midjourney-v5", "midjourney-v5"),
    ],
)
def test_aliases(spelling, name):
    assert catalogue.method(spelling).name == name


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="did you mean simswap"):
        catalogue.method("simswop")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("FF-real", 0), ("FF-DF", 1), ("FF-SH", 1), ("DFDCP_FakeB", 1), ("DFDC_Real", 0), ("simswap_Fake", 1),
        ("FSAll_Real", 0), ("DF40_train_Fake", 1), ("midjourney_fake", 1), ("mine-real", 0), ("0", 0), ("fake", 1),
        ("surreal", None), ("fakery", None), ("", None),
    ],
)  # fmt: skip
def test_class_of_a_label(label, expected):
    assert catalogue.class_of(label) == expected


def test_given_labels_come_first():
    assert catalogue.class_of("FF-DF", {"FF-DF": 0}) == 0


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("simswap_Fake", ("simswap", "FS")), ("ddim_Fake", ("ddpm", "EFS")), ("FSAll_Fake", ("", "FS")),
        ("EFSAll_Fake", ("", "EFS")), ("DF40_train_Fake", ("", "")), ("FF-FS", ("FF-FS", "FS")),
        ("FF-FH", ("FaceShifter", "FS")), ("DFDCP_FakeA", ("DFDCP", "FS")), ("CelebDFv2_fake", ("CelebDFv2", "FS")),
        ("DF_fake", ("DeeperForensics", "FS")), ("fake", ("", "")), ("new_Fake", ("new", "")),
    ],
)  # fmt: skip
def test_method_of_a_label(label, expected):
    assert catalogue.method_of_label(label) == expected


def test_domains():
    names = ("FSAll_ff", "simswap_cdf", "FaceForensics++", "Celeb-DF-v2", "heygen")
    assert [catalogue.domain_of(name) for name in names] == ["ff", "cdf", "ff", "cdf", ""]
