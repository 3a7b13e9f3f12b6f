"""Tasks: what a network is for, and how well it does it."""

from fptq.tasks.agreement import Agreement, OutputAgreement, compare
from fptq.tasks.base import Drop, Score, Scores, Task, interval, paired_drop, signed_rank
from fptq.tasks.cases import Case, open_cases
from fptq.tasks.classification import ClassificationTask
from fptq.tasks.generic import MetricTask
from fptq.tasks.inference import VolumeInput
from fptq.tasks.labelled import LabelledImages, open_labelled
from fptq.tasks.proteins import ProteinOutputs, ProteinTask
from fptq.tasks.segmentation import SegmentationTask
from fptq.tasks.store import FolderStore

__all__ = [
    "Agreement",
    "Case",
    "ClassificationTask",
    "Drop",
    "FolderStore",
    "LabelledImages",
    "MetricTask",
    "OutputAgreement",
    "ProteinOutputs",
    "ProteinTask",
    "Score",
    "Scores",
    "SegmentationTask",
    "Task",
    "VolumeInput",
    "compare",
    "interval",
    "open_cases",
    "open_labelled",
    "paired_drop",
    "signed_rank",
]
