"""One run per sample, resumable, refusing what the network does not take."""

import numpy as np
import pytest

from fptq.cache import Cache
from fptq.calibrate.collect import CollectOptions, collect
from fptq.calibrate.samples import sample_hash
from fptq.calibrate.states import Kind
from fptq.calibrate.statistics import Statistic, Statistics
from fptq.errors import DataError, EngineError

ASKED = [
    Statistic("x", Kind.SKETCH),
    Statistic("relu", Kind.SKETCH),
    Statistic("relu", Kind.BATCH_EXTREMES),
    Statistic("relu", Kind.EXTREMES, 1),
    Statistic("relu", Kind.SKETCH, 1),
]
EVERY_SAMPLE = CollectOptions(threads=1, checkpoint_s=0.0)
QUIET = CollectOptions(threads=1)


def assert_same(one, other):
    assert one.samples == other.samples
    assert one.states.keys() == other.states.keys()
    for statistic, state in one.states.items():
        for name, array in state.to_arrays().items():
            np.testing.assert_array_equal(array, other.states[statistic].to_arrays()[name], err_msg=f"{statistic}")


class Interrupted:
    """Samples during which Ctrl-C is pressed."""

    def __init__(self, samples, after):
        self.samples, self.after = samples, after

    def __len__(self):
        return len(self.samples)

    def __iter__(self):
        for number, sample in enumerate(self.samples):
            if number == self.after:
                raise KeyboardInterrupt
            yield sample


@pytest.fixture
def runs(monkeypatch):
    """Hashes of the samples that were really run, in order."""
    made = []
    of = Statistics.of
    monkeypatch.setattr(Statistics, "of", lambda readings, name: (made.append(name), of(readings, name))[1])
    return made


@pytest.fixture
def store(tmp_path):
    return Cache(tmp_path)


def test_two_half_runs_are_one_run(conv_net, make_samples):
    samples = make_samples(6)
    whole = collect(conv_net, ASKED, samples, options=QUIET)
    first, second = make_samples(6), make_samples(6)
    first.items, second.items = samples.items[4:], samples.items[:4]
    halves = [collect(conv_net, ASKED, half, options=QUIET) for half in (first, second)]
    assert_same(whole, halves[0].merged(halves[1]))
    assert len(whole.samples) == 6


def test_halves_that_share_a_sample_are_not_merged(conv_net, make_samples):
    half = collect(conv_net, ASKED, make_samples(2), options=QUIET)
    with pytest.raises(ValueError, match="2 samples are in both"):
        half.merged(half)


def test_one_sample_is_enough(conv_net, make_samples):
    assert len(collect(conv_net, ASKED, make_samples(1), options=QUIET).samples) == 1


def test_no_sample_is_an_error(conv_net, make_samples):
    with pytest.raises(DataError, match="no calibration sample"):
        collect(conv_net, ASKED, make_samples(0))


def test_a_sample_that_comes_twice_counts_once(conv_net, make_samples, runs):
    samples = make_samples(2)
    samples.items *= 2
    collect(conv_net, ASKED, samples, options=QUIET)
    assert len(runs) == 2


def test_weights_alone_need_no_data(conv_net, make_samples):
    samples = make_samples(0)
    assert collect(conv_net, [], samples) == Statistics()
    assert samples.walks == 0


def test_an_interrupted_run_goes_on_in_any_order(conv_net, make_samples, store, runs):
    samples = make_samples(6)
    whole = collect(conv_net, ASKED, samples, options=QUIET)
    runs.clear()
    with pytest.raises(KeyboardInterrupt):
        collect(conv_net, ASKED, Interrupted(samples.items, 4), options=QUIET, store=store)
    assert len(runs) == 4
    samples.items = samples.items[::-1]
    resumed = collect(conv_net, ASKED, samples, options=QUIET, store=store)
    assert len(runs) == len(set(runs)) == 6
    assert_same(resumed, whole)


def test_interrupted_twice(conv_net, make_samples, store, runs):
    samples = make_samples(6)
    for after in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            collect(conv_net, ASKED, Interrupted(samples.items, after), options=QUIET, store=store)
    collect(conv_net, ASKED, samples, options=QUIET, store=store)
    assert len(runs) == len(set(runs)) == 6


def test_checkpoints_are_written_on_the_way(conv_net, make_samples, store):
    stored = []

    def look(done, total, what):
        paths = store.folder.glob("statistics-interrupted/*.npz")
        stored.extend((done, len(store.get("statistics-interrupted", p.stem).meta["samples"])) for p in paths)

    collect(conv_net, ASKED, make_samples(3), options=EVERY_SAMPLE, store=store, progress=look)
    assert stored == [(1, 1), (2, 2), (3, 3)]
    assert [row.kind for row in store.usage()] == ["statistics"]


def test_finished_statistics_are_not_collected_again(conv_net, make_samples, store, runs):
    first = collect(conv_net, ASKED, make_samples(3), options=QUIET, store=store)
    runs.clear()
    again = collect(conv_net, ASKED, make_samples(3), options=QUIET, store=store)
    assert runs == []
    assert_same(again, first)


def test_more_samples_of_the_same_data_run_only_the_new_ones(conv_net, make_samples, store, runs):
    samples = make_samples(6)
    everything = list(samples.items)
    samples.items = everything[:4]
    collect(conv_net, ASKED, samples, options=QUIET, store=store)
    samples.items = everything
    grown = collect(conv_net, ASKED, samples, options=QUIET, store=store)
    assert len(runs) == 6
    assert_same(grown, collect(conv_net, ASKED, samples, options=QUIET))


def test_stored_statistics_of_other_data_do_not_mix_in(conv_net, make_samples, store):
    mixed = make_samples(6)
    collect(conv_net, ASKED, mixed, options=QUIET, store=store)
    mixed.items = mixed.items[:2] + make_samples(2, seed=1).items  # shares two samples with what is stored
    found = collect(conv_net, ASKED, mixed, options=QUIET, store=store)
    assert_same(found, collect(conv_net, ASKED, mixed, options=QUIET))


def test_an_interrupted_run_over_other_data_is_resumed(conv_net, make_samples, store, runs):
    old, new = make_samples(3), make_samples(5, seed=1)
    new.items[0] = old.items[0]
    collect(conv_net, ASKED, old, options=QUIET, store=store)
    with pytest.raises(KeyboardInterrupt):
        collect(conv_net, ASKED, Interrupted(new.items, 3), options=QUIET, store=store)
    runs.clear()
    found = collect(conv_net, ASKED, new, options=QUIET, store=store)
    assert len(runs) == 3  # two that were missing, and the one that is stored only together with the old data
    assert_same(found, collect(conv_net, ASKED, new, options=QUIET))


def test_statistics_belong_to_one_network(conv_net, make_net, make_samples, store, runs):
    other = make_net("g (float[N, 2, 12, 12] x) => (float[N, 2, 12, 12] relu) { relu = Relu(x) }", {})
    asked = [Statistic("relu", Kind.EXTREMES)]
    collect(conv_net, asked, make_samples(2), options=QUIET, store=store)
    collect(other, asked, make_samples(2), options=QUIET, store=store)
    assert len(runs) == 4


def test_progress_is_told(conv_net, make_samples):
    told = []
    collect(conv_net, ASKED, make_samples(3), options=QUIET, progress=lambda *args: told.append(args))
    assert told == [(done, 3, "calibrate") for done in range(4)]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": np.zeros((1, 2, 12, 12), np.float32)}, r"sample 2 has the inputs \['image'\].*x: float32"),
        ({}, r"sample 2 has the inputs \[\]"),
        ({"x": np.zeros((1, 2, 12, 12))}, r"sample 2: input 'x' is float64.*takes x: float32\[N, 2, 12, 12\]"),
        ({"x": np.zeros((1, 3, 12, 12), np.float32)}, r"input 'x' is float32\[1, 3, 12, 12\]"),
        ({"x": np.zeros((2, 12, 12), np.float32)}, r"input 'x' is float32\[2, 12, 12\]"),
        ({"x": np.full((1, 2, 12, 12), np.nan, np.float32)}, r"sample 2: input 'x' holds NaN"),
    ],
    ids=["name", "missing", "dtype", "shape", "rank", "nan"],
)
def test_samples_that_the_network_does_not_take(conv_net, make_samples, sample, message):
    samples = make_samples(1)
    samples.items.append(sample)
    with pytest.raises(DataError, match=message):
        collect(conv_net, ASKED, samples, options=QUIET)


def test_a_bad_sample_loses_nothing(conv_net, make_samples, store, runs):
    samples = make_samples(3)
    bad = make_samples(3)
    bad.items[2] = {"x": np.full((1, 2, 12, 12), np.inf, np.float32)}
    with pytest.raises(DataError):
        collect(conv_net, ASKED, bad, options=QUIET, store=store)
    collect(conv_net, ASKED, samples, options=QUIET, store=store)
    assert len(runs) == 3


def test_nan_that_the_network_makes_is_found_in_the_tensor(make_net, make_samples):
    net = make_net("g (float[N, 50] x) => (float[N, 50] y) { root = Sqrt(x) \n y = Relu(root) }", {})
    with pytest.raises(DataError, match=r"sample 1: tensor 'root' holds NaN"):
        collect(net, [Statistic("root", Kind.EXTREMES)], make_samples(2, shape=(3, 50)), options=QUIET)


def test_an_engine_failure_names_the_sample(make_net, make_samples):
    net = make_net("g (float[N, M] x, float[N, K] z) => (float[N, M] y) { y = Add(x, z) }", {})
    samples = make_samples(1, shape=(2, 3))
    samples.items[0]["z"] = np.zeros((2, 5), np.float32)
    with pytest.raises(EngineError, match="sample 1: ONNX Runtime failed"):
        collect(net, [Statistic("y", Kind.EXTREMES)], samples, options=QUIET)


def test_shapes_may_differ_between_samples(make_net, make_samples):
    net = make_net("g (float[N, C, H, W] x) => (float[N, C, H, W] y) { y = Relu(x) }", {})
    samples = make_samples(1, shape=(1, 2, 8, 8))
    samples.items += make_samples(1, shape=(2, 3, 100, 90)).items
    statistics = collect(net, [Statistic("y", Kind.SKETCH)], samples, options=QUIET)
    (histogram,) = statistics.states[Statistic("y", Kind.SKETCH)].histograms()
    assert histogram.total > 8192
    assert histogram.high == max(sample["x"].max() for sample in samples)


def test_statistics_survive_the_store(conv_net, make_samples, store):
    whole = collect(conv_net, ASKED, make_samples(2), options=QUIET)
    store.put("statistics", "0" * 64, whole.to_entry())
    assert_same(Statistics.from_entry(store.get("statistics", "0" * 64)), whole)


def test_samples_are_known_by_content():
    x, y = np.arange(6, dtype=np.float32), np.ones(2, np.int64)
    assert sample_hash({"x": x, "y": y}) == sample_hash({"y": y.copy(), "x": x.copy()})
    others = [
        {"x": x.reshape(2, 3), "y": y},
        {"x": x, "z": y},
        {"x": x.astype(np.float64), "y": y},
        {"x": x + 1, "y": y},
    ]
    assert len({sample_hash(other) for other in [{"x": x, "y": y}, *others]}) == 5
    assert sample_hash({"x": x.reshape(2, 3).T}) == sample_hash({"x": x.reshape(2, 3).T.copy()})
