"""Calibration and validation data: from what users have to named arrays, one sample in memory at a time."""

from fptq.feeds.callables import load_callable
from fptq.feeds.folders import class_folders, find_samples, images_in
from fptq.feeds.images import Image, ImageSpec, image_array, read_image
from fptq.feeds.lengths import bucket_by_length
from fptq.feeds.optional import optional
from fptq.feeds.part import Part
from fptq.feeds.preprocess import InvertiblePreprocess, Preprocess, PreprocessSpec
from fptq.feeds.record import Recording, record
from fptq.feeds.scans import Scan, find_files, read_labels, read_scan, stem
from fptq.feeds.source import Samples, open_feeds

__all__ = [
    "Image",
    "ImageSpec",
    "InvertiblePreprocess",
    "Part",
    "Preprocess",
    "PreprocessSpec",
    "Recording",
    "Samples",
    "Scan",
    "bucket_by_length",
    "class_folders",
    "find_files",
    "find_samples",
    "image_array",
    "images_in",
    "load_callable",
    "open_feeds",
    "optional",
    "read_image",
    "read_labels",
    "read_scan",
    "record",
    "stem",
]
