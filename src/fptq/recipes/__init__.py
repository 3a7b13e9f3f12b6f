"""The verbs that users call, each a story on one page."""

from fptq.recipes.demo import demo_brain
from fptq.recipes.predict import predict
from fptq.recipes.quantize import quantize
from fptq.recipes.result import Result
from fptq.recipes.search import SearchPoint, SearchResult, SearchRow, search
from fptq.recipes.sensitivity import FORMATS, SensitivityRow, SensitivityTable, sensitivity
from fptq.recipes.survey import BenchRow, Inspection, InspectionRow, bench, inspect

__all__ = [
    "FORMATS",
    "BenchRow",
    "Inspection",
    "InspectionRow",
    "Result",
    "SearchPoint",
    "SearchResult",
    "SearchRow",
    "SensitivityRow",
    "SensitivityTable",
    "bench",
    "demo_brain",
    "inspect",
    "predict",
    "quantize",
    "search",
    "sensitivity",
]
