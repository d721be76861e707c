/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The workload of a Linux guest: memory that is written, read again and compared, without end. The
 * memory is anonymous, or that of a file, as the one through which a PCI device shows its memory.
 *
 *   workload MIB SEED ORDERS ANSWERS WORDS [FILE]
 *
 * Each pass compares every word of every page with what the pass before wrote, and writes what
 * depends on the seed, the page, the word and the pass. Twice a second a line with WORDS and the
 * counters as JSON goes to standard output: the beat. It is printed by the loop that touches the
 * memory, so a guest that cannot get at its memory has none.
 *
 * Orders come as lines through the fifo ORDERS; each is answered with the counters, through the
 * fifo ANSWERS, once it was carried out:
 *
 *   run      compare and write
 *   read     only compare
 *   idle     leave the memory alone
 *   check    compare every word once more, then go on as before
 *   fill N   write all pages anew with the seed N, then go on as before
 */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / sizeof(uint64_t))
#define STEP 0x9e3779b97f4a7c15ULL
#define BEAT_SECONDS 0.5
/* Looking for orders and at the clock is cheap, but not free. */
#define CHUNK 16UL

enum mode { IDLE, READ, RUN };

static uint64_t *memory;
static unsigned long pages;
static uint64_t seed;
static enum mode mode = RUN;

/* Pages below the cursor were written in this pass, the others in the one before. */
static uint64_t pass = 1;
static unsigned long cursor;
static unsigned long reader;

static uint64_t verified, errors, bad_page, bad_word, bad_expected, bad_seen;
static const char *words;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void print_counters(FILE *stream)
{
	fprintf(stream,
		"{\"up\": %.3f, \"passes\": %llu, \"pages\": %lu, \"verified\": %llu, "
		"\"errors\": %llu, \"page\": %llu, \"word\": %llu, \"expected\": %llu, "
		"\"seen\": %llu}\n",
		now(), (unsigned long long)pass - 1, pages, (unsigned long long)verified,
		(unsigned long long)errors, (unsigned long long)bad_page,
		(unsigned long long)bad_word, (unsigned long long)bad_expected,
		(unsigned long long)bad_seen);
	fflush(stream);
}

static uint64_t first_word(unsigned long page, uint64_t in_pass)
{
	uint64_t value = (seed << 40) ^ (page << 16) ^ in_pass;

	value ^= value >> 31;
	value *= 0xbf58476d1ce4e5b9ULL;
	return value ^ (value >> 29);
}

static uint64_t written_in(unsigned long page)
{
	return page < cursor ? pass : pass - 1;
}

static void write_page(unsigned long page, uint64_t in_pass)
{
	uint64_t value = first_word(page, in_pass);
	uint64_t *word = memory + page * WORDS;

	for (unsigned long i = 0; i < WORDS; i++, value += STEP)
		word[i] = value;
}

static void compare_page(unsigned long page, uint64_t in_pass)
{
	uint64_t value = first_word(page, in_pass);
	/* Read what is in memory, not what the compiler remembers. */
	volatile uint64_t *word = memory + page * WORDS;

	for (unsigned long i = 0; i < WORDS; i++, value += STEP) {
		uint64_t seen = word[i];

		if (seen == value)
			continue;
		if (!errors++) {
			bad_page = page;
			bad_word = i;
			bad_expected = value;
			bad_seen = seen;
		}
	}
	verified += PAGE;
}

static void beat(bool at_once)
{
	static double last;

	if (!at_once && now() - last < BEAT_SECONDS)
		return;
	printf("%s ", words);
	print_counters(stdout);
	last = now();
}

static void fill(uint64_t with)
{
	seed = with;
	pass = 1;
	cursor = 0;
	for (unsigned long page = 0; page < pages; page++) {
		write_page(page, 0);
		if (page % CHUNK == 0)
			beat(false);
	}
}

static void check(void)
{
	for (unsigned long page = 0; page < pages; page++) {
		compare_page(page, written_in(page));
		if (page % CHUNK == 0)
			beat(false);
	}
}

static void carry_out(const char *order)
{
	if (!strcmp(order, "run"))
		mode = RUN;
	else if (!strcmp(order, "read"))
		mode = READ;
	else if (!strcmp(order, "idle"))
		mode = IDLE;
	else if (!strcmp(order, "check"))
		check();
	else if (!strncmp(order, "fill ", 5))
		fill(strtoull(order + 5, NULL, 0));
	else
		fprintf(stderr, "workload: unknown order %s\n", order);
}

static void obey(int orders, const char *answers)
{
	char order[64];
	ssize_t length = read(orders, order, sizeof(order) - 1);
	FILE *stream;
	int fd;

	if (length <= 0)
		return;
	order[length] = 0;
	order[strcspn(order, "\n")] = 0;
	carry_out(order);
	/* Whoever asked is reading already, or has gone and will not be waited for. */
	fd = open(answers, O_WRONLY | O_NONBLOCK);
	stream = fd < 0 ? NULL : fdopen(fd, "w");
	if (!stream)
		return;
	print_counters(stream);
	fclose(stream);
}

static void read_on(void)
{
	for (unsigned long i = 0; i < CHUNK; i++, reader = (reader + 1) % pages)
		compare_page(reader, written_in(reader));
}

static void run_on(void)
{
	for (unsigned long i = 0; i < CHUNK; i++) {
		compare_page(cursor, pass - 1);
		write_page(cursor, pass);
		if (++cursor == pages) {
			cursor = 0;
			pass++;
		}
	}
}

int main(int count, char **arguments)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	int orders, file = -1;

	if (count != 6 && count != 7)
		return 2;
	if (count == 7) {
		file = open(arguments[6], O_RDWR);
		flags = MAP_SHARED;
	}
	pages = strtoul(arguments[1], NULL, 0) << 8;
	words = arguments[5];
	/* Both ends, so that there is no end of file between two orders. */
	orders = open(arguments[3], O_RDWR | O_NONBLOCK);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, file, 0);
	if (orders < 0 || memory == MAP_FAILED || !pages) {
		perror("workload");
		return 1;
	}
	fill(strtoull(arguments[2], NULL, 0));
	beat(true);
	for (;;) {
		obey(orders, arguments[4]);
		beat(false);
		if (mode == RUN)
			run_on();
		else if (mode == READ)
			read_on();
		else
			usleep(20000);
	}
}
