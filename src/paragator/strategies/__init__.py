"""Strategies: ways to spend tokens at test time, as data. docs/strategies.md has a section on each.

The table STRATEGIES holds them by name. `register_strategy` adds one of your own, "module:function" names one without
that, and settings follow a name: "pairwise:budget=2,n=16".
"""

from __future__ import annotations

from paragator.strategies.base import Asking, Read, Sizes, Strategy
from paragator.strategies.table import STRATEGIES, Named, register_strategy, strategy_named

__all__ = ["STRATEGIES", "Asking", "Named", "Read", "Sizes", "Strategy", "register_strategy", "strategy_named"]
