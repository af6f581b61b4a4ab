"""From Markdown to sections of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chat_grpc.embedded.passages import Section

if TYPE_CHECKING:
    from markdown_it.tree import SyntaxTreeNode


def parse(text: str, title: str | None) -> tuple[str | None, tuple[Section, ...]]:
    """Return the document's title and its sections.

    The title is the one given or, without one, the first level-one heading.
    That heading is the document's name either way, so it stands in no path.
    """
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

    tree = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(text))
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    blocks: list[str] = []
    named = False

    def close() -> None:
        if blocks:
            sections.append(Section(tuple(heading for _, heading in path), tuple(blocks)))
            blocks.clear()

    for node in tree.children:
        if node.type != "heading":
            blocks.extend(filter(None, _block(node)))
            continue
        close()
        level, heading = int(node.tag[1]), _inline(node.children)
        if level == 1 and not named:
            named = True
            title = title or heading
            path.clear()
            continue
        path[:] = [above for above in path if above[0] < level]
        path.append((level, heading))
    close()
    return title, tuple(sections)


def _block(node: SyntaxTreeNode) -> Iterator[str]:
    """Yield the paragraphs that a block is to a reader."""
    match node.type:
        case "paragraph" | "heading":
            yield _inline(node.children)
        case "fence" | "code_block":
            yield node.content.rstrip("\n")
        case "bullet_list" | "ordered_list":
            yield "\n".join(_items(node))
        case "table":
            yield "\n".join(_rows(node))
        case "blockquote":
            for child in node.children:
                yield from _block(child)
        # What is left is rules (---) and raw HTML: nothing to read.


def _items(node: SyntaxTreeNode, indent: str = "") -> Iterator[str]:
    for number, item in enumerate(node.children, int(node.attrs.get("start", 1))):
        mark = f"{number}." if node.type == "ordered_list" else "-"
        for position, child in enumerate(item.children):
            if child.type in ("bullet_list", "ordered_list"):
                yield from _items(child, indent + "  ")
                continue
            for text in _block(child):
                yield f"{indent}{mark if not position else ' ' * len(mark)} {text}"


def _rows(node: SyntaxTreeNode) -> Iterator[str]:
    """Yield a line for each row, such as "CHAT_GRPC_PORT: the port; Default: 50052.".

    A cell far from its column's head says little; a row found alone must still
    make sense.
    """
    head, *rows = [[_inline(cell.children) for cell in row.children] for part in node.children for row in part.children]
    for name, *cells in rows:
        first, *others = cells or [""]
        more = (f"{column}: {cell}" for column, cell in zip(head[2:], others, strict=False) if cell)
        yield "; ".join(filter(None, (f"{name}: {first}" if first else name, *more))) + "."


def _inline(nodes: Sequence[SyntaxTreeNode]) -> str:
    """Return the text that a reader sees, without the marks around it."""
    return "".join(map(_text, nodes)).strip()


def _text(node: SyntaxTreeNode) -> str:
    match node.type:
        case "text" | "code_inline" | "image":
            return node.content
        case "softbreak":
            return " "
        case "hardbreak":
            return "\n"
        case "html_inline":
            return ""
        case _:
            return "".join(map(_text, node.children))
