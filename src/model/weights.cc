#include "model/weights.h"

#include "core/check.h"
#include "core/format.h"

namespace tessera::model {
namespace {

// Reads tensors of one file and packs them, with one staging buffer.
class Packer {
 public:
  Packer(Context& context, const ModelFile& model, const WeightOptions& options, ArenaAllocator& arena)
      : context_(context), model_(model), options_(options), arena_(arena) {
    for (const GgufTensor& tensor : model.gguf->tensors()) total_ += tensor.bytes;
  }

  Status pack(const std::vector<const std::string*>& names, ops::PanelOrder order, ops::PackedWeight* out) {
    std::vector<const GgufTensor*> tensors;
    uint64_t bytes = 0;
    for (const std::string* name : names) {
      const GgufTensor* tensor = model_.gguf->find_tensor(*name);
      TESSERA_CHECK(tensor != nullptr);  // the layout was checked
      tensors.push_back(tensor);
      bytes += (tensor->bytes + 63) / 64 * 64;
    }
    if (staging_.size() < bytes) {
      TESSERA_ASSIGN_OR_RETURN(staging_, Buffer::create(bytes, "staging memory of the weights"));
    }
    std::vector<ops::WeightSource> sources;
    std::byte* at = staging_.as<std::byte>();
    for (const GgufTensor* tensor : tensors) {
      TESSERA_RETURN_IF_ERROR(model_.gguf->read(*tensor, 0, {at, tensor->bytes}));
      sources.push_back({tensor->dtype, at, tensor->shape[0]});
      at += (tensor->bytes + 63) / 64 * 64;
      done_ += tensor->bytes;
    }
    TESSERA_ASSIGN_OR_RETURN(*out, ops::PackedWeight::pack(context_, sources, tensors[0]->shape[1],
                                                           options_.compute, order, arena_));
    packed_ += out->bytes();
    if (options_.progress) options_.progress(static_cast<double>(done_) / static_cast<double>(total_));
    return {};
  }
  Status pack(const std::string& name, ops::PackedWeight* out) {
    return pack({&name}, ops::PanelOrder::concatenated, out);
  }

  Status read_norm(const std::string& name, std::vector<float>* out) {
    const GgufTensor* tensor = model_.gguf->find_tensor(name);
    TESSERA_CHECK(tensor != nullptr && tensor->dtype == DType::f32);
    out->resize(static_cast<size_t>(tensor->elements()));
    packed_ += static_cast<int64_t>(tensor->bytes);
    done_ += tensor->bytes;
    return model_.gguf->read(*tensor, 0, std::as_writable_bytes(std::span(*out)));
  }
  int64_t packed_bytes() const { return packed_; }

 private:
  Context& context_;
  const ModelFile& model_;
  const WeightOptions& options_;
  ArenaAllocator& arena_;
  Buffer staging_;
  uint64_t total_ = 0, done_ = 0;
  int64_t packed_ = 0;
};

}  // namespace

Result<Weights> Weights::load(Context& context, const ModelFile& model, const WeightOptions& options) {
  Weights weights;
  Packer packer(context, model, options, *weights.arena_);
  const TensorNames& names = model.tensors;
  TESSERA_RETURN_IF_ERROR(packer.pack(names.embedding, &weights.embedding_));
  for (const LayerTensors& from : names.layers) {
    Layer to;
    TESSERA_RETURN_IF_ERROR(packer.read_norm(from.attn_norm, &to.attention_norm));
    TESSERA_RETURN_IF_ERROR(packer.read_norm(from.ffn_norm, &to.ffn_norm));
    if (options.fused) {
      TESSERA_RETURN_IF_ERROR(packer.pack({&from.q, &from.k, &from.v}, ops::PanelOrder::concatenated, &to.q));
      TESSERA_RETURN_IF_ERROR(packer.pack({&from.gate, &from.up}, ops::PanelOrder::interleaved, &to.gate));
    } else {
      TESSERA_RETURN_IF_ERROR(packer.pack(from.q, &to.q));
      TESSERA_RETURN_IF_ERROR(packer.pack(from.k, &to.k));
      TESSERA_RETURN_IF_ERROR(packer.pack(from.v, &to.v));
      TESSERA_RETURN_IF_ERROR(packer.pack(from.gate, &to.gate));
      TESSERA_RETURN_IF_ERROR(packer.pack(from.up, &to.up));
    }
    TESSERA_RETURN_IF_ERROR(packer.pack(from.attn_output, &to.attention_output));
    TESSERA_RETURN_IF_ERROR(packer.pack(from.down, &to.down));
    weights.layers_.push_back(std::move(to));
  }
  TESSERA_RETURN_IF_ERROR(packer.read_norm(names.output_norm, &weights.output_norm_));
  if (!model.config.tied_head) TESSERA_RETURN_IF_ERROR(packer.pack(names.head, &weights.head_));
  weights.bytes_ = packer.packed_bytes();
  if (options.progress) options.progress(1.0);
  return weights;
}

const ops::PackedWeight& Weights::matrix(int layer, WeightRole role) const {
  switch (role) {
    case WeightRole::token_embedding:
      return embedding_;
    case WeightRole::output:
      return head_;
    default:
      break;
  }
  const Layer& from = layers_.at(static_cast<size_t>(layer));
  switch (role) {
    case WeightRole::q:
      return from.q;
    case WeightRole::k:
      return from.k;
    case WeightRole::v:
      return from.v;
    case WeightRole::attention_output:
      return from.attention_output;
    case WeightRole::gate:
      return from.gate;
    case WeightRole::up:
      return from.up;
    case WeightRole::down:
      return from.down;
    default:
      check_failed(__FILE__, __LINE__, "a matrix", name(role));
  }
}

const float* Weights::norm(int layer, WeightRole role) const {
  if (role == WeightRole::output_norm) return output_norm_.data();
  const Layer& from = layers_.at(static_cast<size_t>(layer));
  TESSERA_CHECK(role == WeightRole::attention_norm || role == WeightRole::ffn_norm);
  return role == WeightRole::attention_norm ? from.attention_norm.data() : from.ffn_norm.data();
}

}  // namespace tessera::model
