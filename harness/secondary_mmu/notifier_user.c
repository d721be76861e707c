// SPDX-License-Identifier: GPL-2.0-only
/*
 * Users of the mmu notifiers that are not KVM, for the tests of the notifiers themselves. Built out
 * of tree against the kernel under test; uses what 5.10 and later have.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>

#include "notifier_user.h"

#define TLB_ENTRIES	4096
#define RECORDS		16384
#define MOST_PAGES	65536
#define PATIENCE	(10 * HZ)
#define LONGEST_STALL	(60 * HZ)

struct tlb_entry {
	unsigned long address;		/* 0: none */
	struct page *page;		/* without a reference */
	bool writable;
	bool young;
};

/* One secondary MMU. */
struct nu {
	/* Whoever attaches or detaches holds this; no callback does. */
	struct mutex control;
	struct mmu_notifier notifier;
	struct mmu_interval_notifier interval;
	/* The memory that it is or was attached to; a struct mm, not its users. */
	struct mm_struct *mm;
	u32 kind;
	u32 flags;
	bool registered;

	/* Of NU_REMOTE: held while ptes of others come or go. */
	struct mutex remote;
	struct address_space *mapping;

	/* For all below. */
	spinlock_t lock;
	bool live;			/* attached, and not released yet */
	u64 watch_start, watch_end;
	unsigned long sequence;
	wait_queue_head_t idle;
	struct nu_state state;
	struct nu_record *records;	/* a ring */
	unsigned int first, count;
	struct tlb_entry *tlb;

	struct completion let_go;
};

static atomic64_t numbers;

/* Records. */

static bool watched(struct nu *nu, unsigned long start, unsigned long end)
{
	return end > nu->watch_start && start < nu->watch_end;
}

static void record(struct nu *nu, u32 what, unsigned long start, unsigned long end, u32 event,
		   u32 flags)
{
	struct nu_record *new;

	lockdep_assert_held(&nu->lock);
	if (!watched(nu, start, end))
		return;
	if (nu->count == RECORDS) {
		nu->state.lost++;
		return;
	}
	new = &nu->records[(nu->first + nu->count++) % RECORDS];
	*new = (struct nu_record) {
		.number = atomic64_inc_return(&numbers),
		.start = start,
		.end = end,
		.what = what,
		.event = event,
		.flags = flags,
		.pid = task_pid_nr(current),
	};
}

/* For the callbacks of those who are sleepy. */
static void doze(void)
{
	usleep_range(50, 100);
}

static u32 blockable_flag(const struct mmu_notifier_range *range)
{
	return mmu_notifier_range_blockable(range) ? NU_BLOCKABLE : 0;
}

/* The TLB. */

static struct tlb_entry *tlb_slot(struct nu *nu, unsigned long address)
{
	return &nu->tlb[(address >> PAGE_SHIFT) % TLB_ENTRIES];
}

static void tlb_drop_entry(struct nu *nu, struct tlb_entry *entry)
{
	if (!entry->address)
		return;
	memset(entry, 0, sizeof(*entry));
	nu->state.entries--;
}

/* Drop a range; how many of its pages were free already, which nobody told of in time. */
static unsigned long tlb_drop(struct nu *nu, unsigned long start, unsigned long end)
{
	unsigned long late = 0;
	int i;

	lockdep_assert_held(&nu->lock);
	for (i = 0; i < TLB_ENTRIES && nu->state.entries; i++) {
		struct tlb_entry *entry = &nu->tlb[i];

		if (!entry->address || entry->address < start || entry->address >= end)
			continue;
		late += !page_count(entry->page);
		tlb_drop_entry(nu, entry);
	}
	nu->state.late += late;
	return late;
}

static int tlb_young(struct nu *nu, unsigned long start, unsigned long end, bool clear)
{
	int young = 0;
	int i;

	for (i = 0; i < TLB_ENTRIES && nu->state.entries; i++) {
		struct tlb_entry *entry = &nu->tlb[i];

		if (!entry->address || entry->address < start || entry->address >= end)
			continue;
		young |= entry->young;
		if (clear)
			entry->young = false;
	}
	return young;
}

/* The word at an address, through the TLB; -ENOENT on a miss. */
static int tlb_use(struct nu *nu, unsigned long address, bool write, unsigned long word, u64 *value)
{
	struct tlb_entry *entry = tlb_slot(nu, address);
	u64 *place;

	lockdep_assert_held(&nu->lock);
	if (entry->address != address || (write && !entry->writable))
		return -ENOENT;
	/* What is wrong already must not get worse by a look at it. */
	if (!page_count(entry->page)) {
		nu->state.stale++;
		return -ESTALE;
	}
	place = (u64 *)page_address(entry->page) + word;
	if (write)
		WRITE_ONCE(*place, *value);
	else
		*value = READ_ONCE(*place);
	entry->young = true;
	return 0;
}

static void tlb_fill(struct nu *nu, unsigned long address, struct page *page, bool write)
{
	struct tlb_entry *entry = tlb_slot(nu, address);

	lockdep_assert_held(&nu->lock);
	tlb_drop_entry(nu, entry);
	*entry = (struct tlb_entry) { .address = address, .page = page, .writable = write };
	nu->state.entries++;
}

/* Wait until nothing is under invalidation; the sequence number then. */
static int sequence_begin(struct nu *nu, unsigned long *sequence)
{
	long left = wait_event_interruptible_timeout(nu->idle,
						     !READ_ONCE(nu->state.in_progress), PATIENCE);

	if (left <= 0)
		return left ?: -ETIMEDOUT;
	spin_lock(&nu->lock);
	*sequence = nu->sequence;
	spin_unlock(&nu->lock);
	return 0;
}

static int access_page(struct nu *nu, unsigned long address, bool write, unsigned long word,
		       u64 *value)
{
	for (;;) {
		unsigned long sequence;
		struct page *page;
		int error;

		spin_lock(&nu->lock);
		error = nu->live ? tlb_use(nu, address, write, word, value) : -ESRCH;
		nu->state.hits += !error;
		spin_unlock(&nu->lock);
		if (error != -ENOENT)
			return error;

		error = sequence_begin(nu, &sequence);
		if (error)
			return error;
		if (get_user_pages_fast(address, 1, write ? FOLL_WRITE : 0, &page) != 1)
			return -EFAULT;
		/* The pte may be writable and clean. What we write later, no pte will tell of. */
		if (write)
			set_page_dirty_lock(page);

		spin_lock(&nu->lock);
		nu->state.misses++;
		error = -EAGAIN;
		if (!nu->live) {
			error = -ESRCH;
		} else if (nu->state.in_progress || nu->sequence != sequence) {
			nu->state.retries++;
		} else {
			tlb_fill(nu, address, page, write);
			error = tlb_use(nu, address, write, word, value);
		}
		spin_unlock(&nu->lock);
		put_page(page);
		if (error != -EAGAIN)
			return error;
		if (fatal_signal_pending(current))
			return -EINTR;
	}
}

/* Callbacks of NU_TLB and, without those for ranges, of NU_REFUSER. */

static struct nu *nu_of(struct mmu_notifier *notifier)
{
	return container_of(notifier, struct nu, notifier);
}

static void count_start(struct nu *nu)
{
	lockdep_assert_held(&nu->lock);
	nu->state.starts++;
	nu->state.after_release += !nu->live;
}

static int plain_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct nu *nu = nu_of(notifier);
	u32 flags = blockable_flag(range);

	if (flags && (nu->flags & NU_SLEEPY))
		doze();
	spin_lock(&nu->lock);
	count_start(nu);
	nu->state.in_progress++;
	nu->sequence++;
	if (tlb_drop(nu, range->start, range->end))
		flags |= NU_LATE;
	record(nu, NU_START, range->start, range->end, range->event, flags);
	spin_unlock(&nu->lock);
	return 0;
}

static void plain_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct nu *nu = nu_of(notifier);
	u32 flags = blockable_flag(range);

	if (flags && (nu->flags & NU_SLEEPY))
		doze();
	spin_lock(&nu->lock);
	nu->state.ends++;
	nu->sequence++;
	if (nu->state.in_progress)
		nu->state.in_progress--;
	else
		nu->state.ends_too_many++;
	record(nu, NU_END, range->start, range->end, range->event, flags);
	spin_unlock(&nu->lock);
	wake_up_all(&nu->idle);
}

static void plain_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct nu *nu = nu_of(notifier);

	spin_lock(&nu->lock);
	nu->state.releases++;
	nu->live = false;
	tlb_drop(nu, 0, ULONG_MAX);
	record(nu, NU_RELEASE, 0, ULONG_MAX, 0, NU_BLOCKABLE);
	spin_unlock(&nu->lock);
}

/* What these return differs between kernels. */
#define young_t typeof(((struct mmu_notifier_ops *)NULL)->test_young(NULL, NULL, 0))

static int look_for_young(struct mmu_notifier *notifier, unsigned long start, unsigned long end,
			  bool clear)
{
	struct nu *nu = nu_of(notifier);
	int young;

	spin_lock(&nu->lock);
	young = tlb_young(nu, start, end, clear);
	nu->state.asked += watched(nu, start, end);
	spin_unlock(&nu->lock);
	return young;
}

static young_t plain_clear_young(struct mmu_notifier *notifier, struct mm_struct *mm,
				 unsigned long start, unsigned long end)
{
	return look_for_young(notifier, start, end, true);
}

static young_t plain_test_young(struct mmu_notifier *notifier, struct mm_struct *mm,
				unsigned long address)
{
	return look_for_young(notifier, address, address + PAGE_SIZE, false);
}

static const struct mmu_notifier_ops tlb_ops = {
	.invalidate_range_start = plain_start,
	.invalidate_range_end = plain_end,
	.release = plain_release,
	.clear_flush_young = plain_clear_young,
	.clear_young = plain_clear_young,
	.test_young = plain_test_young,
};

static int refuser_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct nu *nu = nu_of(notifier);
	u32 flags = blockable_flag(range);

	if (flags && (nu->flags & NU_SLEEPY))
		doze();
	spin_lock(&nu->lock);
	count_start(nu);
	if (!flags) {
		nu->state.refusals++;
		flags = NU_REFUSED;
	}
	record(nu, NU_START, range->start, range->end, range->event, flags);
	spin_unlock(&nu->lock);
	return flags & NU_REFUSED ? -EAGAIN : 0;
}

static const struct mmu_notifier_ops refuser_ops = {
	.invalidate_range_start = refuser_start,
	.release = plain_release,
};

/* The callback of NU_REMOTE, and the ptes of others that it drops. */

static bool remote_may_proceed(struct nu *nu, bool blockable)
{
	if (blockable) {
		if (nu->flags & NU_SLEEPY)
			doze();
		mutex_lock(&nu->remote);
		return true;
	}
	if (!mutex_trylock(&nu->remote))
		return false;
	/* To drop ptes of others means to wait for their locks. */
	if (!READ_ONCE(nu->state.entries))
		return true;
	mutex_unlock(&nu->remote);
	return false;
}

static bool remote_invalidate(struct mmu_interval_notifier *interval,
			      const struct mmu_notifier_range *range, unsigned long sequence)
{
	struct nu *nu = container_of(interval, struct nu, interval);
	unsigned long start = max_t(u64, range->start, nu->watch_start);
	unsigned long end = min_t(u64, range->end, nu->watch_end);
	u32 flags = blockable_flag(range);
	bool released = range->event == MMU_NOTIFY_RELEASE;
	bool proceeds = remote_may_proceed(nu, flags);

	spin_lock(&nu->lock);
	count_start(nu);
	if (!proceeds) {
		nu->state.refusals++;
		flags |= NU_REFUSED;
	}
	if (released) {
		nu->state.releases++;
		nu->live = false;
	}
	record(nu, released ? NU_RELEASE : NU_START, start, end, range->event, flags);
	spin_unlock(&nu->lock);
	if (!proceeds)
		return false;

	mmu_interval_set_seq(interval, sequence);
	if (nu->state.entries && start < end) {
		unmap_mapping_range(nu->mapping, start, end - start, 1);
		if (start == nu->watch_start && end == nu->watch_end)
			WRITE_ONCE(nu->state.entries, 0);
	}
	mutex_unlock(&nu->remote);
	return true;
}

static const struct mmu_interval_notifier_ops remote_ops = {
	.invalidate = remote_invalidate,
};

/* A page of the attached memory, with a reference. */
static struct page *remote_page(struct nu *nu, unsigned long address, bool write)
{
	unsigned int flags = write ? FOLL_WRITE : 0;
	struct page *page = NULL;
	long got;

	if (!mmget_not_zero(nu->mm))
		return NULL;
	mmap_read_lock(nu->mm);
#ifdef GUP_REMOTE_TAKES_VMAS
	got = get_user_pages_remote(nu->mm, address, 1, flags, &page, NULL, NULL);
#else
	got = get_user_pages_remote(nu->mm, address, 1, flags, &page, NULL);
#endif
	mmap_read_unlock(nu->mm);
	mmput(nu->mm);
	if (got != 1)
		return NULL;
	if (write)
		set_page_dirty_lock(page);
	return page;
}

static vm_fault_t remote_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct nu *nu = vma->vm_private_data;
	vm_fault_t result = 0;

	while (!result) {
		unsigned long sequence = mmu_interval_read_begin(&nu->interval);
		struct page *page = remote_page(nu, vmf->pgoff << PAGE_SHIFT,
						vma->vm_flags & VM_WRITE);

		if (!page)
			return VM_FAULT_SIGBUS;
		mutex_lock(&nu->remote);
		if (!READ_ONCE(nu->live))
			result = VM_FAULT_SIGBUS;
		else if (!mmu_interval_read_retry(&nu->interval, sequence))
			result = vmf_insert_pfn(vma, vmf->address, page_to_pfn(page));
		spin_lock(&nu->lock);
		nu->state.misses++;
		nu->state.retries += !result;
		nu->state.entries += result == VM_FAULT_NOPAGE;
		spin_unlock(&nu->lock);
		mutex_unlock(&nu->remote);
		put_page(page);
		if (fatal_signal_pending(current))
			return VM_FAULT_SIGBUS;
	}
	return result;
}

static const struct vm_operations_struct remote_vm_ops = {
	.fault = remote_fault,
};

static int nu_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct nu *nu = file->private_data;
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;
	u64 size = vma->vm_end - vma->vm_start;
	unsigned long flags = VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY;

	/*
	 * Without nu->control, which those who attach hold when they take mmap_lock. Its own memory a
	 * process has already, and a fault would take the same mmap_lock twice.
	 */
	if (!READ_ONCE(nu->registered) || nu->kind != NU_REMOTE || nu->mm == current->mm ||
	    !(vma->vm_flags & VM_SHARED) || start < nu->watch_start ||
	    start + size > nu->watch_end)
		return -EINVAL;
#ifdef HAVE_VM_FLAGS_SET
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
	vma->vm_ops = &remote_vm_ops;
	vma->vm_private_data = nu;
	return 0;
}

/* Attaching and detaching. */

static void forget_mm(struct nu *nu)
{
	if (nu->mm)
		mmdrop(nu->mm);
	nu->mm = NULL;
}

static int do_register(struct nu *nu, const struct nu_attach *wanted)
{
	/* It stays pending until we return to user space. */
	if (wanted->flags & NU_SIGNALLED)
		send_sig(SIGUSR1, current, 0);
	if (wanted->kind == NU_REMOTE)
		return mmu_interval_notifier_insert(&nu->interval, current->mm, wanted->start,
						    wanted->size, &remote_ops);
	memset(&nu->notifier, 0, sizeof(nu->notifier));
	nu->notifier.ops = wanted->kind == NU_TLB ? &tlb_ops : &refuser_ops;
	return mmu_notifier_register(&nu->notifier, current->mm);
}

static void prepare(struct nu *nu, const struct nu_attach *wanted)
{
	nu->kind = wanted->kind;
	nu->flags = wanted->flags;
	mmgrab(current->mm);
	nu->mm = current->mm;
	spin_lock(&nu->lock);
	nu->watch_start = wanted->size ? wanted->start : 0;
	nu->watch_end = wanted->size ? wanted->start + wanted->size : U64_MAX;
	/* Who was detached in the middle of an invalidation never hears of its end. */
	nu->state.in_progress = 0;
	nu->live = true;
	spin_unlock(&nu->lock);
}

static int nu_attach(struct nu *nu, const struct nu_attach *wanted)
{
	int error;

	if (wanted->kind > NU_REMOTE || wanted->flags & ~(NU_SIGNALLED | NU_SLEEPY) ||
	    wanted->start + wanted->size < wanted->start ||
	    (wanted->kind == NU_REMOTE && !wanted->size))
		return -EINVAL;
	if (nu->registered)
		return -EBUSY;
	forget_mm(nu);
	/* The first callback may come before registration has returned. */
	prepare(nu, wanted);
	error = do_register(nu, wanted);
	spin_lock(&nu->lock);
	if (error)
		nu->live = false;
	else
		nu->state.attached++;
	spin_unlock(&nu->lock);
	if (error)
		forget_mm(nu);
	nu->registered = !error;
	return error;
}

static void detach_remote(struct nu *nu)
{
	mutex_lock(&nu->remote);
	spin_lock(&nu->lock);
	nu->live = false;
	nu->state.entries = 0;
	spin_unlock(&nu->lock);
	unmap_mapping_range(nu->mapping, nu->watch_start, nu->watch_end - nu->watch_start, 1);
	mutex_unlock(&nu->remote);
	mmu_interval_notifier_remove(&nu->interval);
}

/* The mm is kept: a fault of another process may be on its way to it. */
static int nu_detach(struct nu *nu)
{
	if (!nu->registered)
		return -EINVAL;
	if (nu->kind == NU_REMOTE)
		detach_remote(nu);
	else
		mmu_notifier_unregister(&nu->notifier, nu->mm);
	nu->registered = false;
	return 0;
}

/* The device. */

static long nu_access(struct nu *nu, struct nu_access *wanted)
{
	u64 __user *user = u64_to_user_ptr(wanted->words);
	size_t size = wanted->count * sizeof(u64);
	u64 *words;
	int error = 0;

	if (!wanted->count || wanted->count > MOST_PAGES || wanted->address & ~PAGE_MASK ||
	    wanted->word >= PAGE_SIZE / sizeof(u64) || nu->kind != NU_TLB ||
	    READ_ONCE(nu->mm) != current->mm)
		return -EINVAL;
	words = vmalloc(size);
	if (!words)
		return -ENOMEM;
	if (copy_from_user(words, user, size)) {
		vfree(words);
		return -EFAULT;
	}
	for (wanted->done = 0; wanted->done < wanted->count; wanted->done++) {
		error = access_page(nu, wanted->address + wanted->done * PAGE_SIZE, wanted->write,
				    wanted->word, &words[wanted->done]);
		if (error)
			break;
		cond_resched();
	}
	if (copy_to_user(user, words, size) && !error)
		error = -EFAULT;
	vfree(words);
	return error;
}

static long nu_access_from_user(struct nu *nu, struct nu_access __user *user)
{
	struct nu_access wanted;
	long error;

	if (copy_from_user(&wanted, user, sizeof(wanted)))
		return -EFAULT;
	wanted.done = 0;
	error = nu_access(nu, &wanted);
	if (copy_to_user(user, &wanted, sizeof(wanted)))
		return -EFAULT;
	return error;
}

static long nu_attach_from_user(struct nu *nu, void __user *user)
{
	struct nu_attach wanted;
	long error;

	if (copy_from_user(&wanted, user, sizeof(wanted)))
		return -EFAULT;
	mutex_lock(&nu->control);
	error = nu_attach(nu, &wanted);
	mutex_unlock(&nu->control);
	return error;
}

static long nu_state_to_user(struct nu *nu, void __user *user)
{
	struct nu_state state;

	spin_lock(&nu->lock);
	state = nu->state;
	spin_unlock(&nu->lock);
	return copy_to_user(user, &state, sizeof(state)) ? -EFAULT : 0;
}

static void nu_stall(struct nu *nu)
{
	spin_lock(&nu->lock);
	nu->state.stalled++;
	spin_unlock(&nu->lock);
	wait_for_completion_timeout(&nu->let_go, LONGEST_STALL);
	spin_lock(&nu->lock);
	nu->state.stalled--;
	spin_unlock(&nu->lock);
}

static long nu_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct nu *nu = file->private_data;
	void __user *user = (void __user *)argument;
	long error;

	switch (command) {
	case NU_ATTACH:
		return nu_attach_from_user(nu, user);
	case NU_DETACH:
		mutex_lock(&nu->control);
		error = nu_detach(nu);
		mutex_unlock(&nu->control);
		return error;
	case NU_ACCESS:
		return nu_access_from_user(nu, user);
	case NU_STATE:
		return nu_state_to_user(nu, user);
	case NU_STALL:
		nu_stall(nu);
		return 0;
	case NU_LET_GO:
		complete_all(&nu->let_go);
		return 0;
	}
	return -ENOTTY;
}

static ssize_t nu_read(struct file *file, char __user *user, size_t size, loff_t *offset)
{
	struct nu *nu = file->private_data;
	size_t room = size / sizeof(struct nu_record);
	size_t done;

	for (done = 0; done < room; done++) {
		struct nu_record oldest;

		spin_lock(&nu->lock);
		if (!nu->count) {
			spin_unlock(&nu->lock);
			break;
		}
		oldest = nu->records[nu->first];
		nu->first = (nu->first + 1) % RECORDS;
		nu->count--;
		spin_unlock(&nu->lock);
		if (copy_to_user(user + done * sizeof(oldest), &oldest, sizeof(oldest)))
			return -EFAULT;
	}
	return done * sizeof(struct nu_record);
}

static int nu_open(struct inode *inode, struct file *file)
{
	struct nu *nu = kzalloc(sizeof(*nu), GFP_KERNEL);

	if (!nu)
		return -ENOMEM;
	nu->records = vmalloc(RECORDS * sizeof(*nu->records));
	nu->tlb = vzalloc(TLB_ENTRIES * sizeof(*nu->tlb));
	if (!nu->records || !nu->tlb) {
		vfree(nu->records);
		vfree(nu->tlb);
		kfree(nu);
		return -ENOMEM;
	}
	mutex_init(&nu->control);
	mutex_init(&nu->remote);
	spin_lock_init(&nu->lock);
	init_waitqueue_head(&nu->idle);
	init_completion(&nu->let_go);
	nu->mapping = file->f_mapping;
	file->private_data = nu;
	return 0;
}

/* Nobody has the file any more, so nobody maps it or calls us. */
static int nu_close(struct inode *inode, struct file *file)
{
	struct nu *nu = file->private_data;

	nu_detach(nu);
	forget_mm(nu);
	vfree(nu->records);
	vfree(nu->tlb);
	kfree(nu);
	return 0;
}

static const struct file_operations nu_operations = {
	.owner = THIS_MODULE,
	.open = nu_open,
	.release = nu_close,
	.read = nu_read,
	.mmap = nu_mmap,
	.unlocked_ioctl = nu_ioctl,
};

static struct miscdevice nu_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "notifier_user",
	.fops = &nu_operations,
	.mode = 0600,
};

module_misc_device(nu_device);

MODULE_DESCRIPTION("Secondary MMUs in software, for tests of the mmu notifiers");
MODULE_LICENSE("GPL");
