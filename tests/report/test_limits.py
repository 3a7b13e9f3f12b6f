import pytest
from hypothesis import given
from hypothesis import strategies as st

from fptq.report.decisions import NodeRecord, RefusalRecord
from fptq.report.limits import fewest, limiting
from fptq.report.search import Point, Search, Sensitivity, SensitivityRow

NOTHING = {
    "nodes": (),
    "float_nodes": (),
    "refusals": (),
    "placements": (),
    "sensitivity": None,
    "search": None,
    "pictures": (),
}


@pytest.fixture
def said(build_report):
    """The sentences of a report that has nothing but what is given."""
    return lambda **fields: limiting(build_report(**{**NOTHING, **fields}))


def node(op: str, precision: str, time: float | None, name: str = "") -> NodeRecord:
    return NodeRecord(nodes=(name or op,), op=op, precision=precision, time_ms=time)


def sensitivity(losses: list[float], **fields: list) -> Sensitivity:
    more = [{key: values[n] for key, values in fields.items()} for n in range(len(losses))]
    rows = tuple(
        SensitivityRow(layer=f"l{n}", loss={"w8a8": loss, "w4a4": 1.0}, **extra)
        for n, (loss, extra) in enumerate(zip(losses, more, strict=True), 1)
    )
    formats = ("w8a8", "w4a4")
    return Sensitivity(objective="squared", method="fisher", samples=4, formats=formats, compared="w8a8", rows=rows)


def search(*points: Point, **fields) -> Search:
    base = {"objective": "squared", "cost": "size", "float_costs": {"size": 10.0}}
    return Search(points=points, **{**base, **fields})


def test_what_the_data_do_not_show_is_not_said(said):
    assert said() == ()
    assert said(nodes=(node("Conv", "int8", None),), sensitivity=sensitivity([0.0, 0.0])) == ()


def test_where_the_time_goes(said):
    nodes = (node("Conv", "int8", 6.0), node("MVN", "f32", 3.0), node("Conv", "f32", 1.0), node("Tiny", "f32", 0.01))
    (time,) = said(nodes=nodes)
    assert (
        time == "The quantized network spends 60 % of its time on integers and 40 % in float: MVN 30 % and Conv 10 %."
    )


def test_all_the_time_on_integers(said):
    nodes = (node("Conv", "int8", 6.0), node("Pool", "u8", 3.0))
    assert said(nodes=nodes) == ("The quantized network spends all of its time on integers.",)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (3.0, "The limit of size binds: the chosen mix takes 100 % of it."),
        (3.3, "The limit of size is exceeded: the chosen mix takes 1.10× of it."),
        (2.0, "No limit binds: the chosen mix takes 66.7 % of the nearest one, size."),
    ],
)
def test_which_limit_binds(said, size, expected):
    mix = Point(costs={"size": size, "latency": 1.0}, chosen=True)
    assert said(search=search(mix, limits={"size": 3.0, "latency": 9.0})) == (expected,)


def test_the_metric_binds_where_the_next_cheaper_mix_fails(said):
    failed = Point(costs={"size": 2.0}, drop=0.012, upper=0.015, passes=False)
    mix = Point(costs={"size": 3.0}, drop=0.002, upper=0.004, passes=True, chosen=True)
    (bound,) = said(search=search(failed, mix, metric="Dice", max_drop=0.01, confidence=0.95, limits={"size": 9.0}))
    assert bound == (
        "Dice binds: the next cheaper mix (0.200× of the float size) loses 0.0120 and may lose 0.0150, "
        "where at most 0.0100 with 95 % confidence is allowed."
    )


def test_a_search_without_an_answer_or_a_limit_binds_nothing(said):
    assert said(search=search(Point(costs={"size": 1.0}), limits={"size": 3.0})) == ()
    assert said(search=search(Point(costs={"size": 1.0}, chosen=True))) == ()


def test_few_layers_carry_the_error(said):
    (carriers,) = said(sensitivity=sensitivity([0.5, 9.0, 0.2, 0.1]))
    assert carriers == "1 of 4 layers carries 80 % of the predicted error at w8a8: l2."


def test_no_few_layers_carry_the_error(said):
    (carriers,) = said(sensitivity=sensitivity([1.0] * 10))
    assert carriers == "No few layers carry the predicted error at w8a8: it takes 8 of 10 to reach 80 %."


def test_after_a_search_the_error_is_that_of_the_mix(said):
    became = ["w8a8", "float", "w4a4", "w8a8"]
    found = sensitivity([0.02, 9.0, 0.02, 0.03], precision=became)
    (carriers,) = said(sensitivity=found, search=search())
    assert carriers == "1 of 4 layers carries 80 % of the predicted error of the chosen mix: l3."


def test_two_layers_say_nothing_about_few(said):
    assert said(sensitivity=sensitivity([9.0, 0.1])) == ()


def test_where_error_is_made_and_where_it_passes_through(said):
    found = sensitivity([0.0] * 4, local_db=[30, 24, 40, 41], accumulated_db=[30, 23, 24, 23])
    (made,) = said(sensitivity=found)
    assert made == (
        "At w8a8, 2 of 4 layers make at least half of the error at their output, worst at l2 (24.0 dB alone); "
        "at the other 2 most of it came from before."
    )


def test_one_layer_makes_the_error_of_all(said):
    (made,) = said(sensitivity=sensitivity([0.0] * 2, local_db=[20, 40], accumulated_db=[20, 21]))
    assert made == (
        "At w8a8, 1 of 2 layers makes at least half of the error at its output, worst at l1 (20.0 dB alone); "
        "at the other one most of it came from before."
    )


def test_every_layer_makes_its_error(said):
    (made,) = said(sensitivity=sensitivity([0.0] * 2, local_db=[30, 24], accumulated_db=[30, 23]))
    assert made == "At w8a8 every layer makes at least half of the error at its output, worst at l2 (24.0 dB alone)."


def test_what_was_kept_in_float(said):
    reason = "kept float: MVN is not in the profile."
    norms = tuple(RefusalRecord(node=f"n{n}", op="MVN", reason=reason) for n in range(3))
    assert said(refusals=norms) == ("3 nodes are kept in float (MVN) because: MVN is not in the profile.",)
    other = RefusalRecord(node="c", op="Conv", reason="kept by --keep-float")
    (kept,) = said(refusals=(*norms, other))
    assert kept == "4 nodes are kept in float, 3 of them (MVN) because: MVN is not in the profile."


def test_what_the_engine_refused(said, report):
    fell = tuple(p.model_copy(update={"realized": "f32", "histogram": None}) for p in report.placements[:2])
    assert said(placements=fell) == ("2 tensors asked for as integers ran in float on the engine.",)


def test_few_layers_hold_the_weights(said):
    found = sensitivity([0.0] * 6, parameters=[10, 900, 10, 10, 10, 60])
    assert said(sensitivity=found) == ("1 of 6 layers holds 80 % of the weights (l2).",)
    mix = Point(costs={"size": 3.0}, chosen=True)
    (price,) = said(sensitivity=found, search=search(mix, limits={"size": 3.0}))
    assert price == (
        "The limit of size binds: the chosen mix takes 100 % of it; 1 of 6 layers holds 80 % of the weights (l2)."
    )


def test_few_nodes_take_the_time(said):
    nodes = (node("Conv", "int8", 9.0, "big"), *(node("Conv", "int8", 0.1, f"c{n}") for n in range(5)))
    assert said(nodes=nodes)[1:] == ("1 of 6 nodes takes 80 % of the time (big).",)
    found = sensitivity([0.0] * 6, parameters=[10, 900, 10, 10, 10, 60])
    timed = search(Point(costs={"latency": 2.0}, chosen=True), cost="latency")
    assert said(nodes=nodes, sensitivity=found, search=timed)[1:] == ("1 of 6 nodes takes 80 % of the time (big).",)


def test_what_is_emulated(said):
    assert said(search=search(emulated=("w4a8", "w4a4"))) == (
        "The engine has no kernel for w4a8 and w4a4 and runs them in an int8 container: no faster than int8.",
    )


def test_there_are_at_most_five(report):
    sentences = limiting(report)
    assert len(sentences) == 5
    assert all(sentence.endswith(".") for sentence in sentences)


@given(st.lists(st.floats(0, 1e6), max_size=30))
def test_the_fewest_hold_most_and_one_less_does_not(values):
    first = fewest(values)
    held = [values[n] for n in first]
    assert held == sorted(held, reverse=True)
    if sum(values):
        assert sum(held) >= 0.8 * sum(values) * (1 - 1e-6)
        assert sum(held[:-1]) <= 0.8 * sum(values)
    else:
        assert first == ()
