// CUDA C++ on the CPU, one thread of a block at a time: what a test compiles a kernel against to check its arithmetic.
//
// A thread of CUDA is a fiber; it runs until it waits at a barrier, of the block or of its warp. Blocks run one after
// another, so __shared__ is static, in every other launch from the last to the first: what one writes in another's place
// shows. Those of a cluster run together, and what each of them shares must be dynamic. Warp functions, ldmatrix,
// mma.sync and cp.async follow the layouts of the PTX manual; copies arrive only when they are waited for. More dynamic
// shared memory than the device has, or than a kernel asked for, is an error. Not covered: static shared memory's share
// of that, races, memory order, alignment faults but of __ldcs and __stcs, speed, the last bit of approximate functions,
// and whatever else only a GPU can say.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#undef __shared__
#undef __launch_bounds__
#define __shared__ static
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#define threadIdx (emulated::self().index)
#define blockIdx (emulated::self().block->index)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

using std::max;
using std::min;

namespace emulated {

struct Copy { void* to; const void* from; int bytes, size; };

struct Barrier {  // of as many threads as have not ended
  int alive = 0, arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t slot[32][8];
};

struct Block {
  uint3 index;
  Barrier barrier;
  std::vector<char> shared;
};

constexpr size_t STACK_BYTES = 128 << 10;

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  bool begun = false, done = true;
  uint3 index;
  int lane;
  Warp* warp;
  Block* block;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

inline dim3 block_size, grid_size;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<std::unique_ptr<Warp>> warps;
inline std::vector<Block> cluster;  // the blocks that run, one unless a launch asks for more
inline std::function<void()> body;
inline Barrier everyone;  // in the cluster
inline Fiber* running;
inline jmp_buf scheduler;
inline unsigned progress;
inline size_t allowed_bytes = 48 << 10;  // of shared memory, until a kernel asks for more
inline cudaError_t error = cudaSuccess;

inline Fiber& self() { return *running; }
inline void* shared_of(Block& b) { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(b.shared.data()) + 1023) / 1024 * 1024); }
inline void* dynamic_shared() { return shared_of(*self().block); }

inline void yield() {
  Fiber* me = running;
  if (!_setjmp(me->at)) _longjmp(scheduler, 1);
  running = me;
}

inline void release(Barrier& b) {
  b.arrived = 0;
  ++b.generation;
  ++progress;
}

inline void wait(Barrier& b) {
  const unsigned generation = b.generation;
  if (++b.arrived == b.alive) release(b);
  while (b.generation == generation) yield();
}

inline void leave(Barrier& b) {
  if (--b.alive > 0 && b.arrived == b.alive) release(b);
}

inline void fiber_main() {
  for (;;) {
    Fiber& me = *running;
    body();
    me.done = true;
    ++progress;
    leave(everyone);
    leave(me.block->barrier);
    leave(me.warp->barrier);
    yield();
  }
}

inline void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.stack.reset(new char[STACK_BYTES]);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK_BYTES;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

inline void run_cluster(uint3 first, dim3 blocks, int threads) {
  const int warps_each = (threads + 31) / 32;
  everyone = Barrier{int(cluster.size()) * threads};
  for (unsigned i = 0; i < cluster.size(); ++i) {
    Block& block = cluster[i];
    block.index = {first.x + i % blocks.x, first.y + i / blocks.x % blocks.y, first.z + i / blocks.x / blocks.y};
    block.barrier = Barrier{threads};
    for (int w = 0; w < warps_each; ++w) warps[i * warps_each + w]->barrier = Barrier{std::min(32, threads - 32 * w)};
    std::fill(block.shared.begin(), block.shared.end(), char(0xff));  // NaNs: what was not written shows
    for (int t = 0; t < threads; ++t) {
      Fiber& f = *fibers[i * threads + t];
      f.done = false;
      f.index = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
      f.lane = t % 32;
      f.warp = warps[i * warps_each + t / 32].get();
      f.block = &block;
      f.groups.clear();
      f.open.clear();
    }
  }
  for (;;) {
    const unsigned before = progress;
    bool left = false;
    for (size_t t = 0; t < cluster.size() * threads; ++t)
      if (!fibers[t]->done) left = true, resume(*fibers[t]);
    if (!left) return;
    if (progress == before) {
      std::fprintf(stderr, "deadlock: threads of a block wait at different barriers\n");
      std::abort();
    }
  }
}

inline void launch(std::function<void()> kernel, dim3 grid, dim3 threads, size_t shared_bytes = 0, void* = nullptr, dim3 blocks = 1) {
  const int count = int(threads.x * threads.y * threads.z);
  if (count > 1024 || count == 0 || grid.x * grid.y * grid.z == 0 || grid.x % blocks.x || grid.y % blocks.y || grid.z % blocks.z) {
    std::fprintf(stderr, "launch of %u x %u x %u blocks of %d threads\n", grid.x, grid.y, grid.z, count);
    std::abort();
  }
  if (shared_bytes > allowed_bytes) {
    error = cudaErrorInvalidValue;
    return;
  }
  cluster.resize(blocks.x * blocks.y * blocks.z);
  while (fibers.size() < cluster.size() * count) fibers.emplace_back(new Fiber);
  while (warps.size() < cluster.size() * ((count + 31) / 32)) warps.emplace_back(new Warp);
  for (Block& block : cluster) block.shared.resize(shared_bytes + 1024);
  body = std::move(kernel);
  block_size = threads;
  grid_size = grid;
  static bool backwards = true;
  backwards = !backwards;
  const unsigned across = grid.x / blocks.x, down = grid.y / blocks.y, all = across * down * (grid.z / blocks.z);
  for (unsigned i = 0; i < all; ++i) {
    const unsigned at = backwards ? all - 1 - i : i;
    run_cluster({at % across * blocks.x, at / across % down * blocks.y, at / across / down * blocks.z}, blocks, count);
  }
}

template <typename T> T from_lane(T v, int lane) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = *self().warp;
  std::memcpy(warp.slot[self().lane], &v, sizeof(T));
  wait(warp.barrier);
  std::memcpy(&v, warp.slot[lane & 31], sizeof(T));
  wait(warp.barrier);
  return v;
}

template <typename T> T* at_boundary(T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) error = cudaErrorMisalignedAddress;
  return p;
}

inline float half_of(uint32_t word, int j, __half) { return __half2float(__ushort_as_half(uint16_t(word >> 16 * j))); }
inline float half_of(uint32_t word, int j, __nv_bfloat16) {
  const uint32_t wide = uint32_t(uint16_t(word >> 16 * j)) << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return v;
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::self().block->barrier); }
inline void __syncwarp(unsigned = ~0u) { emulated::wait(emulated::self().warp->barrier); }
template <typename T> T __shfl_xor_sync(unsigned, T v, int mask) { return emulated::from_lane(v, emulated::self().lane ^ mask); }
template <typename T> T __shfl_sync(unsigned, T v, int lane) { return emulated::from_lane(v, lane); }

inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline uint32_t __float_as_uint(float v) { uint32_t u; std::memcpy(&u, &v, 4); return u; }
inline float __uint_as_float(uint32_t u) { float v; std::memcpy(&v, &u, 4); return v; }
template <typename T> T __ldcs(const T* p) { return *emulated::at_boundary(p); }
template <typename T> T __ldg(const T* p) { return *p; }
template <typename T> void __stcs(T* p, T v) { *emulated::at_boundary(p) = v; }

// ---- what starters write in PTX: their functions of these names are replaced by these
inline float exp2_approx(float v) {  // ex2.approx.ftz.f32: results below 2^-126 are 0
  const float y = std::exp2(v);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint4 load_kept(const uint4* p) { return *p; }  // caches are not emulated
inline void store_passing(uint4* p, uint4 v) { *p = v; }
inline void copy_async(void* to, const void* from, int bytes) {  // 16 bytes, those beyond `bytes` zero
  emulated::self().open.push_back({to, from, bytes, 16});
}
inline void copy_async_commit() {
  emulated::self().groups.push_back(std::move(emulated::self().open));
  emulated::self().open.clear();
}
template <int PENDING> void copy_async_wait() {
  auto& groups = emulated::self().groups;
  while (groups.size() > size_t(PENDING)) {
    for (const emulated::Copy& c : groups.front()) {
      if (reinterpret_cast<uintptr_t>(c.to) % 16 || (c.bytes && reinterpret_cast<uintptr_t>(c.from) % 16)) {
        std::fprintf(stderr, "cp.async of 16 bytes at an address that is not a multiple of 16\n");
        std::abort();
      }
      std::memset(c.to, 0, c.size);
      std::memcpy(c.to, c.from, c.bytes);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  emulated::Warp& warp = *emulated::self().warp;
  const int lane = emulated::self().lane;
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    std::fprintf(stderr, "ldmatrix at an address that is not a multiple of 16\n");
    std::abort();
  }
  std::memcpy(&warp.slot[lane][0], row, 16);
  emulated::wait(warp.barrier);
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int from = transposed ? 2 * (lane % 4) + j : lane / 4, column = transposed ? lane / 4 : 2 * (lane % 4) + j;
      std::memcpy(&pair[j], reinterpret_cast<char*>(warp.slot[8 * m + from]) + 2 * column, 2);
    }
    std::memcpy(&r[m], pair, 4);
  }
  emulated::wait(warp.barrier);
}
inline void ldmatrix(uint32_t (&r)[4], const void* row) { load_matrices(r, row, false); }
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) { load_matrices(r, row, true); }

// d[16, 8] += a[16, 16] · b[16, 8], the fragments of mma.sync.m16n8k16
template <typename T> void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::Warp& warp = *emulated::self().warp;
  const int lane = emulated::self().lane;
  uint32_t* mine = reinterpret_cast<uint32_t*>(warp.slot[lane]);
  std::memcpy(mine, a, 16);
  mine[4] = b0, mine[5] = b1;
  emulated::wait(warp.barrier);
  auto words = [&](int from) { return reinterpret_cast<const uint32_t*>(warp.slot[from]); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, upper = i / 2, column = 2 * (lane % 4) + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const int quad = k % 8 / 2, high = k / 8;
      sum += emulated::half_of(words(4 * row + quad)[upper + 2 * high], k % 2, T()) *
             emulated::half_of(words(4 * column + quad)[4 + high], k % 2, T());
    }
    d[i] += sum;
  }
  emulated::wait(warp.barrier);
}

inline void let_next_begin() {}  // launches run one after the other
inline void wait_for_earlier() {}
inline void prefetch(const void*) {}

// ---- the runtime: a device of three multiprocessors, with EMULATED_SHARED_BYTES for a block, on which nothing else fails
#define RUNTIME extern "C" __attribute__((visibility("hidden")))
RUNTIME cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
RUNTIME cudaError_t cudaSetDevice(int) { return cudaSuccess; }
RUNTIME cudaError_t cudaGetLastError() { return std::exchange(emulated::error, cudaSuccess); }
RUNTIME const char* cudaGetErrorName(cudaError_t) { return "an error"; }
RUNTIME const char* cudaGetErrorString(cudaError_t) { return "an error"; }
RUNTIME cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount            ? 3
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? EMULATED_SHARED_BYTES
                                                                  : 0;
  return cudaSuccess;
}
template <typename F> cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > EMULATED_SHARED_BYTES) return cudaErrorInvalidValue;
  return emulated::allowed_bytes = size_t(max(value, 48 << 10)), cudaSuccess;
}
namespace emulated {
template <typename... P, typename... A> cudaError_t launch_with(const cudaLaunchConfig_t* how, void (*kernel)(P...), A... arguments) {
  const auto& [grid, threads, shared_bytes, stream, attributes, count] = *how;
  dim3 blocks = 1;
  for (unsigned i = 0; i < count; ++i)
    if (attributes[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& together = attributes[i].val.clusterDim;
      blocks = dim3(together.x, together.y, together.z);
    }
  return launch([=] { kernel(arguments...); }, grid, threads, shared_bytes, nullptr, blocks), cudaSuccess;
}
}  // namespace emulated
#define cudaLaunchKernelEx emulated::launch_with  // the runtime's own is a template
