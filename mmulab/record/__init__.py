"""Scenarios on a real kernel: a host that boots in an emulator, a VMM in it, its trace as recordings.

``vmm/`` is the C program that is the host's only process; the rest builds that
host (:mod:`mmulab.record.build`), boots it and talks with it
(:mod:`mmulab.record.boot`, :mod:`mmulab.record.link`), and turns what it says
into recordings (:mod:`mmulab.record.convert`). :mod:`mmulab.record.own_host` takes the machine that
it runs on instead.
"""
