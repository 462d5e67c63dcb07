"""Pages of the KV cache: fixed runs of positions, counted by how many holders read them."""

from __future__ import annotations

from bisect import insort


class PagePool:
    """Numbers of pages and their reference counts; the keys and values themselves lie in `kv_cache`.

    Page 0 is never handed out: padding tokens write there.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages} must be at least 2: page 0 is for padding")
        self.page_size, self.num_pages = page_size, num_pages
        self._free = list(range(1, num_pages))  # in order
        self._count = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, is_context: bool = False) -> int:
        """A free page, held once: of contexts the last one, of samples the first one.

        So the pages of running samples lie close together, and can be read in place.
        """
        page = self._free.pop(-1 if is_context else 0)
        self._count[page] = 1
        return page

    def hold(self, page: int) -> int:
        """One more holder of a page that has some."""
        assert self._count[page] > 0, f"page {page} is free"
        self._count[page] += 1
        return page

    def release(self, page: int) -> None:
        assert self._count[page] > 0, f"page {page} is released more often than held"
        self._count[page] -= 1
        if not self._count[page]:
            insort(self._free, page)

    def is_shared(self, page: int) -> bool:
        return self._count[page] > 1

    def num_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)
