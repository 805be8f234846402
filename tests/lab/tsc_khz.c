// Prints how fast this machine's time-stamp counter counts, in kHz. The emulated host's counter is the same, and its kernel would measure it by the
// emulation's timers: while the machine is busy that is wrong now and then, once by a factor of sixteen, and every deadline in the host with it.
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
	uint64_t counter;
	int64_t nanoseconds;
};

// The clock between two readings of the counter that are next to each other: of many tries the one that was interrupted least.
static struct moment now(void) {
	struct moment best = {0};
	uint64_t narrowest = UINT64_MAX;
	for (int tries = 0; tries < 200; tries++) {
		struct timespec time;
		uint64_t before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC, &time);
		uint64_t apart = __rdtsc() - before;
		if (apart < narrowest) {
			narrowest = apart;
			best.counter = before + apart / 2;
			best.nanoseconds = time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
		}
	}
	return best;
}

int main(void) {
	struct moment first = now();
	nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
	struct moment last = now();
	double counted = (double)(last.counter - first.counter);
	printf("%.0f\n", counted * 1e6 / (double)(last.nanoseconds - first.nanoseconds));
	return 0;
}
