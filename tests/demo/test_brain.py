from dataclasses import replace

import numpy as np
import pytest
import torch

from fptq.demo import assets, brain, brain_demo
from fptq.demo.assets import fetch
from fptq.demo.linknet import LinkNet3d, load_linknet

pytestmark = pytest.mark.asset


@pytest.fixture(scope="module")
def demo():
    return brain_demo(samples=3)


def runner(module):
    def run(feeds):
        with torch.inference_mode():
            return {"logits": module(torch.from_numpy(feeds["image"])).numpy()}

    return run


@pytest.mark.parametrize("name", ["deepbet", "deepbet-bbox"])
def test_the_plain_module_equals_the_published_one(name):
    module = load_linknet(fetch(name))
    published = torch.jit.load(str(fetch(name)))
    image = torch.rand(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(torch.softmax(module(image), 1), published(image))
    assert sum(p.numel() for p in LinkNet3d().parameters()) == 2_126_258


@pytest.mark.skipif(not assets.has_apt(), reason="Colin27 is a Debian package and apt is absent")
def test_it_finds_the_brain_of_another_head(demo):
    case = demo.task.cases[0]
    assert case.name == "colin27"
    assert case.volume.shape == case.label.shape == (181, 217, 181)
    scores = replace(demo.task, metrics=("dice",)).evaluate(runner(demo.module))
    assert scores["dice"].value == pytest.approx(0.934, abs=0.003)
    assert len(demo.provenance) == 3


def test_calibration_heads_look_like_what_the_network_was_trained_on(demo):
    (example,) = demo.example
    assert example.shape == (1, 1, 128, 128, 128)
    samples = list(demo.calibration)
    assert len(samples) == 3
    run = runner(demo.module)
    shares = [run(sample)["logits"].argmax(1).mean() for sample in samples[:2]]
    # A brain fills about an eighth of the field of view, moved or not.
    assert all(0.08 < share < 0.18 for share in shares)
    colin = demo.task.preprocess(demo.task.cases[0].volume, np.eye(4))
    assert not any(np.array_equal(colin, sample["image"][0]) for sample in samples)


def test_without_apt_the_demo_has_no_labels(monkeypatch):
    monkeypatch.setattr(brain, "has_apt", lambda: False)
    demo = brain_demo(samples=1)
    assert demo.task.cases[0].label is None
    assert "apt is absent" in demo.provenance[-1]


@pytest.mark.slow
@pytest.mark.skipif(not assets.has_apt(), reason="Colin27 is a Debian package and apt is absent")
def test_the_full_pipeline_at_256(demo):
    case = demo.task.cases[0]
    mask = brain.segment_head(runner(demo.module), runner(load_linknet(fetch("deepbet"))), case)
    overlap = 2 * (mask & (case.label > 0)).sum() / (mask.sum() + (case.label > 0).sum())
    assert overlap == pytest.approx(0.936, abs=0.003)
