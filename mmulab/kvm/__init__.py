"""The hypervisor's MMU, one concern a file, named as the kernel names it.

Records first: ``state`` (VM, vCPU), ``mmu`` (context), ``mmu_page``, ``memslot``,
``config``; ``roles`` for the role word and its designs, ``spte`` for entries,
``kernel`` for what differs from one kernel to the next. ``trace`` reports.

A fault comes in by ``page_fault`` and goes to ``paging_tmpl`` (shadow tables),
``direct`` (direct maps) or, for the TDP MMU, ``tdp_map``; ``guest_walk`` walks
what the guest wrote, ``shadow_page`` finds and links pages, ``set_spte`` writes
the leaf. ``pte_write`` and ``sync`` follow the guest's stores to its
tables, ``zap`` takes pages away, ``roots``, ``context`` and ``hw_cr4`` follow its registers.
Exits arrive in ``exits``, ``emulate`` executes what the processor may not, and
``x86`` does what waits for the next entry.

Source: Linux 6.1.192 ``arch/x86/kvm``.
"""
