// What the host hands to a kernel about dropout: plain data.
#pragma once

#include <cstdint>

namespace tessera::attention {

// What all rows of a call share.
struct DropoutKey {
  uint32_t key0 = 0, key1 = 0;
  uint32_t batch0 = 0, head0 = 0, row0 = 0;  // added to the counters
  uint32_t block0 = 0;                       // col0 / 16
  uint32_t threshold = 255;                  // a column stays iff its byte is at most this
};

// One row's own counters, without the origin.
struct DropoutRow {
  uint32_t batch, head, row;
};

}  // namespace tessera::attention
