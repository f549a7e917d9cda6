/*
 * What goes out through the link, as it happens, so that nothing is lost when the kernel dies; and the jobs
 * that come in.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "link.h"

#define IDLE_SECONDS 120	/* without a word from outside: nobody is there any more */

static const struct link *host_link;

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

void put_parts(int kind, const void *first, u32 first_bytes, const void *second, u32 second_bytes)
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

/* Wait for the next job and return its text, which the caller frees. */
char *next_job(void)
{
	static u64 done;
	int left = IDLE_SECONDS * 2000;
	char *text;
	u64 bytes;

	while (host_link->word(WORD_JOB) == done)
		wait_a_moment(&left);
	done = host_link->word(WORD_JOB);
	if (done == POWER_OFF)
		power_off();
	bytes = host_link->word(WORD_JOB_BYTES);
	text = calloc(1, bytes + 1);
	host_link->read(MAILBOX, text, bytes);
	return text;
}

void send_file(const char *name, const char *path)
{
	char *text = read_file(path);

	if (text)
		put_parts(REC_FILE, name, strlen(name) + 1, text, strlen(text));
}
