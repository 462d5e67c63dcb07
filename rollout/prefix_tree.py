"""Contexts as a tree of shared runs of tokens, each computed once: trunk of a pair, its sides, what comes again.

A node is a run of tokens, its pages hold their keys and values. Nodes split where contexts part, at any token: where
that is within a page, both sides hold the page, and whoever writes to it first takes a copy (`Scheduler`). A node's
first page therefore holds its ancestors' tokens of that page too.

The tree belongs to one version of the weights: whoever changes them drops it as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from rollout.pages import PagePool


class Node:
    """Positions `start` to `end` of every context that passes here."""

    __slots__ = ("children", "last_used", "num_computed", "num_users", "pages", "parent", "planned", "start", "tokens")

    def __init__(self, tokens: list[int], start: int, parent: Node | None) -> None:
        self.tokens, self.start, self.parent = tokens, start, parent
        self.children: dict[int, Node] = {}  # by first token
        self.pages: list[int] = []  # from page number start // page_size on
        self.num_computed = 0  # tokens of this run whose keys and values are there
        self.num_users = 0  # requests that need it: it is not evicted
        self.last_used = 0
        self.planned = -1  # the last step that computed some of it

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def is_complete(self) -> bool:
        return self.num_computed == len(self.tokens)

    def path(self) -> list[Node]:
        """From below the root to here."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def table(self, page_size: int) -> list[int]:
        """The pages of positions 0 to `end`, as far as there are any."""
        table: list[int] = []
        for node in self.path():
            if node.pages:
                table[node.start // page_size :] = node.pages
        return table


class PrefixTree:
    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.root = Node([], 0, None)
        self._clock = 0
        self._evictable: list[tuple[int, int, Node]] = []  # heap of (last_used, number, node); some are out of date
        self._number = 0
        self.num_idle_pages = 0  # held by nodes without users; pages that two nodes share count twice

    def __iter__(self) -> Iterator[Node]:
        """All nodes but the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def match(self, tokens: Sequence[int]) -> int:
        """How many leading tokens are computed already."""
        node, num_matched = self.root, 0
        while num_matched < len(tokens) and (child := node.children.get(tokens[num_matched])) is not None:
            common = _common(child.tokens, tokens, num_matched)
            num_matched += min(common, child.num_computed)
            if common < len(child.tokens) or not child.is_complete:
                break
            node = child
        return num_matched

    def use(self, tokens: Sequence[int]) -> Node:
        """The node that ends with these tokens, made where there is none; it has one user more, up to the root."""
        node, position = self.root, 0
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                child = Node(list(tokens[position:]), position, node)
                node.children[tokens[position]] = child
            else:
                common = _common(child.tokens, tokens, position)
                if common < len(child.tokens):
                    child = self._split(child, common)
            node, position = child, child.end
        for each in node.path():
            if not each.num_users:
                self.num_idle_pages -= len(each.pages)
            each.num_users += 1
        return node

    def leave(self, node: Node) -> None:
        """One user less; what has none left may be evicted, the least recently used first."""
        self._clock += 1
        for each in reversed(node.path()):
            each.num_users -= 1
            each.last_used = self._clock
            if not each.num_users:
                self.num_idle_pages += len(each.pages)
                self._offer(each)

    def evict(self) -> bool:
        """Drops one unused leaf; False where there is none."""
        while self._evictable:
            last_used, _, node = heapq.heappop(self._evictable)
            if node.num_users or node.children or node.last_used != last_used or node.parent is None:
                continue
            self.num_idle_pages -= len(node.pages)
            self._drop(node)
            return True
        return False

    def clear(self) -> None:
        """Drops every node. No request may be using one."""
        for node in list(self):
            assert not node.num_users, "a node in use"
            for page in node.pages:
                self._pool.release(page)
            node.parent = None
        self.root.children.clear()
        self._evictable.clear()
        self.num_idle_pages = 0

    def _drop(self, node: Node) -> None:
        for page in node.pages:
            self._pool.release(page)
        parent, node.parent = node.parent, None
        del parent.children[node.tokens[0]]
        if parent.parent is not None and not parent.num_users:
            self._offer(parent)

    def _offer(self, node: Node) -> None:
        if not node.children:
            self._number += 1
            heapq.heappush(self._evictable, (node.last_used, self._number, node))

    def _split(self, node: Node, num_upper: int) -> Node:
        """Gives a node's first tokens to a new parent, and returns that. Its users hold on to `node`, the end of
        their contexts."""
        P = self._pool.page_size
        upper = Node(node.tokens[:num_upper], node.start, node.parent)
        upper.num_computed = min(num_upper, node.num_computed)
        upper.num_users, upper.last_used, upper.planned = node.num_users, node.last_used, node.planned
        first, cut, num_before = node.start // P, node.start + num_upper, len(node.pages)
        upper.pages = node.pages[: -(-cut // P) - first]
        node.parent.children[upper.tokens[0]] = upper
        upper.children[node.tokens[num_upper]] = node
        rest = node.pages[-(-cut // P) - first :]
        node.num_computed -= upper.num_computed
        node.tokens, node.start, node.parent = node.tokens[num_upper:], cut, upper
        if node.num_computed:
            node.pages = node.pages[cut // P - first :]
            if cut % P:
                self._pool.hold(node.pages[0])  # the cut page: both have it now
        else:
            node.pages = []
            for page in rest:  # taken, and not written to yet
                self._pool.release(page)
        if not upper.num_users:
            self.num_idle_pages += len(upper.pages) + len(node.pages) - num_before
        return upper


def _common(run: Sequence[int], tokens: Sequence[int], start: int) -> int:
    """How many tokens of `run` and of `tokens` from `start` on are the same, from the first."""
    low, high = 0, min(len(run), len(tokens) - start)
    if run[:high] == tokens[start : start + high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if run[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low
