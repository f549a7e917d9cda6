/*
 * What is said of an op: its outcome, and what KVM counted meanwhile.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "guest.h"

static char outcome[1 << 20];
static u32 outcome_bytes;

/* Add to the outcome of the op that runs. */
void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	outcome_bytes += vsnprintf(outcome + outcome_bytes, sizeof(outcome) - outcome_bytes, format, args);
	va_end(args);
	if (outcome_bytes >= sizeof(outcome))
		die("an op's outcome has more than %zu bytes", sizeof(outcome));
}

/* ---- statistics ------------------------------------------------------------ */

static void stats_read(struct stats *s, u64 *to)
{
	if (pread(s->fd, to, s->bytes, s->data) < 0)
		die("statistics: %s", strerror(errno));
}

void stats_open(struct stats *s, int owner)
{
	struct kvm_stats_header head;
	static u8 all[1 << 16];

	memset(s, 0, sizeof(*s));
	s->fd = ioctl(owner, KVM_GET_STATS_FD, 0);
	if (s->fd < 0 || pread(s->fd, &head, sizeof(head), 0) != sizeof(head))
		die("statistics: %s", strerror(errno));
	u32 size = sizeof(struct kvm_stats_desc) + head.name_size;

	s->data = head.data_offset;
	if (head.num_desc > MAX_STATS || pread(s->fd, all, size * head.num_desc, head.desc_offset) < 0)
		die("statistics: %u descriptors", head.num_desc);
	for (u32 i = 0; i < head.num_desc; i++) {
		struct kvm_stats_desc *d = (void *)(all + i * size);
		u32 end = d->offset + 8 * d->size;

		if (end > sizeof(s->now))
			die("statistics: %u bytes", end);
		if (end > s->bytes)
			s->bytes = end;
		if (d->size != 1)	/* a histogram */
			continue;
		strncpy(s->name[s->count], d->name, sizeof(s->name[0]) - 1);
		s->offset[s->count++] = d->offset / 8;
	}
	stats_read(s, s->last);
}

/* Say what changed since the last call; against nothing at all: what is not 0. */
static void say_stats(struct stats *s, int total)
{
	stats_read(s, s->now);
	for (int i = 0; i < s->count; i++) {
		u64 was = total ? 0 : s->last[s->offset[i]], is = s->now[s->offset[i]];

		if (is != was)
			say(" %s=%lld", s->name[i], (long long)(is - was));
	}
	memcpy(s->last, s->now, s->bytes);
}

static void say_all_stats(int total)
{
	say_stats(&vm_stats, total);
	for (int i = 0; i < n_vcpus; i++)
		say_stats(&vcpus[i].stats, total);
}

/* ---- an op's record -------------------------------------------------------- */

/* What was traced up to here belongs to the op before. */
void begin(const char *number, const char *format, ...)
{
	char text[512];
	u32 used = snprintf(text, sizeof(text), "%s ", number);
	va_list args;

	va_start(args, format);
	used += vsnprintf(text + used, sizeof(text) - used, format, args);
	va_end(args);
	drain_trace(1);
	put(REC_BEGIN, text, used);
	outcome_bytes = 0;
}

void finish(void)
{
	say(" |");
	say_all_stats(0);
	put(REC_OUTCOME, outcome, outcome_bytes);
	if (memory_swaps)	/* then a frame may hold another page after each op */
		send_new_frames();
}

void send_total(void)
{
	outcome_bytes = 0;
	say_all_stats(1);
	put(REC_TOTAL, outcome, outcome_bytes);
}

const char *vcpu_prefix(void)
{
	static char text[16];

	text[0] = 0;
	if (cpu != vcpus)
		snprintf(text, sizeof(text), "@%x ", (int)(cpu - vcpus));
	return text;
}
