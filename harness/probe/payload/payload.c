// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a probe guest runs: one loop that takes an operation from its vcpu's mailbox, does it, and
 * says so through an I/O port, on which KVM leaves to the VMM. Each access to a page under test is
 * a single aligned 8-byte load or store, so that what the guest saw is exact.
 */
#include "payload.h"

#define TEXT(number) #number
#define PORT(name) TEXT(name)

static inline volatile u64 *word_of(const struct mailbox *box, u64 index, u64 word)
{
	return (volatile u64 *)(box->gpa + index * PAGE_BYTES) + word;
}

static void complain(struct mailbox *box, u64 page, u64 word, u64 expected, u64 seen)
{
	if (box->bad == 0) {
		box->bad_page = page;
		box->bad_word = word;
		box->bad_expected = expected;
		box->bad_seen = seen;
	}
	box->bad = box->bad + 1;
}

static void visit(struct mailbox *box, u64 index)
{
	box->current = box->first + index;
	box->done = box->done + 1;
}

static volatile u64 *ledger_of(u64 vcpu)
{
	return (volatile u64 *)(LEDGER_GPA + vcpu * LIST_BYTES);
}

static void fill(struct mailbox *box)
{
	for (u64 i = 0; i < box->pages; i++) {
		u64 page = box->first + i;

		visit(box, i);
		for (u64 vcpu = 0; vcpu < FIRST_PATTERN_WORD; vcpu++) {
			*word_of(box, i, vcpu) = pattern(box->seed, page, vcpu);
			ledger_of(vcpu)[page] = pattern(box->seed, page, vcpu);
		}
		for (u64 w = FIRST_PATTERN_WORD; w < PAGE_WORDS; w += box->step)
			*word_of(box, i, w) = pattern(box->seed, page, w);
	}
}

static void check(struct mailbox *box)
{
	for (u64 i = 0; i < box->pages; i++) {
		u64 page = box->first + i;

		visit(box, i);
		for (u64 w = FIRST_PATTERN_WORD; w < PAGE_WORDS; w += box->step) {
			u64 expected = pattern(box->seed, page, w);
			u64 seen = *word_of(box, i, w);

			if (seen != expected)
				complain(box, page, w, expected, seen);
		}
	}
}

/*
 * Each vcpu owns one word of every page and remembers, in memory that no scenario touches, what it
 * last wrote there. A page that was lost, exchanged or left stale shows at the next visit.
 */
static void hammer(struct mailbox *box)
{
	u64 own = box->word;
	volatile u64 *ledger = ledger_of(own);

	while (!box->stop) {
		for (u64 i = 0; i < box->pages && !box->stop; i++) {
			u64 page = box->first + i;
			u64 seen;

			visit(box, i);
			seen = *word_of(box, i, own);
			if (seen != ledger[page]) {
				complain(box, page, own, ledger[page], seen);
				ledger[page] = seen;
			}
			if (box->seed) {
				/* In this order: a store that is refused must not be in the ledger. */
				*word_of(box, i, own) = seen + 1;
				ledger[page] = seen + 1;
			}
		}
		box->rounds = box->rounds + 1;
	}
}

static void perform(struct mailbox *box, u64 *list)
{
	switch (box->op) {
	case OP_FILL:
		fill(box);
		break;
	case OP_CHECK:
		check(box);
		break;
	case OP_READ:
		for (u64 i = 0; i < box->pages; i++) {
			visit(box, i);
			list[i] = *word_of(box, i, box->word);
		}
		break;
	case OP_WRITE:
		for (u64 i = 0; i < box->pages; i++) {
			visit(box, i);
			*word_of(box, i, box->word) = box->seed;
		}
		break;
	case OP_HAMMER:
		hammer(box);
		break;
	}
}

/*
 * A vcpu that is to run the loop one level deeper starts here, with the address of its VMCB in rax
 * and its number in rdi, which the guest inside the guest finds there, too. Nothing of that is
 * intercepted but VMRUN, so it is never left again: its exits go to KVM.
 */
__asm__(".pushsection .text.nested, \"ax\"\n"
	"vmrun %rax\n"
	"outb %al, $" PORT(LEFT_PORT) "\n"
	"hlt\n"
	".popsection\n");

/* The VMM starts each vcpu here, in 64-bit mode on an identity mapping, with its number in rdi. */
__attribute__((section(".text.entry"), noreturn)) void entry(u64 vcpu)
{
	struct mailbox *box = (struct mailbox *)(MAILBOX_GPA + vcpu * PAGE_BYTES);
	u64 *list = (u64 *)(LIST_GPA + vcpu * LIST_BYTES);

	for (;;) {
		perform(box, list);
		__asm__ volatile("outb %%al, %0" : : "N"(DONE_PORT), "a"(0) : "memory");
	}
}
