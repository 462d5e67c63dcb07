"""Pages of the KV cache: fixed runs of positions, counted by how many holders read them."""

from __future__ import annotations

import heapq

GPU_PAGE = 16  # tokens of a page for the paged kernel


class PagePool:
    """Numbers of pages and their reference counts; the keys and values themselves lie in `kv_cache`.

    Page 0 is never handed out: padding tokens write there.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages} must be at least 2: page 0 is for padding")
        self.page_size, self.num_pages = page_size, num_pages
        self._count = [0] * num_pages
        self.num_free = num_pages - 1
        # Free pages from both ends. One that was taken from the other end lies in a heap until it comes up.
        self._first, self._last = list(range(1, num_pages)), list(range(1 - num_pages, 0))
        self._is_in_first, self._is_in_last = bytearray([1]) * num_pages, bytearray([1]) * num_pages

    def take(self, is_context: bool = False) -> int:
        """A free page, held once: of contexts the last one, of samples the first one.

        So the pages of running samples lie close together, and can be read in place.
        """
        assert self.num_free, "no page is free"
        heap, is_in = (self._last, self._is_in_last) if is_context else (self._first, self._is_in_first)
        while True:
            page = abs(heapq.heappop(heap))
            is_in[page] = 0
            if not self._count[page]:
                break
        self._count[page] = 1
        self.num_free -= 1
        return page

    def hold(self, page: int) -> int:
        """One more holder of a page that has some."""
        assert self._count[page] > 0, f"page {page} is free"
        self._count[page] += 1
        return page

    def release(self, page: int) -> None:
        assert self._count[page] > 0, f"page {page} is released more often than held"
        self._count[page] -= 1
        if self._count[page]:
            return
        self.num_free += 1
        if not self._is_in_first[page]:
            heapq.heappush(self._first, page)
        if not self._is_in_last[page]:
            heapq.heappush(self._last, -page)
        self._is_in_first[page] = self._is_in_last[page] = 1

    def is_shared(self, page: int) -> bool:
        return self._count[page] > 1

    def num_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)
