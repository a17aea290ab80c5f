"""The one place that escapes, and the parts that every HTML page is made of.

Enters: strings nobody vouches for (tokens, documents' names, labels, queries). Leaves: HTML in which they are text and
nothing else. `escape` also turns `{`, `}`, `$` and the backtick into character references, because Gradio puts HTML
through templates that give these signs a meaning. A page made by `page` carries a content policy under which a browser
runs no script and fetches nothing, and needs no file beside itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from urllib.parse import quote, urlencode

LIGHT = {
    "paper": "#faf9f6",
    "card": "#ffffff",
    "ink": "#1d1c1a",
    "muted": "#635f57",
    "faint": "#b5afa4",
    "line": "#e3dfd7",
    "hair": "#f1eee8",
    "wash": "#f1eee8",
    "accent": "#0b6e69",
    "bar": "#6f9f9b",
    "hot": "#f0a034",
    "cold": "#5b8def",
    "peak": "#d9771b",
    "amber": "#96520a",
    "good": "#25734d",
    "bad": "#b3382c",
}
DARK = {
    "paper": "#151413",
    "card": "#1d1c1a",
    "ink": "#ece8e1",
    "muted": "#aba59a",
    "faint": "#6b665e",
    "line": "#37342f",
    "hair": "#282623",
    "wash": "#2c2a26",
    "accent": "#5cc4bb",
    "bar": "#4f8d88",
    "hot": "#a66415",
    "cold": "#3f66b5",
    "peak": "#f0a034",
    "amber": "#f0a034",
    "good": "#6cc596",
    "bad": "#ee7a6c",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_INDENTATION = re.compile("(⏎</i>)( {2,})")
_TEMPLATE_SIGNS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
# what would reorder or hide neighbouring text: controls, and the signs that change the direction of writing
UNSEEN = {code: f"\\x{code:02x}" for code in [*range(9), 11, 12, *range(14, 32), 127, *range(0x80, 0xA0)]}
UNSEEN |= {
    code: f"\\u{code:04x}" for code in [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF]
}


def escape(text: object) -> str:
    """Returns `text` as HTML that shows it and does nothing else, in element content and in quoted attributes."""
    return html.escape(str(text).translate(UNSEEN), quote=True).translate(_TEMPLATE_SIGNS)


def figure_text(text: object) -> str:
    """Returns `text` as plotly shows it in names and on hover: it reads some tags, and few references but these."""
    return str(text).translate(UNSEEN).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def visible(token: str, spaces: bool = False) -> str:
    """Returns one token as HTML with its line ends marked, and its spaces too where `spaces` is true.

    Where lines are not broken, a marked line end stands inline and the indentation after it is drawn narrow.
    """
    shown = escape(token)
    if spaces:
        shown = shown.replace(" ", '<i class="mark">·</i>')
    shown = shown.replace("\t", '<i class="mark">⇥</i>\t').replace("\r", '<i class="mark">␍</i>')
    shown = shown.replace("\n", '<i class="mark br">⏎</i>')
    return _INDENTATION.sub(r'\1<i class="indent">\2</i>', shown)


def chip(token: str) -> str:
    """Returns a token as a small boxed piece of code, every space visible."""
    return f'<span class="chip">{visible(token, spaces=True) or "&nbsp;"}</span>'


def explained(text: str) -> str:
    """Returns an explanation; what stands between backticks, as explanations quote tokens, becomes a chip."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a lone backtick quotes nothing
        return escape(text)
    return "".join(chip(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def highlighted(
    tokens: Sequence[str],
    activations: Sequence[float],
    scale: float,
    peak: int | None = None,
    unit: str = "activation",
    spaces: bool = False,
) -> str:
    """Returns running text whose tokens are coloured by activation, the value as each one's tooltip.

    `scale` is the activation of full colour; `peak` is the index of the token to underline; spaces are
    marked too where `spaces` is true.
    """
    parts: list[str] = []
    for index, (token, activation) in enumerate(zip(tokens, activations, strict=True)):
        text = visible(token, spaces)
        if activation == 0 and index != peak:
            parts.append(text)
            continue
        share = min(abs(activation) / scale, 1.0) if scale > 0 else 0.0
        colour = 0.1 + 0.75 * share**0.8 if activation else 0.0
        classes = "t" + (" cold" if activation < 0 else "") + (" peak" if index == peak else "")
        tip = escape(f"{unit} {activation:.3g} · {share:.0%} of maximum")
        value = f'style="--a:{colour:.2f}" data-v="{activation:.4g}"'
        parts.append(f'<span class="{classes}" {value} title="{tip}">{text}</span>')
    return f'<span class="text">{"".join(parts)}</span>'


def table(
    columns: Mapping[str, str], rows: Iterable[Mapping[str, str]], classes: str = "", numbers: Sequence[str] = ()
) -> str:
    """Returns an HTML table. `columns` maps keys of the rows to headings (plain text); cells are HTML already.

    Columns named in `numbers` stand right-aligned.
    """
    kind = {key: ' class="num"' if key in numbers else "" for key in columns}
    head = "".join(f"<th{kind[key]}>{escape(title)}</th>" for key, title in columns.items())
    body = "".join(
        "<tr>" + "".join(f"<td{kind[key]}>{row.get(key, '')}</td>" for key in columns) + "</tr>" for row in rows
    )
    heading = f"<thead><tr>{head}</tr></thead>" if any(columns.values()) else ""
    return f'<table class="{escape(classes)}">{heading}<tbody>{body}</tbody></table>'


def facts(pairs: Mapping[str, str]) -> str:
    """Returns large values over small names, side by side; both are plain text."""
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in pairs.items()
    )
    return f'<div class="facts">{cells}</div>'


def bar(share: float) -> str:
    """Returns a thin bar filled to `share` (0 to 1)."""
    return f'<div class="bar"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div>'


def palette(colours: Mapping[str, str]) -> str:
    """Returns CSS declarations of the palette's variables."""
    return " ".join(f"--gb-{name}: {value};" for name, value in colours.items())


def stylesheet(dark_selector: str | None = None) -> str:
    """Returns the whole style sheet; dark colours follow the system, or `dark_selector` where one is given."""
    dark = f"{{ {palette(DARK)} color-scheme: dark; }}"
    switch = f"{dark_selector} {dark}" if dark_selector else f"@media (prefers-color-scheme: dark) {{ .gb {dark} }}"
    return f".gb {{ {palette(LIGHT)} color-scheme: light; }}\n{switch}\n{asset('style.css')}"


def asset(name: str) -> str:
    """Returns the text of a file that ships in `ui/assets`."""
    return (resources.files("ui") / "assets" / name).read_text(encoding="utf-8")


def address(page: str, dictionary: str = "", **words: object) -> str:
    """Returns the browser's address of a page, unescaped; the words are what it is to show."""
    said = {"view": page} | ({"dict": dictionary} if dictionary else {}) | {key: str(words[key]) for key in words}
    return f"?{urlencode(said, quote_via=quote)}"


def link(shown: str, page: str, dictionary: str = "", attributes: str = "", **words: object) -> str:
    """Returns a link to a page of the browser around `shown` (HTML already)."""
    return f'<a href="{escape(address(page, dictionary, **words))}" data-go{attributes}>{shown}</a>'


def page(title: str, body: str, script: str = "") -> str:
    """Returns a complete HTML document around `body` (HTML already): nothing outside is needed, no script can run.

    `script`, one of ours, is the exception: the policy names its hash, so that it runs and nothing else does.
    """
    policy, run = POLICY, ""
    if script:
        run = f"<script>{script}</script>"
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{stylesheet()}</style></head>"
        f'<body class="gb"><main class="page">{body}</main>{run}</body></html>\n'
    )
