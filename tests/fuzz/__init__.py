"""Fuzzers: one for each thing that reads what a user gives.

A reader (:mod:`tests.fuzz.targets`) takes bytes and must return or raise
``InputError`` with one line; anything else, a hang and memory above the limit
are findings. ``python -m tests.fuzz.run`` (``make fuzz``) changes the inputs of
``corpus/`` over and over, guided by coverage where `atheris` is installed, and
writes each distinct finding to ``out/fuzz``. ``test_corpus.py`` runs the corpus
as it is; what a fuzzer found and was mended is kept there.
"""
