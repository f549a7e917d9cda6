/*
 * The kernel's trace: its probes and events, and what it has traced.
 *
 * FOLDER/probes   "EVENT FUNCTION ARGUMENT.." a line; of several with one EVENT the
 *                 first whose function the kernel has wins
 * FOLDER/events   "GROUP/NAME" of a tracepoint a line
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "host.h"

#define MAX_CPUS 1024

char trace_folder[64] = TRACING, probe_group[32] = "kprobes";

static int trace_fds[MAX_CPUS], n_trace_fds;

/* Write a file of the folder that we trace in. */
int write_trace(const char *name, const char *text)
{
	char path[512];

	snprintf(path, sizeof(path), "%s%s", trace_folder, name);
	return write_file(path, text);
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

void start_tracing(const char *folder, int cpu)
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

void open_trace(void)
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
