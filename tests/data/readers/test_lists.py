"""ForensicHub's JSON, CSV, Parquet indexes and GenD's text files."""

import pytest

from r2m_jax.data.index import write_index
from r2m_jax.data.readers import read_source
from r2m_jax.data.records import Record
from r2m_jax.errors import InputError


def test_forensichub(listing, golden, tmp_path):
    path = listing(
        "casia",
        [
            {"path": "a/1.png", "label": 0},
            {"path": "DF40\\simswap\\ff\\frames\\v\\2.png", "label": 1},
            {"path": "/x/3.png", "label": 1},
        ],
        raw=True,
    )
    reading = read_source(path)
    assert reading.layout == "forensichub"
    assert [(r.path, r.label, r.method) for r in reading.records] == [
        (f"{tmp_path}/a/1.png", 0, ""),
        (f"{tmp_path}/DF40/simswap/ff/frames/v/2.png", 1, "simswap"),
        ("/x/3.png", 1, ""),
    ]
    with pytest.raises(InputError, match="entry 1: the label is missing"):
        read_source(listing("b", [{"path": "a"}], raw=True))


def test_csv_with_clips(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "path,label,video,dataset\n" + "".join(f"f/{i}.png,simswap_Fake,v,set\n" for i in (10, 9, 1)) + "r.png,real,,\n"
    )
    reading = read_source(path, frames=2, root="/data")
    assert [(r.path, r.label, r.video, r.dataset, r.family) for r in reading.records] == [
        ("/data/f/1.png", 1, "v", "set", "FS"),
        ("/data/f/10.png", 1, "v", "set", "FS"),
        ("/data/r.png", 0, "r", "mine", ""),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na\n", "lacks the column label"),
        ("path,label\na,odd\n", "line 2: the label 'odd' is unknown"),
        ("path,label,split\na,0,dev\n", "line 2: the split 'dev'"),
        ("path,label,frame\na,0,x\n", "line 2: the frame 'x'"),
        ("path,label\n,0\n", "line 2: the path is missing"),
        ("path,label\n", "holds no image"),
    ],
)
def test_csv_mistakes_name_their_line(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_source(path)


def test_an_index_comes_back_as_it_was(tmp_path):
    records = [
        Record(f"{x}.png", 1, "FS", "simswap", "ff", "v", "train", "FSAll_ff", "c23", -1, f"{x}.npy")
        for x in (f"{tmp_path}/{i}" for i in range(3))
    ]
    records.append(Record(f"{tmp_path}/r.mp4", 0, video="r", split="val", dataset="x", frame=7))
    for name in ("i.parquet", "i.csv"):
        write_index(records, tmp_path / name)
        assert read_source(tmp_path / name).records == records
    index = tmp_path / "index.csv"
    write_index(records, index)
    assert read_source(tmp_path).records == records  # a folder with its own index


def test_gend(tree, golden):
    root = tree("FF", "train/real.txt", "train/DF.txt", "test/F2F.txt", "test/real.txt")
    for name, lines in {
        "train/real.txt": "datasets/FF/real/000/025.png\ndatasets/FF/real/000/026.png\n",
        "train/DF.txt": "datasets/FF/DF/000_003/025.png\n",
        "test/F2F.txt": "datasets/FF/F2F/000_003/025.png\n\n",
        "test/real.txt": "datasets/FF/real/001/025.png\n",
    }.items():
        (root / name).write_text(lines)
    reading = read_source(root, root="/gend", frames=1)
    assert reading.layout == "gend"
    assert golden(reading.records) == {
        ("train", "real", "", "ff"): 1,
        ("train", "FS", "FF-DF", "ff"): 1,
        ("test", "FR", "FF-F2F", "ff"): 1,
        ("test", "real", "", "ff"): 1,
    }
    assert reading.records[0].path.startswith("/gend/datasets/FF/")
    assert [r.label for r in read_source(root / "train" / "DF.txt").records] == [1]
    (root / "train" / "odd.txt").write_text("a/b.png\n")
    with pytest.raises(InputError, match="'odd' is neither real, fake nor a known method"):
        read_source(root)
