"""When the guest may write a shadowed table freely, and when KVM catches up.

``policy`` is the interface that the engine asks, ``unsync_children`` what Linux does;
``page`` compares one page with its guest table, ``unsync`` marks one.
"""
