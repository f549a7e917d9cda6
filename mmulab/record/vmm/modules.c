/*
 * Modules of the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "host.h"

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
