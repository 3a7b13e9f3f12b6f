"""Calibrate on what a pipeline really feeds its network, then put the int8 network into the pipeline."""

import torch
from torch import Tensor, nn

import fptq


class Pipeline:
    """Normalisation, a sliding window, a network, a threshold: what users have instead of calibration batches."""

    def __init__(self, net: nn.Module, window: int = 24) -> None:
        self.net, self.window = net, window

    def __call__(self, volume: Tensor) -> Tensor:
        volume = (volume - volume.mean()) / volume.std()
        mask = torch.zeros(volume.shape, dtype=torch.bool)
        for start in range(0, volume.shape[0], self.window):
            part = slice(start, start + self.window)
            mask[part] = self.net(volume[None, None, part])[0, 0] > 0
        return mask


def main() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU())
    net = nn.Sequential(net, nn.Conv3d(16, 1, 1)).eval()
    pipeline = Pipeline(net)
    volume = 40 * torch.rand(96, 24, 24)

    with fptq.record(pipeline.net, limit=100) as samples:
        pipeline(volume)
    print(samples)

    # A toy is too small to time; for a real network leave the gate on.
    result = fptq.quantize(pipeline.net, calibration=samples, engine="onnxruntime", gate="off")
    before = pipeline(volume)
    pipeline.net = result.as_module()
    after = pipeline(volume)

    dice = 2 * (before & after).sum() / (before.sum() + after.sum())
    print(f"SQNR {result.report.agreement.sqnr_db:.1f} dB, Dice of the two masks {float(dice):.4f}")


if __name__ == "__main__":
    main()
