// Python's "text" % value: %s %r %d %i %u %f %F %e %E %g %G %x %X %o %c %%, with flags, width and precision.
#include <algorithm>
#include <cmath>

#include "core/format.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/vocab.h"

namespace tessera::tokenizer::jinja {
namespace {

constexpr int64_t kMaxWidth = 10000;

struct Spec {
  bool left = false, plus = false, space = false, zero = false, alternate = false;
  int64_t width = 0, precision = -1;
  char kind = 0;
};

class Formatter {
 public:
  Formatter(Interpreter& in, const Str& text, const Value& value) : in_(in), text_(text), value_(value) {
    if (value.is_list() && value.list().kind == ListKind::tuple) arguments_ = &value.list().items;
  }

  Str run() {
    const std::string& s = text_.text;
    for (size_t at = 0; at < s.size();) {
      const size_t stop = std::min(s.find('%', at), s.size());
      append(text_.substr(at, stop));
      if (stop == s.size()) break;
      at = stop + 1;
      if (at < s.size() && s[at] == '%') {
        append(Str("%"));
        ++at;
      } else {
        at = field(at);
      }
    }
    const bool left = arguments_ != nullptr ? next_ < arguments_->size() : next_ == 0 && !value_.is_dict();
    if (left && !mapping_used_) fail("not all arguments were converted during string formatting");
    return std::move(out_);
  }

 private:
  void append(const Str& piece) {
    in_.charge_text(piece.text.size());
    out_.append(piece);
    if (out_.text.size() > in_.limits().output_bytes) fail("a formatted text is over the limit of bytes");
  }
  const Value& next() {
    if (arguments_ != nullptr) {
      if (next_ >= arguments_->size()) fail("not enough arguments for the format string");
      return (*arguments_)[next_++];
    }
    if (next_++ > 0) fail("not enough arguments for the format string");
    return value_;
  }
  int64_t number(size_t& at) {
    const std::string& s = text_.text;
    if (at < s.size() && s[at] == '*') {
      ++at;
      return limited(need_int(next(), "a width"));
    }
    int64_t value = 0;
    for (; at < s.size() && s[at] >= '0' && s[at] <= '9'; ++at) value = limited(value * 10 + (s[at] - '0'));
    return value;
  }
  static int64_t limited(int64_t value) {
    if (value > kMaxWidth || value < -kMaxWidth)
      fail(format("a width or precision is over the limit of {}", kMaxWidth));
    return value;
  }

  size_t field(size_t at) {
    const std::string& s = text_.text;
    const Value* chosen = nullptr;
    if (at < s.size() && s[at] == '(') {
      const size_t end = s.find(')', at);
      if (end == std::string::npos) fail("incomplete format key");
      if (!value_.is_dict()) fail("format requires a mapping");
      chosen = value_.dict().find(std::string_view(s).substr(at + 1, end - at - 1));
      if (chosen == nullptr)
        fail(format("the format's key {} is not there", quoted(s.substr(at + 1, end - at - 1))));
      mapping_used_ = true;
      at = end + 1;
    }
    Spec spec;
    for (; at < s.size(); ++at) {
      if (s[at] == '-') {
        spec.left = true;
      } else if (s[at] == '+') {
        spec.plus = true;
      } else if (s[at] == ' ') {
        spec.space = true;
      } else if (s[at] == '0') {
        spec.zero = true;
      } else if (s[at] == '#') {
        spec.alternate = true;
      } else {
        break;
      }
    }
    spec.width = number(at);
    if (spec.width < 0) {
      spec.left = true;
      spec.width = -spec.width;
    }
    if (at < s.size() && s[at] == '.') {
      ++at;
      spec.precision = std::max<int64_t>(number(at), 0);
    }
    if (at >= s.size()) fail("incomplete format");
    spec.kind = s[at];
    append(convert(spec, chosen != nullptr ? *chosen : next()));
    return at + 1;
  }

  Str convert(const Spec& spec, const Value& value) {
    switch (spec.kind) {
      case 's':
        return padded(spec, cut(spec, to_str(in_.meter(), value)));
      case 'r':
        return padded(spec, cut(spec, repr(in_.meter(), value)));
      case 'd':
      case 'i':
      case 'u':
        return padded_number(spec, integer(spec, value, 10), value);
      case 'x':
      case 'X':
        return padded_number(spec, integer(spec, value, 16), value);
      case 'o':
        return padded_number(spec, integer(spec, value, 8), value);
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G':
        return padded_number(spec, real(spec, value), value);
      case 'c': {
        if (value.is_string() && length(in_.meter(), value) == 1) return padded(spec, value.str());
        const int64_t code = need_int(value, "%c's value");
        if (code < 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("%c needs a code point");
        std::string text;
        append_utf8(text, static_cast<uint32_t>(code));
        return padded(spec, Str(text));
      }
      default:
        fail(format("unsupported format character {}", quoted(std::string_view(&spec.kind, 1))));
    }
  }

  static double need_number(const Value& value) {
    if (value.is_undefined()) fail(value.hint());
    if (!value.is_number()) fail(format("a format needs a number, not '{}'", value.type_name()));
    return value.as_float();
  }
  // The digits with a leading '-' for a negative value.
  static std::string integer(const Spec& spec, const Value& value, int base) {
    const double number = need_number(value);
    if (value.is_float() && base != 10) fail("this format needs an integer, not 'float'");
    if (value.is_float() && !(std::abs(number) < 9.2e18)) fail("integer overflow: integers have 64 bits");
    const int64_t whole = value.is_float() ? static_cast<int64_t>(number) : value.as_int();
    const uint64_t magnitude = whole < 0 ? 0 - static_cast<uint64_t>(whole) : static_cast<uint64_t>(whole);
    std::string digits = base == 10  ? format("{}", magnitude)
                         : base == 8 ? format("{:o}", magnitude)
                                     : format("{:x}", magnitude);
    if (spec.kind == 'X') digits = to_upper(digits);
    if (static_cast<int64_t>(digits.size()) < spec.precision) {
      digits.insert(0, static_cast<size_t>(spec.precision) - digits.size(), '0');
    }
    if (spec.alternate && base == 16) digits.insert(0, spec.kind == 'X' ? "0X" : "0x");
    if (spec.alternate && base == 8) digits.insert(0, "0o");
    return (whole < 0 ? "-" : "") + digits;
  }
  static std::string real(const Spec& spec, const Value& value) {
    const double number = need_number(value);
    const int precision = static_cast<int>(spec.precision < 0 ? 6 : std::min<int64_t>(spec.precision, 400));
    switch (spec.kind) {
      case 'e':
        return format("{:.{}e}", number, precision);
      case 'E':
        return format("{:.{}E}", number, precision);
      case 'g':
        return format("{:.{}g}", number, precision);
      case 'G':
        return format("{:.{}G}", number, precision);
      default:
        return format("{:.{}f}", number, precision);
    }
  }

  Str cut(const Spec& spec, const Str& text) {
    if (spec.precision < 0) return text;
    size_t end = 0;
    for (int64_t i = 0; i < spec.precision && end < text.text.size(); ++i)
      end += decode_utf8(text.text, end).length;
    return text.substr(0, end);
  }
  Str padded(const Spec& spec, const Str& text) {
    const int64_t missing = spec.width - static_cast<int64_t>(count_code_points(text.text));
    if (missing <= 0) return text;
    const std::string space(static_cast<size_t>(missing), ' ');
    Str out(spec.left ? "" : space);
    out.append(text);
    if (spec.left) out.append(space);
    return out;
  }
  Str padded_number(const Spec& spec, std::string digits, const Value&) {
    if (!digits.starts_with('-') && (spec.plus || spec.space)) digits.insert(0, 1, spec.plus ? '+' : ' ');
    const auto size = static_cast<int64_t>(digits.size());
    if (spec.zero && !spec.left && size < spec.width) {
      size_t at = digits.find_first_not_of("+- ");
      if (digits.compare(at, 2, "0x") == 0 || digits.compare(at, 2, "0X") == 0 ||
          digits.compare(at, 2, "0o") == 0)
        at += 2;
      digits.insert(at, static_cast<size_t>(spec.width - size), '0');
    }
    return padded(spec, Str(std::move(digits)));
  }

  Interpreter& in_;
  const Str& text_;
  const Value& value_;
  const std::vector<Value>* arguments_ = nullptr;
  size_t next_ = 0;
  bool mapping_used_ = false;
  Str out_;
};

}  // namespace

Value percent_format(Interpreter& in, const Str& text, const Value& value) {
  return in.text(Formatter(in, text, value).run());
}

}  // namespace tessera::tokenizer::jinja
