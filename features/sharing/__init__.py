"""Dictionaries that travel: exports, imports, merging.

Enters: opened dictionaries, and files of ours, of SAEDashboard and of Neuronpedia. Leaves: files, labels in a
dictionary, or a dictionary of its own.

* `reading`: many features at once; `documents`, `flat_tables`, `neuronpedia`, `dashboard`: the files of an export
  (`figures`: what the two last share). HTML is drawn by `ui.render.dictionary_pages`.
* `foreign`: other projects' files; `imports`: what people wrote, out of any of these files, into a dictionary;
  `dumps`: a dictionary made of another project's files alone.
* `merging`: dictionaries of one SAE over several corpora.
"""
