"""`Recipe`: every option of a quantization in one validated record, and its file `fptq.toml`.

The file, the command line and the Python call all make one: what a file says is overridden by the options given
beside it. Field names are the option names with underscores.
"""

from fptq.config.checks import LIMITS
from fptq.config.preprocess import IMAGE_KEYS, PreprocessTable
from fptq.config.recipe import FILE_NAME, Recipe, load_recipe

__all__ = ["FILE_NAME", "IMAGE_KEYS", "LIMITS", "PreprocessTable", "Recipe", "load_recipe"]
