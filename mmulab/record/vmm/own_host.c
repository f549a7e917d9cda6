/*
 * The VMM on a machine that was not booted for it: a process of root's among others.
 *
 * It is traced in an instance of its own, "mmulab-PID", by probes of a group of its own, "mmulab_PID",
 * so that nobody else's tracing is disturbed. The process that was started is not the VMM but waits for
 * it: whatever ends the VMM, a signal, its parent's death or the kernel's, instance, probes and the
 * settings of the machine are then put back. A guard that was killed itself leaves the settings quiet, and
 * its tracing until the next one starts. The VMM is a program of its own, not a copy: the MMU notifier would report
 * each page that a copy writes for the first time.
 *
 * FOLDER/link     the link, a file that both sides map; FOLDER/probes and FOLDER/events as in init.c
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "link.h"

#define GRACE_SECONDS 10	/* for a VMM that was killed to end; one that an oops left waiting never does */
#define INSTANCE TRACING "instances/mmulab-%d"
#define GROUP "mmulab_%d"

static void map_link(const char *folder)
{
	char path[4096];
	const struct link *link;

	snprintf(path, sizeof(path), "%s/link", folder);
	link = open_file_link(path);
	if (!link)
		exit(1);
	use_link(link);
}

/* Mount what is not there in a namespace of our own: no one else sees it, and it goes with us. */
static void mount_missing(void)
{
	static const struct { const char *type, *at, *file; } needed[] = {
		{ "tracefs", "/sys/kernel/tracing", TRACING "kprobe_events" },
		{ "debugfs", "/sys/kernel/debug", "/sys/kernel/debug/kvm" },
	};
	int own = 0;

	for (u32 i = 0; i < sizeof(needed) / sizeof(*needed); i++) {
		if (!access(needed[i].file, F_OK))
			continue;
		if (!own && (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)))
			die("a mount namespace: %s", strerror(errno));
		own = 1;
		mount(needed[i].type, needed[i].at, needed[i].type, 0, NULL);
	}
	if (access(TRACING "kprobe_events", W_OK))
		die(TRACING "kprobe_events: %s", strerror(errno));
}

/* ---- tracing that is ours ------------------------------------------------- */

/* Remove one probe of a group; return whether there was one and it went. */
static int remove_probe(const char *group)
{
	char path[128], text[512];
	struct dirent *entry;
	DIR *folder;
	int gone = 0;

	snprintf(path, sizeof(path), TRACING "events/%s", group);
	folder = opendir(path);
	while (folder && !gone && (entry = readdir(folder))) {
		if (entry->d_name[0] == '.' || entry->d_type != DT_DIR)
			continue;
		snprintf(text, sizeof(text), "-:%s/%s\n", group, entry->d_name);
		gone = !write_file(TRACING "kprobe_events", text);
	}
	if (folder)
		closedir(folder);
	return gone;
}

static void remove_tracing(int pid)
{
	char path[128], group[32];

	snprintf(path, sizeof(path), INSTANCE "/events/enable", pid);
	write_file(path, "0");
	snprintf(group, sizeof(group), GROUP, pid);
	while (remove_probe(group))
		;
	snprintf(path, sizeof(path), INSTANCE, pid);
	if (rmdir(path))
		fprintf(stderr, "mmulab: %s: %s\n", path, strerror(errno));
}

static void sweep(void)
{
	DIR *folder = opendir(TRACING "instances");
	struct dirent *entry;
	char end;
	int pid;

	while (folder && (entry = readdir(folder)))
		if (sscanf(entry->d_name, "mmulab-%d%c", &pid, &end) == 1 && kill(pid, 0) && errno == ESRCH)
			remove_tracing(pid);
	if (folder)
		closedir(folder);
}

static void make_instance(void)
{
	char path[128];

	snprintf(path, sizeof(path), INSTANCE, getpid());
	if (mkdir(path, 0700))
		die("%s: %s", path, strerror(errno));
}

/* ---- the two processes ---------------------------------------------------- */

static int first_allowed_cpu(void)
{
	cpu_set_t allowed;
	int cpu = 0;

	if (!sched_getaffinity(0, sizeof(allowed), &allowed))
		while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &allowed))
			cpu++;
	return cpu;
}

/* Wait for the VMM's end, which a signal to us brings about; return the exit code that says how it ended. */
static int wait_for(pid_t vmm, const sigset_t *signals)
{
	struct timespec grace = { .tv_sec = GRACE_SECONDS };
	int status, signal, killed = 0;

	while (waitpid(vmm, &status, WNOHANG) != vmm) {
		signal = killed ? sigtimedwait(signals, NULL, &grace) : sigwaitinfo(signals, NULL);
		if (signal < 0 && errno == EAGAIN)
			return 128 + SIGKILL;
		if (signal > 0 && signal != SIGCHLD) {
			kill(vmm, SIGKILL);
			killed = 1;
		}
	}
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void run_vmm(const char *folder, int guard, int cpu)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != guard)
		exit(1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	map_link(folder);
	mlockall(MCL_CURRENT);	/* reclaim would be reported too */
	snprintf(probe_group, sizeof(probe_group), GROUP, guard);
	snprintf(trace_folder, sizeof(trace_folder), INSTANCE "/", guard);
	record_on(folder, cpu);
}

static void start_vmm(const char *folder, int guard, int cpu)
{
	char pid[16], number[16];

	snprintf(pid, sizeof(pid), "%d", guard);
	snprintf(number, sizeof(number), "%d", cpu);
	execl("/proc/self/exe", "mmulab-vmm", folder, pid, number, NULL);
	fprintf(stderr, "mmulab: /proc/self/exe: %s\n", strerror(errno));
	_exit(1);
}

static int guard_vmm(const char *folder)
{
	int cpu = first_allowed_cpu(), guard = getpid(), code;
	sigset_t signals;
	pid_t vmm;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	map_link(folder);
	mount_missing();
	sweep();
	save_settings(cpu);
	make_instance();
	vmm = fork();
	if (!vmm)
		start_vmm(folder, guard, cpu);
	code = vmm < 0 ? 1 : wait_for(vmm, &signals);
	restore_settings(cpu);
	remove_tracing(guard);
	return code;
}

/* As FOLDER the guard, as FOLDER GUARD CPU the VMM. */
int own_host(int count, char **arg)
{
	if (count == 4)
		run_vmm(arg[1], atoi(arg[2]), atoi(arg[3]));
	if (count == 2)
		return guard_vmm(arg[1]);
	fprintf(stderr, "mmulab: this is the VMM of 'mmulab record'; that starts it\n");
	return 2;
}
