"""The run-time type checker of the suite: beartype, taking an int where a float is meant as Python itself does."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
