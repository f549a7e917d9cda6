/*
 * A guest that runs one instruction at a time over raw /dev/kvm, and what is said of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>
#include "guest.h"

#define SECONDS_PER_OP 10
#define READ_FROM_DEVICE 0xd0d0d0d0d0d0d0d0ull

struct vcpu vcpus[MAX_VCPUS], *cpu;
struct kvm_regs regs;
struct stats vm_stats;
int n_vcpus, dead;
u8 *mem;

static int alarm_rang;
static char outcome[1 << 20];
static u32 outcome_bytes;

u64 hex(const char *text)
{
	return text ? strtoull(text, 0, 16) : 0;
}

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

#define SAY(key, value) say(" " key "=%llx", (unsigned long long)(value))

u64 *qword(u64 offset)
{
	return (u64 *)(mem + offset);
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

/* ---- registers ------------------------------------------------------------- */

static void segment(struct kvm_segment *s, u32 selector, int type, int cpl, int l, int db)
{
	*s = (struct kvm_segment){ .limit = ~0u, .selector = selector, .type = type, .present = 1,
				   .dpl = cpl, .s = 1, .g = 1, .l = l, .db = db };
}

int is_long(void)
{
	return !!(cpu->sregs.efer & EFER_LMA);
}

void flat_segments(int cpl, int l)
{
	struct kvm_sregs *s = &cpu->sregs;
	int lma = is_long(), code = l ? (cpl ? 0x48 : 0x40) : (cpl ? 0x18 : 0x08);

	segment(&s->cs, code | cpl, 0xb, cpl, l, !l);
	segment(&s->ss, (cpl ? 0x20 : 0x10) | cpl, 3, cpl, 0, 1);
	s->ds = s->es = s->ss;
	segment(&s->fs, 0x20 | cpl, 3, cpl, 0, 1);
	s->gs = s->fs;
	/* An available TSS, not a busy one: QEMU 7.2's TCG aborts on that type in the cached descriptor. */
	s->tr = (struct kvm_segment){ .base = PAGE_S + (lma ? TSS64 : TSS32), .limit = 0x67, .type = 9,
				      .present = 1, .selector = 0x28 };
	s->ldt = (struct kvm_segment){ .unusable = 1, .type = 2 };
	s->gdt.base = PAGE_S + GDT;
	s->gdt.limit = 0x4f;
	s->idt.base = PAGE_S + (lma ? IDT64 : IDT32);
	s->idt.limit = lma ? 0x1ff : 0xff;
}

void set_sregs(void)
{
	if (ioctl(cpu->fd, KVM_SET_SREGS, &cpu->sregs))
		note(REC_NOTE, "KVM_SET_SREGS: %s", strerror(errno));
}

static const struct feature { const char *key; u32 leaf, index; int reg, low, bits; } features[] = {
	{ "maxphyaddr", 0x80000008, 0, 0, 0, 8 }, { "gbpages", 0x80000001, 0, 3, 26, 1 },
	{ "fxsr_opt", 0x80000001, 0, 3, 25, 1 }, { "nx", 0x80000001, 0, 3, 20, 1 },
	{ "lm", 0x80000001, 0, 3, 29, 1 }, { "svm", 0x80000001, 0, 2, 2, 1 }, { "pse36", 1, 0, 3, 17, 1 },
	{ "pge", 1, 0, 3, 13, 1 }, { "pae", 1, 0, 3, 6, 1 }, { "pse", 1, 0, 3, 3, 1 },
	{ "xsave", 1, 0, 2, 26, 1 }, { "pcid", 1, 0, 2, 17, 1 }, { "vmx", 1, 0, 2, 5, 1 },
	{ "fsgsbase", 7, 0, 1, 0, 1 }, { "smep", 7, 0, 1, 7, 1 }, { "smap", 7, 0, 1, 20, 1 },
	{ "invpcid", 7, 0, 1, 10, 1 }, { "umip", 7, 0, 2, 2, 1 }, { "pku", 7, 0, 2, 3, 1 },
	{ "la57", 7, 0, 2, 16, 1 },
};

/* Return where a feature stands in a vCPU's CPUID, NULL if it has no such leaf. */
static u32 *feature_word(struct cpuid *cpuid, const char *key, const struct feature **found)
{
	for (const struct feature *f = features; f < features + sizeof(features) / sizeof(*f); f++) {
		if (strcmp(f->key, key))
			continue;
		*found = f;
		for (u32 i = 0; i < cpuid->head.nent; i++)
			if (cpuid->entries[i].function == f->leaf && cpuid->entries[i].index == f->index)
				return &cpuid->entries[i].eax + f->reg;
	}
	return NULL;
}

void change_feature(struct cpuid *cpuid, const char *key, u32 value)
{
	const struct feature *f;
	u32 *word = feature_word(cpuid, key, &f), mask;

	if (!word)
		die("cpuid %s: this host's KVM has no such feature", key);
	mask = ((1u << f->bits) - 1) << f->low;
	*word = (*word & ~mask) | (value << f->low & mask);
}

/* ---- one instruction ------------------------------------------------------- */

static void on_alarm(int signal)
{
	(void)signal;
	alarm_rang = 1;
}

void catch_alarm(void)
{
	struct sigaction action = { .sa_handler = on_alarm };

	sigaction(SIGALRM, &action, 0);
}

static void set_alarm(int seconds)
{
	struct itimerval timer = { .it_value.tv_sec = seconds };

	setitimer(ITIMER_REAL, &timer, 0);
}

static int enter(void)
{
	set_alarm(SECONDS_PER_OP);
	int failed = ioctl(cpu->fd, KVM_RUN, 0), why = errno;

	set_alarm(0);
	errno = why;
	return failed;
}

static void say_ok(void)
{
	say(" out=ok");
	SAY("rip", regs.rip);
	SAY("rax", regs.rax);
}

/* Answer a device access; return 1 if the instruction is over, -1 if KVM has left once more. */
static int answer_mmio(void)
{
	struct kvm_run *run = cpu->run;
	u64 data = READ_FROM_DEVICE, mask = run->mmio.len >= 8 ? ~0ull : (1ull << 8 * run->mmio.len) - 1;
	int failed, why;

	if (run->mmio.is_write)
		memcpy(&data, run->mmio.data, 8);
	else
		memcpy(run->mmio.data, &data, 8);
	say(" mmio=%c:%llx:%d:%llx", run->mmio.is_write ? 'w' : 'r', (unsigned long long)run->mmio.phys_addr,
	    run->mmio.len, (unsigned long long)(data & mask));
	if (!run->mmio.is_write)
		return 0;
	/* The write's completion raises no single-step exit: let KVM complete it and nothing else. */
	run->immediate_exit = 1;
	failed = ioctl(cpu->fd, KVM_RUN, 0);
	why = errno;
	run->immediate_exit = 0;
	if (!failed)
		return -1;
	if (why != EINTR)
		return 0;
	ioctl(cpu->fd, KVM_GET_REGS, &regs);
	ioctl(cpu->fd, KVM_GET_SREGS, &cpu->sregs);
	say_ok();
	return 1;
}

static u64 stack_word(int index)
{
	u64 at = PAGE_S + (regs.rsp & (PAGE - 1)) + index * (is_long() ? 8 : 4);

	if ((regs.rsp & ~(PAGE - 1)) != PAGE_S)
		return 0;
	return is_long() ? *qword(at) : *(u32 *)(mem + at);
}

static void say_exception(int vector)
{
	int has_error = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21;

	say(" out=exc vec=%d", vector);
	if (has_error)
		SAY("err", stack_word(0));
	SAY("rip", stack_word(has_error));
	if (vector == 14)
		SAY("cr2", cpu->sregs.cr2);
}

/* An OUT says where the vCPU came to: into L2, back to L1, or into an exception's handler. */
static void say_port(int port)
{
	int after_exit = 0;

	/* Single-stepped, KVM puts a #DB into L1 at a nested exit, which L1 takes right behind its VMRUN. */
	if (port == 1 && cpu->in_l2 && stack_word(0) == PAGE_S + STUBS + 16 * VMRUN + 3) {
		port = PORT_L1;
		after_exit = 1;
	}
	if (port == PORT_SMI) {
		say_ok();
	} else if (port == PORT_L2) {
		cpu->in_l2 = 1;
		say(" out=l2");
	} else if (port == PORT_L1) {
		cpu->in_l2 = 0;
		say(" out=vmexit");
		SAY("code", *qword(cpu->vmcb + VMCB_EXIT));
		SAY("info1", *qword(cpu->vmcb + VMCB_INFO1));
		SAY("info2", *qword(cpu->vmcb + VMCB_INFO2));
		SAY("intinfo", *qword(cpu->vmcb + VMCB_INT_INFO));
		if (after_exit)
			say(" l1db=1");
	} else {
		say_exception(port);
	}
}

static void say_exit(void)
{
	struct kvm_run *run = cpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_DEBUG:
		say_ok();
		break;
	case KVM_EXIT_IO:
		say_port(run->io.port);
		break;
	case KVM_EXIT_SHUTDOWN:
		say(" out=shutdown");
		dead = 1;
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		say(" out=internal_error sub=%u", run->internal.suberror);
		break;
	default:
		say(" out=exit%u", run->exit_reason);
		dead = 1;
	}
}

/* Run from `regs` until the instruction is over, single-stepped or up to the next OUT. */
void run_instruction(int step)
{
	struct kvm_guest_debug debug = { .control = step ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0 };
	int exits = 0, answered = 0;

	ioctl(cpu->fd, KVM_SET_REGS, &regs);
	if (ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &debug))
		die("KVM_SET_GUEST_DEBUG: %s", strerror(errno));
	alarm_rang = 0;
	for (;;) {
		if (answered >= 0 && enter()) {
			if (errno == EINTR && !alarm_rang)
				continue;
			say(" out=hang errno=%d", errno);
			dead = 1;
			return;
		}
		if (cpu->run->exit_reason != KVM_EXIT_MMIO)
			break;
		if (++exits > 32) {
			say(" out=toomanyexits");
			return;
		}
		answered = answer_mmio();
		if (answered > 0)
			return;
	}
	ioctl(cpu->fd, KVM_GET_REGS, &regs);
	ioctl(cpu->fd, KVM_GET_SREGS, &cpu->sregs);
	say_exit();
}

void start_at(u64 rip, u64 rflags)
{
	regs.rip = rip;
	regs.rsp = PAGE_S + STACK_TOP;
	regs.rflags = RFLAGS | rflags;
}

void run_stub(enum stub stub, int user, int ac)
{
	start_at((user ? PAGE_U : PAGE_S) + STUBS + 16 * stub, ac ? AC : 0);
	run_instruction(1);
}
