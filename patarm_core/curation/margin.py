"""Which sample of a pair's judgments is imitated (appendix C, step 3): its margin must be above 2, strictly.

The paper does not say how many samples are drawn, nor which is kept where several qualify:

    first    the first sample whose own margin qualifies
    largest  that of the largest margin, if it qualifies
    mean     the mean margin of all samples must qualify; the sample nearest to it is kept
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

Keep = Literal["first", "largest", "mean"]


def sample_to_keep(
    chosen: Sequence[Fraction | None], rejected: Sequence[Fraction | None], above: Fraction, keep: Keep = "first"
) -> int | None:
    """Index of the sample whose two judgments are kept, None where the pair is not.

    Args:
        chosen: scores of the preferred response, one per sample, None where unreadable.
        rejected: scores of the other response, as many.
        above: chosen - rejected must be above this.
    """
    margins = {i: c - r for i, (c, r) in enumerate(zip(chosen, rejected, strict=True)) if None not in (c, r)}
    if not margins:
        return None
    if keep == "first":
        return next((i for i, margin in margins.items() if margin > above), None)
    if keep == "largest":
        best = max(margins, key=lambda i: (margins[i], -i))
        return best if margins[best] > above else None
    mean = sum(margins.values(), Fraction(0)) / len(margins)
    return min(margins, key=lambda i: (abs(margins[i] - mean), i)) if mean > above else None
