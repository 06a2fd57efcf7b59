// In the place of the library's common/ptx.cuh: the same functions, as the PTX ISA describes them.
#pragma once

#include "tests/cuda/emulator/device_on_host.h"

namespace tessera::attention::cuda {

inline uint32_t shared_address(const void* pointer) {
  return emulator::shared_address(pointer);
}
inline void named_barrier_sync(uint32_t id, uint32_t threads) {
  emulator::barrier(static_cast<int>(id), static_cast<int>(threads));
}
// Eight bytes of shared memory, here the arrivals of a phase, those that it still waits for, and the phase.
struct EmulatedBarrier {
  uint16_t arrivals, pending;
  uint32_t phase;
};
inline EmulatedBarrier& mbarrier(uint32_t address) {
  return *reinterpret_cast<EmulatedBarrier*>(emulator::shared(address, sizeof(EmulatedBarrier)));
}
inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  mbarrier(barrier) = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0};
}
inline void mbarrier_arrive(uint32_t barrier) {
  EmulatedBarrier& b = mbarrier(barrier);
  if (--b.pending != 0) return;
  b.pending = b.arrivals;
  ++b.phase;
}
inline bool mbarrier_passed(uint32_t barrier, uint32_t parity) {
  if ((mbarrier(barrier).phase & 1) != parity) return true;
  emulator::pause();
  return false;
}
inline void cp_async_16(uint32_t shared, const void* global, bool valid) {
  emulator::copy_async(shared, global, valid);
}
inline void cp_async_commit() {
  emulator::commit_copies();
}
template <int Pending>
void cp_async_wait() {
  emulator::wait_copies(Pending);
}
inline void near(const int32_t* address) {
  static volatile int32_t unused;
  unused = *address;
}
inline void near_in_l2(const int32_t*) {}
inline int32_t load_now(const int32_t* address) {
  return *address;
}
inline uint32_t load_acquire(const uint32_t* address) {
  return *address;
}
inline void add_release(uint32_t* address, uint32_t value) {
  *address += value;
}
inline void dependency_wait() {}
inline void dependency_launch() {}

template <typename T>
T load_shared(uint32_t address) {
  T x;
  std::memcpy(&x, emulator::shared(address, sizeof x), sizeof x);
  return x;
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  const emulator::Shown* all = emulator::show(emulator::as_shown(shared));
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) {
    const auto row = emulator::seen<uint32_t>(all[8 * i + lane / 4]);
    r[i] = load_shared<uint32_t>(row + 4 * static_cast<uint32_t>(lane % 4));
  }
}
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], uint32_t shared) {
  const emulator::Shown* all = emulator::show(emulator::as_shown(shared));
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int row) {
      return uint32_t{load_shared<uint16_t>(emulator::seen<uint32_t>(all[8 * i + row]) +
                                            2 * static_cast<uint32_t>(lane / 4))};
    };
    r[i] = element(2 * (lane % 4)) | element(2 * (lane % 4) + 1) << 16;
  }
}
inline uint32_t movmatrix(uint32_t x) {
  const emulator::Shown* all = emulator::show(emulator::as_shown(x));
  const int lane = emulator::lane();
  const auto element = [&](int row) {
    return emulator::seen<uint32_t>(all[4 * row + lane / 8]) >> (16 * (lane / 4 % 2)) & 0xffff;
  };
  return element(2 * (lane % 4)) | element(2 * (lane % 4) + 1) << 16;
}

inline float half_bits_to_float(uint16_t bits) {
  __half x;
  std::memcpy(static_cast<void*>(&x), &bits, 2);
  return static_cast<float>(x);
}
inline float exp2_fast(float x) {
  return std::exp2(x);
}
template <typename T>
uint32_t pack2(float low, float high) {
  const T pair[2] = {static_cast<T>(low), static_cast<T>(high)};
  uint32_t packed;
  std::memcpy(&packed, pair, 4);
  return packed;
}

}  // namespace tessera::attention::cuda
