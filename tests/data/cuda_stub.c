/* A CUDA driver without a GPU: device memory is this process's, and whatever is begun is done at once but for copies
 * that the default stream makes of memory that is not page-locked. The functions are those that builder/worker/cuda.py
 * and builder/runtime/driver.py call; arguments as in CUDA's driver API reference. Handles are numbers that are checked. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY ((size_t)1 << 28)
#define INVALID 1
#define OUT_OF_MEMORY 2
#define BAD_CONTEXT 201
#define BAD_HANDLE 400
#define BLOCKS 65536

static struct { char *start; size_t size; } blocks[BLOCKS];
static size_t used;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
#define GUARDED(work) pthread_mutex_lock(&guard); int code = work; pthread_mutex_unlock(&guard); return code;
static __thread uint64_t current;
static char streams[4096], events[65536], graphs[4096];
/* a test may play graphs itself: it is told 1 when a capture begins, 2 with the graph when it ends, 3 with what a graph
 * was made ready as, and 4 with what is launched */
static void (*told)(int what, uint64_t handle, uint64_t of);
void stub_tell(void (*whom)(int, uint64_t, uint64_t)) { told = whom; }
static int tell(int what, uint64_t handle, uint64_t of) { if (told) told(what, handle, of); return 0; }

static int find(char *table, int size, uint64_t *handle) {
  for (int index = 16; index < size; index++)
    if (!table[index]) { table[index] = 1; *handle = index; return 0; }
  return OUT_OF_MEMORY;
}
static int make(char *table, int size, uint64_t *handle) { GUARDED(find(table, size, handle)) }
static int drop(char *table, uint64_t handle) {
  if (!table[handle]) return BAD_HANDLE;
  table[handle] = 0;
  return 0;
}
static int bad_stream(uint64_t stream) { return current != 77 ? BAD_CONTEXT : stream > 2 && !streams[stream] ? BAD_HANDLE : 0; }
static int outside(uint64_t address, size_t size) {
  for (int index = 0; index < BLOCKS; index++)
    if (blocks[index].start && address >= (uint64_t)blocks[index].start &&
        address + size <= (uint64_t)blocks[index].start + blocks[index].size) return 0;
  return INVALID;
}

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : 0; }
int cuDevicePrimaryCtxRetain(uint64_t *context, int device) { *context = 77; return device; }
int cuCtxSetCurrent(uint64_t context) { current = context; return 0; }
int cuCtxGetCurrent(uint64_t *context) { *context = current; return 0; }
/* what the default stream still copies from memory that is not page-locked: the call that began it is over before */
static __thread struct { void *to, *data; size_t size; } staged;
static int land(void) {
  if (staged.data) memcpy(staged.to, staged.data, staged.size);
  free(staged.data);
  staged.data = NULL;
  return 0;
}
static int stage(void *to, void *from, size_t size) {
  land();
  staged.to = to;
  staged.size = size;
  staged.data = malloc(size + !size);
  memcpy(staged.data, from, size);
  return 0;
}
int cuCtxSynchronize(void) { return current != 77 ? BAD_CONTEXT : land(); }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stub", size); return device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return device; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetUuid(char *raw, int device) { memset(raw, 1, 16); return device; }
int cuGetErrorName(int code, const char **name) {
  *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == BAD_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_STUB";
  return 0;
}
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = MEMORY - used; *total = MEMORY; return 0; }
static int take(uint64_t *address, size_t size) {
  if (used + size > MEMORY) return OUT_OF_MEMORY;
  for (int index = 0; index < BLOCKS; index++)
    if (!blocks[index].start) {
      blocks[index].start = aligned_alloc(512, (size + 511) / 512 * 512);
      blocks[index].size = size;
      used += size;
      *address = (uint64_t)blocks[index].start;
      return 0;
    }
  return OUT_OF_MEMORY;
}
static int give(uint64_t address) {
  for (int index = 0; index < BLOCKS; index++)
    if (address && (uint64_t)blocks[index].start == address) {
      used -= blocks[index].size;
      free(blocks[index].start);
      blocks[index].start = NULL;
      return 0;
    }
  return INVALID;
}
int cuMemAlloc_v2(uint64_t *address, size_t size) { if (current != 77) return BAD_CONTEXT; GUARDED(take(address, size)) }
int cuMemFree_v2(uint64_t address) { if (current != 77) return BAD_CONTEXT; land(); GUARDED(give(address)) }
int cuMemAllocHost_v2(void **address, size_t size) { *address = aligned_alloc(512, (size + 511) / 512 * 512); return 0; }
int cuMemFreeHost(void *address) { free(address); return 0; }
static int copy(uint64_t target, uint64_t source, size_t size, uint64_t stream) {
  if (bad_stream(stream)) return bad_stream(stream);
  memcpy((void *)target, (void *)source, size);
  return 0;
}
int cuMemcpyHtoD_v2(uint64_t to, void *from, size_t size) { return outside(to, size) ? INVALID : bad_stream(0) ? bad_stream(0) : stage((void *)to, from, size); }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { land(); return outside(from, size) ? INVALID : copy((uint64_t)to, from, size, 0); }
int cuMemcpyHtoDAsync_v2(uint64_t to, void *from, size_t size, uint64_t stream) { return outside(to, size) ? INVALID : copy(to, (uint64_t)from, size, stream); }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, uint64_t stream) { return outside(from, size) ? INVALID : copy((uint64_t)to, from, size, stream); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, uint64_t stream) { return outside(to, size) || outside(from, size) ? INVALID : copy(to, from, size, stream); }
int cuStreamCreate(uint64_t *stream, unsigned flags) { return flags == 1 ? make(streams, 4096, stream) : INVALID; }
int cuStreamDestroy_v2(uint64_t stream) { return drop(streams, stream); }
int cuStreamSynchronize(uint64_t stream) { return bad_stream(stream) ? bad_stream(stream) : stream <= 2 ? land() : 0; }
int cuStreamWaitEvent(uint64_t stream, uint64_t event, unsigned flags) { return flags || !events[event] ? BAD_HANDLE : bad_stream(stream); }
int cuEventCreate(uint64_t *event, unsigned flags) { return flags == 2 || !flags ? make(events, 65536, event) : INVALID; }
int cuEventDestroy_v2(uint64_t event) { return drop(events, event); }
int cuEventSynchronize(uint64_t event) { return events[event] ? 0 : BAD_HANDLE; }
int cuEventRecord(uint64_t event, uint64_t stream) { return !events[event] ? BAD_HANDLE : bad_stream(stream); }
int cuStreamBeginCapture_v2(uint64_t stream, int mode) {
  return mode != 1 || stream <= 2 ? 900 : bad_stream(stream) ? bad_stream(stream) : tell(1, 0, 0);
}
int cuStreamEndCapture(uint64_t stream, uint64_t *graph) {
  return bad_stream(stream) ? bad_stream(stream) : make(graphs, 4096, graph) || tell(2, *graph, 0);
}
int cuGraphInstantiateWithFlags(uint64_t *ready, uint64_t graph, unsigned long long flags) {
  return flags || !graphs[graph] ? BAD_HANDLE : make(graphs, 4096, ready) || tell(3, *ready, graph);
}
int cuGraphDestroy(uint64_t graph) { return drop(graphs, graph); }
int cuGraphExecDestroy(uint64_t graph) { return drop(graphs, graph); }
int cuGraphLaunch(uint64_t graph, uint64_t stream) {
  return !graphs[graph] ? BAD_HANDLE : bad_stream(stream) ? bad_stream(stream) : tell(4, graph, 0);
}
/* what a test asks for: how many streams, events and graphs there are */
int stub_live(int *counts) {
  memset(counts, 0, 3 * sizeof *counts);
  for (int index = 0; index < 4096; index++) counts[0] += streams[index], counts[2] += graphs[index];
  for (int index = 0; index < 65536; index++) counts[1] += events[index];
  return 0;
}
