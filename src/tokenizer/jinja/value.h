// The values of a template: JSON's kinds, Python's tuples, ranges and generators, and what templates
// themselves define.
//
// 1. Containers and strings are immutable once they are in a Value; only a Namespace changes, and it is owned
// by the
//    render, so there are no cycles of ownership.
// 2. depth() counts levels of containers and is at most kMaxValueDepth, so recursion over a value (printing,
// comparing,
//    destroying) is bounded.
// 3. A string knows which of its bytes came from outside the template (`tainted`). Every operation keeps or
// widens the
//    mark and none narrows it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace tessera::tokenizer::jinja {

constexpr int kMaxValueDepth = 100;

// The one exception of this folder: what ends a compile or a render. It never leaves Template's functions.
struct TemplateError {
  std::string message;
  int line = 0;  // 0: not known yet
};
[[noreturn]] void fail(std::string message);

// What a render may still do. Everything whose cost grows with a value takes one.
class Meter {
 public:
  explicit Meter(int64_t steps) : limit_(steps), left_(steps) {}
  void charge(size_t steps) {
    if (steps > static_cast<size_t>(left_)) refuse();
    left_ -= static_cast<int64_t>(steps);
  }
  void charge_text(size_t bytes) { charge(bytes / 32 + 1); }

 private:
  [[noreturn]] void refuse() const;
  int64_t limit_, left_;
};

struct Str {
  std::string text;
  std::vector<TextSpan> tainted;  // bytes, ascending, disjoint, not empty
  bool markup = false;            // went through `safe` or `escape`: `escape` leaves it alone

  Str() = default;
  explicit Str(std::string t, bool taint = false) : text(std::move(t)) {
    if (taint && !text.empty()) tainted.push_back({0, text.size()});
  }
  bool any_taint() const { return !tainted.empty(); }
  Str substr(size_t begin, size_t end) const;
  void append(std::string_view plain) { text += plain; }
  void append(const Str& other);
  // `new_text` made from all of this string, tainted as a whole if any byte of this is.
  Str derived(std::string new_text) const { return Str(std::move(new_text), any_taint()); }
};

class Value;
struct List;
struct Dict;
struct Namespace;
struct Callable;
struct LoopState;
struct Undefined {
  std::string hint;  // "'x' is undefined", for the error when it is used
};

class Value {
 public:
  Value() : data_(nullptr) {}  // None
  Value(bool v) : data_(v) {}  // NOLINT: implicit on purpose, as the others
  Value(int64_t v) : data_(v) {}
  Value(int v) : data_(static_cast<int64_t>(v)) {}
  Value(double v) : data_(v) {}
  Value(Str v) : data_(std::make_shared<const Str>(std::move(v))) {}
  Value(std::string v) : Value(Str(std::move(v))) {}
  Value(const char* v) : Value(Str(v)) {}
  Value(List v);
  Value(Dict v);
  Value(std::shared_ptr<const Callable> v) : data_(std::move(v)) {}
  Value(std::shared_ptr<LoopState> v) : data_(std::move(v)) {}
  Value(Namespace* v) : data_(v) {}
  static Value undefined(std::string hint);
  // A string from outside the template.
  static Value outside(std::string v) { return Value(Str(std::move(v), true)); }

  bool is_none() const { return std::holds_alternative<std::nullptr_t>(data_); }
  bool is_undefined() const { return std::holds_alternative<std::shared_ptr<const Undefined>>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }  // not bool
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_integral() const { return is_bool() || is_int(); }
  bool is_string() const { return std::holds_alternative<StrPtr>(data_); }
  bool is_list() const { return std::holds_alternative<ListPtr>(data_); }
  bool is_dict() const { return std::holds_alternative<DictPtr>(data_); }
  bool is_callable() const { return std::holds_alternative<CallablePtr>(data_); }
  bool is_loop() const { return std::holds_alternative<LoopPtr>(data_); }
  bool is_namespace() const { return std::holds_alternative<Namespace*>(data_); }

  // REQUIRES: of that kind. as_int and as_float also take what Python converts without a word (bool, int).
  const std::string& hint() const { return std::get<std::shared_ptr<const Undefined>>(data_)->hint; }
  int64_t as_int() const { return is_bool() ? std::get<bool>(data_) : std::get<int64_t>(data_); }
  double as_float() const { return is_float() ? std::get<double>(data_) : static_cast<double>(as_int()); }
  bool as_bool() const { return std::get<bool>(data_); }
  const Str& str() const { return *std::get<StrPtr>(data_); }
  const std::string& text() const { return str().text; }
  const List& list() const { return *std::get<ListPtr>(data_); }
  const Dict& dict() const { return *std::get<DictPtr>(data_); }
  const Callable& callable() const { return *std::get<CallablePtr>(data_); }
  LoopState& loop() const { return *std::get<LoopPtr>(data_); }
  Namespace& ns() const { return *std::get<Namespace*>(data_); }

  bool truthy() const;
  int depth() const;                           // 0 for scalars
  const char* type_name() const;               // Python's
  bool same_object(const Value& other) const;  // Python's `is`

 private:
  using StrPtr = std::shared_ptr<const Str>;
  using ListPtr = std::shared_ptr<const List>;
  using DictPtr = std::shared_ptr<const Dict>;
  using CallablePtr = std::shared_ptr<const Callable>;
  using LoopPtr = std::shared_ptr<LoopState>;
  std::variant<std::nullptr_t, bool, int64_t, double, std::shared_ptr<const Undefined>, StrPtr, ListPtr,
               DictPtr, CallablePtr, LoopPtr, Namespace*>
      data_;
};

enum class ListKind : uint8_t { list, tuple, range, generator, dict_keys, dict_values, dict_items };
struct List {
  std::vector<Value> items;
  ListKind kind = ListKind::list;
  std::string range_text;         // of a range: how it prints
  bool group = false;             // of a tuple from groupby: has the attributes grouper and list
  mutable bool consumed = false;  // of a generator: iterated already, so empty now
  int depth = 1;                  // set by Value(List)

  bool has_length() const { return kind != ListKind::generator; }
  bool is_sequence() const {
    return kind == ListKind::list || kind == ListKind::tuple || kind == ListKind::range;
  }
};

// Keeps the order of insertion.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

  // A later value for an equal key replaces the earlier one in its place. Fails for a key without a hash.
  void set(Meter& meter, const Value& key, Value value);
  void set(std::string key, Value value,
           bool outside = false);                           // `outside`: the key is from outside the template
  const Value* find(Meter& meter, const Value& key) const;  // null if absent; fails for a key without a hash
  const Value* find(std::string_view key) const;

 private:
  void put(std::string hash, const Value& key, Value value);
  std::unordered_map<std::string, size_t> index_;  // by hash_key()
};

struct Namespace {
  Dict attributes;
};

struct Scope;
struct MacroNode;
struct Callable {
  enum class Kind : uint8_t { macro, function, method };
  Kind kind = Kind::function;
  std::string name;
  Value self;                        // of a method
  const MacroNode* macro = nullptr;  // of a macro, and where it was defined
  Scope* scope = nullptr;
};

// What makes two values one dictionary key: equal for equal values. Fails for lists, dicts and other
// unhashables.
std::string hash_key(Meter& meter, const Value& value);
bool equal(Meter& meter, const Value& a, const Value& b);
// < 0, 0, > 0; fails where Python raises a TypeError. `op` is for the message.
int compare(Meter& meter, const Value& a, const Value& b, const char* op);

// Python's str() and repr(). They fail for what would print an address.
Str to_str(Meter& meter, const Value& value);
Str repr(Meter& meter, const Value& value);
std::string float_repr(double value);

// The items that a `for` walks over; consumes a generator. Fails for what is not iterable.
std::vector<Value> iterate(Meter& meter, const Value& value);
// Python's len(). Fails for what has none.
int64_t length(Meter& meter, const Value& value);

}  // namespace tessera::tokenizer::jinja
