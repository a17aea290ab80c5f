"""A circuit as files that other programs read: GraphML (Gephi, yEd, networkx) and DOT (Graphviz).

Enters: a `Circuit`. Leaves: text in which names stay text, whatever the model is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from activations.circuits.circuit import Circuit

_KEYS = (
    ("kind", "node", "string"),
    ("layer", "node", "int"),
    ("node_score", "node", "double"),
    ("slot", "edge", "string"),
    ("score", "edge", "double"),
    ("loss", "edge", "double"),
)


def graphml(circuit: Circuit) -> str:
    """Returns a directed GraphML graph; parallel edges into queries, keys and values are kept apart."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        *(f'  <key id="{name}" for="{where}" attr.name="{name}" attr.type="{kind}"/>' for name, where, kind in _KEYS),
        '  <key id="about" for="graph" attr.name="about" attr.type="string"/>',
        '  <graph id="circuit" edgedefault="directed">',
        f'    <data key="about">{escape(_clean(_about(circuit)))}</data>',
    ]
    for node in circuit.nodes:
        data = {"kind": node.kind, "layer": str(node.layer), "node_score": repr(node.score)}
        lines.append(f"    <node id={quoteattr(node.name)}>{_data(data)}</node>")
    for number, edge in enumerate(circuit.edges):
        data = {"slot": edge.slot, "score": repr(edge.score), "loss": None if edge.loss is None else repr(edge.loss)}
        ends = f"source={quoteattr(edge.sender)} target={quoteattr(edge.receiver)}"
        lines.append(f'    <edge id="e{number}" {ends}>{_data(data)}</edge>')
    return "\n".join([*lines, "  </graph>", "</graphml>", ""])


def dot(circuit: Circuit) -> str:
    """Returns a Graphviz digraph, layers as ranks; width and colour of an edge follow its score."""
    largest = max((abs(edge.score) for edge in circuit.edges), default=0.0) or 1.0
    lines = [
        "digraph circuit {",
        f"  label={_quoted(_about(circuit))};",
        "  rankdir=BT; node [shape=box, style=rounded, fontname=Helvetica];",
    ]
    by_layer: dict[tuple[int, str], list[str]] = {}
    for node in circuit.nodes:
        by_layer.setdefault((node.layer, node.kind), []).append(node.name)
    lines += [f"  {{ rank=same; {' '.join(f'{_quoted(name)};' for name in names)} }}" for names in by_layer.values()]
    for edge in circuit.edges:
        width = 0.5 + 4 * abs(edge.score) / largest
        colour = "#d9771b" if edge.score >= 0 else "#5b8def"
        label = f", label={_quoted(edge.slot)}" if edge.slot else ""
        lines.append(
            f"  {_quoted(edge.sender)} -> {_quoted(edge.receiver)} "
            f'[penwidth={width:.2f}, color="{colour}", tooltip="{edge.score:.4g}"{label}];'
        )
    return "\n".join([*lines, "}", ""])


def _about(circuit: Circuit) -> str:
    return (
        f"{circuit.task} in {circuit.model}: {len(circuit.edges)} of {circuit.all_edges} edges ({circuit.method}), "
        f"faithfulness {circuit.faithfulness:.3f}"
    )


def _data(values: Mapping[str, str | None]) -> str:
    return "".join(f'<data key="{key}">{escape(value)}</data>' for key, value in values.items() if value is not None)


def _clean(text: str) -> str:
    """XML has no place for control characters and lone surrogates."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else f"\\u{ord(sign):04x}" for sign in text)


def _quoted(text: str) -> str:
    return '"' + _clean(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
