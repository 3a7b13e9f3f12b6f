"""From a plan and samples to an encoding."""

import numpy as np
import pytest

from fptq.cache import Cache
from fptq.calibrate import (
    OBSERVERS,
    CalibrationOptions,
    CollectOptions,
    calibrate,
    collect,
    needed,
    observer,
    solve,
    weight_observer,
)
from fptq.errors import ConfigError, DataError, ModelError
from fptq.graph.placement import Placement
from fptq.graph.rest import Shelf
from fptq.numerics import PerBlock, PerChannel, QuantizerSpec
from fptq.plan.plan import Plan

U8 = QuantizerSpec(signed=False, symmetric=False)
S8_BY_CHANNEL = QuantizerSpec(granularity=PerChannel(axis=0))
X, RELU, W1, W2 = Placement("x"), Placement("relu"), Placement("w1"), Placement("w2")
MINMAX = CalibrationOptions(observer=observer("minmax"), run=CollectOptions(threads=1))


def plan(*ties, **changed):
    specs = {X: U8, RELU: U8, W1: S8_BY_CHANNEL, W2: S8_BY_CHANNEL}
    specs |= {Placement(name): spec for name, spec in changed.items()}
    return Plan(engine="any", specs=specs, weights=frozenset({W1, W2}), ties=tuple(map(frozenset, ties)))


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_placement_gets_numbers(conv_net, make_samples, name):
    options = CalibrationOptions(observer=observer(name), run=CollectOptions(threads=1))
    encoding = calibrate(conv_net, plan(), make_samples(3), options=options)
    assert encoding.model_sha256 == conv_net.sha256
    assert encoding.params.keys() == plan().specs.keys()
    assert encoding.params[RELU].zero_point == 0
    assert encoding.params[W1].scale.shape == (4,)
    assert encoding.params[W2].scale.shape == (3,)


def test_minmax_is_the_range_of_the_data(conv_net, make_samples):
    samples = make_samples(3)
    encoding = calibrate(conv_net, plan(), samples, options=MINMAX)
    low = min(sample["x"].min() for sample in samples)
    high = max(sample["x"].max() for sample in samples)
    np.testing.assert_allclose(encoding.params[X].scale, (high - low) / 255, rtol=1e-6)
    w1 = conv_net.graph.initializers["w1"].const_value.numpy()
    np.testing.assert_allclose(encoding.params[W1].scale, np.abs(w1).max(axis=(1, 2, 3)) / 127, rtol=0.01)


def test_recipes_are_compared_without_a_second_run(conv_net, make_samples):
    samples = make_samples(3)
    observers = [observer(name) for name in OBSERVERS]
    statistics = collect(conv_net, needed(plan(), observers), samples, options=CollectOptions(threads=1))
    assert samples.walks == 1
    for each in observers:
        options = CalibrationOptions(observer=each, run=CollectOptions(threads=1))
        alone = calibrate(conv_net, plan(), samples, options=options)
        shared = solve(conv_net, plan(), statistics, options=options)
        for placement, params in alone.params.items():
            np.testing.assert_array_equal(shared.params[placement].scale, params.scale)
            np.testing.assert_array_equal(shared.params[placement].zero_point, params.zero_point)


@pytest.mark.parametrize("name", OBSERVERS)
def test_tied_placements_share_the_wider_range(conv_net, make_samples, name):
    options = CalibrationOptions(observer=observer(name), run=CollectOptions(threads=1))
    alone = calibrate(conv_net, plan(), make_samples(3), options=options).params
    tied = calibrate(conv_net, plan([X, RELU]), make_samples(3), options=options).params
    assert (tied[X].scale, tied[X].zero_point) == (tied[RELU].scale, tied[RELU].zero_point)
    assert tied[X].scale > 0.9 * max(alone[X].scale, alone[RELU].scale)
    np.testing.assert_array_equal(tied[W1].scale, alone[W1].scale)


def test_a_placement_at_one_reader_uses_the_tensor(conv_net, make_samples):
    at_reader = Placement("relu", "conv", 0)
    specs = {RELU: U8, at_reader: U8.with_bits(4)}
    encoding = calibrate(conv_net, Plan(engine="any", specs=specs), make_samples(2), options=MINMAX)
    np.testing.assert_allclose(encoding.params[at_reader].scale, encoding.params[RELU].scale * 17, rtol=1e-6)


def test_activations_per_channel(conv_net, make_samples):
    by_channel = U8.with_granularity(PerChannel(axis=1))
    for name in OBSERVERS:
        options = CalibrationOptions(observer=observer(name), run=CollectOptions(threads=1))
        encoding = calibrate(conv_net, plan(relu=by_channel), make_samples(2), options=options)
        assert encoding.params[RELU].scale.shape == (4,)


def test_activations_per_block_are_refused(conv_net, make_samples):
    by_block = U8.with_granularity(PerBlock(axis=1, size=2))
    with pytest.raises(ConfigError, match=r"activation 'relu'.*per block"):
        calibrate(conv_net, plan(relu=by_block), make_samples(1), options=MINMAX)


def test_weights_per_block_and_weights_alone(conv_net, make_samples):
    by_block = QuantizerSpec(bits=4, granularity=PerBlock(axis=1, size=2))
    alone = plan(w2=by_block).only(W1, W2)
    samples = make_samples(0)
    options = CalibrationOptions(weight_observer=weight_observer("lp"))
    encoding = calibrate(conv_net, alone, samples, options=options)
    assert encoding.params[W2].scale.shape == (3, 2, 3, 3)
    assert samples.walks == 0


def test_tied_weights_cover_both(make_net):
    weights = {"a": np.float32([[1, -2]]), "b": np.float32([[4, 3]])}
    net = make_net("g (float[1, 2] x) => (float[1, 2] y) { h = Add(x, a) \n y = Add(h, b) }", weights)
    a, b = Placement("a"), Placement("b")
    tied = Plan(engine="any", specs={a: U8, b: U8}, weights=frozenset({a, b}), ties=(frozenset({a, b}),))
    encoding = calibrate(net, tied, [], options=MINMAX)
    assert encoding.params[a].scale == encoding.params[b].scale == np.float32(6 / 255)


def test_a_stored_tensor_tied_to_an_activation(make_net, make_samples):
    net = make_net(
        "g (float[1, 3] x) => (float[1, 5] y) { y = Concat<axis = 1>(x, token) }", {"token": np.float32([[-50, 100]])}
    )
    token = Placement("token")
    tied = Plan(engine="any", specs={X: U8, token: U8}, weights=frozenset({token}), ties=(frozenset({X, token}),))
    for name in ("minmax", "moving_average", "lp"):
        options = CalibrationOptions(observer=observer(name), run=CollectOptions(threads=1))
        encoding = calibrate(net, tied, make_samples(2, shape=(1, 3)), options=options)
        assert encoding.params[X].scale == encoding.params[token].scale
        assert encoding.params[X].scale > 100 / 255


def test_ties_of_different_quantizers_are_refused(conv_net, make_samples):
    with pytest.raises(ConfigError, match=r"different quantizers.*relu: u4"):
        calibrate(conv_net, plan([X, RELU], relu=U8.with_bits(4)), make_samples(1), options=MINMAX)


def test_ties_of_different_channels_are_refused(conv_net, make_samples):
    by_channel = U8.with_granularity(PerChannel(axis=1))
    with pytest.raises(ConfigError, match="differ in channels"):
        calibrate(conv_net, plan([X, RELU], x=by_channel, relu=by_channel), make_samples(1), options=MINMAX)
    with pytest.raises(ConfigError, match="differ in shape"):
        calibrate(conv_net, plan([W1, W2]), make_samples(1), options=MINMAX)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(make_net, make_samples, bad):
    net = make_net("g (float[1, 2] x) => (float[1, 2] y) { y = Add(x, a) }", {"a": np.float32([[1, bad]])})
    a = Placement("a")
    with pytest.raises(ModelError, match="weight 'a' holds NaN"):
        calibrate(net, Plan(engine="any", specs={a: U8}, weights=frozenset({a})), make_samples(1), options=MINMAX)


def test_a_plan_of_another_network(conv_net, make_samples):
    with pytest.raises(ModelError, match="no tensor 'elsewhere'"):
        calibrate(conv_net, plan(elsewhere=U8), make_samples(1), options=MINMAX)
    w = Placement("w9")
    with pytest.raises(ModelError, match="stores no tensor 'w9'"):
        calibrate(conv_net, Plan(engine="any", specs={w: U8}, weights=frozenset({w})), make_samples(1))


def test_statistics_that_were_not_collected(conv_net, make_samples):
    statistics = collect(conv_net, needed(plan(), [observer("minmax")]), make_samples(1))
    with pytest.raises(ConfigError, match=r"no sketch of \['x'\] were collected"):
        solve(conv_net, plan(), statistics, options=CalibrationOptions())


def test_no_samples(conv_net, make_samples):
    with pytest.raises(DataError, match="no calibration sample"):
        calibrate(conv_net, plan(), make_samples(0), options=MINMAX)


def test_the_store_changes_no_number(conv_net, make_samples, tmp_path):
    encodings = [
        calibrate(conv_net, plan(), make_samples(4), store=store) for store in (None, Cache(tmp_path), Cache(tmp_path))
    ]
    for placement in plan().specs:
        assert len({encoding.params[placement].scale.tobytes() for encoding in encodings}) == 1


def test_weights_at_rest_give_the_same_numbers_and_are_at_rest_afterwards(conv_net, make_samples):
    statistics = collect(conv_net, needed(plan((X, RELU)), [MINMAX.observer]), make_samples(2))
    expected = solve(conv_net, plan((X, RELU)), statistics, options=MINMAX)
    shelf = Shelf()
    for name, value in conv_net.graph.initializers.items():
        value.const_value = shelf.put(value.const_value.numpy(), name=name)
    found = solve(conv_net, plan((X, RELU)), statistics, options=MINMAX)
    for placement, params in expected.params.items():
        np.testing.assert_array_equal(found.params[placement].scale, params.scale)
        np.testing.assert_array_equal(found.params[placement].zero_point, params.zero_point)
    assert all(value.const_value.raw is None for value in conv_net.graph.initializers.values())
