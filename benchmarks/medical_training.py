"""Trains the networks of the medical table, a few minutes each; a run that is stopped goes on where it was.

python benchmarks/medical_training.py                          all of them
python benchmarks/medical_training.py unet --minutes 5         one, for five minutes more at most
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from layout import HERE
from medical_subjects import NETWORKS, batch

ROOT = HERE / "results" / "medical"
_EVERY = 25
"""Steps between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long.

    Attributes:
        steps: Batches.
        size: Windows in a batch.
        warm_up: Steps until the rate is highest; it falls to 0 along a cosine.
        decay: Of the weights.
    """

    steps: int
    size: int = 2
    warm_up: int = 20
    decay: float = 1e-2


def checkpoint(name: str) -> Path:
    """Where the weights of a network are kept."""
    return ROOT / name / "training.pt"


def trained(name: str) -> nn.Module:
    """A network in eval mode, trained first where its checkpoint is not at its end."""
    train(name, seconds=float("inf"))
    network = NETWORKS[name].build()
    network.load_state_dict(_kept(name)["network"])
    return network.eval()


def about(name: str) -> dict[str, Any]:
    """How a network was trained: steps, loss, seconds and parameters."""
    kept = _kept(name)
    parameters = sum(weights.numel() for weights in NETWORKS[name].build().parameters())
    return {"steps": kept["step"], "loss": kept["loss"], "seconds": kept["seconds"], "parameters": parameters}


def train(name: str, *, seconds: float) -> bool:
    """Train a network, or go on; whether it came to its end.

    Args:
        name: A key of `NETWORKS`.
        seconds: Stop after this long.
    """
    training = Training(steps=NETWORKS[name].steps)
    if _kept(name).get("step", 0) >= training.steps:
        return True
    run = _Run(name, training)
    begun = time.monotonic()
    while run.step < training.steps and time.monotonic() - begun < seconds:
        run.forward()
        if run.step % _EVERY == 0:
            print(f"{name}: step {run.step}, loss {run.loss:.3f}, {run.seconds:.0f} s", flush=True)
            run.save()
    run.save()
    return run.step >= training.steps


class _Run:
    """A training in progress: AdamW on the sum of Dice loss and cross entropy, in bfloat16."""

    def __init__(self, name: str, training: Training) -> None:
        from monai.losses import DiceCELoss

        torch.manual_seed(0)
        self.name, self.training = name, training
        self.network = NETWORKS[name].build().to(memory_format=torch.channels_last_3d)
        for module in self.network.modules():
            if isinstance(module, nn.InstanceNorm3d):
                # With norms in bfloat16 training ended in NaN, most likely by variances of few values.
                module.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=training.decay)
        self.criterion = DiceCELoss(softmax=True, to_onehot_y=True)
        self.step, self.loss, self.seconds = 0, float("nan"), 0.0
        if kept := _kept(name):
            self.network.load_state_dict(kept["network"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.loss, self.seconds = kept["step"], kept["loss"], kept["seconds"]

    def forward(self) -> None:
        """One step; the batch of a step is always the same."""
        begun = time.monotonic()
        images, labels = batch(np.random.default_rng([7, self.step]), self.training.size)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(images.to(memory_format=torch.channels_last_3d))
        loss = self.criterion(logits.float(), labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 12.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        recent = loss.item()
        if not np.isfinite(recent):
            raise SystemExit(f"{self.name}: the loss of step {self.step} is {recent}; lower its rate and train it anew")
        self.loss = recent if self.step == 0 else 0.95 * self.loss + 0.05 * recent
        self.step += 1
        self.seconds += time.monotonic() - begun

    def save(self) -> None:
        path = checkpoint(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        kept = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(kept | {"loss": self.loss, "seconds": self.seconds, "training": asdict(self.training)}, partial)
        partial.replace(path)

    def _rate(self) -> float:
        highest, done = NETWORKS[self.name].rate, self.step + 1
        if done <= self.training.warm_up:
            return highest * done / self.training.warm_up
        share = (done - self.training.warm_up) / (self.training.steps - self.training.warm_up)
        return highest * (1 + float(np.cos(np.pi * share))) / 2


def _kept(name: str) -> dict[str, Any]:
    """The checkpoint; empty where there is none."""
    path = checkpoint(name)
    return dict(torch.load(path, weights_only=True)) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--minutes", type=float, default=60.0, help="for each network in this call")
    parser.add_argument("--threads", type=int, default=1, help="more wait for each other where others work too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        done = train(name, seconds=60 * arguments.minutes)
        print(f"{name}: {'done' if done else 'to be gone on with'}")


if __name__ == "__main__":
    main()
