"""Contrast of what is rendered: visible text against the ground it stands on, on every page, light and dark.

WCAG 2.2 AA: 4.5 to 1, for large text (24 px, or 18.66 px and bold) 3 to 1. Colours are those that Chromium computed,
laid over each other as it paints them; disabled controls are exempt there and here.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.ui.conftest import Visit
from tests.ui.served import CANARY

pytestmark = pytest.mark.browser
PAGES = {
    "overview": ("", "#overview .card"),
    "features": ("?view=features&q=import", "#feature-list tbody tr"),
    "feature": ("?view=feature&feature=12", ".feature-page h2"),
    "dead": ("?view=feature&feature=5", ".feature-page h2"),
    "text": ("?view=text&text=import+json&second=def+f&token=b1", ".lens-panel"),
    "refused": ("?view=text&text=def+f&token=zz", "#text-panel [role=alert]"),
    "steer": ("?view=steer&features=3,12", "#norm-1 .norm"),
    "compare": ("?view=compare&pair=7,7", ".side-by-side .pair article"),
    "lists": (f"?view=lists&list={quote(CANARY)}", "#lists-shown tbody tr"),
    "analyse": ("?view=analyse", "#analyse-run"),
    "about": ("?view=about", "#about h2"),
}
STILL = """() => Promise.all(document.getAnimations()
    .filter((each) => each.effect.getTiming().iterations !== Infinity)
    .map((each) => each.finished.catch(() => {})))"""
FAINT = """() => {
    const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const brush = pen.getContext("2d", { willReadFrequently: true });
    const seen = new Map();
    const rgba = (colour) => {
        if (!seen.has(colour)) {
            brush.clearRect(0, 0, 1, 1);
            brush.fillStyle = colour;
            brush.fillRect(0, 0, 1, 1);
            const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
            seen.set(colour, [r, g, b, a / 255]);
        }
        return seen.get(colour);
    };
    const over = ([r, g, b, a], under) => [r, g, b].map((part, at) => part * a + under[at] * (1 - a));
    const ground = (element) => {
        const layers = [];
        for (let each = element; each; each = each.parentElement) {
            const layer = rgba(getComputedStyle(each).backgroundColor);
            if (layer[3] > 0) layers.push(layer);
            if (layer[3] === 1) break;
        }
        return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
    };
    const light = (colour) => {
        const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = colour.map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const faint = new Map();
    let pieces = 0;
    const judge = (element, colour, text) => {
        const style = getComputedStyle(element);
        let solid = 1;
        for (let each = element; each; each = each.parentElement) solid *= Number(getComputedStyle(each).opacity);
        const under = ground(element);
        const [r, g, b, a] = rgba(colour);
        const found = ratio(over([r, g, b, a * solid], under), under);
        const size = parseFloat(style.fontSize);
        const wanted = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
        pieces += 1;
        if (found >= wanted - 0.005) return;
        const kind = element.className.baseVal ?? element.className;
        const where = [element.closest("[id]")?.id, element.tagName.toLowerCase(), kind].join(" ");
        faint.set(`${where}: ${found.toFixed(2)} of ${wanted}`, text.trim().slice(0, 40));
    };
    const exempt = (element) => element.closest(":disabled, [aria-disabled=true], script, style, .bridge, canvas");
    const ways = { opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true };
    const shown = (element) => element.checkVisibility(ways);
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        const element = node.parentElement;
        if (!node.data.trim() || exempt(element) || !shown(element)) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        const box = range.getBoundingClientRect();
        if (box.width < 2 || box.height < 2) continue;
        const inPicture = element instanceof SVGElement;
        judge(element, getComputedStyle(element)[inPicture ? "fill" : "color"], node.data);
    }
    const fields = "input:is([type=text], [type=search], [type=number]), textarea";
    for (const field of document.querySelectorAll(fields)) {
        if (exempt(field) || !shown(field)) continue;
        const text = field.value || field.placeholder;
        if (text) judge(field, getComputedStyle(field, field.value ? null : "::placeholder").color, text);
    }
    return { pieces, faint: Object.fromEntries(faint) };
}"""


def faint(page: Any) -> tuple[int, dict[str, str]]:
    """Returns how many pieces of text were looked at, and those that are too faint, by where they stand."""
    found = page.evaluate(FAINT)
    return found["pieces"], found["faint"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_read_without_effort(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    told = {}
    for name, (query, shown) in PAGES.items():
        page = visit.open(query).page
        page.wait_for_selector(shown)
        for summary in page.locator("button.label-wrap:visible").all():  # closed accordions
            if "open" not in (summary.get_attribute("class") or "").split():
                summary.click()
        visit.settle()
        page.evaluate(STILL)  # what Gradio shows anew is faded in
        visit.keep(f"contrast_{name}_{scheme}")
        pieces, found = faint(page)
        assert pieces > 20
        told |= {f"{name}: {where}": text for where, text in found.items()}
    assert told == {}


def test_faint_text_would_be_seen(visit: Visit) -> None:
    page = visit.open("?view=about").page
    page.wait_for_selector("#about h2")
    page.evaluate("document.querySelector('#about h2').style.color = 'rgb(150 150 150 / 60%)'")
    assert any("h2" in where for where in faint(page)[1])
