/* NCCL for ranks that are threads of one process and whose device memory is the host's: what the tests of `above_range` open in its place. It sums float32
 * in the reverse order of ranks, so that a result tells who made it. Built with -D for what goes wrong. */

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 22809
#endif

enum { SUCCESS = 0, REMOTE_ERROR = 6, INVALID_ARGUMENT = 4, SUM = 0, FLOAT32 = 7, MOST_RANKS = 16 };

typedef struct { char internal[128]; } Id;

typedef struct Group {
  Id id;
  int world_size, members;
  pthread_barrier_t barrier;
  const float *inputs[MOST_RANKS];
  struct Group *next;
} Group;

typedef struct { Group *group; int rank; } Comm;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Group *groups;
static int ids, aborts;

int ncclGetVersion(int *version) { *version = VERSION; return SUCCESS; }

const char *ncclGetErrorString(int result) {
  return result == REMOTE_ERROR ? "remote process exited" : "fake trouble";
}

int ncclGetUniqueId(Id *id) {
  pthread_mutex_lock(&lock);
  memset(id, 0, sizeof *id);
  memcpy(id->internal, "fake", 4);
  memcpy(id->internal + 4, &(int){ ++ids }, sizeof ids);
  /* The last byte is lost if an id is not passed on whole. */
  id->internal[127] = -1;
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

#ifndef WITHOUT_ALL_REDUCE
int ncclCommInitRank(Comm **comm, int world_size, Id id, int rank) {
#ifdef INIT_FAILS
  return INVALID_ARGUMENT;
#endif
  if (id.internal[127] != -1 || world_size > MOST_RANKS) return INVALID_ARGUMENT;
  pthread_mutex_lock(&lock);
  Group *group = groups;
  while (group && memcmp(&group->id, &id, sizeof id)) group = group->next;
  if (!group) {
    group = calloc(1, sizeof *group);
    group->id = id;
    group->world_size = world_size;
    pthread_barrier_init(&group->barrier, NULL, world_size);
    group->next = groups;
    groups = group;
  }
  pthread_mutex_unlock(&lock);
  pthread_barrier_wait(&group->barrier);
  *comm = malloc(sizeof **comm);
  **comm = (Comm){ group, rank };
  return SUCCESS;
}

int ncclAllReduce(const float *input, float *output, size_t count, int type, int operation, Comm *comm, void *stream) {
  if (type != FLOAT32 || operation != SUM || stream) return INVALID_ARGUMENT;
  Group *group = comm->group;
  group->inputs[comm->rank] = input;
  pthread_barrier_wait(&group->barrier);
  float *sums = malloc(count * sizeof *sums);
  for (size_t i = 0; i < count; i++) {
    sums[i] = 0;
    for (int rank = group->world_size - 1; rank >= 0; rank--) sums[i] += group->inputs[rank][i];
  }
  /* In place, an output is another rank's input until all have read it. */
  pthread_barrier_wait(&group->barrier);
  memcpy(output, sums, count * sizeof *sums);
  free(sums);
  return SUCCESS;
}
#endif

int ncclCommGetAsyncError(Comm *comm, int *result) {
  (void)comm;
#ifdef A_RANK_DIES
  *result = REMOTE_ERROR;
#else
  *result = SUCCESS;
#endif
  return SUCCESS;
}

int ncclCommAbort(Comm *comm) {
  __atomic_add_fetch(&aborts, 1, __ATOMIC_RELAXED);
  free(comm);
  return SUCCESS;
}

/* For tests. */
int fake_nccl_aborts(void) { return __atomic_load_n(&aborts, __ATOMIC_RELAXED); }
