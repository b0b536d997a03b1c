"""Fail when two modules of a package import each other, directly or over others.

    python tools/check_cycles.py [--package tau2_lightning]

Every import statement counts: those inside functions and those for type checkers too. Prints each circle as the chain
of modules that closes it, and exits with 1 if there is one. import-linter's layers forbid circles between rooms; this
check also covers modules inside one room.
"""

from __future__ import annotations

import argparse
import graphlib

import grimp


def cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    """One chain of modules for each circle, closed (first module == last); the graph is cut there to find the next."""
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}
    found: list[list[str]] = []
    while True:
        try:
            graphlib.TopologicalSorter(imports).prepare()
        except graphlib.CycleError as error:
            # graphlib lists a circle from the imported module to its importer.
            chain = list(reversed(error.args[1]))
            found.append(chain)
            imports[chain[0]].discard(chain[1])
        else:
            return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="tau2_lightning")
    package = parser.parse_args().package
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)
    found = cycles(graph)
    for chain in found:
        print("circle of imports: " + " -> ".join(chain))
    print(f"{package}: {len(graph.modules)} modules, {len(found)} circles of imports")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
