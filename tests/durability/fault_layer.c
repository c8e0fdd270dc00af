// Fault layer: a library to preload under a program, between it and one directory of files.
//
// It writes an ordered log of what the program does to the files below the directory and of what
// it sends on sockets, so that the directory can be made again as it would be after a loss of
// power at any moment. It can also refuse: while the control file is there, writes fail as its
// text says.
//
//   FAULT_LAYER_ROOT      the directory, absolute, without a slash at the end
//   FAULT_LAYER_LOG       the log; without it nothing is recorded
//   FAULT_LAYER_LIE       if set, syncs answer that all is well and do nothing
//   FAULT_LAYER_CONTROL   the control file: `full`, `read-only`, `write-error` or `sync-error`
//
// The order in the log is chosen so that nothing looks more durable than it is: a write is logged
// once it has returned, and a sync at both ends, for it covers what had returned before it began.
// A message on a socket is logged before it leaves.
//
// Memory maps are not seen. SQLite maps its WAL index only, which it makes anew after a crash.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    CREATED = 1,  // file, payload: path
    OPENED = 2,   // file, payload: path
    WRITTEN = 3,  // file, number: offset, payload: bytes
    RESIZED = 4,  // file, number: new size
    SYNC_BEGUN = 5,  // file, number: which sync
    SYNCED = 6,      // file, number: which sync
    RENAMED = 7,     // payload: old path, NUL, new path
    REMOVED = 8,     // payload: path
    MADE_DIR = 9,    // file, payload: path
    SENDING = 10,    // file: descriptor, payload: bytes
    SENT = 11,       // file: descriptor, number: how many bytes were taken
    LINKED = 12,     // payload: old path, NUL, new path
};

// What stands before each payload in the log; little-endian.
struct head {
    uint64_t file;
    uint64_t number;
    uint32_t bytes;
    uint32_t kind;
};

enum { MAX_FD = 1 << 16 };

static char root[PATH_MAX];
static size_t root_length;
static const char *control;
static int log_fd = -1;
static int lies;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t syncs;
// The inode of each descriptor that was opened below the root; 0 for all others.
static _Atomic uint64_t inodes[MAX_FD];

#define REAL(name)                                   \
    ({                                               \
        static __typeof__(&name) found;              \
        if (!found) found = real(#name);             \
        found;                                       \
    })

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "fault layer: no %s in this C library\n", name);
        abort();
    }
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("FAULT_LAYER_ROOT");
    const char *log = getenv("FAULT_LAYER_LOG");
    lies = getenv("FAULT_LAYER_LIE") != NULL;
    control = getenv("FAULT_LAYER_CONTROL");
    if (directory && strlen(directory) < sizeof root) {
        strcpy(root, directory);
        root_length = strlen(root);
    }
    if (log) {
        log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
                              0600);
        if (log_fd < 0) {
            perror("fault layer: FAULT_LAYER_LOG");
            abort();
        }
    }
}

// --- The log ---

static void record_parts(enum kind kind, uint64_t file, uint64_t number, const struct iovec *parts,
                         int count, size_t bytes) {
    if (log_fd < 0) return;
    int kept_errno = errno;
    struct head head = {file, number, (uint32_t)bytes, kind};
    pthread_mutex_lock(&log_lock);
    syscall(SYS_write, log_fd, &head, sizeof head);
    for (int i = 0; i < count && bytes; i++) {
        size_t length = parts[i].iov_len < bytes ? parts[i].iov_len : bytes;
        bytes -= length;
        const char *from = parts[i].iov_base;
        while (length) {
            long written = syscall(SYS_write, log_fd, from, length);
            if (written <= 0) {
                perror("fault layer: the log cannot be written");
                abort();
            }
            from += written;
            length -= (size_t)written;
        }
    }
    pthread_mutex_unlock(&log_lock);
    errno = kept_errno;
}

static void record(enum kind kind, uint64_t file, uint64_t number, const void *payload,
                   size_t bytes) {
    struct iovec part = {(void *)payload, bytes};
    record_parts(kind, file, number, &part, 1, bytes);
}

// --- Faults ---

enum change { EXTEND, OVERWRITE, SYNC, OTHER };

// The error that the control file asks for, or 0.
static int fault(enum change change) {
    if (!control) return 0;
    int kept_errno = errno;
    char word[32] = {0};
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    errno = kept_errno;
    if (fd < 0) return 0;
    syscall(SYS_read, fd, word, sizeof word - 1);
    syscall(SYS_close, fd);
    errno = kept_errno;
    // A full disk still takes what goes where something is already.
    if (!strcmp(word, "full")) return change == EXTEND ? ENOSPC : 0;
    if (!strcmp(word, "read-only")) return change == SYNC ? 0 : EROFS;
    if (!strcmp(word, "write-error")) return EIO;
    if (!strcmp(word, "sync-error")) return change == SYNC ? EIO : 0;
    return 0;
}

static int refused(enum change change) {
    int error = fault(change);
    if (error) errno = error;
    return error;
}

// --- Paths and descriptors ---

// Makes `path` absolute; whether it is below the root.
static int is_below(int dir, const char *path, char *absolute) {
    if (!root_length || !path) return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(absolute, path);
    } else {
        char link[64];
        char base[PATH_MAX];
        if (dir == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
        if (snprintf(absolute, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return !strncmp(absolute, root, root_length) &&
           (absolute[root_length] == 0 || absolute[root_length] == '/');
}

static uint64_t tracked(int fd) { return fd >= 0 && fd < MAX_FD ? inodes[fd] : 0; }

static int is_socket(int fd) {
    int kept_errno = errno;
    struct stat status;
    int is = log_fd >= 0 && !fstat(fd, &status) && S_ISSOCK(status.st_mode);
    errno = kept_errno;
    return is;
}

static uint64_t size_of(int fd) {
    struct stat status;
    return fstat(fd, &status) ? 0 : (uint64_t)status.st_size;
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    if (!is_below(dir, path, absolute)) return REAL(openat)(dir, path, flags, mode);
    int kept_errno = errno;
    int is_new = (flags & O_CREAT) && faccessat(dir, path, F_OK, 0) != 0;
    errno = kept_errno;
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    // A full or failing disk still has room for a name.
    if ((is_new || writes) && fault(OTHER) == EROFS) {
        errno = EROFS;
        return -1;
    }
    int fd = REAL(openat)(dir, path, flags, mode);
    struct stat status;
    if (fd >= 0 && fd < MAX_FD && !fstat(fd, &status)) {
        inodes[fd] = status.st_ino;
        record(is_new ? CREATED : OPENED, status.st_ino, 0, absolute, strlen(absolute));
        if (!is_new && (flags & O_TRUNC) && writes) record(RESIZED, status.st_ino, 0, "", 0);
    }
    return fd;
}

#define MODE_OF(flags)                   \
    mode_t mode = 0;                     \
    if ((flags) & O_CREAT) {             \
        va_list rest;                    \
        va_start(rest, flags);           \
        mode = (mode_t)va_arg(rest, int); \
        va_end(rest);                    \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int dir, const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(dir, path, flags | O_LARGEFILE, mode);
}

int creat(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd) {
    if (tracked(fd)) inodes[fd] = 0;
    return REAL(close)(fd);
}

// --- Writes ---

static ssize_t write_at(int fd, const void *bytes, size_t count, off64_t offset) {
    int error = fault((uint64_t)offset + count > size_of(fd) ? EXTEND : OVERWRITE);
    // A disk that fills up takes the beginning of what it is given.
    size_t taken = error == ENOSPC && count > 1 ? count / 2 : count;
    if (error && taken == count) {
        errno = error;
        return -1;
    }
    ssize_t written = REAL(pwrite64)(fd, bytes, taken, offset);
    if (written > 0) record(WRITTEN, tracked(fd), (uint64_t)offset, bytes, (size_t)written);
    return written;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    return tracked(fd) ? write_at(fd, bytes, count, offset)
                       : REAL(pwrite)(fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    return tracked(fd) ? write_at(fd, bytes, count, offset)
                       : REAL(pwrite64)(fd, bytes, count, offset);
}

static ssize_t send_parts(int fd, const struct iovec *parts, int count, ssize_t (*call)(void *),
                          void *arguments) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    record_parts(SENDING, (uint64_t)fd, 0, parts, count, bytes);
    ssize_t sent = call(arguments);
    record(SENT, (uint64_t)fd, sent > 0 ? (uint64_t)sent : 0, "", 0);
    return sent;
}

struct call {
    int fd;
    const void *bytes;
    size_t count;
    int flags;
};

static ssize_t call_write(void *of) {
    struct call *call = of;
    return REAL(write)(call->fd, call->bytes, call->count);
}

static ssize_t call_writev(void *of) {
    struct call *call = of;
    return REAL(writev)(call->fd, call->bytes, (int)call->count);
}

static ssize_t call_send(void *of) {
    struct call *call = of;
    return REAL(send)(call->fd, call->bytes, call->count, call->flags);
}

static ssize_t call_sendmsg(void *of) {
    struct call *call = of;
    return REAL(sendmsg)(call->fd, call->bytes, call->flags);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (tracked(fd)) {
        off64_t at = fcntl(fd, F_GETFL) & O_APPEND ? (off64_t)size_of(fd) : lseek64(fd, 0, SEEK_CUR);
        ssize_t written = write_at(fd, bytes, count, at);
        if (written > 0) lseek64(fd, at + written, SEEK_SET);
        return written;
    }
    struct call call = {fd, bytes, count, 0};
    struct iovec part = {(void *)bytes, count};
    return is_socket(fd) ? send_parts(fd, &part, 1, call_write, &call) : call_write(&call);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (tracked(fd)) {
        ssize_t total = 0;
        for (int i = 0; i < count; i++) {
            ssize_t written = write(fd, parts[i].iov_base, parts[i].iov_len);
            if (written < 0) return total ? total : -1;
            total += written;
            if ((size_t)written < parts[i].iov_len) break;
        }
        return total;
    }
    struct call call = {fd, parts, (size_t)count, 0};
    return is_socket(fd) ? send_parts(fd, parts, count, call_writev, &call) : call_writev(&call);
}

ssize_t send(int fd, const void *bytes, size_t count, int flags) {
    struct call call = {fd, bytes, count, flags};
    struct iovec part = {(void *)bytes, count};
    return send_parts(fd, &part, 1, call_send, &call);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    struct call call = {fd, message, 0, flags};
    return send_parts(fd, message->msg_iov, (int)message->msg_iovlen, call_sendmsg, &call);
}

static int resize(int fd, off64_t size) {
    if (!tracked(fd)) return REAL(ftruncate64)(fd, size);
    if (refused((uint64_t)size > size_of(fd) ? EXTEND : OTHER)) return -1;
    int failed = REAL(ftruncate64)(fd, size);
    if (!failed) record(RESIZED, tracked(fd), (uint64_t)size, "", 0);
    return failed;
}

int ftruncate(int fd, off_t size) { return resize(fd, size); }
int ftruncate64(int fd, off64_t size) { return resize(fd, size); }

static int allocate(int fd, off64_t offset, off64_t length) {
    int error = tracked(fd) ? fault(EXTEND) : 0;
    if (error) return error;
    error = REAL(posix_fallocate64)(fd, offset, length);
    if (!error && tracked(fd)) record(RESIZED, tracked(fd), size_of(fd), "", 0);
    return error;
}

int posix_fallocate(int fd, off_t offset, off_t length) { return allocate(fd, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    return allocate(fd, offset, length);
}

// --- Syncs ---

static int sync_file(int fd, int (*call)(int)) {
    uint64_t inode = tracked(fd);
    if (!inode) return call(fd);
    if (refused(SYNC)) return -1;
    if (lies) return 0;
    uint64_t number = ++syncs;
    record(SYNC_BEGUN, inode, number, "", 0);
    int failed = call(fd);
    if (!failed) record(SYNCED, inode, number, "", 0);
    return failed;
}

int fsync(int fd) { return sync_file(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_file(fd, REAL(fdatasync)); }

// --- Directory entries ---

// Does what gives a file another name, and records both names.
static int name_again(enum kind kind, int from_dir, const char *from, int to_dir, const char *to,
                      int (*call)(int, const char *, int, const char *)) {
    char paths[2 * PATH_MAX];
    char second[PATH_MAX];
    if (!is_below(from_dir, from, paths) || !is_below(to_dir, to, second))
        return call(from_dir, from, to_dir, to);
    if (refused(OTHER)) return -1;
    int failed = call(from_dir, from, to_dir, to);
    if (!failed) {
        size_t length = strlen(paths) + 1;
        strcpy(paths + length, second);
        record(kind, 0, 0, paths, length + strlen(second));
    }
    return failed;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return name_again(RENAMED, from_dir, from, to_dir, to, REAL(renameat));
}

int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

static int call_linkat(int from_dir, const char *from, int to_dir, const char *to) {
    return REAL(linkat)(from_dir, from, to_dir, to, 0);
}

// Follows no symbolic link; nothing here is one.
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    (void)flags;
    return name_again(LINKED, from_dir, from, to_dir, to, call_linkat);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

static int unlink_at(int dir, const char *path, int flags) {
    char absolute[PATH_MAX];
    if (!is_below(dir, path, absolute)) return REAL(unlinkat)(dir, path, flags);
    if (refused(OTHER)) return -1;
    int failed = REAL(unlinkat)(dir, path, flags);
    if (!failed) record(REMOVED, 0, 0, absolute, strlen(absolute));
    return failed;
}

int unlink(const char *path) { return unlink_at(AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) { return unlink_at(dir, path, flags); }
int rmdir(const char *path) { return unlink_at(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    char absolute[PATH_MAX];
    if (!is_below(AT_FDCWD, path, absolute)) return REAL(mkdir)(path, mode);
    if (refused(EXTEND)) return -1;
    int failed = REAL(mkdir)(path, mode);
    struct stat status;
    if (!failed && !stat(path, &status))
        record(MADE_DIR, status.st_ino, 0, absolute, strlen(absolute));
    return failed;
}
