// Filters on numbers.
#include <charconv>
#include <cmath>

#include "core/format.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja::filters {
namespace {

std::string digits_of(const Value& v) {
  const Str stripped = strip_text(v.str(), nullptr, true, true);
  std::string out;
  for (size_t i = 0; i < stripped.text.size(); ++i) {
    const char c = stripped.text[i];
    const auto digit = [](char d) { return d >= '0' && d <= '9'; };
    const bool between = c == '_' && i > 0 && i + 1 < stripped.text.size() && digit(stripped.text[i - 1]) &&
                         digit(stripped.text[i + 1]);
    if (!between) out += c;
  }
  return out;
}

std::optional<double> parse_float(const Value& v) {
  if (v.is_number()) return v.as_float();
  if (!v.is_string()) return std::nullopt;
  std::string text = to_lower(digits_of(v));
  if (text.starts_with('+') && !text.starts_with("+-")) text.erase(0, 1);
  if (text == "infinity" || text == "inf") return INFINITY;
  if (text == "-infinity" || text == "-inf") return -INFINITY;
  if (text == "nan" || text == "-nan") return std::nan("");
  if (text.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
  double value = 0;
  const auto done = std::from_chars(text.data(), text.data() + text.size(), value);
  if (done.ptr != text.data() + text.size() || text.empty()) return std::nullopt;
  if (done.ec == std::errc::result_out_of_range) {
    const size_t e = text.find('e');
    const bool tiny = e != std::string::npos && e + 1 < text.size() && text[e + 1] == '-';
    return tiny ? 0.0 : text[0] == '-' ? -INFINITY : INFINITY;
  }
  return value;
}

Value truncated(double value) {
  if (!(value >= -9223372036854775808.0 && value < 9223372036854775808.0))
    fail("integer overflow: integers have 64 bits");
  return static_cast<int64_t>(value);
}

// Half to even at the given decimal, as Python rounds: through the shortest decimal text of the exact value.
double round_half_even(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 323) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits >= 0) {
    const std::string text = format("{:.{}f}", value, digits);
    double rounded = 0;
    std::from_chars(text.data(), text.data() + text.size(), rounded);
    return rounded;
  }
  const double scale = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(value / scale) * scale;
}

}  // namespace

Value to_int(Interpreter&, const Value& v, const Args& args) {
  const Given given = args.bind("int", {"default", "base"});
  const Value fallback = given[0] ? *given[0] : Value(0);
  if (v.is_undefined()) fail(v.hint());
  if (v.is_integral()) return v.as_int();
  if (v.is_string()) {
    const int64_t base = given[1] ? need_int(*given[1], "int's base") : 10;
    std::string text = to_lower(digits_of(v));
    const bool negative = text.starts_with('-');
    if (negative || text.starts_with('+')) text.erase(0, 1);
    int64_t radix = base;
    const std::string_view prefix = std::string_view(text).substr(0, 2);
    const int64_t named = prefix == "0x" ? 16 : prefix == "0o" ? 8 : prefix == "0b" ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      radix = named;
      text.erase(0, 2);
    }
    if (radix == 0) radix = 10;
    int64_t value = 0;
    if (radix >= 2 && radix <= 36 && !text.empty() && text[0] != '-') {
      const std::string whole = negative ? "-" + text : text;
      const auto done =
          std::from_chars(whole.data(), whole.data() + whole.size(), value, static_cast<int>(radix));
      if (done.ptr == whole.data() + whole.size()) {
        if (done.ec == std::errc::result_out_of_range) fail("integer overflow: integers have 64 bits");
        if (done.ec == std::errc()) return value;
      }
    }
  }
  const std::optional<double> number = parse_float(v);
  return number && std::isfinite(*number) ? truncated(*number) : fallback;
}

Value to_float(Interpreter&, const Value& v, const Args& args) {
  const Given given = args.bind("float", {"default"});
  if (v.is_undefined()) fail(v.hint());
  const std::optional<double> number = parse_float(v);
  return number ? Value(*number) : given[0] ? *given[0] : Value(0.0);
}

Value round_number(Interpreter& in, const Value& v, const Args& args) {
  const Given given = args.bind("round", {"precision", "method"});
  const int64_t precision = given[0] ? need_int(*given[0], "round's precision") : 0;
  const std::string method = given[1] ? need_str(*given[1], "round's method").text : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    fail("round's method must be common, ceil or floor");
  if (v.is_undefined()) fail(v.hint());
  if (!v.is_number()) fail(format("round needs a number, not '{}'", v.type_name()));
  if (method == "common") {
    if (v.is_float()) return round_half_even(v.as_float(), precision);
    if (precision >= 0) return v.as_int();
    return truncated(round_half_even(v.as_float(), precision));
  }
  const Value scale = in.binary("**", Value(10), Value(precision));
  const Value scaled = in.binary("*", v, scale);
  const double whole = method == "ceil" ? std::ceil(scaled.as_float()) : std::floor(scaled.as_float());
  return in.binary("/", truncated(whole), scale);
}

Value absolute(Interpreter&, const Value& v, const Args& args) {
  args.bind("abs", {});
  if (v.is_undefined()) fail(v.hint());
  if (!v.is_number()) fail(format("abs needs a number, not '{}'", v.type_name()));
  if (v.is_float()) return std::fabs(v.as_float());
  if (v.as_int() == INT64_MIN) fail("integer overflow: integers have 64 bits");
  return std::abs(v.as_int());
}

}  // namespace tessera::tokenizer::jinja::filters
