"""Draws SVG pictures for the docs, readable on light and on dark pages.

A browser chooses the colours by the scheme of the page around the picture. A picture has a
background of its own, so it is readable in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from textwrap import wrap

WIDTH = 740  # as wide as the text of a page
LINE = 15  # from one line of text to the next

#: Each kind of shape or text with its property and its colours on a light and on a dark page.
_COLOURS = {
    "paper": ("fill", "#ffffff", "#1b1f24"),
    "ink": ("fill", "#1f2328", "#e6e9ed"),
    "soft": ("fill", "#59636e", "#a6b0ba"),
    "line": ("stroke", "#8c959f", "#768390"),
    "active": ("fill", "#d6e8fa", "#1c3b5a"),
    "quiet": ("fill", "#f2f4f6", "#262c33"),
    "grace": ("fill", "#fdf0c8", "#4a3d12"),
    "old": ("fill", "#ffffff", "#39424c"),
    "new": ("fill", "#bfe5c4", "#1f5c2e"),
    "invalid": ("fill", "#f6c5c0", "#7a2620"),
    "edge0": ("stroke", "#1f6fbf", "#6cb2f5"),
    "edge1": ("stroke", "#b3540e", "#f0995a"),
    "dot0": ("fill", "#1f6fbf", "#6cb2f5"),
    "dot1": ("fill", "#b3540e", "#f0995a"),
    "reader": ("stroke", "#6639ba", "#b596f5"),
    "accent": ("stroke", "#1f2328", "#e6e9ed"),
}
_SHAPES = (
    "text{font:13px system-ui,sans-serif}.code{font-family:ui-monospace,monospace;font-size:12px}"
    ".small{font-size:12px}.bold{font-weight:600}"
    ".line,.edge0,.edge1{stroke-width:1.3}.wire{fill:none}.reader{stroke-width:3}"
    ".accent{stroke-width:2.2}.dashed{stroke-dasharray:4 3}"
)


def _rules(column: int) -> str:
    return "".join(f".{name}{{{of[0]}:{of[column]}}}" for name, of in _COLOURS.items())


class Drawing:
    """A picture that is being drawn, from the top down."""

    def __init__(self, title: str, width: int = WIDTH) -> None:
        self.title = title
        self.width = width
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "ink", anchor: str = "start") -> None:
        """Writes one line; `y` is its middle."""
        self.parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y + 4.5:g}" text-anchor="{anchor}">'
            f"{escape(text, quote=False)}</text>"
        )

    def lines(self, x: float, y: float, text: str, chars: int, kind: str = "soft small") -> None:
        """Writes a text in lines of at most so many characters; `y` is the middle of all."""
        found = wrap(text, chars)
        for n, line in enumerate(found):
            self.text(x, y + (n - (len(found) - 1) / 2) * LINE, line, kind)

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, round: int = 4
    ) -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            f' rx="{round}"/>'
        )

    def path(self, path: str, kind: str, arrow: str = "") -> None:
        """Draws a line; `arrow` names the kind of the head that it gets at its end."""
        head = f' marker-end="url(#{arrow})"' if arrow else ""
        self.parts.append(f'<path class="wire {kind}" d="{path}"{head}/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 4) -> None:
        self.parts.append(f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def slot(self, x: float, y: float, name: str, kind: str, changed: bool = False) -> None:
        """Draws a small box with a slot's name; (x, y) is its centre."""
        self.box(x - 13, y - 11, 26, 22, f"{kind} {'accent' if changed else 'line'}")
        self.text(x, y, name, "ink code", "middle")

    def svg(self, height: float) -> str:
        """Returns the picture, as high as this."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
            f' markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path class="{fill}" d="M0 0L8 4L0 8Z"/></marker>'
            for name, fill in (("head", "soft"), ("head0", "dot0"), ("head1", "dot1"))
            if f"url(#{name})" in "".join(self.parts)
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{height:g}"'
                f' viewBox="0 0 {self.width} {height:g}" role="img">',
                f"<title>{escape(self.title, quote=False)}</title>",
                f"<style>{_SHAPES}{_rules(1)}"
                f"@media (prefers-color-scheme:dark){{{_rules(2)}}}</style>",
                *([f"<defs>{heads}</defs>"] if heads else []),
                '<rect class="paper" width="100%" height="100%" rx="6"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def legend(drawing: Drawing, y: float, entries: Sequence[tuple[str, str, str]]) -> None:
    """Explains shapes in one row: (shape, kind, text); a shape is box, line or frame."""
    x = 14.0
    for shape, kind, text in entries:
        if shape == "line":
            drawing.path(f"M{x:g} {y:g}h16", kind)
        else:
            drawing.box(x, y - 6, 16, 12, kind, 2)
        drawing.text(x + 22, y, text, "soft small")
        x += 40 + 6.3 * len(text)
