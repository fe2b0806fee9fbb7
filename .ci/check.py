"""Checks that imports point down, and how long the code is: `python .ci/check.py [ROOT]`, exit status 1 on a violation.

cli -> recipes -> stages -> train, engine -> model, tokenizer -> ground floor. A file imports from its own package and from lower
floors; a stage imports another stage only by its package's own names, or a module listed in PUBLIC. Imports inside functions and
for types alone count too: they are knowledge of the other part all the same.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STAGES = "corpus curate pretrain posttrain skills sandbox evaluate guard serve convert plan scaling vision speech drill"
FLOORS = {
    6: ["cli", "__main__"],
    5: ["recipes"],
    4: STAGES.split(),
    3: ["train", "engine"],
    2: ["model", "tokenizer"],
    1: [
        "",
        "records",
        "progress",
        "config",
        "gguf",
        "steps",
        "launch",
        "supervise",
        "report",
    ],  # "" is herder/__init__.py
}
LEVEL = {name: floor for floor, names in FLOORS.items() for name in names}
GROUND, STAGE = 1, 4
PUBLIC = {"herder.curate.extract"}
FILE_MOST, FILE_MUCH, FUNCTION_MOST, FUNCTION_MUCH = 600, 400, 100, 60


@dataclass(frozen=True)
class Import:
    """`module` imported in `file` (a path from the root) at `line`, by a file of `package` (first name under herder)."""

    file: str
    line: int
    package: str
    module: str

    @property
    def target(self) -> str:
        return [*self.module.split("."), ""][1]

    def refused(self, why: str) -> str:
        return f"{self.file}:{self.line}: {self.package or 'herder'} imports {self.module}: {why}"


def main(root: Path) -> int:
    imports, problems = list(read_imports(root)), []
    problems += [i.refused(why) for i in imports if (why := refusal(i))]
    problems += circles(imports)
    long, warnings = lengths(root)
    problems += long
    for line in table(root):
        print(line)
    for text in warnings:
        print(f"warning: {text}")
    for text in problems:
        print(text, file=sys.stderr)
    return 1 if problems else 0


def read_imports(root: Path) -> Iterator[Import]:
    """Every import of a herder module in src/herder."""
    source = root / "src"
    modules = {module_name(path, source): path for path in (source / "herder").rglob("*.py")}
    bound = {name: bound_names(path) for name, path in modules.items() if path.name == "__init__.py"}
    for name, path in sorted(modules.items()):
        package = [*name.split("."), ""][1]
        home = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for module in imported(node, home, modules, bound):
                if module == "herder" or module.startswith("herder."):
                    yield Import(str(path.relative_to(root)), node.lineno, package, module)


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, home: str, modules: dict[str, Path], bound: dict[str, set[str]]) -> list[str]:
    """The modules that one statement imports. `from package import name` is the package where its __init__ binds the name,
    and the submodule where it does not."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        above = home.split(".")[: len(home.split(".")) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    names = [
        f"{base}.{a.name}" if a.name not in bound.get(base, ()) and f"{base}.{a.name}" in modules else base
        for a in node.names
    ]
    return list(dict.fromkeys(names))


def bound_names(path: Path) -> set[str]:
    """Names that a package's __init__ defines, imports from elsewhere, or lists in __all__."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names if node.module}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names |= {e.value for e in getattr(node.value, "elts", []) if isinstance(e, ast.Constant)}
    return names


def refusal(found: Import) -> str:
    """Why an import is not allowed; empty where it is."""
    for name in (found.package, found.target):
        if name not in LEVEL:
            return f"{name} has no floor; give it one in .ci/check.py"
    own, other = LEVEL[found.package], LEVEL[found.target]
    if found.package == found.target or other < own or own == other == GROUND:
        return ""
    if other > own:
        return f"upward, from floor {own} to floor {other}; move what both need to a lower floor"
    if own == STAGE:
        inside = found.module.count(".") > 1 and found.module not in PUBLIC
        return f"the inside of another stage; import from herder.{found.target}" if inside else ""
    return f"sideways on floor {own}; let the caller join them"


def circles(imports: list[Import]) -> list[str]:
    """Packages that import each other, directly or around: one sentence for each import that closes a circle."""
    edges: dict[str, dict[str, Import]] = {}
    for found in imports:
        if found.package != found.target and found.target:
            edges.setdefault(found.package, {}).setdefault(found.target, found)
    out, done = [], set()

    def visit(package: str, path: list[str]) -> None:
        if package in path:
            ring = [*path[path.index(package) :], package]
            out.append(edges[path[-1]][package].refused("closes the circle " + " -> ".join(ring)))
        elif package not in done:
            for target in sorted(edges.get(package, ())):
                visit(target, [*path, package])
            done.add(package)

    for package in sorted(edges):
        visit(package, [])
    return out


def lengths(root: Path) -> tuple[list[str], list[str]]:
    """Files and functions that are too long, and those that are long."""
    problems, warnings = [], []

    def judge(what: str, lines: int, most: int, much: int) -> None:
        if lines > much:
            (problems if lines > most else warnings).append(
                f"{what} has {lines} lines, {most if lines > most else much} are the limit"
            )

    for path in python_files(root):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(root))
        judge(name, text.count("\n"), FILE_MOST, FILE_MUCH)
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                judge(
                    f"{name}:{node.lineno}: {node.name}",
                    node.end_lineno - node.lineno + 1,
                    FUNCTION_MOST,
                    FUNCTION_MUCH,
                )
    return problems, warnings


def python_files(root: Path) -> list[Path]:
    return sorted(p for folder in ("src", "tests", "benchmarks") for p in (root / folder).rglob("*.py"))


def table(root: Path) -> Iterator[str]:
    """Lines of Python by folder, with a sum for src, tests and benchmarks."""
    counts: dict[str, dict[str, list[int]]] = {}
    for path in python_files(root):
        top, *inner = path.relative_to(root).parts[:-1]
        inner = inner[1:] if top == "src" else inner
        row = counts.setdefault(top, {}).setdefault(inner[0] if inner else ".", [0, 0])
        row[0] += 1
        row[1] += path.read_text(encoding="utf-8").count("\n")
    for top, rows in counts.items():
        for name, (files, lines) in [*rows.items(), ("total", [sum(r[i] for r in rows.values()) for i in (0, 1)])]:
            yield f"{top if name == 'total' else f'  {name}':<16}{files:>5} files{lines:>8,} lines"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]))
