"""What became of every pair, by source: the table that the paper's table 6 is a part of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# A pair ends in one of these, or is dropped for a reason. `sft_pair` is a part of `sft_point`.
ENDS = ("rl", "sft_point", "dev", "held_out")
# Table 6: initial, RL, SFT (point), SFT (pair). Its RL column adds up to 20,866 and is printed as 20,853.
PAPER: Mapping[str, tuple[int, int, int, int]] = {
    "magpie_pro_llama3.1": (29682, 8322, 971, 904),
    "offsetbias": (8504, 1374, 4062, 3787),
    "helpsteer2": (7221, 3051, 1521, 1372),
    "wildguard": (6709, 823, 4098, 4032),
    "magpie_pro": (2030, 881, 134, 119),
    "magpie_air": (42, 13, 0, 0),
    "code": (8398, 3769, 2384, 2305),
    "math_step_dpo": (10795, 2633, 4647, 4417),
}


def count(
    initial: Mapping[str, int],
    dropped: Iterable[tuple[str, str]],
    ended: Iterable[tuple[str, str]],
    in_both: Iterable[str],
) -> dict[str, dict[str, object]]:
    """Counts by source, in the order in which sources first appear.

    Args:
        initial: by source, how many pairs, and rows that are none, were read.
        dropped: (source, reason) of each that is not used.
        ended: (source, one of ENDS) of each that is.
        in_both: the source of each pair in the pairwise set.

    Raises:
        ValueError: a source whose numbers do not add up; something would have been dropped silently.
    """
    both = Counter(in_both)
    found: dict[str, dict[str, object]] = {
        source: {"initial": num, "dropped": Counter(), **dict.fromkeys(ENDS, 0), "sft_pair": both[source]}
        for source, num in initial.items()
    }
    for source, reason in dropped:
        found[source]["dropped"][reason] += 1
    for source, end in ended:
        found[source][end] += 1
    for source, row in found.items():
        total = sum(row["dropped"].values()) + sum(row[end] for end in ENDS)
        if total != row["initial"] or row["sft_pair"] > row["sft_point"]:
            raise ValueError(f"source {source}: {row['initial']} pairs were read and {total} are accounted for")
        row["dropped"] = dict(sorted(row["dropped"].items()))
    return found


def total(counts: Mapping[str, Mapping]) -> dict[str, object]:
    """The same of all sources together."""
    dropped: Counter[str] = Counter()
    for row in counts.values():
        dropped.update(row["dropped"])
    sums = {key: sum(row[key] for row in counts.values()) for key in ("initial", *ENDS, "sft_pair")}
    return {**sums, "dropped": dict(sorted(dropped.items()))}


def table(counts: Mapping[str, Mapping]) -> list[list[str]]:
    """Rows of cells, the header first: table 6 with what was dropped before it, and the paper's shares beside."""
    whole = total(counts)
    header = ["source", "initial", *whole["dropped"], "RL", "SFT (point)", "SFT (pair)", "dev", "held out", "RL share"]
    rows = [[*header, "RL share, paper"]]
    for source, row in [*counts.items(), ("total", whole)]:
        cells = [row["initial"], *(row["dropped"].get(reason, 0) for reason in whole["dropped"])]
        cells += [row["rl"], row["sft_point"], row["sft_pair"], row["dev"], row["held_out"]]
        paper = _paper(list(PAPER.values()) if source == "total" else [PAPER[source]] if source in PAPER else [])
        rows.append([source, *(f"{cell:,}" for cell in cells), _share(row["rl"], row["initial"]), paper])
    return rows


def _paper(rows: Sequence[Sequence[int]]) -> str:
    return _share(sum(row[1] for row in rows), sum(row[0] for row in rows))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
