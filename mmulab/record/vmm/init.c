/*
 * The first and only process of a recording host, or a process of a machine that is used as it is (own_host.c).
 *
 * It mounts what it needs, loads KVM and then serves (serve.c).
 *
 * MMULAB_LINK   in the environment: `disk`, or else the memory of a device
 * /drivers   modules that the link needs, as /modules
 * /modules   "FILE PARAMETER.." a line, in the order of loading
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include "link.h"

static void open_link(void)
{
	const char *kind = getenv("MMULAB_LINK");
	const struct link *link = kind && !strcmp(kind, "disk") ? open_disk_link() : open_memory_link();

	if (!link)
		power_off();
	use_link(link);
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
