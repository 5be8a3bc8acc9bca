"""A document in the making: headings, text, tables and pictures, written as Markdown and as HTML of one file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report import write_atomically


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    name: str  # of its file
    caption: str
    png: bytes


Part = Text | Heading | Table | Picture


@dataclass(frozen=True)
class Page:
    """What is said, whatever the form."""

    title: str
    parts: tuple[Part, ...]

    def write(self, folder: Path) -> None:
        """Puts report.md, report.html and the pictures into `folder`."""
        for part in self.parts:
            if isinstance(part, Picture):
                write_atomically(folder / part.name, part.png)
        write_atomically(folder / "report.md", self.as_markdown())
        write_atomically(folder / "report.html", self.as_html())

    def as_markdown(self) -> str:
        return "\n\n".join([f"# {self.title}", *map(_markdown, self.parts)]) + "\n"

    def as_html(self) -> str:
        title = html.escape(self.title)
        body = "\n".join(map(_html, self.parts))
        return _HTML.format(title=title, body=body)


def _markdown(part: Part) -> str:
    match part:
        case Text(text):
            return text
        case Heading(text):
            return f"## {text}"
        case Picture(name, caption, _):
            return f"![{caption}]({name})"
        case Table(head, rows):
            lines = [head, tuple("---" for _ in head), *rows]
            return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """On one line, and of one cell."""
    return " ".join(text.replace("|", "/").split())


def _html(part: Part) -> str:
    match part:
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Picture(_, caption, png):
            data = base64.b64encode(png).decode("ascii")
            return (
                f'<figure><figcaption>{html.escape(caption)}</figcaption><img alt="{html.escape(caption)}" '
                f'src="data:image/png;base64,{data}"></figure>'
            )
        case Table(head, rows):
            return (
                f"<div class=table><table><thead>{_row('th', head)}</thead>"
                f"<tbody>{''.join(_row('td', row) for row in rows)}</tbody></table></div>"
            )


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: #334155; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem }}
h1, h2 {{ color: #0f172a; line-height: 1.2 }} h2 {{ margin-top: 2rem; font-size: 1.15rem }}
.table {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e2e8f0 }}
th {{ color: #64748b; font-weight: 600 }} td:first-child {{ color: #0f172a; font-weight: 500; white-space: nowrap }}
figure {{ display: inline-block; margin: 1rem 1rem 0 0; max-width: 34rem; vertical-align: top }}
figcaption {{ font-weight: 600; color: #0f172a }} img {{ width: 100% }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
