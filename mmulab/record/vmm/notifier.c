/*
 * What the host does to the guest's backing of its own accord, of which KVM hears by its MMU notifier.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include "guest.h"

/* Libraries of 2022 and before lack these. */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/*
 * Age the mapping of each page. Reclaim asks whether a page was used, and without swap it cannot
 * do more: the pages stay.
 */
int age(u64 at, u64 length)
{
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
