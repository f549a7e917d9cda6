/*
 * What the host does to the memory behind a guest of its own accord.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <unistd.h>
#include "guest.h"

#define PARAMETERS "/sys/module/kvm/parameters/"
#define RECOVERY_MS 400		/* from one pass of the worker to the next */

/* ---- NX huge pages ---------------------------------------------------------- */

static int is_recovery_worker(const char *folder, const char *id)
{
	char path[300], name[32] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s/comm", folder, id);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	if (read(fd, name, sizeof(name) - 1) < 0)
		name[0] = 0;
	close(fd);
	return !strncmp(name, "kvm-nx-lpage-re", 15);
}

/*
 * The worker runs before the VMM whenever it is awake, and to its end: it yields, and flushes early, where
 * need_resched() is set. It is a thread of the kernel, from 6.12 on one of the VMM.
 */
static void raise_recovery_worker(const char *folder)
{
	struct sched_param priority = { .sched_priority = 60 };
	DIR *tasks = opendir(folder);
	struct dirent *entry;

	while (tasks && (entry = readdir(tasks)))
		if (is_recovery_worker(folder, entry->d_name) &&
		    sched_setscheduler(atoi(entry->d_name), SCHED_FIFO, &priority))
			die("the recovery worker: %s", strerror(errno));
	if (tasks)
		closedir(tasks);
}

static void set_parameter(const char *path, u64 value)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	if (write_file(path, text))
		die("%s: %s", path, strerror(errno));
}

/*
 * The worker makes a pass when its period is over since the last one, and it looks when the recovery is turned
 * on. Turned off, it has nothing to wait for; a period later it makes the one pass before the VMM goes on.
 */
void recover_nx_huge_pages(u64 ratio)
{
	set_parameter(PARAMETERS "nx_huge_pages_recovery_ratio", 0);
	set_parameter(PARAMETERS "nx_huge_pages_recovery_period_ms", RECOVERY_MS);
	raise_recovery_worker("/proc");
	raise_recovery_worker("/proc/self/task");
	usleep((RECOVERY_MS + 50) * 1000);
	set_parameter(PARAMETERS "nx_huge_pages_recovery_ratio", ratio);
	set_parameter(PARAMETERS "nx_huge_pages_recovery_ratio", 0);
	say(" out=host");
}

static char nx_huge_pages_before[16];	/* what the host was booted with; empty: that it still has */

/*
 * Every VM's pages are zapped before the write returns. The worker is woken too, but while the ratio is 0,
 * which it is but in a pass of recover_nx_huge_pages(), it has nothing to do and sleeps on.
 */
void switch_nx_huge_pages(u64 value)
{
	char *text = read_file(PARAMETERS "nx_huge_pages");

	if (!nx_huge_pages_before[0])
		snprintf(nx_huge_pages_before, sizeof(nx_huge_pages_before), "%s", text ? text : "");
	if (!strncmp(nx_huge_pages_before, "never", 5))
		die("nx_huge_pages is 'never' on this host, which cannot be switched");
	set_parameter(PARAMETERS "nx_huge_pages", value);
	say(" out=host");
}

/* Put back what the next scenario has to find. */
void restore_nx_huge_pages(void)
{
	if (nx_huge_pages_before[0] && write_file(PARAMETERS "nx_huge_pages", nx_huge_pages_before))
		die(PARAMETERS "nx_huge_pages: %s", strerror(errno));
	nx_huge_pages_before[0] = 0;
}

/* ---- protection ------------------------------------------------------------- */

/* Leave the VMM nothing (0), reads (1) or all (3) of a range of the backing. */
int protect_memory(u64 gpa, u64 length, u64 access)
{
	int protection = (access & 1 ? PROT_READ : 0) | (access & 2 ? PROT_WRITE : 0);

	memory_is_changed = 1;
	return mprotect(mem + gpa, length, protection);
}

/* ---- swap --------------------------------------------------------------------- */

#define SWAP_DEVICE "/dev/ram0"
#define SWAP_BYTES (64ull << 20)
#define PASSES 8

/* A swap area's first page: version and last page from byte 1024 on, the magic at its end. */
static void make_swap_area(void)
{
	static u8 page[PAGE];
	u32 head[3] = { 1, SWAP_BYTES / PAGE - 1, 0 };
	int fd = open(SWAP_DEVICE, O_WRONLY);

	memcpy(page + 1024, head, sizeof(head));
	memcpy(page + PAGE - 10, "SWAPSPACE2", 10);
	if (fd < 0 || write(fd, page, PAGE) != PAGE)
		die(SWAP_DEVICE ": %s", strerror(errno));
	close(fd);
}

static void swap_on(void)
{
	static int loaded;
	char module[] = "brd.ko rd_nr=1 rd_size=65536";

	if (!loaded)
		load_module(module);
	loaded = 1;
	make_swap_area();
	if (swapon(SWAP_DEVICE, 0))
		die("swapon " SWAP_DEVICE ": %s", strerror(errno));
	if (munlock(mem, mem_bytes))
		die("munlock: %s", strerror(errno));
	memory_swaps = memory_is_changed = 1;
}

void swap_off(void)
{
	munmap(mem, mem_bytes);		/* what is swapped out need not come back */
	if (swapoff(SWAP_DEVICE))
		die("swapoff " SWAP_DEVICE ": %s", strerror(errno));
}

static int is_out(u64 gpa, u64 length)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	u64 entry = 0;

	for (u64 at = gpa; at < gpa + length && !(entry >> 63); at += PAGE)
		if (pread(fd, &entry, 8, (u64)(mem + at) / PAGE * 8) != 8)
			die("pagemap: %s", strerror(errno));
	close(fd);
	return !(entry >> 63);
}

/* Have the host reclaim a range until nothing of it is left; before 6.9 a pass spares what was accessed. */
int swap_out(u64 gpa, u64 length)
{
	if (!memory_swaps)
		swap_on();
	for (int pass = 0; pass < PASSES; pass++) {
		if (madvise(mem + gpa, length, MADV_PAGEOUT))
			return -1;
		if (is_out(gpa, length))
			return 0;
	}
	errno = EBUSY;
	return -1;
}
