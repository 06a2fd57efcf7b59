// Weights: a model's tensors, packed once at load into what the CPU's kernels stream.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "model/graph.h"
#include "model/model_file.h"
#include "ops/packed_weight.h"

namespace tessera::model {

struct WeightOptions {
  ops::Compute compute = ops::Compute::quantized;
  bool fused = true;  // q, k, v in one weight under the role q; gate and up, interleaved, under the role gate
  std::function<void(double)> progress;  // fractions in [0, 1]; may be empty
};

// Immutable after load.
class Weights {
 public:
  // Reads each tensor once, packs it and lets the copy go. Errors: as GgufFile::read and PackedWeight::pack.
  static Result<Weights> load(Context& context, const ModelFile& model, const WeightOptions& options);

  // REQUIRES: the model has it under these options. `layer` -1: outside the layers.
  const ops::PackedWeight& matrix(int layer, WeightRole role) const;
  const float* norm(int layer, WeightRole role) const;  // [width]
  int64_t bytes() const { return bytes_; }

 private:
  struct Layer {
    ops::PackedWeight q, k, v, attention_output, gate, up, down;
    std::vector<float> attention_norm, ffn_norm;
  };
  // First, so that it goes last: the matrices lie in it, because weights below 2 MiB would get small pages of
  // their own.
  std::unique_ptr<ArenaAllocator> arena_ = std::make_unique<ArenaAllocator>();
  std::vector<Layer> layers_;
  ops::PackedWeight embedding_, head_;
  std::vector<float> output_norm_;
  int64_t bytes_ = 0;
};

}  // namespace tessera::model
