/*
 * The first and only process of a recording host, or a process of a machine that is used as it is (own_host.c).
 *
 * It mounts what it needs, loads KVM, turns tracing on and then runs the
 * scenarios (scenario.c) that come through the link. Everything goes back through
 * the link as it happens, so that nothing is lost when the kernel dies.
 *
 * MMULAB_LINK   in the environment: `disk`, or else the memory of a device
 * /drivers   modules that the link needs, as /modules
 * /modules   "FILE PARAMETER.." a line, in the order of loading
 * /probes    "EVENT FUNCTION ARGUMENT.." a line; of several with one EVENT the
 *            first whose function the kernel has wins
 * /events    "GROUP/NAME" of a tracepoint a line
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>
#include "host.h"
#include "link.h"

#define IDLE_SECONDS 120	/* without a word from outside: nobody is there any more */
#define MAX_CPUS 1024

static const struct link *host_link;

char trace_folder[64] = TRACING, probe_group[32] = "kprobes";

/* ---- the link ------------------------------------------------------------ */

void power_off(void)
{
	if (getpid() != 1)
		_exit(1);
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
	u64 ring_bytes = host_link->bytes - RING, start = at % ring_bytes;
	u64 head = ring_bytes - start < bytes ? ring_bytes - start : bytes;

	if (head)
		host_link->write(RING + start, data, head);
	if (bytes > head)
		host_link->write(RING, (const u8 *)data + head, bytes - head);
}

/* What is to be seen outside even if nothing follows: an op's start, before the kernel may die of it. */
static int ends_a_part(int kind)
{
	return kind == REC_BEGIN || kind == REC_READY || kind == REC_ERROR || kind == REC_DONE;
}

static void put_parts(int kind, const void *first, u32 first_bytes, const void *second, u32 second_bytes)
{
	static u64 produced, consumed;
	u32 head[2] = { kind, first_bytes + second_bytes };
	u64 whole = (8 + head[1] + 7) & ~7ull;
	int left = IDLE_SECONDS * 2000;

	if (!host_link) {
		printf("mmulab: %.*s\n", (int)first_bytes, (const char *)first);
		return;
	}
	/* A sector less: a disk's last write goes on to the sector's end. */
	while (produced + whole + SECTOR - consumed > host_link->bytes - RING) {
		host_link->publish(produced, 1);
		wait_a_moment(&left);
		consumed = host_link->word(WORD_CONSUMED);
	}
	ring_put(produced, head, 8);
	ring_put(produced + 8, first, first_bytes);
	ring_put(produced + 8 + first_bytes, second, second_bytes);
	ring_put(produced + 8 + head[1], "\0\0\0\0\0\0\0", whole - 8 - head[1]);
	produced += whole;
	host_link->publish(produced, ends_a_part(kind));
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

void use_link(const struct link *link)
{
	host_link = link;
}

static void open_link(void)
{
	const char *kind = getenv("MMULAB_LINK");

	host_link = kind && !strcmp(kind, "disk") ? open_disk_link() : open_memory_link();
	if (!host_link)
		power_off();
}

/* ---- the kernel: files, modules, tracing ---------------------------------- */

static char file_text[1 << 20];

char *read_file(const char *path)
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

/* Write a file of the folder that we trace in. */
int write_trace(const char *name, const char *text)
{
	char path[512];

	snprintf(path, sizeof(path), "%s%s", trace_folder, name);
	return write_file(path, text);
}

/* Call `each` with every line of one of our own files. */
static void each_line(const char *folder, const char *name, void (*each)(char *line))
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
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
	snprintf(path, sizeof(path), TRACING "events/%s/%s/format", probe_group, line);
	if (!access(path, F_OK))
		return;
	snprintf(text, sizeof(text), "p:%s/%s %s\n", probe_group, line, rest);
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
	snprintf(path, sizeof(path), "events/%s/enable", name);
	write_trace(path, "1");	/* a kernel without this event has nothing to report by it */
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

static void start_tracing(const char *folder, int cpu)
{
	DIR *events = opendir(TRACING "events/kvmmmu");
	struct dirent *entry;
	char path[128];

	write_trace("tracing_on", "0");
	write_trace("trace_clock", "counter");	/* what order the events of several CPUs have */
	snprintf(path, sizeof(path), "per_cpu/cpu%d/buffer_size_kb", cpu);
	write_trace(path, "16384");
	each_line(folder, "probes", add_probe);
	each_line(folder, "events", add_event);
	snprintf(path, sizeof(path), "events/%s/enable", probe_group);
	if (write_trace(path, "1"))
		die("no function of KVM's can be probed; its kernel needs CONFIG_KPROBE_EVENTS and no lockdown");
	while (events && (entry = readdir(events)))	/* what there is, though only `events` is recorded */
		if (entry->d_name[0] != '.' && strcmp(entry->d_name, "enable") && strcmp(entry->d_name, "filter"))
			put_parts(REC_FILE, "kvmmmu", 7, entry->d_name, strlen(entry->d_name));
	if (events)
		closedir(events);
}

static int trace_fds[MAX_CPUS], n_trace_fds;

static void open_trace(void)
{
	char path[128];
	int fd;

	while (n_trace_fds < MAX_CPUS) {
		snprintf(path, sizeof(path), "%sper_cpu/cpu%d/trace_pipe_raw", trace_folder, n_trace_fds);
		fd = open(path, O_RDONLY | O_NONBLOCK);
		if (fd < 0)
			break;
		trace_fds[n_trace_fds++] = fd;
	}
	if (!n_trace_fds)
		die("trace_pipe_raw: %s", strerror(errno));
}

static void drain_cpu(int fd, int send)
{
	static u8 page[PAGE];
	ssize_t got;

	while ((got = read(fd, page, sizeof(page))) >= 16) {
		u64 used = *(u64 *)(page + 8) & 0xfffff;

		if (!used)
			break;
		if (send)
			put(REC_TRACE, page, 16 + used > sizeof(page) ? sizeof(page) : 16 + used);
	}
}

/*
 * Send what was traced since the last call, as pages of the kernel's ring buffers: KVM's workers,
 * which zap for it, may run on any CPU.
 */
void drain_trace(int send)
{
	for (int i = 0; i < n_trace_fds; i++)
		drain_cpu(trace_fds[i], send);
}

static void __attribute__((noreturn)) serve(void)
{
	u64 done = 0, job;

	put(REC_READY, "", 0);
	for (;;) {
		int left = IDLE_SECONDS * 2000;

		while ((job = host_link->word(WORD_JOB)) == done)
			wait_a_moment(&left);
		done = job;
		if (job == POWER_OFF)
			power_off();
		u64 bytes = host_link->word(WORD_JOB_BYTES);
		char *text = calloc(1, bytes + 1);

		host_link->read(MAILBOX, text, bytes);
		run_scenario(text);
		free(text);
		put(REC_DONE, "", 0);
	}
}

/* All that is the same on a machine that was booted for it and on any other: `folder` has our files. */
void record_on(const char *folder, int cpu)
{
	describe_host();
	start_tracing(folder, cpu);
	keep_quiet(cpu);
	open_trace();
	open_kvm();
	printf("mmulab: ready\n");
	tcdrain(STDOUT_FILENO);	/* what comes on the console from now on is the kernel's */
	serve();
}

int main(int count, char **arg)
{
	if (getpid() != 1)
		return own_host(count, arg);
	mount_all();
	each_line("", "drivers", load_module);
	open_link();
	each_line("", "modules", load_module);
	record_on("", 0);
}
