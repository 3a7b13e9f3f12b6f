"""Where quantizers stand: profiles, placement, encodings and the Q/DQ files."""

from fptq.graph.placement import Placement
from fptq.plan.encoding import Encoding, load_encoding, save_encoding
from fptq.plan.materialize import materialize
from fptq.plan.packed import expanded, packed, packs
from fptq.plan.place import place
from fptq.plan.plan import Plan, Refusal
from fptq.plan.policy import Policy
from fptq.plan.profiles import PROFILES

__all__ = [
    "PROFILES",
    "Encoding",
    "Placement",
    "Plan",
    "Policy",
    "Refusal",
    "expanded",
    "load_encoding",
    "materialize",
    "packed",
    "packs",
    "place",
    "save_encoding",
]
