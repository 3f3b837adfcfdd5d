import json
import math
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_jax import InputError
from r2m_jax.data.records import Record
from r2m_jax.evaluation import ScoreTable, auc, family_auc, score
from r2m_jax.evaluation.plots import contact_sheet, heat_map
from r2m_jax.evaluation.report import Section, bullets, drawing, page, paragraphs, picture, scrolling
from r2m_jax.evaluation.retention import drop
from r2m_jax.evaluation.tables import Table
from r2m_jax.models import apply_detector


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.5, 0.9])), min_size=4, max_size=40).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    )
)
def test_auc_is_the_chance_of_ranking_a_pair_right(rows):
    labels, scores = np.asarray([a for a, _ in rows]), np.asarray([b for _, b in rows])
    pairs = [(f > r) + 0.5 * (f == r) for f in scores[labels == 1] for r in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("case", "peer"), [("distinct_folders", "df40"), ("colliding_folders", "df40"), ("ties", "deepfakebench")]
)
def test_auc_of_the_peers_golden_cases(shared_data, case, peer):
    """Frame AUC as the peers' real code computed it, on the inputs it was run on."""
    golden = json.loads((shared_data.parent / "golden" / "deepfakebench_metrics.json").read_text())[case]
    scores, labels = zip(*((row[-2], row[-1]) for row in golden["rows"]), strict=True)
    assert auc(labels, scores) == pytest.approx(golden[peer]["auc"], abs=1e-12)


def test_auc_without_a_class_or_with_nan():
    assert math.isnan(auc([1, 1], [0.1, 0.2]))
    with pytest.raises(InputError, match="1 of 2 scores are NaN"):
        auc([0, 1], [0.1, math.nan])


@pytest.fixture
def table():
    records = [Record(f"r{i}.png", 0, video=f"r{i}") for i in range(3)]
    records += [Record(f"s{i}.png", 1, family="FS", method="blend", video=f"s{i}") for i in range(2)]
    records += [Record("e.png", 1, family="EFS", method="pca", video="e")]
    scores = ScoreTable(records)
    scores.add("good", np.asarray([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]))
    scores.add("odd", np.asarray([-3.0, -2.0, 1.5, 1.0, 2.0, -4.0]))
    return scores


def test_family_auc_compares_each_family_with_all_real_images(table):
    aucs = family_auc(table)
    assert aucs["good"] == {"FS": 1.0, "EFS": 1.0, "mean": 1.0}
    assert aucs["odd"]["FS"] == pytest.approx(5 / 6)
    assert aucs["odd"]["EFS"] == 0.0
    assert aucs["odd"]["mean"] == pytest.approx(5 / 12)
    assert drop(aucs, "odd", ["good"], ["FS", "EFS"]) == {
        "FS": pytest.approx(1 / 6), "EFS": 1.0, "mean": pytest.approx(7 / 12), "max": 1.0,
    }  # fmt: skip
    with pytest.raises(InputError, match="real and fake"):
        family_auc(ScoreTable([Record("r", 0)], {"m": np.zeros(1)}))


def test_scoring_in_batches_is_scoring_at_once(detector, rng):
    images = rng.integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    half = (0.5, 0.5, 0.5)
    run = score(apply_detector(detector.config), half, half, batch_size=4)
    scores = run(detector.params, images)
    logits = detector((images / 255 - 0.5).astype(np.float32) / 0.5)
    np.testing.assert_allclose(scores, logits[:, 1] - logits[:, 0], atol=1e-4)
    assert run(detector.params, images[:0]).shape == (0,)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, detector.params)
    with pytest.raises(InputError, match="11 of 11 scores are NaN"):
        run(broken, images)


@pytest.fixture
def small_table():
    groups = {"Alone": ["a"], "Merged": ["b_1", "c²"]}
    values = {"a": [0.99, 0.0], "b_1": [0.5, 0.1], "c²": [0.75, math.nan]}
    return Table("AUC", ["FS", "worst"], groups, values, frozenset({"worst"}))


def test_tables(small_table):
    markdown = small_table.markdown()
    assert "| c² | **0.750** | – |" in markdown
    assert "| a | 0.990 | 0.000 |" in markdown  # a group of one has no best
    assert {line.count("|") for line in markdown.splitlines()} == {4}
    latex = small_table.latex()
    assert r"b\_1 & 0.500 & 0.100 \\" in latex
    assert r"c$^2$ & \textbf{0.750} & – \\" in latex
    assert small_table.html().count("<tr") == 6


class Balanced(HTMLParser):
    """Fails on tags that do not close in order."""

    VOID = ("meta", "img", "link")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained_and_escaped(small_table, rng):
    sheet = contact_sheet([rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)] * 2)
    svg = heat_map(np.asarray([[0.4, 0.9]]), ["m & n"], ["x", "y"], title="heat", low=0, high=1)
    body = scrolling(small_table.html()) + picture(sheet, 'a "sheet"', "below") + drawing(svg, "heat")
    text = page("T <1>", "lead & more", [Section("S", body + paragraphs(["<script>"]) + bullets(["a<b"]))])
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "<script>" not in text
    assert "T &lt;1&gt;" in text
    for foreign in ('src="http', 'href="http', "url(http", "@import"):
        assert foreign not in text


def test_contact_sheet_places_images(rng):
    import io

    from PIL import Image

    rows = [rng.integers(0, 256, (3, 8, 6, 3), dtype=np.uint8) for _ in range(2)]
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(rows, gap=2))))
    assert sheet.shape == (2 * 8 + 2, 3 * 6 + 2 * 2, 3)
    np.testing.assert_array_equal(sheet[10:18, 8:14], rows[1][1])


def test_figures_are_the_same_every_time():
    figures = {heat_map(np.asarray([[0.4]]), ["r"], ["c"], title="t", low=0, high=1) for _ in range(2)}
    assert len(figures) == 1
