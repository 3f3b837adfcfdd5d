"""DeepfakeBench's and DF40's lists: every dialect and trap of the published files, with counts told by hand."""

import json

import pytest

from r2m_jax.data.readers import read_source
from r2m_jax.errors import InputError


def video(label, paths, **more):
    return {"label": label, "frames": paths, **more}


@pytest.fixture
def faceforensics(listing, numbered):
    real = "FaceForensics++/original_sequences/youtube/{}/frames/{}"
    fake = "FaceForensics++/manipulated_sequences/{}/{}/frames/{}"
    levels = ("c23", "c40")
    return listing(
        "FaceForensics++",
        {
            "FF-real": {
                split: {c: {v: video("FF-real", numbered(real.format(c, v), 4))} for c in levels}
                for split, v in (("train", "000"), ("val", "001"), ("test", "003"))
            },
            "FF-DF": {"train": {c: {"000_003": video("FF-DF", numbered(fake.format("Deepfakes", c, "000_003"), 4))}
                                for c in levels}},
            "FF-FS": {"train": {c: {"000_003": video("FF-FS", numbered(fake.format("FaceSwap", c, "000_003"), 4))}
                                for c in levels}},
        },
    )  # fmt: skip


def test_compression_levels_are_found_by_structure(faceforensics, golden):
    reading = read_source(faceforensics, compression="c23")
    assert reading.layout == "deepfakebench"
    assert golden(reading.records) == {
        ("train", "real", "", "ff"): 4,
        ("val", "real", "", "ff"): 4,
        ("test", "real", "", "ff"): 4,
        ("train", "FS", "FF-DF", "ff"): 4,
        ("train", "FS", "FF-FS", "ff"): 4,
    }
    assert {r.compression for r in reading.records} == {"c23"}


def test_levels_read_together_stay_data_sets_of_their_own(faceforensics):
    reading = read_source(faceforensics)
    assert {(r.dataset, r.compression) for r in reading.records} == {
        ("FaceForensics++", "c23"),
        ("FaceForensics++_c40", "c40"),
    }
    assert any("c23, c40" in note for note in reading.notes)


def test_one_clip_name_under_two_methods_is_two_clips(faceforensics):
    records = read_source(faceforensics, compression="c23").records
    assert len({r.clip for r in records if r.label}) == 2


def test_c40_in_the_name_is_the_base_name_inside(listing, numbered):
    content = {"FF-DF": {"test": {c: {"1": video("FF-DF", numbered(f"a/{c}/1", 2))} for c in ("c23", "c40")}}}
    reading = read_source(listing("FF-DF_c40", {"FF-DF": content}, raw=True))
    assert {(r.dataset, r.compression) for r in reading.records} == {("FF-DF_c40", "c40")}
    assert len(reading.records) == 2


def test_a_level_that_is_not_there_is_refused(faceforensics):
    with pytest.raises(InputError, match=r"no compression level raw; it has c23, c40"):
        read_source(faceforensics, compression="raw")


def test_df40_collective_list(listing, numbered, golden):
    root = "deepfakes_detection_datasets"
    real = "FaceForensics++/original_sequences/youtube/c23/frames/001"
    path = listing(
        "FSAll_ff",
        {
            "FSAll_Real": {
                "train": {
                    "simswap_001": video("FSAll_Real", numbered(real, 3)),
                    "e4s_001": video("FSAll_Real", numbered(real, 3)),
                }
            },
            "FSAll_Fake": {
                "train": {
                    "a": video("FSAll_Fake", numbered(f"{root}/DF40_train/simswap/frames/001_870", 3)),
                    "b": video("FSAll_Fake", numbered(f"{root}/DF40_train/e4s/frames/001_870", 3)),
                },
                "test": {"c": video("FSAll_Fake", numbered(f"{root}/DF40/blendface/ff/frames/002_003", 3))},
            },
        },
    )  # fmt: skip
    reading = read_source(path)
    assert golden(reading.records) == {
        ("train", "real", "", "ff"): 6,  # multiplicity is kept
        ("train", "FS", "simswap", "ff"): 3,
        ("train", "FS", "e4s", "ff"): 3,
        ("test", "FS", "blendface", "ff"): 3,
    }
    assert any("3 images are listed more than once" in note for note in reading.notes)
    assert any("the split test holds fake images only" in warning for warning in reading.warnings)


def test_video_named_twice_in_the_text_is_kept_twice(tmp_path):
    entry = json.dumps(video("simswap_Fake", ["a/0.png"]))
    path = tmp_path / "simswap_ff.json"
    path.write_text(f'{{"simswap_ff": {{"simswap_Fake": {{"test": {{"v": {entry}, "v": {entry}}}}}}}}}')
    assert len(read_source(path).records) == 2


def test_pseudo_videos_of_whole_synthesis_do_not_merge_with_real_clips(listing):
    path = listing(
        "StyleGAN2_ff",
        {
            "StyleGAN2_Real": {"test": {"000": video("StyleGAN2_Real", ["FaceForensics++/x/frames/000/000.png"])}},
            "StyleGAN2_Fake": {
                "test": {"000": video("StyleGAN2_Fake", [f"DF40/StyleGAN2/ff/000/seed{n}.png" for n in ("0188", "19")])}
            },
        },
    )
    reading = read_source(path, frames=1, frame_selection="bench")
    assert [r.path.rpartition("/")[2] for r in reading.records] == ["000.png", "seed19.png"]  # natural order
    assert len({r.clip for r in reading.records}) == 2
    assert any("used by real and by fake clips" in note for note in reading.notes)


def test_df40_order_is_the_lists(listing):
    paths = [f"a/frames/v/{n}.png" for n in ("030", "002", "011")]
    path = listing("simswap_cdf", {"simswap_Fake": {"test": {"v": video("simswap_Fake", paths)}}})
    names = [
        [r.path[-7:-4] for r in read_source(path, frames=2, frame_selection=how).records]
        for how in ("df40", "bench", "even")
    ]
    assert names == [["030", "002"], ["002", "011"], ["002", "030"]]


def test_backslashes_prefix_root_and_both_spellings(listing, tmp_path):
    raw = "D:\\x\\deepfake_detection_datasets\\DF40\\simswap\\cdf\\frames\\id0_id1_0000\\000.png"
    path = listing("simswap_cdf", {"simswap_Fake": {"test": {"v": video("simswap_Fake", [raw])}}})
    record = read_source(path, root="/data", strip_prefix=r"D:\x\deepfakes_detection_datasets").records[0]
    assert record.path == "/data/DF40/simswap/cdf/frames/id0_id1_0000/000.png"
    reading = read_source(path)
    assert any("absolute Windows paths" in warning for warning in reading.warnings)

    (tmp_path / "data" / "deepfake_detection_datasets").mkdir(parents=True)
    other = listing(
        "e4s_ff", {"e4s_Fake": {"test": {"v": video("e4s_Fake", ["./deepfakes_detection_datasets/a/0.png"])}}}
    )
    record = read_source(other, root=tmp_path / "data").records[0]
    assert record.path == f"{tmp_path}/data/deepfake_detection_datasets/a/0.png"
    record = read_source(other, root=tmp_path / "data" / "deepfake_detection_datasets").records[0]
    assert record.path == f"{tmp_path}/data/deepfake_detection_datasets/a/0.png"


def test_a_prefix_ends_at_a_folder(listing):
    path = listing("e4s_ff", {"e4s_Fake": {"test": {"v": video("e4s_Fake", ["data2/a/0.png"])}}})
    reading = read_source(path, root="/r", strip_prefix="data")
    assert reading.records[0].path == "/r/data2/a/0.png"
    assert any("do not begin with the prefix data" in warning for warning in reading.warnings)


def test_landmarks_and_masks_by_path_component(listing, tree):
    root = tree(
        "frames_of_mine", "a/frames/v_frames/000.png", "a/landmarks/v_frames/000.npy", "a/masks/v_frames/000.png"
    )
    path = listing("e4s_ff", {"e4s_Fake": {"test": {"v": video("e4s_Fake", ["a/frames/v_frames/000.png"])}}})
    record = read_source(path, root=root).records[0]
    assert record.landmarks == f"{root}/a/landmarks/v_frames/000.npy"
    assert record.mask == f"{root}/a/masks/v_frames/000.png"
    listed = listing(
        "uniface_ff",
        {"uniface_Fake": {"test": {"v": video("uniface_Fake", ["b/0.png", "b/1.png"], masks=["m/1.png"])}}},
    )
    assert [r.mask for r in read_source(listed, root="/r").records] == ["", "/r/m/1.png"]


def test_labels_rule_and_refusal(listing):
    path = listing("mine", {"g": {"test": {"v": video("warped", ["a/0.png"]), "w": video("x_FakeC", ["a/1.png"])}}})
    with pytest.raises(InputError, match=r"g/test/v: the label 'warped' is unknown .* --label warped=fake"):
        read_source(path)
    records = read_source(path, labels={"warped": 0}).records
    assert [r.label for r in records] == [0, 1]


def test_own_label_beats_the_group(listing):
    path = listing("e4s_ff", {"e4s_Real": {"test": {"v": video("e4s_Fake", ["a/0.png"])}}})
    reading = read_source(path)
    assert reading.records[0].label == 1
    assert any("under a label of the other class" in warning for warning in reading.warnings)


def test_val_equal_to_test_and_leaks_are_said(listing):
    same = {"v": video("e4e_Fake", ["a/0.png", "a/1.png"])}
    path = listing("e4e_ff", {"e4e_Fake": {"train": {"v": video("e4e_Fake", ["a/1.png"])}, "val": same, "test": same}})
    warnings = read_source(path).warnings
    assert any("val and test are the same 2 images" in w for w in warnings)
    assert any("train and val share 1 images" in w for w in warnings)
    assert any("train and test share 1 images" in w for w in warnings)


def test_empty_and_missing_frames_are_counted(listing, tree):
    root = tree("data", "a/0.png")
    videos = {
        "v": video("e4s_Fake", ["a/0.png", "a/1.png"]),
        "empty": video("e4s_Fake", []),
        "none": {"label": "e4s_Fake"},
    }
    path = listing("e4s_ff", {"e4s_Fake": {"test": videos}})
    reading = read_source(path, root=root, check_files=True)
    assert [r.path for r in reading.records] == [f"{root}/a/0.png"]
    assert any("2 clips have no frames" in w for w in reading.warnings)
    assert any("1 of 2 listed files do not exist" in w for w in reading.warnings)
    with pytest.raises(InputError, match="none of the 2 listed files exists"):
        read_source(path, root="/nowhere", check_files=True)
    assert any("--root" in w for w in read_source(path, root="/nowhere").warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": {}}, r"top key of .* is 'other', but must equal the file's stem 'e4s_ff'"),
        ({"e4s_ff": {"e4s_Fake": {"testing": {}}}}, "split 'testing' is not one of train, val, test"),
        ({"e4s_ff": {"e4s_Fake": {"test": {"c99": {"v": {}}}}}}, "'c99' is neither a video .* nor a compression level"),
        ({"e4s_ff": {"e4s_Fake": {"test": {"v": {"label": "e4s_Fake", "frames": "a.png"}}}}}, "a list of paths"),
        ({"e4s_ff": {"e4s_Fake": {"test": {}}}}, "holds no image"),
        ({"e4s_ff": {"e4s_Fake": ["v"]}}, "an object was expected"),
    ],
)  # fmt: skip
def test_other_structures_are_refused_by_name(listing, content, message):
    with pytest.raises(InputError, match=message):
        read_source(listing("e4s_ff", content, raw=True))


def test_invalid_json_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_source(path)


def test_a_user_called_as_a_method_is_not_the_method(listing):
    path = listing(
        "FRAll_cdf", {"FRAll_Fake": {"test": {"v": video("FRAll_Fake", ["/home/lia/x/wav2lip/cdf/frames/v/0.png"])}}}
    )
    assert read_source(path).records[0].method == "wav2lip"
