/*
 * One instruction of a guest over raw /dev/kvm, and what became of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>
#include "guest.h"

#define SECONDS_PER_OP 10
#define DR7_NOTHING 0x400	/* no breakpoint */
#define READ_FROM_DEVICE 0xd0d0d0d0d0d0d0d0ull
#define SAY(key, value) say(" " key "=%llx", (unsigned long long)(value))

static int alarm_rang;

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
