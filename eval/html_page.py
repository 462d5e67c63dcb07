"""Pages that need nothing else: no script, no other file. What is put into them is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.html_style import CSS


def html_page(title: str, body: Sequence[str]) -> str:
    """A whole page of these pieces of HTML; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def table(rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Rows of plain text, the first the header."""
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{cells}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def tiles(shown: Sequence[tuple[str, str, str]]) -> str:
    """Numbers to be seen first, each with its name before and a note after it: (name, number, note)."""
    cells = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in shown
    ]
    return '<dl class="tiles">\n' + "\n".join(cells) + "\n</dl>" if cells else ""
