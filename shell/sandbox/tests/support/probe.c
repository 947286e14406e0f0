/* What runs in the tests' containers: one static program with many small commands. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void on_term(int signal) { (void)signal; (void)!write(1, "bye\n", 4); _exit(7); }

static void result(const char *what, int value) {
    printf("%s %s\n", what, value < 0 ? strerrorname_np(errno) : "ok");
}

static void cat(const char *path) {
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) { result(path, fd); return; }
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) fwrite(buffer, 1, n, stdout);
}

static void status(void) {
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "Cap", 3) || !strncmp(line, "NoNew", 5) ||
            !strncmp(line, "THP", 3) || !strncmp(line, "Seccomp:", 8))
            fputs(line, stdout);
}

static void id(void) {
    gid_t groups[32];
    int count = getgroups(32, groups);
    printf("uid=%d gid=%d groups=", getuid(), getgid());
    for (int i = 0; i < count; i++) printf("%d,", groups[i]);
    printf(" home=%s cwd=%s\n", getenv("HOME"), get_current_dir_name());
}

static void eat(long mebibytes) {
    for (long i = 0; i < mebibytes; i++) memset(malloc(1 << 20), 1, 1 << 20);
}

static void device(const char *path) {
    result("mknod", mknod(path, S_IFBLK | 0600, makedev(7, 0)));
    result("open", open(path, O_RDONLY));
}

static int command(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    const char *a = argc > 2 ? argv[2] : "", *b = argc > 3 ? argv[3] : "";
    if (!strcmp(name, "echo")) { puts(a); return 2; }
    if (!strcmp(name, "partial")) { fputs(a, stdout); return 2; }
    if (!strcmp(name, "err")) { fprintf(stderr, "%s\n", a); return 2; }
    if (!strcmp(name, "exit")) exit(atoi(a));
    if (!strcmp(name, "cat")) { cat(a); return 2; }
    if (!strcmp(name, "id")) { id(); return 1; }
    if (!strcmp(name, "status")) { status(); return 1; }
    if (!strcmp(name, "pid")) { printf("pid=%d\n", getpid()); return 1; }
    if (!strcmp(name, "env")) { printf("%s=%s\n", a, getenv(a)); return 2; }
    if (!strcmp(name, "eat")) { eat(atol(a)); return 2; }
    if (!strcmp(name, "device")) { device(a); return 2; }
    if (!strcmp(name, "unshare")) { result("unshare", unshare(0x10000000)); return 1; }
    if (!strcmp(name, "clone3")) { result("clone3", syscall(435, 0, 0)); return 1; }
    if (!strcmp(name, "keyctl")) { result("keyctl", syscall(250, 0, 0)); return 1; }
    if (!strcmp(name, "access")) { printf("%s ", a); result("access", access(a, F_OK)); return 2; }
    if (!strcmp(name, "tty")) { printf("tty=%d\n", isatty(0) && isatty(1) && isatty(2)); return 1; }
    if (!strcmp(name, "kill")) { result("kill", kill(atoi(a), SIGKILL)); return 2; }
    if (!strcmp(name, "lines")) { for (int i = 0; i < atoi(a); i++) printf("line %d\n", i); return 2; }
    if (!strcmp(name, "write")) {
        int fd = open(a, O_CREAT | O_WRONLY | O_TRUNC, 0644);
        if (fd >= 0) fd = write(fd, b, strlen(b));
        printf("%s ", a); result("write", fd);
        return 3;
    }
    if (!strcmp(name, "orphans")) {
        for (int i = 0; i < 3; i++) if (!fork()) { setsid(); for (;;) pause(); }
        return 1;
    }
    if (!strcmp(name, "pause")) { fflush(stdout); for (;;) pause(); }
    if (!strcmp(name, "deaf")) { signal(SIGTERM, SIG_IGN); return 1; }
    if (!strcmp(name, "polite")) { signal(SIGTERM, on_term); return 1; }
    fprintf(stderr, "unknown command %s\n", name);
    exit(99);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (argc > 1) { int used = command(argc, argv); argc -= used; argv += used; }
    return 0;
}
