"""Draws results: terminal tables, figures, and self-contained HTML; the one place that escapes what it shows."""
