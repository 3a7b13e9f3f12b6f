"""Networks whose own tool prepares the data and scores the results: what a recipe must leave to it."""

from __future__ import annotations

from dataclasses import dataclass

from fptq.config import Recipe
from fptq.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What prepares images for a network and cuts them.

    Attributes:
        network: What the network is called.
        pieces: What it cuts.
        decides: Options of a recipe that it decides itself.
        rule: What it does, in a sentence.
        remedy: What to do with an option that it decides.
        scorer: What scores its label maps.
    """

    network: str
    pieces: str
    decides: tuple[str, ...]
    rule: str
    remedy: str
    scorer: str

    def checked(self, recipe: Recipe) -> Recipe:
        """A recipe for such a network, whose pieces have one size.

        Raises:
            ConfigError: It holds what the tool decides.
        """
        for name in self.decides:
            if getattr(recipe, name) is not None:
                raise self.decided(name)
        if recipe.task != "generic":
            raise ConfigError(
                f'task = "{recipe.task}" with {self.network}',
                rule=f"its report compares {self.pieces} with the float network's",
                remedy=f"Leave it out; score label maps with {self.scorer}",
            )
        return recipe if "dynamic" in recipe.model_fields_set else recipe.merged(dynamic="none")

    def decided(self, name: str) -> ConfigError:
        """The error for an option that the tool decides."""
        return ConfigError(f"{name} with {self.network}", rule=self.rule, remedy=self.remedy)
