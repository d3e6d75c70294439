/* Runs a program on a disk that fails: faulty_disk ACTION N EXCHANGE REPORT PROGRAM ARGUMENT...

   It counts the changes that the program and its threads make to the file system, at the system
   call, whichever library makes it. Each change is a line of the file REPORT. Before change N:

     kill    the program is killed
     ENOSPC  this change and all later ones that take space fail
     EROFS   this change and all later ones fail
     EIO     this change fails, and no other

   EXCHANGE is `exchange`, or `no-exchange` for a file system that cannot exchange two names.
   Only calls that can be changes stop the program, so it runs at nearly full speed. Processes that
   it starts stop at them too, and nothing happens to them. Exit status: the program's own, 128 plus
   the signal's number if a signal ended it, 125 if the machine does not allow tracing. */

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

/* What about an argument makes the call a change. */
enum when { ALWAYS, FILE_OPEN_AT, OPENS_FOR_CHANGE_BY };

static const struct change {
    unsigned long number;
    const char *name;
    enum when when;
    int argument;
    int frees_space;
} changes[] = {
    {SYS_openat, "openat", OPENS_FOR_CHANGE_BY, 2, 0},
    {SYS_write, "write", FILE_OPEN_AT, 0, 0},
    {SYS_writev, "writev", FILE_OPEN_AT, 0, 0},
    {SYS_pwrite64, "pwrite64", FILE_OPEN_AT, 0, 0},
    {SYS_copy_file_range, "copy_file_range", FILE_OPEN_AT, 2, 0},
    {SYS_sendfile, "sendfile", FILE_OPEN_AT, 0, 0},
    {SYS_ftruncate, "ftruncate", FILE_OPEN_AT, 0, 0},
    {SYS_fsync, "fsync", FILE_OPEN_AT, 0, 0},
    {SYS_fdatasync, "fdatasync", FILE_OPEN_AT, 0, 0},
    {SYS_fchmod, "fchmod", FILE_OPEN_AT, 0, 0},
    {SYS_fchmodat, "fchmodat", ALWAYS, 0, 0},
    {SYS_mkdirat, "mkdirat", ALWAYS, 0, 0},
    {SYS_linkat, "linkat", ALWAYS, 0, 0},
    {SYS_symlinkat, "symlinkat", ALWAYS, 0, 0},
    {SYS_unlinkat, "unlinkat", ALWAYS, 0, 1},
    {SYS_renameat2, "renameat2", ALWAYS, 0, 0},
#ifdef SYS_renameat
    {SYS_renameat, "renameat", ALWAYS, 0, 0},
#endif
#ifdef SYS_open
    {SYS_open, "open", OPENS_FOR_CHANGE_BY, 1, 0},
    {SYS_creat, "creat", ALWAYS, 0, 0},
    {SYS_chmod, "chmod", ALWAYS, 0, 0},
    {SYS_mkdir, "mkdir", ALWAYS, 0, 0},
    {SYS_link, "link", ALWAYS, 0, 0},
    {SYS_symlink, "symlink", ALWAYS, 0, 0},
    {SYS_unlink, "unlink", ALWAYS, 0, 1},
    {SYS_rmdir, "rmdir", ALWAYS, 0, 1},
    {SYS_rename, "rename", ALWAYS, 0, 0},
#endif
};

static void give_up(const char *what) {
    fprintf(stderr, "faulty_disk: %s: %s\n", what, strerror(errno));
    exit(125);
}

/* Stops this process at the calls in `changes`, in this program and in those that it starts. */
static void stop_at_changes(void) {
    enum { COUNT = sizeof changes / sizeof *changes };
    struct sock_filter code[COUNT + 3] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (unsigned i = 0; i < COUNT; i++)
        code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, changes[i].number,
                                                   COUNT - i, 0);
    code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog filter = {COUNT + 3, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        give_up("seccomp");
}

/* Whether a descriptor of the program is a file or a directory: pipes and terminals are not on a
   disk. */
static int is_on_disk(pid_t thread, unsigned long descriptor) {
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)thread, (int)descriptor);
    return stat(path, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

static const struct change *change_of(pid_t program, pid_t thread,
                                      const struct __ptrace_syscall_info *info) {
    /* A thread of another process. */
    if (syscall(SYS_tgkill, program, thread, 0) != 0) return NULL;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const struct change *change = &changes[i];
        if (change->number != info->seccomp.nr) continue;
        unsigned long argument = info->seccomp.args[change->argument];
        switch (change->when) {
        case ALWAYS: return change;
        case FILE_OPEN_AT: return is_on_disk(thread, argument) ? change : NULL;
        case OPENS_FOR_CHANGE_BY: return argument & (O_CREAT | O_TRUNC) ? change : NULL;
        }
    }
    return NULL;
}

/* Has the call that is being entered not be made and return -error. */
static void refuse(pid_t thread, int error) {
    struct user_regs_struct registers;
    struct iovec all = {&registers, sizeof registers};
    /* It fails if the thread was killed meanwhile. */
    if (ptrace(PTRACE_GETREGSET, thread, NT_PRSTATUS, &all) != 0) return;
#if defined __x86_64__
    registers.orig_rax = -1;
    registers.rax = -error;
#elif defined __aarch64__
    int none = -1;
    struct iovec number = {&none, sizeof none};
    ptrace(PTRACE_SETREGSET, thread, NT_ARM_SYSTEM_CALL, &number);
    registers.regs[0] = -error;
#else
#error "no way known to refuse a system call on this architecture"
#endif
    ptrace(PTRACE_SETREGSET, thread, NT_PRSTATUS, &all);
}

int main(int argc, char **argv) {
    if (argc < 6) return 125;
    const char *action = argv[1];
    long at = atol(argv[2]), count = 0;
    int can_exchange = strcmp(argv[3], "no-exchange") != 0;
    FILE *report = fopen(argv[4], "we");
    if (!report) give_up(argv[4]);
    int error = !strcmp(action, "ENOSPC") ? ENOSPC : !strcmp(action, "EROFS") ? EROFS : EIO;

    /* Processes that the program started may live on when it has ended, and need their tracer. So
       this process waits for the program's exit status alone, and another one traces. */
    int ended[2];
    if (pipe2(ended, O_CLOEXEC) != 0) give_up("pipe");
    pid_t tracer = fork();
    if (tracer < 0) give_up("fork");
    if (tracer > 0) {
        unsigned char code = 125;
        close(ended[1]);
        return read(ended[0], &code, 1) == 1 ? code : 125;
    }

    pid_t program = fork();
    if (program < 0) give_up("fork");
    if (program == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) give_up("ptrace");
        raise(SIGSTOP);
        stop_at_changes();
        execvp(argv[5], argv + 5);
        give_up(argv[5]);
    }
    int status;
    if (waitpid(program, &status, 0) != program || !WIFSTOPPED(status)) return 125;
    /* Without a tracer the calls would fail, so the processes that it starts are traced too. */
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                   PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, program, NULL, options) != 0) give_up("ptrace");
    ptrace(PTRACE_CONT, program, NULL, NULL);

    for (;;) {
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0) return 0; /* No process is left. */
        if (!WIFSTOPPED(status)) {
            if (thread != program) continue;
            fclose(report);
            unsigned char code =
                WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            if (write(ended[1], &code, 1) != 1) return 125;
            /* Nobody shall wait for this process's output. */
            for (int descriptor = 0; descriptor <= 2; descriptor++) close(descriptor);
            continue;
        }
        int signal = WSTOPSIG(status);
        if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8)) {
            struct __ptrace_syscall_info info;
            const struct change *change = NULL;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0 &&
                info.op == PTRACE_SYSCALL_INFO_SECCOMP)
                change = change_of(program, thread, &info);
            if (change) {
                count++;
                fprintf(report, "%s\n", change->name);
                fflush(report);
                if (count == at && !strcmp(action, "kill")) {
                    kill(program, SIGKILL);
                    continue;
                }
                int fails = !strcmp(action, "EIO")      ? count == at
                            : !strcmp(action, "ENOSPC") ? count >= at && !change->frees_space
                            : !strcmp(action, "EROFS")  ? count >= at
                                                        : 0;
                if (fails)
                    refuse(thread, error);
                else if (!can_exchange && info.seccomp.nr == SYS_renameat2 &&
                         info.seccomp.args[4] & RENAME_EXCHANGE)
                    refuse(thread, EINVAL);
            }
            signal = 0;
        } else if (status >> 16 || signal == SIGSTOP) {
            signal = 0; /* An event, or the stop in which a new thread begins. */
        }
        ptrace(PTRACE_CONT, thread, NULL, signal);
    }
}
