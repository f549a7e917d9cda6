/*
 * What is the same on a machine that was booted for it (init.c) and on any other (own_host.c): it is
 * described and traced, and runs the scenarios (scenario.c) that come through the link.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>
#include "host.h"

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

static void __attribute__((noreturn)) serve(void)
{
	put(REC_READY, "", 0);
	for (;;) {
		char *text = next_job();

		run_scenario(text);
		free(text);
		put(REC_DONE, "", 0);
	}
}

/* `folder` has our files. */
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
