/*
 * Nested VMX: the instructions of a hypervisor in the guest.
 */
#include <string.h>
#include "guest.h"

enum { FIELD_GUEST_RIP = 0x681e, FIELD_GUEST_RFLAGS = 0x6820 };

static void run_with_operand(enum stub stub, u64 first, u64 second)
{
	*qword(PAGE_S + OPERAND) = first;
	if (stub == INVEPT || stub == INVVPID)
		*qword(PAGE_S + OPERAND + 8) = second;
	regs.rbx = PAGE_S + OPERAND;
	run_stub(stub, 0, 0);
}

/* The VMCS that an entry names becomes the current one by an instruction of its own, which is a record. */
void vmx_load(const char *number, u64 gpa)
{
	if (cpu->in_l2 || current_vmcs() == gpa)
		return;
	memset(&regs, 0, sizeof(regs));
	begin(number, "%s~vmptrld", vcpu_prefix());
	run_with_operand(VMPTRLD, gpa, 0);
	finish();
}

/* Enter the nested guest at its stub: VMLAUNCH the first time, VMRESUME after that. */
static void enter_l2(int launch)
{
	regs.rbx = FIELD_GUEST_RIP;
	regs.rax = PAGE_S + STUBS + 16 * L2_START;
	regs.rcx = FIELD_GUEST_RFLAGS;
	regs.rdx = RFLAGS;
	start_at(PAGE_S + STUBS + 16 * (launch ? VMLAUNCH : VMRESUME), 0);
	run_instruction(0);
}

/* One instruction of VMX; return 0 if it is none. */
int vmx_op(char **arg)
{
	static const struct { const char *name; enum stub stub; } with_region[] = {
		{ "vmxon", VMXON }, { "vmptrld", VMPTRLD }, { "vmclear", VMCLEAR },
	};
	const char *op = arg[0];
	u64 value = hex(arg[1]);

	for (u32 i = 0; i < sizeof(with_region) / sizeof(*with_region); i++) {
		if (!strcmp(op, with_region[i].name)) {
			run_with_operand(with_region[i].stub, value, 0);
			say_vmx_flags();
			return 1;
		}
	}
	if (!strcmp(op, "vmrun")) {
		enter_l2(!is_launched());
	} else if (!strcmp(op, "vmlaunch")) {
		enter_l2(1);
	} else if (!strcmp(op, "vmcall")) {
		start_at(PAGE_S + STUBS + 16 * VMCALL, 0);
		run_instruction(0);
	} else if (!strcmp(op, "vmw")) {
		regs.rbx = value;
		regs.rax = hex(arg[2]);
		run_stub(VMWRITE, 0, 0);
		say_vmx_flags();
	} else if (!strcmp(op, "invept") || !strcmp(op, "invvpid")) {
		regs.rax = value;
		run_with_operand(op[3] == 'e' ? INVEPT : INVVPID, hex(arg[2]), hex(arg[3]));
		say_vmx_flags();
	} else if (!strcmp(op, "vmfunc")) {
		regs.rax = value;
		regs.rcx = hex(arg[2]);
		run_stub(VMFUNC, 0, 0);
	} else {
		return 0;
	}
	return 1;
}
