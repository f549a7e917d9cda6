/*
 * The VM's vCPUs: their registers, and what CPUID tells them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include "guest.h"

struct vcpu vcpus[MAX_VCPUS], *cpu;
struct kvm_regs regs;
struct stats vm_stats;
int vm, n_vcpus, dead, intel;

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

/* ---- CPUID ----------------------------------------------------------------- */

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
