from fptq.report.search import Point, Search
from fptq.report.tradeoff import asked, cost_names, mix, point_rows


def search(**changes) -> Search:
    fields = {"objective": "squared", "cost": "size", "points": (Point(costs={}, layers={"w8a8": 3}, chosen=True),)}
    return Search(**{**fields, **changes})


def test_the_swept_cost_comes_first(report):
    assert cost_names(report.search) == ("size", "bops", "latency")
    assert cost_names(search(points=(Point(costs={"bops": None, "latency": 2.0}),))) == ("latency",)


def test_a_mix_is_a_row(report):
    row = next(row for row in point_rows(report.search) if row.chosen)
    assert row.layers.replace("\xa0", " ") == "22 w8a8, 5 w4a8, 3 float"
    assert row.costs[0] == ("0.298×", "2.55 MB")
    assert (row.predicted, row.passes, row.peak) == ("27.2", "yes", "33.5 MB")


def test_what_was_not_measured_is_a_dash():
    (row,) = point_rows(search())
    assert {row.predicted, row.verified, row.drop, row.upper, row.passes, row.peak} == {"–"}


def test_what_was_asked_is_said(report):
    assert asked(report.search) == (
        "Limit: size at most 0.3× of float.",
        "Dice may drop by at most 0.0050 with 95 % confidence.",
        "7 networks were measured on the metric.",
        "The engine has no kernel for w4a8 and runs it in an int8 container: no faster than int8.",
    )
    assert asked(search()) == ()
    assert asked(search(complete=False)) == ("The search was stopped before its end: a better mix may exist.",)
    assert asked(search(emulated=("w4a8", "w4a8/block32"))) == (
        "The engine has no kernel for w4a8 and runs it in an int8 container: no faster than int8; "
        "it has no kernel for w4a8/block32 and runs it in float.",
    )
    limits = {"size": 1.2e6, "latency": 5.0}
    assert asked(search(limits=limits)) == ("Limits: size at most 1.20 MB and latency at most 5.00 ms.",)


def test_the_mix_in_one_sentence(build_report):
    assert mix(build_report(search=search())) == "All 3 layers are int8"
    one = (Point(costs={}, layers={"float": 1, "w4a4": 2, "w8a8": 0}, chosen=True),)
    said = mix(build_report(search=search(points=one, limits={"size": 1.0}, float_costs={"size": 4.0})))
    assert said == "Of 3 layers, 2 are w4a4 and 1 float, within 0.25× of the float size"
    even = (Point(costs={}, layers={"float": 1, "w4a4": 1}, chosen=True),)
    assert mix(build_report(search=search(points=even))) == "Of 2 layers, 1 is w4a4 and 1 float"


def test_without_an_answer_there_is_no_mix(build_report):
    nothing = (search(points=()), search(points=(Point(costs={}, chosen=True),)), None)
    assert [mix(build_report(search=one)) for one in nothing] == ["", "", ""]
