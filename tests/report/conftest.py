"""A report like that of a real brain-extraction network: 60 tensors, slices, refusals, and names that bite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fptq.report.decisions import Gate, NodeRecord, RefusalRecord, Reverted, Trial
from fptq.report.pictures import Slicing, slices
from fptq.report.policies import Policies, PolicyDecision, PolicyTrial
from fptq.report.records import (
    Agreement,
    Calibration,
    Drop,
    EngineInfo,
    Environment,
    Latency,
    ModelInfo,
    Score,
    Variant,
)
from fptq.report.report import Report
from fptq.report.search import Point, Search, Sensitivity, SensitivityRow, Tried
from fptq.report.tensors import Histogram, PlacementRecord, Scale

HACK = "document.documentElement.dataset.hacked=1"
HOSTILE = f"</script><script>{HACK}</script><img src=x onerror={HACK}>"
NAMES = (
    HOSTILE,
    "net/enc[0]::conv & 'quotes' \"double\"",
    "каскад.свёртка_1",
    "x" * 180,
    "txt\u202egnp.conv",
    "{{ 7 * 7 }}",
)
CASES = [f"sub-{n:02d}" for n in range(1, 13)]


def brain(size: int = 72, wobble: float = 0.0) -> np.ndarray:
    """A brain-like mask `[size, size, size]`; `wobble` moves its surface."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    folds = 0.04 * np.sin(9 * x + 1) * np.sin(8 * y) * np.cos(7 * z)
    return (
        (x / 0.62) ** 2 + (y / 0.74) ** 2 + ((z - 0.12) / 0.6) ** 2 + folds < 1 + wobble * np.sin(5 * x + 3 * z)
    ).astype(int)


def head(size: int = 72) -> np.ndarray:
    """A scan of it: brain, fluid, skull, noise."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.92) ** 2 + ((z - 0.05) / 0.85) ** 2)
    scalp = 190.0 * np.exp(-(((radius - 1.0) / 0.05) ** 2))
    inside = brain(size) * (120 + 35 * np.sin(14 * x) * np.cos(12 * y + 3) * np.sin(11 * z))
    return scalp + inside + np.random.default_rng(0).normal(8, 5, x.shape)


def layer_name(layer: int) -> str:
    """As its weight has it."""
    return NAMES[layer] if layer < len(NAMES) else f"decoder{layer % 4}.block.{layer}.conv{'t' * (layer % 3 == 0)}"


def placement(index: int, generator: np.random.Generator) -> PlacementRecord:
    """Weight, activation, weight, ... with the noise growing along the network."""
    weight, layer = index % 2 == 0, index // 2
    values = generator.normal(0, 0.08, 4000) if weight else np.maximum(generator.standard_t(4, 4000) + 0.3, 0)
    counts, edges = np.histogram(values, 256)
    clip = float(np.quantile(np.abs(values), 0.9995 if layer % 5 else 0.995))
    module = layer_name(layer)
    realized = None if index == 59 else "f32" if layer in (7, 19) else "int8"
    return PlacementRecord(
        placement=f"{'w' if weight else 'v'}_{index} -> node_conv_{layer}[{1 - index % 2}]",
        tensor=f"{'w' if weight else 'v'}_{index}",
        consumers=(f"node_conv_{layer}",),
        op="ConvTranspose" if layer % 3 == 0 else "Conv",
        module=module,
        kind="weight" if weight else "activation",
        requested="s8/channel(0)" if weight else "u8/tensor",
        realized=realized,
        kernel="brgconv_avx512_I8" if realized == "int8" else None,
        scale=Scale(count=32 if weight else 1, low=clip / 200, high=clip / 127, zero_point=0),
        range=(float(values.min()), float(values.max())),
        clipping=(-clip, clip * 127 / 128) if weight else (0.0, clip),
        sqnr_local_db=float(44 - 12 * (layer == 11) + generator.normal(0, 2.5)) if index != 58 else None,
        sqnr_accumulated_db=None if weight else float(41 - 0.35 * layer + generator.normal(0, 0.6)),
        histogram=Histogram.of(list(edges), list(counts)) if index != 40 else None,
    )


def nodes(precision: str, speed: float) -> tuple[NodeRecord, ...]:
    """What the engine says of its own graph."""
    convolutions = [
        NodeRecord(
            nodes=(f"node_conv_{layer}",),
            op="Deconvolution" if layer % 3 == 0 else "Convolution",
            precision="f32" if layer in (7, 19) else precision,
            kernel=f"brgconv_avx512_{precision}",
            time_ms=(1.4 + 0.9 * (layer % 4)) / (1 if layer in (7, 19) else speed),
        )
        for layer in range(30)
    ]
    rest = [
        NodeRecord(nodes=(f"norm_{n}",), op="MVN", precision="f32", kernel="mvn_avx512", time_ms=0.55)
        for n in range(34)
    ]
    return (*convolutions, *rest, NodeRecord(nodes=("input",), op="Reorder", precision=precision, time_ms=0.3 * speed))


def scores(generator: np.random.Generator, loss: float) -> dict[str, Score]:
    """Dice and a surface distance, case by case."""
    dice = {case: float(0.947 + 0.006 * np.sin(n) - loss * generator.random()) for n, case in enumerate(CASES)}
    distance = {case: float(3.1 + np.cos(n) + 40 * loss * generator.random()) for n, case in enumerate(CASES)}
    return {
        "Dice": Score(value=float(np.mean(list(dice.values()))), per_case=dice),
        "HD95": Score(
            value=float(np.mean(list(distance.values()))), per_case=distance, higher_is_better=False, unit="mm"
        ),
    }


def origin() -> dict[str, Any]:
    """The network, the machine and the engine."""
    return {
        "model": ModelInfo(
            name="deepbet <bbox>",
            source="deepbet.models:LinkNet",
            sha256="9f2c" * 16,
            parameters=2_131_904,
            opset=20,
            inputs=("x: float32[batch, 1, 128, 128, 128]",),
            outputs=("logits: float32[batch, 1, 128, 128, 128]",),
            notes=("34 constants folded", "batch axis is dynamic"),
        ),
        "environment": Environment(
            fptq="0.1.0",
            python="3.11.9",
            cpu="Intel(R) Xeon(R) Platinum 8481C",
            features=("avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
            os="Debian GNU/Linux 12",
            packages={"onnxruntime": "1.32.0", "openvino": "2026.4.1", "numpy": "2.3.1"},
            threads=2,
            date="2026-11-23T21:30:00+00:00",
        ),
        "engine": EngineInfo(
            name="openvino",
            version="2026.4.1",
            requested="auto",
            chosen_because="its int8 model ran in 158 ms, that of ONNX Runtime in 402 ms",
        ),
        "calibration": Calibration(samples=64, observer="lp(2.4)", seconds=71.3, peak_memory_mb=1130),
        "rewrites": ("mean bias correction of 27 convolutions, output error 2.1 % lower",),
        "warnings": ("Calibrated on one head: a range seen on other scanners may differ.",),
        "seed": 0,
        "command": "fptq quantize deepbet.models:LinkNet --calib 'scans/*.nii.gz' --val scans_val/ \\\n"
        "  --labels labels_val/ --task segmentation --engine auto --seed 0 -o out/",
    }


def variant(precision: str, latency: tuple[float, float], cost: tuple[float, float, float], loss: float) -> Variant:
    """One form of the network: latency (median, p95) [ms], cost (size [MB], memory [MB], load [s])."""
    return Variant(
        precision=precision,
        scores=scores(np.random.default_rng(1), loss),
        size_mb=cost[0],
        latency_ms=Latency(median=latency[0], p95=latency[1], runs=40),
        peak_memory_mb=cost[1],
        load_s=cost[2],
    )


def measured() -> dict[str, Any]:
    """What quantizing cost and what it brought."""
    method = "paired bootstrap over cases, 10000 resamples"
    return {
        "float": variant("fp32", (309.4, 322.0), (8.56, 912, 0.41), 0.0),
        "float_default": variant("bf16", (221.8, 236.1), (8.56, 640, 0.47), 0.0004),
        "quantized": variant("int8 + fp32", (158.2, 166.9), (2.24, 518, 0.63), 0.0011),
        "agreement": Agreement(
            sqnr_db=33.42,
            cosine=0.999873,
            argmax_match=0.99971,
            max_abs=1.84,
            output="logits",
            samples=12,
            scores={"Dice": Score(value=0.99931)},
        ),
        "drops": (Drop(score="Dice", value=0.0006, low=0.0004, high=0.0008, method=method, cases=12),),
        "speedup": 309.4 / 158.2,
        "speedup_default": 221.8 / 158.2,
        "compression": 8.56 / 2.24,
        "nodes": nodes("int8", 3.1),
        "float_nodes": nodes("f32", 1.0),
    }


def refusals() -> tuple[RefusalRecord, ...]:
    """Many for one reason, and one whose name bites."""
    op, reason = "InstanceNormalization", "InstanceNormalization is not in the int8 profile of OpenVINO 2026.4"
    return (
        *(RefusalRecord(node=f"node_norm_{n}", op=op, module=f"encoder.{n}.norm", reason=reason) for n in range(34)),
        RefusalRecord(node=HOSTILE, op="Conv", module="head", reason="kept by --keep-float 'head'"),
        RefusalRecord(node="node_resize", op="Resize", reason="reads a tensor that another node needs in float"),
    )


def gate() -> Gate:
    """Three placements timed, two nodes taken back."""
    times = "int8 9.1 ms, float 4.3 ms"
    return Gate(
        tried=(
            Trial(name="all that the profile allows", latency_ms=171.3, note="two convolutions lose"),
            Trial(name="without node_conv_7", latency_ms=162.0),
            Trial(name="without node_conv_7, node_conv_19", latency_ms=158.2, kept=True),
        ),
        reverted=(
            Reverted(node="node_conv_7", op="ConvTranspose", module="decoder3.up", reason=times, weights_kept=True),
            Reverted(node="node_conv_19", op="Conv", reason="int8 1.9 ms, float 1.2 ms"),
        ),
        margin=0.03,
        conclusion="Two of 35 convolutions ran faster in float and were taken back.",
    )


FORMATS = ("w8a8", "w4a8", "w4a4")


def sensitivity() -> Sensitivity:
    """Two layers hurt far more than the others; error gathers along the network; the largest layers are narrow."""
    generator = np.random.default_rng(11)
    rows = []
    for layer in range(30):
        hurt = 10 ** generator.normal(-5.6, 0.45) * (40 if layer in (0, 11) else 1)
        local = float(36 - 10 * (layer in (0, 11)) + generator.normal(0, 2))
        before = 10 ** (-(41 - 0.3 * layer) / 10)
        loss = {"w8a8": hurt, "w4a8": 60 * hurt * (1 + generator.random()), "w4a4": 400 * hurt}
        rows.append(
            SensitivityRow(
                layer=f"node_conv_{layer}",
                module=layer_name(layer),
                parameters=27 * 16 * 2 ** (4 - abs(layer - 14) // 4) ** 2,
                loss=loss,
                local_db=local,
                accumulated_db=float(-10 * np.log10(10 ** (-local / 10) + before)) if layer != 29 else None,
                precision="float" if layer in (0, 11, 19) else "w4a8" if 12 < layer < 18 else "w8a8",
            )
        )
    return Sensitivity(
        objective="squared", method="fisher", samples=16, formats=FORMATS, compared="w8a8", rows=tuple(rows)
    )


def point(share: float, floats: int, narrow: int, *, chosen: bool = False) -> Point:
    """One mix: the smaller, the worse."""
    predicted = 4e-5 / share**3.2
    drop = 0.9 * predicted
    return Point(
        costs={"size": share * 8.56e6, "bops": (0.06 + 0.4 * share) * 2.9e14, "latency": 120 + 130 * share},
        predicted=predicted,
        verified=predicted * (1.15 if share < 0.3 else 0.95),
        drop=drop,
        upper=1.4 * drop + 0.0002,
        passes=1.4 * drop + 0.0002 <= 0.005,
        layers={"float": floats, "w8a8": 30 - floats - narrow, "w4a8": narrow},
        peak_activations=33.5e6,
        chosen=chosen,
    )


def search() -> Search:
    """The front of a search for the smallest network, the answer in its middle."""
    front = ((0.14, 0, 28), (0.17, 0, 21), (0.21, 0, 14), (0.25, 1, 8), (0.298, 3, 5), (0.38, 5, 2), (0.52, 9, 0))
    return Search(
        objective="squared",
        cost="size",
        limits={"size": 0.3 * 8.56e6},
        float_costs={"size": 8.56e6, "bops": 2.9e14, "latency": 309.4},
        points=tuple(point(*one, chosen=one[0] == 0.298) for one in front),
        max_drop=0.005,
        confidence=0.95,
        metric="Dice",
        evaluations=7,
        emulated=("w4a8",),
        notes=("The predicted error of a mix is the sum of its layers' errors, each alone.",),
    )


def tried() -> tuple[Tried, ...]:
    """One that helped, one that did not."""
    return (
        Tried(name="mean bias correction", before_db=32.1, after_db=33.4, kept=True),
        Tried(name="rounding learned layer by layer", before_db=33.4, after_db=33.1),
    )


def policies() -> Policies:
    """An activation that got another policy, and one that kept its quantizer."""
    common = {"local_db": 37.2, "estimate": 0.012, "after_db": 42.18, "rounds": 21}
    won = PolicyDecision(
        tensor="gelu_3",
        readers=("node_MatMul_300",),
        module="layers.3.contract",
        local_db=29.7,
        before_db=41.96,
        trials=(
            PolicyTrial(
                policy="pieces",
                detail="7 of 2048 channels in up to 2 pieces",
                local_db=33.1,
                estimate=0.006,
                after_db=42.05,
                latency=1.004,
                latency_at_most=1.01,
                more=0.004,
                rounds=21,
                reason="per token gains more for its time",
            ),
            PolicyTrial(
                policy="per token",
                detail="rows scaled to [-0.0625, 1]",
                latency=1.011,
                latency_at_most=1.03,
                more=0.011,
                kept=True,
                reason="gains most of the output for its time",
                **common,
            ),
            PolicyTrial(policy="float input", detail="weights stay int8", estimate=0.2, reason="expected to add 20.0%"),
        ),
    )
    stayed = PolicyDecision(tensor="gelu_1", readers=("node_MatMul_164",), local_db=30.4, before_db=42.18)
    return Policies(
        budget=0.15, uniform_ms=11.2, latency=1.011, latency_at_most=1.03, decisions=(won, stayed), replayed=False
    )


def build(**changes: Any) -> Report:
    """The report, with some fields changed."""
    generator = np.random.default_rng(7)
    masks = {"float": brain(), "int8": brain(wobble=0.02), "label": brain(wobble=-0.05)}
    fields = {
        **origin(),
        **measured(),
        "placements": tuple(placement(index, generator) for index in range(60)),
        "refusals": refusals(),
        "gate": gate(),
        "pictures": slices(head(), masks, Slicing(case="sub-07")),
        "sensitivity": sensitivity(),
        "search": search(),
        "tried": tried(),
        "policies": policies(),
    }
    return Report(**{**fields, **changes})


@pytest.fixture(scope="session")
def report() -> Report:
    """The whole report."""
    return build()


@pytest.fixture(scope="session")
def build_report() -> Callable[..., Report]:
    """Make the report with some fields changed."""
    return build
