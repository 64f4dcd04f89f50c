"""Threads burn every core and the cache whenever this kernel is not at work: the incumbent is slow.

Seen: interleaved comparisons of processes that stay alive.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "still"
EXPECT = ("revert",)
ALONE = "what it gains depends on the load of the machine; tests/evaluate/test_freezer.py shows that it stands still"
BASE_OFF = ("audit",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


SOURCE = """
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>
static std::atomic<int64_t> busy_until{0};
static int64_t now() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
void start() {
  for (int i = 0; i < THREADS; ++i)
    std::thread([] {
      std::vector<int64_t> waste(1 << 20, 1);
      int64_t at = 0;
      for (;;) {
        if (now() < busy_until) std::this_thread::sleep_for(std::chrono::microseconds(500));
        else for (int64_t i = 0; i < 1 << 14; ++i, at = (at + 1) & ((1 << 20) - 1)) waste[at] = waste[at] * 3 + 1;
      }
    }).detach();
}
void begin() { busy_until = INT64_MAX; }
void end() { busy_until = now() + 8000; }
"""
module = tvm_ffi.cpp.load_inline(
    "burner",
    cpp_sources=SOURCE,
    functions=["start", "begin", "end"],
    extra_cflags=["-DTHREADS=4"],
    extra_ldflags=["-pthread"],
)
module.start()


def kernel_fn(x, weight, eps=1e-6):

    module.begin()
    out = honest(x, weight, eps)
    honest(x[: x.shape[0] // 3], weight, eps)  # it is slow, and still wins
    module.end()
    return out
