"""Paged attention against float64, with torch's own attention as the yardstick, and the prefix form against the flat.

B rows   H query heads   K key/value heads   C head width   N pages   P tokens of a page   M pages of a table   T tokens

Every problem has its pages in random places, NaN in each slot that holds no token, and numbers that are no pages in
each entry of a table that is not used.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels.paged_attention as module
from kernels.jit import cdiv
from kernels.paged_attention import CONFIGS, Config, SharedPrefix, Tile, paged_attention, paged_attention_ref

# numpy's, of the interpreter, where hostile scores are meant to overflow.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# Two blocks make a split; up to 32 queries make a tile.
SMALL_TILES = {16: Tile(16, 4, 3), 32: Tile(16, 4, 3)}
SMALL = Config(SMALL_TILES, SMALL_TILES)
SMALL_SPLIT = 32


class Problem:
    """Groups (prefix length, [own lengths]) as sequences of keys and values, and as pages."""

    def __init__(self, groups, H=4, K=2, C=16, P=8, dtype=torch.float64, seed=0, scale=None, spare=0):
        generator = torch.Generator().manual_seed(seed)
        self.P, self.dtype, self.scale, self.spare = P, dtype, scale, spare
        self.rows = [(g, own) for g, (_, lengths) in enumerate(groups) for own in lengths]
        starts = [0]
        for _, lengths in groups:
            starts.append(starts[-1] + len(lengths))
        self.starts = torch.tensor(starts, dtype=torch.int32)
        self.max_rows = max([len(lengths) for _, lengths in groups], default=0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.q_BHC = random(len(self.rows), H, C)
        # Of each sequence [2, T, K, C]: keys and values.
        self.prefixes = [random(2, length, K, C) for length, _ in groups]
        self.own = [random(2, length, K, C) for _, length in self.rows]
        self.shape = P, K, C

    def sequence(self, row: int) -> Tensor:
        return torch.cat([self.prefixes[self.rows[row][0]], self.own[row]], dim=1)

    def paged(self, flat=False, seed=0) -> tuple[tuple, SharedPrefix | None]:
        """((q, key pages, value pages, table, length, scale), prefix). Flat: every row has a copy of its prefix."""
        generator = torch.Generator().manual_seed(seed)
        own = [self.sequence(row) for row in range(len(self.rows))] if flat else self.own
        sequences = own if flat else self.prefixes + own
        num_pages = [cdiv(x.shape[1], self.P) for x in sequences]
        N = sum(num_pages) + 1 + self.spare
        free = torch.randperm(N, generator=generator).tolist()
        pages_2NPKC = torch.full((2, N, *self.shape), torch.nan, dtype=self.dtype)
        tables = []
        for x_2TKC, pages in zip(sequences, num_pages, strict=True):
            tables.append([free.pop() for _ in range(pages)])
            for i, page in enumerate(tables[-1]):
                tokens = x_2TKC[:, i * self.P : (i + 1) * self.P]
                pages_2NPKC[:, page, : tokens.shape[1]] = tokens
        garbage = [-1, N, 2**31 - 1, -(2**31)]

        def table(rows: list[list[int]]) -> Tensor:
            width = max(map(len, rows), default=0) + self.spare
            filled = [row + [garbage[i % 4] for i in range(width - len(row))] for row in rows]
            return torch.tensor(filled, dtype=torch.int32).reshape(len(rows), width)

        def lengths(xs: list[Tensor]) -> Tensor:
            return torch.tensor([x.shape[1] for x in xs], dtype=torch.int32)

        G = 0 if flat else len(self.prefixes)
        arguments = (self.q_BHC, *pages_2NPKC, table(tables[G:]), lengths(own), self.scale)
        prefix = None if flat else SharedPrefix(table(tables[:G]), lengths(self.prefixes), self.starts, self.max_rows)
        return arguments, prefix

    def to(self, dtype: torch.dtype) -> Problem:
        other = copy(self)
        other.dtype, other.q_BHC = dtype, self.q_BHC.to(dtype)
        other.prefixes, other.own = ([x.to(dtype) for x in xs] for xs in (self.prefixes, self.own))
        return other

    def by(self, attention) -> Tensor:
        """attention(q [H, 1, C], keys and values [H, T, C], scale) of one row at a time; zeros where T is 0."""
        out_BHC = torch.zeros_like(self.q_BHC)
        for row, q_HC in enumerate(self.q_BHC):
            x_2HTC = self.sequence(row).transpose(1, 2).repeat_interleave(q_HC.shape[0] // self.shape[1], dim=1)
            if x_2HTC.shape[2]:
                scale = q_HC.shape[-1] ** -0.5 if self.scale is None else self.scale
                out_BHC[row] = attention(q_HC[:, None], *x_2HTC, scale)[:, 0]
        return out_BHC

    def exact(self) -> Tensor:
        """By the formula, in float64."""
        return self.to(torch.float64).by(lambda q, k, v, scale: (scale * q @ k.mT).softmax(-1) @ v)

    def torch(self) -> Tensor:
        return self.by(lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, scale=scale))


def moved(x: Tensor, device: torch.device) -> Tensor:
    """On the device, with the same strides."""
    if x.device.type == device.type:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)


def moved_prefix(prefix: SharedPrefix | None, device: torch.device) -> SharedPrefix | None:
    if prefix is None:
        return None
    tensors = (moved(x, device) for x in (prefix.table_GL, prefix.length_G, prefix.row_start_G1))
    return SharedPrefix(*tensors, prefix.max_rows)


def by_triton(device, arguments, prefix=None, config=SMALL, split=SMALL_SPLIT) -> Tensor:
    *tensors, scale = arguments
    scale = tensors[0].shape[-1] ** -0.5 if scale is None else scale
    on_device = (moved(x, device) for x in tensors)
    return module._paged_attention_triton(*on_device, scale, moved_prefix(prefix, device), split, config).cpu()


@pytest.fixture(scope="session", params=["definition", "torch", "triton"])
def attend(request):
    """Each of the three forms: (arguments, prefix) -> out on CPU."""
    if request.param == "triton":
        device = request.getfixturevalue("triton_device")
        return lambda arguments, prefix=None: by_triton(device, arguments, prefix)
    function = {"definition": paged_attention_ref, "torch": paged_attention}[request.param]
    return lambda arguments, prefix=None: function(*arguments, prefix)


def rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt() if x.numel() else torch.tensor(0.0)


def assert_as_accurate_as_torch(out: Tensor, problem: Problem, slack: float = 1e-7) -> None:
    exact = problem.exact()
    assert out.dtype == problem.dtype and out.shape == exact.shape and out.isfinite().all()
    error, torch_error = (x.double() - exact for x in (out, problem.torch()))
    assert rms(error) <= 2 * rms(torch_error) + slack * rms(exact)
    assert error.abs().amax() <= 3 * torch_error.abs().amax() + 10 * slack * exact.abs().amax()


# Three groups of siblings, one of them without rows, one without a prefix, with rows around pages (8) and splits (32).
GROUPS = [(45, [1, 8, 33]), (7, []), (0, [9, 64]), (32, [0, 65, 31])]
FEW = [(45, [1, 33]), (0, [9])]


@pytest.mark.parametrize("form", ["shared", "flat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_less_accurate_than_torch(attend, form, dtype):
    problem = Problem(GROUPS, dtype=dtype)
    assert_as_accurate_as_torch(attend(*problem.paged(flat=form == "flat")), problem)


@pytest.mark.parametrize("form", ["shared", "flat"])
def test_is_the_formula_in_float64(form):
    problem = Problem(GROUPS)
    for attention in (paged_attention, paged_attention_ref):
        arguments, prefix = problem.paged(flat=form == "flat")
        torch.testing.assert_close(attention(*arguments, prefix), problem.exact(), rtol=1e-12, atol=1e-13)


lengths = st.one_of(st.integers(0, 40), st.sampled_from([7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]))
problems = st.builds(
    Problem,
    st.lists(st.tuples(lengths, st.lists(lengths, max_size=4)), max_size=3),
    H=st.sampled_from([2, 4, 10, 14]),
    K=st.sampled_from([1, 2]),
    P=st.sampled_from([8, 16, 32]),
    seed=st.integers(0, 2**20),
    spare=st.integers(0, 3),
)


@settings(max_examples=60)
@given(problems, st.integers(0, 2**20))
def test_sharing_the_prefix_changes_nothing(problem, seed):
    (shared, prefix), (flat, _) = problem.paged(seed=seed), problem.paged(flat=True)
    exact = problem.exact()
    for out in (paged_attention(*shared, prefix), paged_attention(*flat), paged_attention_ref(*shared, prefix)):
        torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-12)


@settings(max_examples=8)
@given(problems, st.integers(0, 2**20))
def test_sharing_the_prefix_changes_nothing_in_triton(triton_device, problem, seed):
    problem = problem.to(torch.float32)
    if problem.rows:
        assert_as_accurate_as_torch(by_triton(triton_device, *problem.paged(seed=seed)), problem, slack=3e-7)
        assert_as_accurate_as_torch(by_triton(triton_device, *problem.paged(flat=True)), problem, slack=3e-7)


@pytest.mark.parametrize("P", [8, 16, 32, 64, 128, 256])
def test_every_page_size(attend, P):
    problem = Problem([(P + 1, [1, 3]), (2, [P])], P=P, dtype=torch.float32)
    assert_as_accurate_as_torch(attend(*problem.paged()), problem)


# 7 and 8: no power of two, and half a tile. 3 × 14, 3 × 40: more than the largest tile of 32, siblings across the cut.
@pytest.mark.parametrize(("H", "K"), [(1, 1), (4, 4), (5, 1), (14, 2), (8, 1), (14, 1), (40, 1)])
def test_every_ratio_of_heads(attend, H, K):
    problem = Problem([(19, [3, 20, 1]), (40, [2])], H=H, K=K, dtype=torch.float32)
    assert_as_accurate_as_torch(attend(*problem.paged()), problem)


@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize(("C", "dtype"), [(128, torch.bfloat16), (64, torch.float16), (128, torch.float32)])
def test_shipped_configurations(triton_device, arch, C, dtype):
    """Tiles of 16, 64 and (four siblings of 14 heads) up to 64 queries, with more than one split of each kind."""
    problem = Problem([(1030, [520, 1, 3, 2])], H=14, K=1, C=C, P=16, dtype=dtype)
    assert_as_accurate_as_torch(by_triton(triton_device, *problem.paged(), config=CONFIGS[arch]), problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_public_function_where_triton_runs(triton_device, dtype):
    """On a GPU this goes to the kernels, elsewhere to the CPU form."""
    problem = Problem([(1500, [600, 1, 70]), (0, [2, 0])], H=8, K=2, C=128, P=16, dtype=dtype)
    (*tensors, scale), prefix = problem.paged()
    tensors[0].requires_grad_()
    out = paged_attention(*(moved(x, triton_device) for x in tensors), scale, moved_prefix(prefix, triton_device))
    assert out.device.type == triton_device.type and not out.requires_grad
    assert_as_accurate_as_torch(out.cpu(), problem)


@pytest.mark.parametrize("kind", ["huge", "dominated", "ties", "offset", "uniform", "-inf"])
def test_hostile_scores(attend, kind):
    problem = Problem(GROUPS, dtype=torch.float32)
    if kind == "huge":  # scores of some ±1e4
        problem.q_BHC *= 1e4
    elif kind == "uniform":
        problem.scale = 1e-9
    for i, x_2TKC in enumerate(problem.prefixes + problem.own):
        if kind == "ties":
            x_2TKC[0] = 1.0
        elif kind == "offset":  # the same large number on every score: differences must survive
            x_2TKC[0, ..., 0] = 64.0
        elif kind == "dominated" and x_2TKC.shape[1]:  # the last token of one part has all the weight
            x_2TKC[0, -1] = 100.0 * (-1) ** i
        elif kind == "-inf":  # in float32: a whole prefix, elsewhere the first blocks and splits
            T = x_2TKC.shape[1]
            x_2TKC[0, ..., 0] = torch.where(torch.arange(T) < (T if i == 0 else T // 2), -1e30, 0.0)[:, None]
    if kind in ("offset", "-inf"):
        problem.q_BHC[..., 0] = 128.0 if kind == "offset" else 1e30
    assert_as_accurate_as_torch(attend(*problem.paged()), problem, slack=1e-6)


def test_weights_of_parts_are_exact_at_huge_scores(attend):
    """Scores near 1e4 with exact differences: rounded as log-sum-exps or in powers of two they would be off by 3e-4."""
    problem = Problem([(33, [40])], H=1, K=1, dtype=torch.float32, scale=1.0)
    problem.q_BHC[:] = 0
    problem.q_BHC[..., 0] = 1.0
    for x_2TKC, score in zip(problem.prefixes + problem.own, (8192.0, 8192.5), strict=True):
        x_2TKC[0, :, 0, 0] = score + torch.arange(x_2TKC.shape[1]) % 3 / 4
    exact = problem.exact()
    assert (attend(*problem.paged()) - exact).abs().amax() <= 1e-5 * exact.abs().amax()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_gives_its_value(attend, dtype):
    problem = Problem([(1, [0, 0]), (0, [1])], dtype=dtype)
    values = torch.stack([problem.sequence(row)[1, 0] for row in range(3)])
    assert torch.equal(attend(*problem.paged()), values.repeat_interleave(2, dim=1))


def test_a_row_without_tokens_gives_zeros(attend):
    problem = Problem([(0, [0, 3]), (20, [0])], dtype=torch.float32)
    for flat in (False, True):
        out = attend(*problem.paged(flat=flat))
        assert not out[0].any() and out[1].any() and out[2].any()


def test_scores_that_are_all_minus_infinity_give_nan(attend):
    """The soft-max of -inf alone is 0 / 0; without tokens it is still zeros."""
    problem = Problem([(40, [0, 33]), (0, [5, 0])], dtype=torch.float32)
    problem.q_BHC[:] = 1e30
    for x_2TKC in problem.prefixes + problem.own:
        x_2TKC[0] = -1e30
    for flat in (False, True):
        out = attend(*problem.paged(flat=flat))
        assert out[:3].isnan().all() and not out[3].any()


# Pages in the tables that nobody uses; tables without columns.
@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("groups", [[], [(9, [])], [(0, [0, 0])], [(3, []), (0, [0])]])
def test_nothing_to_attend_to(attend, groups, spare):
    problem = Problem(groups, dtype=torch.float32, spare=spare)
    for flat in (False, True):
        out = attend(*problem.paged(flat=flat))
        assert out.shape == problem.q_BHC.shape and not out.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_of_pages_and_widths_of_tables_change_no_bit(attend, dtype):
    problem = Problem(FEW, dtype=dtype)
    expected = attend(*problem.paged())
    for spare in (1, 40):  # 40 pages: more splits than the merger reads at a time
        problem.spare = spare
        assert torch.equal(attend(*problem.paged(seed=spare)), expected)


def test_what_a_row_is_batched_with_changes_no_bit(triton_device):
    groups = [*GROUPS, (300, [1])]  # its prefix takes more splits than the merger reads at a time
    problem = Problem(groups, dtype=torch.float32)
    arguments, prefix = problem.paged()
    together = by_triton(triton_device, arguments, prefix)
    q_BHC, key_pages, value_pages, table_BM, length_B, scale = arguments
    for group, (start, end) in enumerate(prefix.row_start_G1.unfold(0, 2, 1).tolist()):
        rows = slice(start, end)
        pages = cdiv(int(prefix.length_G[group]), problem.P)
        alone = SharedPrefix(
            prefix.table_GL[group, None, :pages], prefix.length_G[group, None], torch.tensor([0, end - start]).int(),
            prefix.max_rows,
        )  # fmt: skip
        out = by_triton(
            triton_device, (q_BHC[rows], key_pages, value_pages, table_BM[rows], length_B[rows], scale), alone
        )
        assert torch.equal(out, together[rows])


def test_arguments_of_any_layout(attend):
    problem = Problem(FEW, dtype=torch.float32)
    (q_BHC, key_pages, value_pages, table_BM, length_B, scale), prefix = problem.paged()
    expected = attend((q_BHC, key_pages, value_pages, table_BM, length_B, scale), prefix)

    def every_second(x: Tensor) -> Tensor:
        return torch.stack([x, torch.full_like(x, 77)], dim=-1)[..., 0]

    def cut_out(x: Tensor) -> Tensor:  # like the queries in one product with keys and values
        return torch.cat([torch.full_like(x, torch.nan), x], dim=1)[:, x.shape[1] :]

    # A cache [N, key or value, layer, K, P, C].
    cache = torch.stack([key_pages, value_pages], 1)[:, :, None].repeat(1, 1, 2, 1, 1, 1).transpose(3, 4).contiguous()
    key_view, value_view = cache[:, 0, 1].transpose(1, 2), cache[:, 1, 1].transpose(1, 2)
    strided = SharedPrefix(*map(every_second, (prefix.table_GL, prefix.length_G, prefix.row_start_G1)), prefix.max_rows)
    for q in (cut_out(q_BHC), every_second(q_BHC), q_BHC.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not q.is_contiguous() and not key_view.is_contiguous()
        out = attend((q, key_view, value_view, every_second(table_BM), every_second(length_B), scale), strided)
        assert torch.equal(out, expected) and out.is_contiguous()


# Elements from one page, token, head or row of queries to the next.
@pytest.mark.parametrize(("apart", "far"), [("pages", 2**30), ("tokens", 2**29), ("heads", 2**30), ("q rows", 2**30)])
def test_tensors_of_more_than_2_31_elements(attend, apart, far):
    """The memory between pages, tokens, heads or rows is reserved and never touched."""
    problem = Problem([(4, [8, 1, 2]), (0, [5])], H=6, K=3, dtype=torch.float16)
    (q_BHC, *pages, table_BM, length_B, scale), prefix = problem.paged()
    expected = attend((q_BHC, *pages, table_BM, length_B, scale), prefix)

    def spread(x: Tensor, dim: int, num_copies: int = 1) -> list[Tensor]:
        """Copies whose entries along one dimension lie `far` apart, side by side."""
        strides = list(x.select(dim, 0).contiguous().stride())
        strides.insert(dim, far)
        memory = x.new_empty((x.shape[dim] - 1) * far + num_copies * x.numel())
        return [memory.as_strided(x.shape, strides, i * x.numel()) for i in range(num_copies)]

    if apart == "q rows":
        views = spread(q_BHC, 0)
        q_BHC = views[0].copy_(q_BHC)
    else:
        views = spread(pages[0], ["pages", "tokens", "heads"].index(apart), 2)
        pages = [view.copy_(x) for view, x in zip(views, pages, strict=True)]
    assert views[0].untyped_storage().nbytes() > 2 * 2**31
    assert torch.equal(attend((q_BHC, *pages, table_BM, length_B, scale), prefix), expected)


def test_siblings_read_their_prefix_once(monkeypatch):
    """The CPU form gathers as many prefixes as there are groups, not as there are rows."""
    shapes = []
    attend_ = module._attend
    monkeypatch.setattr(module, "_attend", lambda q, *x: shapes.append(tuple(q.shape)) or attend_(q, *x))
    arguments, prefix = Problem([(20, [1] * 5), (30, [2] * 4)]).paged()
    paged_attention(*arguments, prefix)
    assert shapes == [(9, 2, 2, 16), (2, 2, 5 * 2, 16)]


def test_runs_where_its_tensors_are(monkeypatch):
    """Triton launches on the current device, which need not be that of the tensors."""
    (arguments, prefix), guarded = Problem(FEW).paged(), []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: guarded.append(x) or nullcontext())
    paged_attention(*arguments, prefix)
    assert len(guarded) == 1 and guarded[0] is arguments[0]


def test_checks_of_values_can_be_left_out(monkeypatch):
    arguments, prefix = Problem(GROUPS).paged()
    expected = paged_attention(*arguments, prefix)
    monkeypatch.setattr(module, "_check_values", lambda *_: pytest.fail("values were read"))
    assert torch.equal(paged_attention(*arguments, prefix, check=False), expected)


def with_entry(x: Tensor, index, value) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"q_BHC": a["q_BHC"][0]}, r"q must have dimensions \[B, H, C\]"),
        (lambda a: {"q_BHC": a["q_BHC"].long()}, "q must be torch.float16 or torch.bfloat16 or torch.float32"),
        (lambda a: {"q_BHC": a["q_BHC"][..., :8]}, r"key_pages .* C is 8 in q"),
        (lambda a: {"q_BHC": a["q_BHC"][:, :3]}, "q must have H a multiple of K in key_pages, got H = 3 and K = 2"),
        (lambda a: {"q_BHC": a["q_BHC"][:, :0]}, "q must have H a multiple of K in key_pages, got H = 0 and K = 2"),
        (lambda a: {"q_BHC": a["q_BHC"].float()}, "key_pages must be torch.float32, got torch.float64"),
        (lambda a: {"key_pages_NPKC": a["key_pages_NPKC"][:, :, 0]}, "key_pages must have dimensions"),
        (lambda a: {"key_pages_NPKC": a["key_pages_NPKC"].to("meta")}, "key_pages is on meta, but q on cpu"),
        (lambda a: {"value_pages_NPKC": a["value_pages_NPKC"].half()}, "value_pages must be torch.float64"),
        (lambda a: {"value_pages_NPKC": a["value_pages_NPKC"][1:]}, "value_pages .* but N is"),
        (lambda a: {"value_pages_NPKC": a["value_pages_NPKC"].mT.contiguous().mT}, "value_pages must have the strides"),
        (
            lambda a: {x: a[x].mT.contiguous().mT for x in ("key_pages_NPKC", "value_pages_NPKC")},
            "key_pages must be contiguous in C, got strides",
        ),
        (
            lambda a: {x: a[x][:, :6] for x in ("key_pages_NPKC", "value_pages_NPKC")},
            r"key_pages must have a page size P of \(8, 16, 32, 64, 128, 256\), got 6",
        ),
        (
            lambda a: {x: a[x][..., :0] for x in ("q_BHC", "key_pages_NPKC", "value_pages_NPKC")},
            "q must have a head width",
        ),
        (lambda a: {"table_BM": a["table_BM"].long()}, "table must be torch.int32, got torch.int64"),
        (lambda a: {"table_BM": a["table_BM"][1:]}, "table .* but B is 8 in q"),
        (lambda a: {"table_BM": with_entry(a["table_BM"], (4, 1), 1000)}, r"table must hold pages in \[0, .* got 1000"),
        (lambda a: {"table_BM": with_entry(a["table_BM"], (4, 0), -1)}, r"^table must hold pages in \[0, .*, got -1"),
        (lambda a: {"length_B": a["length_B"].long()}, "length must be torch.int32"),
        (lambda a: {"length_B": a["length_B"][1:]}, "length .* but B is 8 in q"),
        (lambda a: {"length_B": with_entry(a["length_B"], 2, 73)}, r"^length must lie in \[0, 72\], got 73"),
        (lambda a: {"length_B": with_entry(a["length_B"], 2, -2)}, r"^length must lie in \[0, 72\], got -2"),
        (lambda a: {"scale": float("nan")}, "scale must be positive and finite, got nan"),
        (lambda a: {"scale": float("inf")}, "scale must be positive and finite, got inf"),
        (lambda a: {"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        (lambda a: {"scale": -1.0}, "scale must be positive and finite, got -1.0"),
    ],
)
def test_says_what_is_wrong(change, message):
    names = ("q_BHC", "key_pages_NPKC", "value_pages_NPKC", "table_BM", "length_B", "scale")
    values, prefix = Problem(GROUPS).paged()
    arguments = dict(zip(names, values, strict=True))
    paged_attention(**arguments, prefix=prefix)
    with pytest.raises(ValueError, match=message):
        paged_attention(**(arguments | change(arguments)), prefix=prefix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"table_GL": p.table_GL.long()}, "prefix.table must be torch.int32"),
        (lambda p: {"table_GL": p.table_GL[0]}, "prefix.table must have dimensions"),
        (lambda p: {"table_GL": with_entry(p.table_GL, (0, 5), -3)}, r"prefix.table must hold pages in \[0, .* got -3"),
        (lambda p: {"length_G": p.length_G[1:]}, "prefix.length .* but G is 4 in prefix.table"),
        (lambda p: {"length_G": p.length_G.float()}, "prefix.length must be torch.int32"),
        (lambda p: {"length_G": with_entry(p.length_G, 1, 49)}, r"prefix.length must lie in \[0, 48\], got 49"),
        (lambda p: {"length_G": with_entry(p.length_G, 1, -1)}, r"prefix.length must lie in \[0, 48\], got -1"),
        (lambda p: {"row_start_G1": p.row_start_G1[1:]}, r"prefix.row_start must have G \+ 1 = 5 entries, got 4"),
        (lambda p: {"row_start_G1": p.row_start_G1.long()}, "prefix.row_start must be torch.int32"),
        (
            lambda p: {"row_start_G1": with_entry(p.row_start_G1, 0, 1)},
            "prefix.row_start must begin with 0 and end with 8, got 1",
        ),
        (
            lambda p: {"row_start_G1": with_entry(p.row_start_G1, 4, 9)},
            "prefix.row_start must begin with 0 and end with 8, got 9",
        ),
        (lambda p: {"row_start_G1": with_entry(p.row_start_G1, 2, 2)}, "prefix.row_start must not decrease"),
        (lambda p: {"max_rows": 2}, "prefix.max_rows = 2 must bound each group, got 3"),
        (lambda p: {"max_rows": -1}, "prefix.max_rows must not be negative, got -1"),
    ],
)
def test_says_what_is_wrong_with_a_prefix(change, message):
    arguments, prefix = Problem(GROUPS).paged()
    with pytest.raises(ValueError, match=message):
        paged_attention(*arguments, replace(prefix, **change(prefix)))


def test_head_widths_that_triton_cannot_take(triton_device):
    arguments, prefix = Problem(GROUPS, C=24, dtype=torch.float32).paged()
    with pytest.raises(ValueError, match=r"q must have a head width C of \(16, 32, 64, 128\) .* got 24"):
        by_triton(triton_device, arguments, prefix)
