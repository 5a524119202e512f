"""Draws which room of each package knows which: ``make map``.

A room is a module or a package directly below the package that is drawn; it stands on the floor above the highest of
those that it imports. What only a type checker imports does not count.
"""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter

import grimp

PACKAGES = ("omniq", "omniq_local", "omniq_nats", "omniq_postgres", "omniq_redis")


def arrows_of(graph: grimp.ImportGraph, package: str) -> dict[str, set[str]]:
    """Return for each room of a package the rooms of it that it imports."""
    depth = package.count(".") + 1
    arrows: dict[str, set[str]] = {child.split(".")[depth]: set() for child in graph.find_children(package)}
    for module in graph.find_descendants(package):
        room = module.split(".")[depth]
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.startswith(f"{package}."):
                arrows[room].add(imported.split(".")[depth])
        arrows[room].discard(room)
    return arrows


def floors_of(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the rooms floor by floor, the lowest first.

    :raises graphlib.CycleError: if rooms import each other in a circle.
    """
    floor: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        floor[room] = 1 + max((floor[below] for below in arrows[room]), default=-1)
    return [
        sorted(room for room in floor if floor[room] == level) for level in range(max(floor.values(), default=-1) + 1)
    ]


def drawn(graph: grimp.ImportGraph, package: str) -> str:
    """Return the map of a package as text, the highest floor first."""
    arrows = arrows_of(graph, package)
    floors = floors_of(arrows)
    lines = [f"{package}: {len(arrows)} rooms, {len(floors)} floors, {sum(map(len, arrows.values()))} arrows"]
    lines += [f"  {level:2}  {'  '.join(rooms)}" for level, rooms in reversed([*enumerate(floors)])]
    return "\n".join(lines)


if __name__ == "__main__":
    whole = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)
    wanted = sys.argv[1:] or [
        *PACKAGES,
        *sorted(room for room in whole.find_children("omniq") if whole.find_children(room)),
    ]
    print("\n\n".join(drawn(whole, package) for package in wanted))
