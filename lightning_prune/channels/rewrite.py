from __future__ import annotations
from typing import Any
def check_graph(*a: Any) -> Any: raise NotImplementedError
def build_from_plan(*a: Any) -> Any: raise NotImplementedError
def install(*a: Any) -> Any: raise NotImplementedError
