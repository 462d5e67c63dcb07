"""What the readers of benchmarks make: items, in the order of their files, and what is to be said about them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from patarm_core.prompts import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a benchmark: a prompt, and the responses that are judged (none where a policy is to write one)."""

    id: str  # unique in the benchmark; names the item's noise
    part: str  # the official subset, domain or source
    task: str  # whose rubrics the judge reads
    prompt: tuple[Message, ...]
    responses: tuple[str, ...] = ()
    row: Mapping[str, object] = field(default_factory=dict)  # what the aggregation is told besides scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A benchmark, or what there is of it."""

    benchmark: str
    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()  # one line each: what is missing or not as it was published

    @property
    def digest(self) -> str:
        """Of all that is read, whatever the files are called and however they are encoded."""
        content = hashlib.sha256()
        for item in self.items:
            content.update(json.dumps(asdict(item), sort_keys=True, ensure_ascii=False).encode())
        return content.hexdigest()[:16]

    def first(self, num: int) -> Data:
        """The first `num` items of every part."""
        seen: Counter[str] = Counter()
        items = []
        for item in self.items:
            seen[item.part] += 1
            if seen[item.part] <= num:
                items.append(item)
        if len(items) == len(self.items):
            return self
        told = f"{self.benchmark}: {len(items)} of {len(self.items)} items, the first {num} of every part"
        return Data(benchmark=self.benchmark, items=tuple(items), warnings=(*self.warnings, told))


def as_messages(prompt: str | Sequence[Message]) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)


def unique_ids(items: Sequence[Item]) -> tuple[Item, ...]:
    """Published ids recur now and then (RewardBench's do): the second `x` becomes `x.2`, in its row, too."""
    seen: Counter[str] = Counter()
    found, taken = [], {item.id for item in items}
    for item in items:
        seen[item.id] += 1
        if (number := seen[item.id]) > 1:
            while f"{item.id}.{number}" in taken:  # published, too
                number += 1
            seen[item.id] = number
            taken.add(f"{item.id}.{number}")
            row = item.row | {"id": f"{item.row['id']}.{number}"} if "id" in item.row else item.row
            item = replace(item, id=f"{item.id}.{number}", row=row)
        found.append(item)
    return tuple(found)


def made(benchmark: str, items: Sequence[Item], official: Mapping[str, int], source: str, noun: str = "items") -> Data:
    """The data of these items, with a warning for every part that is missing or not of its official size.

    Args:
        official: number of items of each part, as published.
        source: the path that was read, for errors.

    Raises:
        ValueError: nothing at all was read.
    """
    if not items:
        raise ValueError(f"{source}: holds no {noun} of {benchmark}")
    counts = Counter(item.part for item in items)
    warnings = []
    missing = [part for part in official if part not in counts]
    if missing:
        parts = ", ".join(f"{part} ({official[part]})" for part in missing)
        total = sum(official.values())
        warnings.append(
            f"{benchmark}: a part of it only, {len(items)} of {total} {noun}: {parts} missing, which no number includes"
        )
    for part, num in counts.items():
        if part in official and num != official[part]:
            warnings.append(f"{benchmark}: {part} has {num} {noun} here and {official[part]} as published")
    return Data(benchmark=benchmark, items=unique_ids(items), warnings=tuple(warnings))
