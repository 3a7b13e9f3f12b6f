"""The demo: deepbet's brain extraction network, calibrated on one head and evaluated on another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fptq.demo.assets import ASSETS, fetch, has_apt
from fptq.demo.heads import SIDE, AugmentedHeads, HeadCrop, WholeHead, tidy
from fptq.errors import AssetError
from fptq.feeds import optional, read_scan
from fptq.graph.model import TensorInfo
from fptq.tasks import Case, SegmentationTask, VolumeInput
from fptq.types import Array, FeedSource, Runner

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DemoCase:
    """Everything that `quantize` needs, ready made.

    Attributes:
        module: The float network, in eval mode.
        example: Its arguments, for the export.
        calibration: Unlabelled samples by input name.
        task: How it is scored.
        provenance: Where network and scans come from, one sentence each.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    calibration: FeedSource
    task: SegmentationTask
    provenance: tuple[str, ...]


def brain_demo(*, samples: int = 16, seed: int = 0) -> DemoCase:
    """Brain extraction at 128^3: calibration on an averaged head, evaluation on Colin27.

    Without apt, Colin27 and its label cannot be had: then the averaged head serves for both, without labels.

    Args:
        samples: Number of calibration samples.
        seed: Of their augmentation.

    Raises:
        AssetError: A file cannot be downloaded or has the wrong checksum.
        MissingExtra: torch, nibabel or scipy is not installed.
    """
    torch = optional("torch", extra="torch", purpose="the brain demo")
    from fptq.demo.linknet import load_linknet

    case, evaluation = evaluation_case()
    heads = AugmentedHeads(scan=read_scan(fetch("averaged-head")), count=samples, seed=seed)
    network, head = ASSETS["deepbet-bbox"], ASSETS["averaged-head"]
    return DemoCase(
        module=load_linknet(fetch("deepbet-bbox")),
        example=(torch.from_numpy(heads.sample(0)["image"]),),
        calibration=heads,
        task=brain_task(case),
        provenance=(
            f"Network: {network.what} ({network.archive}, {network.licence}).",
            f"Calibration: {samples} copies of the {head.what} ({head.archive}, {head.licence}), moved rigidly, "
            f"with Rician noise and a bias field (seed {seed}).",
            evaluation,
        ),
    )


def brain_task(case: Case, *, side: int = SIDE) -> SegmentationTask:
    """Brain extraction of one head, masks compared on the head's own grid."""
    info = TensorInfo(name="image", dtype=np.dtype(np.float32), shape=(1, 1, side, side, side))
    return SegmentationTask(
        cases=(case,),
        network=VolumeInput(info=info),
        preprocess=WholeHead(side=side),
        postprocess=tidy,
        classes=("brain",),
    )


def evaluation_case() -> tuple[Case, str]:
    """The head to evaluate on, and where it comes from."""
    if not has_apt():
        scan = read_scan(fetch("averaged-head"))
        text = (
            "Evaluation: the calibration head itself, without labels, because Colin27 is a Debian package and apt is "
            "absent: agreement with the float network only."
        )
        return Case(name="averaged-head", volume=scan.volume, affine=scan.affine), text
    head, brain = read_scan(fetch("colin27")), read_scan(fetch("colin27-brain"))
    if head.volume.shape != brain.volume.shape:
        raise AssetError("Colin27 and its brain have different shapes", rule="the label lies on the head's grid")
    asset = ASSETS["colin27"]
    label = (brain.volume > 0).astype(np.int32)
    text = (
        f"Evaluation: {asset.what} ({asset.archive}); label: where its skull-stripped "
        "copy (FSL BET) is above 0, an automatic mask with faults of its own."
    )
    return Case(name="colin27", volume=head.volume, affine=head.affine, label=label), text


def segment_head(locate: Runner, refine: Runner, case: Case, *, side: int = 256) -> Array:
    """The full deepbet pipeline: the small network finds the brain, the large one segments the box around it.

    Args:
        locate: The 128^3 network: `image` `f32[1, 1, 128, 128, 128]` to logits of two channels.
        refine: The network for the box: `f32[1, 1, side, side, side]`.
        case: The head.
        side: Voxels along each axis of the box.

    Returns:
        Mask `u8[X, Y, Z]` on the head's grid.
    """
    coarse_task = brain_task(case)
    cube = WholeHead()(case.volume, np.eye(4))
    coarse = tidy(coarse_task.network.run(locate, cube).argmax(0)) > 0
    fine_task = replace(brain_task(case, side=side), preprocess=HeadCrop(coarse=coarse, side=side))
    return fine_task.segment(refine, case)
