"""MONAI's networks, small: through the door, quantized, and really run on the CPU's engines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")
pytest.importorskip("einops")

from monai.inferers import sliding_window_inference  # noqa: E402
from monai.networks import nets  # noqa: E402

import fptq  # noqa: E402
from fptq.calibrate import calibrate  # noqa: E402
from fptq.engines import CompileOptions, engine_named  # noqa: E402
from fptq.engines.module import EngineModule  # noqa: E402
from fptq.engines.node_times import slowest_runs  # noqa: E402
from fptq.graph.load import LoadOptions, load  # noqa: E402
from fptq.graph.model import Model  # noqa: E402
from fptq.graph.write import file_bytes, save  # noqa: E402
from fptq.plan import PROFILES, Policy, materialize, place  # noqa: E402
from fptq.rewrite import PASSES  # noqa: E402

EXACT = CompileOptions(threads=1, float_precision="f32")


def example(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def transunet(rank: int, size: int) -> torch.nn.Module:
    made = example("transunet")
    net: torch.nn.Module = made.TransUNet(rank, 1, 3, size, made.SMALL)
    return net


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small network.

    Attributes:
        make: It.
        window: The size of its windows.
        least: The least SQNR [dB] on ONNX Runtime and on OpenVINO: what was measured, less 3.
        smaller: How many times smaller the files are at least: what was measured, less 0.1. ONNX Runtime keeps
            convolutions of few channels in float.
        dynamic: Axes; "auto" is a dynamic batch, whose export takes twice as long.
    """

    make: Callable[[], torch.nn.Module]
    window: tuple[int, ...]
    least: tuple[float, float]
    smaller: tuple[float, float]
    dynamic: str = "none"


CASES = {
    "unet": Case(
        make=lambda: nets.UNet(3, 1, 3, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="batch"),
        window=(16, 16, 16),
        least=(29, 26),
        smaller=(1.8, 3.4),
        dynamic="auto",
    ),
    "basic-unet": Case(
        make=lambda: nets.BasicUNet(3, 1, 3, features=(16, 16, 16, 32, 32, 16)),
        window=(32, 32, 32),
        least=(23, 24),
        smaller=(2.9, 3.3),
    ),
    "dynunet": Case(
        make=lambda: nets.DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[16, 32, 64], res_block=True),
        window=(16, 16, 16),
        least=(22, 24),
        smaller=(3.0, 3.5),
    ),
    "segresnet": Case(
        make=lambda: nets.SegResNet(3, init_filters=16, out_channels=3, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        window=(16, 16, 16),
        least=(29, 31),
        smaller=(3.5, 3.6),
        dynamic="auto",
    ),
    "unetr": Case(
        make=lambda: nets.UNETR(1, 3, (32, 32, 32), feature_size=16, hidden_size=64, mlp_dim=128, num_heads=4),
        window=(32, 32, 32),
        least=(22, 23),
        smaller=(2.3, 3.9),
    ),
    "swinunetr": Case(
        make=lambda: nets.SwinUNETR(1, 3, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), feature_size=12, spatial_dims=2),
        window=(64, 64),
        least=(20, 25),
        smaller=(2.8, 3.4),
    ),
    "transunet-2d": Case(make=lambda: transunet(2, 64), window=(64, 64), least=(12, 11), smaller=(2.7, 2.9)),
    "transunet-3d": Case(make=lambda: transunet(3, 32), window=(32, 32, 32), least=(21, 19), smaller=(3.0, 3.3)),
}


def images(case: Case, count: int) -> list[torch.Tensor]:
    """Blobs with noise: windows that are not all alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 1, *(size // 4 for size in case.window), generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, case.window)
    return list((blobs + 0.3 * torch.randn(blobs.shape, generator=generator))[:, None])


def settle(net: torch.nn.Module, case: Case) -> None:
    """Give a network that is not trained norms that fit what comes through, and no gradients."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
    net.requires_grad_(requires_grad=False)
    if norms:
        net.train()(torch.cat(images(case, 3)))
    net.eval()


@pytest.fixture(scope="module", params=list(CASES))
def loaded(request: pytest.FixtureRequest) -> tuple[Case, torch.nn.Module, Model]:
    case = CASES[request.param]
    torch.manual_seed(0)
    net = case.make()
    settle(net, case)
    first, *others = images(case, 2)
    options = LoadOptions(dynamic=case.dynamic)
    return case, net, load(net, example=first, others=[torch.cat([first, *others])], options=options)


@pytest.mark.parametrize("engine", [pytest.param(e, marks=pytest.mark.engine(e)) for e in ("onnxruntime", "openvino")])
def test_a_network_runs_in_integers_near_its_float_self(
    engine: str, loaded: tuple[Case, torch.nn.Module, Model], tmp_path: Path
) -> None:
    case, net, model = loaded
    profile = PROFILES[engine]
    for name in profile.passes:
        model = PASSES[name](model)
    *calibration, held_out = images(case, 4)
    plan = place(model, profile, profile.variants[0], Policy())
    encoding = calibrate(model, plan, [{model.inputs[0].name: image.numpy()} for image in calibration])
    save(model, tmp_path / "float.onnx")
    save(materialize(model, encoding), tmp_path / "int8.onnx")

    compiled = {name: engine_named(engine).compile(tmp_path / f"{name}.onnx", EXACT) for name in ("float", "int8")}
    modules = {name: EngineModule(session, model.signature) for name, session in compiled.items()}
    exact = net(held_out)
    torch.testing.assert_close(modules["float"](held_out), exact, rtol=1e-3, atol=1e-4)
    error = (modules["int8"](held_out) - exact).square().sum() / exact.square().sum()
    assert -10 * float(torch.log10(error)) > case.least[engine == "openvino"]

    ran = slowest_runs(compiled["int8"].profile({model.inputs[0].name: held_out.numpy()}, runs=1))
    weights = [placement for placement in plan.specs if placement.index == 1]
    floats = [p.consumer for p in weights if p.consumer in ran and ran[p.consumer].precision != "int8"]
    assert not floats
    sizes = [file_bytes(tmp_path / f"{name}.onnx") for name in ("float", "int8")]
    assert sizes[0] / sizes[1] > case.smaller[engine == "openvino"]


@pytest.mark.engine("openvino")
def test_a_sliding_window_takes_the_engine_in_place_of_the_network() -> None:
    case = CASES["unet"]
    torch.manual_seed(0)
    net = case.make()
    settle(net, case)
    options = {"engine": "openvino", "gate": "off", "recipe": "fast", "threads": 1, "dynamic": "none"}
    result = fptq.quantize(net, calibration=images(case, 6), **options)
    scan = torch.nn.functional.interpolate(torch.randn(1, 1, 6, 7, 5), (24, 28, 20)) + 0.1
    # Batches of four windows, and a last one of fewer, for a network of a fixed batch of one.
    labels = [
        sliding_window_inference(scan, (16, 16, 16), 4, predictor, overlap=0.5).argmax(1)
        for predictor in (net, result.as_module())
    ]
    assert float((labels[0] == labels[1]).float().mean()) > 0.95
    assert len(np.unique(labels[0])) > 1
