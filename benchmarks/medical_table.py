"""The medical table as Markdown: in the form of the published one, then what stands behind each number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fptq.tasks import Drop, Score, paired_drop
from medical_measure import BF16, FLOAT, INT8, INT8_DEFAULT
from medical_subjects import CLASSES, NETWORKS
from tables import table

DROP, SMALLER = 0.002, 3.7
"""What is asked of int8: the most that the mean Dice may lose, and how many times smaller the file must be."""
_TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}

PUBLISHED = (
    ("U-Net", "BTCV, 13 classes, 20 volumes", "0.822 -> 0.822", "23.11 -> 6.61 (3.50x)", "2.62 -> 1.05 (2.50x)"),
    ("TransUNet", "the same", "0.816 -> 0.816", "351.85 -> 91.90 (3.83x)", "4.09 -> 1.74 (2.35x)"),
    (
        "nnU-Net",
        "TotalSegmentator V2, 104 classes, 200 volumes",
        "0.901 -> 0.895",
        "107.84 -> 33.97 (3.17x)",
        "2.99 -> 1.25 (2.39x)",
    ),
    ("SwinUNETR", "the same", "0.878 -> 0.877", "247.96 -> 70.18 (3.53x)", "9.85 -> 3.59 (2.74x)"),
)
"""MedPTQ (arXiv 2501.17343), as the README of its repository hrlblab/PTQ gave it at commit 86ee6fe."""
PUBLISHED_FEW = (
    ("nnU-Net, 26.9 M", "0.872", "0.870", "0.387", "0.170", "0.393"),
    ("SwinUNETR, 58.5 M", "0.849", "0.849", "0.565", "0.059", "0.571"),
    ("UNETR", "0.824", "0.824", "0.553", "0.004", "0.590"),
)
"""MedQuanBench (README of Chongyu1117/PTQ4MedSeg): BTCV, simulated, symmetric min-max, no reconstruction."""

Found = Mapping[str, Any]


def report(found: Found) -> str:
    """All tables of what was measured."""
    networks: Mapping[str, Found] = found["networks"]
    parts = [f"{found['machine']}; {found['date']}."]
    parts += ["## int8, in the form of the published table", _main(networks)]
    parts += ["Published, on other data, on a GPU (TensorRT):", _published()]
    parts += ["## Bars", _bars(networks)]
    parts += ["## Dice", _quality(networks), "By class, OpenVINO:", _classes(networks)]
    parts += ["## Latency", _latency(networks)]
    parts += ["## Few bits", _few(networks), "Published:", _published_few()]
    parts += ["## Training", _training(networks)]
    return "\n\n".join(parts)


def _main(networks: Mapping[str, Found]) -> str:
    head = ("network", "size [MB], float32 -> int8", "latency [ms], OpenVINO", "latency [ms], ONNX Runtime")
    head += ("mean Dice, OpenVINO", "mean Dice, ONNX Runtime", "GPU memory")
    return table(head, (_main_row(name, one) for name, one in networks.items()))


def _main_row(name: str, one: Found) -> list[str]:
    times = [_times(one["latency"], "openvino", INT8_DEFAULT), _times(one["latency"], "onnxruntime", INT8)]
    dice = [_arrow(*(_mean(one["engines"][engine]["scores"][n]) for n in (FLOAT, INT8))) for engine in _TITLES]
    return [NETWORKS[name].title, _sizes(one), *times, *dice, "not measured: no GPU"]


def _sizes(one: Found) -> str:
    small = one["engines"]["openvino"]["bytes"]
    return f"{one['bytes'] / 1e6:.2f} -> {small / 1e6:.2f} ({one['bytes'] / small:.2f}x)"


def _times(latency: Found, engine: str, quantized: str) -> str:
    before, after = latency[f"{engine}: {FLOAT}"], latency[f"{engine}: {quantized}"]
    return f"{before['ms']:.1f} -> {after['ms']:.1f} ({after['speedup']:.2f}x)"


def _arrow(before: float, after: float) -> str:
    return f"{before:.4f} -> {after:.4f}"


def _published() -> str:
    return table(("network", "data", "mean Dice", "size [MB]", "latency [ms]"), PUBLISHED)


def _bars(networks: Mapping[str, Found]) -> str:
    def rows() -> Iterator[list[str]]:
        for name, one in networks.items():
            for engine, title in _TITLES.items():
                made = one["engines"][engine]
                drop, smaller = _drop(made["scores"], INT8).value, one["bytes"] / made["bytes"]
                for what, value, bar, met in (
                    ("loss of mean Dice", f"{drop:.4f}", f"<= {DROP}", drop <= DROP),
                    ("times smaller", f"{smaller:.2f}", f">= {SMALLER}", smaller >= SMALLER),
                ):
                    yield [NETWORKS[name].title, title, what, value, bar, "met" if met else "**missed**"]

    return table(("network", "engine", "what", "value", "bar", ""), rows())


def _quality(networks: Mapping[str, Found]) -> str:
    def rows() -> Iterator[list[str]]:
        for name, one in networks.items():
            for engine, title in _TITLES.items():
                made = one["engines"][engine]
                scores, ran = made["scores"], f"{made['in_integers']} of {made['layers']}"
                for network in (n for n in scores if n != FLOAT):
                    yield [NETWORKS[name].title, title, network, *_row(scores, network), ran, f"{made['seconds']:.0f}"]

    head = ["network", "engine", "what", *_COLUMNS, "layers in int8", "quantized in [s]"]
    return table(head, rows())


_COLUMNS = (
    "Dice float32",
    "Dice",
    "lost [95 % interval]",
    "agreement with the float mask [least copy]",
)


def _row(scores: Found, network: str) -> list[str]:
    drop, agreement = _drop(scores, network), scores[network]["agreement_dice"]
    lost = f"{drop.value:.4f} [{drop.low:.4f}, {drop.high:.4f}]"
    means = [f"{_mean(scores[n]):.4f}" for n in (FLOAT, network)]
    return [*means, lost, f"{np.nanmean(agreement):.4f} [{np.nanmin(agreement):.4f}]"]


def _classes(networks: Mapping[str, Found]) -> str:
    def cells(one: Found) -> Iterator[str]:
        scores = one["engines"]["openvino"]["scores"]
        for label in CLASSES:
            before, drop = _mean(scores[FLOAT], f"dice_{label}"), _drop(scores, INT8, f"dice_{label}")
            yield f"{before:.3f}, {drop.value:+.4f} ({_mean(scores[INT8], f'agreement_dice_{label}'):.3f})"

    rows = ([NETWORKS[name].title, *cells(one)] for name, one in networks.items())
    return table(["Dice float32, lost by int8 (agreement)", *CLASSES], rows)


def _latency(networks: Mapping[str, Found]) -> str:
    columns = [f"{engine}: {kind}" for engine in _TITLES for kind in (FLOAT, BF16, INT8, INT8_DEFAULT)]
    columns = [c for c in columns if any(c in one["latency"] for one in networks.values())]
    head = ["[ms], times as fast as float32", *(c.replace(e, t) for c in columns for e, t in _TITLES.items() if e in c)]
    cells = {
        name: [f"{one['latency'][c]['ms']:.1f} ({one['latency'][c]['speedup']:.2f}x)" for c in columns]
        for name, one in networks.items()
    }
    return table([*head, "turns"], ([NETWORKS[n].title, *c, _turns(networks[n])] for n, c in cells.items()))


def _turns(one: Found) -> str:
    return str(min(entry["turns"] for entry in one["latency"].values()))


def _few(networks: Mapping[str, Found]) -> str:
    def rows() -> Iterator[list[str]]:
        for name, one in networks.items():
            scores = one["engines"]["openvino"]["scores"]
            yield [NETWORKS[name].title, "w8a8", "default recipe", *_few_cells(one, one["engines"]["openvino"], scores)]
            for made in one["few bits"]:
                both = {FLOAT: scores[FLOAT], INT8: made["scores"]}
                yield [NETWORKS[name].title, made["bits"], made["method"], *_few_cells(one, made, both)]

    head = ["network", "format", "codes by", *_COLUMNS, "layers in int8 kernels", "stored [MB]", "found in [s]"]
    return table(head, rows())


def _few_cells(one: Found, made: Found, scores: Found) -> list[str]:
    stored = made["packed_bytes"] or made["bytes"]
    size = f"{stored / 1e6:.2f} ({one['bytes'] / stored:.1f}x)"
    return [*_row(scores, INT8), f"{made['in_integers']} of {made['layers']}", size, f"{made['seconds']:.0f}"]


def _published_few() -> str:
    head = ("network", "float32", "W8A8", "W4A4 per channel", "W4A4 per tensor", "W4A4 adaptive")
    return table(head, PUBLISHED_FEW)


def _training(networks: Mapping[str, Found]) -> str:
    def row(name: str, training: Found) -> list[str]:
        size = f"{training['parameters'] / 1e6:.2f}"
        return [NETWORKS[name].title, NETWORKS[name].what, size, str(training["steps"]), f"{training['seconds']:.0f}"]

    rows = (row(name, one["training"]) for name, one in networks.items())
    return table(("network", "what", "parameters [M]", "steps", "elapsed [s]"), rows)


def _mean(scores: Mapping[str, list[float]], metric: str = "dice") -> float:
    return float(np.nanmean(scores[metric]))


def _drop(scores: Found, network: str, metric: str = "dice") -> Drop:
    before, after = (
        Score(name=metric, value=_mean(scores[n], metric), cases=tuple(scores[n][metric])) for n in (FLOAT, network)
    )
    return paired_drop(before, after)
