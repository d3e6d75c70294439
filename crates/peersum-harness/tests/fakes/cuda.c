/* A driver without a GPU behind it, for tests of the doctor and of what is built on cudarc. Its
 * memory is the host's and travels as real file descriptors between real threads and processes. It
 * runs no kernel. FAKE_CUDA lists what it has and what is broken, for instance "gpus=2 deaf". */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long long address;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, STUB_LIBRARY = 34, UNKNOWN = 999, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_SUPPORTED = 801, SYSTEM_DRIVER_MISMATCH = 803 };
enum { GRANULE = 2 << 20, MOST = 16, RANGES = 1024 };

static int has(const char *word)
{
    const char *list = getenv("FAKE_CUDA");
    size_t length = strlen(word);
    for (const char *at = list; at && (at = strstr(at, word)); at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == 0 || at[length] == ' '))
            return 1;
    return 0;
}

/* Whether a function is to fail: "fails:cuDeviceGetName". */
static int fails(const char *function)
{
    char word[64];
    snprintf(word, sizeof word, "fails:%s", function);
    return has(word) ? UNKNOWN : OK;
}
#define MAY_FAIL() do { if (fails(__func__)) return UNKNOWN; } while (0)

static int gpus(void)
{
    const char *list = getenv("FAKE_CUDA"), *at = list ? strstr(list, "gpus=") : NULL;
    return at ? atoi(at + 5) : 1;
}

/* A context is the place of its device in this table. */
static int devices[MOST] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static __thread int *current;

/* Ranges of addresses: what is mapped in them, and whether that came from somebody else. */
static struct range { address start; size_t bytes; int fd, imported; } ranges[RANGES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char imported_descriptors[RANGES];

static struct range *find(address at)
{
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].bytes && at >= ranges[i].start && at - ranges[i].start < ranges[i].bytes)
            return &ranges[i];
    return NULL;
}

static int add(address start, size_t bytes, int fd, int imported)
{
    for (int i = 0; i < RANGES; i++)
        if (!ranges[i].bytes) {
            ranges[i] = (struct range){start, bytes, fd, imported};
            return OK;
        }
    return OUT_OF_MEMORY;
}

/* A memory's device is in its name, which travels with the descriptor. */
static int memory_on(int device, size_t bytes)
{
    char name[16];
    snprintf(name, sizeof name, "gpu%d", device);
    int fd = memfd_create(name, MFD_CLOEXEC);
    return fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 ? fd : -1;
}

static int device_of(int fd)
{
    char path[64], name[64] = {0};
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return readlink(path, name, sizeof name - 1) > 0 && strncmp(name, "/memfd:gpu", 10) == 0 ? atoi(name + 10) : -1;
}

int cuDriverGetVersion(int *version) { MAY_FAIL(); if (has("stub")) return STUB_LIBRARY; *version = has("old") ? 11040 : has("cuda12") ? 12080 : 13000; return OK; }
int cuInit(unsigned flags) { MAY_FAIL(); return flags || has("mismatch") ? SYSTEM_DRIVER_MISMATCH : gpus() ? OK : NO_DEVICE; }
int cuGetErrorName(int error, const char **text) { if (has("stub")) return STUB_LIBRARY; *text = error == SYSTEM_DRIVER_MISMATCH ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR_OF_A_FAKE"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = error == NOT_SUPPORTED ? "not supported" : "as a test asked for"; return OK; }

int cuDeviceGetCount(int *count) { MAY_FAIL(); *count = gpus(); return OK; }
int cuDeviceGet(int *device, int ordinal) { MAY_FAIL(); *device = ordinal; return ordinal < gpus() ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int length, int device) { MAY_FAIL(); snprintf(name, (size_t)length, "Fake GPU%s", has("mig") ? " MIG 1g.5gb" : ""); return OK; }
int cuDeviceGetUuid(char *uuid, int device) { MAY_FAIL(); memset(uuid, 0x10 + device, 16); return OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
int cuDeviceGetPCIBusId(char *text, int length, int device) { MAY_FAIL(); snprintf(text, (size_t)length, "0000:%02X:00.0", 0x1a + device); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { MAY_FAIL(); *bytes = (size_t)80 << 30; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    char number[16];
    snprintf(number, sizeof number, "%d", attribute);
    if (fails(number))
        return UNKNOWN;
    switch (attribute) {
    case 16: *value = 132; break;
    case 20: *value = has("exclusive") ? 3 : has("prohibited") ? 2 : 0; break;
    case 75: *value = has("volta") ? 7 : 9; break;
    case 102: *value = 1; break;
    case 103: *value = !has("nofd"); break;
    case 115: *value = 1; break;
    default: *value = 0;
    }
    return OK;
}
int cuDeviceGetP2PAttribute(int *value, int attribute, int from, int to)
{
    MAY_FAIL();
    *value = attribute == 2 ? !has("island") : attribute == 3 ? !has("pcie") && !has("island") : 0;
    return OK;
}
int cuDeviceCanAccessPeer(int *can, int from, int to) { *can = !has("island"); return OK; }

/* Whether this is the second process of a doctor, and memory is to travel as a descriptor. */
static int is_peer(void)
{
    static const char peer[] = "doctor-peer", by_handle[] = "legacy-ipc";
    char line[8192];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t bytes = read(fd, line, sizeof line);
    close(fd);
    return bytes > 0 && memmem(line, (size_t)bytes, peer, sizeof peer) != NULL
        && memmem(line, (size_t)bytes, by_handle, strlen(by_handle)) == NULL;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    while (has("hang") || (has("peerhangs") && is_peer()))
        pause();
    *context = &devices[device];
    return has("taken") ? OUT_OF_MEMORY : OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxGetCurrent(void **context) { *context = current; return OK; }
int cuCtxSetCurrent(void *context) { current = context; return OK; }
int cuCtxSynchronize(void) { return OK; }
int cuCtxEnablePeerAccess(void *context, unsigned flags) { return has("island") ? INVALID_VALUE : OK; }

int cuStreamCreate(void **stream, unsigned flags) { *stream = malloc(1); return OK; }
int cuStreamDestroy_v2(void *stream) { free(stream); return OK; }
int cuStreamSynchronize(void *stream) { return OK; }
int cuStreamQuery(void *stream) { return OK; }
int cuStreamIsCapturing(void *stream, int *capturing) {
    *capturing = has("spoilt") ? 2 : 0;
    return OK;
}
/* How many waits and records reached the driver, for tests to read. */
int fake_waits, fake_records;
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    MAY_FAIL();
    fake_waits++;
    return OK;
}
int cuEventCreate(void **event, unsigned flags) { MAY_FAIL(); *event = malloc(1); return OK; }
int cuEventRecord(void *event, void *stream) { MAY_FAIL(); fake_records++; return OK; }
int cuEventDestroy_v2(void *event) { free(event); return OK; }

int cuMemGetAllocationGranularity(size_t *bytes, const void *properties, int option) { *bytes = GRANULE; return OK; }
int cuMemCreate(address *handle, size_t bytes, const int *properties, address flags)
{
    int fd = memory_on(properties[3], bytes);
    *handle = (address)fd;
    return fd < 0 ? OUT_OF_MEMORY : OK;
}
int cuMemRelease(address handle) { imported_descriptors[handle] = 0; return close((int)handle) ? INVALID_VALUE : OK; }
int cuMemExportToShareableHandle(int *fd, address handle, int type, address flags)
{
    *fd = dup((int)handle);
    return *fd < 0 ? INVALID_VALUE : OK;
}
int cuMemImportFromShareableHandle(address *handle, void *descriptor, int type)
{
    int fd = dup((int)(size_t)descriptor);
    if (fd < 0 || fd >= RANGES || device_of(fd) < 0)
        return INVALID_VALUE;
    imported_descriptors[fd] = 1;
    *handle = (address)fd;
    return OK;
}
int cuMemGetAllocationPropertiesFromHandle(int *properties, address handle)
{
    properties[2] = 1;
    properties[3] = device_of((int)handle);
    return OK;
}
int cuMemAddressReserve(address *start, size_t bytes, size_t alignment, address wanted, address flags)
{
    void *memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *start = (address)memory;
    return memory == MAP_FAILED ? OUT_OF_MEMORY : OK;
}
int cuMemAddressFree(address start, size_t bytes) { return munmap((void *)start, bytes) ? INVALID_VALUE : OK; }
int cuMemMap(address start, size_t bytes, size_t offset, address handle, address flags)
{
    int imported = imported_descriptors[handle];
    if (imported && has("unmappable"))
        return NOT_SUPPORTED;
    if (mmap((void *)start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, (int)handle, 0) == MAP_FAILED)
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int result = add(start, bytes, -1, imported);
    pthread_mutex_unlock(&lock);
    return result;
}
int cuMemSetAccess(address start, size_t bytes, const void *access, size_t count) { return OK; }
int cuMemUnmap(address start, size_t bytes)
{
    pthread_mutex_lock(&lock);
    struct range *range = find(start);
    if (range)
        range->bytes = 0;
    pthread_mutex_unlock(&lock);
    return range && mmap((void *)start, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED ? OK : INVALID_VALUE;
}

/* Plain memory: a legacy handle is the path of its descriptor. */
static int map_plain(address *start, int fd, size_t bytes, int imported)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return OUT_OF_MEMORY;
    *start = (address)memory;
    pthread_mutex_lock(&lock);
    int result = add(*start, bytes, fd, imported);
    pthread_mutex_unlock(&lock);
    return result;
}
static int unmap_plain(address start)
{
    pthread_mutex_lock(&lock);
    struct range *range = find(start);
    if (range) {
        munmap((void *)range->start, range->bytes);
        close(range->fd);
        range->bytes = 0;
    }
    pthread_mutex_unlock(&lock);
    return range ? OK : INVALID_VALUE;
}
int cuMemAlloc_v2(address *start, size_t bytes) { return map_plain(start, memory_on(*current, bytes), bytes, 0); }
int cuMemFree_v2(address start) { return unmap_plain(start); }
int cuIpcGetMemHandle(char *handle, address start)
{
    pthread_mutex_lock(&lock);
    struct range *range = find(start);
    if (range)
        snprintf(handle, 64, "/proc/%d/fd/%d", (int)getpid(), range->fd);
    pthread_mutex_unlock(&lock);
    return range && !has("noipc") ? OK : INVALID_VALUE;
}
struct ipc_handle { char path[64]; };
int cuIpcOpenMemHandle_v2(address *start, struct ipc_handle handle, unsigned flags)
{
    int fd = open(handle.path, O_RDWR | O_CLOEXEC);
    off_t bytes = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    return bytes > 0 ? map_plain(start, fd, (size_t)bytes, 1) : INVALID_VALUE;
}
int cuIpcCloseMemHandle(address start) { return unmap_plain(start); }
int cuPointerGetAttribute(void *value, int attribute, address at)
{
    pthread_mutex_lock(&lock);
    struct range *range = find(at);
    int device = range && range->fd >= 0 ? device_of(range->fd) : -1;
    pthread_mutex_unlock(&lock);
    if (device < 0)
        return INVALID_VALUE;
    if (attribute == 1)
        *(void **)value = &devices[device];
    else
        *(int *)value = device;
    return OK;
}

int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) { memcpy((void *)to, from, bytes); return OK; }
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) { memcpy(to, (void *)from, bytes); return OK; }
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void *stream)
{
    pthread_mutex_lock(&lock);
    struct range *range = find(to);
    int lost = has("deaf") && range && range->imported;
    pthread_mutex_unlock(&lock);
    if (!lost)
        memcpy((void *)to, (void *)from, bytes);
    return OK;
}
int cuMemsetD32Async(address to, unsigned word, size_t words, void *stream)
{
    for (size_t i = 0; i < words; i++)
        ((unsigned *)to)[i] = word;
    return OK;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { *memory = calloc(1, bytes); return OK; }
int cuMemHostGetDevicePointer_v2(address *device, void *memory, unsigned flags) { *device = (address)memory; return OK; }
int cuMemFreeHost(void *memory) { free(memory); return OK; }

#define ABSENT(name) int name(void) { return NOT_SUPPORTED; }
ABSENT(cuFuncGetAttribute)
ABSENT(cuFuncSetAttribute)
ABSENT(cuGraphDestroy)
ABSENT(cuGraphExecDestroy)
ABSENT(cuGraphInstantiateWithFlags)
ABSENT(cuGraphLaunch)
ABSENT(cuGraphUpload)
ABSENT(cuLaunchKernelEx)
ABSENT(cuMemAllocAsync)
ABSENT(cuMemFreeAsync)
ABSENT(cuModuleGetFunction)
ABSENT(cuModuleLoadDataEx)
ABSENT(cuModuleUnload)
ABSENT(cuOccupancyMaxActiveBlocksPerMultiprocessor)
ABSENT(cuOccupancyMaxActiveClusters)
#ifndef INCOMPLETE
ABSENT(cuStreamBeginCapture_v2)
ABSENT(cuStreamEndCapture)
#endif
