/*
 * What the host does to the guest's backing of its own accord, of which KVM hears by its MMU notifier.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "guest.h"

/* Libraries of 2022 and before lack these. */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static int pageout_ages;

/* Return how many KiB of the mapping that begins at `start` were used since they were aged; -1: no telling. */
static int referenced(void *start)
{
	FILE *maps = fopen("/proc/self/smaps", "r");
	char line[256];
	int found = -1, here = 0;

	while (maps && fgets(line, sizeof(line), maps)) {
		if (strstr(line, " rw-p "))
			here = strtoul(line, 0, 16) == (unsigned long)start;
		if (here && sscanf(line, "Referenced: %d", &found) == 1)
			break;
	}
	if (maps)
		fclose(maps);
	return found;
}

/*
 * Find out whether MADV_PAGEOUT ages: 6.1 forgets that a page was used, and its reclaim asks for that again;
 * 6.12 takes the page without asking. Done while there is no VM, it is in no scenario's trace.
 */
void try_pageout(void)
{
	u8 *page = mmap(0, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mprotect(page + PAGE, PAGE, PROT_READ | PROT_WRITE);
	page[PAGE] = 1;
	madvise(page + PAGE, PAGE, MADV_PAGEOUT);
	pageout_ages = !referenced(page + PAGE);
	munmap(page, 3 * PAGE);
}

/*
 * Age the mapping of each page. Reclaim asks whether a page was used, and without swap it cannot
 * do more: the pages stay.
 */
int age(u64 at, u64 length)
{
	if (!pageout_ages)
		die("op age: MADV_PAGEOUT of this kernel ages no page; a kernel up to 6.8 is needed");
	return madvise(mem + at, length, MADV_PAGEOUT);
}

/* Make a huge page of small ones. Huge pages are allowed meanwhile only, as map_memory() says. */
int collapse(u64 at, u64 length)
{
	int result, why;

	madvise(mem + at, length, MADV_HUGEPAGE);
	result = madvise(mem + at, length, MADV_COLLAPSE);
	why = errno;
	madvise(mem + at, length, MADV_NOHUGEPAGE);
	errno = why;
	return result;
}
