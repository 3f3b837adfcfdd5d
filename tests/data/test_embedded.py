"""The demo's photographs and the patches cut from them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2m_jax.data import embedded
from r2m_jax.data.embedded import (
    HELD_OUT,
    MIN_DEVIATION,
    Photograph,
    cut_patches,
    embedded_photographs,
    read_photographs,
    split_photographs,
)
from r2m_jax.errors import InputError


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    return embedded_photographs()


def noise(name: str, height: int, width: int, seed: int = 0) -> Photograph:
    return Photograph(name, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_embedded_photographs_are_large_colour_images_with_a_hold_out(photographs):
    names = [p.name for p in photographs]
    assert len(set(names)) == len(names) >= 8
    assert set(names) > HELD_OUT
    for photograph in photographs:
        pixels = photograph.pixels
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 300
        assert np.ptp(pixels.astype(int), axis=2).mean() > 5, f"{photograph.name} is grey"


def test_missing_embedded_photograph_is_named(monkeypatch):
    monkeypatch.setattr(embedded, "_EMBEDDED", {"gone": ("skimage", "data/gone.png")})
    with pytest.raises(InputError, match=r"gone\.png is missing; install skimage"):
        embedded_photographs()


def test_embedded_patches_are_enough_for_the_demo(photographs):
    train, train_ids = cut_patches([p for p in photographs if p.name not in HELD_OUT], 64, 10_000, 0)
    test, test_ids = cut_patches([p for p in photographs if p.name in HELD_OUT], 64, 10_000, 0)
    assert len(train) >= 700
    assert len(test) >= 250
    assert {i.split("@")[0] for i in test_ids} == HELD_OUT
    assert not {i.split("@")[0] for i in train_ids} & HELD_OUT
    assert {i.split("x")[-1] for i in train_ids} == {"1", "1.5", "2", "3"}
    assert len(np.unique(np.concatenate([train, test]).reshape(len(train) + len(test), -1), axis=0)) == len(
        train
    ) + len(test)
    assert train[:, 16:48, 16:48].mean(axis=3).std(axis=(1, 2)).min() >= MIN_DEVIATION


def test_ids_say_where_a_patch_was_cut(photographs):
    by_name = {p.name: p.pixels for p in photographs}
    patches, ids = cut_patches(photographs, 64, 40, 3)
    unscaled = [(patch, i) for patch, i in zip(patches, ids, strict=True) if i.endswith("x1")]
    assert unscaled
    for patch, identity in unscaled:
        name, place = identity.removesuffix("x1").split("@")
        top, left = map(int, place.split(","))
        np.testing.assert_array_equal(patch, by_name[name][top : top + 64, left : left + 64])


def test_patches_repeat_with_the_seed_and_share_turns(photographs):
    first, first_ids = cut_patches(photographs, 48, 27, 5)
    again, again_ids = cut_patches(photographs, 48, 27, 5)
    _, other_ids = cut_patches(photographs, 48, 27, 6)
    np.testing.assert_array_equal(first, again)
    assert first_ids == again_ids
    assert first_ids != other_ids
    assert first.shape == (27, 48, 48, 3)
    assert first.dtype == np.uint8
    assert {sum(i.startswith(p.name) for i in first_ids) for p in photographs} == {3}


def test_patches_of_one_scale_share_at_most_a_quarter():
    _, ids = cut_patches([noise("n", 128, 160)], 32, 1000, 0)
    places = [tuple(map(int, i.removesuffix("x1").split("@")[1].split(","))) for i in ids if i.endswith("x1")]
    assert len(places) == 4 * 5 + 3 * 4
    for index, (top, left) in enumerate(places):
        for down, right in places[:index]:
            assert max(0, 32 - abs(top - down)) * max(0, 32 - abs(left - right)) <= 32 * 32 / 4


def test_flat_small_and_repeated_patches_are_left_out():
    flat = Photograph("flat", np.full((200, 200, 3), 90, np.uint8))
    patches, ids = cut_patches([flat], 64, 10, 0)
    assert patches.shape == (0, 64, 64, 3)
    assert ids == []
    small, large = noise("small", 63, 300), noise("large", 64, 64)
    patches, ids = cut_patches([small, large, Photograph("copy", large.pixels)], 64, 10, 0)
    assert ids == ["large@0000,0000x1"]
    np.testing.assert_array_equal(patches[0], large.pixels)
    with pytest.raises(InputError, match="all 1 photographs are smaller than 64 x 64 pixels"):
        cut_patches([small], 64, 10, 0)


def test_read_photographs_takes_images_below_in_order_upright_and_once(tmp_path: Path):
    upright = noise("", 20, 30).pixels
    (tmp_path / "b").mkdir()
    Image.fromarray(upright).save(tmp_path / "b" / "z.PNG")
    Image.fromarray(upright).save(tmp_path / "copy_of_z.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    Image.fromarray(noise("", 20, 30, 1).pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (2100, 1500), 7).save(tmp_path / "wide.webp")
    (tmp_path / "notes.txt").write_text("no image")
    found = read_photographs(tmp_path)
    assert [p.name for p in found] == ["b/z.PNG", "turned.jpg", "wide.webp"]
    np.testing.assert_array_equal(found[0].pixels, upright)
    assert found[1].pixels.shape == (30, 20, 3)
    assert found[2].pixels.shape == (731, 1024, 3)


def test_read_photographs_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        read_photographs(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no image"):
        read_photographs(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no jpeg")
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read"):
        read_photographs(tmp_path)


@pytest.mark.parametrize(("count", "share", "held_out"), [(10, 0.3, 3), (2, 0.01, 1), (3, 0.99, 2)])
def test_split_holds_out_whole_photographs(count, share, held_out):
    every = [noise(f"p{i}", 4, 4, i) for i in range(count)]
    train, test = split_photographs(every, share, 0)
    assert len(test) == held_out
    assert sorted(p.name for p in train + test) == sorted(p.name for p in every)
    assert [p.name for p in test] == [p.name for p in split_photographs(every, share, 0)[1]]
    assert len({tuple(p.name for p in split_photographs(every, share, s)[1]) for s in range(9)}) > 1


def test_split_refuses_what_it_cannot_split():
    with pytest.raises(InputError, match="1 photographs cannot be split"):
        split_photographs([noise("a", 4, 4)], 0.3, 0)
    with pytest.raises(InputError, match=r"1\.5 is not between 0 and 1"):
        split_photographs([noise("a", 4, 4), noise("b", 4, 4)], 1.5, 0)
