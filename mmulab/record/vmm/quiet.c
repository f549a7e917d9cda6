/*
 * What would disturb a recording: other tasks, and the host's own care for memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "host.h"

/*
 * Nothing may come between two ops of its own accord. KVM yields, and flushes early, where
 * need_resched() is set; khugepaged collapses what the scenario has split; compaction gives
 * other frames also to what is locked; NX huge pages are recovered once a minute. What has no quiet value
 * is here because an op changes it.
 */
static struct setting {
	const char *path, *quiet;
	char before[32];
} settings[] = {
	{ .path = "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", .quiet = "4000000000" },
	{ .path = "/proc/sys/vm/compact_unevictable_allowed", .quiet = "0" },
	{ .path = "/proc/sys/kernel/sched_rt_runtime_us", .quiet = "-1" },
	{ .path = "/sys/module/kvm/parameters/nx_huge_pages_recovery_ratio", .quiet = "0" },
	{ .path = "/sys/module/kvm/parameters/nx_huge_pages_recovery_period_ms", .quiet = "0" },
	{ .path = "/sys/module/kvm/parameters/nx_huge_pages" },
	{ .path = "/sys/kernel/debug/sched/fair_server/cpu%d/runtime", .quiet = "0" },
};

static void each_setting(int cpu, void (*each)(const char *path, struct setting *setting))
{
	char path[128];

	for (u32 i = 0; i < sizeof(settings) / sizeof(*settings); i++) {
		snprintf(path, sizeof(path), settings[i].path, cpu);
		each(path, &settings[i]);
	}
}

static void save(const char *path, struct setting *setting)
{
	char *text = read_file(path);

	snprintf(setting->before, sizeof(setting->before), "%s", text ? text : "");
}

static void make_quiet(const char *path, struct setting *setting)
{
	if (setting->quiet)
		write_file(path, setting->quiet);
}

static void restore(const char *path, struct setting *setting)
{
	if (setting->before[0])
		write_file(path, setting->before);
}

void save_settings(int cpu)
{
	each_setting(cpu, save);
}

void restore_settings(int cpu)
{
	each_setting(cpu, restore);
}

/* One CPU has the VMM for itself, and balancing between memory nodes does not look at it. */
void keep_quiet(int cpu)
{
	struct sched_param priority = { .sched_priority = 50 };
	cpu_set_t only;

	CPU_ZERO(&only);
	CPU_SET(cpu, &only);
	if (sched_setaffinity(0, sizeof(only), &only))
		die("CPU %d: %s", cpu, strerror(errno));
	syscall(SYS_set_mempolicy, MPOL_LOCAL, NULL, 0);
	each_setting(cpu, make_quiet);
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		die("SCHED_FIFO: %s", strerror(errno));
}
