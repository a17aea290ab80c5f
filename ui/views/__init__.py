"""What the browser shows, as HTML: from a dictionary and what a person asked for to a fragment, without any Gradio.

One module for each page. Every text that a person or the corpus supplied passes `ui.render`, which escapes it.
"""
