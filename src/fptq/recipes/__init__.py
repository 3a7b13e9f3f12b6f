"""The verbs that users call, each a story on one page."""

from fptq.recipes.bundle_predict import BundlePredictor, bundle_predictor, is_bundle_folder, predict_bundle
from fptq.recipes.demo import demo_brain
from fptq.recipes.nnunet import FoldResults, quantize_nnunet
from fptq.recipes.nnunet_predict import is_nnunet_folder, nnunet_predictor, predict_nnunet
from fptq.recipes.predict import predict
from fptq.recipes.quantize import quantize
from fptq.recipes.result import Result
from fptq.recipes.search import SearchPoint, SearchResult, SearchRow, search
from fptq.recipes.sensitivity import FORMATS, SensitivityRow, SensitivityTable, sensitivity
from fptq.recipes.survey import BenchRow, Inspection, InspectionRow, bench, inspect

__all__ = [
    "FORMATS",
    "BenchRow",
    "BundlePredictor",
    "FoldResults",
    "Inspection",
    "InspectionRow",
    "Result",
    "SearchPoint",
    "SearchResult",
    "SearchRow",
    "SensitivityRow",
    "SensitivityTable",
    "bench",
    "bundle_predictor",
    "demo_brain",
    "inspect",
    "is_bundle_folder",
    "is_nnunet_folder",
    "nnunet_predictor",
    "predict",
    "predict_bundle",
    "predict_nnunet",
    "quantize",
    "quantize_nnunet",
    "search",
    "sensitivity",
]
