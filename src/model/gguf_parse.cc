// The parser of GGUF headers. Reads forward through a window of the file; see gguf.h for what it guarantees.
#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>

#include "core/checked.h"
#include "core/format.h"
#include "model/gguf.h"

namespace tessera::model {
namespace {

constexpr uint32_t kTypes = 13;
constexpr uint64_t kMinKeyEntry = 8 + 1 + 4 + 1;  // length, one letter, type, one byte of value
constexpr uint64_t kMinTensorEntry =
    8 + 1 + 4 + 8 + 4 + 8;  // length, one letter, rank, one extent, type, offset

// Bytes of a fixed-size type; 0 for string and array.
uint64_t fixed_bytes(GgufType type) {
  constexpr uint8_t kBytes[kTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

// The fewest bytes that one element of an array takes.
uint64_t min_bytes(GgufType type) {
  return type == GgufType::string ? 8 : type == GgufType::array ? 12 : fixed_bytes(type);
}

struct TensorType {
  const char* name;
  std::optional<DType> dtype;
};
// By the number in the file; a null name was never given out or was withdrawn.
constexpr TensorType kTensorTypes[] = {
    {"F32", DType::f32},   {"F16", DType::f16}, {"Q4_0", DType::q4_0}, {"Q4_1", DType::q4_1}, {nullptr, {}},
    {nullptr, {}},         {"Q5_0", {}},        {"Q5_1", {}},          {"Q8_0", DType::q8_0}, {"Q8_1", {}},
    {"Q2_K", {}},          {"Q3_K", {}},        {"Q4_K", {}},          {"Q5_K", {}},          {"Q6_K", {}},
    {"Q8_K", {}},          {"IQ2_XXS", {}},     {"IQ2_XS", {}},        {"IQ3_XXS", {}},       {"IQ1_S", {}},
    {"IQ4_NL", {}},        {"IQ3_S", {}},       {"IQ2_S", {}},         {"IQ4_XS", {}},        {"I8", {}},
    {"I16", {}},           {"I32", {}},         {"I64", {}},           {"F64", {}},           {"IQ1_M", {}},
    {"BF16", DType::bf16}, {nullptr, {}},       {nullptr, {}},         {nullptr, {}},         {"TQ1_0", {}},
    {"TQ2_0", {}},         {nullptr, {}},       {nullptr, {}},         {nullptr, {}},         {"MXFP4", {}},
};

}  // namespace

class GgufParser {
 public:
  GgufParser(std::unique_ptr<File> file, const std::string& name) : gguf_(new GgufFile) {
    gguf_->file_ = std::move(file);
    gguf_->name_ = name;
    size_ = gguf_->file_->size();
  }

  Result<std::unique_ptr<GgufFile>> parse() {
    TESSERA_RETURN_IF_ERROR(parse_preamble());
    for (uint64_t i = 0; i < keys_; ++i) TESSERA_RETURN_IF_ERROR(parse_key(i));
    TESSERA_RETURN_IF_ERROR(index_keys());
    TESSERA_RETURN_IF_ERROR(parse_alignment());
    gguf_->tensors_.reserve(tensors_);  // at most kMaxTensors, and the file has the bytes for them
    for (uint64_t i = 0; i < tensors_; ++i) TESSERA_RETURN_IF_ERROR(parse_tensor(i));
    TESSERA_RETURN_IF_ERROR(index_tensors());
    TESSERA_RETURN_IF_ERROR(check_cover());
    return std::move(gguf_);
  }

 private:
  Status fail(uint64_t place, const std::string& text) const {
    return gguf_->error(format("byte {}: {}", place, text));
  }
  Status not_here(uint64_t place, const std::string& text) const {
    return unsupported(format("{}: byte {}: {}", gguf_->name_, place, text));
  }

  uint64_t remaining() const { return size_ - place_; }

  // Fills `out` from the current place. `what` and `part` name the field; they are joined only when it fails,
  // since this runs for every field of files with millions of them.
  Status bytes(void* out, uint64_t count, const std::string& what, const char* part = "") {
    if (count > remaining()) {
      return fail(place_,
                  format("{}{} needs {} bytes, {} remain in the file", what, part, count, remaining()));
    }
    if (count > GgufFile::kMaxHeaderBytes - std::min(place_, GgufFile::kMaxHeaderBytes)) {
      return fail(place_, format("{}{} ends beyond the {} bytes that a header may have", what, part,
                                 GgufFile::kMaxHeaderBytes));
    }
    std::byte* to = static_cast<std::byte*>(out);
    if (count > sizeof window_) {
      TESSERA_RETURN_IF_ERROR(gguf_->file_->read(place_, std::span(to, count)));
      place_ += count;
      return {};
    }
    if (place_ < window_first_ || place_ + count > window_first_ + window_bytes_) {
      window_bytes_ = 0;
      const uint64_t wanted = std::min<uint64_t>(sizeof window_, remaining());
      TESSERA_RETURN_IF_ERROR(gguf_->file_->read(place_, std::span(window_, wanted)));
      window_first_ = place_;
      window_bytes_ = wanted;
    }
    std::memcpy(to, window_ + (place_ - window_first_), count);
    place_ += count;
    return {};
  }
  Status u32(uint32_t* out, const std::string& what, const char* part = "") {
    return bytes(out, 4, what, part);
  }
  Status u64(uint64_t* out, const std::string& what, const char* part = "") {
    return bytes(out, 8, what, part);
  }

  Status text(std::string* out, uint64_t limit, const std::string& what) {
    const uint64_t start = place_;
    uint64_t length = 0;
    TESSERA_RETURN_IF_ERROR(u64(&length, what, ": its length"));
    if (length > remaining()) {
      return fail(start, format("{} has {} bytes, {} remain in the file", what, length, remaining()));
    }
    if (length > limit) return fail(start, format("{} has {} bytes, the limit is {}", what, length, limit));
    out->resize(length);
    return bytes(out->data(), length, what);
  }

  // A key or a tensor's name: it is printed, searched and compared, so it has to be plain text.
  Status label(std::string* out, uint64_t limit, const std::string& what) {
    const uint64_t start = place_;
    TESSERA_RETURN_IF_ERROR(text(out, limit, what));
    if (out->empty()) return fail(start, what + " is empty");
    if (!valid_utf8(*out)) return fail(start, format("{} is not valid UTF-8: {}", what, quote_text(*out)));
    const auto control = [](char c) { return static_cast<uint8_t>(c) < 0x20 || c == 0x7f; };
    if (std::any_of(out->begin(), out->end(), control)) {
      return fail(start, format("{} has a control character: {}", what, quote_text(*out)));
    }
    return {};
  }

  Status parse_preamble() {
    if (size_ == 0) return gguf_->error("the file is empty");
    uint32_t magic = 0;
    TESSERA_RETURN_IF_ERROR(u32(&magic, "the magic"));
    if (magic != 0x46554747u) {  // "GGUF"
      const std::string found(reinterpret_cast<const char*>(&magic), 4);
      return fail(0, format("the magic is {}, expected 'GGUF'; this is not a GGUF file", quote_text(found)));
    }
    TESSERA_RETURN_IF_ERROR(u32(&gguf_->version_, "the version"));
    const uint32_t version = gguf_->version_;
    if (version == 0) return fail(4, "the version is 0; versions 2 and 3 are read");
    if (version == 1)
      return not_here(4, "the version is 1; versions 2 and 3 are read, so convert the file anew");
    if (version != 2 && version != 3) {
      const uint32_t swapped = __builtin_bswap32(version);
      if (swapped >= 1 && swapped <= 0xffff) {
        return not_here(
            4, format("the file is big-endian (version {}); only little-endian files are read", swapped));
      }
      return not_here(4, format("the version is {}; versions 2 and 3 are read", version));
    }
    TESSERA_RETURN_IF_ERROR(u64(&tensors_, "the number of tensors"));
    TESSERA_RETURN_IF_ERROR(u64(&keys_, "the number of keys"));
    TESSERA_RETURN_IF_ERROR(check_count(8, "tensors", tensors_, kMinTensorEntry, GgufFile::kMaxTensors));
    TESSERA_RETURN_IF_ERROR(check_count(16, "keys", keys_, kMinKeyEntry, GgufFile::kMaxKeys));
    const CheckedSize least = CheckedSize(keys_) * kMinKeyEntry + CheckedSize(tensors_) * kMinTensorEntry;
    if (!least.ok() || *least.get() > remaining()) {
      return fail(8, format("{} tensors and {} keys need more than the {} bytes that remain", tensors_, keys_,
                            remaining()));
    }
    return {};
  }

  Status check_count(uint64_t place, const char* what, uint64_t count, uint64_t least, uint64_t limit) const {
    const CheckedSize needed = CheckedSize(count) * least;
    if (!needed.ok() || *needed.get() > remaining()) {
      return fail(place, format("{} {} need at least {} bytes each, {} remain in the file", count, what,
                                least, remaining()));
    }
    if (count > limit) return fail(place, format("{} {}, the limit is {}", count, what, limit));
    return {};
  }

  Status type(GgufType* out, const std::string& what, const char* part) {
    const uint64_t start = place_;
    uint32_t number = 0;
    TESSERA_RETURN_IF_ERROR(u32(&number, what, part));
    if (number >= kTypes) return fail(start, format("{}{} is {}, the types are 0 to 12", what, part, number));
    *out = static_cast<GgufType>(number);
    return {};
  }

  Status parse_key(uint64_t index) {
    GgufFile::Value value;
    value.place = place_;
    TESSERA_RETURN_IF_ERROR(label(&value.key, GgufFile::kMaxKeyBytes, format("the name of key {}", index)));
    const std::string what = "key '" + value.key + "'";
    TESSERA_RETURN_IF_ERROR(type(&value.type, what, ": its type"));
    if (value.type == GgufType::string) {
      TESSERA_RETURN_IF_ERROR(text(&value.text, GgufFile::kMaxStringBytes, what));
    } else if (value.type == GgufType::array) {
      value.array = std::make_unique<GgufFile::Array>();
      TESSERA_RETURN_IF_ERROR(parse_array(value.array.get(), what, 1));
    } else {
      const uint64_t start = place_;
      TESSERA_RETURN_IF_ERROR(bytes(&value.bits, fixed_bytes(value.type), what));
      if (value.type == GgufType::boolean && value.bits > 1) {
        return fail(start, format("{} is a bool of value {}, expected 0 or 1", what, value.bits));
      }
    }
    gguf_->values_.push_back(std::move(value));
    return {};
  }

  Status parse_array(GgufFile::Array* array, const std::string& what, int depth) {
    const uint64_t start = place_;
    if (depth > GgufFile::kMaxArrayDepth) {
      return fail(start, format("{} nests arrays deeper than {}", what, GgufFile::kMaxArrayDepth));
    }
    TESSERA_RETURN_IF_ERROR(type(&array->element, what, ": its elements' type"));
    TESSERA_RETURN_IF_ERROR(u64(&array->count, what, ": its count"));
    const CheckedSize least = CheckedSize(array->count) * min_bytes(array->element);
    if (!least.ok() || *least.get() > remaining()) {
      return fail(start, format("{} has {} elements of at least {} bytes, {} bytes remain in the file", what,
                                array->count, min_bytes(array->element), remaining()));
    }
    if (*least.get() > GgufFile::kMaxHeaderBytes) {
      return fail(start, format("{} has {} elements, more than the {} bytes that a header may have", what,
                                array->count, GgufFile::kMaxHeaderBytes));
    }
    if (array->element == GgufType::array) {
      for (uint64_t i = 0; i < array->count; ++i) {
        GgufFile::Array inner;
        TESSERA_RETURN_IF_ERROR(parse_array(&inner, what, depth + 1));
      }
      return {};
    }
    if (array->element == GgufType::string) return parse_strings(&array->strings, array->count, what);
    array->raw.resize(*least.get());
    TESSERA_RETURN_IF_ERROR(bytes(array->raw.data(), array->raw.size(), what));
    if (array->element == GgufType::boolean) {
      const auto odd =
          std::find_if(array->raw.begin(), array->raw.end(), [](char c) { return c != 0 && c != 1; });
      if (odd != array->raw.end()) {
        return fail(start, format("{}[{}] is a bool of value {}, expected 0 or 1", what,
                                  odd - array->raw.begin(), static_cast<uint8_t>(*odd)));
      }
    }
    return {};
  }

  // Twice over the bytes: the first walk proves the lengths and adds them up, so that the second one fills
  // memory of exactly that size.
  Status parse_strings(StringList* out, uint64_t count, const std::string& what) {
    const uint64_t start = place_;
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t place = place_;
      uint64_t length = 0;
      TESSERA_RETURN_IF_ERROR(u64(&length, what));
      if (length > remaining()) {
        return fail(place,
                    format("{}[{}] has {} bytes, {} remain in the file", what, i, length, remaining()));
      }
      place_ += length;
      total += length;
    }
    if (place_ > GgufFile::kMaxHeaderBytes) {
      return fail(
          start, format("{} ends at byte {}, a header may have {}", what, place_, GgufFile::kMaxHeaderBytes));
    }
    place_ = start;
    out->reserve(count, total);
    std::string piece;
    for (uint64_t i = 0; i < count; ++i) {
      uint64_t length = 0;
      TESSERA_RETURN_IF_ERROR(u64(&length, what));
      if (length > remaining()) return fail(place_, what + " changed while it was read");
      piece.resize(length);
      TESSERA_RETURN_IF_ERROR(bytes(piece.data(), length, what));
      out->push_back(piece);
    }
    return {};
  }

  Status index_keys() {
    auto& order = gguf_->values_by_key_;
    order.resize(gguf_->values_.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto& values = gguf_->values_;
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return values[a].key != values[b].key ? values[a].key < values[b].key : a < b;
    });
    for (size_t i = 1; i < order.size(); ++i) {
      if (values[order[i - 1]].key == values[order[i]].key) {
        return fail(values[order[i]].place, format("key '{}' occurs twice, first at byte {}",
                                                   values[order[i]].key, values[order[i - 1]].place));
      }
    }
    return {};
  }

  Status parse_alignment() {
    constexpr const char* kKey = "general.alignment";
    TESSERA_ASSIGN_OR_RETURN(const uint32_t alignment, gguf_->get_or<uint32_t>(kKey, 32));
    if (alignment < 8 || (alignment & (alignment - 1)) != 0 || alignment > GgufFile::kMaxAlignment) {
      return fail(gguf_->find_key(kKey)->place,
                  format("general.alignment is {}, expected a power of two from 8 to {}", alignment,
                         GgufFile::kMaxAlignment));
    }
    gguf_->alignment_ = alignment;
    return {};
  }

  Status parse_tensor(uint64_t index) {
    GgufTensor tensor;
    const uint64_t start = place_;
    TESSERA_RETURN_IF_ERROR(
        label(&tensor.name, GgufFile::kMaxNameBytes, format("the name of tensor {}", index)));
    const std::string what = "tensor '" + tensor.name + "'";
    uint32_t rank = 0;
    TESSERA_RETURN_IF_ERROR(u32(&rank, what, ": its number of dimensions"));
    if (rank < 1 || rank > 4) return fail(start, format("{} has {} dimensions, expected 1 to 4", what, rank));
    tensor.rank = static_cast<int>(rank);
    CheckedSize elements = 1;
    constexpr const char* kDimensions[] = {": dimension 0", ": dimension 1", ": dimension 2",
                                           ": dimension 3"};
    for (uint32_t axis = 0; axis < rank; ++axis) {
      uint64_t extent = 0;
      TESSERA_RETURN_IF_ERROR(u64(&extent, what, kDimensions[axis]));
      if (extent == 0) return fail(start, format("{}{} is 0", what, kDimensions[axis]));
      if (extent > INT64_MAX) {
        return fail(start, format("{}{} is {}, the limit is {}", what, kDimensions[axis], extent, INT64_MAX));
      }
      elements = elements * extent;
      tensor.shape[rank - 1 - axis] = static_cast<int64_t>(extent);
    }
    if (!elements.ok() || *elements.get() > INT64_MAX) {
      return fail(start,
                  format("{} of shape {} has more elements than 64 bits count", what, tensor.shape_text()));
    }
    uint32_t number = 0;
    TESSERA_RETURN_IF_ERROR(u32(&number, what, ": its type"));
    TESSERA_RETURN_IF_ERROR(set_type(&tensor, number, start));
    const DTypeInfo& dtype = info(tensor.dtype);
    const uint64_t columns = static_cast<uint64_t>(tensor.shape[rank - 1]);
    const uint64_t block = static_cast<uint64_t>(dtype.block_elements);
    if (columns % block != 0) {
      return fail(start, format("{} is {} with rows of {} elements, not a multiple of the block of {}", what,
                                dtype.name, columns, block));
    }
    const CheckedSize bytes = CheckedSize(*elements.get() / block) * static_cast<uint64_t>(dtype.block_bytes);
    if (!bytes.ok()) {
      return fail(start,
                  format("{} of shape {} has more bytes than 64 bits count", what, tensor.shape_text()));
    }
    tensor.bytes = *bytes.get();
    TESSERA_RETURN_IF_ERROR(u64(&tensor.offset, what, ": its offset"));
    if (tensor.offset % gguf_->alignment_ != 0) {
      return fail(start, format("{}: its offset {} is not a multiple of the alignment {}", what,
                                tensor.offset, gguf_->alignment_));
    }
    gguf_->tensors_.push_back(std::move(tensor));
    return {};
  }

  Status set_type(GgufTensor* tensor, uint32_t number, uint64_t start) const {
    const bool known = number < std::size(kTensorTypes) && kTensorTypes[number].name != nullptr;
    if (!known)
      return fail(start, format("tensor '{}' has type {}, which does not exist", tensor->name, number));
    if (!kTensorTypes[number].dtype) {
      return not_here(start,
                      format("tensor '{}' has type {} ({}); supported are F32, F16, BF16, Q4_0, Q4_1, Q8_0",
                             tensor->name, kTensorTypes[number].name, number));
    }
    tensor->dtype = *kTensorTypes[number].dtype;
    return {};
  }

  Status index_tensors() {
    auto& order = gguf_->tensors_by_name_;
    order.resize(gguf_->tensors_.size());
    std::iota(order.begin(), order.end(), 0u);
    const auto& tensors = gguf_->tensors_;
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
    for (size_t i = 1; i < order.size(); ++i) {
      if (tensors[order[i - 1]].name == tensors[order[i]].name) {
        return gguf_->error(format("tensor '{}' occurs twice", tensors[order[i]].name));
      }
    }
    return {};
  }

  // Invariant 4; turns offsets in the data section into offsets in the file.
  Status check_cover() {
    const uint64_t data = *CheckedSize(place_).align_up(gguf_->alignment_).get();
    std::vector<GgufTensor*> order;
    for (GgufTensor& tensor : gguf_->tensors_) {
      const CheckedSize last = CheckedSize(data) + tensor.offset + tensor.bytes;
      if (!last.ok() || *last.get() > size_) {
        return gguf_->error(format("tensor '{}' at byte {} + {} has {} bytes and ends beyond the file's {}",
                                   tensor.name, data, tensor.offset, tensor.bytes, size_));
      }
      tensor.offset += data;
      order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    uint64_t end = place_;  // of what has been accounted for
    const GgufTensor* before = nullptr;
    for (const GgufTensor* tensor : order) {
      if (tensor->offset < end) {
        return gguf_->error(format("tensor '{}' at byte {} overlaps tensor '{}', which ends at byte {}",
                                   tensor->name, tensor->offset, before->name, end));
      }
      if (tensor->offset - end >= gguf_->alignment_) {
        return gguf_->error(
            format("bytes {} to {} before tensor '{}' belong to nothing", end, tensor->offset, tensor->name));
      }
      TESSERA_RETURN_IF_ERROR(check_zero(end, tensor->offset));
      end = tensor->offset + tensor->bytes;
      before = tensor;
    }
    if (size_ > *CheckedSize(end).align_up(gguf_->alignment_).get()) {
      return gguf_->error(format("the last {} ends at byte {}, but the file has {} bytes",
                                 before != nullptr ? "tensor" : "key", end, size_));
    }
    return check_zero(end, size_);
  }

  Status check_zero(uint64_t first, uint64_t last) {
    while (first < last) {
      const uint64_t count = std::min<uint64_t>(sizeof window_, last - first);
      window_bytes_ = 0;
      TESSERA_RETURN_IF_ERROR(gguf_->file_->read(first, std::span(window_, count)));
      for (uint64_t i = 0; i < count; ++i) {
        if (window_[i] != std::byte{0}) {
          return fail(first + i, format("padding has value {}, expected 0", static_cast<int>(window_[i])));
        }
      }
      first += count;
    }
    return {};
  }

  std::unique_ptr<GgufFile> gguf_;
  uint64_t size_ = 0;
  uint64_t place_ = 0;
  uint64_t tensors_ = 0;
  uint64_t keys_ = 0;
  std::byte window_[16384];
  uint64_t window_first_ = 0;
  uint64_t window_bytes_ = 0;
};

Result<std::unique_ptr<GgufFile>> GgufFile::open(const std::string& path, FileSystem& files) {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<File> file, files.open(path));
  return parse(std::move(file), path);
}

Result<std::unique_ptr<GgufFile>> GgufFile::parse(std::unique_ptr<File> file, const std::string& name) {
  try {
    return std::make_unique<GgufParser>(std::move(file), name)->parse();
  } catch (const std::bad_alloc&) {
    return resource_exhausted(name + ": no memory for the header");
  }
}

}  // namespace tessera::model
