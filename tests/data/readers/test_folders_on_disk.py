"""Layouts of folders, each made here, with counts told by hand."""

import pytest

from r2m_jax.data.readers import read_source, require_reals
from r2m_jax.errors import InputError


def test_df40_with_its_reals(tree, golden):
    root = tree(
        "deepfakes_detection_datasets",
        "DF40/simswap/ff/frames/002_003/000.png",
        "DF40/simswap/ff/frames/002_003/001.png",
        "DF40/simswap/cdf/frames/id0_id1_0000/000.png",
        "DF40/pixart/ff/000/000.png",
        "DF40/pixart/cdf/Celeb-real/id0_0000/000.png",  # fakes, in spite of the folder's name
        "DF40/pixart/cdf/YouTube-real/id0_0000/000.png",
        "DF40/heygen/fake/frames/a/000.png",
        "DF40/heygen/real/b/000.png",
        "DF40/stargan/fake/fake/1.jpg",
        "DF40/stargan/real/real/2.jpg",
        "DF40/Whichisreal/9.jpg",
        "DF40/empty_of_mine/",
        "DF40/simswap/ff/frames/004_005/",
        "DF40_train/simswap/frames/001_870/000.png",
        "DF40_train/StyleGAN2/001/seed0188.png",
        "FaceForensics++/original_sequences/youtube/c23/frames/001/000.png",
        "FaceForensics++/original_sequences/youtube/c23/frames/002/000.png",
        "FaceForensics++/manipulated_sequences/FaceSwap/c23/frames/000_003/000.png",
        "Celeb-DF-v2/Celeb-real/frames/id0_0000/000.png",
        "Celeb-DF-v2/Celeb-synthesis/frames/id0_id1_0000/000.png",
        "Celeb-DF-v2/Celeb-synthesis/landmarks/id0_id1_0000/000.npy",
    )
    reading = read_source(root)
    assert reading.layout == "df40"
    assert golden(reading.records) == {
        ("test", "FS", "simswap", "ff"): 2,
        ("test", "FS", "simswap", "cdf"): 1,
        ("test", "EFS", "pixart", "ff"): 1,
        ("test", "EFS", "pixart", "cdf"): 2,
        ("test", "FR", "heygen", ""): 1,
        ("test", "real", "", ""): 2,
        ("test", "FE", "stargan", ""): 1,
        ("test", "EFS", "whichfaceisreal", ""): 1,
        ("train", "FS", "simswap", "ff"): 1,
        ("train", "EFS", "StyleGAN2", "ff"): 1,
        ("train", "real", "", "ff"): 1,  # 001, as the training fakes made from it
        ("test", "real", "", "ff"): 1,
        ("test", "FS", "FF-FS", "ff"): 1,
        ("test", "real", "", "cdf"): 1,
        ("test", "FS", "CelebDFv2", "cdf"): 1,
    }
    pixart = [r.video for r in reading.records if r.method == "pixart" and r.domain == "cdf"]
    assert len(set(pixart)) == 2  # id0_0000 of two folders
    assert any("1 clips have no frames" in w for w in reading.warnings)


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("simswap", ["frames/001_870/000.png"], {("test", "FS", "simswap", ""): 1}),
        ("starganv2", ["1.jpg", "2.jpg"], {("test", "FE", "starganv2", ""): 2}),
        (
            "heygen",
            ["fake/frames/a/0.png", "real/b/0.png"],
            {("test", "FR", "heygen", ""): 1, ("test", "real", "", ""): 1},
        ),
        (
            "stargan",
            ["fake/fake/1.jpg", "real/real/1.jpg"],
            {("test", "FE", "stargan", ""): 1, ("test", "real", "", ""): 1},
        ),
        ("deepfacelab", ["fake/frames/a/0.png"], {("test", "FS", "deepfacelab", ""): 1}),
    ],
)  # fmt: skip
def test_single_zips_of_df40(tree, golden, name, files, expected):
    reading = read_source(tree(name, *files))
    assert reading.layout == "df40"
    assert golden(reading.records) == expected


def test_uniface_zip_has_no_top_folder(tree):
    with pytest.raises(InputError, match=r"not recognised: .*go into uniface/"):
        read_source(tree("unzipped", "frames/001_870/000.png"))


def test_fakes_alone_are_refused_with_the_reason(tree):
    records = read_source(tree("simswap", "frames/a/0.png")).records
    with pytest.raises(InputError, match=r"0 real images found in simswap: the fake zips of DF40 .* fakes only"):
        require_reals(records, ["simswap"])


def test_universal_test_sets_share_their_reals(tree, golden):
    root = tree(
        "ufd",
        "progan/airplane/0_real/a.png",
        "progan/airplane/1_fake/a.png",
        "progan/cat/1_fake/a.png",
        "deepfake/0_real/1.png",
        "deepfake/1_fake/1.png",
        *[f"diffusion_datasets/imagenet/0_real/{i}.png" for i in range(3)],
        *[f"diffusion_datasets/laion/0_real/{i}.png" for i in range(2)],
        "diffusion_datasets/guided/1_fake/1.png",
        "diffusion_datasets/ldm_200/1_fake/1.png",
        "diffusion_datasets/dalle/1_fake/1.png",
    )
    reading = read_source(root)
    assert reading.layout == "universal"
    by_set = {}
    for r in reading.records:
        real, fake = by_set.get(r.dataset, (0, 0))
        by_set[r.dataset] = (real + (r.label == 0), fake + (r.label == 1))
    assert by_set == {
        "progan": (1, 2),
        "deepfake": (1, 1),
        "guided": (3, 1),
        "ldm_200": (2, 1),
        "dalle": (2, 1),
    }
    assert {r.method: r.family for r in reading.records if r.label} == {
        "progan": "EFS", "deepfake": "FS", "guided": "EFS", "ldm_200": "EFS", "dalle": "EFS",
    }  # fmt: skip
    assert len({r.clip for r in reading.records}) == len(reading.records)


@pytest.mark.parametrize(
    ("name", "files", "method"),
    [
        ("progan", ["airplane/0_real/a.png", "airplane/1_fake/a.png"], "progan"),
        ("progan", ["0_real/a.png", "1_fake/a.png"], "progan"),
        ("train", ["progan/airplane/0_real/a.png", "progan/airplane/1_fake/a.png"], "progan"),
        ("mine", ["flux/1_fake/a.png", "flux/0_real/a.png"], "flux"),
    ],
)
def test_universal_generators(tree, name, files, method):
    records = read_source(tree(name, *files)).records
    assert sorted((r.label, r.method) for r in records) == [(0, ""), (1, method)]
    assert {r.dataset for r in records} == {method}
    assert {r.split for r in records} == {"train" if name == "train" else "test"}


def test_unknown_generator_has_no_family_until_told(tree):
    root = tree("mine", "flux/1_fake/a.png", "flux/0_real/a.png")
    assert any("flux (1)" in w and "--family" in w for w in read_source(root).warnings)
    assert {r.family for r in read_source(root, family="EFS").records if r.label} == {"EFS"}


def test_synthbuster(tree, golden):
    names = ("dalle2", "dalle3", "firefly", "glide", "midjourney-v5", "stable-diffusion-1-3", "stable-diffusion-1-4",
             "stable-diffusion-2", "stable-diffusion-xl")  # fmt: skip
    root = tree("synthbuster", *[f"{name}/r000da54ft.png" for name in names], "RAISE-1k/r000da54ft.tif", "README.txt")
    reading = read_source(root)
    assert reading.layout == "synthbuster"
    assert golden(reading.records) == {
        **{("test", "EFS", name, "raise"): 1 for name in names},
        ("test", "real", "", "raise"): 1,
    }
    assert len({r.clip for r in reading.records}) == 10


def test_plain_folders(tree, golden):
    root = tree(
        "mine",
        "train/real/1.jpg",
        "train/real/10.jpg",
        "train/fake/simswap/1.jpg",
        "train/fake/EFS/flux/1.jpg",
        "val/real/1.jpg",
        "test/fake/new/clip/1.jpg",
        "test/fake/new/clip/2.jpg",
        "test/real/frames/v/1.jpg",
        "notes/1.jpg",
        "real/train/2.jpg",
        ".hidden/real/1.jpg",
    )
    reading = read_source(root)
    assert reading.layout == "folders"
    assert golden(reading.records) == {
        ("train", "real", "", ""): 3,
        ("train", "FS", "simswap", ""): 1,
        ("train", "EFS", "flux", ""): 1,
        ("val", "real", "", ""): 1,
        ("test", "", "new", ""): 2,
        ("test", "real", "", ""): 1,
    }
    assert {r.video for r in reading.records if r.method == "new"} == {"new/clip"}
    assert any("1 images are in neither" in w for w in reading.warnings)
    assert sum(r.method == "new" for r in read_source(root, frames=1).records) == 1


def test_real_folder_alone(tree):
    records = read_source(tree("real", "1.jpg", "2.jpg")).records
    assert [(r.label, r.video) for r in records] == [(0, "1"), (0, "2")]


def test_two_layouts_at_once_are_refused(tree):
    with pytest.raises(InputError, match="could be universal or folders; choose one with --layout"):
        read_source(tree("x", "0_real/1.jpg", "real/1.jpg"))
    with pytest.raises(InputError, match="could be folders or videos"):
        read_source(tree("y", "real/1.jpg", "fake/1.mp4"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "does not exist"),
        (("readme.md",), "holds no image and no video file"),
        (("a.json",), "has 1 JSON files: give those"),
        (("a/b/1.jpg",), "is not recognised"),
    ],
)
def test_nothing_to_read_is_refused(tree, files, message):
    with pytest.raises(InputError, match=message):
        read_source(tree("x", *files))


def test_unknown_choices_are_refused(tree):
    root = tree("real", "1.jpg")
    for option, message in (
        ({"layout": "folder"}, "did you mean folders"),
        ({"frame_selection": "odd"}, "choose one of even, bench, df40"),
        ({"frames": 0}, "at least 1"),
        ({"split": "dev"}, "the split 'dev' is unknown"),
        ({"layout": "csv"}, "is a folder, but the layout csv is a list file"),
    ):
        with pytest.raises(InputError, match=message):
            read_source(root, **option)


def test_links_are_followed_once(tree):
    root = tree("x", "real/1.jpg", "fake/simswap/1.jpg")
    (root / "real" / "loop").symlink_to(root / "real", target_is_directory=True)
    assert len(read_source(root).records) == 2
