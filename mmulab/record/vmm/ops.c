/*
 * The ops: what one line of a scenario does, to the guest or as the VMM and the host.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "guest.h"

static u64 dirty[1 << 16];

static int is_pae(void)
{
	struct kvm_sregs *s = &cpu->sregs;

	return s->cr0 & CR0_PG && s->cr4 & CR4_PAE && !is_long();
}

/*
 * Bring the vCPU to the CPL that the op wants. In PAE paging KVM_SET_SREGS would reset the MMU, so
 * there the guest does it by an instruction, which is a record of its own.
 */
static void change_cpl(const char *number, int cpl, int compat)
{
	int l = is_long() && !compat;

	if ((cpu->sregs.cs.selector & 3) == cpl && cpu->sregs.cs.l == l &&
	    cpu->sregs.idt.base == PAGE_S + (is_long() ? IDT64 : IDT32))
		return;
	if (!is_pae()) {
		flat_segments(cpl, l);
		must_set_sregs();
		return;
	}
	memset(&regs, 0, sizeof(regs));
	begin(number, "%s%s", vcpu_prefix(), cpl ? "~sysexit" : "~sysenter");
	if (cpl) {
		regs.rdx = PAGE_U + STUBS + 16 * NOP;
		regs.rcx = PAGE_S + STACK_TOP;
		run_stub(SYSEXIT, 0, 0);
	} else {
		run_stub(SYSENTER, 1, 0);
	}
	finish();
}

/* Start the nested guest at its stub, with nothing pending. */
static void vmrun(u64 vmcb)
{
	cpu->vmcb = vmcb;
	*qword(vmcb + VMCB_RIP) = PAGE_S + STUBS + 16 * L2_START;
	*qword(vmcb + VMCB_RFLAGS) = RFLAGS;
	*qword(vmcb + VMCB_RSP) = PAGE_S + STACK_TOP;
	*qword(vmcb + VMCB_EVENT_INJ) = 0;
	*qword(vmcb + VMCB_INT_SHADOW) = 0;
	regs.rax = vmcb;
	start_at(PAGE_S + STUBS + 16 * VMRUN, 0);
	run_instruction(0);
}

static int accesses(const char *op)
{
	return !strcmp(op, "rd") || !strcmp(op, "wr") || !strcmp(op, "xg") || !strcmp(op, "cx") || !strcmp(op, "xc");
}

/* Reads and stores of one word: MODE SIZE GVA [VAL]. */
static void run_access(char **arg)
{
	int user = *arg[1] == 'u', ac = *arg[1] == 'a', size = *arg[2] - '0', store = *arg[0] == 'w';

	regs.rbx = hex(arg[3]);
	regs.rax = hex(arg[4]);
	if (*arg[0] == 'x')
		run_stub(XCHG, user, ac);
	else if (size == 8)
		run_stub(store ? WR8 : RD8, user, ac);
	else if (size == 1)
		run_stub(store ? WR1 : RD1, user, ac);
	else
		run_stub(store ? WR4 : RD4, user, ac);
}

static void run_cmpxchg8b(char **arg)
{
	u64 old = hex(arg[4]), new = hex(arg[5]);

	regs.rsi = hex(arg[3]);
	regs.rax = (u32)old;
	regs.rdx = old >> 32;
	regs.rbx = (u32)new;
	regs.rcx = new >> 32;
	run_stub(CX8, *arg[1] == 'u', *arg[1] == 'a');
	say(" zf=%d", !!(regs.rflags & ZF));
}

static void run_with_rax(enum stub stub, u64 value)
{
	regs.rax = value;
	run_stub(stub, 0, 0);
}

/* One instruction of the guest; return 0 if it is none. */
static int guest_op(char **arg)
{
	const char *op = arg[0];
	u64 value = hex(arg[1]);

	memset(&regs, 0, sizeof(regs));
	if (intel && vmx_op(arg))
		return 1;
	if (!strcmp(op, "rd") || !strcmp(op, "wr") || !strcmp(op, "xg")) {
		run_access(arg);
	} else if (!strcmp(op, "cx")) {
		run_cmpxchg8b(arg);
	} else if (!strcmp(op, "xc")) {
		start_at(hex(arg[2]), 0);
		run_instruction(1);
	} else if (!strcmp(op, "cr3")) {
		run_with_rax(CR3, value);
	} else if (!strcmp(op, "cr0") || !strcmp(op, "cr0c")) {
		run_with_rax(CR0, value);
	} else if (!strcmp(op, "cr4")) {
		run_with_rax(CR4, value);
	} else if (!strcmp(op, "efer")) {
		regs.rdx = value >> 32;
		regs.rcx = 0xc0000080;
		run_with_rax(WRMSR, (u32)value);
	} else if (!strcmp(op, "invlpg")) {
		regs.rbx = value;
		run_stub(INVLPG, 0, 0);
	} else if (!strcmp(op, "invpcid")) {
		*qword(PAGE_S + OPERAND) = hex(arg[2]);
		*qword(PAGE_S + OPERAND + 8) = hex(arg[3]);
		regs.rbx = PAGE_S + OPERAND;
		run_with_rax(INVPCID, value);
	} else if (!strcmp(op, "nop")) {
		run_stub(NOP, 0, 0);
	} else if (!strcmp(op, "vmrun")) {
		vmrun(value);
	} else if (!strcmp(op, "vmmcall")) {
		start_at(PAGE_S + STUBS + 16 * VMMCALL, 0);
		run_instruction(0);
	} else if (!strcmp(op, "smm")) {
		/* On: instead of the NOP the handler's first instruction runs. */
		if (!strcmp(arg[1], "on") && ioctl(cpu->fd, KVM_SMI, 0))
			die("KVM_SMI: %s", strerror(errno));
		run_stub(strcmp(arg[1], "on") ? RSM : NOP, 0, 0);
	} else {
		return 0;
	}
	return 1;
}

static void say_result(int result)
{
	say(" out=host ret=%d", result < 0 ? -errno : result);
}

static void get_dirty_log(u32 id)
{
	struct kvm_dirty_log log = { .slot = id, .dirty_bitmap = dirty };
	const char *comma = "";

	memset(dirty, 0, sizeof(dirty));
	say_result(ioctl(vm, KVM_GET_DIRTY_LOG, &log));
	say(" dirty=");
	for (u64 i = 0; i < slot_of(id)->size / PAGE; i++) {
		if (!(dirty[i / 64] >> i % 64 & 1))
			continue;
		say("%s%llx", comma, (unsigned long long)i);
		comma = ",";
	}
}

static void clear_dirty_log(u32 id, u64 start, u64 count)
{
	struct kvm_clear_dirty_log log = { .slot = id, .first_page = start, .num_pages = count, .dirty_bitmap = dirty };

	memset(dirty, 0xff, sizeof(dirty));
	say_result(ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log));
}

/* Make the MMU notifier report a range whose frames stay what they are. */
static void invalidate(u64 gpa, u64 length)
{
	mprotect(mem + gpa, length, PROT_READ);
	mprotect(mem + gpa, length, PROT_READ | PROT_WRITE);
	for (u64 at = gpa; at < gpa + length; at += PAGE) {
		volatile u8 *byte = mem + at;

		*byte = *byte;
	}
	say(" out=host");
}

static void set_cpuid(const char *key, u64 value)
{
	struct cpuid changed = cpu->cpuid;
	int result;

	change_feature(&changed, key, value);
	result = ioctl(cpu->fd, KVM_SET_CPUID2, &changed);
	say_result(result);
	if (!result)
		cpu->cpuid = changed;
}

/* What the VMM or the host does; there is no op but these and the guest's. */
static void host_op(char **arg)
{
	const char *op = arg[0];
	u64 first_arg = hex(arg[1]);

	if (!strcmp(op, "hw")) {
		u64 value = hex(arg[3]);

		memcpy(mem + hex(arg[2]), &value, first_arg);
		say(" out=host");
	} else if (!strcmp(op, "slot")) {
		*slot_of(first_arg) = (struct slot){ hex(arg[2]), hex(arg[3]), hex(arg[5]) };
		say_result(set_slot(first_arg, hex(arg[3]), hex(arg[4])));
	} else if (!strcmp(op, "slotdel")) {
		say_result(set_slot(first_arg, 0, 0));
	} else if (!strcmp(op, "getdirty")) {
		get_dirty_log(first_arg);
	} else if (!strcmp(op, "cleardirty")) {
		clear_dirty_log(first_arg, hex(arg[2]), hex(arg[3]));
	} else if (!strcmp(op, "hinval")) {
		invalidate(first_arg, hex(arg[2]));
	} else if (!strcmp(op, "age")) {
		say_result(age(first_arg, hex(arg[2])));
	} else if (!strcmp(op, "collapse")) {
		say_result(collapse(first_arg, hex(arg[2])));
	} else if (!strcmp(op, "getring")) {
		harvest_ring();
	} else if (!strcmp(op, "resetring")) {
		say_result(ioctl(vm, KVM_RESET_DIRTY_RINGS, 0));
	} else if (!strcmp(op, "pkru")) {
		say_result(set_pkru(first_arg));
	} else if (!strcmp(op, "mprotect")) {
		say_result(protect_memory(first_arg, hex(arg[2]), hex(arg[3])));
	} else if (!strcmp(op, "swapout")) {
		say_result(swap_out(first_arg, hex(arg[2])));
	} else if (!strcmp(op, "nxrecover")) {
		recover_nx_huge_pages(first_arg);
	} else if (!strcmp(op, "nxhuge")) {
		switch_nx_huge_pages(first_arg);
	} else if (!strcmp(op, "nrpages")) {
		say_result(ioctl(vm, KVM_SET_NR_MMU_PAGES, (unsigned long)first_arg));
	} else if (!strcmp(op, "cpuid")) {
		set_cpuid(arg[1], hex(arg[2]));
	} else if (!strcmp(op, "sregs")) {
		struct kvm_sregs *s = &cpu->sregs;

		s->cr0 = first_arg, s->cr3 = hex(arg[2]), s->cr4 = hex(arg[3]), s->efer = hex(arg[4]);
		flat_segments(0, is_long());
		if (set_sregs())
			say_result(-1);
		else
			say(" out=host");
#ifdef TEST_PANIC	/* tests compile this in: a scenario that the host does not survive */
	} else if (!strcmp(op, "panic")) {
		write_file("/proc/sysrq-trigger", "c");
#endif
	} else {
		die("op %s: the VMM has none", op);
	}
}

static int is_host_op(const char *op)
{
	static const char *names[] = { "hw", "slot", "slotdel", "getdirty", "cleardirty", "hinval",
				       "nrpages", "cpuid", "sregs", "panic", "age", "collapse", "getring",
				       "resetring", "pkru", "mprotect", "swapout", "nxrecover",
				       "nxhuge" };

	for (u32 i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(op, names[i]))
			return 1;
	return 0;
}

/* The vCPU has just entered system management mode, in real mode: leave that for flat protected mode. */
static void settle_in_smm(const char *number)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } smbase = {
		.head.nmsrs = 1, .entry.index = MSR_SMBASE,
	};

	finish();
	begin(number, "%s~sregs", vcpu_prefix());
	say("out=host");
	cpu->sregs.cr0 |= CR0_PE;
	flat_segments(0, 0);
	must_set_sregs();
	ioctl(cpu->fd, KVM_GET_SREGS, &cpu->sregs);
	/* KVM has saved TR as busy, upon which QEMU 7.2's TCG would abort after RSM. */
	if (!intel && ioctl(cpu->fd, KVM_GET_MSRS, &smbase) == 1 && smbase.entry.data + SMRAM_TR_TYPE < mem_bytes)
		mem[smbase.entry.data + SMRAM_TR_TYPE] &= ~2;
}

/* Run one line: NUMBER [@VCPU] [!|?]OP ARG.. */
void run_op(char *line)
{
	char *number = strsep(&line, " "), copy[256], *arg[8] = { 0 }, *rest = copy, **word = arg, *op;
	int smm;

	snprintf(copy, sizeof(copy), "%s", line);
	cpu = vcpus;
	if (*rest == '@')
		cpu = &vcpus[strtoul(strsep(&rest, " ") + 1, 0, 16)];
	while (word < arg + 8 && (*word = strsep(&rest, " ")))
		word++;
	op = arg[0];
	if (*op == '?' || *op == '!') {
		if (cpu->in_l2 == (*op == '?'))
			return;
		op = ++arg[0];
	}
	if (is_host_op(op)) {
		fix_pdptes();
		begin(number, "%s", line);
		host_op(arg);
		finish();
		return;
	}
	if (!cpu->in_l2) {
		change_cpl(number, accesses(op) && *arg[1] == 'u' ? 3 : 0, !strcmp(op, "cr0c"));
	} else {
		if (cpu->sregs.cs.l != is_long()) {
			flat_segments(0, is_long());
			must_set_sregs();
		}
		if (accesses(op))
			arg[1] = *arg[1] == 'a' ? "a" : "s";
	}
	if (intel && !dead && !strcmp(op, "vmrun"))
		vmx_load(number, hex(arg[1]));
	if (dead)
		return;
	smm = cpu->run->flags & KVM_RUN_X86_SMM;
	fix_pdptes();
	begin(number, "%s", line);
	if (!guest_op(arg))
		die("op %s: the VMM has none", op);
	if (!smm && cpu->run->flags & KVM_RUN_X86_SMM && !dead)
		settle_in_smm(number);
	finish();
}
