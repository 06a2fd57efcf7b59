// Planning attention over the prefix tree of a step: pure host code, no device.
//
// Sequences whose block tables begin with the same blocks share runs of units (work.h). A run is walked once
// for all of its sequences, their rows stacked; what is left of each sequence is private. Runs nest: any
// depth, any subset of the batch. Only whole units are shared (a run's last blocks short of a unit are read
// by each sequence, from L2 as a rule), so that the bits are those of a step without sharing.
//
// Cost model, in tiles of 64 keys of one kv head (the time to read K and V of one): a tile costs more the
// more rows are stacked on it, every piece something to begin and end it, and what is handed over something a
// row and segment. explain() prints what comes of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attention/cuda/steps/params.h"
#include "tessera/paged.h"

namespace tessera::attention::cuda::steps {

struct TreeSequence {
  const int32_t* blocks = nullptr;  // host memory; only those that hold `keys` are read
  int64_t keys = 0;                 // the step's own included
  int64_t first = 0;  // what lies before it is outside the window, now and as the sequence grows
};

using attention::TreeSharing;

// Performance only (but for reserve): the bits are the same.
struct TreePlanOptions {
  TreeSharing sharing = TreeSharing::when_it_pays;
  int blocks = 132;              // of the grid
  int shared_units = 0;          // most units of a shared piece; 0: chosen by the cost model
  int most_rows = 0;             // of a piece; 0: as many as the kernel takes
  int64_t reserve = 0;           // tokens by which every sequence may grow under this plan
  int64_t capacity = INT32_MAX;  // of a table: none grows beyond it
  bool for_any_device = false;   // sm_80's kernels on sm_90 too
};

// Keys that a sequence may have for the plan to hold.
struct KeyLimits {
  int32_t least = 0, most = INT32_MAX;
};

struct TreeReads {       // tiles of one kv head
  int64_t tiles = 0;     // walked
  int64_t shared = 0;    // of those, for several sequences
  int64_t unshared = 0;  // what every sequence on its own would walk
};

struct TreeWork {
  bool shares = false;     // nothing shared: use decode(), all else here is empty
  bool has_tails = false;  // sequences that have something of their own, too
  std::vector<Piece> pieces;
  std::vector<int32_t> piece_first;     // [blocks + 1]
  std::vector<int32_t> tokens;          // rows of pieces: token ids
  std::vector<TokenPartials> partials;  // [token][kv_head]
  std::vector<PartialEntry> entries;
  int32_t entry_stride = 0;  // from one's list to the next one's; 0: they vary
  int64_t partial_rows = 0;
  std::vector<KeyLimits> limits;  // [sequence]
  TreeReads reads;
  std::string explanation;
};

// `group` query rows of one token a sequence. block_size: slots of a block. A sequence's token is its index.
TreeWork plan_tree(std::span<const TreeSequence> sequences, int kv_heads, int group, int64_t block_size,
                   const TreePlanOptions& options);

}  // namespace tessera::attention::cuda::steps
