"""Tables and the page they stand on; sorting and the phone's width in a real browser where there is one."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from r2m_jax import InputError
from r2m_jax.evaluation.plots import heat_map
from r2m_jax.evaluation.report import Section, drawing, page, paragraphs, preformatted, tabulated
from r2m_jax.evaluation.tables import Table

GROUPS = {"Alone": ["a"], "Merged": ["b_1", "c², α = 0.5", "d|e"]}
VALUES = {"a": [0.99, 0.0], "b_1": [0.5, 0.1], "c², α = 0.5": [0.75, math.nan], "d|e": [0.9, -0.05]}
INTERVALS = {"b_1": [(0.4, 0.6), None], "d|e": [(0.85, 0.95), (-0.1, 0.02)], "a": [(math.nan, 1.0), (0.0, 0.0)]}


@pytest.fixture
def table():
    return Table(
        "AUC", ["FS", "worst <drop>"], GROUPS, VALUES, frozenset({"worst <drop>"}), intervals=INTERVALS,
        caption="On 10 & 20 images.", source="out/all scores.csv",
    )  # fmt: skip


class Cells(HTMLParser):
    """Texts of the cells of every row, and the links."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.cell = self.cell or tag in ("td", "th")
        self.links += [value for name, value in attrs if name == "href"]

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


def test_intervals_stand_beside_their_numbers(table):
    assert "| b_1 | 0.500 (0.400–0.600) | 0.100 |" in table.markdown()
    assert r"| d\|e | **0.900** (0.850–0.950) | **-0.050** (-0.100 to 0.020) |" in table.markdown()
    assert "| a | 0.990 | 0.000 (0.000–0.000) |" in table.markdown()
    assert r"b\_1 & 0.500 {\scriptsize [0.400, 0.600]} & 0.100 \\" in table.latex()
    assert r"\textbf{$-$0.050} {\scriptsize [$-$0.100, 0.020]} \\" in table.latex()
    assert r"c$^2$, $\alpha$ = 0.5 & 0.750 & – \\" in table.latex()
    rows = Cells(table.html()).rows
    assert rows[0] == ["Model", "FS", "worst <drop>"]
    assert rows[-1] == ["d|e", "0.900 0.850–0.950", "−0.050 −0.100 to 0.020"]
    assert [row for row in rows if len(row) == 1] == [["Alone"], ["Merged"]]


def test_every_form_of_a_table_holds_the_same_numbers(rng):
    names = [f"m{i}" for i in range(4)]
    values = {name: rng.normal(size=3).tolist() for name in names}
    table = Table("t", ["x", "y", "z"], {"g": names}, values, decimals=2)
    expected = [f"{v:.2f}" for name in names for v in values[name]]
    number = r"-?\d+\.\d\d"
    assert re.findall(number, table.markdown()) == expected
    assert re.findall(number, table.latex().replace("$-$", "-")) == expected
    html = table.html()
    assert re.findall(rf">({number})<", html.replace("−", "-")) == expected
    assert [float(v) for v in re.findall(r'data-value="([^"]+)"', html)] == [v for n in names for v in values[n]]


def test_tables_of_wrong_widths_and_infinite_numbers_are_refused():
    with pytest.raises(InputError, match=r"row 'b' .* needs 2 numbers"):
        Table("t", ["x", "y"], {"g": ["a", "b"]}, {"a": [1.0, 2.0]})
    with pytest.raises(InputError, match="needs 1 numbers"):
        Table("t", ["x"], {"g": ["a"]}, {"a": [1.0]}, intervals={"a": []})
    with pytest.raises(InputError, match="infinite"):
        Table("t", ["x"], {"g": ["a"]}, {"a": [math.inf]})


def test_a_table_links_to_its_scores_and_a_page_to_its_sections(table):
    sections = [Section(title, tabulated(table)) for title in ("One & two", "One: two", "Über α")]
    text = page("T", "lead", sections)
    links = Cells(text).links
    assert links.count("out/all%20scores.csv") == 3
    anchors = [link[1:] for link in links if link.startswith("#")]
    assert len(set(anchors)) == 3
    assert anchors == re.findall(r'<section id="([^"]+)">', text)
    assert "On 10 &amp; 20 images." in text
    assert "<nav" not in page("T", "lead", sections[:2])


def test_drawings_do_not_shrink_below_what_can_be_read():
    svg = heat_map(np.eye(3), ["a", "b", "c"], ["x", "y", "z"], title="t")
    points = float(re.search(r'width="([\d.]+)pt"', svg).group(1))
    least = float(re.search(r"min-width:(\d+)px", drawing(svg, "c")).group(1))
    assert least == pytest.approx(0.7 * points * 96 / 72, abs=0.5)


_WITHIN = """
<script type="module">
const table = document.querySelector("table"), head = table.tHead.rows[0];
const names = () => [...table.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent);
const root = document.documentElement;
const found = { width: root.scrollWidth, seen: root.clientWidth, frame: innerWidth, orders: [] };
for (const column of [1, 1, 1, 2, 0]) {
  head.cells[column].querySelector("button").click();
  found.orders.push([[...head.cells].map(cell => cell.ariaSort), names()]);
}
parent.postMessage(JSON.stringify(found), "*");
</script>"""
_AROUND = """<!doctype html><iframe src="page.html" style="width:390px;height:800px;border:0"></iframe><script>
addEventListener("message", event => { document.body.dataset.found = event.data; });
</script>"""


@pytest.mark.integration
def test_sorting_and_a_phones_width_in_a_browser(table, tmp_path, rng):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to open the page with")
    wide = heat_map(rng.random((3, 9)), ["a", "b", "c"], [f"column {i}" for i in range(9)], title="t")
    body = tabulated(table) + drawing(wide, "c") + preformatted("x" * 300) + paragraphs(["y" * 300])
    text = page("T" * 80, "lead", [Section("S" * 80, body)] * 3)
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{_WITHIN}</body>"), encoding="utf-8")
    (tmp_path / "around.html").write_text(_AROUND, encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}",
             "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
    made = subprocess.run(
        [browser, *quiet, (tmp_path / "around.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(re.search(r'data-found="([^"]+)"', made.stdout).group(1).replace("&quot;", '"'))
    assert found["frame"] == 390
    assert found["width"] == found["seen"]
    b, c, d = GROUPS["Merged"]
    none = "none"
    assert found["orders"] == [
        [[none, "descending", none], ["Alone", "a", "Merged", d, c, b]],
        [[none, "ascending", none], ["Alone", "a", "Merged", b, c, d]],
        [[none, none, none], ["Alone", "a", "Merged", b, c, d]],
        [[none, none, "ascending"], ["Alone", "a", "Merged", d, b, c]],  # the missing number last
        [["ascending", none, none], ["Alone", "a", "Merged", b, c, d]],
    ]
