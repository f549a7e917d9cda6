/*
 * The link as a disk, for a machine without shared memory (Bochs): the emulator reads and writes the
 * same file as the outside does, so a sector that was written is there at once.
 *
 * Every transfer goes past the page cache. What is not asked for now waits in a window of the disk,
 * since a transfer takes as long as several ops.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "link.h"

#ifndef DISK		/* tests take a file */
#define DISK "/dev/sda"
#endif
#define WAIT_SECONDS 60		/* the disk's driver looks for it behind our back */

static int disk;
static u8 window[64 * PAGE] __attribute__((aligned(PAGE)));
static u8 page[PAGE] __attribute__((aligned(PAGE)));
static u64 window_at, window_used;

static void transferred(const char *what, ssize_t got, u64 wanted)
{
	if (got == (ssize_t)wanted)
		return;
	printf("mmulab: the link's disk: %s: %s\n", what, got < 0 ? strerror(errno) : "too short");
	power_off();
}

static u64 disk_word(int number)
{
	transferred("read", pread(disk, page, PAGE, 0), PAGE);
	return ((u64 *)page)[number];
}

static void disk_read(u64 at, void *data, u64 bytes)
{
	for (u64 skip = at % PAGE, n; bytes; at += n, data = (u8 *)data + n, bytes -= n, skip = 0) {
		n = PAGE - skip < bytes ? PAGE - skip : bytes;
		transferred("read", pread(disk, page, PAGE, at - skip), PAGE);
		memcpy(data, page + skip, n);
	}
}

/* Write the window's sectors out; the last one, if it is not full, is written again with what follows. */
static void write_window(void)
{
	u64 whole = window_used & ~(SECTOR - 1), all = (window_used + SECTOR - 1) & ~(SECTOR - 1);

	if (all)
		transferred("write", pwrite(disk, window, all, window_at), all);
	memmove(window, window + whole, window_used - whole);
	window_at += whole;
	window_used -= whole;
}

static void disk_write(u64 at, const void *data, u64 bytes)
{
	if (at != window_at + window_used) {
		write_window();
		window_at = at;
	}
	for (u64 n; bytes; data = (const u8 *)data + n, bytes -= n) {
		n = sizeof(window) - window_used < bytes ? sizeof(window) - window_used : bytes;
		memcpy(window + window_used, data, n);
		window_used += n;
		if (window_used == sizeof(window))
			write_window();
	}
}

static void disk_publish(u64 produced, int now)
{
	if (!now)
		return;
	write_window();
	memset(page, 0, SECTOR);
	*(u64 *)page = produced;
	transferred("write", pwrite(disk, page, SECTOR, WORD_PRODUCED * 8), SECTOR);
}

static struct link disk_link = {
	.word = disk_word, .read = disk_read, .write = disk_write, .publish = disk_publish,
};

const struct link *open_disk_link(void)
{
	window_at = RING;
	for (int left = WAIT_SECONDS * 10; left; left--) {
		disk = open(DISK, O_RDWR | O_DIRECT);
		if (disk >= 0 && !ioctl(disk, BLKGETSIZE64, &disk_link.bytes))
			return &disk_link;
		usleep(100000);
	}
	printf("mmulab: no link: " DISK ": %s\n", strerror(errno));
	return NULL;
}
