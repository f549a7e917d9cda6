"""Traces of real kernels as text: read by event and field, and written in the kernel's own words.

The three texts are those of ``trace`` and ``trace_pipe``, of ``trace-cmd report`` and of ``perf script``.
What an event's line says is data (:mod:`mmulab.ftrace.layouts`), and one template serves the reader and the
writer.
"""
