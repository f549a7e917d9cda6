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
#define DR7_NOTHING 0x400	/* no breakpoint */
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
	/* A busy TSS, as VMX wants it. On AMD an available one: QEMU 7.2's TCG aborts on a busy one here. */
	s->tr = (struct kvm_segment){ .base = PAGE_S + (lma ? TSS64 : TSS32), .limit = 0x67,
				      .type = intel ? 11 : 9, .present = 1, .selector = 0x28 };
	s->ldt = (struct kvm_segment){ .unusable = 1, .type = 2 };
	s->gdt.base = PAGE_S + GDT;
	s->gdt.limit = 0x4f;
	s->idt.base = PAGE_S + (lma ? IDT64 : IDT32);
	s->idt.limit = lma ? 0x1ff : 0xff;
}

/* Return 0, or -1 where KVM refuses `sregs`, which then are again what the vCPU has. */
int set_sregs(void)
{
	int result = ioctl(cpu->fd, KVM_SET_SREGS, &cpu->sregs), why = errno;

	if (result)
		ioctl(cpu->fd, KVM_GET_SREGS, &cpu->sregs);
	errno = why;
	return result;
}

/* For what an op needs and does not say: it would run at another CPL, or not in the stubs. */
void must_set_sregs(void)
{
	if (set_sregs())
		die("KVM_SET_SREGS refuses registers that the vCPU has: %s", strerror(errno));
}

/* Where each feature stands in CPUID; the scenario says it (mmulab/record/host.py). */
static struct feature {
	char key[16];
	u32 leaf, index, reg, low, bits;
} features[MAX_FEATURES];

/* Learn where a feature stands: its leaf, index, register, lowest bit and width. */
void know_feature(const char *key, const u64 *place)
{
	struct feature *f = features;

	while (f < features + MAX_FEATURES && f->key[0] && strcmp(f->key, key))
		f++;
	if (f == features + MAX_FEATURES)
		die("feature %s: the VMM keeps no more than %d", key, MAX_FEATURES);
	*f = (struct feature){ .leaf = place[0], .index = place[1], .reg = place[2], .low = place[3], .bits = place[4] };
	snprintf(f->key, sizeof(f->key), "%s", key);
}

/* Return where a feature stands in a vCPU's CPUID, NULL if it has no such leaf. */
static u32 *feature_word(struct cpuid *cpuid, const char *key, const struct feature **found)
{
	for (const struct feature *f = features; f < features + MAX_FEATURES && f->key[0]; f++) {
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

/* PKRU has no register of its own in KVM's interface: it is a component of the XSAVE area. */
int set_pkru(u32 value)
{
	static struct kvm_xsave area;
	u64 *components = (u64 *)&area.region[512 / 4];

	if (ioctl(cpu->fd, KVM_GET_XSAVE, &area))
		die("KVM_GET_XSAVE: %s", strerror(errno));
	for (u32 i = 0; i < cpu->cpuid.head.nent; i++) {
		struct kvm_cpuid_entry2 *leaf = &cpu->cpuid.entries[i];

		if (leaf->function != 0xd || leaf->index != XFEATURE_PKRU)
			continue;
		area.region[leaf->ebx / 4] = value;
		*components |= 1ull << XFEATURE_PKRU;
		return ioctl(cpu->fd, KVM_SET_XSAVE, &area);
	}
	die("pkru: this host's KVM has none");
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
	if (!intel && port == 1 && cpu->in_l2 && stack_word(0) == PAGE_S + STUBS + 16 * VMRUN + 3) {
		port = PORT_L1;
		after_exit = 1;
	}
	if (port == PORT_SMI) {
		say_ok();
	} else if (port == PORT_L2) {
		cpu->in_l2 = 1;
		say(" out=l2");
	} else if (port == PORT_VMFAIL) {
		say_vmx_fail();
	} else if (port == PORT_L1 && intel) {
		say_vmx_exit();
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
	case KVM_EXIT_DIRTY_RING_FULL:
		say(" out=dirty_ring_full");
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		say(" out=internal_error sub=%u", run->internal.suberror);
		break;
	default:
		say(" out=exit%u", run->exit_reason);
		dead = 1;
	}
}

/*
 * What stops the guest, beside its own exits. On Intel it is always #DB: Bochs 2.7 keeps the trap of a
 * single step when the stepped instruction leaves the guest, and brings it at the next entry.
 */
static void set_guest_debug(int step)
{
	struct kvm_guest_debug debug = { .arch.debugreg[7] = DR7_NOTHING };

	if (step)
		debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	else if (intel)
		debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	if (ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &debug))
		die("KVM_SET_GUEST_DEBUG: %s", strerror(errno));
}

/*
 * Such a trap: no instruction has run since `rip` or since the exception or the exit that it led to, or
 * nobody wants to step. The guest goes on.
 */
static int is_old_trap(int step, u64 rip)
{
	if (!intel || cpu->run->exit_reason != KVM_EXIT_DEBUG)
		return 0;
	return !step || regs.rip == rip || regs.rip == PAGE_S + STUBS + 16 * HOST_RIP ||
	       (regs.rip >= PAGE_S + HANDLERS && regs.rip < PAGE_S + HANDLERS + 4 * VECTORS);
}

/* Run from `regs` until the instruction is over, single-stepped or up to the next OUT. */
void run_instruction(int step)
{
	int exits = 0, answered = 0, mmio;
	u64 rip = regs.rip;

	ioctl(cpu->fd, KVM_SET_REGS, &regs);
	set_guest_debug(step);
	alarm_rang = 0;
	for (;;) {
		if (answered >= 0 && enter()) {
			if (errno == EINTR && !alarm_rang)
				continue;
			say(" out=hang errno=%d", errno);
			dead = 1;
			return;
		}
		mmio = cpu->run->exit_reason == KVM_EXIT_MMIO;
		if (!mmio) {
			ioctl(cpu->fd, KVM_GET_REGS, &regs);
			if (!is_old_trap(step, rip))
				break;
		}
		if (++exits > 32) {
			say(" out=toomanyexits");
			return;
		}
		answered = mmio ? answer_mmio() : 0;
		if (answered > 0)
			return;
	}
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
