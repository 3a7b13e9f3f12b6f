"""One network trained several times, each compiled, in the place of a PyTorch module that is given weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fptq.engines.module import as_array
from fptq.errors import DataError
from fptq.types import Runner

FOLD = "fold"
"""The key of what stands for the weights of one of them."""


class EngineFolds(torch.nn.Module):
    """`f32[N, C, *S]` to `f32[N, K, *S]`, computed patch by patch by the engine; one session for each fold.

    An ensemble in PyTorch is one module into which the weights of each fold are loaded in turn; here `load_state_dict`
    chooses the session. Results own their memory and may be written to; gradients do not flow.

    Args:
        runners: The sessions; each takes and returns one array of batch 1.
        input_name: Of that array.
        output_name: Of the result.
    """

    def __init__(self, runners: Sequence[Runner], *, input_name: str, output_name: str) -> None:
        super().__init__()
        self._runners, self._input, self._output, self._chosen = tuple(runners), input_name, output_name, 0

    @property
    def parameters_of_folds(self) -> list[dict[str, torch.Tensor]]:
        """What `load_state_dict` takes, for each fold."""
        return [{FOLD: torch.tensor(index)} for index in range(len(self._runners))]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: FBT001, FBT002 (torch's signature)
        """Choose a fold.

        Raises:
            DataError: These are weights: they are in the session already.
        """
        if set(state_dict) != {FOLD}:
            raise DataError(
                "weights cannot be loaded into an engine's session",
                rule="they are part of the compiled network",
                remedy="Quantize the other network, or use its own predictor",
            )
        self._chosen = int(state_dict[FOLD])
        return torch.nn.modules.module._IncompatibleKeys([], [])

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The chosen fold's logits.

        Raises:
            DataError: A voxel is NaN or infinite: integers have no such codes, so the result would be a number.
        """
        if not bool(torch.isfinite(x).all()):
            raise DataError(
                "a patch has NaN or infinite voxels",
                rule="the quantized network takes finite numbers",
                remedy="Mend the image, for example set such voxels to the background's value",
            )
        run = self._runners[self._chosen]
        patches = as_array(x).reshape(len(x), 1, *x.shape[1:])
        results = [torch.from_numpy(run({self._input: patch})[self._output]) for patch in patches]
        return torch.cat(results).to(x.device) if len(results) != 1 else results[0].to(x.device)
