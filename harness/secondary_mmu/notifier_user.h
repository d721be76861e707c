/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What /dev/notifier_user and user space agree on; harness/probe/device.py has the same.
 *
 * Each open of the device is one secondary MMU. NU_ATTACH says of which kind it is and attaches it
 * to the memory of the caller, NU_DETACH takes it off again, and so does the last close. read(2)
 * takes the oldest records of its callbacks.
 */
#ifndef NOTIFIER_USER_H
#define NOTIFIER_USER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * NU_TLB has a TLB and no page tables, as the GRU has: each miss faults the page in, takes it into
 * the TLB and drops the reference at once. What is under invalidation is kept out of it as KVM does
 * it, by a count and a sequence number.
 *
 * NU_REFUSER only has a range_start, which refuses what must not sleep. Who refuses cannot have a
 * range_end, because it would not know whether it had a range_start.
 *
 * NU_REMOTE lets other processes map the memory of the caller, as XPMEM does: mmap(2) the device at
 * the offset that is the address in the caller's memory. It has an interval notifier, whose callback
 * sleeps on a mutex and on what it takes to drop ptes of others.
 */
#define NU_TLB		0
#define NU_REFUSER	1
#define NU_REMOTE	2

/* Register with a signal (SIGUSR1) pending, as when one came just before. */
#define NU_SIGNALLED	1
/* Sleep for a moment in each callback that may. */
#define NU_SLEEPY	2

/* Callbacks that touch [start, start + size) are recorded; all of them if the size is 0. */
struct nu_attach {
	__u32 kind;
	__u32 flags;
	__u64 start;
	__u64 size;
};

/*
 * Read or write the same word of several pages in a row through the TLB. "words" is the address of
 * an array of as many values; "done" says how many pages it was before the first error.
 */
struct nu_access {
	__u64 address;
	__u64 words;
	__u32 count;
	__u32 word;
	__u32 write;
	__u32 done;
};

#define NU_START	1
#define NU_END		2
#define NU_RELEASE	3

#define NU_BLOCKABLE	1
/* The callback refused, because it must not sleep. */
#define NU_REFUSED	2
/* A page of the range that was in the TLB was free already. */
#define NU_LATE		4

/* "number" is of one sequence for all secondary MMUs; "event" is the kernel's, from 5.0 on. */
struct nu_record {
	__u64 number;
	__u64 start;
	__u64 end;
	__u32 what;
	__u32 event;
	__u32 flags;
	__s32 pid;
};

struct nu_state {
	__u64 attached;		/* how often it was attached with success */
	__u64 starts;
	__u64 ends;
	__u64 releases;
	__u64 in_progress;	/* starts without an end since it was attached last */
	__u64 ends_too_many;	/* ends without a start */
	__u64 after_release;	/* calls between a release and the next attach */
	__u64 refusals;
	__u64 late;		/* pages that were free before the start told of them */
	__u64 stale;		/* TLB entries of free pages that an access met */
	__u64 hits;
	__u64 misses;
	__u64 retries;		/* pages not taken because they were invalidated meanwhile */
	__u64 entries;		/* in the TLB now; of NU_REMOTE, at most so many are mapped */
	__u64 lost;		/* records for which there was no room */
	__u64 stalled;		/* threads in NU_STALL now */
	__u64 asked;		/* how often it was asked whether pages are young */
};

#define NU_ATTACH	_IOW('N', 0xe0, struct nu_attach)
#define NU_DETACH	_IO('N', 0xe1)
#define NU_ACCESS	_IOWR('N', 0xe2, struct nu_access)
#define NU_STATE	_IOR('N', 0xe3, struct nu_state)
/* Sleep, so that not even SIGKILL wakes the caller, until NU_LET_GO; a minute at most. */
#define NU_STALL	_IO('N', 0xe4)
#define NU_LET_GO	_IO('N', 0xe5)

#endif
