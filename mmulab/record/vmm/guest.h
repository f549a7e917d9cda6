/*
 * The VMM, from the top: a scenario (scenario.c); its ops (ops.c, vmx.c; the host's in dirty_ring.c,
 * notifier.c and host_memory.c); one instruction of its guest (guest.c, vmcs12.c) and what is said of it
 * (said.c); its vCPUs (vcpu.c) and its memory (memory.c).
 */
#ifndef GUEST_H
#define GUEST_H

#include <linux/kvm.h>
#include <stdlib.h>
#include "host.h"

#define MAX_VCPUS 8
#define MAX_SLOTS 64
#define MAX_FEATURES 64

/* The helper pages: where things lie in them (mmulab/scenario/helpers.py). */
enum {
	PAGE_S = 0x1000, PAGE_U = 0x2000, GDT = 0x000, IDT32 = 0x100, IDT64 = 0x200, TSS32 = 0x480,
	TSS64 = 0x500, HANDLERS = 0x600, VECTORS = 32, OPERAND = 0x7c0, STUBS = 0x800, STACK_TOP = 0xff0,
};
enum stub {
	RD4, WR4, RD8, WR8, CR3, CR0, CR4, INVLPG, WRMSR, CX8, NOP, XCHG, SYSEXIT, SYSENTER, VMRUN,
	L2_START, VMMCALL, RD1, WR1, VMXON, VMPTRLD, VMCLEAR, VMLAUNCH, VMRESUME, INVEPT, INVVPID, VMWRITE,
	VMCALL, HOST_RIP, VMFUNC, INVPCID, RSM,
};
/* A handler's port is its vector; the others say where an OUT stands. */
enum { PORT_SMI = 0xfb, PORT_VMFAIL, PORT_L2, PORT_L1 };

enum { CR0_PE = 1, CR4_PAE = 0x20, CR4_VMXE = 0x2000, EFER_LMA = 0x400, EFER_SVME = 0x1000 };
enum { RFLAGS = 2, CF = 1, ZF = 0x40, AC = 0x40000 };
#define CR0_PG (1u << 31)

/* The nested guest's control block: AMD's manual, volume 2, appendix B. */
enum {
	VMCB_INT_SHADOW = 0x68, VMCB_EXIT = 0x70, VMCB_INFO1 = 0x78, VMCB_INFO2 = 0x80, VMCB_INT_INFO = 0x88,
	VMCB_EVENT_INJ = 0xa8, VMCB_RFLAGS = 0x570, VMCB_RIP = 0x578, VMCB_RSP = 0x5d8, HSAVE = 0xc000,
};
enum { XFEATURE_PKRU = 9 };
enum { MSR_SMBASE = 0x9e, SMRAM_TR_TYPE = 0xfe92, MSR_HSAVE = 0xc0010117 };

#define MAX_STATS 200

struct stats {
	int fd, count;
	u64 data;
	u32 bytes;
	char name[MAX_STATS][48];
	u32 offset[MAX_STATS];
	u64 last[4096], now[4096];
};

struct cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[128];
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	struct stats stats;
	struct kvm_sregs sregs;
	struct cpuid cpuid;
	u64 vmcb;		/* of the nested guest that ran last */
	int in_l2;
	struct kvm_dirty_gfn *ring;
	u32 harvested;		/* entries of the ring, from the start */
};

/* A memslot: its place in the guest, and its place in the backing. */
struct slot {
	u64 gpa, size, offset;
};

extern struct vcpu vcpus[MAX_VCPUS], *cpu;
extern struct kvm_regs regs;
extern struct stats vm_stats;
extern int vm, n_vcpus, dead, intel;
extern u8 *mem;
extern u64 mem_bytes;
extern int memory_is_changed, memory_swaps;

static inline u64 hex(const char *text)
{
	return text ? strtoull(text, 0, 16) : 0;
}

u64 *qword(u64 offset);

void begin(const char *number, const char *format, ...) __attribute__((format(printf, 2, 3)));
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void finish(void);
void send_total(void);
const char *vcpu_prefix(void);

void stats_open(struct stats *s, int owner);
void flat_segments(int cpl, int l);
int is_long(void);
int set_sregs(void);
void must_set_sregs(void);
void know_feature(const char *key, const u64 *place);
void change_feature(struct cpuid *cpuid, const char *key, u32 value);
int set_pkru(u32 value);

extern u32 ring_entries;
void enable_dirty_rings(void);
u64 ring_bytes(void);
void map_ring(void *at);
void harvest_ring(void);

void try_pageout(void);
int age(u64 at, u64 length);
int collapse(u64 at, u64 length);

void catch_alarm(void);
void start_at(u64 rip, u64 rflags);
void run_instruction(int step);
void run_stub(enum stub stub, int user, int ac);

void make_memory(int nolock, int thp);
void end_memory(void);
void send_frames(void);
int send_new_frames(void);
int add_pdptfix(u64 gpa);
struct slot *slot_of(u32 id);
int set_slot(u32 id, u64 size, u32 flags);
int protect_memory(u64 gpa, u64 length, u64 access);
int swap_out(u64 gpa, u64 length);
void swap_off(void);
void recover_nx_huge_pages(u64 ratio);
void switch_nx_huge_pages(u64 value);
void restore_nx_huge_pages(void);

void fix_pdptes(void);
void run_op(char *line);

void vmx_allow(void);
void vmx_load(const char *number, u64 gpa);
int vmx_op(char **arg);

u64 current_vmcs(void);
int is_launched(void);
void say_vmx_exit(void);
void say_vmx_fail(void);
void say_vmx_flags(void);

#endif
