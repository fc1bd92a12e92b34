/* Loaded into a MetaServer in front of the C library. It shifts the clock that the process sees and makes
   its flushes slow; it tells the test, in a journal, what happens to the files of the data directory, so
   that the test knows what would survive the loss of power; and it ends the process before any of these
   calls that the test chooses: the power goes out.

   Every call that changes the data directory goes through one lock and is written down before the next
   can begin, so that the journal is what happened, whenever the process is ended from in here. A flush is
   written down and not done: the machine under the test does not lose its power. The database's pages are
   not written down, only that there were some: by design none of them need survive. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What the test orders, in a file that both have mapped: milliseconds that are added to the clock,
   milliseconds that a flush takes, and how many more calls there are until the power goes out, 0: it
   does not. */
static volatile int64_t *orders;

/* Where what happened is written down, the data directory, and what the process takes for the boot id. */
static int journal = -1;
static const char *root;
static char boot_id[PATH_MAX];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MINFS_FAULTS_PRELOAD");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, 3 * sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return;
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.journal", path);
    snprintf(boot_id, sizeof boot_id, "%s.boot", path);
    orders = mapped;
    root = getenv("MINFS_FAULTS_DATA");
    if (root) journal = open(name, O_WRONLY | O_APPEND | O_CLOEXEC);
}

/* --- the clock --- */

static int64_t shift(void) { return orders ? orders[0] : 0; }

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

/* --- the journal --- */

/* tests/faults/disk.rs reads these. */
enum kind { NAMED = 1, UNNAMED, RENAMED, WRITTEN, RESIZED, FLUSHED };
enum what { NEW_FILE = 1, NEW_DIRECTORY, SAME_FILE };

struct record {
    uint32_t length; /* Of all of it. */
    uint8_t kind;
    uint8_t what;
    uint16_t name_length; /* The name follows, and then the data: bytes, or a new name. */
    uint64_t directory;   /* Directories and files are called by their inode numbers. */
    uint64_t file;
    uint64_t at; /* An offset, a length, or another directory. */
};

static void write_down(struct record head, const char *name, const struct iovec *data, int count, size_t bytes) {
    struct iovec all[2 + IOV_MAX];
    head.name_length = name ? strlen(name) : 0;
    head.length = sizeof head + head.name_length + bytes;
    all[0] = (struct iovec){&head, sizeof head};
    all[1] = (struct iovec){(char *)name, head.name_length};
    int n = 2;
    for (size_t left = bytes; count > 0 && left > 0; count--, data++, n++) {
        all[n] = *data;
        if (all[n].iov_len > left) all[n].iov_len = left;
        left -= all[n].iov_len;
    }
    struct iovec *next = all;
    for (size_t left = head.length; left > 0;) {
        ssize_t done = syscall(SYS_writev, journal, next, n < IOV_MAX ? n : IOV_MAX);
        if (done <= 0) abort();
        left -= done;
        for (; n > 0 && (size_t)done >= next->iov_len; next++, n--) done -= next->iov_len;
        if (n > 0) next->iov_base = (char *)next->iov_base + done, next->iov_len -= done;
    }
}

/* Pages of the database: see above. */
static int is_database(const char *path) { return strstr(path, "/lmdb/generation-") != NULL; }

/* The beginning of every call that changes something; whoever calls it gives the lock back. */
static void enter(int counts) {
    pthread_mutex_lock(&lock);
    if (counts && orders[2] > 0 && --orders[2] == 0) {
        kill(getpid(), SIGKILL);
        pause();
    }
}

static void leave(void) { pthread_mutex_unlock(&lock); }

/* The path of an open file or directory, if it is the data directory or in it. */
static int is_below_root(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(root);
    return strncmp(path, root, prefix) == 0 && (path[prefix] == 0 || path[prefix] == '/');
}

/* --- what is in files --- */

enum tracked { NO, YES, DATABASE };

static enum tracked tracked(int file) {
    char path[PATH_MAX];
    struct stat64 stat;
    if (journal < 0 || fstat64(file, &stat) != 0) return NO;
    if ((!S_ISREG(stat.st_mode) && !S_ISDIR(stat.st_mode)) || !is_below_root(file, path)) return NO;
    return is_database(path) ? DATABASE : YES;
}

/* At an offset, or at -1: where the file stands. */
static ssize_t put(enum tracked how, int file, const struct iovec *data, int count, off64_t at) {
    enter(how == YES);
    struct stat64 stat;
    off64_t offset = at;
    fstat64(file, &stat);
    if (at < 0) offset = fcntl(file, F_GETFL) & O_APPEND ? stat.st_size : lseek64(file, 0, SEEK_CUR);
    ssize_t done = at < 0 ? syscall(SYS_writev, file, data, count) : syscall(SYS_pwritev, file, data, count, at, 0);
    if (done > 0) {
        struct record head = {.kind = WRITTEN, .file = stat.st_ino, .at = offset};
        write_down(head, NULL, data, count, how == YES ? done : 0);
    }
    leave();
    return done;
}

ssize_t write(int file, const void *data, size_t length) {
    struct iovec one = {(void *)data, length};
    enum tracked how = tracked(file);
    return how ? put(how, file, &one, 1, -1) : syscall(SYS_write, file, data, length);
}

ssize_t writev(int file, const struct iovec *data, int count) {
    enum tracked how = tracked(file);
    return how ? put(how, file, data, count, -1) : syscall(SYS_writev, file, data, count);
}

ssize_t pwrite64(int file, const void *data, size_t length, off64_t at) {
    struct iovec one = {(void *)data, length};
    enum tracked how = tracked(file);
    return how ? put(how, file, &one, 1, at) : syscall(SYS_pwrite64, file, data, length, at);
}

ssize_t pwritev64(int file, const struct iovec *data, int count, off64_t at) {
    enum tracked how = tracked(file);
    return how ? put(how, file, data, count, at) : syscall(SYS_pwritev, file, data, count, at, 0);
}

int ftruncate64(int file, off64_t length) {
    enum tracked how = tracked(file);
    if (!how) return syscall(SYS_ftruncate, file, length);
    enter(how == YES);
    struct stat64 stat;
    int result = syscall(SYS_ftruncate, file, length);
    if (result == 0 && fstat64(file, &stat) == 0) {
        struct record head = {.kind = RESIZED, .file = stat.st_ino, .at = length};
        write_down(head, NULL, NULL, 0, 0);
    }
    leave();
    return result;
}

ssize_t pwrite(int file, const void *data, size_t length, off_t at) { return pwrite64(file, data, length, at); }
ssize_t pwritev(int file, const struct iovec *data, int count, off_t at) { return pwritev64(file, data, count, at); }
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

static int flush(long call, int file) {
    int64_t wait = orders ? orders[1] : 0;
    struct timespec time = {wait / 1000, wait % 1000 * 1000000};
    if (wait > 0) nanosleep(&time, NULL);
    enum tracked how = tracked(file);
    if (!how) return syscall(call, file);
    enter(how == YES);
    struct stat64 stat;
    int result = fstat64(file, &stat);
    struct record head = {.kind = FLUSHED, .file = stat.st_ino};
    if (result == 0) write_down(head, NULL, NULL, 0, 0);
    leave();
    return result;
}

int fsync(int file) { return flush(SYS_fsync, file); }
int fdatasync(int file) { return flush(SYS_fdatasync, file); }

/* --- names --- */

/* The last part of a path, and the directory that it is in; open until the call is over. */
struct place {
    int directory;
    uint64_t inode;
    int in_database;
    char name[NAME_MAX + 1];
};

static int find(int from, const char *path, struct place *place) {
    char parent[PATH_MAX];
    struct stat64 stat;
    if (journal < 0 || strlen(path) >= sizeof parent) return 0;
    strcpy(parent, path);
    size_t end = strlen(parent);
    while (end > 1 && parent[end - 1] == '/') parent[--end] = 0;
    char *slash = strrchr(parent, '/');
    const char *name = slash ? slash + 1 : parent;
    if (*name == 0 || strlen(name) > NAME_MAX) return 0;
    strcpy(place->name, name);
    const char *in = !slash ? "." : slash == parent ? "/" : (*slash = 0, parent);
    place->directory = syscall(SYS_openat, from, in, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (place->directory < 0) return 0;
    if (!is_below_root(place->directory, parent) || fstat64(place->directory, &stat) != 0) {
        close(place->directory);
        return 0;
    }
    place->inode = stat.st_ino;
    place->in_database = is_database(parent);
    return 1;
}

static void named(const struct place *place, enum what what) {
    struct stat64 stat;
    if (fstatat64(place->directory, place->name, &stat, AT_SYMLINK_NOFOLLOW) != 0) return;
    struct record head = {.kind = NAMED, .what = what, .directory = place->inode, .file = stat.st_ino};
    write_down(head, place->name, NULL, 0, 0);
}

static int open_file(int from, const char *path, int flags, mode_t mode) {
    struct place place;
    if (orders && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0) path = boot_id;
    if (!(flags & (O_CREAT | O_TRUNC)) || !find(from, path, &place))
        return syscall(SYS_openat, from, path, flags, mode);
    enter(!place.in_database);
    struct stat64 before, after;
    int existed = fstatat64(place.directory, place.name, &before, AT_SYMLINK_NOFOLLOW) == 0;
    int file = syscall(SYS_openat, place.directory, place.name, flags, mode);
    if (file >= 0 && !existed) {
        named(&place, NEW_FILE);
    } else if (file >= 0 && (flags & O_TRUNC) && fstat64(file, &after) == 0) {
        struct record head = {.kind = RESIZED, .file = after.st_ino};
        write_down(head, NULL, NULL, 0, 0);
    }
    leave();
    close(place.directory);
    return file;
}

#define MODE(flags)                                \
    mode_t mode = 0;                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {         \
        va_list more;                              \
        va_start(more, flags);                     \
        mode = va_arg(more, mode_t);               \
        va_end(more);                              \
    }

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return open_file(AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    MODE(flags)
    return open_file(AT_FDCWD, path, flags, mode);
}

int openat64(int from, const char *path, int flags, ...) {
    MODE(flags)
    return open_file(from, path, flags, mode);
}

int openat(int from, const char *path, int flags, ...) {
    MODE(flags)
    return open_file(from, path, flags, mode);
}

int mkdirat(int from, const char *path, mode_t mode) {
    struct place place;
    if (!find(from, path, &place)) return syscall(SYS_mkdirat, from, path, mode);
    enter(!place.in_database);
    int result = syscall(SYS_mkdirat, place.directory, place.name, mode);
    if (result == 0) named(&place, NEW_DIRECTORY);
    leave();
    close(place.directory);
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int from, const char *path, int flags) {
    struct place place;
    if (!find(from, path, &place)) return syscall(SYS_unlinkat, from, path, flags);
    enter(!place.in_database);
    int result = syscall(SYS_unlinkat, place.directory, place.name, flags);
    struct record head = {.kind = UNNAMED, .directory = place.inode};
    if (result == 0) write_down(head, place.name, NULL, 0, 0);
    leave();
    close(place.directory);
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    struct place was, is;
    if (!find(from, old, &was)) return syscall(SYS_renameat2, from, old, to, new, flags);
    /* Into or out of the data directory: nobody does, and the test would notice. */
    if (!find(to, new, &is)) abort();
    enter(!is.in_database);
    int result = syscall(SYS_renameat2, was.directory, was.name, is.directory, is.name, flags);
    struct iovec name = {is.name, strlen(is.name)};
    struct record head = {.kind = RENAMED, .directory = was.inode, .at = is.inode};
    if (result == 0) write_down(head, was.name, &name, 1, name.iov_len);
    leave();
    close(was.directory);
    close(is.directory);
    return result;
}

int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    struct place place;
    if (!find(to, new, &place)) return syscall(SYS_linkat, from, old, to, new, flags);
    enter(!place.in_database);
    int result = syscall(SYS_linkat, from, old, place.directory, place.name, flags);
    if (result == 0) named(&place, SAME_FILE);
    leave();
    close(place.directory);
    return result;
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
