"""Pages of the KV cache: fixed runs of positions, counted by how many holders read them."""

from __future__ import annotations


class PagePool:
    """Numbers of pages and their reference counts; the keys and values themselves lie in `kv_cache`.

    Page 0 is never handed out: padding tokens write there.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages} must be at least 2: page 0 is for padding")
        self.page_size, self.num_pages = page_size, num_pages
        self._free = list(range(num_pages - 1, 0, -1))  # lowest first
        self._count = [0] * num_pages
        self.highest = 0  # page ever taken

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free page, held once."""
        page = self._free.pop()
        self._count[page] = 1
        self.highest = max(self.highest, page)
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
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        return self._count[page] > 1

    def num_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)
