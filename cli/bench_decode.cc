// tessera bench decode and tree: one query a sequence over caches in a device's memory.
#include "bench.h"
#include "cuda/bench_device.h"

namespace tessera::cli {

void add_bench_decode(CLI::App& bench, int* code) {
  auto options = std::make_shared<DeviceDecodeOptions>();
  auto device = std::make_shared<std::string>("cuda");
  CLI::App* sub = bench.add_subcommand(
      "decode",
      "one query a sequence over caches on a GPU, beside the fastest reader of as many bytes; without -b and "
      "-n, steps of one sequence of 64, 256 and 1,024 keys too");
  sub->add_option("-b,--batch", options->batch, "sequences")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  sub->add_option("--heads", options->heads, "query heads")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  sub->add_option("--kv-heads", options->kv_heads, "kv heads")->delimiter(',');
  sub->add_option("-D,--head-dim", options->dim, "head dim")->capture_default_str();
  sub->add_option("-n,--length", options->lengths, "keys of each sequence")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24));
  sub->add_option("--page", options->pages, "tokens of a block of the cache; 0: contiguous caches")
      ->delimiter(',');
  sub->add_option("--dtype", options->dtype, "f16 or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f16", "bf16"}));
  sub->add_option("-r,--rounds", options->rounds, "samples of each cell")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  sub->add_option("--device", *device,
                  "cuda: the CPU's caches are measured by `tessera bench model` and cache_bench")
      ->capture_default_str()
      ->check(CLI::IsMember({"cuda"}));
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->callback([options, device, sub, code] {
    options->small_steps = sub->count("--batch") == 0 && sub->count("--length") == 0;
    const Status status = bench_decode_on_device(*options);
    *code = status.ok() ? kExitOk : fail(status);
  });
}

void add_bench_tree(CLI::App& bench, int* code) {
  auto options = std::make_shared<DeviceTreeOptions>();
  auto device = std::make_shared<std::string>("cuda");
  CLI::App* sub = bench.add_subcommand(
      "tree",
      "one query a sequence over shared prefixes on a GPU, beside the paged kernel on the same tables");
  sub->add_option("-b,--batch", options->batch, "sequences")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  sub->add_option("--heads", options->heads, "query heads")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  sub->add_option("--kv-heads", options->kv_heads, "kv heads")->delimiter(',');
  sub->add_option("-D,--head-dim", options->dim, "head dim")->capture_default_str();
  sub->add_option("-n,--prompt", options->prompts,
                  "tokens of each prompt; 0, a half, 3/4 and all of it are shared")
      ->delimiter(',')
      ->check(CLI::Range(256, 1 << 20));
  sub->add_option("--page", options->page, "tokens of a block of the cache")->capture_default_str();
  sub->add_option("-r,--rounds", options->rounds, "samples of each row")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  sub->add_option("--device", *device,
                  "cuda: the CPU's tree is measured by `tessera bench model` and attention_bench")
      ->capture_default_str()
      ->check(CLI::IsMember({"cuda"}));
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->callback([options, device, code] {
    const Status status = bench_tree_on_device(*options);
    *code = status.ok() ? kExitOk : fail(status);
  });
}

}  // namespace tessera::cli
