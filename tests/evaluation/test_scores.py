import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2m_jax import InputError
from r2m_jax.data.records import Record
from r2m_jax.evaluation import ScoreTable, auc, read_scores
from r2m_jax.evaluation.scores import COLUMNS

RECORDS = [
    Record("ff/000/000.png", 0, video="000", dataset="FSAll_ff", domain="ff"),
    Record("ff/000/001.png", 0, video="000", dataset="FSAll_ff", domain="ff", split="val"),
    Record("ff/films/a,b.mp4", 1, family="FS", method="simswap", video='a,"b"', frame=7),
    Record("cdf/ünï 1.png", 1, family="EFS", method="ddim", video="001"),
    Record("ff/000/000.png", 0, video="000", dataset="FSAll_ff", domain="ff"),  # a real image listed twice
]


@pytest.fixture
def table(rng):
    scores = ScoreTable(RECORDS)
    scores.add("single", rng.normal(size=5).astype(np.float32))
    scores.add("double", np.asarray([-800.0, 1e-300, np.pi, 0.1, 800]))
    return scores


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_written_reads_back_exactly(table, tmp_path, suffix):
    table.write(tmp_path / f"scores.{suffix}")
    again = read_scores(tmp_path / f"scores.{suffix}")
    assert again.models == ["single", "double"]
    assert again.records == RECORDS
    for model in table.models:
        np.testing.assert_array_equal(again.logits[model], table.logits[model].astype(np.float64), strict=True)
    assert again.labels.tolist() == [0, 0, 1, 1, 0]
    assert again.families == ["FS", "EFS"]


def test_columns_of_the_csv(table, tmp_path):
    table.write(tmp_path / "scores.csv", relative_to=tmp_path)
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert rows[7] == {
        "path": "ff/films/a,b.mp4", "label": "1", "method": "simswap", "family": "FS", "domain": "", "dataset": "",
        "video": 'a,"b"', "frame": "7", "split": "test", "model": "double",
        "probability": f"{1 / (1 + np.exp(-np.pi)):.9g}", "logit": "3.141592653589793",
    }  # fmt: skip


def test_paths_below_a_folder_are_stored_relative_to_it(tmp_path):
    records = [Record(str(tmp_path / "data" / "a.png"), 0), Record(str(tmp_path / "database" / "b.png"), 1)]
    ScoreTable(records, {"m": np.zeros(2)}).write(tmp_path / "scores.csv", relative_to=tmp_path / "data")
    assert [r.path for r in read_scores(tmp_path / "scores.csv").records] == ["a.png", records[1].path]


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)))
def test_probabilities_of_a_foreign_file_keep_their_order_and_value(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("foreign") / "scores.csv"
    lines = [f"{number}.png,real,m,{value!r}" for number, value in enumerate(values.tolist())]
    path.write_text("\n".join(["path,label,model,probability", *lines]) + "\n")
    table = read_scores(path)
    found = table.probabilities("m")
    np.testing.assert_allclose(found, values, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(found[(values == 0) | (values == 1)], values[(values == 0) | (values == 1)])
    assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all()
    assert np.isfinite(table.logits["m"]).all()


def test_sigmoid_does_not_overflow():
    table = ScoreTable([Record(str(n), 0) for n in range(5)], {"m": np.asarray([-1e4, -40, 0, 40, 1e4], np.float32)})
    np.testing.assert_array_equal(table.probabilities("m")[[0, 2, 4]], [0, 0.5, 1])
    assert table.probabilities("m")[1] == pytest.approx(np.exp(-40), rel=1e-12)
    with pytest.raises(InputError, match="no model 'other', only m"):
        table.probabilities("other")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_of_a_foreign_file_may_come_in_any_order(table, tmp_path, rng, suffix):
    """Shuffled rows of two models describe the same table up to the order of the images."""
    table.write(tmp_path / "scores.parquet")
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    rng.shuffle(rows)
    if suffix == "csv":
        with (tmp_path / "mixed.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, [*reversed(COLUMNS), "note"])
            writer.writeheader()
            writer.writerows(row | {"note": "mine"} for row in rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mixed.parquet")
    mixed = read_scores(tmp_path / f"mixed.{suffix}")
    assert set(mixed.models) == set(table.models)
    for model in table.models:
        assert sorted(zip(map(str, mixed.records), mixed.logits[model].tolist(), strict=True)) == sorted(
            zip(map(str, table.records), table.logits[model].astype(float).tolist(), strict=True)
        )
        assert auc(mixed.labels, mixed.logits[model]) == auc(table.labels, table.logits[model])


def test_labels_of_foreign_files(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("model,logit,label,path\nm,0,Fake,a\nm,1,2,b\nm,2,REAL,c\nm,3,0,d\nm,4,1,e\n")
    table = read_scores(path)
    assert table.labels.tolist() == [1, 1, 0, 0, 1]
    assert {(r.split, r.frame, r.video) for r in table.records} == {("test", -1, "")}


def test_where_keeps_rows_of_all_models(table):
    part = table.where(np.asarray([True, False, True, False, True]))
    assert part.records == [RECORDS[0], RECORDS[2], RECORDS[4]]
    np.testing.assert_array_equal(part.logits["double"], [-800, np.pi, 800])
    with pytest.raises(InputError, match=r"shape \(2,\) does not choose among 5 images"):
        table.where(np.ones(2, bool))


def test_scores_that_do_not_fit_are_refused(table, tmp_path):
    with pytest.raises(InputError, match="already holds a model called 'single'"):
        table.add("single", np.zeros(5))
    with pytest.raises(InputError, match="4 scores for 5 images"):
        table.add("short", np.zeros(4))
    with pytest.raises(InputError, match=r"2 of 5 scores of 'broken' are NaN or infinite, first that of ff/000/001"):
        table.add("broken", np.asarray([0, np.nan, 0, np.inf, 0]))
    with pytest.raises(InputError, match="4 scores for 5 images"):
        ScoreTable(RECORDS, {"short": np.zeros(4)})
    with pytest.raises(InputError, match=r"scores\.txt does not end in \.csv or \.parquet"):
        table.write(tmp_path / "scores.txt")
    assert list(tmp_path.iterdir()) == []


HEAD = "path,label,model,logit,frame,split"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lacks the column path and label and model and logit"),
        ("path,label,model\n", r"lacks the column logit \(or probability\)"),
        (HEAD + "\n", "holds no scores"),
        (HEAD + "\na,0,m,1,,\nb,maybe,m,1,,\n", "row 2: the label 'maybe' is not real, fake, 0 or 1"),
        (HEAD + "\na,-1,m,1,,\n", "row 1: the label '-1' is not"),
        (HEAD + "\na,0,m,nan,,\nb,0,m,,,\n", "row 1: the logit 'nan' of a is not a finite number; 2 of 2"),
        (HEAD + "\na,0,m,inf,,\n", "the logit 'inf' of a is not a finite number"),
        (HEAD + "\na,0,m,1,x,\n", "row 1: the frame 'x' is not a whole number"),
        (HEAD + "\na,0,m,1,,dev\n", "row 1: the split 'dev' is not one of train, val, test"),
        (HEAD + "\n,0,m,1,,\n", "row 1: the path is empty"),
        (HEAD + "\na,0,,1,,\n", "row 1: the model has no name"),
        (HEAD + "\na,0,m,1\n", "row 1: 4 fields under 6 headings"),
        (HEAD + "\na,0,m,1,,\nb,1,m,2,,\na,0,n,1,,\nc,1,n,2,,\n", "'n' lacks b, which 'm' scored, and 1 more"),
        (HEAD + "\na,0,m,1,,\na,0,m,2,,\na,0,n,1,,\n", "'n' lacks a, which 'm' scored, and 0 more"),
        (HEAD.replace("logit", "probability") + "\na,0,m,1.5,,\n", r"the probability '1.5' of a is not a number in"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_scores_are_refused(tmp_path, text, says):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_scores(tmp_path / "scores.csv")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("scores.csv", None, "cannot be read .No such file"),
        ("scores.parquet", b"path,label\n", "cannot be read"),
        ("scores.csv", "path,ü\n".encode("latin-1"), "not a UTF-8 text file"),
        ("scores.json", b"{}", r"does not end in \.csv or \.parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        read_scores(tmp_path / name)
    assert name in str(raised.value)
