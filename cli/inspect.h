// The subcommand `tessera inspect FILE`.
#pragma once

#include <CLI/CLI.hpp>

namespace tessera::cli {

// Adds the subcommand; when it is chosen, leaves its exit code in *code: 0, or 2 for a bad file (one line on
// standard error and nothing on standard output) and, with --check, for weights that are NaN or infinite.
void add_inspect(CLI::App& app, int* code);

}  // namespace tessera::cli
