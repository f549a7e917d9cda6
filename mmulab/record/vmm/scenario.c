/*
 * A scenario: makes its VM, runs its ops and ends it. It comes as lines of text, its beginning first:
 *
 *   mem BYTES        nolock 0|1       thp 0|1          manualdirty 0|1
 *   vcpus N          dirtyring N      nxdisable 0|1    pdptfix GPA
 *   sregs CR0 CR3 CR4 EFER            slot ID GPA SIZE FLAGS OFFSET
 *   feature KEY LEAF INDEX REGISTER LOWEST BITS VALUE
 *   helper GPA BYTES                  fill GPA LEN BYTE                     value SIZE GPA VALUE
 *
 * then `ops`, an op a line with its number in front (mmulab/scenario/grammar.py), and `end NUMBER`,
 * the number of the teardown. Numbers of ops are decimal, the others hexadecimal. `mem`, `nolock`
 * and then `thp` stand before whatever is put into memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "guest.h"

#define GENUINE_INTEL 0x756e6547	/* the first word of the vendor's name */

static struct kvm_userspace_memory_region first_slots[MAX_SLOTS];
static struct kvm_sregs first;
static struct cpuid supported;
static int kvm, n_slots, nolock, manual_dirty, nx_disable;
static void *runs;
static u64 runs_bytes;

static void make_vcpu(int number)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entries[3]; } msrs = {
		.head.nmsrs = 3,
		.entries = { { .index = 0x174, .data = 8 }, { .index = 0x175, .data = PAGE_S + STACK_TOP },
			     { .index = 0x176, .data = PAGE_S + STUBS + 16 * NOP } },
	};

	cpu = &vcpus[number];
	cpu->fd = ioctl(vm, KVM_CREATE_VCPU, number);
	if (cpu->fd < 0)
		die("KVM_CREATE_VCPU: %s", strerror(errno));
	cpu->cpuid = supported;
	if (ioctl(cpu->fd, KVM_SET_CPUID2, &cpu->cpuid))
		die("KVM_SET_CPUID2: %s", strerror(errno));
	if (ioctl(cpu->fd, KVM_SET_MSRS, &msrs) != 3)
		die("KVM_SET_MSRS: %s", strerror(errno));
	stats_open(&cpu->stats, cpu->fd);
}

/* All of a VM's kvm_run areas and rings in one mapping, so that one munmap() ends them: the MMU notifier reports each. */
static void map_runs(void)
{
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	u8 *all;

	runs_bytes = (size + ring_bytes()) * n_vcpus;
	runs = all = mmap(0, runs_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < n_vcpus; i++) {
		vcpus[i].run = mmap(all + i * size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, vcpus[i].fd, 0);
		if (vcpus[i].run == MAP_FAILED)
			die("kvm_run: %s", strerror(errno));
		cpu = &vcpus[i];
		if (ring_entries)
			map_ring(all + size * n_vcpus + ring_bytes() * i);
	}
}

static void first_registers(void)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } hsave = {
		.head.nmsrs = 1, .entry = { .index = MSR_HSAVE, .data = HSAVE },
	};
	struct kvm_sregs *s = &cpu->sregs;

	begin("-1", "%sinit", vcpu_prefix());
	say("out=host");
	ioctl(cpu->fd, KVM_GET_SREGS, s);
	s->cr0 = first.cr0, s->cr3 = first.cr3, s->cr4 = first.cr4, s->efer = first.efer;
	flat_segments(0, is_long());
	if (set_sregs())
		note(REC_NOTE, "KVM_SET_SREGS: %s", strerror(errno));
	ioctl(cpu->fd, KVM_GET_SREGS, s);
	if (s->efer & EFER_SVME && ioctl(cpu->fd, KVM_SET_MSRS, &hsave) != 1)
		die("VM_HSAVE_PA: %s", strerror(errno));
	if (intel && s->cr4 & CR4_VMXE)
		vmx_allow();
	if (s->cr0 != first.cr0 || s->cr4 != first.cr4 || s->efer != first.efer)
		note(REC_NOTE, "KVM took other first registers: cr0 %llx cr4 %llx efer %llx", s->cr0, s->cr4, s->efer);
	finish();
}

static void make_slots(void)
{
	for (int i = 0; i < n_slots; i++) {
		struct kvm_userspace_memory_region *r = &first_slots[i];

		*slot_of(r->slot) = (struct slot){ r->guest_phys_addr, r->memory_size, r->userspace_addr };
		if (set_slot(r->slot, r->memory_size, r->flags))
			die("slot %x: %s", r->slot, strerror(errno));
	}
}

static void put_bytes(u64 at, const char *digits)
{
	for (unsigned byte; sscanf(digits, "%2x", &byte) == 1; digits += 2)
		mem[at++] = byte;
}

/* One line of a scenario's beginning. */
static void header_line(char *line)
{
	char *key = strsep(&line, " "), *word[7] = { 0 };
	u64 x[7];

	for (int i = 0; i < 7; i++) {
		word[i] = strsep(&line, " ");
		x[i] = hex(word[i]);
	}
	if (!strcmp(key, "mem"))
		mem_bytes = x[0];
	else if (!strcmp(key, "thp"))
		make_memory(nolock, x[0]);
	else if (!strcmp(key, "nolock"))
		nolock = x[0];
	else if (!strcmp(key, "dirtyring"))
		ring_entries = x[0];
	else if (!strcmp(key, "manualdirty"))
		manual_dirty = x[0];
	else if (!strcmp(key, "nxdisable"))
		nx_disable = x[0];
	else if (!strcmp(key, "vcpus"))
		n_vcpus = x[0];
	else if (!strcmp(key, "sregs"))
		first.cr0 = x[0], first.cr3 = x[1], first.cr4 = x[2], first.efer = x[3];
	else if (!strcmp(key, "slot") && n_slots < MAX_SLOTS)
		first_slots[n_slots++] = (struct kvm_userspace_memory_region){
			.slot = x[0], .guest_phys_addr = x[1], .memory_size = x[2], .flags = x[3], .userspace_addr = x[4],
		};
	else if (!strcmp(key, "feature"))
		know_feature(word[0], x + 1), change_feature(&supported, word[0], x[6]);
	else if (!strcmp(key, "helper"))
		put_bytes(x[0], word[1]);
	else if (!strcmp(key, "fill"))
		memset(mem + x[0], x[2], x[1]);
	else if (!strcmp(key, "value"))
		memcpy(mem + x[1], &x[2], x[0]);
	else if (strcmp(key, "pdptfix") || !add_pdptfix(x[0]))
		die("line '%s': not one of a scenario's beginning", key);
}

static void get_supported(void)
{
	supported.head.nent = 128;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &supported))
		die("KVM_GET_SUPPORTED_CPUID: %s", strerror(errno));
}

void open_kvm(void)
{
	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		die("/dev/kvm: %s; KVM must be built in, or its modules given", strerror(errno));
	catch_alarm();
	try_pageout();
	get_supported();
	for (u32 i = 0; i < supported.head.nent; i++)
		if (!supported.entries[i].function)
			intel = supported.entries[i].ebx == GENUINE_INTEL;
	put(REC_CPUID, supported.entries, supported.head.nent * sizeof(supported.entries[0]));
}

static void make_vm(void)
{
	struct kvm_enable_cap executable = { .cap = KVM_CAP_VM_DISABLE_NX_HUGE_PAGES };
	struct kvm_enable_cap manual = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 1 } };

	if (manual_dirty && ioctl(vm, KVM_ENABLE_CAP, &manual))
		die("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: %s", strerror(errno));
	if (nx_disable && ioctl(vm, KVM_ENABLE_CAP, &executable))
		die("KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: %s", strerror(errno));
	make_slots();
	enable_dirty_rings();
	for (int i = 0; i < n_vcpus; i++)
		make_vcpu(i);
	map_runs();
	stats_open(&vm_stats, vm);
	send_frames();
	drain_trace(0);
	write_trace("tracing_on", "1");
	for (int i = 0; i < n_vcpus; i++) {
		cpu = &vcpus[i];
		first_registers();
	}
}

static void end_vm(const char *number)
{
	send_total();
	memory_is_changed |= send_new_frames();
	begin(number, "teardown");
	munmap(runs, runs_bytes);
	for (int i = 0; i < n_vcpus; i++)
		close(vcpus[i].stats.fd);
	close(vm_stats.fd);
	for (int i = 0; i < n_vcpus; i++)
		close(vcpus[i].fd);
	close(vm);
	drain_trace(1);
	write_trace("tracing_on", "0");
	put(REC_OUTCOME, "out=host |", 10);
	if (memory_swaps)
		swap_off();
	restore_nx_huge_pages();
	end_memory();
}

void run_scenario(char *text)
{
	char *line, *last = "0";

	memset(vcpus, 0, sizeof(vcpus));
	n_slots = nolock = manual_dirty = nx_disable = ring_entries = dead = 0;
	n_vcpus = 1;
	get_supported();
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		die("KVM_CREATE_VM: %s", strerror(errno));
	while ((line = strsep(&text, "\n")) && strncmp(line, "ops", 3))
		if (*line)
			header_line(line);
	make_vm();
	while ((line = strsep(&text, "\n")) && strncmp(line, "end", 3))
		if (!dead)
			run_op(line);
	if (line && strlen(line) > 4)
		last = line + 4;
	end_vm(last);
}
