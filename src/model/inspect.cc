#include "model/inspect.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>
#include <map>

#include "core/check.h"
#include "core/format.h"

namespace tessera::model {
namespace {

// 1234567 -> "1,234,567"
std::string grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (size_t i = text.size(); i > 3; i -= 3) text.insert(i - 3, 1, ',');
  return text;
}

std::string size_text(uint64_t bytes) {
  if (bytes < 1'000'000) return grouped(static_cast<int64_t>(bytes)) + " bytes";
  const double megabytes = static_cast<double>(bytes) / 1e6;
  return format("{} bytes ({:.1f} MB)", grouped(static_cast<int64_t>(bytes)), megabytes);
}

std::string rope_text(const RopeConfig& rope) {
  const char* kind = rope.kind == RopeKind::interleaved ? "interleaved" : "rotate-half";
  std::string text = format("rotary ({}) over {} elements of a head, base {}", kind, rope.dims, rope.base);
  if (rope.scale != 1.0f) text += format(", positions divided by {}", rope.scale);
  if (!rope.factors.empty()) text += ", frequency factors";
  return text;
}

bool half_is_finite(uint16_t bits) {
  return (bits & 0x7c00) != 0x7c00;
}

int64_t non_finite_in(DType dtype, const std::byte* data, size_t bytes) {
  const auto half = [&](size_t at) {
    uint16_t bits;
    std::memcpy(&bits, data + at, sizeof bits);
    return bits;
  };
  int64_t count = 0;
  switch (dtype) {
    case DType::f32:
      for (size_t at = 0; at < bytes; at += 4) {
        uint32_t bits;
        std::memcpy(&bits, data + at, sizeof bits);
        count += (bits & 0x7f800000u) == 0x7f800000u;
      }
      return count;
    case DType::f16:
      for (size_t at = 0; at < bytes; at += 2) count += !half_is_finite(half(at));
      return count;
    case DType::bf16:
      for (size_t at = 0; at < bytes; at += 2) count += (half(at) & 0x7f80) == 0x7f80;
      return count;
    case DType::q4_0:
    case DType::q4_1:
    case DType::q8_0: {  // one or two halves stand before the block's integers
      const DTypeInfo& block = info(dtype);
      for (size_t at = 0; at < bytes; at += static_cast<size_t>(block.block_bytes)) {
        const bool finite =
            half_is_finite(half(at)) && (dtype != DType::q4_1 || half_is_finite(half(at + 2)));
        count += finite ? 0 : block.block_elements;
      }
      return count;
    }
    case DType::i8:
    case DType::i32:
      return 0;
  }
  return count;
}

}  // namespace

Result<int64_t> count_non_finite(const GgufFile& gguf, const GgufTensor& tensor) {
  const uint64_t block = static_cast<uint64_t>(info(tensor.dtype).block_bytes);
  std::vector<std::byte> piece((uint64_t{1} << 20) / block * block);
  int64_t count = 0;
  for (uint64_t first = 0; first < tensor.bytes; first += piece.size()) {
    const std::span<std::byte> part =
        std::span(piece).first(std::min<uint64_t>(piece.size(), tensor.bytes - first));
    TESSERA_RETURN_IF_ERROR(gguf.read(tensor, first, part));
    count += non_finite_in(tensor.dtype, part.data(), part.size());
  }
  return count;
}

Result<Inspection> inspect(const std::string& path, bool check_weights, FileSystem& files) {
  TESSERA_ASSIGN_OR_RETURN(const ModelFile model, open_model(path, files));
  const GgufFile& gguf = *model.gguf;
  Inspection result;
  result.path = path;
  result.file_bytes = gguf.file().size();
  result.gguf_version = gguf.version();
  result.config = model.config;
  std::map<DType, TensorTypeSum> sums;
  for (const GgufTensor& tensor : gguf.tensors()) {
    TensorTypeSum& sum = sums[tensor.dtype];
    sum.dtype = tensor.dtype;
    sum.tensors += 1;
    sum.elements += tensor.elements();
    sum.bytes += static_cast<int64_t>(tensor.bytes);
    result.parameters += tensor.elements();
  }
  for (const auto& [dtype, sum] : sums) result.types.push_back(sum);
  std::stable_sort(result.types.begin(), result.types.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  result.tokenizer = model.vocab.kind;
  result.pre_tokenizer = model.vocab.pre;
  result.merges = model.vocab.merges != nullptr ? static_cast<int64_t>(model.vocab.merges->size()) : 0;
  result.bos = model.vocab.bos;
  result.eos = model.vocab.eos;
  result.chat_template = !model.chat_template.empty();
  result.checked = check_weights;
  if (check_weights) {
    for (const GgufTensor& tensor : gguf.tensors()) {
      TESSERA_ASSIGN_OR_RETURN(const int64_t values, count_non_finite(gguf, tensor));
      if (values > 0) result.non_finite.push_back({tensor.name, values});
    }
  }
  TESSERA_ASSIGN_OR_RETURN(result.sha256, sha256_file(gguf.file()));
  return result;
}

std::string inspection_text(const Inspection& inspection) {
  const ModelConfig& config = inspection.config;
  const StackConfig& stack = config.stacks[0];
  const int64_t kv = config.kv_elements_per_token();
  std::string text;
  const auto line = [&](const char* label, const std::string& value) {
    text += format("{:<16}{}\n", label, value);
  };
  line("file", quote_text(inspection.path));
  line("size", size_text(inspection.file_bytes));
  line("sha256", inspection.sha256);
  line("format", format("GGUF version {}", inspection.gguf_version));
  line("architecture", config.architecture);
  if (!config.name.empty()) line("name", quote_text(config.name));
  line("parameters", grouped(inspection.parameters));
  line("layers", std::to_string(stack.layers));
  line("width", format("{}, feed-forward {}", stack.width, stack.ffn_width));
  line("heads",
       format("{} of {} elements, {} for keys and values", stack.heads, stack.head_dim, stack.kv_heads));
  line("window", stack.windows[0] > 0 ? format("{} tokens", stack.windows[0]) : "all tokens");
  line("positions", rope_text(stack.rope));
  line("context", format("{} tokens", config.context_length));
  line("vocabulary", format("{} tokens, head {}", config.vocab_size,
                            config.tied_head ? "tied to the embedding" : "of its own"));
  line("tokenizer", format("{}, pre-tokenizer {}, {} merges", quote_text(inspection.tokenizer),
                           quote_text(inspection.pre_tokenizer), inspection.merges));
  line("bos, eos", format("{}, {}", inspection.bos, inspection.eos));
  line("chat template", inspection.chat_template ? "yes" : "no");
  for (const TensorTypeSum& sum : inspection.types) {
    line("tensors", format("{:<5}{:>5} tensors, {} elements, {}", name(sum.dtype), sum.tensors,
                           grouped(sum.elements), size_text(static_cast<uint64_t>(sum.bytes))));
  }
  line("KV per token", format("{} bytes as f32, {} as bf16", kv * 4, kv * 2));
  if (inspection.checked && inspection.non_finite.empty()) line("weights", "all finite");
  for (const NonFiniteTensor& tensor : inspection.non_finite) {
    line("weights", format("{}: {} values are NaN or infinite", quote_text(tensor.name), tensor.values));
  }
  return text;
}

std::string inspection_json(const Inspection& inspection) {
  const ModelConfig& config = inspection.config;
  const StackConfig& stack = config.stacks[0];
  const int64_t kv = config.kv_elements_per_token();
  boost::json::array types;
  for (const TensorTypeSum& sum : inspection.types) {
    types.push_back({{"type", name(sum.dtype)},
                     {"tensors", sum.tensors},
                     {"elements", sum.elements},
                     {"bytes", sum.bytes}});
  }
  boost::json::object object{
      {"file", inspection.path},
      {"file_bytes", inspection.file_bytes},
      {"sha256", inspection.sha256},
      {"gguf_version", inspection.gguf_version},
      {"architecture", config.architecture},
      {"name", config.name},
      {"parameters", inspection.parameters},
      {"layers", stack.layers},
      {"width", stack.width},
      {"ffn_width", stack.ffn_width},
      {"heads", stack.heads},
      {"kv_heads", stack.kv_heads},
      {"head_dim", stack.head_dim},
      {"sliding_window", stack.windows[0]},
      {"norm_eps", stack.norm_eps},
      {"rope",
       {{"kind", stack.rope.kind == RopeKind::interleaved ? "interleaved" : "rotate_half"},
        {"dims", stack.rope.dims},
        {"base", stack.rope.base},
        {"scale", stack.rope.scale},
        {"factors", !stack.rope.factors.empty()}}},
      {"context_length", config.context_length},
      {"vocab_size", config.vocab_size},
      {"tied_head", config.tied_head},
      {"tokenizer",
       {{"kind", inspection.tokenizer},
        {"pre", inspection.pre_tokenizer},
        {"merges", inspection.merges},
        {"bos", inspection.bos},
        {"eos", inspection.eos}}},
      {"chat_template", inspection.chat_template},
      {"tensor_types", types},
      {"kv_bytes_per_token", {{"f32", kv * 4}, {"bf16", kv * 2}}},
  };
  if (inspection.checked) {
    boost::json::object tensors;
    for (const NonFiniteTensor& tensor : inspection.non_finite) tensors[tensor.name] = tensor.values;
    object["non_finite"] = tensors;
  }
  return boost::json::serialize(object) + "\n";
}

}  // namespace tessera::model
