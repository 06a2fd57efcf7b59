// The filters that filters.cc registers from its sister files. Same shape as there: in, value, arguments.
#pragma once

#include <optional>
#include <vector>

#include "tokenizer/jinja/interpreter.h"

namespace tessera::tokenizer::jinja::filters {

using Given = std::vector<std::optional<Value>>;
inline bool truthy(const std::optional<Value>& value) {
  return value && value->truthy();
}

// filters_number.cc
Value to_int(Interpreter& in, const Value& v, const Args& args);
Value to_float(Interpreter& in, const Value& v, const Args& args);
Value round_number(Interpreter& in, const Value& v, const Args& args);
Value absolute(Interpreter& in, const Value& v, const Args& args);

// filters_sequence.cc
Value sort_items(Interpreter& in, const Value& v, const Args& args);
Value dict_sort(Interpreter& in, const Value& v, const Args& args);
Value group_by(Interpreter& in, const Value& v, const Args& args);
Value unique(Interpreter& in, const Value& v, const Args& args);
Value sum(Interpreter& in, const Value& v, const Args& args);
Value first(Interpreter& in, const Value& v, const Args& args);
Value last(Interpreter& in, const Value& v, const Args& args);
Value reverse(Interpreter& in, const Value& v, const Args& args);
Value join(Interpreter& in, const Value& v, const Args& args);
Value map_items(Interpreter& in, const Value& v, const Args& args);
Value batch(Interpreter& in, const Value& v, const Args& args);
Value slice(Interpreter& in, const Value& v, const Args& args);
Value items_of(Interpreter& in, const Value& v, const Args& args);
Value attr(Interpreter& in, const Value& v, const Args& args);
Value extreme(Interpreter& in, const Value& v, const Args& args, bool largest);
Value select(Interpreter& in, const Value& v, const Args& args, bool by_attribute, bool wanted);

}  // namespace tessera::tokenizer::jinja::filters
