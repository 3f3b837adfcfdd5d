"""Each finding is found where it is, and not in the clean twin."""

from dataclasses import replace

import pytest

from r2m_jax.data.audit.facts import Facts
from r2m_jax.data.audit.findings import NAMES, find
from r2m_jax.data.records import Record


def clean() -> list[Record]:
    """Two splits of two real clips of two frames, and a fake of each."""
    records = []
    for split, clips in (("train", ("a", "b")), ("test", ("c", "d"))):
        for clip in clips:
            for frame in range(2):
                records.append(Record(f"/real/{clip}/{frame}.png", 0, video=clip, split=split, dataset="set"))
                path = f"/fake/{clip}_x/{frame}.png"
                records.append(Record(path, 1, "FS", "swap", video=clip, split=split, dataset="set"))
    return records


def facts_of(records: list[Record]) -> dict[str, Facts]:
    return {record.path: Facts(bytes=10, format="PNG", content=record.path) for record in records}


def names(records: list[Record], facts: dict[str, Facts] | None = None) -> list[str]:
    return [finding.name for finding in find(records, facts or facts_of(records))]


def test_a_clean_set_has_no_finding():
    """Forgeries share the video of their photograph, in one split: no leak."""
    assert names(clean()) == []


@pytest.mark.parametrize(("problem", "name"), [("missing", "missing-files"), ("truncated", "unreadable-files")])
def test_files_with_problems_are_named(problem, name):
    records = clean()
    facts = facts_of(records)
    facts[records[3].path] = Facts(problem=problem)
    (found,) = find(records, facts)
    assert (found.name, found.severity, found.count) == (name, "error", 1)
    assert records[3].path in found.examples[0]


def test_a_split_of_one_class():
    records = [record for record in clean() if not (record.split == "test" and record.label == 0)]
    (found,) = find(records, facts_of(records))
    assert found.name == "one-class"
    assert "test split has no real image" in found.text


def test_one_image_under_two_labels():
    records = clean()
    facts = facts_of(records)
    facts[records[0].path] = replace(facts[records[0].path], content=records[1].path)
    assert names(records, facts) == ["two-labels"]


def test_one_image_in_two_splits():
    records = clean()
    facts = facts_of(records)
    facts[records[0].path] = replace(facts[records[0].path], content=records[8].path)
    assert records[8].split == "test"
    assert names(records, facts) == ["shared-images"]


def test_df40s_validation_set():
    records = clean()
    records += [replace(record, split="val") for record in records if record.split == "test"]
    found = find(records, facts_of(records))
    assert [finding.name for finding in found] == ["val-is-test"]
    assert "all 8 images of" in found[0].text


def test_what_val_and_test_share_with_train_is_told_though_they_are_one():
    """Allowing DF40's val = test must not hide a leak into training."""
    records = clean()
    records += [replace(record, split="val") for record in records if record.split == "test"]
    records.append(replace(records[8], path="/real/c/9.png", split="train"))
    found = {finding.name: finding for finding in find(records, facts_of(records))}
    assert set(found) == {"val-is-test", "shared-videos"}
    assert found["shared-videos"].examples == ("c (test, train)",)


def test_a_part_of_test_used_for_validation():
    records = clean()
    records += [replace(record, split="val") for record in records[8:12]]
    (found,) = find(records, facts_of(records))
    assert (found.name, found.count) == ("val-is-test", 4)
    assert "all 4 images of val are in test" in found.text
    # With an image of its own, val shares images with test.
    new = [Record(f"/new/{name}/0.png", label, "FS" * label, video="e", split="val") for label, name in enumerate("rf")]
    assert set(names(records + new)) == {"shared-images", "shared-videos"}


def test_a_video_in_two_splits():
    records = clean()
    records[0] = replace(records[0], split="test")
    assert names(records) == ["shared-videos"]
    # The same name in another data set is another video.
    records[0] = replace(records[0], dataset="other")
    assert names(records) == []


def test_one_footage_in_different_splits_of_two_sets():
    """`FSAll_ff` and `FRAll_ff` are made from the same films of FaceForensics++."""
    records = [replace(record, domain="ff") for record in clean()]
    other = [replace(r, dataset="other", path="/other" + r.path) for r in records]
    swapped = [replace(r, split={"train": "test", "test": "train"}[r.split]) for r in other]
    collisions = ["folder-collisions"]  # each name stands for two clips now
    assert names(records + other) == collisions
    (found, _) = find(records + swapped, facts_of(records + swapped))
    assert (found.name, found.severity, found.count) == ("shared-video-names", "warning", 4)
    assert found.examples[0] == "ff a (test, train)"
    elsewhere = [replace(record, domain="cdf") for record in swapped]
    assert names(records + elsewhere) == collisions


def test_one_film_under_two_names():
    """Copies of a film are the same, frame by frame, and its frames are not repetitions of one another."""
    real = [Record("/a.mp4", 0, video="a", split="train", frame=frame) for frame in range(3)]
    fake = [Record("/b.mp4", 1, video="b", split="train", frame=frame) for frame in range(3)]
    facts = {"/a.mp4": Facts(content="one"), "/b.mp4": Facts(content="two")}
    assert names(real + fake, facts) == []
    facts["/b.mp4"] = facts["/a.mp4"]
    (found,) = find(real + fake, facts)
    assert (found.name, found.count) == ("two-labels", 3)


def test_repeated_images():
    records = clean()
    assert names([*records, records[0]]) == ["repeated-images"]


def test_colliding_folders():
    """`000` holds a real clip in one place and a fake one in another, as in DF40's synthesis sets."""
    records = clean()
    records = [replace(r, path=r.path.replace("/real/a/", "/real/000/")) for r in records]
    records = [replace(r, path=r.path.replace("/fake/b_x/", "/fake/000/")) for r in records]
    (found,) = find(records, facts_of(records))
    assert (found.name, found.severity, found.examples) == ("folder-collisions", "warning", ("000",))
    assert "1 of them for real and fake" in found.text


def test_fakes_without_family_beside_others():
    records = clean()
    records[1] = replace(records[1], family="")
    assert names(records) == ["no-family"]
    assert names([replace(record, family="") for record in clean()]) == []


def test_errors_come_first_and_every_name_is_listed():
    records = clean()
    records = [replace(records[0], split="test"), *records[1:], records[2]]
    found = find(records, facts_of(records))
    assert [finding.severity for finding in found] == ["error", "warning"]
    assert {finding.name for finding in found} <= set(NAMES)
