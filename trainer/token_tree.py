"""Token trees: what sequences have in common is laid out, and computed, once.

The judgments of a pair share its prompt, those of a side its response, and many begin alike. As one tree, nodes by
longest common prefixes at any depth, every token has one place: it sees its own node and the nodes above it, at the
position that it has in its sequence. So loss and gradient are those of separate sequences (tests hold them together).

    L tokens of a layout, depth first   N nodes   S leaves (sequences)   T loss entries   U distinct ones   B = 1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels.upload import upload

TILE = 16  # tokens; matrix products are made of whole tiles


@dataclass(frozen=True, slots=True)
class Leaf:
    """A context and one completion of it: a path from the root of a tree. The loss falls on the completion.

    Its last token is only predicted, so it is no input. Without a completion the path is the context.
    """

    context: list[int]  # at least one token
    completion: list[int]
    values: dict[str, np.ndarray] = field(default_factory=dict)  # what the loss needs, float32 [len(completion)]
    name: str = ""  # of the pair or row, for errors

    @property
    def path(self) -> list[int]:
        return self.context + self.completion[:-1]


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of a layout, depth first: node i has the places start:end, and it and all below it start:subtree_end."""

    start_N: np.ndarray
    end_N: np.ndarray
    subtree_end_N: np.ndarray
    parent_N: np.ndarray  # -1 of a root

    def __len__(self) -> int:
        return len(self.start_N)

    @classmethod
    def joined(cls, parts: Sequence[Nodes], num_padding: int = 0) -> Nodes:
        """Layouts one after the other, and padding as a root of its own."""
        if num_padding:
            parts = [*parts, cls(*(np.array([x]) for x in (0, num_padding, num_padding, -1)))]
        places = np.cumsum([0, *(part.end_N[-1] for part in parts)])
        numbers = np.cumsum([0, *(len(part) for part in parts)])
        start, end, subtree_end = (
            np.concatenate([getattr(part, name) + place for part, place in zip(parts, places)])
            for name in ("start_N", "end_N", "subtree_end_N")
        )
        parent = [np.where(part.parent_N < 0, -1, part.parent_N + first) for part, first in zip(parts, numbers)]
        return cls(start, end, subtree_end, np.concatenate(parent))

    def path(self, node: int) -> np.ndarray:
        """The places from the root's first to the node's last, in order of positions."""
        pieces = []
        while node >= 0:
            pieces.append(np.arange(self.start_N[node], self.end_N[node]))
            node = self.parent_N[node]
        return np.concatenate(pieces[::-1])


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Leaves in a layout of their own. Without a common first token it has several roots."""

    leaves: list[Leaf]
    nodes: Nodes
    token_L: np.ndarray
    position_L: np.ndarray
    node_S: np.ndarray  # where each leaf's path ends
    is_shared: bool
    is_atomic: bool  # its leaves need each other: it is never split

    @classmethod
    def of(cls, leaves: Sequence[Leaf], share: bool = True, is_atomic: bool = False) -> TokenTree:
        """
        Args:
            share: False: the flat layout, each leaf a root of its own.
        """
        paths = [np.array(leaf.path, dtype=np.int64) for leaf in leaves]
        for leaf in leaves:
            if not leaf.context:
                raise ValueError(f"{leaf.name}: a context needs at least one token")
        builder = _Builder(paths)
        if share:
            builder.add(sorted(range(len(leaves)), key=lambda i: leaves[i].path), 0, -1)
        else:
            for i in range(len(leaves)):
                builder.add([i], 0, -1)
        tokens, positions = (np.concatenate(x) for x in (builder.tokens, builder.positions))
        return cls(list(leaves), builder.nodes(), tokens, positions, np.array(builder.node_of), share, is_atomic)

    @property
    def num_tokens(self) -> int:
        return len(self.token_L)

    @property
    def num_attention_pairs(self) -> int:
        """Of a query and a key that it sees, itself included."""
        return int((self.position_L + 1).sum())

    def split(self, max_tokens: int) -> list[TokenTree]:
        """Itself, or trees of its leaves, what they share laid out again in each.

        Raises:
            ValueError: a leaf, or an atomic tree, is longer; with its name and length.
        """
        if self.num_tokens <= max_tokens:
            return [self]
        if self.is_atomic or len(self.leaves) == 1:
            raise _does_not_fit(self.leaves[0].name, self.num_tokens, max_tokens)
        parts: list[list[int]] = []
        before, length = None, 0
        for i in np.argsort(self.node_S, kind="stable").tolist():
            path = self.nodes.path(self.node_S[i])
            if len(path) > max_tokens:
                raise _does_not_fit(self.leaves[i].name, len(path), max_tokens)
            num_new = len(path) if before is None else len(path) - _num_common(before, path)
            if before is None or length + num_new > max_tokens:
                parts.append([])
                length, num_new = 0, len(path)
            parts[-1].append(i)
            before, length = path, length + num_new
        # In their order, for numbers that do not depend on the tokens.
        return [TokenTree.of([self.leaves[i] for i in sorted(part)], self.is_shared) for part in parts]


class _Builder:
    """Nodes of sorted paths, depth first."""

    def __init__(self, paths: Sequence[np.ndarray]) -> None:
        self.paths = paths
        self.tokens, self.positions = [], []
        self.starts, self.ends, self.subtree_ends, self.parents = [], [], [], []
        self.node_of = [0] * len(paths)
        self.length = 0

    def add(self, some: list[int], depth: int, parent: int) -> None:
        """Paths that agree on their first `depth` tokens, and are sorted."""
        first, last = self.paths[some[0]], self.paths[some[-1]]
        end = _num_common(first, last)  # of all, as they are sorted
        if end > depth:
            node = len(self.starts)
            self.tokens.append(first[depth:end])
            self.positions.append(np.arange(depth, end))
            self.starts.append(self.length)
            self.length += end - depth
            self.ends.append(self.length)
            self.subtree_ends.append(self.length)
            self.parents.append(parent)
        else:
            node = parent
        by_token: dict[int, list[int]] = {}
        for i in some:
            if len(self.paths[i]) == end:
                self.node_of[i] = node
            else:
                by_token.setdefault(int(self.paths[i][end]), []).append(i)
        for group in by_token.values():
            self.add(group, end, node)
        if end > depth:
            self.subtree_ends[node] = self.length

    def nodes(self) -> Nodes:
        return Nodes(*(np.array(x) for x in (self.starts, self.ends, self.subtree_ends, self.parents)))


def _num_common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def _does_not_fit(name: str, length: int, max_tokens: int) -> ValueError:
    return ValueError(f"{name}: {length} tokens do not fit into a micro-batch of {max_tokens}")


def room(max_tokens: int) -> int:
    """Tokens that a budget has room for: whole tiles."""
    return max_tokens // TILE * TILE


def pack(trees: Iterable[TokenTree], max_tokens: int) -> list[list[TokenTree]]:
    """Micro-batches whose layouts, padding included, have at most `max_tokens` tokens: first fit, the longest first.

    Raises:
        ValueError: a tree that may not be split further is longer, with the name of its leaf and its length.
    """
    budget = room(max_tokens)
    parts = [part for tree in trees for part in tree.split(budget)]
    batches: list[list[TokenTree]] = []
    lengths: list[int] = []
    for part in sorted(parts, key=lambda part: -part.num_tokens):
        for i, length in enumerate(lengths):
            if length + part.num_tokens <= budget:
                batches[i].append(part)
                lengths[i] += part.num_tokens
                break
        else:
            batches.append([part])
            lengths.append(part.num_tokens)
    return batches


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trees in one layout. Loss entries come leaf by leaf, in order."""

    token_BL: Tensor
    position_BL: Tensor
    nodes: Nodes
    predictor_T: Tensor  # place of the token that predicts each loss token
    target_T: Tensor
    values_T: dict[str, Tensor]
    leaf_T: Tensor  # 0 … S - 1
    last_S: Tensor  # place of each leaf's last input
    num_leaves: int
    # Leaves that begin alike have entries of one predictor and one target.
    distinct_U: Tensor  # an entry of each kind
    kind_T: Tensor

    @classmethod
    def of(cls, trees: Sequence[TokenTree], device: torch.device) -> MicroBatch:
        num_tokens = sum(tree.num_tokens for tree in trees)
        num_padding = -num_tokens % TILE
        token_L = np.concatenate([*(tree.token_L for tree in trees), np.zeros(num_padding, dtype=np.int64)])
        position_L = np.concatenate([*(tree.position_L for tree in trees), np.arange(num_padding)])
        leaves = [leaf for tree in trees for leaf in tree.leaves]
        lengths = [len(leaf.completion) for leaf in leaves]
        predictors, last, place = [], [], 0
        for tree in trees:
            for leaf, node in zip(tree.leaves, tree.node_S, strict=True):
                path = place + tree.nodes.path(node)
                predictors.append(path[len(path) - len(leaf.completion) :])
                last.append(path[-1])
            place += tree.num_tokens
        predictor_T = np.concatenate(predictors)
        target_T = np.array([token for leaf in leaves for token in leaf.completion], dtype=np.int64)
        _, distinct_U, kind_T = np.unique(
            predictor_T * (target_T.max(initial=0) + 1) + target_T, return_index=True, return_inverse=True
        )
        values_T = {
            name: upload(np.concatenate([leaf.values[name] for leaf in leaves]), device) for name in leaves[0].values
        }
        on_device = partial(upload, device=device)
        return cls(
            token_BL=on_device(token_L)[None],
            position_BL=on_device(position_L)[None],
            nodes=Nodes.joined([tree.nodes for tree in trees], num_padding),
            predictor_T=on_device(predictor_T),
            target_T=on_device(target_T),
            values_T=values_T,
            leaf_T=on_device(np.repeat(np.arange(len(leaves)), lengths)),
            last_S=on_device(np.array(last)),
            num_leaves=len(leaves),
            distinct_U=on_device(distinct_U),
            kind_T=on_device(kind_T),
        )
