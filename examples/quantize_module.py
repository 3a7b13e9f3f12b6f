"""Quantize a PyTorch module, score it with a metric of one's own, and run the int8 network in its place."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import fptq


class Samples:
    """Sixteen samples of noise; any iterable that can be walked again will do, a DataLoader too."""

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(1, 4, 32, 32, generator=generator) for _ in range(16))

    def __len__(self) -> int:
        return 16


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 3, 1),
    ).eval()


def main() -> None:
    net = build()
    held_out = torch.randn(8, 1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    wanted = [net(x).argmax(1) for x in held_out]

    def same_class(model: Callable[[Tensor], Tensor]) -> float:
        """The share of pixels that keep their class: called with the float network and with the int8 network."""
        return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in zip(held_out, wanted, strict=True)) / 8

    result = fptq.quantize(net, calibration=Samples(), engine="onnxruntime", evaluate=same_class, gate_seconds=5)
    result.save("out")

    report = result.report
    print(
        f"{report.engine.name} {report.engine.version}: {report.speedup:.2f}x faster, {report.compression:.2f}x smaller"
    )
    print(f"same class: {report.quantized.scores['same_class'].value:.2%} of the pixels")
    for refusal in report.refusals:
        print(f"kept float: {refusal.node} ({refusal.op}): {refusal.reason}")

    net_int8 = result.as_module()
    print(f"output of the int8 module: {tuple(net_int8(held_out[0]).shape)}")


if __name__ == "__main__":
    main()
