/*
 * The link as memory: of an ivshmem device (QEMU), where no driver stands between, or of a file.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "link.h"

#define PCI "/sys/bus/pci/devices"
#define IVSHMEM "pci:v00001AF4d00001110"

static u8 *memory;

static u64 memory_word(int number)
{
	u64 value = ((volatile u64 *)memory)[number];

	__sync_synchronize();
	return value;
}

static void memory_read(u64 at, void *data, u64 bytes)
{
	memcpy(data, memory + at, bytes);
}

static void memory_write(u64 at, const void *data, u64 bytes)
{
	memcpy(memory + at, data, bytes);
}

static void memory_publish(u64 produced, int now)
{
	(void)now;
	__sync_synchronize();
	((volatile u64 *)memory)[WORD_PRODUCED] = produced;
}

static struct link memory_link = {
	.word = memory_word, .read = memory_read, .write = memory_write, .publish = memory_publish,
};

static int is_ivshmem(const char *device)
{
	char path[512], id[32];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), PCI "/%s/modalias", device);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	got = read(fd, id, sizeof(id) - 1);
	close(fd);
	return got >= (ssize_t)strlen(IVSHMEM) && !strncmp(id, IVSHMEM, strlen(IVSHMEM));
}

static int map_file(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDWR);

	if (fd < 0 || fstat(fd, &st))
		return 0;
	memory = mmap(0, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	memory_link.bytes = st.st_size;
	return memory != MAP_FAILED;
}

static int map_device(const char *device)
{
	char path[512];

	snprintf(path, sizeof(path), PCI "/%s/enable", device);
	if (write_file(path, "1"))
		printf("mmulab: cannot enable the link\n");
	snprintf(path, sizeof(path), PCI "/%s/resource2", device);
	return map_file(path);
}

const struct link *open_memory_link(void)
{
	DIR *folder = opendir(PCI);
	struct dirent *entry;
	int found = 0;

	while (folder && !found && (entry = readdir(folder)))
		found = is_ivshmem(entry->d_name) && map_device(entry->d_name);
	if (folder)
		closedir(folder);
	if (!found)
		printf("mmulab: no link: no ivshmem device with memory (%s)\n", strerror(errno));
	return found ? &memory_link : NULL;
}

const struct link *open_file_link(const char *path)
{
	if (map_file(path))
		return &memory_link;
	fprintf(stderr, "mmulab: %s: %s\n", path, strerror(errno));
	return NULL;
}
