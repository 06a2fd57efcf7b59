// tessera tokenize: text on standard input to ids as JSON, or back with --decode.
#include <boost/json.hpp>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "args.h"

namespace tessera::cli {
namespace {

struct TokenizeOptions {
  std::string model;
  bool decode = false;
  bool no_special = false;
  bool parse_special = false;
};

int tokenize(const engine::TextService& text, const TokenizeOptions& options) {
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  if (!options.decode) {
    const auto encoded = text.tokenize(input, !options.no_special, options.parse_special);
    if (!encoded.ok()) return fail(encoded.status());
    const std::vector<int32_t>& ids = encoded->tokens;
    std::cout << boost::json::serialize(boost::json::array(ids.begin(), ids.end())) << "\n";
    warn_left_out(encoded->left_out);
    return kExitOk;
  }
  boost::system::error_code error;
  const boost::json::value value = boost::json::parse(input, error);
  if (error || !value.is_array()) {
    return fail(invalid_argument("--decode wants a JSON array of token ids on standard input"));
  }
  std::vector<int32_t> ids;
  for (const boost::json::value& item : value.as_array()) {
    if (!item.is_int64() || item.as_int64() < 0 || item.as_int64() > INT32_MAX) {
      return fail(invalid_argument("--decode: '" + boost::json::serialize(item) + "' is not a token id"));
    }
    ids.push_back(static_cast<int32_t>(item.as_int64()));
  }
  auto decoded = text.detokenize(ids);
  if (!decoded.ok()) return fail(decoded.status());
  std::cout << *decoded;
  return kExitOk;
}

}  // namespace

void add_tokenize(CLI::App& app, int* code) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* sub = app.add_subcommand("tokenize", "text on standard input, token ids out as a JSON array");
  sub->add_option("-m,--model", options->model, "GGUF file")->required();
  sub->add_flag("--decode", options->decode, "the other way: a JSON array of ids in, text out");
  sub->add_flag("--no-special", options->no_special, "do not add the model's begin-of-text token");
  sub->add_flag("--parse-special", options->parse_special,
                "read special tokens such as <|im_start|> in the text as tokens (default: as plain text)");
  sub->callback([options, code] {
    auto text = engine::load_text(options->model);
    *code = text.ok() ? tokenize(**text, *options) : fail(text.status());
  });
}

}  // namespace tessera::cli
