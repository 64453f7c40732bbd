// Preloaded, it makes calls fail that open, write, flush or rename files in a folder.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kFiles = 65536 };

static char folder[4096];
static char ours[kFiles];  // whether a descriptor is of a file in the folder
static long first, last, calls;
static int reason;

// From now on, calls number `from` to `to` fail with the error `number`; 0 to 0: none.
void faults_arm(const char* in, long from, long to, int number) {
  snprintf(folder, sizeof folder, "%s", in);
  first = from;
  last = to;
  reason = number;
  calls = 0;
}

// The calls since then.
long faults_calls(void) { return calls; }

static int inside(const char* path) {
  return folder[0] && strncmp(path, folder, strlen(folder)) == 0;
}

static int fails(int counts) {
  if (!counts) return 0;
  ++calls;
  if (calls < first || calls > last) return 0;
  errno = reason;
  return 1;
}

static int of_ours(int file) { return file >= 0 && file < kFiles && ours[file]; }

static int opened(int file, const char* path) {
  if (file >= 0 && file < kFiles) ours[file] = (char)inside(path);
  return file;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                         \
  int name(const char* path, int flags, ...) {                             \
    va_list rest;                                                          \
    va_start(rest, flags);                                                 \
    const mode_t mode = va_arg(rest, mode_t);                              \
    va_end(rest);                                                          \
    if (fails((flags & O_ACCMODE) != O_RDONLY && inside(path))) return -1; \
    return opened(NEXT(name)(path, flags, mode), path);                    \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                       \
  int name(int at, const char* path, int flags, ...) {                     \
    va_list rest;                                                          \
    va_start(rest, flags);                                                 \
    const mode_t mode = va_arg(rest, mode_t);                              \
    va_end(rest);                                                          \
    if (fails((flags & O_ACCMODE) != O_RDONLY && inside(path))) return -1; \
    return opened(NEXT(name)(at, path, flags, mode), path);                \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                         \
  FILE* name(const char* path, const char* mode) {          \
    if (fails(mode[0] != 'r' && inside(path))) return NULL; \
    return NEXT(name)(path, mode);                          \
  }
FOPEN(fopen)
FOPEN(fopen64)

int close(int file) {
  if (of_ours(file)) ours[file] = 0;
  return NEXT(close)(file);
}

ssize_t write(int file, const void* data, size_t size) {
  return fails(of_ours(file)) ? -1 : NEXT(write)(file, data, size);
}

ssize_t writev(int file, const struct iovec* parts, int count) {
  return fails(of_ours(file)) ? -1 : NEXT(writev)(file, parts, count);
}

int fsync(int file) { return fails(of_ours(file)) ? -1 : NEXT(fsync)(file); }

int mkdir(const char* path, mode_t mode) {
  return fails(inside(path)) ? -1 : NEXT(mkdir)(path, mode);
}

int rename(const char* from, const char* to) {
  return fails(inside(to)) ? -1 : NEXT(rename)(from, to);
}

int renameat2(int at, const char* from, int to_at, const char* to, unsigned flags) {
  return fails(inside(to)) ? -1 : NEXT(renameat2)(at, from, to_at, to, flags);
}
