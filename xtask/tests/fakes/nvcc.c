/* The same nvcc as nvcc.sh, as a binary: only a binary's answers are remembered. VERSION and
   RELEASE come from the command line of the test's compiler. */
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char program[4096] = {0}, log[4200];
    if (argc < 2 || readlink("/proc/self/exe", program, sizeof program - 1) < 0) return 64;
    const char *bin = dirname(program);
    snprintf(log, sizeof log, "%s/../log", bin);
    FILE *file = fopen(log, "a");
    if (!file) return 65;
    fprintf(file, "%s\n", argv[1]);
    fclose(file);
    if (!strcmp(argv[1], "--version")) {
        printf("Cuda compilation tools, release " RELEASE ", V" VERSION "\n");
        printf("Build cuda_" RELEASE "/compiler.1_0\n");
    } else if (!strcmp(argv[1], "--list-gpu-code")) {
        puts("sm_80");
    } else if (!strcmp(argv[1], "--list-gpu-arch")) {
        puts("compute_80");
    } else if (!strcmp(argv[1], "--dryrun")) {
        fprintf(stderr, "#$ _HERE_=%s\n#$ CICC_PATH=%s/../nvvm/bin\n", bin, bin);
    } else {
        return 64;
    }
    return 0;
}
