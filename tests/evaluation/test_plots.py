import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from r2m_jax import InputError
from r2m_jax.evaluation.plots import bars, dumbbell, heat_map, lines, pareto, radar, roc, violins
from r2m_jax.evaluation.plots.canvas import number, series_style, wrapped

SVG = "{http://www.w3.org/2000/svg}"
ROWS, COLUMNS = ["Weight averaging", "R²M <&> $x$ $y$", "CART"], ["FS", "FR"]


def draw(kind, title="A title", scale=1.0):
    """One small figure of every kind, with a name that has to be escaped and could be taken for mathematics."""
    values = scale * np.asarray([[0.9, 0.5], [0.7, 0.6], [0.8, 0.95]])
    match kind:
        case "heat_map":
            return heat_map(values, ROWS, COLUMNS, title=title, row_groups=["a", "b", "b"], column_groups=["p", "q"])
        case "dumbbell":
            return dumbbell(ROWS, values[:, 0], values[:, 1], title=title, names=("N = 3", "N = 6"))
        case "pareto":
            return pareto(ROWS, values[:, 0], values[:, 1], title=title)
        case "radar":
            return radar(ROWS, {c: values[:, i] for i, c in enumerate(COLUMNS)}, title=title)
        case "lines":
            bands = {"FS": (values[:, 0] - 0.1, values[:, 0])}
            return lines(ROWS, {"FS": values[:, 0], "FR": values[:, 1]}, title=title, x_label="x", bands=bands)
        case "bars":
            return bars(ROWS, values[:, 0], title=title, intervals=(values[:, 0] - 0.1, values[:, 0] + 0.1))
        case "roc":
            scores = scale * np.linspace(-1, 1, 20)
            return roc([0, 1] * 10, {name: np.roll(scores, i) for i, name in enumerate(ROWS)}, title=title)
        case "violins":
            samples = {name: {"Real": values[:, 0], "Own-Fake": scale * np.linspace(0.1, 1, 9)} for name in ROWS}
            return violins(samples, title=title, label="cosine")


KINDS = ["heat_map", "dumbbell", "pareto", "radar", "lines", "bars", "roc", "violins"]


def texts(svg):
    """Text as a reader of the page gets it, lines of one label joined."""
    return [" ".join("".join(e.itertext()).split()) for e in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_a_self_contained_svg_with_text_and_title(kind):
    svg = draw(kind, title='AUC of "A" & <B>')
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == root[0].text == 'AUC of "A" & <B>'
    assert root[0].tag == f"{SVG}title"
    shown = " ".join(texts(svg))
    assert "R²M <&> $x$ $y$" in shown  # neither mathematics nor outlines of letters
    assert not re.search(r"\d{4}-\d\d-\d\d", svg)
    assert not re.search(r'(?:href="|url\()(?!#|data:)', svg)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_the_same_every_time_and_have_ids_of_their_own(kind):
    first = draw(kind)
    with mpl.rc_context({"text.color": "red", "axes.facecolor": "black", "font.size": 30, "svg.fonttype": "path"}):
        assert draw(kind) == first  # whatever the reader's own settings are
    other = draw(kind, title="Another title")
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first))
    assert used <= ids[0]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_from_broken_numbers(kind):
    with pytest.raises(InputError, match="infinite"):
        draw(kind, scale=np.inf)


@settings(max_examples=15)
@given(arrays(np.float64, (3, 2), elements=st.floats(0, 1) | st.just(np.nan)))
def test_heat_map_writes_every_number(values):
    shown = texts(heat_map(values, ROWS, COLUMNS, title="t", low=0, high=1))
    expected = ["–" if np.isnan(v) else f"{v:.3f}" for v in values.ravel()]
    assert [text for text in shown if text in {*expected}][: values.size] == expected


def luminance(colour):
    channels = np.asarray(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("better", [None, "higher", "lower"])
def test_numbers_in_cells_stand_out_from_their_colour(better):
    """WCAG 2 asks for a contrast of 4.5 between text and background."""
    svg = heat_map(np.linspace(-1, 1, 60).reshape(10, 6), list("abcdefghij"), list("uvwxyz"), title="t", better=better)
    cells = re.findall(r'<path d="[^"]+" clip-path="[^"]+" style="fill: (#\w{6})"', svg)
    inks = re.findall(r'<text style="([^"]*text-anchor: middle[^"]*)"[^>]*>[+−]?\d\.\d{3}</text>', svg)
    assert len(cells) >= 60
    assert len(inks) == 60
    backgrounds = cells[-60:]
    for background, style in zip(backgrounds, inks, strict=True):
        fill = re.search(r"fill: (#\w{6})", style)
        light, dark = sorted([luminance(background), luminance(fill.group(1) if fill else "black")], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_the_two_sides_of_a_scale_of_differences_swap_with_the_better_one():
    values = np.asarray([[-0.2, 0.2]])
    colours = {
        better: re.findall(
            r'<path d="[^"]+" clip-path="[^"]+" style="fill: (#\w{6})"',
            heat_map(values, ["m"], COLUMNS, title="t", better=better),
        )[-2:]
        for better in ("higher", "lower")
    }
    assert colours["higher"] == colours["lower"][::-1]
    assert "+0.200" in texts(heat_map(values, ["m"], COLUMNS, title="t", better="lower"))


def test_a_front_fills_what_no_model_beats():
    svg = pareto(["good", "bad", "other"], [0.1, 0.3, 0.05], [0.2, 0.1, -0.1], title="t")
    hollow = re.findall(r"<use [^>]*style=\"fill: (#\w{6}); stroke", svg)
    assert hollow.count("#ffffff") == 1
    assert {"good", "bad", "other"} <= {*texts(svg)}


@pytest.mark.parametrize(("count", "length"), [(13, 6), (9, 16), (5, 26)])
def test_names_of_points_do_not_cover_each_other(count, length, rng):
    points = rng.normal(size=(count, 2)) * np.where(np.arange(count) < count // 2, 0.05, 1.0)[:, None]  # half in a heap
    names = [f"{i:02d}" * (length // 2) for i in range(count)]
    svg = pareto(names, points[:, 0], points[:, 1], title="t")
    boxes = []
    for element in ET.fromstring(svg).iter(f"{SVG}text"):
        if re.fullmatch(r"(\d\d?)\1*\d?", element.text) and "9px" in element.attrib["style"]:
            corner = element.attrib["transform"].split("(")[1].rstrip(")").split()[-2:]
            x, y = (float(v) for v in corner)
            boxes.append((x, y, x + 0.6 * 9 * len(element.text), y + 8))  # a digit is 0.636 wide in DejaVu Sans
    assert len(boxes) == count * -(-length // 17)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_series_differ_without_colour():
    styles = [series_style(i) for i in range(28)]
    assert len({(style.marker, style.dashes) for style in styles}) == 28
    assert len(set(styles)) == 28


def test_roc_states_the_area_scikit_learn_finds(rng):
    from sklearn.metrics import roc_auc_score

    labels = rng.integers(0, 2, 5000)
    scores = labels + rng.normal(size=5000)
    for least in (None, 1e-3):
        svg = roc(labels, {"m": scores}, title="t", least_fpr=least)
        assert f"m, AUC {roc_auc_score(labels, scores):.3f}" in texts(svg)
        assert len(svg) < 60_000  # thinned


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: heat_map(np.ones((2, 2)), ["a"], ["x", "y"], title="t"), "shape"),
        (lambda: heat_map(np.full((1, 1), np.nan), ["a"], ["x"], title="t"), "every cell is missing"),
        (lambda: heat_map(np.ones((1, 1)), ["a"], ["x"], title="t", low=1, high=0), "from 1 to 0"),
        (lambda: heat_map(np.ones((1, 1)), ["a"], ["x"], title="t", row_groups=["g", "h"]), "1 rows and 2 groups"),
        (lambda: pareto(["a"], [np.nan], [0.0], title="t"), "NaN"),
        (lambda: dumbbell(["a"], [np.nan], [np.nan], title="t", names=("x", "y")), "no number"),
        (lambda: radar(["a", "b"], {"m": [0, 1]}, title="t"), "three spokes"),
        (lambda: radar(["a", "b", "c"], {"m": [0.2, 0.9, 1]}, title="t", low=0.5), "outside of 0.5 to 1"),
        (lambda: lines([1, 2], {"m": [1, 2]}, title="t", x_label="x", bands={"n": ([0, 0], [1, 1])}), "band of 'n'"),
        (lambda: bars(["a"], [1.0], title="t", intervals=([2.0], [1.0])), "ends below"),
        (lambda: roc([1, 1], {"m": np.zeros(2)}, title="t"), "real"),
        (lambda: violins({"a": {"b": np.empty(0)}}, title="t", label="x"), "no number"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(draw, message):
    with pytest.raises(InputError, match=message):
        draw()


def test_numbers_and_names_for_figures():
    assert [number(v) for v in (0.1234, -0.5, -0.0001, np.nan)] == ["0.123", "−0.500", "0.000", "–"]
    assert [number(v, 2, signed=True) for v in (0.1, -0.1, 0.0)] == ["+0.10", "−0.10", "0.00"]
    assert wrapped(["short", "R²M, uncentred, α = 0.5, r = 0.7"]) == ["short", "R²M, uncentred,\nα = 0.5, r = 0.7"]
