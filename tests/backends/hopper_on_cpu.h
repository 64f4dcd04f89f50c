// Hopper's own instructions on the CPU, beside cuda_on_cpu.h: mbarriers, tiles copied by TMA, wgmma.
//
// A product is computed when it is waited for, from what then lies in shared memory: a stage that is refilled too early
// shows. The 128-byte swizzle is applied to addresses, by the copy and by the product each on its own. Not covered:
// fences between the proxies, and how many registers a warpgroup holds.
#pragma once
#include <cuda.h>

#include "cuda_on_cpu.h"

namespace emulated {

struct MBarrier {  // 64 bits: arrivals still to come and of a phase, bytes still to come, completed phases modulo 2
  uint16_t pending, arrivals;
  int32_t bytes_and_parity;
};
inline MBarrier& barrier_at(uint64_t* p) { return *reinterpret_cast<MBarrier*>(p); }
inline void count(MBarrier& b, int arrived, int bytes) {
  if (arrived > b.pending) {
    std::fprintf(stderr, "mbarrier: more arrivals than a phase has\n");
    std::abort();
  }
  b.pending -= uint16_t(arrived);
  b.bytes_and_parity += 2 * bytes;
  if (b.pending == 0 && b.bytes_and_parity / 2 == 0) {
    b.pending = b.arrivals;
    b.bytes_and_parity ^= 1;
    ++progress;
  }
}

struct Map {  // what a CUtensorMap holds here
  const char* data;
  int rank, element;
  int64_t sizes[4], strides[4];  // elements, bytes
  int box[4];
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

inline CUresult encode(CUtensorMap* to, CUtensorMapDataType, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Map map{static_cast<const char*>(data), int(rank), 2, {1, 1, 1, 1}, {2, 0, 0, 0}, {1, 1, 1, 1}};
  bool right = data && reinterpret_cast<uintptr_t>(data) % 16 == 0 && swizzle == CU_TENSOR_MAP_SWIZZLE_128B && box[0] * 2 <= 128;
  for (unsigned i = 0; i < rank; ++i) {
    map.sizes[i] = int64_t(sizes[i]);
    map.box[i] = int(box[i]);
    if (i) map.strides[i] = int64_t(strides[i - 1]);
    right = right && sizes[i] > 0 && box[i] > 0 && box[i] <= 256 && steps[i] == 1;
    right = right && (i == 0 || (strides[i - 1] % 16 == 0 && strides[i - 1] > 0));
  }
  std::memcpy(to, &map, sizeof(map));
  return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

inline char* swizzled(int64_t address) {  // of 16-byte piece, bits 4 to 6, with bits 7 to 9
  return static_cast<char*>(dynamic_shared()) + (address ^ ((address >> 7 & 7) << 4));
}

inline void copy_box(void* to, const Map& map, std::array<int, 4> at, uint64_t* barrier) {
  const int64_t base = static_cast<char*>(to) - static_cast<char*>(dynamic_shared());
  if (base % 1024) {
    std::fprintf(stderr, "TMA into an address that is not a multiple of 1024\n");
    std::abort();
  }
  int64_t row = 0;
  for (int d3 = 0; d3 < map.box[3]; ++d3)
    for (int d2 = 0; d2 < map.box[2]; ++d2)
      for (int d1 = 0; d1 < map.box[1]; ++d1, ++row)
        for (int d0 = 0; d0 < map.box[0]; ++d0) {
          const int64_t index[4] = {at[0] + d0, at[1] + d1, at[2] + d2, at[3] + d3};
          const char* from = map.data;
          bool inside = true;
          for (int i = 0; i < 4; ++i) {
            inside = inside && index[i] >= 0 && index[i] < map.sizes[i];
            from += index[i] * map.strides[i];
          }
          uint16_t value = 0;
          if (inside) std::memcpy(&value, from, 2);
          std::memcpy(swizzled(base + row * 128 + d0 * 2), &value, 2);
        }
  count(barrier_at(barrier), 0, -int(row) * map.box[0] * 2);
}

inline uint16_t element_at(uint64_t descriptor, bool lines_along_k, int line, int k) {
  const int64_t start = int64_t(descriptor & 0x3fff) << 4, leading = int64_t(descriptor >> 16 & 0x3fff) << 4;
  const int64_t stride = int64_t(descriptor >> 32 & 0x3fff) << 4;
  const int64_t address = lines_along_k ? start + line / 8 * stride + line % 8 * 128 + k * 2
                                        : start + line / 64 * leading + k / 8 * stride + k % 8 * 128 + line % 64 * 2;
  uint16_t value;
  std::memcpy(&value, swizzled(address), 2);
  return value;
}

struct Products {  // begun by one thread: of each group the outputs of this lane, computed when waited for
  std::vector<std::vector<std::function<void()>>> groups;
  std::vector<std::function<void()>> open;
};
inline Products& products() {
  static std::vector<Products> all(1024);
  const uint3 i = self().index;
  return all[i.x + block_size.x * (i.y + block_size.y * i.z)];
}

// d: this lane's part of [64, 2 N / ...]: rows lane / 4 and 8 further of its warp's 16, columns as mma.m16n8's.
template <typename T> void multiply(float* d, int n, const std::array<std::array<float, 16>, 2>& a, uint64_t b, bool n_lines, bool keep) {
  const int lane = self().lane;
  for (int i = 0; i < n; ++i) {
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2, row = i / 2 % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += a[row][k] * half_of(element_at(b, !n_lines, column, k), 0, T());
    d[i] = keep ? d[i] + sum : sum;
  }
}

}  // namespace emulated

inline uint64_t __cvta_generic_to_shared(const void* p) {
  return uint64_t(static_cast<const char*>(p) - static_cast<const char*>(emulated::dynamic_shared()));
}
inline void barrier_init(uint64_t* p, int arrivals) { emulated::barrier_at(p) = {uint16_t(arrivals), uint16_t(arrivals), 0}; }
inline void barrier_arrive(uint64_t* p) { emulated::count(emulated::barrier_at(p), 1, 0); }
inline void barrier_expect(uint64_t* p, int bytes) { emulated::count(emulated::barrier_at(p), 0, bytes), barrier_arrive(p); }
inline void barrier_wait(uint64_t* p, int parity) {
  while ((emulated::barrier_at(p).bytes_and_parity & 1) == parity) emulated::yield();
}
inline void copy_tile(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  emulated::copy_box(to, *reinterpret_cast<const emulated::Map*>(map), {column, row, 0, 0}, barrier);
}
inline void copy_tile(void* to, const CUtensorMap* map, int column, int row, int head, int batch, uint64_t* barrier) {
  emulated::copy_box(to, *reinterpret_cast<const emulated::Map*>(map), {column, row, head, batch}, barrier);
}
inline void copy_tile_once(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  copy_tile(to, map, column, row, barrier);
}
inline void cluster_sync() { emulated::wait(emulated::everyone); }
inline float peer(const float* p, int rank) {
  const int64_t offset = reinterpret_cast<const char*>(p) - static_cast<char*>(emulated::dynamic_shared());
  return *reinterpret_cast<const float*>(static_cast<char*>(emulated::shared_of(emulated::cluster[rank])) + offset);
}
inline void prefetch_tile(const CUtensorMap*, int, int) {}
inline void take_turn(int) {}  // an order in time: results do not depend on it
inline void give_turn(int) {}
inline void wgmma_fence() {}
inline void wgmma_commit() {
  auto& products = emulated::products();
  products.groups.push_back(std::move(products.open));
  products.open.clear();
}
template <int PENDING> void wgmma_wait() {
  auto& groups = emulated::products().groups;
  while (groups.size() > size_t(PENDING)) {
    for (auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
}

template <typename T, bool N_LINES, int N> void wgmma(float (&d)[N], uint64_t a, uint64_t b, bool keep) {
  float* out = d;
  const int first = int(threadIdx.x) % 128 / 32 * 16 + emulated::self().lane / 4;
  emulated::products().open.push_back([=] {
    std::array<std::array<float, 16>, 2> rows;
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 16; ++k) rows[h][k] = emulated::half_of(emulated::element_at(a, true, first + 8 * h, k), 0, T());
    emulated::multiply<T>(out, N, rows, b, N_LINES, keep);
  });
}
template <typename T, int N> void wgmma(float (&d)[N], uint64_t a, uint64_t b, bool keep) { wgmma<T, false, N>(d, a, b, keep); }
// a in registers: the fragment of mma.m16n8k16, whose rows are spread over four lanes
template <typename T, int N> void wgmma(float (&d)[N], const uint32_t (&a)[4], uint64_t b) {
  std::array<std::array<float, 16>, 2> rows;
  for (int quad = 0; quad < 4; ++quad)
    for (int w = 0; w < 4; ++w) {
      const uint32_t word = emulated::from_lane(a[w], emulated::self().lane / 4 * 4 + quad);
      for (int j = 0; j < 2; ++j) rows[w % 2][w / 2 * 8 + quad * 2 + j] = emulated::half_of(word, j, T());
    }
  float* out = d;
  emulated::products().open.push_back([=] { emulated::multiply<T>(out, N, rows, b, true, true); });
}
RUNTIME cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return std::memset(to, value, bytes), cudaSuccess; }
RUNTIME cudaError_t cudaGetDriverEntryPointByVersion(
    const char*, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult*) {
  return *function = reinterpret_cast<void*>(&emulated::encode), cudaSuccess;
}
