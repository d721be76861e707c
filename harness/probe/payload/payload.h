/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract between the payload, which is all the software that a probe guest runs, and
 * harness/probe/layout.py, which must say the same. tests/unit/probe/test_layout.py compares them.
 */
#ifndef PAYLOAD_H
#define PAYLOAD_H

typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE_BYTES 4096UL
#define PAGE_WORDS 512UL

/* Guest-physical addresses inside the control memslot, which no scenario ever touches. */
#define CODE_GPA 0x8000UL
#define NESTED_ENTRY_GPA 0xf000UL	/* where a vcpu begins that is to run a guest of its own */
#define MAILBOX_GPA 0x10000UL	/* one page a vcpu */
#define STACK_TOP_GPA 0x20000UL /* one page a vcpu, growing down from here + (vcpu + 1) pages */
#define NESTED_TABLES_GPA 0x30000UL	/* of a guest inside the guest: its nested page tables, */
#define VMCB_GPA 0x40000UL	/* a control block and */
#define HOST_SAVE_GPA 0x50000UL /* a host save area, a page a vcpu each, and */
#define PERMISSIONS_GPA 0x60000UL /* what it may do by itself: two bitmaps of zeros */
#define LIST_GPA 0x100000UL	/* u64 a page: the answers of READ; LIST_BYTES a vcpu */
#define LEDGER_GPA 0x200000UL	/* u64 a page: what HAMMER last wrote; LIST_BYTES a vcpu */
#define LIST_BYTES 0x80000UL	/* so 65,536 pages at the most */

#define DONE_PORT 0xd0
#define LEFT_PORT 0xd1 /* the guest inside the guest was left, which nothing asks for */

enum op {
	OP_NONE = 0,
	OP_FILL = 1,	/* write the pattern of `seed` into each page, and start the ledger anew */
	OP_CHECK = 2,	/* compare each page with the pattern of `seed` */
	OP_READ = 3,	/* copy word `word` of each page to the list */
	OP_WRITE = 4,	/* store `seed` into word `word` of each page */
	OP_HAMMER = 5,	/* until `stop`: compare with the ledger, and write if `seed` is not 0 */
};

struct mailbox {
	u64 op;
	u64 gpa;	/* of page `first` */
	u64 first;	/* index of the first page, which the patterns depend on */
	u64 pages;
	u64 step;	/* FILL, CHECK: every step-th word of a page */
	u64 word;
	u64 seed;
	volatile u64 stop;
	/* written by the guest */
	volatile u64 current;	/* index of the page being touched: who faulted */
	volatile u64 done;	/* page visits since the operation began */
	volatile u64 rounds;	/* passes over all pages since the operation began */
	volatile u64 bad;	/* words that were not as expected */
	volatile u64 bad_page;	/* the first of them */
	volatile u64 bad_word;
	volatile u64 bad_expected;
	volatile u64 bad_seen;
};

/* Words 0 and 1 of a page belong to the ledgers of vcpu 0 and 1; the pattern has the others. */
#define FIRST_PATTERN_WORD 2UL

static inline u64 pattern(u64 seed, u64 page, u64 word)
{
	u64 x = seed + page * 0x9e3779b97f4a7c15UL + word * 0xd1b54a32d192ed03UL;

	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93UL;
	return x ^ (x >> 32);
}

#endif
