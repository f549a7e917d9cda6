/*
 * The memory behind the guest: its backing, where that lies in the host, and the slots that show it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "guest.h"

u8 *mem;
u64 mem_bytes;
int memory_swaps;	/* pages of the backing may come and go */
int memory_is_changed;	/* an op left the backing in another state than a scenario may begin with */

static struct slot slots[MAX_SLOTS];
static void *mapped;
static u64 mapped_bytes;
static u64 *frames, *later_frames;
static u64 pdptfix[8];
static int n_pdptfix;

u64 *qword(u64 offset)
{
	return (u64 *)(mem + offset);
}

/* Slots by ID; its bit 16 is the address space. */
struct slot *slot_of(u32 id)
{
	return &slots[(id >> 16 & 1) * 32 + (id & 31)];
}

int set_slot(u32 id, u64 size, u32 flags)
{
	struct slot *slot = slot_of(id);
	struct kvm_userspace_memory_region region = {
		.slot = id, .flags = flags, .guest_phys_addr = slot->gpa, .memory_size = size,
		.userspace_addr = (u64)mem + slot->offset,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void read_frames(u64 *to)
{
	u64 count = mem_bytes / PAGE;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, to, 8 * count, (u64)mem / PAGE * 8) != (ssize_t)(8 * count))
		die("pagemap: %s", strerror(errno));
	close(fd);
	for (u64 i = 0; i < count; i++)
		to[i] = to[i] >> 63 ? to[i] & ((1ull << 55) - 1) : 0;	/* 0: it is swapped out */
}

/* Say where the backing lies, and return whether that is somewhere else than when it was said last. */
int send_new_frames(void)
{
	u64 bytes = mem_bytes / PAGE * 8;

	read_frames(later_frames);
	if (!memcmp(frames, later_frames, bytes))
		return 0;
	memcpy(frames, later_frames, bytes);
	put(REC_FRAMES, frames, bytes);
	return 1;
}

static void map_memory(int nolock, int thp)
{
	u64 align = thp ? 1ull << 30 : 1ull << 21;

	mapped_bytes = mem_bytes + align;
	mapped = mmap(0, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mapped == MAP_FAILED)
		die("%llu bytes of memory: %s", (unsigned long long)mem_bytes, strerror(errno));
	mem = (u8 *)(((u64)mapped + align - 1) & ~(align - 1));
	madvise(mem, mem_bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(mem, 0x90, mem_bytes);
	if (!nolock && mlock(mem, mem_bytes))
		die("%llu bytes of memory: %s", (unsigned long long)mem_bytes, strerror(errno));
	if (thp)	/* what an op splits stays split */
		madvise(mem, mem_bytes, MADV_NOHUGEPAGE);
}

/*
 * The guest's backing: there from the start, and its host frames never change. To make it takes longer
 * than a scenario of 50 ops, so small locked pages, unless an op has put others in their place, serve the
 * next scenario of that size too.
 */
void make_memory(int nolock, int thp)
{
	static int small_pages;

	if (!mapped || !small_pages || memory_is_changed || nolock || thp ||
	    mapped_bytes != mem_bytes + (1ull << 21)) {
		if (mapped)
			munmap(mapped, mapped_bytes);
		map_memory(nolock, thp);
		small_pages = !nolock && !thp;
		memory_is_changed = 0;
	} else {
		memset(mem, 0x90, mem_bytes);
	}
	memset(mem + PAGE_S, 0, PAGE);
	memset(mem + PAGE_U, 0, PAGE);
	frames = malloc(mem_bytes / PAGE * 8);
	later_frames = malloc(mem_bytes / PAGE * 8);
	read_frames(frames);
}

/* QEMU 7.2's TCG sets A in the PDPTEs that it reads, which KVM then takes for a reserved bit. */
void fix_pdptes(void)
{
	for (int i = 0; i < n_pdptfix; i++)
		for (int k = 0; k < 4; k++)
			if (*qword(pdptfix[i] + 8 * k) & 0x20)	/* it may be write-protected */
				*qword(pdptfix[i] + 8 * k) &= ~0x20ull;
}

/* Say in which tables of PDPTEs that is to be mended. */
int add_pdptfix(u64 gpa)
{
	if (n_pdptfix == sizeof(pdptfix) / sizeof(*pdptfix))
		return 0;
	pdptfix[n_pdptfix++] = gpa;
	return 1;
}

void send_frames(void)
{
	put(REC_FRAMES, frames, mem_bytes / PAGE * 8);
}

/* The VM is gone: what is left of its memory serves the next one. */
void end_memory(void)
{
	free(frames);
	free(later_frames);
	memset(slots, 0, sizeof(slots));
	memory_swaps = n_pdptfix = 0;
}
