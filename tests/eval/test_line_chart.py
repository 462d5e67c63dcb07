"""Line charts: what is drawn lies where the numbers say."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.line_chart import HEIGHT, WIDTH, Chart, Curve, linear_ticks, log_ticks, svg, thinned, tick_labels

reals = st.floats(-1e9, 1e9)


@given(reals, reals)
@example(0.0, 0.0)
@example(0.1, 0.30000000000000004)
@example(1e9, 1e9 + 1)
@example(-1e-300, 1e-300)
def test_ticks_are_round_even_few_and_around_the_values(a, b):
    low, high = min(a, b), max(a, b)
    ticks = linear_ticks(low, high)
    step = ticks[1] - ticks[0]
    slack = 1e-8 * max(step, abs(low), abs(high))
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + slack and high - slack <= ticks[-1]
    assert all(later - tick == pytest.approx(step, rel=1e-3) for tick, later in pairwise(ticks))
    digits = step / 10 ** math.floor(math.log10(step) + 1e-3)
    assert min(abs(digits - digit) for digit in (1, 2, 5)) < 1e-2


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
@example(1.0, 1.0)
@example(1.0, 10.0)
def test_logarithmic_ticks_go_up_and_are_around_the_values(a, b):
    low, high = min(a, b), max(a, b)
    ticks = log_ticks(low, high)
    assert len(ticks) >= 2 and ticks == sorted(set(ticks))
    assert ticks[0] <= low * (1 + 1e-8) and high * (1 - 1e-8) <= ticks[-1]


@given(reals, reals)
def test_labels_tell_ticks_apart(a, b):
    ticks = linear_ticks(min(a, b), max(a, b))
    if ticks[1] - ticks[0] > 1e-4 * max(map(abs, ticks)):
        assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize(
    ("ticks", "is_share", "labels"),
    [
        ([0.0, 0.25, 0.5], False, ["0.00", "0.25", "0.50"]),
        ([0.0, 0.5, 1.0], True, ["0%", "50%", "100%"]),
        ([0.9, 0.905], True, ["90.0%", "90.5%"]),
        ([0.0, 5e-7], False, ["0", "5e-07"]),
        ([0.0, 5000.0], False, ["0", "5,000"]),
    ],
)
def test_labels(ticks, is_share, labels):
    assert tick_labels(ticks, is_share) == labels


@given(st.lists(st.tuples(reals, reals), max_size=50), st.integers(1, 20))
def test_thinning_keeps_few_points_and_what_they_add_up_to(points, most):
    found = thinned(points, most)
    assert len(found) <= most and (len(points) > most or found == points)
    size = -(-len(points) // most)
    sizes = [min(size, len(points) - size * n) for n in range(len(found))]
    assert sum(y * n for (_, y), n in zip(found, sizes)) == pytest.approx(sum(y for _, y in points), abs=1e-3)


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(svg(chart))


def chart(*curves: Curve, **settings) -> Chart:
    return Chart("margin", curves, settings.pop("x_range", (0, 2)), [(1, "step 5")], **settings)


def test_a_line_goes_from_corner_to_corner():
    root = drawn(chart(Curve("a", [(0, 0), (1, 5), (2, 10)], "c1")))
    (line,) = root.iter("polyline")
    left, middle, right = (tuple(map(float, point.split(","))) for point in line.get("points").split())
    assert left[0] < middle[0] < right[0] <= WIDTH and middle[0] == pytest.approx((left[0] + right[0]) / 2, abs=0.1)
    assert 0 <= right[1] < middle[1] < left[1] <= HEIGHT
    assert middle[1] == pytest.approx((left[1] + right[1]) / 2, abs=0.1)
    labels = {text.text: float(text.get("y")) for text in root.iter("text") if text.get("class") == "y"}
    assert labels["0"] == left[1] and labels["10"] == right[1]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2), st.one_of(reals, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 5e-324, 1e308]))
        ),
        max_size=9,
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_points_make_valid_xml_within_the_frame(points, is_log, has_dots):
    text = svg(chart(Curve("a<b>", sorted(points, key=lambda p: p[0]), "c1", has_dots), is_log=is_log))
    drawable = [y for _, y in points if abs(y) < 1e290 and (y > 1e-290 or not is_log)]
    assert bool(text) == bool(drawable)
    assert "nan" not in text and "inf" not in text
    for element in ElementTree.fromstring(text).iter() if text else ():
        for name in ("x", "x1", "x2", "cx"):
            assert -0.1 <= float(element.get(name, 0)) <= WIDTH + 0.1
        for name in ("y", "y1", "y2", "cy"):
            assert -0.1 <= float(element.get(name, 0)) <= HEIGHT + 0.1


def test_no_line_crosses_a_divider_and_a_lone_point_is_a_dot():
    root = drawn(chart(Curve("a", [(0.5, 1), (1, 2), (1.5, 3)], "c1"), dividers=[(0, "sft"), (1, "grpo")]))
    assert [line.get("points").count(",") for line in root.iter("polyline")] == [2]
    assert len(list(root.iter("circle"))) == 1
    assert [text.text for text in root.iter("text") if text.get("class") == "word"] == ["sft", "grpo"]


def test_intervals_and_shades_are_drawn_where_they_belong():
    curve = Curve("a", [(1, 0.5)], "c2", has_dots=True, intervals=[(0.25, 0.75)])
    root = drawn(chart(curve, shades=[(0, 1)], is_share=True))
    (interval,) = [line for line in root.iter("line") if line.get("class") == "interval c2"]
    (dot,), (shade,) = root.iter("circle"), root.iter("rect")
    assert interval.get("x1") == interval.get("x2") == dot.get("cx")
    assert float(interval.get("y2")) < float(dot.get("cy")) < float(interval.get("y1"))
    assert float(shade.get("x")) + float(shade.get("width")) == pytest.approx(float(dot.get("cx")), abs=0.2)
    assert dot.find("title").text == "a: 0.5"


def test_a_share_is_never_drawn_beyond_all():
    labels = [t.text for t in drawn(chart(Curve("a", [(0, 0.97), (1, 1)], "c1"), is_share=True)).iter("text")]
    assert "100%" in labels and not any(label.startswith("10") and label != "100%" for label in labels)


def test_a_chart_says_what_it_shows():
    label = drawn(chart(Curve("dev <pairs>", [(0, 1), (1, 2.5)], "c1"))).get("aria-label")
    assert label == "margin: dev <pairs> from 1 to 2.5"
