"""Chooses the slots that step aside when slots wait for each other.

A slot that moves waits for the slots in the place where it is to be. If slots wait for each other
in a circle, one of them has to be taken away first and put back last. That costs one more call. The
slots to choose are the cheapest that leave no circle: a least feedback vertex set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: The number of choices to try in one knot of circles before taking the best so far.
_MOST_CHOICES = 2000


def least_breaks(waits: Sequence[Sequence[int]], cost: Sequence[int]) -> list[int]:
    """Returns the cheapest nodes whose removal leaves no circle, in order.

    `waits[i]` are the nodes that node i waits for, without i itself. `cost[i]` is above 0. O(n + e)
    for n nodes and e edges if circles share no nodes, or if one choice is plainly as good as any.
    Otherwise the choices are tried one after the other, and the best after 2,000 is taken.
    """
    found: list[int] = []
    for knot in _knots(waits):
        members = set(knot)
        after = {i: {j for j in waits[i] if j in members} for i in knot}
        found += _Knot(after, cost).solve()
    return sorted(found)


def _knots(waits: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yields the strongly connected components of more than one node (Tarjan's algorithm)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    is_on_stack: set[int] = set()
    for root in range(len(waits)):
        if root in number:
            continue
        work = [(root, iter(waits[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        is_on_stack.add(root)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in number:
                    number[other] = low[other] = len(number)
                    stack.append(other)
                    is_on_stack.add(other)
                    work.append((other, iter(waits[other])))
                    break
                if other in is_on_stack:
                    low[node] = min(low[node], number[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    knot = [stack.pop()]
                    while knot[-1] != node:
                        knot.append(stack.pop())
                    is_on_stack.difference_update(knot)
                    if len(knot) > 1:
                        yield knot


class _Graph:
    """A graph with edges both ways. A node that is passed by joins its neighbours."""

    def __init__(self, after: dict[int, set[int]]) -> None:
        self.after = {node: set(others) for node, others in after.items()}
        self.before: dict[int, set[int]] = {node: set() for node in after}
        for node, others in after.items():
            for other in others:
                self.before[other].add(node)

    def remove(self, node: int) -> set[int]:
        """Removes a node. Returns its neighbours."""
        before, after = self.before.pop(node), self.after.pop(node)
        for other in before - {node}:
            self.after[other].discard(node)
        for other in after - {node}:
            self.before[other].discard(node)
        return (before | after) - {node}

    def pass_by(self, node: int) -> set[int]:
        """Removes a node that stays: nodes that waited for it now wait for what it waited for.

        Returns the node's neighbours.
        """
        before, after = self.before[node] - {node}, self.after[node] - {node}
        touched = self.remove(node)
        for one in before:
            self.after[one] |= after
        for one in after:
            self.before[one] |= before
        return touched


class _Knot:
    """The choices in one knot of circles."""

    def __init__(self, after: dict[int, set[int]], cost: Sequence[int]) -> None:
        self.start = _Graph(after)
        self.cost = cost
        self.choices = 0
        self.best: list[int] | None = None
        self.best_cost = 0

    def solve(self) -> list[int]:
        # (graph, chosen, their cost); the next to try is last.
        work: list[tuple[_Graph, list[int], int]] = [(self.start, [], 0)]
        while work and (self.best is None or self.choices < _MOST_CHOICES):
            graph, chosen, spent = work.pop()
            chosen = chosen + self._reduce(graph)
            spent = sum(self.cost[node] for node in chosen)
            if self.best is not None and spent + self._at_least(graph) >= self.best_cost:
                continue
            if not graph.after:
                self.best, self.best_cost = chosen, spent
                continue
            self.choices += 1
            node = max(graph.after, key=lambda n: (self._worth(graph, n), -n))
            stays = _Graph(graph.after)
            stays.pass_by(node)
            work.append((stays, chosen, spent))
            graph.remove(node)
            work.append((graph, [*chosen, node], spent))
        assert self.best is not None
        return self.best

    def _worth(self, graph: _Graph, node: int) -> float:
        """Returns roughly how many circles go through a node, divided by its cost."""
        return len(graph.before[node]) * len(graph.after[node]) / self.cost[node]

    def _at_least(self, graph: _Graph) -> int:
        """Returns a lower bound of the cost: the cheaper one of each pair in a circle of two."""
        least = 0
        seen: set[int] = set()
        for node, others in graph.after.items():
            if node in seen:
                continue
            for other in others & graph.before[node]:
                if other not in seen:
                    seen |= {node, other}
                    least += min(self.cost[node], self.cost[other])
                    break
        return least

    def _reduce(self, graph: _Graph) -> list[int]:
        """Removes every node that needs no choice. Returns the nodes that have to be chosen."""
        chosen = []
        work = set(graph.after)
        while work:
            node = work.pop()
            if node not in graph.after:
                continue
            before, after = graph.before[node], graph.after[node]
            if node in after:
                chosen.append(node)
                work |= graph.remove(node)
            elif not before or not after:
                work |= graph.remove(node)
            # Every circle through the node goes through its one neighbour, which costs no more.
            elif (len(before) == 1 and self._costs_no_more(before, node)) or (
                len(after) == 1 and self._costs_no_more(after, node)
            ):
                work |= graph.pass_by(node)
        return chosen

    def _costs_no_more(self, neighbours: set[int], node: int) -> bool:
        return self.cost[next(iter(neighbours))] <= self.cost[node]
