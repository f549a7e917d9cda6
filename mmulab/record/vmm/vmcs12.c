/*
 * The nested guest's VMCS, of which KVM is asked: it keeps it outside the guest's memory while it is the
 * current one (struct vmcs12).
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include "guest.h"

enum { MSR_FEATURE_CONTROL = 0x3a, LOCKED_VMXON = 5 };

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

void say_vmx_flags(void)
{
	say(" cf=%d zf=%d", !!(regs.rflags & CF), !!(regs.rflags & ZF));
}

void say_vmx_fail(void)
{
	read_state();
	say(" out=vmfail");
	say_vmx_flags();
	say(" insnerr=%x", field4(INSTRUCTION_ERROR));
}

u64 current_vmcs(void)
{
	read_state();
	return state.head.hdr.vmx.vmcs12_pa;
}

int is_launched(void)
{
	read_state();
	return !!field4(LAUNCH_STATE);
}
