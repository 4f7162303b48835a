"""Imported before what loads the library: ``python -m dualpipe doctor`` is for those where that fails."""

from .doctor import run_if_asked

run_if_asked()
