// The dropout mask of tessera/attention.h on the host: the key of a call, and one block of bytes in plain
// code (the kernels draw the same on vector lanes, cpu/dropout.inc.h).
#pragma once

#include <array>
#include <cstdint>

#include "attention/cpu/dropout_key.h"
#include "attention/problem.h"
#include "core/philox.h"

namespace tessera::attention {

inline DropoutKey dropout_key(const Dropout& dropout) {
  const std::array<uint32_t, 4> sub = philox4x32(
      {static_cast<uint32_t>(dropout.offset), static_cast<uint32_t>(dropout.offset >> 32), 0x64726f70u, 0},
      {static_cast<uint32_t>(dropout.seed), static_cast<uint32_t>(dropout.seed >> 32)});
  return {sub[0],
          sub[1],
          static_cast<uint32_t>(dropout.batch0),
          static_cast<uint32_t>(dropout.head0),
          static_cast<uint32_t>(dropout.row0),
          static_cast<uint32_t>(dropout.col0 / 16),
          static_cast<uint32_t>(dropout.threshold())};
}

// Bytes of columns [16 * block, 16 * block + 16) of a row, column 0 in the lowest byte of the first word.
// Indices count inside the problem; the origin is added here.
inline std::array<uint32_t, 4> dropout_bytes(const DropoutKey& key, int64_t batch, int64_t head, int64_t row,
                                             int64_t block) {
  return philox4x32({key.block0 + static_cast<uint32_t>(block), key.row0 + static_cast<uint32_t>(row),
                     key.head0 + static_cast<uint32_t>(head), key.batch0 + static_cast<uint32_t>(batch)},
                    {key.key0, key.key1});
}

}  // namespace tessera::attention
