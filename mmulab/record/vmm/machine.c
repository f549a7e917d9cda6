/*
 * The machine's files, and its end.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>
#include "host.h"

void power_off(void)
{
	if (getpid() != 1)
		_exit(1);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

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

/* Call `each` with every line of one of our own files. */
void each_line(const char *folder, const char *name, void (*each)(char *line))
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	char *text = read_file(path), *copy = strdup(text ? text : ""), *rest = copy, *line;

	while ((line = strsep(&rest, "\n")))
		if (*line)
			each(line);
	free(copy);
}
