/*
 * Dirty rings: each vCPU's list of the pages that were written, which takes the place of the bitmaps.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "guest.h"

u32 ring_entries;		/* of each vCPU; 0: bitmaps */

u64 ring_bytes(void)
{
	return ring_entries * sizeof(struct kvm_dirty_gfn);
}

/* KVM takes this before the first vCPU only. */
void enable_dirty_rings(void)
{
	struct kvm_enable_cap ring = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { ring_bytes() } };

	if (ring_entries && ioctl(vm, KVM_ENABLE_CAP, &ring))
		die("KVM_CAP_DIRTY_LOG_RING of %u entries: %s", ring_entries, strerror(errno));
}

/* Map the ring of `cpu`. */
void map_ring(void *at)
{
	void *ring = mmap(at, ring_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, cpu->fd,
			  KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);

	if (ring == MAP_FAILED)
		die("dirty ring: %s", strerror(errno));
	cpu->ring = ring;
}

/* Say and take what the ring of `cpu` holds, as SLOT:OFFSET; KVM gives the entries back at a reset. */
void harvest_ring(void)
{
	const char *comma = "";

	if (!cpu->ring)
		die("the VM has no dirty rings");
	say(" out=host ring=");
	for (;; cpu->harvested++) {
		struct kvm_dirty_gfn *page = &cpu->ring[cpu->harvested % ring_entries];

		if (page->flags != KVM_DIRTY_GFN_F_DIRTY)
			return;
		say("%s%x:%llx", comma, page->slot, (unsigned long long)page->offset);
		comma = ",";
		page->flags = KVM_DIRTY_GFN_F_RESET;
	}
}
