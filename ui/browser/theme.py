"""The application's colours and type, which are those of `ui.render`."""

from __future__ import annotations

import gradio as gr

from ui.render import html

SANS = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.Theme:
    """Returns the theme for `launch`."""
    light, dark = html.LIGHT, html.DARK
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=SANS, font_mono=MONO, radius_size="sm", spacing_size="md"
    ).set(
        body_background_fill=light["paper"],
        body_background_fill_dark=dark["paper"],
        block_background_fill=light["card"],
        block_background_fill_dark=dark["card"],
        border_color_primary=light["line"],
        border_color_primary_dark=dark["line"],
        input_background_fill=light["card"],
        input_background_fill_dark=dark["card"],
        body_text_color_subdued=light["muted"],
        body_text_color_subdued_dark=dark["muted"],
        input_placeholder_color=light["muted"],
        input_placeholder_color_dark=dark["muted"],
        color_accent=light["accent"],
        button_primary_background_fill=light["accent"],
        button_primary_background_fill_dark="#1d7f78",
        button_primary_background_fill_hover="#0d7d77",
        button_primary_text_color="#ffffff",
        block_shadow="none",
    )


def style() -> str:
    """Returns the style sheet for `launch`."""
    return f"{html.stylesheet('.dark .gb')}\n{html.asset('browser.css')}\n{html.asset('text.css')}"
