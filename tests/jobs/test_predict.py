"""Predictions as a user asks for them, through the function the command calls, and their parts."""

import csv
import io
import json
import os
import re
import shutil
import sys

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit, logit

from r2m_jax import InputError, load_detector, save_detector
from r2m_jax.checkpoints import provenance
from r2m_jax.checkpoints.calibration import Calibration, write_calibration
from r2m_jax.cli.predict import run
from r2m_jax.data.faces.crop import crop_face
from r2m_jax.data.faces.crop_folders import Framing, common_framing, framing_of
from r2m_jax.jobs.predict import in_batches
from r2m_jax.jobs.predict.inputs import gather
from r2m_jax.jobs.predict.media import PART, Item, Taken
from r2m_jax.jobs.predict.model import expected_framing
from r2m_jax.jobs.predict.rows import COLUMNS, MeanProbability, Row, RowWriter
from r2m_jax.jobs.train import train
from r2m_jax.progress import Reporter
from r2m_jax.recipes import TrainRecipe, load_recipe

OPTIONS = {
    "out": None, "as_json": False, "threshold": None, "faces": "auto", "explain": None, "batch_size": 8, "frames": 32,
    "per_frame": False, "workers": 2, "strict": False, "overwrite": False,
}  # fmt: skip


@pytest.fixture
def predict(base, capsys):
    """Rows that the command prints, as its JSON; ``model=`` replaces the random one."""

    def call(*paths, model=base, **options):
        run(model, [str(path) for path in paths], **OPTIONS | {"as_json": True} | options)
        out = capsys.readouterr().out
        return json.loads(out) if out else None

    return call


@pytest.fixture
def folder(tmp_path, rng):
    """``a/2.png``, ``a/10.png``, ``b.jpg``, and things that are no images."""
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for name in ("a/2.png", "a/10.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)).save(root / name)
    (root / "notes.md").write_text("hello")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="session")
def astronaut():
    return skimage.data.astronaut()


def film(path, images):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def directly(model, images):
    """Logits by the processor and the detector themselves."""
    detector = load_detector(model)
    both = np.asarray(detector(detector.preprocess(list(images))), np.float64)
    return both[:, 1] - both[:, 0]


def names(rows):
    return [row["path"].rpartition("/")[2] for row in rows]


def test_rows_are_what_the_detector_says(predict, folder, base):
    rows = predict(folder)
    assert names(rows) == ["b.jpg", "2.png", "10.png"]
    images = [Image.open(row["path"]).convert("RGB") for row in rows]
    expected = directly(base, images)
    # The processor rounds a resized image as the pipeline does, but normalises in another order.
    np.testing.assert_allclose([row["logit"] for row in rows], expected, atol=1e-4)
    np.testing.assert_allclose([row["probability"] for row in rows], expit(expected), atol=1e-4)
    for row in rows:
        assert row["prediction"] == ("fake" if row["probability"] > 0.5 else "real")
        assert row["error"] is row["frame"] is row["frames"] is None


@pytest.mark.parametrize("size", [1, 2, 64])
def test_batches_and_workers_do_not_matter(predict, folder, size):
    first, second = predict(folder, batch_size=1), predict(folder, batch_size=size, workers=0)
    assert names(first) == names(second)
    np.testing.assert_allclose([r["logit"] for r in first], [r["logit"] for r in second], atol=1e-5)


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 7))
def test_every_item_gets_its_own_logits(counts, size):
    """The logit of an image is its number; batches are full but for the last and those of items that pile up."""
    batches = []

    def score(images):
        batches.append(len(images))
        return images[:, 0, 0, :2].astype(np.float32) @ np.float32([1, 256])

    def stream():
        number = 0
        for count in counts:
            images = np.zeros((count, 1, 1, 3), np.uint8)
            for image in images:
                number += 1
                image[0, 0, :2] = number % 256, number // 256
            yield Taken(Item("x"), images, (-1,) * count, (), 0, "")

    found = list(in_batches(stream(), score, size))
    assert [len(taken.images) for taken, _ in found] == counts
    np.testing.assert_array_equal(np.concatenate([[], *(logits for _, logits in found)]), 1 + np.arange(sum(counts)))
    assert set(batches) <= {size}
    if all(counts):
        assert len(batches) == -(-sum(counts) // size)


def test_a_broken_model_is_no_score():
    item = Taken(Item("x"), np.zeros((1, 2, 2, 3), np.uint8), (-1,), (), 0, "")
    with pytest.raises(InputError, match="NaN or infinite"):
        list(in_batches([item], lambda images: np.full(len(images), np.nan), 4))


@given(st.lists(st.floats(-600, 600), min_size=1), st.integers(0, 20))
def test_mean_probability(logits, cut):
    mean = MeanProbability()
    mean.add(np.asarray(logits[:cut], np.float64))
    mean.add(np.asarray(logits[cut:], np.float64))
    assert mean.count == len(logits)
    assert np.isfinite(mean.logit)
    assert min(logits) - 1e-9 <= mean.logit <= max(logits) + 1e-9 * abs(max(logits)) + 1e-9
    expected = expit(logits).mean()
    assert expit(mean.logit) == pytest.approx(expected, abs=1e-12)
    if 1e-6 < expected < 1 - 1e-6:
        assert mean.logit == pytest.approx(logit(expected), abs=1e-8)


@given(
    st.lists(
        st.builds(
            Row,
            st.text(st.characters(codec="utf-8", exclude_characters="\r\0")),
            st.floats(0, 1),
            st.none() | st.integers(0, 10**6),
            probability=st.none() | st.floats(0, 1),
            logit=st.none() | st.floats(-100, 100),
            error=st.text(st.characters(codec="ascii", exclude_characters="\r\0")),
        )
    )
)
def test_all_forms_say_the_same(rows):
    texts = {}
    for form in ("csv", "tsv", "json", "jsonl"):
        file = io.StringIO()
        writer = RowWriter(file, form)
        for row in rows:
            writer.write(row)
        writer.close()
        texts[form] = file.getvalue()
    expected = [row.values() for row in rows]
    assert json.loads(texts["json"]) == expected
    assert [json.loads(line) for line in texts["jsonl"].split("\n")[:-1]] == expected
    for form, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        read = list(csv.DictReader(io.StringIO(texts[form], newline=""), dialect=dialect))
        assert [set(row) for row in read] == [set(COLUMNS)] * len(rows)
        for row, values in zip(read, expected, strict=True):
            assert {k: v or None for k, v in row.items()} == {
                k: None if v in (None, "") else str(v) for k, v in values.items()
            }


def test_files_are_named_in_every_way(folder, tmp_path, monkeypatch):
    found = [str(folder / name) for name in ("b.jpg", "a/2.png", "a/10.png")]

    def paths(*arguments):
        return [item.path for item in gather([str(a) for a in arguments], 4)]

    assert paths(folder) == found
    assert paths(folder / "**/*.*g") == [*found[1:], found[0]]
    assert paths(folder / "none*") == [str(folder / "none*")]
    lists = {
        "list.txt": "\ufeffimages/b.jpg\n\nimages\\a\\2.png\n" + found[2] + "\n",
        "list.csv": f"frame,path\n,images/b.jpg\n-1,images/a/2.png\n,{found[2]}\n",
        "list.json": json.dumps(["images/b.jpg", {"path": "images/a/2.png", "label": 1}, {"path": found[2]}]),
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert paths(tmp_path / name) == found
    (tmp_path / "frames.csv").write_text("path,frame\nx.mp4,7\nx.mp4,\n")
    work = gather([str(tmp_path / "frames.csv")], PART + 1)
    assert [item[1:] for item in work] == [(7, 0, 1), (-1, 0, 2), (-1, 1, 2)]
    monkeypatch.chdir(folder)
    assert paths("a", "b.jpg") == ["a/2.png", "a/10.png", "b.jpg"]  # as the user says it


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.txt", "\n\n", "lists no file"),
        ("l.csv", "file\nx.png\n", "lacks the column path"),
        ("l.csv", "path,frame\nx.mp4,first\n", "line 2: the frame 'first'"),
        ("l.csv", "path,frame\n,3\n", "line 2: the path is missing"),
        ("l.json", "[1]", "entry 1: a path"),
        ("l.json", "3", "no list of paths"),
        ("l.json", "[", "not valid JSON"),
        ("l.txt", b"\xff\xfe", "cannot be read as a list"),
    ],
)
def test_lists_that_are_none(tmp_path, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=says):
        gather([str(tmp_path / name)], 1)


def test_what_cannot_be_scored_is_told_and_passed_over(predict, folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "empty.mp4").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    rows = predict(folder, tmp_path / "gone.png", tmp_path / "nothing", folder / "notes.md")
    scored = [row for row in rows if row["error"] is None]
    assert names(scored) == ["b.jpg", "2.png", "10.png"]
    errors = {row["path"].rpartition("/")[2]: row["error"] for row in rows if row["error"]}
    assert errors.keys() == {"broken.png", "empty.mp4", "gone.png", "nothing", "notes.md"}
    assert all(name in reason for name, reason in errors.items())
    assert all(row["probability"] is row["prediction"] is None for row in rows if row["error"])
    out = tmp_path / "rows.csv"
    pictures = tmp_path / "pictures"
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        predict(folder, strict=True, out=out, explain=pictures)
    with pytest.raises(InputError, match=r"none of 2 files can be scored; the first: .*gone\.png does not exist"):
        predict(tmp_path / "gone.png", folder / "broken.png", out=out, explain=pictures)
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "nothing"]


def test_thresholds(predict, folder, base, tmp_path):
    model = tmp_path / "model"
    save_detector(load_detector(base), model)
    highest = max(row["probability"] for row in predict(folder))
    assert {row["prediction"] for row in predict(folder, threshold=1.0)} == {"real"}
    assert {row["prediction"] for row in predict(folder, threshold=0.0)} == {"fake"}
    write_calibration(
        model,
        Calibration(threshold=highest + 1e-6, fpr=0.01, split="val", images=9, real=4, sha256="0" * 64, auc=1.0),
    )
    rows = predict(folder, model=model)
    assert {row["prediction"] for row in rows} == {"real"}
    assert rows[0]["threshold"] == highest + 1e-6
    assert {row["threshold"] for row in predict(folder, model=model, threshold=0.25)} == {0.25}
    assert Row("x", 0.5, probability=0.5).prediction == "real"  # strictly above is fake


def test_outputs_are_written_with_what_made_them(predict, folder, tmp_path, base):
    rows = predict(folder)
    for suffix in ("csv", "json", "jsonl"):
        assert predict(folder, out=tmp_path / f"rows.{suffix}", as_json=False) is None
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert names(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text()))) == names(rows)
    made = json.loads((tmp_path / "rows.csv.r2m.json").read_text())
    assert made["inputs"][0]["sha256"] == provenance.sha256(base / "model.safetensors")
    assert made["counts"] == {
        "rows": 3, "failed": 0, "fake": sum(row["prediction"] == "fake" for row in rows), "images": 3, "several": 0,
        "faceless": 0,
    }  # fmt: skip
    # What was written is a list.
    assert names(predict(tmp_path / "rows.csv")) == names(rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"faces": "sometimes"}, "--faces 'sometimes'"),
        ({"frames": 0}, "--frames 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"workers": -1}, "--workers -1"),
    ],
)
def test_settings_out_of_range(predict, folder, options, says):
    with pytest.raises(InputError, match=says):
        predict(folder, **options)


def test_outputs_that_cannot_be(predict, folder, tmp_path):
    with pytest.raises(InputError, match=r"rows\.xlsx does not say a format"):
        predict(folder, out=tmp_path / "rows.xlsx")
    (tmp_path / "list.csv").write_text("path\nimages/b.jpg\n")
    with pytest.raises(InputError, match="would replace one of the files"):
        predict(tmp_path / "list.csv", out=tmp_path / "list.csv")
    with pytest.raises(InputError, match="images already exists"):
        predict(folder, explain=folder)


def test_a_model_without_a_head_is_refused(predict, folder, base, tmp_path):
    detector = load_detector(base)
    zero = {**detector.params, "head": jax.tree.map(jnp.zeros_like, detector.params["head"])}
    save_detector(detector.replace_params(zero), tmp_path / "zero")
    with pytest.raises(InputError, match="no trained head"):
        predict(folder, model=tmp_path / "zero")


def test_bfloat16_models_are_scored_as_stored(predict, folder, base, tmp_path):
    save_detector(load_detector(base, dtype="bfloat16"), tmp_path / "half")
    exact, coarse = (np.array([row["logit"] for row in predict(folder, model=m)]) for m in (base, tmp_path / "half"))
    np.testing.assert_allclose(coarse, exact, atol=0.05)
    assert (coarse != exact).any()


@pytest.fixture
def talk(tmp_path, rng):
    return film(tmp_path / "talk.mp4", [rng.integers(0, 255, (64, 64, 3)).astype(np.uint8) for _ in range(9)])


def test_a_film_is_the_mean_of_its_frames(predict, talk):
    frames = predict(talk, frames=4, per_frame=True)
    assert [row["frame"] for row in frames] == [0, 2, 5, 8]
    (row,) = predict(talk, frames=4)
    assert (row["frames"], row["frame"]) == (4, None)
    assert row["probability"] == pytest.approx(np.mean([frame["probability"] for frame in frames]), abs=1e-6)
    assert row["logit"] == pytest.approx(logit(row["probability"]), abs=1e-5)
    (whole,) = predict(talk, frames=PART + 1)  # more parts than the film has frames for
    assert whole["frames"] == 9


def test_one_frame_of_a_film_by_a_list(predict, talk, tmp_path):
    (tmp_path / "l.csv").write_text("path,frame\ntalk.mp4,5\ntalk.mp4,40\n")
    first, second = predict(tmp_path / "l.csv")
    expected = predict(talk, frames=4, per_frame=True)[2]
    assert (first["frame"], first["logit"]) == (5, pytest.approx(expected["logit"], abs=1e-5))
    assert "none of number 40" in second["error"]


def crop_aware(base, folder, **facts):
    save_detector(load_detector(base), folder, provenance=provenance.record("specialist", **facts))
    return folder


def test_models_trained_on_crops_get_crops(predict, base, tmp_path, astronaut):
    pytest.importorskip("dlib", reason="faces are found by dlib (extra `faces`)")
    size = {"size": 128, "margin": 1.2}
    model = crop_aware(base, tmp_path / "model", face_crops=size)
    crop = crop_face(astronaut, **size).image
    raw, cut = tmp_path / "raw.png", tmp_path / "crop.png"
    Image.fromarray(astronaut).save(raw)
    Image.fromarray(crop).save(cut)
    expected, whole = directly(base, [Image.fromarray(crop), Image.fromarray(astronaut)])
    found = [row["logit"] for row in predict(raw, cut, model=model)]
    np.testing.assert_allclose(found, [expected, expected], atol=1e-4)  # a crop is not cropped again
    assert abs(expected - whole) > 1e-3
    unknown = [row["logit"] for row in predict(raw, model=base)]
    np.testing.assert_allclose(unknown, [whole], atol=1e-4)
    np.testing.assert_allclose([row["logit"] for row in predict(raw, model=model, faces="never")], [whole], atol=1e-4)
    default = directly(base, [Image.fromarray(crop_face(astronaut).image)])
    np.testing.assert_allclose([r["logit"] for r in predict(raw, model=base, faces="always")], default, atol=1e-4)


def test_images_without_a_face_and_with_several(predict, base, tmp_path, astronaut, capsys):
    pytest.importorskip("dlib", reason="faces are found by dlib (extra `faces`)")
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "cat.png")
    small = np.asarray(Image.fromarray(astronaut).resize((460, 460)))
    two = np.zeros((512, 972, 3), np.uint8)
    two[:460, :460], two[:, 460:] = small, astronaut
    Image.fromarray(two).save(tmp_path / "two.png")
    cat, row = predict(tmp_path / "cat.png", tmp_path / "two.png", faces="always")
    assert cat["error"].endswith("cat.png: no face was found.")
    assert cat["probability"] is None
    expected = directly(base, [Image.fromarray(crop_face(two).image)])[0]
    assert row["logit"] == pytest.approx(expected, abs=1e-4)
    head = astronaut[20:260, 100:340]
    talk = film(tmp_path / "talk.mp4", [head, np.zeros_like(head), np.roll(head, 6, axis=1)])
    (mean,) = predict(talk, faces="always")
    assert mean["frames"] == 2
    rows = predict(talk, faces="always", per_frame=True)
    assert [bool(r["error"]) for r in rows] == [False, True, False]
    run(base, [str(tmp_path / "two.png")], **OPTIONS | {"faces": "always"})
    assert "1 images show several faces; the largest was scored" in capsys.readouterr().err


def test_what_a_model_expects(base, tmp_path):
    size = {"size": 128, "margin": 1.2}
    told = crop_aware(base, tmp_path / "told", face_crops=size)
    silent = crop_aware(base, tmp_path / "silent")

    def merged(*models):
        return provenance.record("merged", recipe={"models": {str(m): {"path": str(m)} for m in models}})

    assert expected_framing(merged(told, told)) == Framing(128, 1.2)
    assert expected_framing(merged(told, silent)) is None
    assert expected_framing(merged(told, tmp_path / "moved")) is None
    assert expected_framing({}) is None
    kinds = {
        kind: provenance.record("converted", source_kind=f"x, {kind} names") for kind in ("deepfakebench", "openai")
    }
    assert expected_framing(kinds["deepfakebench"]) == Framing(256, 1.3)
    assert expected_framing(kinds["openai"]) is None


def test_crops_are_known_by_their_folder(tmp_path):
    made, other = tmp_path / "made" / "frames" / "clip", tmp_path / "other"
    made.mkdir(parents=True)
    other.mkdir()
    (tmp_path / "made" / "crops.jsonl").write_text('{"size": 224, "margin": 1.1, "no_face": "skip"}\n{"place": "x"}\n')
    assert framing_of(str(made)) == Framing(224, 1.1)
    assert framing_of(str(other)) is None
    assert common_framing([f"{made}/0.png", f"{made}/1.png"]) == Framing(224, 1.1)
    assert common_framing([f"{made}/0.png", f"{other}/1.png"]) is None
    assert common_framing([]) is None


def test_pictures_of_every_row(predict, folder, talk, tmp_path):
    rows = predict(folder, talk, explain=tmp_path / "pictures", frames=3)
    with (tmp_path / "pictures" / "explanations.csv").open() as file:
        told = list(csv.DictReader(file))
    assert [entry["path"] for entry in told] == [row["path"] for row in rows]
    for entry, row in zip(told[:3], rows, strict=False):
        assert float(entry["logit"]) == pytest.approx(row["logit"], abs=1e-4)
        assert float(entry["map_sum"]) == pytest.approx(
            float(entry["logit"]) - float(entry["baseline_logit"]), abs=0.011
        )
    frames = predict(talk, frames=3, per_frame=True)
    highest = max(frames, key=lambda row: row["probability"])
    assert int(told[3]["frame"]) == highest["frame"]
    assert float(told[3]["logit"]) == pytest.approx(highest["logit"], abs=1e-4)
    for entry in told:
        with Image.open(tmp_path / "pictures" / entry["file"]) as picture:
            assert picture.format == "PNG"
    assert json.loads((tmp_path / "pictures" / "r2m.json").read_text())["kind"] == "predictions"


def test_a_terminal_gets_a_table(predict, base, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    monkeypatch.chdir(folder.parent)
    run(base, ["images"], **OPTIONS)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[0].split() == ["p(fake)", "file"]
    expected = predict("images")
    assert len(lines) == 1 + len(expected) == 5
    for line, row in zip(lines[1:], expected, strict=True):
        if row["error"]:
            assert line.split()[0] == "error"
            assert "broken.png cannot be read" in line
        else:
            assert line.split() == [f"{row['probability']:.4f}", row["prediction"], row["path"]]


@pytest.mark.integration
def test_the_command(r2m, base, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"no image")
    result = r2m("predict", base, folder, devices=2)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [bool(row["error"]) for row in rows] == [False, True, False, False]
    assert "1 could not be scored" in result.stderr
    assert "not calibrated" in result.stderr
    refused = r2m("predict", base, folder, "--strict", "--out", tmp_path / "rows.csv", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.integration
def test_thousands_of_files_and_faces_in_processes(predict, base, tmp_path, astronaut):
    pytest.importorskip("dlib", reason="faces are found by dlib (extra `faces`)")
    Image.fromarray(astronaut[20:260, 100:340]).save(tmp_path / "0.png")
    for number in range(1, 300):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    rows = predict(tmp_path, faces="always")
    assert names(rows) == [f"{number}.png" for number in range(300)]
    assert len({row["logit"] for row in rows}) == 1


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:.*normalises with mean")
def test_a_training_on_crops_is_remembered(base, index, tmp_path):
    crops = tmp_path / "crops"
    shutil.copytree(index.parent, crops)
    settings = ["name=x", f"model.base={base}", "steps=2", "batch_size=8", "data.augment=none", "window=1"]
    for name, framing in (("whole", None), ("cropped", Framing(96, 1.5))):
        if framing:
            (crops / "crops.jsonl").write_text('{"size": 96, "margin": 1.5, "no_face": "skip"}\n')
            framing_of.cache_clear()  # the folder changed while the process ran
        chosen = [*settings, f"data.index={crops / 'index.csv'}", f"out={tmp_path / name}"]
        train(load_recipe(TrainRecipe, "train", "specialist", chosen), reporter=Reporter(quiet=True))
        assert expected_framing(load_detector(tmp_path / name).provenance) == framing
