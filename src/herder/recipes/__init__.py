"""Recipes: one Python file tells one model's whole story, as frozen dataclasses and a graph of steps.

A recipe module has `Config`, a frozen dataclass whose defaults are the recipe's literals, and `recipe(config)`, which returns
the last steps of the graph.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from herder.config import override
from herder.steps import Step


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> tuple[Callable[[Any], Sequence[Step]], type]:
    """(recipe, Config) by name, or from the path of a Python file. Raises ValueError naming the nearest recipe."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.exists():
            raise ValueError(f"{name} does not exist; give a recipe's name ({', '.join(names())}) or a Python file")
        spec = importlib.util.spec_from_file_location(f"herder_recipe_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and the hash of a step's source look for it there
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise ValueError(f"{name}, line {error.lineno}: {error.msg}; mend the recipe") from None
    elif name in names():
        module = importlib.import_module(f"herder.recipes.{name}")
    else:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"recipes are: {', '.join(names())}"
        raise ValueError(f"unknown recipe {name!r}; {hint}")
    for needed in ("Config", "recipe"):
        if not hasattr(module, needed):
            raise ValueError(f"{name} is no recipe: it has no `{needed}`")
    return module.recipe, module.Config


def build(name: str, settings: Sequence[str], graph: str = "recipe") -> tuple[Any, Sequence[Step]]:
    """The configuration after --set, and the last steps of the graph it gives. `graph` names another function of the recipe's
    module that makes one ("mix_search"); ValueError where it has none."""
    recipe, config_type = find(name)
    if graph != "recipe":
        recipe = getattr(sys.modules[recipe.__module__], graph, None)
        if recipe is None:
            raise ValueError(
                f"{name} has no `{graph}`; add a function of that name that takes its Config, or take miniature"
            )
    config = override(config_type(), settings)
    last = recipe(config)
    return config, (last,) if isinstance(last, Step) else tuple(last)
