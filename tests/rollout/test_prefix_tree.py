"""The tree of contexts against a set of prefixes.

The reference knows no nodes: which prefixes there are, which are computed, who uses them, and when each was last left.
"""

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout.pages import PagePool
from rollout.prefix_tree import Node, PrefixTree

PAGE = 4  # tokens, so that runs end within pages as often as with them


def prefixes(tokens):
    return [tuple(tokens[:end]) for end in range(1, len(tokens) + 1)]


class Reference:
    def __init__(self):
        self.clock = 0
        self.last_left: dict[tuple, int] = {}  # of each prefix that the tree has
        self.computed: set[tuple] = set()
        self.users: list[tuple] = []

    def use(self, tokens):
        self.users.append(tuple(tokens))
        for prefix in prefixes(tokens):
            self.last_left.setdefault(prefix, 0)

    def leave(self, tokens):
        self.clock += 1
        self.users.remove(tuple(tokens))
        self.last_left.update(dict.fromkeys(prefixes(tokens), self.clock))

    def num_users(self, prefix):
        return sum(user[: len(prefix)] == prefix for user in self.users)

    def match(self, tokens):
        return sum(prefix in self.computed for prefix in prefixes(tokens))

    def evictable(self):
        """Prefixes that nothing goes on from and nobody uses, by when they were left."""
        inner = {prefix[:-1] for prefix in self.last_left}
        ends = [prefix for prefix in self.last_left if prefix not in inner and not self.num_users(prefix)]
        return sorted(ends, key=self.last_left.get)


def end_of(node: Node) -> tuple:
    """All tokens up to a node's last."""
    return tuple(token for each in node.path() for token in each.tokens)


def compute(tree: PrefixTree, pool: PagePool, node: Node, num_new: int) -> None:
    """Computes tokens of a path in order, as the scheduler does: no page is written to that another node holds."""
    for each in node.path():
        while num_new and not each.is_complete:
            position = each.start + each.num_computed
            if not each.pages or position % PAGE == 0:
                each.pages.append(pool.take())
            elif pool.is_shared(each.pages[-1]):
                pool.release(each.pages[-1])
                each.pages[-1] = pool.take()
            each.num_computed += 1
            num_new -= 1


def check(tree: PrefixTree, pool: PagePool, reference: Reference) -> None:
    assert {prefix for node in tree for prefix in prefixes(end_of(node))[node.start :]} == set(reference.last_left)
    for node in tree:
        path = end_of(node)
        assert node.end == len(path) and node.tokens and node.parent.children[node.tokens[0]] is node
        assert node.num_users == reference.num_users(path)
        found = [prefix in reference.computed for prefix in prefixes(path)[node.start :]]
        assert found == [True] * node.num_computed + [False] * (len(node.tokens) - node.num_computed)
        if node.num_computed:
            assert len(node.pages) == -(-(node.start + node.num_computed) // PAGE) - node.start // PAGE
    held = Counter(page for node in tree for page in node.pages)
    assert all(pool._count[page] == held[page] for page in range(pool.num_pages))
    assert tree.num_idle_pages == sum(len(node.pages) for node in tree if not node.num_users)


# Few tokens, so that contexts have much in common; (what, tokens or which user, how many tokens to compute)
texts = st.lists(st.sampled_from("ab"), max_size=14)
operations = st.lists(
    st.tuples(st.sampled_from(["use", "use", "compute", "compute", "leave", "evict"]), texts, st.integers(0, 14)),
    max_size=40,
)
CUT_TWICE = [("use", list("aaaaaaaaaa"), 0), ("compute", [], 9), ("use", list("aaaaaab"), 0), ("use", ["a"] * 3, 0)]
LEFT = [("leave", [], 0)] * 3


@settings(max_examples=300)
@given(operations)
@example([*CUT_TWICE, *LEFT, ("evict", [], 0), ("evict", [], 0)])
def test_matches_the_reference(operations):
    pool, reference = PagePool(1000, PAGE), Reference()
    tree, nodes = PrefixTree(pool), []
    for what, tokens, number in operations:
        if what == "use":
            nodes.append(tree.use(tokens))
            reference.use(tokens)
            assert end_of(nodes[-1]) == tuple(tokens)
        elif what == "compute" and nodes:
            node = nodes[number % len(nodes)]
            compute(tree, pool, node, number)
            missing = [prefix for prefix in prefixes(end_of(node)) if prefix not in reference.computed]
            reference.computed.update(missing[:number])
        elif what == "leave" and nodes:
            node = nodes.pop(number % len(nodes))
            reference.leave(end_of(node))
            tree.leave(node)
        elif what == "evict":
            evictable = reference.evictable()
            before = {end_of(node): node for node in tree}
            assert tree.evict() == bool(evictable)
            gone = before.keys() - {end_of(node) for node in tree}
            if evictable:
                # The run that ends there, as far as it belongs to it alone.
                assert len(gone) == 1 and min(gone) == evictable[0]
                run = prefixes(evictable[0])[before[evictable[0]].start :]
                assert all(reference.last_left.pop(prefix) is not None for prefix in run)
                reference.computed.difference_update(run)
        check(tree, pool, reference)
        assert tree.match(tokens) == reference.match(tokens)
    for node in nodes:
        tree.leave(node)
    while tree.evict():
        pass
    assert not list(tree) and pool.num_free == pool.num_pages - 1 and not tree.num_idle_pages


def filled(*contexts, pool=None):
    """A tree that has computed each context, and the nodes at their ends."""
    pool = pool or PagePool(1000, PAGE)
    tree = PrefixTree(pool)
    nodes = []
    for tokens in contexts:
        nodes.append(tree.use(list(tokens)))
        compute(tree, pool, nodes[-1], len(tokens))
    return tree, nodes


@given(texts, texts)
def test_matches_to_the_token(one, other):
    tree, _ = filled(one)
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert tree.match(other) == common


def test_a_split_copies_no_keys_and_keeps_the_end_of_a_context():
    """Ten tokens on three pages, cut after six: both runs hold the second page."""
    pool = PagePool(10, PAGE)
    tree, (node,) = filled("aaaaaaaaaa", pool=pool)
    pages = list(node.pages)
    other = tree.use(list("aaaaaab"))
    assert node.table(PAGE) == pages and end_of(node) == tuple("aaaaaaaaaa")
    assert other.parent is node.parent and other.parent.table(PAGE) == pages[:2]
    assert node.pages == pages[1:] and pool.is_shared(pages[1]) and pool.num_free == 9 - 3


def test_a_table_takes_the_copy_of_a_cut_page():
    pool = PagePool(10, PAGE)
    tree, (node, other) = filled("aaaaaa", "aab", pool=pool)
    upper = node.parent
    assert upper is other.parent and upper.end == 2
    assert other.table(PAGE) == other.pages != upper.pages
    assert node.table(PAGE) == node.pages and node.pages[0] == upper.pages[0]


def test_what_was_left_first_goes_first():
    tree, nodes = filled("abc", "abd", "b", "ac")
    for which in (2, 0, 3, 1):
        tree.leave(nodes[which])
    order = []
    while (before := {end_of(node) for node in tree}) and tree.evict():
        order += ["".join(end) for end in before - {end_of(node) for node in tree}]
    # A run goes when all that comes after it is gone: "ab" after both of its ends, then "a".
    assert order == ["b", "abc", "ac", "abd", "ab", "a"]


def test_what_comes_again_is_used_last():
    tree, (first, second) = filled("aa", "bb")
    tree.leave(first)
    tree.leave(second)
    tree.leave(tree.use(list("aa")))
    assert tree.evict() and tree.match(list("aa")) == 2 and not tree.match(list("bb"))


def test_what_is_in_use_stays():
    tree, (one, other) = filled("aaa", "aab")
    tree.leave(one)
    assert tree.evict() and not tree.evict()
    assert tree.match(list("aab")) == 3 and tree.match(list("aaa")) == 2


def test_clear_drops_what_nobody_uses_alone():
    pool = PagePool(10, PAGE)
    tree, nodes = filled("aaaaaa", "aab", pool=pool)
    with pytest.raises(AssertionError, match="a node in use"):
        tree.clear()
    for node in nodes:
        tree.leave(node)
    tree.clear()
    assert pool.num_free == 9 and not tree.match(list("aaa")) and not tree.evict()
