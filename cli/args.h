// Flags shared by the subcommands, spelled as users of llama-server and vLLM know them.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "engine/service.h"

namespace tessera::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitBadInput = 2;  // a bad file, flag or value

// Rewrites the multi-letter single-dash flags (-np, -ub, -ctk, ...), which a POSIX parser would read as a
// bundle of single letters, to their long form.
std::vector<std::string> expand_short_flags(int argc, char** argv);

// -m, -c, -t, the cache and the batch: everything that decides how the model is loaded.
void add_service_flags(CLI::App& app, engine::ServiceOptions& options);
// --temp, --top-k and the rest of the sampler's.
void add_sampling_flags(CLI::App& app, engine::SamplingParams& params);

// Lines of `least` and graver go to standard error; warnings and errors say what they are.
LogSink stderr_log(LogLevel least);
// Loads the model, with a progress line when standard error is a terminal and `least` lets info through.
Result<std::unique_ptr<engine::Service>> load(engine::ServiceOptions options, LogLevel least);

// One warning on standard error when the vocabulary lacked some of a text's bytes.
void warn_left_out(size_t left_out);

// Prints "tessera: MESSAGE" on standard error and gives the exit code that fits.
int fail(const Status& status);

// Each adds its subcommand to the app and, when it is chosen, leaves its exit code in *code.
void add_run(CLI::App& app, int* code);
void add_serve(CLI::App& app, int* code);
void add_tokenize(CLI::App& app, int* code);
void add_bench(CLI::App& app, int* code);
void add_explain(CLI::App& app, int* code);

}  // namespace tessera::cli
