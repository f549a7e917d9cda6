/*
 * Nested VMX: the instructions of a hypervisor in the guest, and where its own guest's exits go.
 *
 * What the guest's VMCS holds is asked of KVM, which keeps it outside the guest's memory while it is
 * the current one (struct vmcs12).
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include "guest.h"

enum { FIELD_GUEST_RIP = 0x681e, FIELD_GUEST_RFLAGS = 0x6820, MSR_FEATURE_CONTROL = 0x3a, LOCKED_VMXON = 5 };

/* Where fields lie in KVM's structure (arch/x86/kvm/vmx/vmcs12.h). */
enum {
	LAUNCH_STATE = 0x8, GUEST_PHYSICAL = 0xa8, QUALIFICATION = 0x198, GUEST_LINEAR = 0x1a0, GUEST_RIP = 0x220,
	INSTRUCTION_ERROR = 0x328, EXIT_REASON = 0x32c, EXIT_INTR_INFO = 0x330, EXIT_INTR_ERROR = 0x334,
	IDT_VECTORING = 0x338,
};

static struct {
	struct kvm_nested_state head;
	u8 vmcs12[4096], shadow[4096];
} state;

static void read_state(void)
{
	memset(&state, 0, sizeof(state));
	state.head.size = sizeof(state);
	if (ioctl(cpu->fd, KVM_GET_NESTED_STATE, &state))
		die("KVM_GET_NESTED_STATE: %s", strerror(errno));
}

static unsigned long long field8(int offset)
{
	return *(u64 *)(state.vmcs12 + offset);
}

static u32 field4(int offset)
{
	return *(u32 *)(state.vmcs12 + offset);
}

void vmx_allow(void)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } control = {
		.head.nmsrs = 1, .entry = { .index = MSR_FEATURE_CONTROL, .data = LOCKED_VMXON },
	};

	if (ioctl(cpu->fd, KVM_SET_MSRS, &control) != 1)
		die("IA32_FEATURE_CONTROL: %s", strerror(errno));
}

void say_vmx_exit(void)
{
	read_state();
	cpu->in_l2 = 0;
	say(" out=vmexit reason=%x qual=%llx gpa=%llx gla=%llx", field4(EXIT_REASON), field8(QUALIFICATION),
	    field8(GUEST_PHYSICAL), field8(GUEST_LINEAR));
	say(" intr=%x intrerr=%x idtv=%x rip=%llx", field4(EXIT_INTR_INFO), field4(EXIT_INTR_ERROR),
	    field4(IDT_VECTORING), field8(GUEST_RIP));
}

static void say_flags(void)
{
	say(" cf=%d zf=%d", !!(regs.rflags & CF), !!(regs.rflags & ZF));
}

void say_vmx_fail(void)
{
	read_state();
	say(" out=vmfail");
	say_flags();
	say(" insnerr=%x", field4(INSTRUCTION_ERROR));
}

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
	read_state();
	if (cpu->in_l2 || state.head.hdr.vmx.vmcs12_pa == gpa)
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

static int is_launched(void)
{
	read_state();
	return !!field4(LAUNCH_STATE);
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
			say_flags();
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
		say_flags();
	} else if (!strcmp(op, "invept") || !strcmp(op, "invvpid")) {
		regs.rax = value;
		run_with_operand(op[3] == 'e' ? INVEPT : INVVPID, hex(arg[2]), hex(arg[3]));
		say_flags();
	} else if (!strcmp(op, "vmfunc")) {
		regs.rax = value;
		regs.rcx = hex(arg[2]);
		run_stub(VMFUNC, 0, 0);
	} else {
		return 0;
	}
	return 1;
}
