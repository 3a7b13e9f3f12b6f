"""Where the benchmark keeps what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
NETWORKS = ("basicunet", "dynunet", "unet", "deepbet", "encoder", "swinunetr", "transunet")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The work folder of one network.

    Attributes:
        name: The network.
        results: The folder of all networks.
    """

    name: str
    results: Path = HERE / "results"

    @property
    def root(self) -> Path:
        return self.results / self.name

    @property
    def float_model(self) -> Path:
        return self.root / "float.onnx"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def quantized(self) -> Path:
        return self.root / "quantized"

    @property
    def measured(self) -> Path:
        return self.root / "measured.json"
