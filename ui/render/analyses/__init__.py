"""Drawings of the analyses' results, one module for each kind of question; `ui.render.analysis` puts them together.

Each module has `DRAWINGS`: a `drawing.Drawing` for each method, by the name it has in `activations.analyses.methods`.
"""
