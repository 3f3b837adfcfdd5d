"""Whole sources: places, determinism, interruption, and everything that can be wrong with a file."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2m_jax.data.faces import dataset as module
from r2m_jax.data.faces import largest_face
from r2m_jax.data.faces.dataset import CropRecipe, crop_dataset
from r2m_jax.data.faces.journal import NAME
from r2m_jax.data.faces.places import place_crops, side_path
from r2m_jax.data.faces.sources import read_labelled, read_unlabelled
from r2m_jax.data.index import read_index
from r2m_jax.data.readers import read_source
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


@contextlib.contextmanager
def track(what, total):
    yield lambda count=1, note="": None


def crop(source: Path, out: Path, *, frames: int = 4, workers: int = 1, **settings):
    records = read_labelled(source, frames=frames).records
    return crop_dataset(records, out, CropRecipe(**settings), root=source, workers=workers, track=track)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_source_of_photographs_and_films(photographs, tmp_path):
    out = tmp_path / "out"
    cropped = crop(photographs, out, size=128)
    films = [f"real/frames/talk/{number:03d}" for number in (0, 3, 7, 11)]  # 4 of 12, as np.linspace does
    places = ["real/frames/astronaut/000", *films, "fake/swap/frames/mirrored/000"]
    assert sorted(contents(out)) == sorted(
        [NAME, "index.csv", *(f"{p}.png" for p in places), *(f"{side_path(p, 'landmarks')}.npy" for p in places)]
    )
    assert {e.place: e.outcome for e in cropped.entries if e.outcome != "face"} == {
        "fake/swap/frames/cat/000": "no face",
        "real/frames/broken/000": "unreadable",
    }
    records = read_index(out / "index.csv")
    assert [(r.label, r.method, r.video, r.frame, Path(r.path).name) for r in records] == [
        (r.label, r.method, r.video, r.frame, Path(r.path).name) for r in cropped.records
    ]
    assert {(r.label, r.method, r.video) for r in records} == {
        (0, "", "astronaut"), (0, "", "talk"), (1, "swap", "swap/mirrored")
    }  # fmt: skip
    for record in records:
        image, landmarks = np.array(Image.open(record.path)), np.load(record.landmarks)
        assert image.shape == (128, 128, 3)
        assert landmarks.shape == (81, 2)
        assert np.linalg.norm(landmarks[:68] - largest_face(image).landmarks, axis=1).mean() < 3


def test_the_output_is_read_as_a_source(photographs, tmp_path):
    records = crop(photographs, tmp_path / "out").records
    read = read_source(tmp_path / "out", layout="folders").records
    what = ("path", "label", "method", "video")
    assert sorted(tuple(getattr(r, n) for n in what) for r in read) == sorted(
        tuple(getattr(r, n) for n in what) for r in records
    )


def test_processes_do_not_matter(photographs, tmp_path):
    crop(photographs, tmp_path / "one", workers=1)
    crop(photographs, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stopped_run_goes_on(photographs, tmp_path, monkeypatch):
    crop(photographs, tmp_path / "fresh")
    made: list[str] = []
    whole = module._crop_image

    def stopping(image, mask, entry, *rest):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(entry.place)
        return whole(image, mask, entry, *rest)

    out = tmp_path / "stopped"
    monkeypatch.setattr(module, "_CHUNK", 1)
    monkeypatch.setattr(module, "_crop_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        crop(photographs, out)
    assert not (out / "index.csv").exists()
    with (out / NAME).open("a") as file:
        file.write('{"place": "real/fra')  # as if it had been stopped while writing
    first, made = made, []
    monkeypatch.setattr(
        module, "_crop_image", lambda i, m, entry, *rest: (made.append(entry.place), whole(i, m, entry, *rest))[1]
    )
    assert crop(photographs, out).reused > 0
    assert contents(out) == contents(tmp_path / "fresh")
    assert len(set(first) & set(made)) <= 2  # of the film it was stopped in
    made.clear()
    again = crop(photographs, out)
    assert made == []
    assert again.reused == len(again.entries) - 1  # files that could not be read are tried again
    assert contents(out) == contents(tmp_path / "fresh")


def test_what_changed_is_done_again(photographs, tmp_path, astronaut):
    out = tmp_path / "out"
    crop(photographs, out)
    Image.fromarray(astronaut[:400, :400]).save(photographs / "real" / "broken.jpg")
    Image.fromarray(astronaut[::-1]).save(photographs / "real" / "astronaut.png")
    (out / "real" / "landmarks" / "talk" / "003.npy").unlink()
    outcomes = {entry.place: entry.outcome for entry in crop(photographs, out).entries}
    assert outcomes["real/frames/broken/000"] == "face"
    assert outcomes["real/frames/astronaut/000"] == "no face"
    assert (out / "real" / "landmarks" / "talk" / "003.npy").exists()


def test_other_folders_are_left_alone(photographs, tmp_path):
    out = tmp_path / "out"
    crop(photographs, out)
    before = contents(out)
    with pytest.raises(InputError, match="was made with --size 256, not 64"):
        crop(photographs, out, size=64)
    with pytest.raises(InputError, match="was made with --no-face skip, not centre"):
        crop(photographs, out, no_face="centre")
    with pytest.raises(InputError, match="not of this source"):
        crop(photographs, out, frames=5)
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="no unfinished output"):
        crop(photographs, tmp_path / "mine")
    (out / NAME).write_text("{}\nnothing\n")
    with pytest.raises(InputError, match="line 2"):
        crop(photographs, out)


def test_images_without_a_face(photographs, tmp_path):
    with pytest.raises(InputError, match=r"no face was found in .*cat.png"):
        crop(photographs, tmp_path / "refused", no_face="error")
    records = crop(photographs, tmp_path / "centre", no_face="centre", size=64).records
    cat = next(r for r in records if r.video.endswith("cat"))
    assert cat.landmarks == ""
    assert np.array(Image.open(cat.path)).shape == (64, 64, 3)
    with pytest.raises(InputError, match="no policy"):
        crop(photographs, tmp_path / "x", no_face="maybe")
    with pytest.raises(InputError, match="must be positive"):
        crop(photographs, tmp_path / "x", margin=0.0)
    assert not (tmp_path / "x").exists()


def test_nothing_to_crop(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(b"")
    records = read_unlabelled(tmp_path / "raw", Record("", 0), 1).records
    with pytest.raises(InputError, match=r"none of 1 images could be cropped: .*a.png"):
        crop_dataset(records, tmp_path / "out", CropRecipe(), track=track)


def test_frames_that_are_missing_are_named(tmp_path, astronaut, film):
    path = film(tmp_path / "film.mp4", [astronaut[20:260, 100:340]] * 3)
    records = [Record(str(path), 0, video="film", frame=frame) for frame in (0, 2, 3)]
    cropped = crop_dataset(records, tmp_path / "out", CropRecipe(), track=track)
    assert [(e.frame, e.outcome, "film.mp4" in e.reason) for e in cropped.entries] == [
        (0, "face", False), (2, "face", False), (3, "unreadable", True)
    ]  # fmt: skip
    assert [Path(r.path).name for r in cropped.records] == ["000.png", "002.png"]


def test_masks_are_carried_along(tmp_path, astronaut):
    Image.fromarray(astronaut).save(tmp_path / "face.png")
    eye = np.zeros((512, 512), np.uint8)
    eye[96:106, 198:208] = 255
    Image.fromarray(eye).save(tmp_path / "eye.png")
    Image.fromarray(eye[:400]).save(tmp_path / "cut.png")
    record = Record(str(tmp_path / "face.png"), 1, video="a", mask=str(tmp_path / "eye.png"))
    made = crop_dataset([record], tmp_path / "out", CropRecipe(), track=track).records[0]
    mask, landmarks = np.array(Image.open(made.mask)), np.load(made.landmarks)
    rows, columns = np.nonzero(mask)
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_allclose([columns.mean(), rows.mean()], landmarks[36:42].mean(axis=0), atol=5)
    wrong = Record(str(tmp_path / "face.png"), 1, video="a", mask=str(tmp_path / "cut.png"))
    with pytest.raises(InputError, match=r"cut.png has other sides"):
        crop_dataset([wrong], tmp_path / "wrong", CropRecipe(), track=track)


def test_images_listed_twice_are_cropped_once(tmp_path, astronaut):
    Image.fromarray(astronaut).save(tmp_path / "face.png")
    records = [Record(str(tmp_path / "face.png"), 0, video="a", dataset=name) for name in ("one", "two")]
    cropped = crop_dataset(records, tmp_path / "out", CropRecipe(), track=track)
    assert len(cropped.entries) == 1
    assert [(r.dataset, Path(r.path).name) for r in cropped.records] == [("one", "000.png"), ("two", "000.png")]


def test_places():
    def places(*files, root="/data"):
        records = [Record(f"/data/{path}", 0, video=video, frame=frame) for path, frame, video in files]
        return list(place_crops(records, root).values())

    assert places(("manipulated_sequences/Deepfakes/c23/videos/000_003.mp4", 12, "a")) == [
        "manipulated_sequences/Deepfakes/c23/frames/000_003/012"
    ]
    assert places(("Celeb-real/id0_0000.mp4", 1234, "a")) == ["Celeb-real/frames/id0_0000/1234"]
    assert places(("real/c23/frames/000/017.png", -1, "a")) == ["real/c23/frames/000/017"]
    assert places(("real/clip/1.png", -1, "a"), ("real/clip/2.png", -1, "a")) == [
        "real/frames/clip/1", "real/frames/clip/2"
    ]  # fmt: skip
    assert places(("real/x.tar.png", -1, "a")) == ["real/frames/x.tar/000"]
    assert places(("x.png", -1, "a"), ("x.jpg", -1, "b"), ("x.mp4", 7, "c"), ("y.mp4", 7, "d")) == [
        "frames/x_png/000", "frames/x_jpg/000", "frames/x_mp4/007", "frames/y/007"
    ]  # fmt: skip
    assert places(("a/x.png", -1, "a"), ("a/y.png", -1, "b"), root=None) == ["frames/x/000", "frames/y/000"]
    assert side_path("a/frames/frames/x/000", "masks") == "a/frames/masks/x/000"
    with pytest.raises(InputError, match="both be cropped to"):
        places(("x_png.mp4", 0, "a"), ("x.png", -1, "b"), ("x.jpg", -1, "c"))
    with pytest.raises(InputError, match="not below"):
        place_crops([Record("/other/x.png", 0)], "/data")


def test_unlabelled_sources(tmp_path, film):
    folder = tmp_path / "set"
    film(folder / "b.mp4", 10)
    for name in ("a.jpg", "frames/clip/1.png", "frames/clip/2.png", "deep/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "bad.mp4").write_bytes(b"")
    shared = Record("", 1, method="swap")
    found = read_unlabelled(folder, shared, 2).records
    assert {(r.path.removeprefix(f"{folder}/"), r.video, r.frame) for r in found} == {
        ("a.jpg", "a", -1), ("b.mp4", "b", 0), ("b.mp4", "b", 9), ("bad.mp4", "bad", 0), ("deep/c.png", "deep/c", -1),
        ("frames/clip/1.png", "clip", -1), ("frames/clip/2.png", "clip", -1),
    }  # fmt: skip
    assert {(r.label, r.method, r.dataset) for r in found} == {(1, "swap", "set")}
    assert [r.frame for r in read_unlabelled(folder / "b.mp4", shared, 3).records] == [0, 4, 9]
    assert [r.video for r in read_unlabelled(folder / "a.jpg", shared, 3).records] == ["a"]
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(InputError, match="no image or video"):
        read_unlabelled(tmp_path / "note.txt", shared, 1)
    with pytest.raises(InputError, match="does not exist"):
        read_unlabelled(tmp_path / "nowhere", shared, 1)


def test_the_journal_tells_everything(photographs, tmp_path):
    crop(photographs, tmp_path / "out")
    header, *entries = map(json.loads, (tmp_path / "out" / NAME).read_text().splitlines())
    assert header == {"size": 256, "margin": 1.3, "no_face": "skip"}
    assert [entry["place"] for entry in entries] == sorted(entry["place"] for entry in entries)
    broken = next(entry for entry in entries if entry["outcome"] == "unreadable")
    assert "broken.jpg" in broken["reason"]
    assert all(entry["confidence"] > 0 for entry in entries if entry["outcome"] == "face")
