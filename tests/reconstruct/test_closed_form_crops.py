from __future__ import annotations

import numpy as np
import pytest

from fptq.calibrate import calibrate
from fptq.execute import Executor, Overlay
from fptq.graph.model import Model
from fptq.plan import PROFILES, place
from fptq.plan.encoding import Encoding
from fptq.reconstruct.closed_form import ClosedFormOptions, gptaq
from fptq.types import Feeds


def small_unet(net) -> Model:
    n = net((1, 1, 32, 32, 32), seed=4)
    n.conv(1, 4, rank=3)
    skip = n("Relu")
    n("MaxPool", kernel_shape=[2] * 3, strides=[2] * 3)
    n.conv(4, 8, rank=3)
    n("Relu")
    n("ConvTranspose", n.stored(8, 4, 2, 2, 2), strides=[2] * 3, kernel_shape=[2] * 3)
    n("Concat", skip, axis=1)
    n.conv(8, 2, rank=3)
    return n.model()


def error(executor: Executor, exact: Executor, encoding: Encoding, feeds: Feeds) -> float:
    found, wanted = executor.run(feeds, hook=Overlay(encoding=encoding)), exact.run(feeds)
    return sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)


@pytest.mark.parametrize("crop", [16, None])
def test_codes_from_crops_help_whole_volumes(net, crop: int | None) -> None:
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.standard_normal((1, 1, 32, 32, 32)).astype(np.float32)} for _ in range(3)]
    model, profile = small_unet(net), PROFILES["openvino"]
    plan = place(model, profile, profile.variants[0])
    encoding = calibrate(model, plan.with_bits(dict.fromkeys(plan.weights, 3)), feeds)
    executor = Executor.open(model)
    found = gptaq(executor, encoding, feeds[:2], options=ClosedFormOptions(crop=crop))
    after = error(found.executor, executor, found.encoding, feeds[2])
    assert after < 0.8 * error(executor, executor, encoding, feeds[2])
