"""Pictures as SVG: a few shapes, the same text for the same picture, readable on any background."""

from collections.abc import Sequence
from html import escape

FONT = "font-family='Helvetica, Arial, sans-serif'"
INK, QUIET, PAPER = "#1f2430", "#667085", "#ffffff"


class Picture:
    """A picture that shapes are put onto, in pixels from the upper left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Begin with white paper.

        Args:
            width: In pixels.
            height: In pixels.
            title: What it shows, for those who do not see it.
        """
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []
        self.rect(0, 0, width, height, PAPER, radius=10)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        edge: str = "none",
        radius: float = 0,
        dash: str = "",
    ) -> None:
        """A rectangle."""
        more = f" stroke-dasharray='{dash}'" if dash else ""
        self._shapes.append(
            f"<rect x='{_n(x)}' y='{_n(y)}' width='{_n(width)}' height='{_n(height)}' rx='{_n(radius)}' "
            f"fill='{fill}' stroke='{edge}'{more}/>"
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 14,
        color: str = INK,
        bold: bool = False,
        anchor: str = "start",
    ) -> None:
        """A line of text; `y` is its base line."""
        weight = " font-weight='bold'" if bold else ""
        self._shapes.append(
            f"<text x='{_n(x)}' y='{_n(y)}' font-size='{_n(size)}' fill='{color}' text-anchor='{anchor}' "
            f"{FONT}{weight}>{escape(text)}</text>"
        )

    def line(
        self, points: Sequence[tuple[float, float]], color: str = QUIET, *, width: float = 1.5, dash: str = ""
    ) -> None:
        """A line through points, with an arrow's head at its end."""
        more = f" stroke-dasharray='{dash}'" if dash else ""
        way = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._shapes.append(
            f"<polyline points='{way}' fill='none' stroke='{color}' stroke-width='{_n(width)}'{more}/>"
        )
        (x0, y0), (x, y) = points[-2], points[-1]
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5 or 1.0
        dx, dy = 7 * (x - x0) / length, 7 * (y - y0) / length
        corners = [(x, y), (x - dx - dy / 2, y - dy + dx / 2), (x - dx + dy / 2, y - dy - dx / 2)]
        shape = " ".join(f"{_n(a)},{_n(b)}" for a, b in corners)
        self._shapes.append(f"<polygon points='{shape}' fill='{color}'/>")

    def __str__(self) -> str:
        shapes = "\n".join(self._shapes)
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' "
            f"width='{self.width}' height='{self.height}' role='img'>\n"
            f"<title>{escape(self.title)}</title>\n{shapes}\n</svg>\n"
        )


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
