/* Loaded into a MetaServer in front of the C library: shifts the clock that it sees, and makes its
   flushes slow. Both amounts are read, at each call, from a file that the test writes. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds: added to the clock, and waited before each flush. */
static volatile const int64_t *amounts;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MINFS_FAULTS_PRELOAD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, 2 * sizeof *amounts, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) amounts = mapped;
    close(file);
}

static int64_t shift(void) { return amounts ? amounts[0] : 0; }

static void wait_before_flush(void) {
    int64_t wait = amounts ? amounts[1] : 0;
    struct timespec time = {wait / 1000, wait % 1000 * 1000000};
    if (wait > 0) nanosleep(&time, NULL);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t shifted = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + shift() * 1000000;
        time->tv_sec = shifted / 1000000000;
        time->tv_nsec = shifted % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(time, zone);
    if (result == 0) {
        int64_t shifted = (int64_t)time->tv_sec * 1000000 + time->tv_usec + shift() * 1000;
        time->tv_sec = shifted / 1000000;
        time->tv_usec = shifted % 1000000;
    }
    return result;
}

#define SLOW(name, parameters, arguments)                                   \
    int name parameters {                                                   \
        static int(*real) parameters;                                       \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);       \
        wait_before_flush();                                                \
        return real arguments;                                              \
    }

SLOW(fsync, (int file), (file))
SLOW(fdatasync, (int file), (file))
SLOW(msync, (void *at, size_t length, int flags), (at, length, flags))
SLOW(sync_file_range, (int file, off64_t from, off64_t length, unsigned flags), (file, from, length, flags))
