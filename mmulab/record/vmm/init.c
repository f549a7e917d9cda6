/*
 * The first and only process of a recording host.
 *
 * It mounts what it needs, loads KVM, turns tracing on and then runs the
 * scenarios (scenario.c) that come through the link. Everything goes back through
 * the link as it happens, so that nothing is lost when the kernel dies. The link
 * is the memory of an ivshmem device, a file of the machine outside: no driver
 * stands between.
 *
 * /modules   "FILE PARAMETER.." a line, in the order of loading
 * /probes    "EVENT FUNCTION ARGUMENT.." a line; of several with one EVENT the
 *            first whose function the kernel has wins
 * /events    "GROUP/NAME" of a tracepoint a line
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "host.h"

#define IDLE_SECONDS 120	/* without a word from outside: nobody is there any more */

/* The link: words at its start, a mailbox for one job, a ring for what goes out. */
enum { WORD_JOB = 1, WORD_JOB_BYTES, WORD_PRODUCED, WORD_CONSUMED };
#define MAILBOX 0x1000ull
#define RING 0x400000ull
#define POWER_OFF (~0ull)

static volatile u64 *link_words;
static u8 *link_mailbox, *link_ring;
static u64 ring_bytes;

/* ---- the link ------------------------------------------------------------ */

void power_off(void)
{
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void wait_a_moment(int *left)
{
	usleep(500);
	if (--*left < 0)
		power_off();
}

static void ring_put(u64 at, const void *data, u64 bytes)
{
	u64 start = at % ring_bytes, head = ring_bytes - start < bytes ? ring_bytes - start : bytes;

	memcpy(link_ring + start, data, head);
	memcpy(link_ring, (const u8 *)data + head, bytes - head);
}

static void put_parts(int kind, const void *first, u32 first_bytes, const void *second, u32 second_bytes)
{
	u64 at = link_words[WORD_PRODUCED];
	u32 head[2] = { kind, first_bytes + second_bytes };
	u64 whole = (8 + head[1] + 7) & ~7ull;
	int left = IDLE_SECONDS * 2000;

	while (at + whole - link_words[WORD_CONSUMED] > ring_bytes)
		wait_a_moment(&left);
	ring_put(at, head, 8);
	ring_put(at + 8, first, first_bytes);
	ring_put(at + 8 + first_bytes, second, second_bytes);
	__sync_synchronize();
	link_words[WORD_PRODUCED] = at + whole;
}

void put(int kind, const void *data, u32 bytes)
{
	put_parts(kind, data, bytes, "", 0);
}

void note(int kind, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	put(kind, text, strlen(text));
}

static void open_link(void)
{
	const char *top = "/sys/bus/pci/devices";
	DIR *folder = opendir(top);
	struct dirent *entry;
	char path[512], id[32];
	struct stat st;

	while (folder && (entry = readdir(folder))) {
		snprintf(path, sizeof(path), "%s/%s/modalias", top, entry->d_name);
		int fd = open(path, O_RDONLY);
		ssize_t got = fd < 0 ? 0 : read(fd, id, sizeof(id) - 1);

		if (fd >= 0)
			close(fd);
		id[got > 0 ? got : 0] = 0;
		if (strncmp(id, "pci:v00001AF4d00001110", 22))
			continue;
		snprintf(path, sizeof(path), "%s/%s/enable", top, entry->d_name);
		fd = open(path, O_WRONLY);
		if (fd < 0 || write(fd, "1", 1) != 1)
			printf("mmulab: cannot enable the link\n");
		close(fd);
		snprintf(path, sizeof(path), "%s/%s/resource2", top, entry->d_name);
		fd = open(path, O_RDWR);
		if (fd < 0 || fstat(fd, &st))
			break;
		u8 *all = mmap(0, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		if (all == MAP_FAILED)
			break;
		link_words = (void *)all;
		link_mailbox = all + MAILBOX;
		link_ring = all + RING;
		ring_bytes = st.st_size - RING;
		return;
	}
	printf("mmulab: no link: no ivshmem device with memory (%s)\n", strerror(errno));
	power_off();
}

/* ---- the kernel: files, modules, tracing ---------------------------------- */

static char file_text[1 << 20];

static char *read_file(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t got, all = 0;

	if (fd < 0)
		return NULL;
	while (all < (ssize_t)sizeof(file_text) - 1 &&
	       (got = read(fd, file_text + all, sizeof(file_text) - 1 - all)) > 0)
		all += got;
	close(fd);
	file_text[all] = 0;
	return file_text;
}

int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_APPEND);
	int bad = fd < 0 || write(fd, text, strlen(text)) < 0;

	if (fd >= 0)
		close(fd);
	return bad;
}

static void send_file(const char *name, const char *path)
{
	char *text = read_file(path);

	if (text)
		put_parts(REC_FILE, name, strlen(name) + 1, text, strlen(text));
}

/* Call `each` with every line of one of our own files. */
static void each_line(const char *path, void (*each)(char *line))
{
	char *text = read_file(path), *copy = strdup(text ? text : ""), *rest = copy, *line;

	while ((line = strsep(&rest, "\n")))
		if (*line)
			each(line);
	free(copy);
}

void load_module(char *line)
{
	char path[256], *parameters = strchr(line, ' ');
	int fd;

	if (parameters)
		*parameters++ = 0;
	snprintf(path, sizeof(path), "/lib/%s", line);
	fd = open(path, O_RDONLY);
	if (fd < 0 || syscall(SYS_finit_module, fd, parameters ? parameters : "", 0))
		die("module %s: %s", line, strerror(errno));
	close(fd);
}

static void add_probe(char *line)
{
	char path[256], text[512], *rest = strchr(line, ' ');

	*rest++ = 0;
	snprintf(path, sizeof(path), TRACING "events/kprobes/%s/format", line);
	if (!access(path, F_OK))
		return;
	snprintf(text, sizeof(text), "p:%s %s\n", line, rest);
	if (write_file(TRACING "kprobe_events", text))
		return;
	snprintf(text, sizeof(text), "format/kprobes/%s", line);
	send_file(text, path);
	snprintf(text, sizeof(text), "probe/%s", line);
	put_parts(REC_FILE, text, strlen(text) + 1, rest, strlen(rest));
}

static void add_event(char *name)
{
	char path[256], text[256];

	snprintf(path, sizeof(path), TRACING "events/%s/format", name);
	snprintf(text, sizeof(text), "format/%s", name);
	send_file(text, path);
	snprintf(path, sizeof(path), TRACING "events/%s/enable", name);
	write_file(path, "1");	/* a kernel without this event has nothing to report by it */
}

static void send_folder(const char *what, const char *path)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	char name[512], file[512];

	while (folder && (entry = readdir(folder))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", what, entry->d_name);
		snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
		send_file(name, file);
	}
	if (folder)
		closedir(folder);
}

static void mount_all(void)
{
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, 0);
	mount("sysfs", "/sys", "sysfs", 0, 0);
	mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, 0);
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, 0);
}

static void describe_host(void)
{
	struct utsname name;

	uname(&name);
	put_parts(REC_FILE, "release", 8, name.release, strlen(name.release));
	put_parts(REC_FILE, "version", 8, name.version, strlen(name.version));
	send_file("cpuinfo", "/proc/cpuinfo");
	send_folder("param/kvm", "/sys/module/kvm/parameters");
	send_folder("param/kvm_amd", "/sys/module/kvm_amd/parameters");
	send_folder("param/kvm_intel", "/sys/module/kvm_intel/parameters");
}

static void start_tracing(void)
{
	DIR *folder = opendir(TRACING "events/kvmmmu");
	struct dirent *entry;

	write_file(TRACING "tracing_on", "0");
	write_file(TRACING "buffer_size_kb", "16384");
	each_line("/probes", add_probe);
	each_line("/events", add_event);
	write_file(TRACING "events/kprobes/enable", "1");
	while (folder && (entry = readdir(folder)))	/* what there is, though only /events is recorded */
		if (entry->d_name[0] != '.' && strcmp(entry->d_name, "enable") && strcmp(entry->d_name, "filter"))
			put_parts(REC_FILE, "kvmmmu", 7, entry->d_name, strlen(entry->d_name));
	if (folder)
		closedir(folder);
}

/*
 * Nothing may come between two ops of its own accord. KVM yields, and flushes early, where
 * need_resched() is set; khugepaged collapses what the scenario has split.
 */
static void keep_quiet(void)
{
	struct sched_param priority = { .sched_priority = 50 };

	write_file("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "4000000000");
	write_file("/proc/sys/kernel/sched_rt_runtime_us", "-1");
	write_file("/sys/kernel/debug/sched/fair_server/cpu0/runtime", "0");
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		die("SCHED_FIFO: %s", strerror(errno));
}

static int trace_fd;

/* Send what was traced since the last call, as pages of the kernel's ring buffer. */
void drain_trace(int send)
{
	static u8 page[PAGE];
	ssize_t got;

	while ((got = read(trace_fd, page, sizeof(page))) >= 16) {
		u64 used = *(u64 *)(page + 8) & 0xfffff;

		if (!used)
			break;
		if (send)
			put(REC_TRACE, page, 16 + used > sizeof(page) ? sizeof(page) : 16 + used);
	}
}

static void serve(void)
{
	u64 done = 0;

	put(REC_READY, "", 0);
	for (;;) {
		int left = IDLE_SECONDS * 2000;

		while (link_words[WORD_JOB] == done)
			wait_a_moment(&left);
		__sync_synchronize();
		done = link_words[WORD_JOB];
		if (done == POWER_OFF)
			power_off();
		char *text = strndup((char *)link_mailbox, link_words[WORD_JOB_BYTES]);

		run_scenario(text);
		free(text);
		put(REC_DONE, "", 0);
	}
}

int main(void)
{
	mount_all();
	open_link();
	each_line("/modules", load_module);
	describe_host();
	start_tracing();
	keep_quiet();
	trace_fd = open(TRACING "per_cpu/cpu0/trace_pipe_raw", O_RDONLY | O_NONBLOCK);
	if (trace_fd < 0)
		die("trace_pipe_raw: %s", strerror(errno));
	open_kvm();
	printf("mmulab: ready\n");
	serve();
}
