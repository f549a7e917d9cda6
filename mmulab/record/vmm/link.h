/*
 * The link to the machine outside (record/link.py): words at its start, a mailbox for one job, a ring
 * for what goes out. It is a file there; here it is the memory of a device, a disk or that file.
 */
#ifndef LINK_H
#define LINK_H

#include "host.h"

#define MAILBOX 0x1000ull
#define RING 0x400000ull
#define POWER_OFF (~0ull)
#define SECTOR 512ull

/* Words by their number from the start: the outside writes the first sector, the host the second. */
enum { WORD_JOB = 1, WORD_JOB_BYTES, WORD_CONSUMED, WORD_PRODUCED = SECTOR / 8 };

struct link {
	u64 bytes;
	u64 (*word)(int number);
	void (*read)(u64 at, void *data, u64 bytes);
	/* Writes follow each other, but for a jump from the link's end to the ring's start. */
	void (*write)(u64 at, const void *data, u64 bytes);
	/* Let the outside see the ring up to `produced`; not `now`: with what follows is soon enough. */
	void (*publish)(u64 produced, int now);
};

/* Each returns NULL if there is no such device or file, and says so. */
const struct link *open_memory_link(void);
const struct link *open_disk_link(void);
const struct link *open_file_link(const char *path);


#endif
